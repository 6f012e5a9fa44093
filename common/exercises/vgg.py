"""Exercises of 03_vgg."""

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import conv2d

from common import data, probe
from common.config import Config
from common.exercises import Exercise
from common.exercises.answers.alike import Case
from common.train import fit
from common.zoo.vgg import CONFIGURATIONS, VGG


def stacked_field(layers):
    field = step = 1
    for kernel, stride in layers:
        field += (kernel - 1) * step
        step *= stride
    return field


def stride_too_early(layers):
    field = step = 1
    for kernel, stride in layers:
        step *= stride
        field += (kernel - 1) * step
    return field


def last_stride_only(layers):
    field, before = 1, 1
    for kernel, stride in layers:
        field += (kernel - 1) * before
        before = stride
    return field


def column_c(before, after):
    return nn.Sequential(
        *(nn.Conv2d(before, after, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(after, after, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(after, after, 1), nn.ReLU()),
        nn.MaxPool2d(2),
    )


def column_of(before, after, kernels=(3, 3, 1), pads=None, acts=(1, 1, 1), pool=nn.MaxPool2d):
    """Column C's block with one thing changed, for the mistakes one makes."""
    layers = []
    for kernel, pad, act in zip(kernels, pads or [k // 2 for k in kernels], acts, strict=True):
        layers += [nn.Conv2d(before, after, kernel, padding=pad), *[nn.ReLU()] * act]
        before = after
    return nn.Sequential(*layers, pool(2))


def one_layer_used_again(before, after):
    first, again = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
    layers = [first, nn.ReLU(), again, nn.ReLU(), again, nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def as_convolution(linear, channels, size):
    conv = nn.Conv2d(channels, linear.out_features, size)
    conv.weight = nn.Parameter(linear.weight.view_as(conv.weight))
    conv.bias = linear.bias
    return conv


def channels_last(linear, channels, size):
    conv = nn.Conv2d(channels, linear.out_features, size)
    weight = linear.weight.view(-1, size, size, channels).permute(0, 3, 1, 2)
    conv.weight, conv.bias = nn.Parameter(weight.contiguous()), linear.bias
    return conv


def without_bias(linear, channels, size):
    conv = as_convolution(linear, channels, size)
    conv.bias = None
    return conv


def columns_before_rows(linear, channels, size):
    conv = as_convolution(linear, channels, size)
    conv.weight = nn.Parameter(conv.weight.transpose(2, 3).contiguous())
    return conv


def padded_convolution(linear, channels, size):
    conv = as_convolution(linear, channels, size)
    conv.padding = (size // 2, size // 2)
    return conv


def strided_convolution(linear, channels, size):
    conv = as_convolution(linear, channels, size)
    conv.stride = (size, size)
    return conv


def share_in_the_middle():
    return 94


def weight_of_the_middle():
    seen = torch.zeros(1, 1, 21, 21)
    seen[..., 10, 10] = 1
    for _layer in range(10):
        seen = conv2d(seen, torch.full((1, 1, 3, 3), 1 / 9), padding=1)
    return 100 * seen[..., 5:16, 5:16].sum().item()


def stack(channels, depth):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            convs = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
            self.layers = nn.ModuleList(convs)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).relu()
            return x

    return Stack()


def stack_untrained(channels, depth):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            convs = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
            self.layers = list(convs)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).relu()
            return x

    return Stack()


def stack_of_one(channels, depth):
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(*depth * [conv, nn.ReLU()])


def stack_without_relu(channels, depth):
    return nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth)))


def stack_too_short(channels, depth):
    return stack(channels, depth - 1)


def depth_or_width(images=4_000, epochs=3, seeds=(0, 1)):
    clothes, rows = data.load("fashion_mnist"), {}
    for name, letter, width in (("deep", "D", 0.125), ("shallow", "A", 0.137)):
        row = rows[name] = {}
        for seed in seeds:
            torch.manual_seed(seed)
            net = VGG(convolutions=CONFIGURATIONS[letter], width=width, image_size=32, norm=True)
            settings = Config(epochs=epochs, lr=1e-3, image_size=32, train_images=images, seed=seed)
            history = fit(net, clothes, settings, show=False).frame()
            row[f"accuracy, seed {seed}"] = history.val_accuracy.iloc[-1]
        row["parameters"] = sum(p.numel() for p in net.parameters())
        row["mult-adds"] = probe.mult_adds(net, (1, 1, 32, 32))
    return pd.DataFrame(rows).T


EXERCISES = [
    Exercise(
        solution=stacked_field,
        statement="""\
`layers` is a list of (kernel, stride), from the image upwards; a pooling is a layer too.
How many pixels does one output value see in height?
A layer adds its kernel less one, counted in steps of its own input, and a stride makes all later \
steps larger.
Return a whole number.""",
        hints=(
            "Keep two numbers while you go up: the field so far, and the step between neighbours "
            "in pixels. Both begin at 1.",
            "In each layer: field += (kernel - 1) * step, and then step *= stride.",
        ),
        cases=lambda: (
            Case(([(3, 1)],)),
            Case(([(3, 1), (3, 1), (3, 1)],)),
            Case(([(5, 1), (3, 1)],)),
            Case(([(2, 2), (3, 1)],)),
            Case(([(3, 1), (2, 2), (3, 1), (2, 2), (3, 2), (3, 1)],)),
            Case(([(11, 4), (1, 1), (3, 2), (5, 1)],)),
            Case(([],)),
        ),
        mistakes=(
            (
                lambda layers: 1 + sum(kernel - 1 for kernel, _ in layers),
                "You left the strides out: after a stride of 2 each further step counts double.",
            ),
            (
                stride_too_early,
                "A layer's own stride widens only the layers after it: multiply last.",
            ),
            (
                lambda layers: sum(kernel for kernel, _ in layers),
                "Two kernels of 3 share a pixel: a layer adds its kernel less one.",
            ),
            (last_stride_only, "Strides multiply: all those below count, not only the last."),
            (
                lambda layers: stacked_field(layers[::-1]),
                "You go from the top down; the list begins at the image.",
            ),
            (
                lambda layers: stacked_field(layers) - 1,
                "A value without any layer sees 1 pixel, not 0.",
            ),
        ),
    ),
    Exercise(
        solution=column_c,
        statement="""\
Table 1 of the paper has a column C, between B and D, which this notebook leaves out.
In its last three blocks a third convolution comes after the two of 3 × 3, a 1 × 1 one: another \
ReLU, without seeing more.
Write such a block: it takes `before` channels, every convolution gives `after` and keeps the \
image's size, a ReLU follows each, and the pool is VGG's.
Return the network; `nn.Sequential` will do.""",
        hints=(
            "Seven layers: three times a convolution and its ReLU, then the pool. "
            "Which padding keeps the size under a 3 × 3 kernel, and which under a 1 × 1?",
            "nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1) and "
            "nn.Conv2d(after, after, 1), a ReLU after each, and nn.MaxPool2d(2).",
        ),
        cases=lambda: (
            Case((1, 8), inputs=((2, 1, 12, 9),)),
            Case((8, 16), inputs=((2, 8, 7, 10), (1, 8, 12, 12))),
            Case((4, 4), inputs=((3, 4, 9, 14),)),
        ),
        mistakes=(
            (
                lambda before, after: column_of(before, after, pads=(1, 1, 1)),
                "The 1 × 1 convolution has padding, which makes the image 2 pixels larger.",
            ),
            (
                lambda before, after: column_of(before, after, pads=(0, 0, 0)),
                "There is no padding, so each 3 × 3 convolution takes 2 pixels away.",
            ),
            (
                lambda before, after: column_of(before, after, kernels=(3, 3, 3)),
                "The third convolution is 1 × 1; with 3 × 3 it is column D.",
            ),
            (
                lambda before, after: column_of(before, after, kernels=(1, 3, 3)),
                "The 1 × 1 convolution comes last, not first.",
            ),
            (
                lambda before, after: column_of(before, after, (3, 3), acts=(1, 1)),
                "The 1 × 1 convolution is missing; this is column B.",
            ),
            (
                lambda before, after: column_of(before, after, acts=(1, 1, 0)),
                "The ReLU after the 1 × 1 convolution is missing; it is what the layer is for.",
            ),
            (
                lambda before, after: column_of(before, after, acts=(0, 0, 1)),
                "A ReLU follows each convolution, not only the last.",
            ),
            (
                lambda before, after: column_of(before, after, pool=nn.AvgPool2d),
                "The pool averages; VGG's takes the maximum.",
            ),
            (
                lambda before, after: column_of(before, after, pool=nn.Identity),
                "The pool is missing.",
            ),
            (
                one_layer_used_again,
                "The same layer is used again and again: make a new one each time.",
            ),
        ),
    ),
    Exercise(
        solution=as_convolution,
        statement="""\
For its tests the paper turned the linear layers into convolutions, so that the net could read \
images of any size.
`linear` takes `channels` maps of `size` × `size` places, flattened.
Return an `nn.Conv2d` whose kernel covers the whole map and which gives the very same numbers.
On a larger image it gives an answer for every place of the kernel.""",
        hints=(
            "Each unit of the linear layer becomes one filter: "
            "nn.Conv2d(channels, linear.out_features, size).",
            "Flatten puts channels first, then rows, then columns, and so does a kernel: "
            "linear.weight.view_as(conv.weight). Copy the bias too.",
        ),
        cases=lambda: (
            Case((nn.Linear(12, 5), 3, 2), inputs=((2, 3, 2, 2), (1, 3, 4, 3)), keep=True),
            Case((nn.Linear(392, 4), 8, 7), inputs=((2, 8, 7, 7), (2, 8, 9, 14)), keep=True),
            Case((nn.Linear(6, 2), 6, 1), inputs=((1, 6, 1, 1), (3, 6, 2, 3)), keep=True),
        ),
        mistakes=(
            (without_bias, "The bias is missing."),
            (
                channels_last,
                "You read the flattened maps pixel by pixel; flatten goes channel by channel.",
            ),
            (columns_before_rows, "Rows and columns of the kernel are exchanged."),
            (
                lambda linear, channels, size: nn.Conv2d(channels, linear.out_features, size),
                "The layer has the right form, but not the linear layer's weights.",
            ),
            (
                lambda linear, channels, size: nn.Conv2d(channels, linear.out_features, 1),
                "The kernel must cover the whole map, not one place.",
            ),
            (padded_convolution, "There is padding, so the kernel also looks beside the map."),
            (
                strided_convolution,
                "The stride is the kernel's size; on a larger image every place counts.",
            ),
        ),
    ),
    Exercise(
        solution=share_in_the_middle,
        statement="""\
**Predict before you run.**
Ten 3 × 3 convolutions in a row see 21 × 21 pixels.
Let all their weights be 1/9.
How much of an output value comes from the middle 11 × 11 of these pixels, in per cent?
Return a number; the check then sends one bright pixel through.""",
        hints=(
            "The middle is 121 of 441 pixels, 27 %. But do all pixels count alike?",
            "Many paths lead to the middle and one to each corner. "
            "The weights form a bell; its standard deviation is the root of 10 · 2/3.",
        ),
        experiment=weight_of_the_middle,
        cases=lambda: (Case(tolerance=2.5),),
        because="Many paths lead to the middle pixels and one to each corner, so the weights form "
        "a bell. What a net really uses is far smaller than its receptive field.",
        mistakes=(
            (lambda: 27, "That is the share of the pixels; the middle ones count far more."),
            (lambda: 52, "That is the share of the height; and the middle pixels count more."),
            (lambda: 97, "That is the share along the height; the width takes as much again."),
        ),
    ),
    Exercise(
        solution=stack,
        statement="""\
**Find the fault.**
A net of `depth` convolutions learns far worse than it should, as if only its last layer trained.
`probe.layers` counts hardly any parameters, and on a GPU the net complains about two devices.
Its body is built below; mend it.
Return a network of `depth` convolutions of 3 × 3 that keep size and channels, each with a ReLU.""",
        hints=(
            "How many parameters does list(net.parameters()) have? How many should it?",
            "PyTorch finds layers that are attributes. What is a plain Python list to it?",
        ),
        broken=stack_untrained,
        cases=lambda: (
            Case((3, 2), inputs=((2, 3, 6, 9),)),
            Case((5, 4), inputs=((1, 5, 7, 5), (2, 5, 8, 8))),
        ),
        mistakes=(
            (stack_of_one, "All layers are one and the same: it must be made anew each time."),
            (stack_without_relu, "The ReLUs have gone; keep one after each convolution."),
            (stack_too_short, "One layer is missing."),
            (
                lambda channels, depth: stack(channels, depth + 1),
                "There is one layer too many.",
            ),
        ),
    ),
    Exercise(
        solution=depth_or_width,
        statement="""\
**An open question.**
For the same number of parameters, is a deep narrow VGG better than a shallow wide one?
Train nets D and A with widths that make them equally large, with batch normalisation so that \
both start well.
Write the experiment as a function and run it; the check shows what to judge it by.""",
        hints=(
            "VGG(convolutions=CONFIGURATIONS['A'], width=0.137, image_size=32, norm=True) is one. "
            "Count the parameters of both.",
            "Equal parameters are not equal mult-adds. Say which you held equal, and why.",
        ),
        rubric=(
            "Did you write down a prediction first?",
            "Are the parameters equal to a few per cent, and did you print them?",
            "Do you give the mult-adds too?",
            "Is there more than one seed, and is the difference larger than theirs?",
            "Did you leave the test images alone?",
        ),
    ),
]
