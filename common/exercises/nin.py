"""Exercises of 04_nin."""

import pandas as pd
import torch
from torch import nn

from common import data, probe
from common.config import Config
from common.exercises import Exercise
from common.exercises.answers.alike import Case
from common.train import fit
from common.zoo.nin import NiNCifar


def mix_channels(x, weight, bias):
    mixed = weight @ x.flatten(1) + bias[:, None]
    return mixed.view(-1, *x.shape[1:])


def mixed_and_turned(x, weight, bias):
    mixed = weight @ x.flatten(1) + bias[:, None]
    return mixed.T.reshape(-1, *x.shape[1:])


def where_is_it(maps, k, size):
    H, W = maps.shape[1:]
    i, j = divmod(int(maps[k].argmax()), W)
    return (i + 0.5) * size / H, (j + 0.5) * size / W


def corner_of_it(maps, k, size):
    row, column = where_is_it(maps, k, size)
    return row - size / maps.shape[1] / 2, column - size / maps.shape[2] / 2


def divided_by_height(maps, k, size):
    H, W = maps.shape[1:]
    i, j = divmod(int(maps[k].argmax()), H)
    return (i + 0.5) * size / H, (j + 0.5) * size / W


def largest_sum(maps, k, size):
    H, W = maps.shape[1:]
    i, j = int(maps[k].sum(1).argmax()), int(maps[k].sum(0).argmax())
    return (i + 0.5) * size / H, (j + 0.5) * size / W


def one_scale(maps, k, size):
    H, W = maps.shape[1:]
    i, j = divmod(int(maps[k].argmax()), W)
    return (i + 0.5) * size / H, (j + 0.5) * size / H


def strongest_either_way(maps, k, size):
    return where_is_it(maps.abs(), k, size)


def maps_to_search():
    """Class maps with one brightest place each, among them maps that are negative everywhere."""
    maps = torch.rand(4, 3, 6)
    maps[0] -= 5
    maps[0, 2, 1] = -0.5
    maps[1, 2, 4] = maps[2, 0, 0] = maps[3, 1, 5] = 2.0
    maps[1, 0] = 1.9
    maps[1, 0, 4] = -9
    maps[2, 2, 2] = -7
    return maps


def at_one_place(patch, weights, biases):
    values = patch.flatten()
    for weight, bias in zip(weights, biases, strict=True):
        values = (weight.flatten(1) @ values + bias).relu()
    return values


def as_it_is(values):
    return values


def place_with(act=torch.relu, last=torch.relu, signs=(1, 1, 1)):
    """What an mlpconv gives at one place, with one thing changed, for the mistakes one makes."""

    def answer(patch, weights, biases):
        values = patch.flatten()
        acts = (act, act, last)
        for weight, bias, sign, then in zip(weights, biases, signs, acts, strict=True):
            values = then(weight.flatten(1) @ values + sign * bias)
        return values

    return answer


def first_layer_alone(patch, weights, biases):
    return at_one_place(patch, weights[:1], biases[:1])


def pixel_by_pixel(patch, weights, biases):
    return at_one_place(patch.permute(1, 2, 0), weights, biases)


def patch_turned(patch, weights, biases):
    return at_one_place(patch.transpose(1, 2), weights, biases)


def example_of(patch, *channels):
    """Arguments: a patch of this shape, and weights and biases of an mlpconv on it."""
    before, *kernel = patch
    sizes = [(before, kernel), *((n, (1, 1)) for n in channels)]
    weights = [
        torch.randn(after, n, *k, dtype=torch.float64)
        for (n, k), after in zip(sizes, channels, strict=False)
    ]
    biases = [torch.randn(after, dtype=torch.float64) for after in channels]
    return torch.randn(patch, dtype=torch.float64), weights, biases


def logit_on_a_canvas():
    return 0.25


