"""Exercises of 05_googlenet."""

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy, max_pool2d, nll_loss

from common import data, probe
from common.config import Config
from common.exercises import Exercise
from common.exercises.answers.alike import Case
from common.train import fit
from common.zoo.googlenet import GoogLeNet


def widest_reduction(channels, filters, kernel):
    direct = channels * filters * kernel**2
    one_map = channels + filters * kernel**2  # what each map of the reduction costs
    return (direct - 1) // one_map


def widest_with_equality(channels, filters, kernel):
    return channels * filters * kernel**2 // (channels + filters * kernel**2)


def widest_without_the_first(channels, filters, kernel):
    return channels - 1


def widest_square_forgotten(channels, filters, kernel):
    return (channels * filters * kernel - 1) // (channels + filters * kernel)


def naive_inception(x, w1, w3, w5):
    functions = torch.nn.functional
    branches = [functions.conv2d(x, w, padding=w.shape[-1] // 2) for w in (w1, w3, w5)]
    pooled = functions.max_pool2d(x, 3, stride=1, padding=1)
    return torch.cat([*branches, pooled], dim=1)


def inception_with(pool, dim=1, acts=False, order=(0, 1, 2, 3), paddings=(0, 1, 2)):
    """The module with one thing changed, for the mistakes one makes."""

    def module(x, w1, w3, w5):
        pairs = zip((w1, w3, w5), paddings, strict=True)
        branches = [conv2d(x, w, padding=padding) for w, padding in pairs]
        branches = [b.relu() if acts else b for b in branches] + ([pool(x)] if pool else [])
        return torch.cat([branches[i] for i in order], dim=dim)

    return module


def largest_of_nine(x):
    return max_pool2d(x, 3, stride=1, padding=1)


def mean_of_nine(x):
    return avg_pool2d(x, 3, stride=1, padding=1)


def padding_of_one(x, w1, w3, w5):
    branches = [conv2d(x, w, padding=1) for w in (w1, w3, w5)]
    return torch.cat([*branches, largest_of_nine(x)], dim=1)


def total_loss(outputs, y):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    main, *auxiliary = (cross_entropy(logits, y) for logits in outputs)
    return main + 0.3 * sum(auxiliary)


def loss_with(weight=0.3, mean=False, everywhere=False, main_last=False, cut=False):
    """The loss with one thing changed, for the mistakes one makes."""

    def loss(outputs, y):
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = outputs[::-1] if main_last else outputs
        main, *auxiliary = (cross_entropy(logits, y) for logits in outputs)
        auxiliary = [a.item() for a in auxiliary] if cut else auxiliary
        total = sum(auxiliary) / (len(auxiliary) or 1) if mean else sum(auxiliary)
        return weight * (main + total) if everywhere else main + weight * total

    return loss


def loss_of_probabilities(outputs, y):
    if isinstance(outputs, tuple):
        return total_loss(tuple(logits.softmax(1) for logits in outputs), y)
    return cross_entropy(outputs.softmax(1), y)


def loss_summed_over_images(outputs, y):
    return total_loss(outputs, y) * len(y)


def loss_without_softmax(outputs, y):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    main, *auxiliary = (nll_loss(logits, y) for logits in outputs)
    return main + 0.3 * sum(auxiliary)


def size_after_norm():
    return 1


def measure_after_norm():
    torch.manual_seed(0)
    maps = 3 + 5 * torch.randn(2, 1024, 1, 1)  # two images, one place
    return nn.BatchNorm2d(1024)(maps).abs().mean().item()


def accuracy(net, x, y):
    before = net.training
    net.eval()
    with torch.no_grad():
        right = (net(x).argmax(1) == y).float().mean().item()
    net.train(before)
    return right


def accuracy_that_changes(net, x, y):
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


def accuracy_left_in_evaluation(net, x, y):
    with torch.no_grad():
        return (net.eval()(x).argmax(1) == y).float().mean().item()


def accuracy_always_back_to_training(net, x, y):
    right = accuracy_left_in_evaluation(net, x, y)
    net.train()
    return right


def count_of_right(net, x, y):
    return accuracy(net, x, y) * len(y)


def error_rate(net, x, y):
    return 1 - accuracy(net, x, y)


def accuracy_facts(answer, training, right):
    """What an accuracy is, and what it leaves of the net, from a batch with so many right.

    In evaluation the net's class is the brightest pixel's. In training it is class 0, even without
    dropout: the normalisation's own variance is small, and so the batch's leaves only its shift.
    """
    norm, dropout = nn.BatchNorm1d(4), nn.Dropout(0.8)
    norm.running_var.fill_(0.01)
    norm.bias.data[0] = 5
    net = nn.Sequential(norm, dropout).train(training)
    y = torch.tensor([3, 0, 2, 1, 1, 2, 0])
    x = torch.eye(4)[y]
    y[right:] = (y[right:] + 1) % 4
    images = x.clone()
    found = answer(net, x, y)
    return {
        "the accuracy": found,
        "the net's mode afterwards is training": net.training,
        "its layers in training mode": sum(layer.training for layer in net),
        "batches that training statistics were taken from": norm.num_batches_tracked.item(),
        "the net's weights": norm.weight.detach().clone(),
        "its statistics": torch.stack([norm.running_mean, norm.running_var]),
        "the images stay as they were": torch.equal(x, images),
        "the dropout's probability": dropout.p,
        "weights that can learn": sum(p.requires_grad for p in net.parameters()),
        "gradients that were left behind": sum(p.grad is not None for p in net.parameters()),
    }


def which_branch(images=4_000, epochs=3, seeds=(0, 1)):
    fashion, rows = data.load("fashion_mnist"), {}
    for branch in ("none", "branch1", "branch3", "branch5", "pool"):
        row = rows[f"without {branch}"] = {}
        for seed in seeds:
            torch.manual_seed(seed)
            net = GoogLeNet(norm=True, width=0.125, small_images=True)
            layers = probe.layers(net, (1, 1, 28, 28))
            for name, part in net.named_modules():
                if name.endswith(f".{branch}"):
                    part.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
            settings = Config(epochs=epochs, lr=2e-3, train_images=images, seed=seed)
            history = fit(net, fashion, settings, show=False).frame()
            row[f"accuracy, seed {seed}"] = history.val_accuracy.iloc[-1]
        silent = layers[layers.layer.str.contains(f".{branch}.", regex=False)]
        row["parameters silenced"] = silent.params.sum()
        row["mult-adds silenced"] = silent.mult_adds.sum()
    return pd.DataFrame(rows).T


EXERCISES = [
    Exercise(
        solution=widest_reduction,
        statement="""\
A 1 × 1 convolution that reduces `channels` to R maps makes a `kernel` × `kernel` convolution to \
`filters` maps cheaper, as long as R is small enough.
What is the largest R with which the two together still need fewer mult-adds than the wide one \
alone?
Return a whole number; leave the biases out.""",
        hints=(
            "Write the inequality with the page's formula: C R + R F k² < C F k².",
            "R < C F k² / (C + F k²). Mind the case where that is a whole number itself.",
        ),
        cases=lambda: (
            Case((192, 32, 5)),
            Case((832, 128, 5)),
            Case((192, 128, 3)),
            Case((9, 1, 3)),
            Case((64, 64, 1)),
            Case((50, 2, 5)),
            Case((3, 64, 7)),
            Case((16, 8, 3)),
            Case((228, 2, 5)),
        ),
        mistakes=(
            (
                widest_with_equality,
                "At equality nothing is saved: R must lie below C F k² / (C + F k²).",
            ),
            (
                widest_without_the_first,
                "Fewer maps than channels are not enough: the 1 × 1 convolution costs too.",
            ),
            (
                widest_square_forgotten,
                "A kernel has kernel² weights.",
            ),
            (
                lambda channels, filters, kernel: (
                    channels * filters * kernel**2 / (channels + filters * kernel**2)
                ),
                "A number of maps is whole: find the largest one below this bound.",
            ),
        ),
    ),
    Exercise(
        solution=naive_inception,
        statement="""\
Write the paper's first idea, the module without reductions (figure 2a).
The images `x` (N, C, H, W) go through four branches: convolutions with the weights `w1` (1 × 1), \
`w3` (3 × 3) and `w5` (5 × 5), without biases or ReLU, and a 3 × 3 max pooling with stride 1.
All keep H and W.
Return the four results side by side as one tensor, in this order.""",
        hints=(
            "torch.nn.functional has conv2d(x, weights, padding=…) and "
            "max_pool2d(x, 3, stride=1, padding=…). Which padding keeps the size?",
            "Padding k // 2 keeps the size of an odd kernel k. "
            "torch.cat(list, dim=1) puts maps side by side.",
        ),
        cases=lambda: (
            Case((torch.randn(2, 3, 7, 9), *(torch.randn(n, 3, n, n) for n in (1, 3, 5)))),
            Case((torch.randn(3, 2, 6, 5) - 4, *(torch.randn(4, 2, n, n) for n in (1, 3, 5)))),
            Case(
                (
                    torch.randn(1, 2, 5, 8, dtype=torch.float64),
                    *(torch.randn(2, 2, n, n, dtype=torch.float64) for n in (1, 3, 5)),
                )
            ),
        ),
        gradient=True,
        mistakes=(
            (padding_of_one, "The padding is 1 in every branch; a 5 × 5 kernel needs 2."),
            (
                inception_with(largest_of_nine, paddings=(0, 1, 1)),
                "The 5 × 5 convolution is padded by 1; it needs 2.",
            ),
            (
                inception_with(largest_of_nine, paddings=(0, 0, 0)),
                "The convolutions are not padded, so their maps shrink.",
            ),
            (
                inception_with(lambda x: max_pool2d(x, 3, padding=1)),
                "Without `stride=1` a pooling's stride is its window.",
            ),
            (inception_with(mean_of_nine), "The fourth branch averages; it takes the maximum."),
            (inception_with(None, order=(0, 1, 2)), "The pooling branch is missing."),
            (
                inception_with(largest_of_nine, acts=True),
                "There is a ReLU; here the branches have none.",
            ),
            (
                inception_with(largest_of_nine, order=(3, 0, 1, 2)),
                "The order is another: 1 × 1, 3 × 3, 5 × 5, pooling.",
            ),
            (
                inception_with(largest_of_nine, order=(0, 2, 1, 3)),
                "3 × 3 and 5 × 5 have changed places.",
            ),
            (
                inception_with(lambda x: x, order=(0, 1, 2, 3)),
                "The fourth branch hands its input on without pooling it.",
            ),
            (
                inception_with(largest_of_nine, dim=2),
                "You joined along the height; the maps are dimension 1.",
            ),
        ),
    ),
    Exercise(
        solution=total_loss,
        statement="""\
Write the loss of a net with auxiliary classifiers, from its `outputs` and the labels `y` (N).
In training, `outputs` is a tuple: the main logits (N, K), then those of each auxiliary classifier.
The auxiliary cross entropies count 0.3 each.
In evaluation mode `outputs` is a single tensor, and the loss is its cross entropy.
Return a single value, as a tensor without dimensions.""",
        hints=(
            "isinstance(outputs, tuple) tells the two cases apart.",
            "main, *auxiliary = outputs takes the tuple apart; "
            "torch.nn.functional.cross_entropy(logits, y) is one loss.",
        ),
        cases=lambda: (
            Case((torch.randn(4, 3), torch.tensor([0, 2, 1, 1]))),
            Case((tuple(torch.randn(3, 4, 5)), torch.tensor([4, 0, 2, 2]))),
            Case((tuple(torch.randn(2, 3, 4)), torch.tensor([3, 0, 1]))),
            Case((tuple(torch.randn(4, 2, 3)), torch.tensor([1, 2]))),
        ),
        gradient=True,
        mistakes=(
            (loss_with(weight=1), "The auxiliary losses count in full; their weight is 0.3."),
            (loss_with(mean=True), "You average the auxiliary losses; each counts 0.3."),
            (loss_with(everywhere=True), "The main loss counts in full, not 0.3."),
            (loss_with(main_last=True), "The main logits come first, not last."),
            (loss_with(weight=0), "The auxiliary losses are missing."),
            (
                loss_with(cut=True),
                "The auxiliary losses are numbers: .item() cuts their gradient.",
            ),
            (loss_of_probabilities, "cross_entropy takes logits: leave the softmax to it."),
            (loss_summed_over_images, "You add up over the images; cross_entropy's mean is meant."),
            (
                loss_without_softmax,
                "nll_loss expects logarithms of probabilities; these are logits.",
            ),
        ),
    ),
    Exercise(
        solution=size_after_norm,
        statement="""\
**Predict before you run.**
Batch normalisation in training mode sees two images, whose maps have a single place: \
2 × 1,024 × 1 × 1, as at the end of `googlenet_bn` on very small images.
What is the mean absolute value of what comes out?
Return a number; the check then measures it.""",
        hints=(
            "In each channel there are two numbers, a and b. What is their mean, what their "
            "distance from it?",
            "(a - mean) / deviation is +1 for one of them and -1 for the other, whatever they are.",
        ),
        experiment=measure_after_norm,
        cases=lambda: (Case(tolerance=0.05),),
        because="Of two numbers one becomes +1 and the other -1, whatever they were: all that is "
        "left is which image had more. A normalisation needs many values in each channel.",
        mistakes=(
            (
                lambda: 0.8,
                "That is the mean absolute value of many normal numbers; here there are two.",
            ),
            (lambda: 0, "The mean is 0, but not the mean absolute value."),
            (lambda: 5, "Normalising takes the deviation of 5 away."),
        ),
    ),
    Exercise(
        solution=accuracy,
        statement="""\
**Find the fault.**
A GoogLeNet with batch normalisation and dropout is judged by the function below.
Called twice, it gives two different accuracies; with a batch of one class it is far too low; \
and after it the net is no longer what it was.
Mend it.
`x` is a batch of images and `y` holds its labels; return the share of right answers.
The net must be left as it was, its mode included.""",
        hints=(
            "What do dropout and batch normalisation do in training mode?",
            "Note net.training, call net.eval(), count, and go back with net.train(before).",
        ),
        broken=accuracy_that_changes,
        facts=accuracy_facts,
        cases=lambda: (Case((True, 5)), Case((False, 3)), Case((True, 7))),
        mistakes=(
            (
                accuracy_left_in_evaluation,
                "The net is left in evaluation mode, and would go on training in it.",
            ),
            (
                accuracy_always_back_to_training,
                "The net is left in training mode also where it was not in it before.",
            ),
            (count_of_right, "You count the right answers; divide by their number."),
            (error_rate, "That is the share of wrong answers."),
        ),
    ),
    Exercise(
        solution=which_branch,
        statement="""\
**An open question.**
Which branch can a GoogLeNet be trained without?
On the page a branch was silenced after training; silence it before, so that the others can take \
over its work, and compare.
Write the experiment as a function and run it; the check shows what to judge it by.""",
        hints=(
            "A forward hook that returns torch.zeros_like(output) silences a part.",
            "GoogLeNet(norm=True, width=0.125, small_images=True) is small enough for a laptop.",
        ),
        rubric=(
            "Did you write down a prediction first?",
            "Do you compare with the net that has all branches, trained in the same way?",
            "Do you say how many parameters and mult-adds each branch has?",
            "Is there more than one seed, and is the difference larger than theirs?",
            "Does your conclusion say why silencing after training gives another answer?",
        ),
    ),
]
