"""Exercises of 04_nin."""

from itertools import pairwise

import torch
from torch import nn

from common.check import Exercise, NotYet, expect_equal


def test_mix_channels(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for channels, filters, height, width in ((3, 5, 4, 6), (8, 2, 1, 1), (4, 4, 3, 3)):
        x = torch.randn(channels, height, width, generator=generator)
        weight = torch.randn(filters, channels, generator=generator)
        bias = torch.randn(filters, generator=generator)
        expected = nn.functional.conv2d(x[None], weight[:, :, None, None], bias)[0]
        where = f"{channels} channels of {height} x {width} pixels to {filters}"
        expect_equal(answer(x, weight, bias), expected, where)


def test_head_params(answer) -> None:
    for channels, side, hidden, classes in ((384, 5, 4096, 10), (512, 7, 4096, 1000), (4, 1, 8, 3)):
        sizes = (channels * side * side, hidden, hidden, classes)
        linear = sum((before + 1) * after for before, after in pairwise(sizes))
        maps = (9 * channels + 1) * classes + 2 * (classes + 1) * classes
        where = f"{channels} maps of {side} x {side}, {hidden} hidden units, {classes} classes"
        found = answer(channels, side, hidden, classes)
        if not isinstance(found, tuple) or len(found) != 2:
            raise NotYet(f"Return two numbers, (linear layers, mlpconv), not {found!r}.")
        expect_equal(found[0], linear, f"{where}: the three linear layers")
        expect_equal(found[1], maps, f"{where}: the mlpconv")


def test_where_is_it(answer) -> None:
    maps = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(0))
    maps[1, 2, 4] = maps[2, 0, 0] = maps[3, 1, 5] = 2.0
    for k, size, expected in ((1, 60, (50.0, 45.0)), (2, 30, (5.0, 2.5)), (3, 6, (3.0, 5.5))):
        found = answer(maps, k, size)
        if not isinstance(found, tuple) or len(found) != 2:
            raise NotYet(f"Return two numbers, (row, column), not {found!r}.")
        for value, wanted, axis in zip(found, expected, ("row", "column"), strict=True):
            expect_equal(float(value), wanted, f"class {k}, image of {size} pixels: the {axis}")


