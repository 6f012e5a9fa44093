"""Exercises of 99_compare."""

import math

import torch

from common.exercises import Exercise
from common.exercises.answers.alike import Case


def mean_and_spread(accuracies):
    mean = sum(accuracies) / len(accuracies)
    squares = sum((a - mean) ** 2 for a in accuracies)
    return mean, (squares / (len(accuracies) - 1)) ** 0.5


def spread_by_n(accuracies):
    mean, spread = mean_and_spread(accuracies)
    return mean, spread * ((len(accuracies) - 1) / len(accuracies)) ** 0.5


def spread_as_range(accuracies):
    return mean_and_spread(accuracies)[0], max(accuracies) - min(accuracies)


def spread_of_the_mean(accuracies):
    mean, spread = mean_and_spread(accuracies)
    return mean, spread / len(accuracies) ** 0.5


def variance(accuracies):
    mean, spread = mean_and_spread(accuracies)
    return mean, spread**2


def median(accuracies):
    middle = torch.tensor(list(accuracies), dtype=torch.float64).quantile(0.5).item()
    return middle, mean_and_spread(accuracies)[1]


def images_needed(accuracy, error):
    from math import ceil

    return ceil(accuracy * (1 - accuracy) / error**2)


def paired_error(right_a, right_b):
    n = len(right_a)
    only_a = sum(bool(a) and not b for a, b in zip(right_a, right_b, strict=True))
    only_b = sum(bool(b) and not a for a, b in zip(right_a, right_b, strict=True))
    difference = (only_a - only_b) / n
    return difference, ((only_a + only_b) / n - difference**2) ** 0.5 / n**0.5


def unpaired_error(right_a, right_b):
    n = len(right_a)
    p, q = (sum(bool(v) for v in right) / n for right in (right_a, right_b))
    return p - q, ((p * (1 - p) + q * (1 - q)) / n) ** 0.5


def error_of_the_first(right_a, right_b):
    n = len(right_a)
    p, q = (sum(bool(v) for v in right) / n for right in (right_a, right_b))
    return p - q, (p * (1 - p) / n) ** 0.5


def spread_of_differences(right_a, right_b):
    difference, error = paired_error(right_a, right_b)
    return difference, error * len(right_a) ** 0.5


def signless(right_a, right_b):
    difference, error = paired_error(right_a, right_b)
    return abs(difference), error


def pareto(nets):
    def beaten(net):
        cost, accuracy = net
        return any(c <= cost and a >= accuracy and (c, a) != net for c, a in nets.values())

    return [name for name, net in nets.items() if not beaten(net)]


def only_the_best(nets):
    return [max(nets, key=lambda name: nets[name][1])]


def beaten_in_both(nets):
    def beaten(net):
        return any(c < net[0] and a > net[1] for c, a in nets.values())

    return [name for name, net in nets.items() if not beaten(net)]


def neighbours_only(nets):
    front, names = [], sorted(nets, key=lambda name: nets[name])
    for before, name in zip([None, *names], names, strict=False):
        if before is None or nets[name][1] > nets[before][1]:
            front.append(name)
    return front


def one_of_equals(nets):
    front = pareto(nets)
    return [n for i, n in enumerate(front) if nets[n] not in [nets[m] for m in front[:i]]]


def beaten_ones(nets):
    return [name for name in nets if name not in pareto(nets)]


def front_facts(answer, nets):
    """The names on a front, whatever their order and however they are kept."""
    before = dict(nets)
    return {"the names": sorted(map(str, answer(nets))), "the nets stay": nets == before}


def best_of_twenty():
    return 91.8


def measure_best_of_twenty():
    torch.manual_seed(0)
    seeds = torch.full((500, 20, 1000), 0.9).bernoulli().mean(dim=2)  # 500 times twenty nets
    return 100 * seeds.amax(dim=1).mean().item()


def honest_score(runs):
    return max(runs, key=lambda run: run["validation"])["test"]


def honest_score_too_good(runs):
    return max(runs, key=lambda run: run["test"])["test"]


def score_of_validation(runs):
    return max(run["validation"] for run in runs)


def mean_test_score(runs):
    return sum(run["test"] for run in runs) / len(runs)


def last_score(runs):
    return runs[-1]["test"]


