"""Exercises of 00_data."""

import torch

from common.check import Exercise, NotYet, expect_equal


def images(*shape: int) -> torch.Tensor:
    """Random uint8 images, the same every time."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()


def test_normalise(answer) -> None:
    x = images(7, 3, 5, 4)
    kept = x.clone()
    found = answer(x)
    scaled = x.float() / 255
    mean = scaled.mean(dim=(0, 2, 3), keepdim=True)
    std = scaled.std(dim=(0, 2, 3), keepdim=True, correction=0)
    if not isinstance(found, torch.Tensor) or not found.is_floating_point():
        raise NotYet(f"Return a float tensor, not {getattr(found, 'dtype', type(found).__name__)}.")
    expect_equal(tuple(found.shape), tuple(x.shape), "the shape of the result")
    if not torch.equal(x, kept):
        raise NotYet("The images themselves were changed: work on a copy.")
    gaps = found.mean(dim=(0, 2, 3)), found.std(dim=(0, 2, 3), correction=0)
    if gaps[0].abs().max() > 1e-3:
        raise NotYet(f"The means by channel should be 0, they are {[round(v, 3) for v in gaps[0].tolist()]}.")  # fmt: skip
    if not torch.allclose(found, (scaled - mean) / std, atol=2e-2):
        raise NotYet(f"The spreads by channel should be 1, they are {[round(v, 3) for v in gaps[1].tolist()]}.")  # fmt: skip


def test_flip(answer) -> None:
    x = images(2, 3, 4, 6)
    expect_equal(answer(x), x.flip(-1), "two colour images of 4 x 6 pixels, mirrored left to right")


def test_class_counts(answer) -> None:
    for labels, classes in (([0, 2, 2, 1, 2], 3), ([1, 1], 4)):
        expected = [labels.count(c) for c in range(classes)]
        found = answer(torch.tensor(labels), classes)
        found = found.tolist() if isinstance(found, torch.Tensor) else list(found)
        expect_equal(found, expected, f"labels {labels} among {classes} classes")


def test_split(answer) -> None:
    train, val = answer(100, 0.3)
    train, val = sorted(torch.as_tensor(train).tolist()), sorted(torch.as_tensor(val).tolist())
    expect_equal(len(val), 30, "the validation indices of 100 images with a share of 0.3")
    if set(train) & set(val):
        raise NotYet(f"{len(set(train) & set(val))} images are in both parts.")
    expect_equal(sorted(train + val), list(range(100)), "both parts together")
    again = sorted(torch.as_tensor(answer(100, 0.3)[1]).tolist())
    if again != val:
        raise NotYet("A second call gave another split: fix the seed.")
    if val in (list(range(30)), list(range(70, 100))):
        raise NotYet("These are simply the first or the last images: shuffle before you cut.")


EXERCISES = [
    Exercise(
        name="normalise",
        statement="""\
`x` holds uint8 images (N, C, H, W).
Return floats whose mean is 0 and whose standard deviation is 1 in every channel, over all images and pixels of `x`.""",
        skeleton="""\
def normalise(x):
    return ...""",
        answer="normalise",
        lines=4,
        test=test_normalise,
        hints=(
            "Turn bytes into floats first. Which dimensions do you average over to keep one value a channel?",
            "x.float().mean(dim=(0, 2, 3), keepdim=True) has the shape (1, C, 1, 1) and broadcasts.",
        ),
        solution="""\
def normalise(x):
    x = x.float()
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    std = x.std(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / std""",
        wrong=(
            "def normalise(x):\n    return x.float() / 255",
            "def normalise(x):\n    x = x.float()\n    return x - x.mean(dim=(0, 2, 3), keepdim=True)",
            "def normalise(x):\n    x = x.float()\n    return (x - x.mean()) / x.std()",
        ),
    ),
    Exercise(
        name="flip",
        statement="""\
Mirror a batch of images (N, C, H, W) left to right.
It is the cheapest augmentation there is.
Ask yourself for which of the three sets it would do harm.""",
        skeleton="""\
def flip(x):
    return ...""",
        answer="flip",
        lines=1,
        test=test_flip,
        hints=("Which of the four dimensions runs from left to right?", "Look up Tensor.flip."),
        solution="def flip(x):\n    return x.flip(-1)",
        wrong=(
            "def flip(x):\n    return x.flip(-2)",
            "def flip(x):\n    return x.transpose(-1, -2)",
        ),
    ),
    Exercise(
        name="class_counts",
        statement="""\
Count how many images each class has.
`labels` is an int64 tensor (N,), and there are `classes` classes.
A class without images counts 0.""",
        skeleton="""\
def class_counts(labels, classes):
    return ...""",
        answer="class_counts",
        lines=1,
        test=test_class_counts,
        hints=(
            "One line of plain Python over range(classes) will do.",
            "torch.bincount counts; its argument minlength keeps the empty classes.",
        ),
        solution="""\
def class_counts(labels, classes):
    return torch.bincount(labels, minlength=classes)""",
        wrong=(
            "def class_counts(labels, classes):\n    return torch.bincount(labels)",
            "def class_counts(labels, classes):\n    return labels.unique(return_counts=True)[1]",
        ),
    ),
    Exercise(
        name="split",
        statement="""\
Split the indices 0 to n - 1 at random into (training, validation).
`share` of them go to validation.
Nothing may be in both parts, nothing may be lost, and the same call gives the same split.""",
        skeleton="""\
def split(n, share):
    return ...""",
        answer="split",
        lines=3,
        test=test_split,
        hints=(
            "Shuffle once, then cut the shuffled list in two.",
            "torch.randperm(n, generator=torch.Generator().manual_seed(0)) is the same every time.",
        ),
        solution="""\
def split(n, share):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    cut = round(n * share)
    return order[cut:], order[:cut]""",
        wrong=(
            "def split(n, share):\n    cut = round(n * share)\n    return torch.arange(cut, n), torch.arange(cut)",
            "def split(n, share):\n    order = torch.randperm(n)\n    return order[round(n * share) :], order[: round(n * share)]",
            "def split(n, share):\n    g = torch.Generator().manual_seed(0)\n    cut = round(n * share)\n    return torch.randint(0, n, (n - cut,), generator=g), torch.randint(0, n, (cut,), generator=g)",
        ),
    ),
]
