"""Exercises of 08_densenet."""

import itertools

import torch
from torch import nn

from common.check import Exercise, expect_equal


def test_pile_sizes(answer) -> None:
    cases = (
        ((24, 12, (6, 12, 24, 16)), [96, 192, 384, 384]),
        ((64, 32, (6, 12, 24, 16)), [256, 512, 1024, 1024]),
        ((10, 3, (5,)), [25]),
        ((8, 5, (1, 2)), [13, 16]),
    )
    for (channels, growth_rate, blocks), expected in cases:
        where = f"channels={channels}, growth_rate={growth_rate}, blocks={blocks}"
        expect_equal(list(answer(channels, growth_rate, blocks)), expected, where)


def test_layer_params(answer) -> None:
    for channels, growth_rate in ((24, 12), (256, 32), (7, 1)):
        squeezed = 4 * growth_rate
        layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, squeezed, 1, bias=False),
            nn.BatchNorm2d(squeezed),
            nn.Conv2d(squeezed, growth_rate, 3, bias=False),
        )
        expected = sum(p.numel() for p in layer.parameters())
        expect_equal(answer(channels, growth_rate), expected, f"{channels} channels, growth rate {growth_rate}")  # fmt: skip


def test_grow(answer) -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    layers = [
        lambda pile: pile[:, :2] * 2,
        lambda pile: pile.sum(1, keepdim=True),
        lambda pile: pile[:, -3:] + 1,
    ]
    expected = x
    for layer in layers:
        expected = torch.cat([expected, layer(expected)], dim=1)
    expect_equal(answer(x, []), x, "a block without layers")
    expect_equal(answer(x, layers[:1]), expected[:, :5], "a block of one layer")
    expect_equal(answer(x, layers), expected, "a block of three layers")


