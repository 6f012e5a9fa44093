"""Exercises of 03_vgg."""

import torch
from torch import nn

from common import probe
from common.check import Exercise, NotYet, expect_equal


def test_stacked_field(answer) -> None:
    for layers in ([(3, 1)], [(3, 1)] * 3, [(5, 1), (3, 1)], [(2, 2), (3, 1)], [(3, 1), (2, 2)] * 2 + [(3, 2), (3, 1)]):  # fmt: skip
        net = nn.Sequential(*(nn.Conv2d(1, 1, kernel, stride) for kernel, stride in layers))
        expected = probe.receptive_field(net, (1, 1, 64, 64))
        expect_equal(answer(layers), expected, f"layers (kernel, stride) {layers}")


def test_stack_weights(answer) -> None:
    for layers, kernel, channels in ((2, 3, 64), (1, 5, 64), (3, 3, 8), (1, 7, 8)):
        stack = [nn.Conv2d(channels, channels, kernel, device="meta") for _ in range(layers)]
        expected = sum(p.numel() for conv in stack for p in conv.parameters())
        where = f"{layers} layers of {kernel} x {kernel} with {channels} channels"
        expect_equal(answer(layers, kernel, channels), expected, where)


def test_vgg_block(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for before, after, count in ((1, 8, 1), (8, 16, 2), (4, 4, 3)):
        where = f"vgg_block({before}, {after}, {count})"
        net = answer(before, after, count)
        if not isinstance(net, nn.Module):
            raise NotYet(f"Return a network (an nn.Module), not {type(net).__name__}.")
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        expect_equal(len(convolutions), count, f"{where}: the number of convolutions")
        expected = 9 * before * after + after + (count - 1) * (9 * after * after + after)
        expect_equal(sum(p.numel() for p in net.parameters()), expected, f"{where}: the parameters")
        x = torch.randn(2, before, 12, 12, generator=generator)
        out = x
        for conv in convolutions:
            out = nn.functional.conv2d(out, conv.weight, conv.bias, padding=1).relu()
        out = nn.functional.max_pool2d(out, 2)
        expect_equal(net(x), out, f"{where}: the output for two 12 x 12 images")


def test_as_convolution(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for channels, size, units in ((3, 2, 5), (8, 7, 4), (6, 1, 2)):
        linear = nn.Linear(channels * size * size, units)
        with torch.no_grad():
            for p in linear.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        conv = answer(linear, channels, size)
        if not isinstance(conv, nn.Conv2d):
            raise NotYet(f"Return an nn.Conv2d, not {type(conv).__name__}.")
        where = f"{channels} maps of {size} x {size}, {units} units"
        x = torch.randn(2, channels, size, size, generator=generator)
        with torch.no_grad():
            expect_equal(tuple(conv(x).shape), (2, units, 1, 1), f"{where}: the output's shape")
            expect_equal(conv(x).flatten(1), linear(x.flatten(1)), f"{where}: the output")
            wider = conv(torch.randn(2, channels, size + 2, size + 1, generator=generator))
        expect_equal(
            tuple(wider.shape), (2, units, 3, 2), f"{where}: the output for a larger image"
        )


EXERCISES = [
    Exercise(
        name="stacked_field",
        statement="""\
`layers` is a list of (kernel, stride), from the image upwards.
How many pixels does one output value see in height?
A layer adds its kernel less one, counted in steps of its own input, and a stride makes all later steps larger.""",
        skeleton="""\
def stacked_field(layers):
    return ...""",
        answer="stacked_field",
        lines=5,
        test=test_stacked_field,
        hints=(
            "Keep two numbers while you go up: the field so far, and the step between neighbours in pixels. Both begin at 1.",
            "In each layer: field += (kernel - 1) * step, and then step *= stride.",
        ),
        solution="""\
def stacked_field(layers):
    field = step = 1
    for kernel, stride in layers:
        field += (kernel - 1) * step
        step *= stride
    return field""",
        wrong=(
            "def stacked_field(layers):\n    return 1 + sum(kernel - 1 for kernel, _ in layers)",
            """\
def stacked_field(layers):
    field = step = 1
    for kernel, stride in layers:
        step *= stride
        field += (kernel - 1) * step
    return field""",
            "def stacked_field(layers):\n    return sum(kernel for kernel, _ in layers)",
        ),
    ),
    Exercise(
        name="stack_weights",
        statement="""\
A stack of `layers` convolutions, each with a square `kernel` and as many output as input `channels`.
How many numbers does it learn, biases included?
Then compare two layers of 3 with one of 5, and three of 3 with one of 7.""",
        skeleton="""\
def stack_weights(layers, kernel, channels):
    return ...""",
        answer="stack_weights",
        lines=1,
        test=test_stack_weights,
        hints=(
            "One layer has channels filters, and each of them has kernel * kernel weights for every input channel.",
            "One filter has channels * kernel * kernel weights and one bias.",
        ),
        solution="""\
def stack_weights(layers, kernel, channels):
    return layers * channels * (channels * kernel * kernel + 1)""",
        wrong=(
            "def stack_weights(layers, kernel, channels):\n    return layers * channels * channels * kernel * kernel",
            "def stack_weights(layers, kernel, channels):\n    return layers * channels * (kernel * kernel + 1)",
            "def stack_weights(layers, kernel, channels):\n    return layers * channels * channels * kernel * kernel + channels",
        ),
    ),
    Exercise(
        name="vgg_block",
        statement="""\
Write VGG's block yourself: `count` convolutions of 3 × 3 that keep the image's size, a ReLU after each, and one 2 × 2 max pool at the end.
The first convolution takes `before` channels, and all give `after`.
Return the network; `nn.Sequential` will do.""",
        skeleton="""\
def vgg_block(before, after, count):
    return ...""",
        answer="vgg_block",
        lines=6,
        test=test_vgg_block,
        hints=(
            "A list of layers that grows in a loop, then nn.Sequential(*layers). Which padding keeps the size?",
            "In the loop: layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()], and then before = after.",
        ),
        solution="""\
def vgg_block(before, after, count):
    layers = []
    for _ in range(count):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.MaxPool2d(2))""",
        wrong=(
            """\
def vgg_block(before, after, count):
    layers = [nn.Conv2d(before, after, 3, padding=1)]
    layers += [nn.Conv2d(after, after, 3, padding=1) for _ in range(count - 1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.MaxPool2d(2))""",
            """\
def vgg_block(before, after, count):
    layers = []
    for _ in range(count):
        layers += [nn.Conv2d(before, after, 3), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.MaxPool2d(2))""",
            """\
def vgg_block(before, after, count):
    layers = []
    for _ in range(count):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.AvgPool2d(2))""",
        ),
    ),
    Exercise(
        name="as_convolution",
        statement="""\
For its tests the paper turned the linear layers into convolutions, so that the net could read images of any size.
`linear` takes `channels` maps of `size` × `size` places, flattened.
Return an `nn.Conv2d` whose kernel covers the whole map and which gives the very same numbers.
On a larger image it gives an answer for every place of the kernel.""",
        skeleton="""\
def as_convolution(linear, channels, size):
    return ...""",
        answer="as_convolution",
        lines=4,
        test=test_as_convolution,
        hints=(
            "Each unit of the linear layer becomes one filter: nn.Conv2d(channels, linear.out_features, size).",
            "Flatten puts channels first, then rows, then columns, and so does a kernel: linear.weight.view_as(conv.weight). Copy the bias too.",
        ),
        solution="""\
def as_convolution(linear, channels, size):
    conv = nn.Conv2d(channels, linear.out_features, size)
    conv.weight = nn.Parameter(linear.weight.view_as(conv.weight))
    conv.bias = linear.bias
    return conv""",
        wrong=(
            """\
def as_convolution(linear, channels, size):
    conv = nn.Conv2d(channels, linear.out_features, size)
    conv.weight = nn.Parameter(linear.weight.view_as(conv.weight))
    return conv""",
            """\
def as_convolution(linear, channels, size):
    conv = nn.Conv2d(channels, linear.out_features, size)
    weight = linear.weight.view(-1, size, size, channels).permute(0, 3, 1, 2)
    conv.weight, conv.bias = nn.Parameter(weight.contiguous()), linear.bias
    return conv""",
            "def as_convolution(linear, channels, size):\n    return nn.Conv2d(channels, linear.out_features, 1)",
        ),
    ),
]