def worst_score(runs):
    return min(runs, key=lambda run: run["validation"])["test"]


def three_runs(*pairs):
    """Runs with these validation and test accuracies."""
    return ([{"validation": v, "test": t, "lr": 0.1 / i} for i, (v, t) in enumerate(pairs, 1)],)


EXERCISES = [
    Exercise(
        solution=mean_and_spread,
        statement="""\
The same net, trained with several seeds, gives several accuracies.
Return two numbers: their mean, and their sample standard deviation, which divides by n - 1.""",
        hints=(
            "Average the squared distances from the mean, but divide by n - 1; then take the root.",
            "pd.Series(accuracies).std() divides by n - 1; numpy's std divides by n unless told.",
        ),
        cases=lambda: (
            Case(([0.991, 0.989, 0.993, 0.97],)),
            Case(([0.9, 0.8],)),
            Case(([0.5, 0.6, 0.61, 0.2, 0.9],)),
        ),
        mistakes=(
            (spread_by_n, "You divide by n; the sample standard deviation divides by n - 1."),
            (spread_as_range, "That is the distance from the worst to the best."),
            (spread_of_the_mean, "That is the error of the mean; the spread of one run was asked."),
            (variance, "That is the variance: its root is missing."),
            (median, "That is the median, not the mean."),
            (lambda accuracies: mean_and_spread(accuracies)[::-1], "The mean comes first."),
            (lambda accuracies: mean_and_spread(accuracies)[0], "The spread is missing."),
        ),
    ),
    Exercise(
        solution=images_needed,
        statement="""\
A net is right on a share `accuracy` of all photographs.
How many test images does it take until the standard error of a measured accuracy is at most \
`error`?
Both are shares, such as 0.9 and 0.003.
Return the smallest whole number of images.""",
        hints=(
            "The standard error is the root of p (1 - p) / n. Solve for n.",
            "n is at least p (1 - p) / error²; ceil, from the module math, rounds up.",
        ),
        cases=lambda: (
            Case((0.9, 0.007)),
            Case((0.5, 0.03)),
            Case((0.99, 0.0019)),
            Case((0.5, 1 / 32)),  # 256 exactly, whatever the order of computing
        ),
        mistakes=(
            (
                lambda p, error: images_needed(p, error**0.5),
                "The error is a root: square it, or n is far too small.",
            ),
            (lambda p, error: math.ceil(p / error**2), "1 - p is missing."),
            (
                lambda p, error: images_needed(p, error) - 1,
                "With the part behind the point cut off, the error is still too large.",
            ),
            (
                lambda p, error: math.ceil((p * (1 - p)) ** 0.5 / error),
                "The root is over n too, so n grows with the square.",
            ),
            (
                lambda p, error: images_needed(p, error / 2),
                "That is for two standard errors; one was asked for.",
            ),
            (lambda p, error: p * (1 - p) / error**2, "There are no parts of images: round up."),
        ),
    ),
    Exercise(
        solution=paired_error,
        statement="""\
Two nets are judged on the *same* n images, so the easy ones help both, and say nothing.
`right_a` and `right_b` are lists of n trues and falses: whether each net was right.
Give each image the difference, 1 where only a is right, -1 where only b is, and else 0.
Return two numbers: the mean of these differences, and its standard error, which is their standard \
deviation (dividing by n) over the root of n.""",
        hints=(
            "Each difference is 1 where only A is right, -1 where only B is, and else 0.",
            "Their mean, and their standard deviation (of n, not n - 1) over the root of n.",
        ),
        cases=lambda: (
            Case(([True] * 6 + [False] * 4, [True] * 4 + [False] * 4 + [True] * 2)),
            Case(([True, False, True, False, True, True, True], [False, False, True] * 2 + [True])),
            Case(([False] * 5 + [True] * 3, [True] * 7 + [False])),
        ),
        mistakes=(
            (
                unpaired_error,
                "That is the error for two different sets of images; these are the same.",
            ),
            (error_of_the_first, "That is the error of one net alone."),
            (
                spread_of_differences,
                "That is the spread of one difference: divide by the root of n.",
            ),
            (
                lambda right_a, right_b: paired_error(right_b, right_a),
                "a and b have changed places: the difference has the wrong sign.",
            ),
            (signless, "The sign is lost: it says which net is better."),
            (
                lambda right_a, right_b: paired_error(right_a, right_b)[0],
                "The standard error is missing.",
            ),
        ),
    ),
    Exercise(
        solution=pareto,
        statement="""\
`nets` maps a name to (cost, accuracy).
A net is on the Pareto front when no other net is at least as accurate for at most the cost, and \
better in one of the two.
Nets that are equal in both do not beat each other.
Return the names on the front, in any order.""",
        hints=(
            "For each net, ask whether any other one beats it.",
            "(c, a) is beaten by (cost, accuracy) if cost <= c and accuracy >= a and the pairs "
            "differ.",
        ),
        facts=front_facts,
        cases=lambda: (
            Case(
                (
                    {
                        "a": (10, 0.90),
                        "b": (20, 0.95),
                        "c": (30, 0.93),
                        "d": (32, 0.94),
                        "e": (40, 0.97),
                        "f": (40, 0.96),
                    },
                )
            ),
            Case(({"only": (5, 0.5)},)),
            Case(({"dear": (7, 0.2), "cheap": (1, 0.0)},)),
            Case(({"x": (9, 0.9), "y": (3, 0.9)},)),
            Case(({"one": (3, 0.9), "two": (3, float("0.9")), "three": (2, 0.1)},)),
        ),
        mistakes=(
            (only_the_best, "You return the most accurate net; cheaper ones are on the front too."),
            (
                beaten_in_both,
                "A net is beaten also by one that is equal in one of the two and better in the "
                "other.",
            ),
            (
                neighbours_only,
                "You compare each net with its neighbour; any other net may beat it.",
            ),
            (one_of_equals, "Nets that are equal in both do not beat each other: keep all."),
            (beaten_ones, "Those are the nets that are beaten."),
            (lambda nets: list(nets), "No net has been left out."),
        ),
    ),
    Exercise(
        solution=best_of_twenty,
        statement="""\
**Predict before you run.**
Twenty equally good nets are right with probability 0.9 on each of 1,000 test images.
Somebody publishes the best of the twenty accuracies.
What is it on average, in per cent?
Return a number; the check then throws the dice.""",
        hints=(
            "One standard error is the root of 0.9 · 0.1 / 1,000: 0.95 points.",
            "The best of twenty lies nearly two standard errors above the mean.",
        ),
        experiment=measure_best_of_twenty,
        cases=lambda: (Case(tolerance=0.45),),
        because="The best of twenty lies nearly two standard errors above the truth: 1.8 points "
        "that are luck. Report all seeds, or choose by validation.",
        mistakes=(
            (lambda: 90, "That is the average net; the best of twenty has had luck."),
            (lambda: 90.95, "That is one standard error; the best of twenty lies further out."),
            (lambda: 100, "So much luck there is not: one standard error is 0.95 points."),
        ),
    ),
    Exercise(
        solution=honest_score,
        statement="""\
**Find the fault.**
A net is trained with many settings, and the report's test accuracy is too good to be true: \
nobody who repeats the best setting gets it.
`runs` is a list of dictionaries with "validation" and "test" accuracies.
The function below returns what the report prints; mend it.
Return the test accuracy of the run that would be chosen without looking at the test images.""",
        hints=(
            "Which of the two accuracies may be used for choosing?",
            "Choose the run by its validation accuracy, then read its test accuracy.",
        ),
        broken=honest_score_too_good,
        cases=lambda: (
            Case(three_runs((0.90, 0.89), (0.92, 0.90), (0.91, 0.93))),
            Case(three_runs((0.80, 0.85), (0.70, 0.90))),
            Case(three_runs((0.5, 0.4), (0.9, 0.8), (0.6, 0.85), (0.7, 0.7))),
            Case(three_runs((0.9, 0.81), (0.9, 0.9), (0.9, 0.81))),  # a tie: no peeking either
            Case(three_runs((0.9012, 0.8934), (0.9049, 0.9018), (0.9044, 0.9077))),
        ),
        mistakes=(
            (
                score_of_validation,
                "That is the validation accuracy; it was used for choosing, so it flatters too.",
            ),
            (mean_test_score, "That is the mean of all runs; one of them was chosen."),
            (last_score, "The last run is not the one that would be chosen."),
            (worst_score, "You choose the run with the worst validation accuracy."),
        ),
    ),
]