def measure_on_a_canvas():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2, bias=False), nn.ReLU()),
        *(nn.Conv2d(16, 10, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    digit, canvas = torch.zeros(1, 1, 28, 28), torch.zeros(1, 1, 56, 56)
    digit[..., 4:24, 4:24] = torch.rand(20, 20)  # in a black frame, as MNIST's are
    canvas[..., 14:42, 14:42] = digit
    with torch.no_grad():
        return (net(canvas) / net(digit)).mean().item()


def head(maps):
    return maps.mean(dim=(2, 3))


def head_with_a_floor(maps):
    return maps.mean(dim=(2, 3)).softmax(dim=1)


def head_of_the_largest(maps):
    return maps.amax(dim=(2, 3))


def wider_nin(images=4_000, epochs=3, seeds=(0, 1)):
    photographs, rows = data.load("cifar10"), {}
    for width, dropout in ((1 / 6, 0.1), (1 / 3, 0.1), (1 / 3, 0.5)):
        row = rows[f"width {width:.2f}, dropout {dropout}"] = {}
        for seed in seeds:
            torch.manual_seed(seed)
            net = NiNCifar(width=width, dropout=dropout, norm=True)
            settings = Config(epochs=epochs, lr=2e-3, train_images=images, seed=seed)
            history = fit(net, photographs, settings, show=False).frame()
            row[f"accuracy, seed {seed}"] = history.val_accuracy.iloc[-1]
        row["parameters"] = sum(p.numel() for p in net.parameters())
        row["mult-adds"] = probe.mult_adds(net, (1, 3, 32, 32))
    return pd.DataFrame(rows).T


EXERCISES = [
    Exercise(
        solution=mix_channels,
        statement="""\
Compute a 1 × 1 convolution with a matrix product, and without `nn` or `conv2d`.
`x` is one image (C, H, W), `weight` a matrix (K, C), `bias` a vector (K).
Return a tensor (K, H, W): at each pixel the matrix times the C values there, plus the bias.""",
        hints=(
            "Lay all pixels side by side as columns: x.flatten(1) is a matrix of C rows.",
            "weight @ x.flatten(1) has K rows and one column a pixel; "
            "add bias[:, None], then view it as K × H × W.",
        ),
        cases=lambda: (
            Case((torch.randn(3, 4, 6), torch.randn(5, 3), torch.randn(5))),
            Case((torch.randn(8, 1, 1), torch.randn(2, 8), torch.randn(2))),
            Case((torch.randn(4, 3, 3), torch.randn(4, 4), torch.randn(4))),
            Case(tuple(torch.randn(n, dtype=torch.float64) for n in ((2, 5, 3), (3, 2), (3,)))),
        ),
        gradient=True,
        without=("conv1d", "conv2d"),
        mistakes=(
            (
                lambda x, weight, bias: (weight @ x.flatten(1)).view(-1, *x.shape[1:]),
                "The bias is missing.",
            ),
            (
                mixed_and_turned,
                "Channels and pixels are exchanged before the view: the numbers are right, "
                "their places are not.",
            ),
            (
                lambda x, weight, bias: mix_channels(x, weight, -bias),
                "The bias is subtracted; it is added.",
            ),
            (
                lambda x, weight, bias: mix_channels(x, weight, bias).relu(),
                "A ReLU is not part of the convolution.",
            ),
            (
                lambda x, weight, bias: mix_channels(x, weight / len(x), bias),
                "You took a mean over the channels; it is a sum.",
            ),
            (
                lambda x, weight, bias: weight @ x + bias,
                "@ multiplies the last two dimensions, here the columns; it must be the channels.",
            ),
        ),
    ),
    Exercise(
        solution=where_is_it,
        statement="""\
Class maps say where a thing is.
`maps` (K, H, W) belongs to a square image of `size` pixels; H and W may differ.
Find the brightest place, the largest value, of the map of class `k`.
Return its middle in pixels of the image, as two numbers: row, column.
Place i of H covers the pixels from i · size / H to (i + 1) · size / H.""",
        hints=(
            "maps[k].argmax() counts along the rows of the flattened map. "
            "divmod by the width gives row and column.",
            "The middle of place i is (i + 0.5) * size / H; mind that H and W may differ.",
        ),
        cases=lambda: (
            Case((maps_to_search(), 1, 60)),
            Case((maps_to_search(), 2, 30)),
            Case((maps_to_search(), 3, 6)),
            Case((maps_to_search().double(), 0, 33)),
            Case((maps_to_search().transpose(1, 2).contiguous(), 1, 33)),
        ),
        mistakes=(
            (corner_of_it, "That is the corner of the place; its middle is half a place further."),
            (divided_by_height, "A row of the flattened map has W places: divide by the width."),
            (
                lambda maps, k, size: where_is_it(-maps, k, size),
                "You found the darkest place, not the brightest.",
            ),
            (
                lambda maps, k, size: where_is_it(maps, k, size)[::-1],
                "Row and column are exchanged.",
            ),
            (largest_sum, "You looked for the brightest row and column, not the brightest place."),
            (one_scale, "You used one scale for both; H and W may differ."),
            (strongest_either_way, "A strongly negative value is not bright: leave out the abs."),
        ),
    ),
    Exercise(
        solution=at_one_place,
        statement="""\
An mlpconv is a small net of three layers that slides over the image.
Compute what it gives at one place, without a convolution.
`patch` (C, k, k) is what its first kernel sees there.
`weights` and `biases` are lists with those of its three convolutions: \
weights (A, C, k, k), (B, A, 1, 1) and (K, B, 1, 1), biases (A), (B) and (K).
A ReLU follows each of the three.
Return a tensor (K).""",
        hints=(
            "At one place a convolution is a matrix times a vector. Which vector is the patch?",
            "weight.flatten(1) is the matrix of each layer; it reads patch.flatten() first, and "
            "then what the layer before gave.",
        ),
        cases=lambda: (
            Case(example_of((3, 5, 5), 8, 6, 5)),
            Case(example_of((1, 3, 3), 4, 4, 4)),
            Case(example_of((6, 1, 1), 5, 7, 3)),
        ),
        gradient=True,
        without=("conv1d", "conv2d"),
        mistakes=(
            (place_with(act=as_it_is), "A ReLU follows each of the three layers."),
            (place_with(last=as_it_is), "The last ReLU is missing."),
            (place_with(signs=(0, 0, 0)), "The biases are missing."),
            (place_with(act=torch.sigmoid, last=torch.sigmoid), "That is a sigmoid, not a ReLU."),
            (first_layer_alone, "That is the first convolution alone; two layers follow."),
            (
                pixel_by_pixel,
                "You read the patch pixel by pixel; weights are stored channel by channel.",
            ),
            (patch_turned, "Rows and columns of the patch are exchanged."),
        ),
    ),
    Exercise(
        solution=logit_on_a_canvas,
        statement="""\
**Predict before you run.**
A net of convolutions that keep the size, without biases, then global average pooling, sees a \
digit of 28 × 28 pixels, black being 0.
Then it sees the same digit on a black canvas of 56 × 56.
By what factor do its logits change?
Return a number: 1 if they stay, 2 if they double; the check then measures it.""",
        hints=(
            "What do the class maps hold where the canvas is black?",
            "The same values stand on a map with four times as many places, and the logit is "
            "their mean.",
        ),
        experiment=measure_on_a_canvas,
        cases=lambda: (Case(tolerance=0.02),),
        because="The maps hold the same values on four times as many places, so their mean is a "
        "quarter. The order of the classes stays, the certainty does not.",
        mistakes=(
            (lambda: 1, "The digit is the same, but a mean is taken over all places."),
            (lambda: 0.5, "Height and width both double."),
            (lambda: 4, "The sum stays; the number of places it is divided by grows."),
        ),
    ),
    Exercise(
        solution=head,
        statement="""\
**Find the fault.**
A NiN trains, and its accuracy rises, but slowly; its loss never falls below 1.46, not even on \
one batch that it knows by heart.
Below is its head, which turns class maps (N, K, H, W) into what `cross_entropy` is given; mend it.
Return the logits, a tensor (N, K).""",
        hints=(
            "What is the cross entropy of an answer that is perfectly sure and right? "
            "Try cross_entropy(torch.eye(10), torch.arange(10)).",
            "cross_entropy takes logits and does the softmax itself; "
            "a second softmax cannot give more than 1, and ln(e + 9) - 1 = 1.46.",
        ),
        broken=head_with_a_floor,
        cases=lambda: (
            Case((torch.randn(3, 10, 6, 5),)),
            Case((torch.randn(2, 7, 1, 4) * 9,)),
            Case((torch.randn(1, 3, 5, 5, dtype=torch.float64),)),
        ),
        gradient=True,
        mistakes=(
            (
                lambda maps: maps.mean(dim=(2, 3)).log_softmax(dim=1),
                "The softmax's logarithm is taken twice now; the means alone are the logits.",
            ),
            (head_of_the_largest, "You take the largest value; the head averages each map."),
            (lambda maps: maps.sum(dim=(2, 3)), "You add the places up; the head averages them."),
            (
                lambda maps: maps.mean(dim=(2, 3)).sigmoid(),
                "A sigmoid is no better: logits go in, not probabilities.",
            ),
            (
                lambda maps: maps.mean(dim=(2, 3)).relu(),
                "A ReLU silences classes: a logit may be negative.",
            ),
            (
                lambda maps: maps.mean(dim=(1, 2)),
                "You average over channels; the places are dimensions 2 and 3.",
            ),
            (
                lambda maps: maps.softmax(dim=1).mean(dim=(2, 3)),
                "The softmax has only moved: leave it out.",
            ),
        ),
    ),
    Exercise(
        solution=wider_nin,
        statement="""\
**An open question.**
What is a wider NiN worth on photographs?
Train `NiNCifar` at two widths on CIFAR-10 and compare; then change one more thing of your own, \
such as the 1 × 1 layers or the dropout.
Write the experiment as a function and run it; the check shows what to judge it by.""",
        hints=(
            "NiNCifar(width=1 / 6, dropout=0.1, norm=True) is small enough for a laptop.",
            "MLPConv takes the channels of all its layers as a tuple: a shorter tuple has fewer "
            "1 × 1 layers.",
        ),
        rubric=(
            "Did you write down a prediction first?",
            "Do you give parameters and mult-adds beside each accuracy?",
            "Did you change one thing at a time?",
            "Is there more than one seed, and is the difference larger than theirs?",
            "Did you leave the test images alone?",
        ),
    ),
]
