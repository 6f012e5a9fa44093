"""Exercises of 06_resnet."""

import torch
from torch import nn

from common.check import Exercise, NotYet, expect_equal


def test_block_params(answer) -> None:
    for in_channels, channels in ((64, 64), (64, 128), (16, 32), (3, 5)):
        layers = [nn.Conv2d(in_channels, channels, 3, bias=False), nn.BatchNorm2d(channels)]
        layers += [nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels)]
        if in_channels != channels:
            layers += [nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        expected = sum(p.numel() for layer in layers for p in layer.parameters())
        expect_equal(answer(in_channels, channels), expected, f"in_channels={in_channels}, channels={channels}")  # fmt: skip


def test_padded_shortcut(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, channels in (((2, 3, 4, 4), 6), ((1, 4, 6, 6), 8), ((2, 2, 7, 7), 5)):
        x = torch.randn(shape, generator=generator)
        N, C, H, W = shape
        expected = torch.zeros(N, channels, -(-H // 2), -(-W // 2))
        expected[:, :C] = x[:, :, ::2, ::2]
        expect_equal(answer(x, channels), expected, f"an input of shape {shape} and channels={channels}")  # fmt: skip


def test_preactivation(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 5, generator=generator)
    layers = [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)]
    layers += [nn.Conv2d(4, 3, 3, padding=1)]
    for layer in layers:
        for p in layer.parameters():
            nn.init.normal_(p, std=0.3, generator=generator)
    norm1, conv1, norm2, conv2 = (layer.eval() for layer in layers)
    with torch.no_grad():
        expected = x + conv2(norm2(conv1(norm1(x).relu())).relu())
        expect_equal(answer(x.clone(), norm1, conv1, norm2, conv2), expected, "a random input")


def test_bottleneck(answer) -> None:
    block = answer()
    if not isinstance(block, nn.Module):
        raise NotYet(f"Return a block (an nn.Module), not {type(block).__name__}.")
    x = torch.randn(2, 256, 6, 6, generator=torch.Generator().manual_seed(0))
    y = block(x.clone())
    expect_equal(tuple(y.shape), (2, 256, 6, 6), "the output for two inputs of 256 x 6 x 6")
    expect_equal(sum(p.numel() for p in block.parameters()), 70_400, "the number of parameters")
    kernels = [m.kernel_size for m in block.modules() if isinstance(m, nn.Conv2d)]
    expect_equal(kernels, [(1, 1), (3, 3), (1, 1)], "the kernels of the convolutions")
    y.sum().backward()
    if any(p.grad is None for p in block.parameters()):
        raise NotYet("Some weights get no gradient: is every layer used?")
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
        found = block(x.clone())
    expect_equal(found, x.relu(), "with all weights 0 the block should give relu(x)")


EXERCISES = [
    Exercise(
        name="block_params",
        statement="""\
How many numbers does a `ResidualBlock` learn?
Its convolutions have no bias; every convolution is followed by a batch normalisation, the projection's too.
There is a projection only where the channels change.""",
        skeleton="""\
def block_params(in_channels, channels):
    return ...""",
        answer="block_params",
        lines=4,
        test=test_block_params,
        hints=(
            "Count the plain block first: two convolutions of 3 x 3, and two numbers a channel for each normalisation.",
            "The plain block has 9 * channels * (in_channels + channels) + 4 * channels. What does a 1 x 1 convolution with its normalisation add?",
        ),
        solution="""\
def block_params(in_channels, channels):
    plain = 9 * channels * (in_channels + channels) + 2 * 2 * channels
    if in_channels == channels:
        return plain
    return plain + in_channels * channels + 2 * channels""",
        wrong=(
            """\
def block_params(in_channels, channels):
    plain = 9 * channels * (in_channels + channels) + 4 * channels
    return plain + in_channels * channels + 2 * channels""",
            """\
def block_params(in_channels, channels):
    plain = 9 * channels * (in_channels + channels) + 4 * channels
    return plain if in_channels == channels else plain + in_channels * channels""",
            """\
def block_params(in_channels, channels):
    plain = 18 * in_channels * channels + 4 * channels
    return plain if in_channels == channels else plain + in_channels * channels + 2 * channels""",
        ),
    ),
    Exercise(
        name="padded_shortcut",
        statement="""\
The paper's option A has no projection.
Where the image is halved and the channels grow, the shortcut takes every second pixel, beginning with the first, and fills the missing channels with zeros at the end.
`x` has shape (N, C, H, W), and the result has `channels` channels.""",
        skeleton="""\
def padded_shortcut(x, channels):
    return ...""",
        answer="padded_shortcut",
        lines=3,
        test=test_padded_shortcut,
        hints=(
            "x[:, :, ::2, ::2] takes every second pixel.",
            "Make a tensor of zeros with the missing channels, and torch.cat both along dimension 1.",
        ),
        solution="""\
def padded_shortcut(x, channels):
    x = x[:, :, ::2, ::2]
    zeros = torch.zeros(len(x), channels - x.shape[1], *x.shape[2:])
    return torch.cat([x, zeros], dim=1)""",
        wrong=(
            """\
def padded_shortcut(x, channels):
    x = nn.functional.avg_pool2d(x, 2, ceil_mode=True)
    zeros = torch.zeros(len(x), channels - x.shape[1], *x.shape[2:])
    return torch.cat([x, zeros], dim=1)""",
            """\
def padded_shortcut(x, channels):
    x = x[:, :, ::2, ::2]
    zeros = torch.zeros(len(x), channels - x.shape[1], *x.shape[2:])
    return torch.cat([zeros, x], dim=1)""",
            """\
def padded_shortcut(x, channels):
    zeros = torch.zeros(len(x), channels - x.shape[1], *x.shape[2:])
    return torch.cat([x, zeros], dim=1)""",
        ),
    ),
    Exercise(
        name="preactivation",
        statement="""\
In our block the last ReLU stands in the way of the shortcut.
A year later the same authors moved normalisation and ReLU *before* each convolution, so that nothing does: norm1, ReLU, conv1, norm2, ReLU, conv2, then the addition.
Given the input and the four layers, return the block's output.""",
        skeleton="""\
def preactivation(x, norm1, conv1, norm2, conv2):
    return ...""",
        answer="preactivation",
        lines=3,
        test=test_preactivation,
        hints=(
            "y = conv1(norm1(x).relu()) is the first half.",
            "The second half is the same with norm2 and conv2; add the untouched x, with no ReLU after it.",
        ),
        solution="""\
def preactivation(x, norm1, conv1, norm2, conv2):
    y = conv1(norm1(x).relu())
    y = conv2(norm2(y).relu())
    return x + y""",
        wrong=(
            """\
def preactivation(x, norm1, conv1, norm2, conv2):
    y = conv2(norm2(conv1(norm1(x).relu())).relu())
    return (x + y).relu()""",
            """\
def preactivation(x, norm1, conv1, norm2, conv2):
    x = norm1(x).relu()
    return x + conv2(norm2(conv1(x)).relu())""",
            """\
def preactivation(x, norm1, conv1, norm2, conv2):
    return x + conv2(norm2(conv1(norm1(x))))""",
        ),
    ),
    Exercise(
        name="bottleneck",
        statement="""\
From 50 layers on the paper saves time with a **bottleneck**: 1 × 1 down to a quarter of the channels, 3 × 3 there, 1 × 1 back up.
Build the block for 256 channels with an identity shortcut and without biases: three convolutions, a batch normalisation after each, ReLU after the first two and after the addition.
It has 70,400 parameters, fewer than one 3 × 3 convolution of our net's stage 2.""",
        skeleton="""\
def bottleneck():
    return ...""",
        answer="bottleneck",
        lines=13,
        test=test_bottleneck,
        hints=(
            "An nn.Sequential of eight layers is F; the addition needs a forward method of your own.",
            "The convolutions are 256 to 64 with kernel 1, 64 to 64 with kernel 3 and padding 1, 64 to 256 with kernel 1, all with bias=False; forward returns (x + self.body(x)).relu().",
        ),
        solution="""\
def bottleneck():
    class Bottleneck(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(256, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
                *(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
                *(nn.Conv2d(64, 256, 1, bias=False), nn.BatchNorm2d(256)),
            )

        def forward(self, x):
            return (x + self.body(x)).relu()

    return Bottleneck()""",
        wrong=(
            """\
def bottleneck():
    return nn.Sequential(
        *(nn.Conv2d(256, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU()),
    )""",
            """\
def bottleneck():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(256, 64, 1), nn.BatchNorm2d(64), nn.ReLU()),
                *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
                *(nn.Conv2d(64, 256, 1), nn.BatchNorm2d(256)),
            )

        def forward(self, x):
            return (x + self.body(x)).relu()

    return Wide()""",
            """\
def bottleneck():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(256, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
                *(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
                *(nn.Conv2d(64, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU()),
            )

        def forward(self, x):
            return x + self.body(x)

    return Late()""",
        ),
    ),
]
