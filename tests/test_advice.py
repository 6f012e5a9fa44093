"""The words for a net that does not learn, and silence for one that does."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from common import advice, data, machine, train, zoo
from common.config import Config
from common.train import fit

GUESS = [math.log(10)] * 60  # the losses of a net that guesses among ten classes

LABELS = torch.arange(10).repeat(100)  # ten classes of one size


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
    assert "no finite number any more in epoch 1" in note
    assert "learning rate ten times smaller" in note
    assert history.epochs == []
    assert note in capsys.readouterr().err  # told at once, not only noted


def test_dead_rectifiers(batch):
    model = lenet(activation=nn.ReLU)
    with torch.no_grad():
        model.conv2.bias.fill_(-100)
    (note,) = advice.diagnose(model, GUESS, batch, LABELS)
    assert "100% of the units of act2 are dead" in note
    assert "act1" not in note
    assert "2.303" in note


@pytest.mark.parametrize(
    "rectify",
    [lambda x: x.clamp(min=0), lambda x: x.clamp(0), lambda x: torch.clamp_min(x, 0), F.relu],
)
def test_dead_rectifiers_are_found_whatever_makes_them(batch, rectify):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(784, 20), nn.Linear(20, 10)
            nn.init.constant_(self.first.bias, -1000)

        def forward(self, x):
            return self.last(rectify(self.first(x.flatten(1))))

    (note,) = advice.diagnose(Net(), GUESS, batch, LABELS)
    assert "100% of the units of first are dead" in note


def test_a_clamp_on_both_sides_is_no_rectifier(batch):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.constant_(net[1].bias, -100)
    net.register_forward_hook(lambda _, __, y: y.clamp(-200, 200))
    assert all("dead" not in note for note in advice.diagnose(net, GUESS, batch, LABELS))


def test_a_sigmoid_at_the_end(batch):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Sigmoid())
    (note,) = advice.diagnose(net, [2.0, 1.6] * 30, batch, LABELS)
    assert "ends in a sigmoid" in note
    assert advice.diagnose(net[:2], [2.0, 1.6] * 30, batch, LABELS) == []


def test_dead_rectifiers_in_training(digits):
    model = lenet(activation=nn.ReLU)
    with torch.no_grad():
        for name in ("conv1", "conv2", "fc1", "fc2"):
            model.get_submodule(name).bias.fill_(-100)
    history = fit(
        model, digits, Config(epochs=2, image_size=28, batch_size=16, train_images=800), show=False
    )
    (note,) = history.notes  # said once, not after every epoch
    assert all(f"{name} are dead" in note for name in ("act1", "act2", "act3", "act4"))


def test_a_collapse_after_the_note_is_said_too(digits, monkeypatch):
    """Once until the net has learned: then again, if it loses what it knew."""
    times = itertools.count()
    monkeypatch.setattr(advice, "diagnose", lambda *_: [f"It does not learn, {next(times)}."])
    losses = iter([2.3, 2.3, 1.1, 2.3, 2.3])
    config = Config(epochs=5, image_size=28, train_images=64)
    monkeypatch.setattr(train, "train_epoch", lambda t: row_of(t, next(losses)))
    history = fit(lenet(), digits, config, show=False)
    assert history.notes == [f"After epoch {n}: It does not learn, {n // 2}." for n in (1, 3)]


def row_of(training, loss: float) -> dict:
    training.run.batch_losses.append(loss)
    epoch = len(training.run.epochs) + 1
    return {"epoch": epoch, "train_loss": loss, "train_accuracy": 0.1, "lr": 0.1}


def test_a_unit_that_fires_for_one_image_is_not_dead(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 10))
    x, _ = batch
    with torch.no_grad():  # each unit fires for the image whose biggest value it has, and no other
        model[1].weight.copy_(x[:30].flatten(1))
        model[1].bias.fill_(-400)
    assert (model[2](model[1](x.flatten(1))) > 0).float().mean() < 0.05
    assert advice.silent_layers(model, x) == []


def test_a_net_that_changes_the_number_format_on_the_way_is_looked_at(batch):
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(784, 10).double()

        def forward(self, x):
            return self.fc(x.flatten(1).to(dtype=torch.float64)).relu().float()

    net = Doubled()
    assert advice.silent_layers(net, batch[0]) == []
    nn.init.constant_(net.fc.bias, -1e3)
    assert "of fc are dead" in advice.silent_layers(net, batch[0])[0]


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
def test_saturated_units(batch, activation):
    model = lenet(activation=activation)
    assert advice.silent_layers(model, batch[0]) == []
    with torch.no_grad():
        model.fc1.weight.mul_(1e4)
    (note,) = advice.silent_layers(model, batch[0])
    assert "of act3 are saturated" in note


def deep(activation, depth=8):
    """Convolutions of one size, one after the other, and a classifier."""
    torch.manual_seed(0)
    hidden = [(nn.Conv2d(8, 8, 3, padding=1), activation()) for _ in range(depth)]
    body = [layer for pair in hidden for layer in pair]
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=4), *body, nn.Flatten(), nn.Linear(392, 10))


@pytest.mark.parametrize(("share", "told"), [(0.95, True), (0.7, False)])
def test_a_layer_is_saturated_where_nearly_all_its_values_are(batch, share, told):
    x, _ = batch
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 100), nn.Sigmoid())
    nn.init.zeros_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    net[1].bias.data[: round(100 * share)] = 50.0
    assert bool(advice.silent_layers(net, x)) is told


class Fading(nn.Module):
    """Two linear layers, of which the first one's gradient is multiplied by `factor`."""

    def __init__(self, pixels, factor):
        super().__init__()
        self.first, self.last, self.factor = nn.Linear(pixels, 50), nn.Linear(50, 10), factor

    def forward(self, x):
        y = self.first(x.flatten(1))
        return self.last(y.detach() + self.factor * (y - y.detach()))


