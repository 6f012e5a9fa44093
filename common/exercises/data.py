"""Exercises of 00_data."""

import itertools

import torch

from common.exercises import Exercise
from common.exercises.answers.alike import Case


def class_weights(labels, classes):
    counts = torch.bincount(labels, minlength=classes)
    return len(labels) / (classes * counts)


def normalise(x):
    x = x.float()
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    std = x.std(dim=(0, 2, 3), keepdim=True, correction=0)
    return (x - mean) / std


def normalise_over(dim):
    """Normalised over other dimensions, for the mistakes one makes."""

    def normalised(x):
        x = x.float()
        return (x - x.mean(dim=dim, keepdim=True)) / x.std(dim=dim, keepdim=True, correction=0)

    return normalised


def divided_by_variance(x):
    x = x.float()
    return (x - x.mean(dim=(0, 2, 3), keepdim=True)) / x.var(dim=(0, 2, 3), keepdim=True)


def normal_enough(answer, x):
    """The normalised images, to two digits: whether n or n - 1 divides is no matter here."""
    kept = x.clone()
    result = torch.as_tensor(answer(x))
    mean = result.double().mean(dim=(0, 2, 3)) if result.dim() == 4 else torch.zeros(())
    return {
        "the shape": tuple(result.shape),
        "floats": result.is_floating_point(),
        "the means by channel": (mean.round(decimals=4) + 0).tolist(),  # + 0: no -0
        "the pixels": result.double().flatten()[:: max(1, result.numel() // 30)].tolist(),
        "the images themselves stay as they were": torch.equal(x, kept),
    }


def flip(x):
    return x.flip(-1)


def split(n, share):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    cut = round(n * share)
    return order[cut:], order[:cut]


def split_in_order(n, share):
    cut = round(n * share)
    return torch.arange(cut, n), torch.arange(cut)


def split_every_so_often(n, share):
    val = torch.linspace(0, n - 1, round(n * share)).long()
    train = torch.tensor([i for i in range(n) if i not in set(val.tolist())])
    return train, val


def split_anew_each_time(n, share):
    order = torch.randperm(n)
    return order[round(n * share) :], order[: round(n * share)]


def split_with_repeats(n, share):
    generator = torch.Generator().manual_seed(0)
    cut = round(n * share)
    draws = torch.randint(0, n, (n,), generator=generator)
    return draws[cut:], draws[:cut]


def split_of_two_orders(n, share):
    cut = round(n * share)
    one, two = (torch.randperm(n, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    return one[cut:], two[:cut]


def split_facts(answer, n, share):
    """What can be said of a split without knowing its random numbers."""
    parts = [torch.as_tensor(part) for part in answer(n, share)]
    train, val = (part.flatten().tolist() for part in parts)
    again = torch.as_tensor(answer(n, share)[1]).flatten().tolist()
    chosen = sorted(val)
    gaps = {b - a for a, b in itertools.pairwise(chosen)}
    return {
        "dimensions of the two rows": [part.ndim for part in parts],
        "indices in both parts": len(set(train) & set(val)),
        "validation indices": len(val),
        "different indices in all": len(set(train) | set(val)),
        "indices in all": len(train) + len(val),
        "the smallest and the largest index": [min(train + val), max(train + val)],
        "a second call gives the same": sorted(again) == chosen,
        "one block of neighbours": gaps == {1},
        "the choice looks random": len(gaps) > 5,
    }


def accuracy_of_the_commonest():
    return 90


def measure_the_commonest():
    labels = torch.tensor([0] * 900 + [1] * 50 + [2] * 50)
    answers = torch.full_like(labels, labels.bincount().argmax().item())
    return 100 * (answers == labels).float().mean().item()


def seen_before(train, test):
    known = {image.numpy().tobytes() for image in train}
    return [i for i, image in enumerate(test) if image.numpy().tobytes() in known]


def seen_before_by_mean(train, test):
    known = train.float().mean(dim=(1, 2, 3))
    return [i for i, image in enumerate(test) if image.float().mean() in known]


def seen_at_the_same_place(train, test):
    return [i for i in range(min(len(train), len(test))) if torch.equal(train[i], test[i])]


def seen_in_training_order(train, test):
    return seen_before(test, train)


def how_many_seen(train, test):
    return len(seen_before(train, test))


def never_seen(train, test):
    seen = seen_before(train, test)
    return [i for i in range(len(test)) if i not in seen]


def which_were_seen(train, test):
    return [i in seen_before(train, test) for i in range(len(test))]


def leaky_sets(n, m, leaks, shape=(2, 4, 3)):
    """Training images, some twice, and test images of which `leaks` (test, train) are copies."""
    images = torch.randint(0, 256, (n + m, *shape), dtype=torch.uint8)
    train, test = images[:n].clone(), images[n:].clone()
    for i, j in leaks:
        train[j - 1] = test[i] = train[j]
    turned, middle, last, *_ = (i for i in range(m) if i not in dict(leaks))
    test[turned] = train[0].flip(-1)  # the same values in another order
    for nearly, place in ((middle, train[1].numel() // 2), (last, -1)):
        test[nearly] = train[1]
        test[nearly].view(-1)[place] ^= 1
    return train, test


EXERCISES = [
    Exercise(
        solution=class_weights,
        statement="""\
In a set of 900 healthy and 100 sick leaves the healthy ones rule the loss.
Weights make up for that: the loss of an image is multiplied by the weight of its class.
Return a tensor with the weight of each of the `classes` classes, so that each class adds up to \
the same, and the weights of all images together to N, as if there were none.
`labels` is an int64 tensor (N,), in which every class occurs.""",
        hints=(
            "All images of a class together shall weigh N / classes. How much is that for each?",
            "torch.bincount(labels, minlength=classes) counts the images of each class; "
            "divide N / classes by the counts.",
        ),
        cases=lambda: (
            Case((torch.tensor([0, 2, 2, 1, 2]), 3)),
            Case((torch.tensor([1, 1, 1, 0]), 2)),
            Case((torch.tensor([3, 0, 3, 3, 0, 1, 2, 3]), 4)),
            Case((torch.zeros(6, dtype=torch.int64), 1)),
        ),
        mistakes=(
            (
                lambda labels, classes: torch.bincount(labels, minlength=classes),
                "Those are the counts: with them the largest class would rule still more.",
            ),
            (
                lambda labels, classes: class_weights(labels, classes) * classes,
                "The classes weigh the same, but all together `classes` times too much.",
            ),
            (
                lambda labels, classes: class_weights(labels, classes) / len(labels),
                "The classes weigh the same, but all together 1 in place of N.",
            ),
            (
                lambda labels, classes: 1 / torch.bincount(labels, minlength=classes),
                "The classes weigh the same, but all together `classes` in place of N.",
            ),
            (
                lambda labels, classes: class_weights(labels, classes).softmax(0),
                "A softmax changes the ratios: a class half as large must weigh twice as much.",
            ),
            (
                lambda labels, classes: class_weights(labels, classes)[labels],
                "You return a weight for each image; one for each class was asked for.",
            ),
            (
                lambda labels, classes: 1 - torch.bincount(labels, minlength=classes) / len(labels),
                "A class half as large must weigh twice as much; 1 minus its share does not do so.",
            ),
        ),
    ),
    Exercise(
        solution=normalise,
        statement="""\
`x` holds uint8 images (N, C, H, W).
Return floats of the same shape whose mean is 0 and whose standard deviation is 1 in every \
channel, over all images and pixels of `x`.""",
        hints=(
            "Turn bytes into floats first. "
            "Which dimensions do you average over to keep one value a channel?",
            "x.float().mean(dim=(0, 2, 3), keepdim=True) has the shape (1, C, 1, 1) and "
            "broadcasts.",
        ),
        facts=normal_enough,
        cases=lambda: (
            Case((torch.randint(0, 256, (7, 3, 5, 4)).byte(),), tolerance=0.02),
            Case((torch.randint(90, 256, (5, 1, 9, 6)).byte(),), tolerance=0.02),
            Case(
                ((torch.rand(6, 4, 3, 7) * torch.tensor([9, 50, 100, 255])[:, None, None]).byte(),),
                tolerance=0.02,
            ),
        ),
        mistakes=(
            (
                lambda x: x.float() / 255,
                "The bytes are scaled to 0 to 1, but not normalised.",
            ),
            (
                lambda x: x.float() - x.float().mean(dim=(0, 2, 3), keepdim=True),
                "The mean is right; the standard deviation is not divided away.",
            ),
            (
                normalise_over((0, 1, 2, 3)),
                "One mean for all channels; each channel has its own.",
            ),
            (
                normalise_over((2, 3)),
                "Each image is normalised by itself; average over the images too.",
            ),
            (
                normalise_over((0,)),
                "Each pixel is normalised by itself; average over the places too.",
            ),
            (divided_by_variance, "You divide by the variance; it is the standard deviation."),
            (
                lambda x: (x.float() / 255 - 0.5) / 0.5,
                "0.5 is no property of these images: take their own mean and standard deviation.",
            ),
        ),
    ),
    Exercise(
        solution=flip,
        statement="""\
Mirror a batch of images (N, C, H, W) left to right, and return them as a new batch.
It is the cheapest augmentation there is.
Ask yourself for which of the sets it would do harm.""",
        hints=("Which of the four dimensions runs from left to right?", "Look up Tensor.flip."),
        cases=lambda: (
            Case((torch.rand(2, 3, 4, 6),)),
            Case((torch.randint(0, 256, (3, 1, 5, 7)).byte(),)),
            Case((torch.rand(1, 2, 6, 3, dtype=torch.float64),)),
        ),
        mistakes=(
            (lambda x: x.flip(-2), "You turned the images upside down."),
            (lambda x: x.transpose(-1, -2), "You exchanged rows and columns."),
            (lambda x: x.flip(-1, -2), "You turned the images by half a turn."),
            (lambda x: x.flip(0), "You reversed the order of the images."),
            (lambda x: x.flip(1), "You reversed the channels."),
            (lambda x: x.roll(1, -1), "You moved the images; mirror them."),
        ),
    ),
    Exercise(
        solution=split,
        statement="""\
Split the indices 0 to n - 1 at random.
Return two rows of indices, (training, validation), as tensors or lists.
round(n · share) of them go to validation.
Nothing may be in both parts, nothing may be lost, and the same call gives the same split.""",
        hints=(
            "Shuffle once, then cut the shuffled list in two.",
            "torch.randperm(n, generator=torch.Generator().manual_seed(0)) is the same every time.",
        ),
        facts=split_facts,
        cases=lambda: (
            Case((500, 0.3)),
            Case((303, 0.25)),
            Case((301, 0.25)),
            Case((40, 0.0)),
        ),
        mistakes=(
            (
                split_in_order,
                "These are simply the first images, or neighbours: shuffle before you cut.",
            ),
            (split_every_so_often, "Every so-many-th image is no random choice."),
            (split_anew_each_time, "A second call gives another split: fix a generator's seed."),
            (split_with_repeats, "Some indices are drawn twice and others never: use randperm."),
            (split_of_two_orders, "Each part is cut from an order of its own, so they overlap."),
            (lambda n, share: split(n, share)[::-1], "Training and validation are exchanged."),
            (
                lambda n, share: tuple(part + 1 for part in split(n, share)),
                "Indices begin with 0.",
            ),
        ),
    ),
    Exercise(
        solution=accuracy_of_the_commonest,
        statement="""\
**Predict before you run.**
Of 1,000 test images, 900 show class 0, and 50 each show classes 1 and 2.
A net has died and gives every image the same answer, the commonest class.
What is its accuracy, in per cent, and how much has it learned?
Return the first as a number; the check then counts.""",
        hints=(
            "How many of its 1,000 answers are right?",
            "Compare with what guessing among three classes would give, and with a balanced set.",
        ),
        experiment=measure_the_commonest,
        cases=lambda: (Case(tolerance=1),),
        because="Nine of ten answers are right, and nothing has been learned. Compare an accuracy "
        "with the share of the commonest class before you are glad of it.",
        mistakes=(
            (lambda: 33.3, "That would be right if the three classes were equally common."),
            (lambda: 0, "One answer for all is right whenever that class comes."),
            (lambda: 5, "That is the share of each rare class; the commonest one counts."),
        ),
    ),
    Exercise(
        solution=seen_before,
        statement="""\
**Find the fault.**
A net is right on more of the test images than any paper reports: too good to be true.
Somebody has put test images among the training images.
`train` and `test` are uint8 tensors (N, C, H, W).
Return the indices of the test images that are in `train` too, to the last pixel, in rising \
order.""",
        hints=(
            "Comparing each with each is slow; a Python set finds bytes at once.",
            "image.numpy().tobytes() can be put into a set.",
        ),
        cases=lambda: (
            Case(leaky_sets(30, 9, ((2, 7), (5, 29)))),
            Case(leaky_sets(9, 20, ((0, 7), (11, 3), (19, 3), (4, 5)))),
            Case(leaky_sets(5, 4, ())),
            Case(leaky_sets(6, 7, ((1, 2),), (3, 40, 30))),
        ),
        mistakes=(
            (
                seen_before_by_mean,
                "Equal brightness is not an equal image: compare all pixels.",
            ),
            (
                seen_at_the_same_place,
                "A copy may lie anywhere among the training images.",
            ),
            (
                seen_in_training_order,
                "Those are the places in `train`; the places in `test` were asked for.",
            ),
            (how_many_seen, "That is how many there are; their indices were asked for."),
            (never_seen, "Those are the images that are not in `train`."),
            (which_were_seen, "Those are trues and falses; return the indices."),
        ),
    ),
]
