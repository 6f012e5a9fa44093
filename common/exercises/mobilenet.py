"""Exercises of 07_mobilenet."""

import torch
from torch import nn

from common.check import Exercise, NotYet, expect_equal


def test_separable_cost(answer) -> None:
    for channels, filters, kernel, pixels in ((32, 64, 3, 112), (512, 512, 3, 14), (8, 5, 5, 6)):
        expected = channels * pixels**2 * (kernel**2 + filters)
        where = f"{channels} channels, {filters} filters, a kernel of {kernel}, {pixels} x {pixels} pixels"  # fmt: skip
        expect_equal(answer(channels, filters, kernel, pixels), expected, where)


def test_intensity(answer) -> None:
    for channels, pixels in ((32, 112), (512, 14), (1024, 7)):
        moved = 4 * (2 * channels * pixels**2 + 9 * channels)
        expected = 9 * channels * pixels**2 / moved
        expect_equal(answer(channels, pixels), expected, f"{channels} channels of {pixels} x {pixels} pixels")  # fmt: skip


def test_depthwise(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for N, C, H, W in ((2, 3, 5, 6), (1, 4, 7, 7)):
        x = torch.randn(N, C, H, W, generator=generator)
        kernels = torch.randn(C, 3, 3, generator=generator)
        expected = nn.functional.conv2d(x, kernels[:, None], padding=1, groups=C)
        expect_equal(answer(x, kernels), expected, f"{N} images of {C} channels")


def test_fold(answer) -> None:
    torch.manual_seed(0)
    for groups, stride in ((1, 2), (4, 1)):
        conv = nn.Conv2d(4, 8, 3, stride, padding=1, groups=groups, bias=False)
        norm = nn.BatchNorm2d(8, eps=0.1)
        for values in (norm.weight.data, norm.bias.data, norm.running_mean):
            values.normal_()
        norm.running_var.uniform_(0.5, 2)
        pair = nn.Sequential(conv, norm).eval()
        folded = answer(conv, norm)
        if not isinstance(folded, nn.Conv2d):
            raise NotYet(f"Return one nn.Conv2d, not {type(folded).__name__}.")
        if folded.bias is None:
            raise NotYet("The new convolution has no bias to hold the shift.")
        x = torch.randn(2, 4, 6, 6)
        with torch.no_grad():
            where = f"the outputs for a convolution of {groups} group{'s' * (groups > 1)}, stride {stride}"  # fmt: skip
            expect_equal(folded(x), pair(x), where)


EXERCISES = [
    Exercise(
        name="separable_cost",
        statement="""\
How many mult-adds does a depthwise separable convolution need?
It takes `channels` maps of `pixels` × `pixels` to `filters` maps of the same size: a depthwise step with a square `kernel`, then a pointwise step.""",
        skeleton="""\
def separable_cost(channels, filters, kernel, pixels):
    return ...""",
        answer="separable_cost",
        lines=3,
        test=test_separable_cost,
        hints=(
            "Count each step for a single pixel of the output first.",
            "A pixel costs channels * kernel**2 in the depthwise step and channels * filters in the pointwise one.",
        ),
        solution="""\
def separable_cost(channels, filters, kernel, pixels):
    depthwise = channels * kernel**2 * pixels**2
    pointwise = channels * filters * pixels**2
    return depthwise + pointwise""",
        wrong=(
            "def separable_cost(channels, filters, kernel, pixels):\n    return channels * filters * kernel**2 * pixels**2",
            "def separable_cost(channels, filters, kernel, pixels):\n    return channels * (kernel**2 + filters)",
            "def separable_cost(channels, filters, kernel, pixels):\n    return channels * kernel**2 * pixels**2 * channels * filters * pixels**2",
        ),
    ),
    Exercise(
        name="intensity",
        statement="""\
The arithmetic intensity of a 3 × 3 depthwise convolution with stride 1 and padding 1: mult-adds divided by bytes.
It reads `channels` maps of `pixels` × `pixels` and its weights, and writes as many maps; every number takes 4 bytes.
Try it for very different numbers of channels.""",
        skeleton="""\
def intensity(channels, pixels):
    return ...""",
        answer="intensity",
        lines=3,
        test=test_intensity,
        hints=(
            "Three things move: the input, the weights and the output.",
            "There are 9 * channels weights, and channels * pixels**2 numbers in the input and in the output.",
        ),
        solution="""\
def intensity(channels, pixels):
    mult_adds = 9 * channels * pixels**2
    numbers = 2 * channels * pixels**2 + 9 * channels
    return mult_adds / (4 * numbers)""",
        wrong=(
            "def intensity(channels, pixels):\n    return 9 / 8",
            "def intensity(channels, pixels):\n    return 9 * pixels**2 / (2 * pixels**2 + 9)",
            "def intensity(channels, pixels):\n    return 9 * channels * pixels**2 / (4 * (channels * pixels**2 + 9 * channels))",
        ),
    ),
    Exercise(
        name="depthwise",
        statement="""\
Compute a depthwise convolution without `groups`.
`x` has the shape (N, C, H, W), `kernels` (C, 3, 3); pad by 1, so that the output has the shape of `x`.""",
        skeleton="""\
def depthwise(x, kernels):
    return ...""",
        answer="depthwise",
        lines=3,
        test=test_depthwise,
        hints=(
            "Channel c of the output depends on channel c of x and on kernels[c] alone. How do you put channels back together?",
            "torch.nn.functional.conv2d(x[:, c : c + 1], kernels[None, None, c], padding=1) is channel c; torch.cat along dimension 1 joins them.",
        ),
        solution="""\
def depthwise(x, kernels):
    conv = torch.nn.functional.conv2d
    maps = [conv(x[:, c : c + 1], k[None, None], padding=1) for c, k in enumerate(kernels)]
    return torch.cat(maps, dim=1)""",
        wrong=(
            """\
def depthwise(x, kernels):
    weight = kernels[None].expand(len(kernels), -1, -1, -1)
    return torch.nn.functional.conv2d(x, weight, padding=1)""",
            """\
def depthwise(x, kernels):
    conv = torch.nn.functional.conv2d
    maps = [conv(x[:, c : c + 1], k[None, None]) for c, k in enumerate(kernels)]
    return torch.cat(maps, dim=1)""",
            """\
def depthwise(x, kernels):
    conv = torch.nn.functional.conv2d
    maps = [conv(x[:, c : c + 1], kernels[None, :1], padding=1) for c in range(len(kernels))]
    return torch.cat(maps, dim=1)""",
        ),
    ),
    Exercise(
        name="fold",
        statement="""\
On a telephone no batch normalisation is left: it is folded into the convolution before it.
In evaluation mode `norm` computes (y - mean) / sqrt(var + eps) * weight + bias, channel by channel.
Return a new convolution, with a bias, that does what `conv` (which has none) and `norm` do together.""",
        skeleton="""\
def fold(conv, norm):
    return ...""",
        answer="fold",
        lines=7,
        test=test_fold,
        hints=(
            "The scale of channel i multiplies all weights of filter i. What is left of the formula is that filter's bias.",
            "scale = norm.weight / (norm.running_var + norm.eps).sqrt(); the new weights are conv.weight * scale[:, None, None, None].",
            "Begin with copy.deepcopy(conv), which keeps stride, padding and groups, and set its weight and bias to nn.Parameter(...).",
        ),
        solution="""\
def fold(conv, norm):
    import copy

    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
    folded.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
    return folded""",
        wrong=(
            """\
def fold(conv, norm):
    import copy

    scale = norm.weight / norm.running_var.sqrt()
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
    folded.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
    return folded""",
            """\
def fold(conv, norm):
    import copy

    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
    folded.bias = nn.Parameter(norm.bias - norm.running_mean)
    return folded""",
            """\
def fold(conv, norm):
    return nn.Sequential(conv, norm).eval()""",
        ),
    ),
]