def test_mlpconv(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for before, after, kernel, stride in ((1, 6, 5, 1), (3, 8, 11, 4), (6, 4, 3, 2)):
        where = f"mlpconv({before}, {after}, {kernel}, {stride})"
        net = answer(before, after, kernel, stride)
        if not isinstance(net, nn.Module):
            raise NotYet(f"Return a network (an nn.Module), not {type(net).__name__}.")
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        expect_equal([m.kernel_size[0] for m in convolutions], [kernel, 1, 1], f"{where}: the kernels")  # fmt: skip
        expected = (before * kernel**2 + 1) * after + 2 * (after + 1) * after
        expect_equal(sum(p.numel() for p in net.parameters()), expected, f"{where}: the parameters")
        x = torch.randn(2, before, 19, 19, generator=generator)
        out = x
        for conv, step in zip(convolutions, (stride, 1, 1), strict=True):
            out = nn.functional.conv2d(out, conv.weight, conv.bias, step).relu()
        expect_equal(net(x), out, f"{where}: the output for two 19 x 19 images")


EXERCISES = [
    Exercise(
        name="mix_channels",
        statement="""\
Compute a 1 × 1 convolution without a convolution.
`x` is one image (C, H, W), `weight` a matrix (K, C), `bias` a vector (K).
Return K maps of H × W: at each pixel the matrix times the C values there, plus the bias.""",
        skeleton="""\
def mix_channels(x, weight, bias):
    return ...""",
        answer="mix_channels",
        lines=3,
        test=test_mix_channels,
        hints=(
            "Lay all pixels side by side as columns: x.flatten(1) is a matrix of C rows.",
            "weight @ x.flatten(1) has K rows and one column a pixel; add bias[:, None], then view it as K × H × W.",
        ),
        solution="""\
def mix_channels(x, weight, bias):
    mixed = weight @ x.flatten(1) + bias[:, None]
    return mixed.view(-1, *x.shape[1:])""",
        wrong=(
            "def mix_channels(x, weight, bias):\n    return (weight @ x.flatten(1)).view(-1, *x.shape[1:])",
            "def mix_channels(x, weight, bias):\n    return weight @ x + bias",
            "def mix_channels(x, weight, bias):\n    return (weight @ x.flatten(1) + bias[:, None]).T.reshape(-1, *x.shape[1:])",
        ),
    ),
    Exercise(
        name="head_params",
        statement="""\
A net ends in `channels` maps of `side` × `side` places.
How many numbers does each kind of head learn, biases included?
First, three linear layers with `hidden`, `hidden` and `classes` units.
Second, an mlpconv to `classes` maps, 3 × 3 and twice 1 × 1, with its average.
Return both counts.""",
        skeleton="""\
def head_params(channels, side, hidden, classes):
    return ...""",
        answer="head_params",
        lines=4,
        test=test_head_params,
        hints=(
            "A layer has (inputs of one unit + 1) times its units. Flattening gives channels * side * side inputs.",
            "The mlpconv: (9 * channels + 1) * classes, then twice (classes + 1) * classes. The average learns nothing.",
        ),
        solution="""\
def head_params(channels, side, hidden, classes):
    linear = (channels * side * side + 1) * hidden
    linear += (hidden + 1) * hidden + (hidden + 1) * classes
    maps = (9 * channels + 1) * classes + 2 * (classes + 1) * classes
    return linear, maps""",
        wrong=(
            """\
def head_params(channels, side, hidden, classes):
    linear = (channels + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * classes
    return linear, (9 * channels + 1) * classes + 2 * (classes + 1) * classes""",
            """\
def head_params(channels, side, hidden, classes):
    linear = (channels * side * side + 1) * hidden
    linear += (hidden + 1) * hidden + (hidden + 1) * classes
    return linear, (9 * channels + 1) * classes""",
            """\
def head_params(channels, side, hidden, classes):
    linear = channels * side * side * hidden + hidden * hidden + hidden * classes
    return linear, 9 * channels * classes + 2 * classes * classes""",
        ),
    ),
    Exercise(
        name="where_is_it",
        statement="""\
Class maps say where a thing is.
`maps` (K, H, W) belongs to a square image of `size` pixels.
Find the brightest place of the map of class `k`, and return the middle of that place in pixels of the image, (row, column).
Place i of H covers the pixels from i · size / H to (i + 1) · size / H.""",
        skeleton="""\
def where_is_it(maps, k, size):
    return ...""",
        answer="where_is_it",
        lines=3,
        test=test_where_is_it,
        hints=(
            "maps[k].argmax() counts along the rows of the flattened map. divmod by the width gives row and column.",
            "The middle of place i is (i + 0.5) * size / H; mind that H and W may differ.",
        ),
        solution="""\
def where_is_it(maps, k, size):
    H, W = maps.shape[1:]
    i, j = divmod(int(maps[k].argmax()), W)
    return (i + 0.5) * size / H, (j + 0.5) * size / W""",
        wrong=(
            """\
def where_is_it(maps, k, size):
    H, W = maps.shape[1:]
    i, j = divmod(int(maps[k].argmax()), W)
    return i * size / H, j * size / W""",
            """\
def where_is_it(maps, k, size):
    H, W = maps.shape[1:]
    i, j = divmod(int(maps[k].argmax()), H)
    return (i + 0.5) * size / H, (j + 0.5) * size / W""",
            """\
def where_is_it(maps, k, size):
    H, W = maps.shape[1:]
    i, j = divmod(int(maps[k].argmin()), W)
    return (i + 0.5) * size / H, (j + 0.5) * size / W""",
        ),
    ),
    Exercise(
        name="mlpconv",
        statement="""\
Write the paper's mlpconv yourself: a convolution with `kernel` and `stride`, without padding, then two 1 × 1 convolutions, a ReLU after each of the three.
The first takes `before` channels, and all give `after`.
Return the network; `nn.Sequential` will do.""",
        skeleton="""\
def mlpconv(before, after, kernel, stride):
    return ...""",
        answer="mlpconv",
        lines=8,
        test=test_mlpconv,
        hints=(
            "Six layers: convolution, ReLU, convolution, ReLU, convolution, ReLU. Which channels go into the second?",
            "nn.Conv2d(before, after, kernel, stride), then twice nn.Conv2d(after, after, 1): only the first has the stride.",
        ),
        solution="""\
def mlpconv(before, after, kernel, stride):
    return nn.Sequential(
        *(nn.Conv2d(before, after, kernel, stride), nn.ReLU()),
        *(nn.Conv2d(after, after, 1), nn.ReLU()),
        *(nn.Conv2d(after, after, 1), nn.ReLU()),
    )""",
        wrong=(
            """\
def mlpconv(before, after, kernel, stride):
    return nn.Sequential(
        *(nn.Conv2d(before, after, kernel, stride), nn.ReLU()),
        *(nn.Conv2d(after, after, 1, stride), nn.ReLU()),
        *(nn.Conv2d(after, after, 1, stride), nn.ReLU()),
    )""",
            """\
def mlpconv(before, after, kernel, stride):
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride),
        nn.Conv2d(after, after, 1),
        *(nn.Conv2d(after, after, 1), nn.ReLU()),
    )""",
            """\
def mlpconv(before, after, kernel, stride):
    layers = [nn.Conv2d(before, after, kernel, stride), nn.ReLU()]
    layers += 2 * [nn.Conv2d(after, after, 1), nn.ReLU()]
    return nn.Sequential(*layers)""",
        ),
    ),
]
