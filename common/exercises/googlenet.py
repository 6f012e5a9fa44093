"""Exercises of 05_googlenet."""

import torch
from torch import nn

from common.check import Exercise, NotYet, expect_equal


def test_inception_params(answer) -> None:
    for channels, row in (
        (192, (64, 96, 128, 16, 32, 32)),
        (832, (384, 192, 384, 48, 128, 128)),
        (7, (2, 3, 5, 1, 4, 6)),
    ):
        ones, reduce3, threes, reduce5, fives, projected = row
        convolutions = (
            *(nn.Conv2d(channels, ones, 1), nn.Conv2d(channels, projected, 1)),
            *(nn.Conv2d(channels, reduce3, 1), nn.Conv2d(reduce3, threes, 3)),
            *(nn.Conv2d(channels, reduce5, 1), nn.Conv2d(reduce5, fives, 5)),
        )
        expected = sum(p.numel() for c in convolutions for p in c.parameters())
        expect_equal(answer(channels, row), expected, f"{channels} channels into the row {row}")


def test_reduction_saving(answer) -> None:
    for channels, reduced, filters, kernel in ((192, 16, 32, 5), (832, 48, 128, 5), (192, 96, 128, 3), (10, 10, 10, 3)):  # fmt: skip
        direct = nn.Conv2d(channels, filters, kernel, bias=False).weight.numel()
        first = nn.Conv2d(channels, reduced, 1, bias=False).weight.numel()
        second = nn.Conv2d(reduced, filters, kernel, bias=False).weight.numel()
        where = f"channels={channels}, reduced={reduced}, filters={filters}, kernel={kernel}"
        expect_equal(answer(channels, reduced, filters, kernel), direct / (first + second), where)


def test_naive_inception(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    for channels, size in ((3, 7), (2, 10)):
        x = torch.randn(2, channels, size, size, generator=generator)
        weights = [torch.randn(k, channels, k, k, generator=generator) for k in (1, 3, 5)]
        branches = [nn.functional.conv2d(x, w, padding="same") for w in weights]
        expected = torch.cat([*branches, nn.MaxPool2d(3, 1, 1)(x)], dim=1)
        found = answer(x, *weights)
        expect_equal(found, expected, f"images of {channels} x {size} x {size}")


def test_total_loss(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0, 2, 1, 1])
    logits = [torch.randn(4, 3, generator=generator, requires_grad=True) for _ in range(3)]
    losses = [nn.functional.cross_entropy(each, y) for each in logits]
    expect_equal(answer(logits[0], y), losses[0].detach(), "a single output, as in evaluation mode")
    total = answer(tuple(logits), y)
    expect_equal(total, (losses[0] + 0.3 * losses[1] + 0.3 * losses[2]).detach(), "three outputs")
    if not total.requires_grad:
        raise NotYet("No gradient flows back from the loss: do not detach it or take its value.")


