"""The checks before a training: what they say, what they refuse, that the net stays as it was."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from common.advice import can_it_learn


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Twenty images of noise in four classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 1, 6, 6, generator=generator), torch.arange(20) % 4


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


def test_a_net_that_works_guesses_and_then_learns_by_heart(capsys: pytest.CaptureFixture):
    can_it_learn(small(), *batch(), lr=1e-2)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("loss before training 1.")
    assert first.endswith(f"ln 4 = {math.log(4):.2f}")
    steps, loss = re.match(r"after (\d+) steps on the same 20 images: loss (0\.\d+)", last).groups()
    assert 1 < int(steps) < 30
    assert 0.05 < float(loss) < 0.1  # it ends where the batch is learned


def test_a_net_that_needs_hundreds_of_steps_works_too(capsys: pytest.CaptureFixture):
    can_it_learn(small(), *batch(), lr=4e-4)
    assert 100 < int(capsys.readouterr().out.splitlines()[1].split()[1]) < 500


@pytest.mark.parametrize("training", [True, False])
def test_the_net_is_unchanged(training: bool):
    net = small().train(training)
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        can_it_learn(net, *batch(), lr=1e-2)
    assert net.training is training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


class Several(nn.Module):
    """Returns a second classifier's logits beside the main ones in training."""

    def __init__(self):
        super().__init__()
        self.net = small()

    def forward(self, x):
        return (self.net(x), torch.zeros(len(x), 4)) if self.training else self.net(x)


def test_of_several_classifiers_the_main_one_is_asked():
    can_it_learn(Several(), *batch(), lr=1e-2)


def test_a_net_that_does_not_guess_at_first_is_refused():
    net = small()
    nn.init.constant_(net[-1].bias, 0.0)
    nn.init.normal_(net[-1].weight, std=3.0)
    with pytest.raises(AssertionError, match="untrained net should guess"):
        can_it_learn(net, *batch())


@pytest.mark.parametrize("lr", [1e-9, 1e9], ids=["stands still", "flies off"])
def test_a_net_that_learns_nothing_is_refused(lr: float):
    with pytest.raises(AssertionError, match="learns 20 images by heart"):
        can_it_learn(small(), *batch(), lr=lr)