def test_share_by_source(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for entry, growth_rate, layers in ((4, 2, 3), (3, 5, 1), (6, 4, 0)):
        weight = torch.randn(8, entry + layers * growth_rate, 1, 1, generator=generator)
        edges = [0, *range(entry, entry + layers * growth_rate + 1, growth_rate)]
        expected = [weight[:, a:b].abs().mean().item() for a, b in itertools.pairwise(edges)]
        found = torch.as_tensor(answer(weight, entry, growth_rate)).float()
        where = f"{entry} maps of the block's input and {layers} layers of {growth_rate} maps"
        expect_equal(found, torch.tensor(expected), where)


EXERCISES = [
    Exercise(
        name="pile_sizes",
        statement="""\
How many maps has the pile at the end of each dense block?
`channels` maps enter the first block; `blocks` holds the number of layers in each block, such as (6, 12, 24, 16).
Between two blocks a transition halves the number of maps, rounding down.
Return a list.""",
        skeleton="""\
def pile_sizes(channels, growth_rate, blocks):
    return ...""",
        answer="pile_sizes",
        lines=6,
        test=test_pile_sizes,
        hints=(
            "Every layer adds growth_rate maps and takes none away.",
            "Go through the blocks in a loop: add layers * growth_rate, note the sum, then halve it.",
        ),
        solution="""\
def pile_sizes(channels, growth_rate, blocks):
    sizes = []
    for layers in blocks:
        channels += layers * growth_rate
        sizes.append(channels)
        channels //= 2
    return sizes""",
        wrong=(
            """\
def pile_sizes(channels, growth_rate, blocks):
    sizes = []
    for layers in blocks:
        channels += layers * growth_rate
        sizes.append(channels)
    return sizes""",
            """\
def pile_sizes(channels, growth_rate, blocks):
    sizes = []
    for layers in blocks:
        channels = (channels + layers * growth_rate) // 2
        sizes.append(channels)
    return sizes""",
        ),
    ),
    Exercise(
        name="layer_params",
        statement="""\
How many parameters has a dense layer that reads `channels` maps?
Batch normalisation, a 1 × 1 convolution to 4 `growth_rate` maps, batch normalisation, a 3 × 3 convolution to `growth_rate` maps; no biases.""",
        skeleton="""\
def layer_params(channels, growth_rate):
    return ...""",
        answer="layer_params",
        lines=3,
        test=test_layer_params,
        hints=(
            "Batch normalisation has two numbers a channel, a scale and a shift.",
            "The four terms: 2 * channels, channels * 4k, 2 * 4k, and 4k * k * 9.",
        ),
        solution="""\
def layer_params(channels, growth_rate):
    squeezed = 4 * growth_rate
    norms = 2 * channels + 2 * squeezed
    return norms + channels * squeezed + squeezed * growth_rate * 9""",
        wrong=(
            "def layer_params(channels, growth_rate):\n    return channels * 4 * growth_rate + 36 * growth_rate**2",
            "def layer_params(channels, growth_rate):\n    return 2 * channels + 2 * growth_rate + channels * 4 * growth_rate + 36 * growth_rate**2",
            "def layer_params(channels, growth_rate):\n    return 2 * channels + channels * growth_rate * 9",
        ),
    ),
    Exercise(
        name="grow",
        statement="""\
Run a dense block by hand.
`x` has the shape (N, C, H, W), and `layers` is a list of functions: each takes the pile so far and returns its new maps, without the pile.
Return the pile after the last layer.""",
        skeleton="""\
def grow(x, layers):
    return ...""",
        answer="grow",
        lines=3,
        test=test_grow,
        hints=(
            "The second layer must see what the first one made.",
            "torch.cat([x, layer(x)], dim=1) is the pile after one layer.",
        ),
        solution="""\
def grow(x, layers):
    for layer in layers:
        x = torch.cat([x, layer(x)], dim=1)
    return x""",
        wrong=(
            "def grow(x, layers):\n    return torch.cat([x, *(layer(x) for layer in layers)], dim=1)",
            """\
def grow(x, layers):
    for layer in layers:
        x = torch.cat([layer(x), x], dim=1)
    return x""",
            """\
def grow(x, layers):
    for layer in layers:
        x = layer(x)
    return x""",
        ),
    ),
    Exercise(
        name="share_by_source",
        statement="""\
`weight` (filters, channels, 1, 1) belongs to a convolution that reads a pile: first the `entry` maps that came into the block, then `growth_rate` maps from each layer so far.
Return the mean absolute weight of each source, in order, as a tensor.""",
        skeleton="""\
def share_by_source(weight, entry, growth_rate):
    return ...""",
        answer="share_by_source",
        lines=4,
        test=test_share_by_source,
        hints=(
            "Average the absolute weights of each map first, then cut the row of maps into sources.",
            "A tensor's split takes a list of sizes: [entry, growth_rate, growth_rate, ...]. How many layers are there?",
        ),
        solution="""\
def share_by_source(weight, entry, growth_rate):
    by_map = weight.abs().mean(dim=(0, 2, 3))
    layers = (len(by_map) - entry) // growth_rate
    sources = by_map.split([entry] + [growth_rate] * layers)
    return torch.stack([source.mean() for source in sources])""",
        wrong=(
            """\
def share_by_source(weight, entry, growth_rate):
    sources = weight.abs().mean(dim=(0, 2, 3)).split(growth_rate)
    return torch.stack([source.mean() for source in sources])""",
            """\
def share_by_source(weight, entry, growth_rate):
    by_map = weight.mean(dim=(0, 2, 3))
    layers = (len(by_map) - entry) // growth_rate
    sources = by_map.split([entry] + [growth_rate] * layers)
    return torch.stack([source.mean().abs() for source in sources])""",
            """\
def share_by_source(weight, entry, growth_rate):
    by_map = weight.abs().mean(dim=(0, 2, 3))
    layers = (len(by_map) - entry) // growth_rate
    sources = by_map.split([entry] + [growth_rate] * layers)
    return torch.stack([source.sum() for source in sources])""",
        ),
    ),
]