EXERCISES = [
    Exercise(
        name="inception_params",
        statement="""\
How many numbers does an Inception module learn?
It gets `channels` maps, and `row` is its line of the table: 1 × 1, 3 × 3 reduce, 3 × 3, 5 × 5 reduce, 5 × 5, pool projection.
Every convolution has biases.""",
        skeleton="""\
def inception_params(channels, row):
    return ...""",
        answer="inception_params",
        lines=6,
        test=test_inception_params,
        hints=(
            "There are six convolutions. Four of them see all the input's channels.",
            "A convolution from a to b maps with kernel k has b * (a * k * k + 1) numbers. The 3 x 3 goes from reduce3 to threes, the 5 x 5 from reduce5 to fives.",
        ),
        solution="""\
def inception_params(channels, row):
    ones, reduce3, threes, reduce5, fives, projected = row
    pointwise = (ones + reduce3 + reduce5 + projected) * (channels + 1)
    wide = threes * (9 * reduce3 + 1) + fives * (25 * reduce5 + 1)
    return pointwise + wide""",
        wrong=(
            """\
def inception_params(channels, row):
    ones, reduce3, threes, reduce5, fives, projected = row
    pointwise = (ones + reduce3 + reduce5 + projected) * channels
    return pointwise + threes * 9 * reduce3 + fives * 25 * reduce5""",
            """\
def inception_params(channels, row):
    ones, reduce3, threes, reduce5, fives, projected = row
    return (ones + projected) * (channels + 1) + threes * (9 * channels + 1) + fives * (25 * channels + 1)""",
            """\
def inception_params(channels, row):
    ones, reduce3, threes, reduce5, fives, projected = row
    pointwise = (ones + reduce3 + reduce5) * (channels + 1)
    return pointwise + threes * (9 * reduce3 + 1) + fives * (25 * reduce5 + 1)""",
        ),
    ),
    Exercise(
        name="reduction_saving",
        statement="""\
By what factor does a 1 × 1 convolution in front make a wide one cheaper?
Without it, a `kernel` × `kernel` convolution goes from `channels` to `filters` maps.
With it, a 1 × 1 convolution first brings `channels` down to `reduced`.
Return the mult-adds without, divided by those with; leave the biases out.""",
        skeleton="""\
def reduction_saving(channels, reduced, filters, kernel):
    return ...""",
        answer="reduction_saving",
        lines=3,
        test=test_reduction_saving,
        hints=(
            "All these convolutions keep the image's size, so count for a single pixel.",
            "A convolution from a to b maps costs a * b * k * k mult-adds a pixel. With the reduction there are two of them.",
        ),
        solution="""\
def reduction_saving(channels, reduced, filters, kernel):
    without = channels * filters * kernel**2
    return without / (channels * reduced + reduced * filters * kernel**2)""",
        wrong=(
            "def reduction_saving(channels, reduced, filters, kernel):\n    return channels / reduced",
            """\
def reduction_saving(channels, reduced, filters, kernel):
    without = channels * filters * kernel**2
    return (channels * reduced + reduced * filters * kernel**2) / without""",
            """\
def reduction_saving(channels, reduced, filters, kernel):
    without = channels * filters * kernel**2
    return without / (channels * reduced + reduced * filters)""",
        ),
    ),
    Exercise(
        name="naive_inception",
        statement="""\
Write the paper's first idea, the module without reductions (figure 2a).
The images `x` (N × C × H × W) go through four branches: convolutions with the weights `w1` (1 × 1), `w3` (3 × 3) and `w5` (5 × 5), without biases or ReLU, and a 3 × 3 max pooling with stride 1.
All keep H and W.
Return the four results side by side, in this order.""",
        skeleton="""\
def naive_inception(x, w1, w3, w5):
    return ...""",
        answer="naive_inception",
        lines=5,
        test=test_naive_inception,
        hints=(
            "torch.nn.functional has conv2d(x, weights, padding=…) and max_pool2d(x, 3, stride=1, padding=…). Which padding keeps the size for a kernel of k?",
            "Padding k // 2 keeps the size of an odd kernel. torch.cat(list, dim=1) puts maps side by side.",
        ),
        solution="""\
def naive_inception(x, w1, w3, w5):
    functions = torch.nn.functional
    branches = [functions.conv2d(x, w, padding=w.shape[-1] // 2) for w in (w1, w3, w5)]
    pooled = functions.max_pool2d(x, 3, stride=1, padding=1)
    return torch.cat([*branches, pooled], dim=1)""",
        wrong=(
            """\
def naive_inception(x, w1, w3, w5):
    functions = torch.nn.functional
    branches = [functions.conv2d(x, w, padding=1) for w in (w1, w3, w5)]
    return torch.cat([*branches, functions.max_pool2d(x, 3, stride=1, padding=1)], dim=1)""",
            """\
def naive_inception(x, w1, w3, w5):
    functions = torch.nn.functional
    branches = [functions.conv2d(x, w, padding=w.shape[-1] // 2) for w in (w1, w3, w5)]
    return torch.cat([*branches, functions.avg_pool2d(x, 3, stride=1, padding=1)], dim=1)""",
            """\
def naive_inception(x, w1, w3, w5):
    functions = torch.nn.functional
    branches = [functions.conv2d(x, w, padding=w.shape[-1] // 2) for w in (w1, w3, w5)]
    return torch.cat(branches, dim=1)""",
        ),
    ),
    Exercise(
        name="total_loss",
        statement="""\
Write the loss of a net with auxiliary classifiers.
In training, `outputs` is a tuple: the main logits, then those of each auxiliary classifier.
The auxiliary cross entropies count 0.3 each.
In evaluation mode `outputs` is a single tensor, and the loss is its cross entropy.""",
        skeleton="""\
def total_loss(outputs, y):
    return ...""",
        answer="total_loss",
        lines=4,
        test=test_total_loss,
        hints=(
            "isinstance(outputs, tuple) tells the two cases apart.",
            "main, *auxiliary = outputs takes the tuple apart; torch.nn.functional.cross_entropy(logits, y) is one loss.",
        ),
        solution="""\
def total_loss(outputs, y):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    main, *auxiliary = (torch.nn.functional.cross_entropy(logits, y) for logits in outputs)
    return main + 0.3 * sum(auxiliary)""",
        wrong=(
            """\
def total_loss(outputs, y):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(torch.nn.functional.cross_entropy(logits, y) for logits in outputs)""",
            """\
def total_loss(outputs, y):
    main, *auxiliary = (torch.nn.functional.cross_entropy(logits, y) for logits in outputs)
    return main + 0.3 * sum(auxiliary)""",
            """\
def total_loss(outputs, y):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    main, *auxiliary = (torch.nn.functional.cross_entropy(logits, y) for logits in outputs)
    return main.item() + 0.3 * sum(loss.item() for loss in auxiliary)""",
            """\
def total_loss(outputs, y):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    main, *auxiliary = (torch.nn.functional.cross_entropy(logits, y) for logits in outputs)
    return main + 0.3 * (sum(auxiliary) / max(len(auxiliary), 1))""",
        ),
    ),
]
