"""Exercises of 01_lenet."""

import torch
from torch import nn

from common.check import Exercise, NotYet, expect_equal


def test_output_size(answer) -> None:
    for size, kernel, padding, stride in ((28, 5, 0, 1), (28, 5, 2, 1), (24, 2, 0, 2), (224, 11, 1, 4), (7, 3, 1, 2)):  # fmt: skip
        expected = nn.Conv2d(1, 1, kernel, stride, padding)(torch.zeros(1, 1, size, size)).shape[-1]
        where = f"size={size}, kernel={kernel}, padding={padding}, stride={stride}"
        expect_equal(answer(size, kernel, padding, stride), expected, where)


def test_conv_params(answer) -> None:
    for channels, filters, kernel in ((1, 6, 5), (6, 16, 5), (3, 64, 7)):
        expected = sum(p.numel() for p in nn.Conv2d(channels, filters, kernel).parameters())
        expect_equal(answer(channels, filters, kernel), expected, f"{channels} channels, {filters} filters of {kernel} x {kernel}")  # fmt: skip


def test_convolve(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for size, kernel in ((5, 3), (6, 2), (4, 4)):
        image = torch.rand(size, size, generator=generator)
        weights = torch.rand(kernel, kernel, generator=generator)
        expected = nn.functional.conv2d(image[None, None], weights[None, None])[0, 0]
        expect_equal(answer(image, weights), expected, f"a {size} x {size} image and a {kernel} x {kernel} kernel")  # fmt: skip


def test_modern_lenet(answer) -> None:
    net = answer()
    if not isinstance(net, nn.Module):
        raise NotYet(f"Return a network (an nn.Module), not {type(net).__name__}.")
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    out = net(x)
    expect_equal(tuple(out.shape), (2, 10), "the output for a batch of two 28 x 28 images")
    expect_equal(sum(p.numel() for p in net.parameters()), 44_426, "the number of parameters")
    if any(isinstance(m, (nn.Sigmoid, nn.Tanh)) for m in net.modules()):
        raise NotYet("There is still a sigmoid or tanh layer in the net.")
    scale = net(10 * x) - net(torch.zeros_like(x))
    if (scale.abs() < 2 * (out - net(torch.zeros_like(x))).abs()).float().mean() > 0.5:
        raise NotYet("Ten times the input should give a far larger output with ReLU: something saturates.")  # fmt: skip
    out.sum().backward()
    if any(p.grad is None or not p.grad.any() for p in net.parameters()):
        raise NotYet("Some weights get no gradient: is every layer used?")


EXERCISES = [
    Exercise(
        name="output_size",
        statement="""\
A square image of `size` pixels meets a `kernel` of so many pixels, with `padding` on every side and a `stride`.
How many pixels high is the output?
Write the formula as a function.""",
        skeleton="""\
def output_size(size, kernel, padding=0, stride=1):
    return ...""",
        answer="output_size",
        lines=1,
        test=test_output_size,
        hints=(
            "The padded image has size + 2 * padding pixels. How far can the kernel's left edge go?",
            "The left edge has size + 2 * padding - kernel pixels of room; it moves stride pixels a step, and the start counts too.",
        ),
        solution="""\
def output_size(size, kernel, padding=0, stride=1):
    return (size + 2 * padding - kernel) // stride + 1""",
        wrong=(
            "def output_size(size, kernel, padding=0, stride=1):\n    return (size + padding - kernel) // stride + 1",
            "def output_size(size, kernel, padding=0, stride=1):\n    return (size + 2 * padding - kernel) // stride",
            "def output_size(size, kernel, padding=0, stride=1):\n    return (size + 2 * padding - kernel) / stride + 1",
        ),
    ),
    Exercise(
        name="conv_params",
        statement="""\
How many numbers does a convolution learn?
It has `filters` kernels, each `kernel` pixels square over all `channels` of its input, and each has one bias.""",
        skeleton="""\
def conv_params(channels, filters, kernel):
    return ...""",
        answer="conv_params",
        lines=1,
        test=test_conv_params,
        hints=(
            "Begin with one filter: how many weights does it lay over its input?",
            "One filter has channels * kernel * kernel weights and one bias.",
        ),
        solution="""\
def conv_params(channels, filters, kernel):
    return filters * (channels * kernel * kernel + 1)""",
        wrong=(
            "def conv_params(channels, filters, kernel):\n    return filters * channels * kernel * kernel",
            "def conv_params(channels, filters, kernel):\n    return filters * (kernel * kernel + 1)",
        ),
    ),
    Exercise(
        name="convolve",
        statement="""\
Compute a convolution by hand.
Lay the kernel over each place where it fits, multiply and add.
`image` and `kernel` are square tensors; return a square tensor.
Like PyTorch, do not flip the kernel.""",
        skeleton="""\
def convolve(image, kernel):
    return ...""",
        answer="convolve",
        lines=5,
        test=test_convolve,
        hints=(
            "How many rows does the output have? Your first exercise knows.",
            "The value at row i, column j is (image[i : i + k, j : j + k] * kernel).sum().",
        ),
        solution="""\
def convolve(image, kernel):
    k = len(kernel)
    n = len(image) - k + 1
    values = [(image[i : i + k, j : j + k] * kernel).sum() for i in range(n) for j in range(n)]
    return torch.stack(values).view(n, n)""",
        wrong=(
            """\
def convolve(image, kernel):
    k, n = len(kernel), len(image) - len(kernel) + 1
    flipped = kernel.flip(0, 1)
    values = [(image[i : i + k, j : j + k] * flipped).sum() for i in range(n) for j in range(n)]
    return torch.stack(values).view(n, n)""",
            """\
def convolve(image, kernel):
    k, n = len(kernel), len(image) - len(kernel)
    values = [(image[i : i + k, j : j + k] * kernel).sum() for i in range(n) for j in range(n)]
    return torch.stack(values).view(n, n)""",
        ),
    ),
    Exercise(
        name="modern_lenet",
        statement="""\
Bring LeNet up to date: the same layers and the same 44,426 parameters, for 1 x 28 x 28 images, but with ReLU for the sigmoid and mean pooling for max pooling.
Return the network; `nn.Sequential` will do.""",
        skeleton="""\
def modern_lenet():
    return ...""",
        answer="modern_lenet",
        lines=12,
        test=test_modern_lenet,
        hints=(
            "Two rounds of Conv2d, ReLU, AvgPool2d(2), then Flatten, then three Linear layers.",
            "The convolutions are 1 to 6 and 6 to 16 channels with kernel 5; Flatten leaves 16 * 4 * 4 = 256 values; then 120, 84, 10.",
        ),
        solution="""\
def modern_lenet():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(256, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, 10),
    )""",
        wrong=(
            """\
def modern_lenet():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.Sigmoid(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 120), nn.Sigmoid()),
        *(nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10)),
    )""",
            """\
def modern_lenet():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )""",
        ),
    ),
]
