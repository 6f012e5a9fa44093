"""Exercises of 02_alexnet."""

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, max_pool2d

from common import data, probe
from common.config import Config
from common.exercises import Exercise
from common.exercises.answers.alike import Case
from common.train import fit
from common.zoo.alexnet import AlexNet


def overlapping_pool(image, window, stride):
    rows = range(0, image.shape[0] - window + 1, stride)
    columns = range(0, image.shape[1] - window + 1, stride)
    values = [image[i : i + window, j : j + window].max() for i in rows for j in columns]
    return torch.stack(values).view(len(rows), len(columns))


def pool_from_zero(image, window, stride):
    return overlapping_pool(image, window, stride).clamp(min=0)


def pool_past_the_edge(image, window, stride):
    rows, columns = (range(0, size, stride) for size in image.shape)
    values = [image[i : i + window, j : j + window].max() for i in rows for j in columns]
    return torch.stack(values).view(len(rows), len(columns))


def drop(x, p):
    keep = torch.rand_like(x) >= p
    return x * keep / (1 - p)


def drop_the_same(x, p):
    torch.manual_seed(0)
    return drop(x, p)


def drop_whole_rows(x, p):
    return x * (torch.rand(len(x), 1) >= p) / (1 - p)


def drop_in_place(x, p):
    x.mul_(torch.rand_like(x) >= p).div_(1 - p)
    return x


def drop_facts(answer, p):
    """What can be said of a dropout without knowing its random numbers."""
    x = torch.arange(1.0, 30_001).view(100, 300)
    x[::2] *= -1
    kept, leaf = x.clone(), x.clone().requires_grad_()
    first = torch.as_tensor(answer(x, p))
    second = torch.as_tensor(answer(x.clone(), p))
    dropped = first.detach() == 0
    through = torch.as_tensor(answer(leaf, p))
    if through.requires_grad:
        through.sum().backward()
    alone = [float(answer(torch.ones(1, dtype=torch.float64), p)) == 0 for _ in range(60)]
    survivors = torch.cat([first[~dropped] / kept[~dropped], torch.zeros(dropped.all().int())])
    gradient = torch.zeros(1) if leaf.grad is None else leaf.grad
    return {
        "the shape of the result": tuple(first.shape),
        "the input itself stays as it was": bool(torch.equal(x, kept)),
        "the share of values that became 0": dropped.float().mean().item(),
        "the factor of a survivor": [survivors.min().item(), survivors.max().item()],
        "whole rows or columns that are 0": int(dropped.all(0).sum() + dropped.all(1).sum()),
        "two calls drop the same values": bool(torch.equal(dropped, second == 0)),
        "the gradient of a survivor": gradient.max().item(),
        "a value alone is dropped at times": any(alone),
        "a value alone is kept at times": not all(alone),
    }


def two_gpus():
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )


def halves(stem_padding=2, groups=(2, 1, 2, 2), pool=nn.MaxPool2d, window=3, act=nn.ReLU):
    """The same net with one thing changed, for the mistakes one makes."""
    net = two_gpus()
    net[0].padding = (stem_padding, stem_padding)
    for i, n in zip((3, 6, 8, 10), groups, strict=True):
        old = net[i]
        sizes = (old.in_channels, old.out_channels, old.kernel_size)
        net[i] = nn.Conv2d(*sizes, padding=old.padding, groups=n)
    for i in (2, 5, 12):
        net[i] = pool(window, 2)
    for i in (1, 4, 7, 9, 11):
        net[i] = act()
    return net


def without_last_relu():
    net = halves()
    net[11] = nn.Identity()
    return net


def fewer_in_fc1():
    return 6.25


def parameters_of_fc1():
    with torch.device("meta"):
        large, small = (AlexNet(image_size=pixels).fc1.weight.numel() for pixels in (224, 112))
    return large / small


def prepare(images, mean, std):
    return (images.float() / 255 - mean) / std


def prepare_exploding(images, mean, std):
    return (images.float() - mean) / std


def prepare_in_bytes(images, mean, std):
    return (images / 255 - mean).byte() / std


def first_kernel(images=2_000, epochs=3, seeds=(0, 1)):
    fashion, rows = data.load("fashion_mnist"), {}
    for stem in ((11, 4, 3), (7, 4, 1), (5, 4, 0)):  # 23 x 23 places each
        row = rows[f"kernel {stem[0]}"] = {}
        for seed in seeds:
            torch.manual_seed(seed)
            net = AlexNet(image_size=96, width=0.125, stem=stem)
            settings = Config(epochs=epochs, lr=1e-3, image_size=96, train_images=images, seed=seed)
            history = fit(net, fashion, settings, show=False).frame()
            row[f"accuracy, seed {seed}"] = history.val_accuracy.iloc[-1]
        row["mult-adds"] = probe.mult_adds(net, (1, 1, 96, 96))
    return pd.DataFrame(rows).T


