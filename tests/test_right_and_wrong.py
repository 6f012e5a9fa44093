"""Which test images are shown: right answers, and the mistakes that cost most."""

from types import SimpleNamespace

import torch

from common.look import right_and_wrong, worst
from common.train import Evaluation


def judged(predictions: list[int], losses: list[float]) -> tuple[Evaluation, SimpleNamespace]:
    """An evaluation of images that are all of class 0, and their data set."""
    test = Evaluation(0.0, 0.0, torch.zeros(2, 2), torch.tensor(predictions), torch.tensor(losses))
    labels = torch.zeros(len(predictions), dtype=torch.int64)
    return test, SimpleNamespace(test=SimpleNamespace(labels=labels))


def test_right_answers_come_first_then_the_worst_mistakes():
    test, data = judged([1, 0, 1, 0, 0, 1], [2.0, 0.1, 9.0, 0.3, 0.2, 5.0])
    assert worst(test, data, 2).tolist() == [2, 5]
    assert right_and_wrong(test, data, 2).tolist() == [1, 3, 2, 5]
    assert right_and_wrong(test, data).tolist() == [1, 3, 4, 2, 5, 0]


def test_where_nothing_is_wrong_only_right_answers_are_shown():
    assert right_and_wrong(*judged([0, 0], [0.1, 0.2])).tolist() == [0, 1]
    assert right_and_wrong(*judged([1, 1], [0.1, 0.2])).tolist() == [1, 0]