@pytest.mark.parametrize(("ratio", "told"), [(3e-4, True), (3e-3, False)])
def test_a_gradient_vanishes_below_a_thousandth(batch, ratio, told):
    x, y = batch
    torch.manual_seed(0)
    net = Fading(x[0].numel(), 1.0)
    cross_entropy(net(x), y).backward()
    sizes = [layer.weight.grad.square().mean().sqrt() for layer in (net.first, net.last)]
    net.factor = (ratio * sizes[1] / sizes[0]).item()
    assert bool(advice.vanishing_gradient(net, x, y)) is told


def test_one_class_has_nothing_to_be_learned(batch):
    x, y = batch
    losses = [1e-9] * 60
    assert (
        advice.diagnose(
            nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 2)), losses, (x, y * 0), y * 0
        )
        == []
    )


class Guesses(nn.Module):
    """A net that cannot learn, and does in evaluation what `how` says."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(64, 16), nn.Linear(16, 10), how

    def forward(self, x):
        y = self.b(self.a(x.flatten(1)).clamp(min=torch.zeros(16, device=x.device)))
        return y if self.training else self.how(y)


def raises(_):
    raise RuntimeError("not in this mode")


def by_way_of_numpy(y):
    return torch.from_numpy(y.detach().cpu().float().numpy()).to(y.device)


@pytest.mark.parametrize("how", [torch.detach, by_way_of_numpy])
def test_advice_never_ends_a_training(digits, how):
    config = Config(epochs=2, lr=1e-12, batch_size=32)
    run = fit(Guesses(how), digits, config, show=False)
    assert run.ended == "done"
    assert "not learning yet" in run.notes[0]


@pytest.mark.parametrize(("mean", "stuck"), [(2.31, True), (2.19, False)])
def test_a_noisy_loss_a_little_below_guessing_is_not_stuck(mean, stuck):
    """Though by chance alone a mean of so few could be there."""
    losses = [mean + noise for noise in (0.3, -0.3) for _ in range(10)]
    losses = [loss for pair in zip(losses[:10], losses[10:], strict=True) for loss in pair]
    assert advice.is_stuck(losses, math.log(10)) is stuck


def test_advice_that_fails_is_none(digits, monkeypatch):
    monkeypatch.setattr(advice, "findings", raises)
    assert fit(Guesses(torch.detach), digits, Config(epochs=1), show=False).notes == []


def test_a_softmax_in_evaluation_alone_is_no_fault(digits):
    class Net(nn.Sequential):
        def forward(self, x):
            y = super().forward(x)
            return y if self.training else y.softmax(1)

    torch.manual_seed(0)
    net = Net(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    run = fit(net, digits, Config(epochs=6, lr=1e-2, batch_size=32), show=False)
    assert run.epochs[-1]["train_loss"] < 1
    assert run.notes == []


def test_a_softmax_is_told_once(digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))
    run = fit(net, digits, Config(epochs=6, lr=1e-2, batch_size=32), show=False)
    assert [note[:37] for note in run.notes] == ["After epoch 1: The net ends in a soft"]


@pytest.mark.parametrize(
    ("activation", "told"),
    [
        (nn.ReLU6(), True), (nn.Threshold(0, 0), True), (nn.Hardtanh(0, 1), True),
        (nn.Hardtanh(), False), (nn.Threshold(0, -1), False), (nn.Threshold(-1, 0), False),
    ],
)  # fmt: skip
def test_only_a_relu_dies(batch, activation, told):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), activation)
    nn.init.constant_(net[1].bias, -0.9)
    nn.init.zeros_(net[1].weight)
    assert bool(advice.silent_layers(net, batch[0])) is told


def test_a_layer_that_is_run_for_nothing_has_no_gradient_that_vanishes(batch):
    class Unheard(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(784, 10), nn.Linear(784, 10)

        def forward(self, x):
            self.first(x.flatten(1))
            return self.last(x.flatten(1))

    (note,) = advice.vanishing_gradient(Unheard(), *batch)
    assert "0.0e+00 at first.weight" in note


def test_vanishing_gradient(batch):
    (note,) = advice.diagnose(deep(nn.Sigmoid), GUESS, batch, LABELS)
    assert "gradient vanishes" in note
    assert "at 0.weight" in note
    assert "18.weight" in note
    assert "ReLU" in note


def test_gradients_that_do_not_vanish(batch):
    model = deep(nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    assert advice.vanishing_gradient(model, *batch) == []
    assert advice.vanishing_gradient(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), *batch) == []


def test_random_labels_stay_at_the_loss_of_guessing(digits):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, digits.train.labels.shape, generator=generator)
    noise = data.ImageSet(
        "noise", "made here", data.Images(digits.train.images, labels), digits.test, digits.classes
    )
    history = fit(
        lenet(activation=nn.ReLU), noise, Config(epochs=3, image_size=28, batch_size=32), show=False
    )
    (note,) = history.notes
    assert "gives 2.30" in note
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
    below = [2.3] * 50 + [2.2] * 10
    assert advice.diagnose(model, below, batch, LABELS) == []
    assert advice.diagnose(model, GUESS, batch, LABELS) != []


def test_silence_while_the_loss_falls_and_while_little_is_known(batch):
    """LeNet with batch normalisation, healthy, after eight batches: 2.36 to 2.268."""
    model = lenet(activation=nn.ReLU)
    early = [2.36, 2.34, 2.33, 2.31, 2.30, 2.29, 2.28, 2.268]
    assert advice.diagnose(model, early, batch, LABELS) == []
    slow = [2.36 - 0.001 * i + 0.002 * (-1) ** i for i in range(60)]
    assert min(slow) > 2.29
    assert advice.diagnose(model, slow, batch, LABELS) == []


def test_classes_of_unlike_size_have_another_loss_of_guessing(batch):
    """Of 90 to 10, guessing costs 0.325: a loss of 0.33 has learned nothing, 0.2 has."""
    labels = torch.tensor([0] * 90 + [1] * 10)
    assert advice.entropy(labels) == pytest.approx(0.3251, abs=1e-4)
    model = lenet(activation=nn.ReLU, num_classes=2)
    x, y = batch[0], batch[1] % 2
    assert advice.diagnose(model, [0.33] * 60, (x, y), labels) != []
    assert advice.diagnose(model, [0.2] * 60, (x, y), labels) == []


def test_a_softmax_before_the_loss_is_named(batch):
    model = nn.Sequential(lenet(activation=nn.ReLU), nn.Softmax(1))
    (note,) = advice.diagnose(model, [2.0] * 60, batch, LABELS)
    assert "ends in a softmax" in note
    logs = nn.Sequential(lenet(activation=nn.ReLU), nn.LogSoftmax(1))  # does no harm
    assert advice.diagnose(logs, [2.0] * 60, batch, LABELS) == []


def test_images_that_are_not_normalised_are_named(batch):
    x, y = batch
    (note,) = advice.diagnose(lenet(activation=nn.ReLU), GUESS, (100 + 50 * x, y), LABELS)
    assert "normalise them" in note


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [(0, 1, False), (0.5, 0.3, False), (5, 1, True), (-5, 1, True), (0, 20, True), (0, 0.01, True)],
)
def test_images_are_normalised_where_both_mean_and_spread_are(mean, std, told):
    x = mean + std * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert bool(advice.unnormalised(x)) is told


def test_one_answer_for_all_is_named(batch):
    model = lenet(activation=nn.ReLU)
    with torch.no_grad():
        model.fc3.bias[7] = 50.0
    (note,) = advice.diagnose(model, [50.0] * 60, batch, LABELS)
    assert "answers class 7 for every image" in note


def test_tuples_in_evaluation_mode_do_not_end_a_training(digits):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = lenet()

        def forward(self, x):
            return self.net(x), self.net(x)

    run = fit(Pair(), digits, Config(epochs=1, image_size=28, train_images=100), show=False)
    assert run.ended == "done"


# -------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("could not create a primitive"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_tells_memory_from_other_errors(error, expected):
    assert advice.ran_out(error) == expected


@pytest.mark.parametrize("where", ["train_epoch", "validate"])
def test_running_out_of_memory_is_explained(digits, monkeypatch, where):
    def too_much(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("common.train." + where, too_much)
    config = Config(epochs=1, batch_size=64, image_size=28, train_images=128)
    with pytest.raises(MemoryError, match=r"Out of memory with batch_size=64 on the .*halve the"):
        fit(lenet(), digits, config, show=False)


def test_too_little_memory_before_the_first_batch_is_explained_and_other_errors_are_not():
    with pytest.raises(MemoryError, match=r"batch_size=64 on the cpu.*halve the"):  # noqa: SIM117
        with advice.memory_explained(64, "cpu"):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(RuntimeError, match=r"^another$"), advice.memory_explained(64, "cpu"):
        raise RuntimeError("another")


def test_a_net_too_large_for_two_images_is_no_net_that_does_not_fit_them(digits):
    class Large(nn.Linear):
        def forward(self, x):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(MemoryError, match="Out of memory"):
        fit(Large(64, 10), digits, Config(epochs=1), show=False)


def test_errors_name_the_layer(batch):
    model = lenet()
    with pytest.raises(ValueError, match=r"'conv1'.*\(64, 3, 28, 28\)"):  # noqa: SIM117
        with advice.told_by_layer(model, (64, 3, 28, 28)):
            model(torch.zeros(64, 3, 28, 28))


def test_the_look_leaves_no_trace(batch):
    """Mode, gradients and running statistics are as before."""
    torch.manual_seed(0)
    model = zoo.build("lenet5_bn").train()
    x, y = torch.randn(8, 1, 32, 32), batch[1][:8]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert advice.diagnose(model, GUESS, (x, y), LABELS) != []
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_note_in_a_notebook_is_escaped(monkeypatch):
    shown = []
    monkeypatch.setattr(machine, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    machine.notice("a < b")
    assert "a &lt; b" in shown[0]["text/html"]
    assert shown[0]["text/plain"] == "a < b"