EXERCISES = [
    Exercise(
        solution=overlapping_pool,
        statement="""\
Compute a max pooling by hand, with windows of `window` × `window` pixels that lie `stride` apart.
AlexNet's windows are 3 pixels wide and 2 apart, so neighbours share pixels.
`image` is a tensor (H, W), not always square; return a tensor with one value a window.
Leave out windows that do not fit.""",
        hints=(
            "Where do the windows begin? range() takes a start, a stop and a step.",
            "They begin at range(0, H - window + 1, stride), and so for W; the value of one is "
            "image[i : i + window, j : j + window].max().",
        ),
        cases=lambda: (
            Case((torch.randn(7, 10), 3, 2)),
            Case((torch.randn(8, 5) - 5, 3, 2)),
            Case((torch.randn(6, 9, dtype=torch.float64), 2, 2)),
            Case((torch.randn(5, 6) - 1, 3, 1)),
            Case((torch.randn(9, 7), 2, 3)),
        ),
        gradient=True,
        mistakes=(
            (
                lambda image, window, stride: overlapping_pool(image, window, window),
                "Your windows lie side by side: they begin `stride` apart, not `window`.",
            ),
            (
                lambda image, window, stride: overlapping_pool(image, window, 1),
                "Your windows begin at every pixel; they lie `stride` apart.",
            ),
            (
                pool_from_zero,
                "Your maximum begins at 0, but maps can be negative everywhere.",
            ),
            (
                pool_past_the_edge,
                "Your last windows reach past the edge; leave out those that do not fit.",
            ),
            (
                lambda image, window, stride: avg_pool2d(image[None, None], window, stride)[0, 0],
                "You took the mean of a window, not its largest value.",
            ),
            (
                lambda image, window, stride: -max_pool2d(-image[None, None], window, stride)[0, 0],
                "You took the smallest value of a window.",
            ),
        ),
    ),
    Exercise(
        solution=drop,
        statement="""\
Write dropout as it is in training.
Each value of the tensor `x` becomes 0 with probability `p`, by itself and anew in each call.
The others are enlarged so that the mean stays the same; then nothing has to be changed at test \
time.
Return a new tensor, and leave `x` as it is.
Use `torch.rand_like`, not `nn.Dropout`.
The gradient must be able to flow back: no numpy, `.item()` or `detach`.""",
        hints=(
            "torch.rand_like(x) gives a number from 0 to 1 for each value. "
            "Which share of them is at least p?",
            "A share of 1 - p survives, so survivors are divided by 1 - p.",
        ),
        facts=drop_facts,
        without=("dropout", "feature_dropout", "alpha_dropout"),
        cases=lambda: (Case((0.5,), tolerance=0.02), Case((0.2,), tolerance=0.02)),
        mistakes=(
            (
                lambda x, p: x * (torch.rand_like(x) >= p),
                "The survivors are not enlarged, so the mean falls: divide by 1 - p.",
            ),
            (
                lambda x, p: x * (torch.rand_like(x) < p) / p,
                "You keep with probability p and drop the rest; p is the share that goes.",
            ),
            (
                lambda x, p: x * (torch.rand_like(x) >= p) / p,
                "You divide by p; a share of 1 - p survives.",
            ),
            (drop_whole_rows, "Whole rows go together; each value must be decided by itself."),
            (drop_the_same, "You set the seed, so that each call drops the same values."),
            (drop_in_place, "You change `x` itself; work on a copy."),
            (
                lambda x, p: drop(x.detach(), p),
                "The gradient is cut: detach and .data do not let it pass.",
            ),
        ),
    ),
    Exercise(
        solution=two_gpus,
        statement="""\
Build the convolutional part of the paper's net as it ran on two GPUs: for colour images of \
224 × 224 pixels, everything up to and with pool3, in `alexnet_paper`'s sizes.
conv2, conv4 and conv5 are one layer of two groups each; conv1 and conv3 see all maps.
A ReLU follows each convolution, and the poolings are the paper's.
Return the network: its output is 256 × 6 × 6, and it has 2,334,080 parameters.""",
        hints=(
            "nn.Conv2d has an argument groups. "
            "The stem is nn.Conv2d(3, 96, 11, stride=4, padding=2).",
            "conv2 is nn.Conv2d(96, 256, 5, padding=2, groups=2); "
            "nn.MaxPool2d(3, 2) follows conv1, conv2 and conv5.",
        ),
        cases=lambda: (Case((), inputs=((1, 3, 67, 99),)),),
        mistakes=(
            (
                lambda: halves(groups=(1, 1, 1, 1)),
                "There are no groups: conv2, conv4 and conv5 have two.",
            ),
            (
                lambda: halves(groups=(2, 2, 2, 2)),
                "conv3 has groups too; it is the layer where the two GPUs exchange all maps.",
            ),
            (
                lambda: halves(stem_padding=1),
                "The stem has padding 1, as in report A; here it is 2.",
            ),
            (
                lambda: halves(pool=nn.AvgPool2d),
                "The poolings average; AlexNet's take the maximum.",
            ),
            (lambda: halves(window=2), "Your poolings do not overlap; their windows are 3 wide."),
            (lambda: halves(act=nn.Identity), "There are no ReLUs."),
            (without_last_relu, "The last convolution has no ReLU."),
            (lambda: halves(act=nn.Sigmoid), "The activations are sigmoids, not ReLUs."),
        ),
    ),
    Exercise(
        solution=fewer_in_fc1,
        statement="""\
**Predict before you run.**
`AlexNet` for images of 112 × 112 pixels in place of 224 × 224: by what factor are there fewer \
weights in `fc1`?
Return a number such as 2 for half as many; the check then builds both nets.""",
        hints=(
            "Follow the sizes: the stem steps by 4, and three poolings halve what is left.",
            "224 pixels end as 5 × 5 places, and 112 as 2 × 2, because each layer rounds down.",
        ),
        experiment=parameters_of_fc1,
        cases=lambda: (Case(tolerance=0.3),),
        because="224 pixels end as 5 × 5 places and 112 as 2 × 2: each layer rounds down, and "
        "small images lose most by it.",
        mistakes=(
            (lambda: 4, "A quarter of the pixels would be a factor of 4; but each layer rounds."),
            (lambda: 2, "Height and width both shrink."),
            (lambda: 1, "A convolution's weights do not depend on the image, but fc1's do."),
        ),
    ),
    Exercise(
        solution=prepare,
        statement="""\
**Find the fault.**
The first loss of an untrained AlexNet is not 2.3 but far above it, and after a few steps it is nan.
With a learning rate a thousand times smaller it falls, slowly.
The images are prepared by the function below; mend it.
`images` are bytes (N, C, H, W); `mean` and `std` belong to brightness from 0 to 1.
Return floats with mean 0 and standard deviation 1 where the images have this mean and std.""",
        hints=(
            "Print x.mean() and x.std() of what goes into the net. What should they be?",
            "A byte goes up to 255, and the mean was computed for numbers up to 1.",
        ),
        broken=prepare_exploding,
        cases=lambda: (
            Case((torch.randint(256, (2, 1, 5, 4)).byte(), 0.286, 0.353)),
            Case((torch.randint(256, (3, 3, 4, 7)).byte(), *torch.rand(2, 3, 1, 1))),
            Case((torch.randint(2, (1, 1, 3, 6)).byte(), 0.5, 0.25)),
        ),
        mistakes=(
            (
                lambda images, mean, std: images.float() / 255,
                "The images are scaled, but not normalised: mean and std are not used.",
            ),
            (
                lambda images, mean, std: (images.float() - mean) / std / 255,
                "You divide by 255 at the end; the mean must be subtracted on the same scale.",
            ),
            (
                lambda images, mean, std: images.float() / 255 - mean / std,
                "Brackets are missing: only the mean is divided by std.",
            ),
            (
                lambda images, mean, std: (images.float() / 255 - mean) * std,
                "You multiply by std; dividing brings the standard deviation to 1.",
            ),
            (
                lambda images, mean, std: (images.float() / 255 - std) / mean,
                "Mean and std have changed places.",
            ),
            (prepare_in_bytes, "A byte has no sign and no fractions: stay with floats."),
        ),
    ),
    Exercise(
        solution=first_kernel,
        statement="""\
**An open question.**
Does the first kernel have to be 11 pixels wide?
Train `AlexNet` with three stems, (kernel, stride, padding), on few images, and compare.
Write the experiment as a function and run it; the check shows what to judge it by.""",
        hints=(
            "AlexNet(image_size=96, width=0.125, stem=(7, 4, 1)) is small enough for a laptop.",
            "A stem with a smaller stride leaves more places: the work differs, not only the "
            "kernel. Which padding leaves as many under a kernel of 11, and of 5?",
        ),
        rubric=(
            "Did you write down a prediction first?",
            "Do you give the mult-adds of each net beside its accuracy (probe.mult_adds)?",
            "Is only one thing changed at a time, kernel or stride?",
            "Is there more than one seed, and is the difference larger than theirs?",
            "Did you leave the test images alone?",
        ),
    ),
]
