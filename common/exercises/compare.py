"""Exercises of 99_compare."""

import math
import statistics

from common.check import Exercise, NotYet, expect_equal


def test_mean_and_spread(answer) -> None:
    for values in ([0.991, 0.989, 0.993], [0.9, 0.8]):
        found = answer(values)
        if not isinstance(found, tuple) or len(found) != 2:
            raise NotYet(f"Return two numbers, (mean, spread), not {found!r}.")
        expect_equal(float(found[0]), statistics.mean(values), f"the mean of {values}")
        expect_equal(float(found[1]), statistics.stdev(values), f"the spread of {values}")


def test_pareto(answer) -> None:
    nets = {"a": (10, 0.90), "b": (20, 0.95), "c": (30, 0.94), "d": (40, 0.97), "e": (40, 0.96)}
    found = answer(nets)
    expect_equal(sorted(found), ["a", "b", "d"], f"the front of {nets}")
    expect_equal(sorted(answer({"only": (5, 0.5)})), ["only"], "the front of a single net")
    expect_equal(sorted(answer({"x": (9, 0.9), "y": (3, 0.9)})), ["y"], "equal accuracy, unequal cost")  # fmt: skip


def test_standard_error(answer) -> None:
    for accuracy, images in ((0.99, 10_000), (0.9, 360)):
        expected = math.sqrt(accuracy * (1 - accuracy) / images)
        where = f"accuracy {accuracy} on {images} images"
        expect_equal(float(answer(accuracy, images)), expected, where)


EXERCISES = [
    Exercise(
        name="mean_and_spread",
        statement="""\
The same net, trained with several seeds, gives several accuracies.
Return their mean and their sample standard deviation (the one that divides by n - 1).""",
        skeleton="def mean_and_spread(accuracies):\n    return ...",
        answer="mean_and_spread",
        lines=3,
        test=test_mean_and_spread,
        hints=(
            "Average the squared distances from the mean, but divide by n - 1; then take the root.",
            "pandas.Series(accuracies).std() divides by n - 1; numpy's std divides by n unless told.",
        ),
        solution="""\
def mean_and_spread(accuracies):
    mean = sum(accuracies) / len(accuracies)
    squares = sum((a - mean) ** 2 for a in accuracies)
    return mean, (squares / (len(accuracies) - 1)) ** 0.5""",
        wrong=(
            """\
def mean_and_spread(accuracies):
    mean = sum(accuracies) / len(accuracies)
    return mean, (sum((a - mean) ** 2 for a in accuracies) / len(accuracies)) ** 0.5""",
            """\
def mean_and_spread(accuracies):
    return sum(accuracies) / len(accuracies), max(accuracies) - min(accuracies)""",
        ),
    ),
    Exercise(
        name="standard_error",
        statement="""\
A net is right on a share `accuracy` of `images` test images.
Another draw of test images would give a slightly different share.
Return its standard error, sqrt(p (1 - p) / n).
Two nets closer than about twice that cannot be told apart by this test set.""",
        skeleton="def standard_error(accuracy, images):\n    return ...",
        answer="standard_error",
        lines=1,
        test=test_standard_error,
        hints=("p is the accuracy as a share, n the number of images.", "** 0.5 takes a root."),
        solution="""\
def standard_error(accuracy, images):
    return (accuracy * (1 - accuracy) / images) ** 0.5""",
        wrong=(
            "def standard_error(accuracy, images):\n    return accuracy * (1 - accuracy) / images",
            "def standard_error(accuracy, images):\n    return (accuracy / images) ** 0.5",
        ),
    ),
    Exercise(
        name="pareto",
        statement="""\
`nets` maps a name to (cost, accuracy).
A net is on the Pareto front when no other net is at least as accurate for at most the cost, and better in one of the two.
Return the names on the front.""",
        skeleton="def pareto(nets):\n    return ...",
        answer="pareto",
        lines=6,
        test=test_pareto,
        hints=(
            "For each net, ask whether any other one beats it.",
            "(c, a) is beaten by (cost, accuracy) if cost <= c and accuracy >= a and the pairs differ.",
        ),
        solution="""\
def pareto(nets):
    def beaten(net):
        cost, accuracy = net
        return any(c <= cost and a >= accuracy and (c, a) != net for c, a in nets.values())

    return [name for name, net in nets.items() if not beaten(net)]""",
        wrong=(
            "def pareto(nets):\n    return [max(nets, key=lambda name: nets[name][1])]",
            "def pareto(nets):\n    return [n for n, (c, a) in nets.items() if not any(x < c and b > a for x, b in nets.values())]",
        ),
    ),
]
