"""Exercises of 02_alexnet."""

import torch
from torch import nn

from common.check import Exercise, NotYet, expect_equal


def test_grouped_params(answer) -> None:
    for channels, filters, kernel, groups in ((96, 256, 5, 2), (384, 384, 3, 2), (3, 96, 11, 1), (8, 8, 3, 8)):  # fmt: skip
        layer = nn.Conv2d(channels, filters, kernel, groups=groups)
        expected = sum(p.numel() for p in layer.parameters())
        where = f"{channels} channels, {filters} filters of {kernel} x {kernel}, {groups} group{'s' * (groups > 1)}"
        expect_equal(answer(channels, filters, kernel, groups), expected, where)


def test_overlapping_pool(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for size, window, stride in ((7, 3, 2), (8, 3, 2), (6, 2, 2), (5, 3, 1)):
        image = torch.randn(size, size, generator=generator)
        expected = nn.functional.max_pool2d(image[None, None], window, stride)[0, 0]
        where = f"a {size} x {size} image, windows of {window}, {stride} apart"
        expect_equal(answer(image, window, stride), expected, where)


def test_drop(answer) -> None:
    x = torch.arange(1.0, 40_001).view(200, 200)
    kept = x.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for p in (0.5, 0.2):
            found = answer(x, p)
            if not isinstance(found, torch.Tensor):
                raise NotYet(f"Return a tensor, not {type(found).__name__}.")
            expect_equal(tuple(found.shape), tuple(x.shape), "the shape of the result")
            if not torch.equal(x, kept):
                raise NotYet("The input itself was changed: work on a copy.")
            dropped = found == 0
            share = dropped.float().mean().item()
            if abs(share - p) > 0.02:
                raise NotYet(f"With p={p}, {share:.1%} of the values became 0.")
            survivors = found[~dropped] / x[~dropped]
            if not torch.allclose(survivors, torch.tensor(1 / (1 - p)), atol=1e-4):
                raise NotYet(f"With p={p}, a survivor should be multiplied by {1 / (1 - p):.3g}, not by {survivors.mean().item():.3g}.")  # fmt: skip
            if torch.equal(answer(x, p), found):
                raise NotYet("Two calls dropped the same values: draw anew each time.")
            if dropped.all(0).any() or dropped.all(1).any():
                raise NotYet("Whole rows or columns became 0: decide for each value by itself.")


def test_two_gpus(answer) -> None:
    net = answer()
    if not isinstance(net, nn.Module):
        raise NotYet(f"Return a network (an nn.Module), not {type(net).__name__}.")
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expect_equal(tuple(net(x).shape), (1, 256, 6, 6), "the output for one image of 3 x 224 x 224")
    expect_equal(sum(p.numel() for p in net.parameters()), 2_334_080, "the number of parameters")
    if any(p.grad is None for p in used(net, x)):
        raise NotYet("Some weights get no gradient: is every layer used?")
    if net(x).min() < 0:
        raise NotYet("The output has negative values: a ReLU follows each convolution.")


def used(net: nn.Module, x: torch.Tensor) -> list[nn.Parameter]:
    """The net's parameters, after a backward pass from its output for x."""
    net(x).sum().backward()
    return list(net.parameters())


EXERCISES = [
    Exercise(
        name="grouped_params",
        statement="""\
On two GPUs, the paper's conv2 has 256 filters, but each looks at 48 of the 96 maps only.
In a convolution with `groups`, every filter sees `channels / groups` input channels; it still has one bias.
How many numbers does it learn?""",
        skeleton="""\
def grouped_params(channels, filters, kernel, groups):
    return ...""",
        answer="grouped_params",
        lines=1,
        test=test_grouped_params,
        hints=(
            "Begin with one filter: over how many channels does it lie?",
            "One filter has channels // groups * kernel * kernel weights and one bias; groups do not change how many filters there are.",
        ),
        solution="""\
def grouped_params(channels, filters, kernel, groups):
    return filters * (channels // groups * kernel * kernel + 1)""",
        wrong=(
            "def grouped_params(channels, filters, kernel, groups):\n    return filters * (channels * kernel * kernel + 1)",
            "def grouped_params(channels, filters, kernel, groups):\n    return filters * (channels * kernel * kernel + 1) // groups",
            "def grouped_params(channels, filters, kernel, groups):\n    return filters * (channels / groups * kernel * kernel)",
        ),
    ),
    Exercise(
        name="overlapping_pool",
        statement="""\
Compute a max pooling by hand, with windows of `window` pixels that lie `stride` apart.
AlexNet's windows are 3 pixels wide and 2 apart, so neighbours share pixels.
`image` is a square tensor; return a square tensor, and leave out windows that do not fit.""",
        skeleton="""\
def overlapping_pool(image, window, stride):
    return ...""",
        answer="overlapping_pool",
        lines=5,
        test=test_overlapping_pool,
        hints=(
            "Where do the windows begin? range() takes a start, a stop and a step.",
            "They begin at range(0, len(image) - window + 1, stride); the value of one is image[i : i + window, j : j + window].max().",
        ),
        solution="""\
def overlapping_pool(image, window, stride):
    starts = range(0, len(image) - window + 1, stride)
    values = [image[i : i + window, j : j + window].max() for i in starts for j in starts]
    return torch.stack(values).view(len(starts), len(starts))""",
        wrong=(
            """\
def overlapping_pool(image, window, stride):
    starts = range(0, len(image) - window + 1, window)
    values = [image[i : i + window, j : j + window].max() for i in starts for j in starts]
    return torch.stack(values).view(len(starts), len(starts))""",
            """\
def overlapping_pool(image, window, stride):
    starts = range(0, len(image), stride)
    values = [image[i : i + window, j : j + window].max() for i in starts for j in starts]
    return torch.stack(values).view(len(starts), len(starts))""",
            """\
def overlapping_pool(image, window, stride):
    starts = range(0, len(image) - window + 1, stride)
    values = [image[i : i + window, j : j + window].mean() for i in starts for j in starts]
    return torch.stack(values).view(len(starts), len(starts))""",
        ),
    ),
    Exercise(
        name="drop",
        statement="""\
Write dropout as it is in training.
Each value of `x` becomes 0 with probability `p`, by itself and anew in each call.
The others are enlarged so that the mean stays the same; then nothing has to be changed at test time.
Use `torch.rand_like`, not `nn.Dropout`.""",
        skeleton="""\
def drop(x, p):
    return ...""",
        answer="drop",
        lines=2,
        test=test_drop,
        hints=(
            "torch.rand_like(x) gives a number from 0 to 1 for each value; which share of them is at least p?",
            "A share of 1 - p survives, so survivors are divided by 1 - p.",
        ),
        solution="""\
def drop(x, p):
    keep = torch.rand_like(x) >= p
    return x * keep / (1 - p)""",
        wrong=(
            "def drop(x, p):\n    return x * (torch.rand_like(x) >= p)",
            "def drop(x, p):\n    return x * (torch.rand_like(x) < p) / p",
            "def drop(x, p):\n    return x * (torch.rand(len(x), 1) >= p) / (1 - p)",
            "def drop(x, p):\n    torch.manual_seed(0)\n    return x * (torch.rand_like(x) >= p) / (1 - p)",
        ),
    ),
    Exercise(
        name="two_gpus",
        statement="""\
Build the convolutional part of the paper's net as it ran on two GPUs: for colour images of 224 x 224 pixels, everything up to and with pool3, in `alexnet_paper`'s sizes.
conv2, conv4 and conv5 have two groups; conv1 and conv3 see all maps.
Its output is 256 x 6 x 6, it has 2,334,080 parameters, and a ReLU follows each convolution.""",
        skeleton="""\
def two_gpus():
    return ...""",
        answer="two_gpus",
        lines=10,
        test=test_two_gpus,
        hints=(
            "nn.Conv2d has an argument groups. The stem is nn.Conv2d(3, 96, 11, stride=4, padding=2).",
            "conv2 is nn.Conv2d(96, 256, 5, padding=2, groups=2); nn.MaxPool2d(3, 2) follows conv1, conv2 and conv5.",
        ),
        solution="""\
def two_gpus():
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )""",
        wrong=(
            """\
def two_gpus():
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )""",
            """\
def two_gpus():
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, stride=4, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )""",
            """\
def two_gpus():
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, stride=4, padding=2), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.MaxPool2d(3, 2)),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.MaxPool2d(3, 2)),
    )""",
        ),
    ),
]
