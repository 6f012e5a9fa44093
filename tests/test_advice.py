"""The words for a net that does not learn, and silence for one that does."""

import math

import pytest
import torch
from torch import nn

from common import data, machine, sentinel, zoo
from common.train import Config, fit

GUESS = [math.log(10)] * 20  # the losses of a net that guesses among ten classes


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 28, 28, generator=generator)
    return x, torch.randint(0, 10, (64,), generator=generator)


def lenet(**options):
    torch.manual_seed(0)
    return zoo.build("lenet5", **options)


def test_a_learning_rate_of_a_thousand(digits, capsys):
    config = Config(epochs=3, lr=1e3, optimizer="sgd", image_size=28, train_images=500)
    history = fit(lenet(activation=nn.ReLU), digits, config, show=False)
    (note,) = history.notes
    assert "blown up" in note
    assert "learning rate ten times smaller" in note
    assert len(history.epochs) == 1
    assert note in capsys.readouterr().err  # told at once, not only noted


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_bad_batch_is_named(batch, value):
    losses = [2.3, 9.0, value, math.nan]
    (note,) = sentinel.diagnose(lenet(), losses, batch, 10)
    assert f"became {value} in batch 3" in note


def test_dead_rectifiers(batch):
    model = lenet(activation=nn.ReLU)
    with torch.no_grad():
        model.conv2.bias.fill_(-100)
    (note,) = sentinel.diagnose(model, GUESS, batch, 10)
    assert "100% of the units of act2 are dead" in note
    assert "act1" not in note
    assert "2.303" in note


def test_dead_rectifiers_in_training(digits):
    model = lenet(activation=nn.ReLU)
    with torch.no_grad():
        for name in ("conv1", "conv2", "fc1", "fc2"):
            model.get_submodule(name).bias.fill_(-100)
    history = fit(model, digits, Config(epochs=2, image_size=28, train_images=500), show=False)
    (note,) = history.notes  # said once, not after every epoch
    assert all(f"{name} are dead" in note for name in ("act1", "act2", "act3", "act4"))


def test_a_unit_that_fires_for_one_image_is_not_dead(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10))
    x, _ = batch
    with torch.no_grad():  # each unit fires for the image whose biggest value it has, and no other
        model[1].weight.copy_(x[:30].flatten(1))
        model[1].bias.fill_(-400)
    assert (model[2](model[1](x.flatten(1))) > 0).float().mean() < 0.05
    assert sentinel.dead_layers(model, x) == []


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
def test_saturated_units(batch, activation):
    model = lenet(activation=activation)
    assert sentinel.dead_layers(model, batch[0]) == []
    with torch.no_grad():
        model.fc1.weight.mul_(1e4)
    (note,) = sentinel.dead_layers(model, batch[0])
    assert "of act3 are saturated" in note


def deep(activation, depth=8):
    """Convolutions of one size, one after the other, and a classifier."""
    torch.manual_seed(0)
    hidden = [(nn.Conv2d(8, 8, 3, padding=1), activation()) for _ in range(depth)]
    body = [layer for pair in hidden for layer in pair]
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=4), *body, nn.Flatten(), nn.Linear(392, 10))


def test_vanishing_gradient(batch):
    (note,) = sentinel.diagnose(deep(nn.Sigmoid), GUESS, batch, 10)
    assert "gradient vanishes" in note
    assert "at 0.weight" in note
    assert "18.weight" in note
    assert "ReLU" in note


def test_gradients_that_do_not_vanish(batch):
    model = deep(nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    assert sentinel.vanishing_gradient(model, batch) == []
    assert sentinel.vanishing_gradient(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), batch) == []


def test_random_labels_stay_at_the_loss_of_guessing(digits):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, digits.train.labels.shape, generator=generator)
    noise = data.ImageSet(
        "noise", "made here", data.Images(digits.train.images, labels), digits.test, digits.classes
    )
    history = fit(lenet(activation=nn.ReLU), noise, Config(epochs=2, image_size=28), show=False)
    (note,) = history.notes
    assert "ln(10) = 2.303" in note
    assert "labels and images still belong together" in note
    assert "dead" not in note
    assert "vanishes" not in note


def test_silence_for_a_net_that_learns(digits, capsys):
    config = Config(epochs=3, batch_size=32, lr=3e-3, image_size=28)
    history = fit(lenet(activation=nn.ReLU), digits, config, show=False)
    assert history.notes == []
    assert capsys.readouterr().err == ""


def test_silence_below_the_loss_of_guessing(batch):
    model = lenet(activation=nn.ReLU)
    falling = [2.3] * 10 + [2.0]
    assert sentinel.diagnose(model, falling, batch, 10) == []  # the end of the epoch counts
    assert sentinel.diagnose(model, falling, batch, 7) != []  # ln 7 = 1.95


def test_the_look_leaves_no_trace(batch):
    """Mode, hooks, gradients and running statistics are as before."""
    torch.manual_seed(0)
    model = zoo.build("lenet5_bn").train()
    x, y = torch.randn(8, 1, 32, 32), batch[1][:8]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert sentinel.diagnose(model, GUESS, (x, y), 10) != []
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_note_in_a_notebook_is_escaped(monkeypatch):
    shown = []
    monkeypatch.setattr(machine, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    machine.notice("a < b")
    assert "a &lt; b" in shown[0]["text/html"]
    assert shown[0]["text/plain"] == "a < b"
