"""Twelve common faults and twelve healthy, slow trainings: what the diagnosis says of each.

A fault is named with what to try, or it is not claimed: a cause that is not there is never named.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu

from common import advice, data, zoo

# How the diagnosis words each cause, with what to try.
CAUSES = {
    "softmax": "ends in a softmax",
    "frozen": "are frozen",
    "dead": "are dead",
    "saturated": "are saturated",
    "vanishing": "gradient vanishes",
    "not normalised": "normalise them",
    "one class": "It answers class",
    "rate or labels": "Try a learning rate ten times smaller and one ten times larger, more epochs",
}


class Training(NamedTuple):
    """A net, a rate, and what is special; it is trained by the loop that a student would write."""

    net: Callable[[], nn.Module]
    lr: float = 0.02
    optimizer: type = torch.optim.SGD
    labels: Callable[[torch.Tensor], torch.Tensor] = lambda y: y
    images: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    zero_grad: bool = True
    evaluating: bool = False
    settings: dict = {}  # noqa: RUF012  # of the optimizer; never changed


def notes_after(training: Training) -> list[str]:
    digits = data.load("digits")
    torch.manual_seed(0)
    net = training.net()
    batches = data.Batches(digits, "train", 32, size=28, seed=0, device="cpu")
    drawn = itertools.islice(itertools.chain.from_iterable(map(batches.epoch, range(9))), 80)
    labels = training.labels(digits.train.labels)
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = weights and training.optimizer(weights, lr=training.lr, **training.settings)
    losses = []
    for x, y in drawn:
        x, y = training.images(x), training.labels(y)
        net.train(not training.evaluating)
        loss = cross_entropy(net(x), y)
        losses.append(loss.item())
        if weights:
            if training.zero_grad:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return advice.diagnose(net, losses, (x, y), labels)


def lenet(activation: type = nn.ReLU, classes: int = 10) -> nn.Module:
    return zoo.build("lenet5", 1, classes, activation=activation)


def lenet_bn() -> nn.Module:
    return nn.Sequential(nn.UpsamplingNearest2d(32), zoo.build("lenet5_bn"))


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    net = lenet()
    with torch.no_grad():
        change(net)
    return net


def dies(net: nn.Module) -> None:
    for layer in (net.conv2, net.fc1):
        layer.bias.fill_(-100)


def answers_three(net: nn.Module) -> None:
    net.fc3.weight.mul_(0.01)
    net.fc3.bias.copy_(torch.eye(10)[3])


class Functions(nn.Module):
    """Two layers with ReLU as a function, of which no unit ever fires."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(784, 50), nn.Linear(50, 10)
        nn.init.constant_(self.first.bias, -100)

    def forward(self, x):
        return self.last(relu(self.first(x.flatten(1))))


def ninety_to_ten(y: torch.Tensor) -> torch.Tensor:
    return (y == 0).long()


def mixed_up(y: torch.Tensor) -> torch.Tensor:
    """Images and labels no longer belong together: each batch's labels moved by one place."""
    return y.roll(1)


FAULTS = {
    "softmax before the loss": (
        Training(lambda: nn.Sequential(lenet(), nn.Softmax(1))), {"softmax"}),
    "labels off by one place": (Training(lenet, labels=mixed_up), {"one class", "rate or labels"}),
    "zero_grad forgotten": (Training(lenet, lr=1e-3, zero_grad=False), set()),
    "evaluation mode left on": (Training(lenet_bn, evaluating=True), set()),
    "a frozen net": (Training(lambda: lenet().requires_grad_(False)), {"frozen"}),
    "dead ReLU modules": (Training(lambda: changed(dies)), {"dead"}),
    "dead ReLU functions": (Training(Functions), {"dead"}),
    "a rate too high for Adam": (Training(lenet, 1.0, torch.optim.Adam), {"dead"}),
    "a rate far too low": (Training(lenet, 1e-7), {"one class", "rate or labels"}),
    "images not normalised": (
        Training(lenet, 1e-7, images=lambda x: 255 * (x + 1)), {"not normalised"}),
    "one class of ten": (
        Training(lambda: changed(answers_three), 1e-6), {"one class", "rate or labels"}),
    "classes 90 to 10, guessed": (
        Training(lambda: lenet(classes=2), 1e-5, labels=ninety_to_ten),
        {"one class", "rate or labels"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_or_not_claimed(fault):
    training, expected = FAULTS[fault]
    notes = notes_after(training)
    named = {cause for cause, words in CAUSES.items() for note in notes if words in note}
    assert named == expected, notes


ADAM = torch.optim.Adam
HEALTHY = {
    "SGD, small rate": Training(lenet, 0.01, settings={"momentum": 0.9}),
    "SGD, very small rate": Training(lenet_bn, 2e-3),
    "Adam, small rate": Training(lenet, 1e-4, ADAM),
    "batch normalisation, Adam": Training(lenet_bn, 1e-4, ADAM),
    "tanh": Training(lambda: lenet(nn.Tanh), 0.02),
    "sigmoid and Adam": Training(lambda: lenet(nn.Sigmoid), 5e-3, ADAM),
    "strong weight decay": Training(lenet_bn, 0.01, settings={"weight_decay": 0.05}),
    "ELU": Training(lambda: lenet(nn.ELU), 0.01),
    "labels with other names": Training(lenet_bn, 0.01, labels=lambda y: (y + 1) % 10),
    "two classes": Training(lenet_bn, 5e-3, labels=lambda y: y % 2),
    "classes 90 to 10, learned": Training(lenet_bn, 5e-3, labels=ninety_to_ten),
    "noisy images": Training(lenet_bn, 0.01, images=lambda x: x + torch.randn_like(x)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_is_left_in_peace(name):
    assert notes_after(HEALTHY[name]) == []


def test_loss_not_finite_is_no_reason_to_guess():
    x, y = torch.randn(8, 1, 28, 28), torch.arange(8)
    assert advice.diagnose(lenet(), [float("nan")] * 60, (x, y), torch.arange(10)) == []


def test_each_module_keeps_its_own_mode():
    net = lenet_bn().train()
    net[1].norm1.eval()  # frozen by its owner
    advice.diagnose(net, [2.3] * 60, (torch.randn(8, 1, 28, 28), torch.arange(8)), torch.arange(10))
    assert [m.training for m in (net, net[1].norm1, net[1].norm2)] == [True, False, True]
