"""Training: settings, the loop, what it keeps, and how a model is judged."""

import gc
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from common import config as settings_of
from common import data, ddp, machine, records, train, zoo
from common.config import Config
from common.run import split_batches
from common.train import Evaluation, evaluate, fit

SIZE = 28


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def lenet(seed=0, **options):
    torch.manual_seed(seed)
    return zoo.build("lenet5", activation=nn.ReLU, **options)


def short(**settings):
    """A training of moments, whose settings may be replaced."""
    quick = {"epochs": 2, "batch_size": 64, "image_size": SIZE, "train_images": 256}
    return Config(**quick | settings)


def held_out(digits, config):
    """The validation batches, as `fit` draws them when all training images are used."""
    _, ids = data.split(len(digits.train), config.validation, config.seed)
    return data.Batches(digits, "train", 100, indices=ids, size=config.image_size)


# ------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamm"}, "Did you mean 'adam'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"schedule": "multistep"}, "milestones"),
        ({"augment": ("flipp",)}, "Did you mean 'flip'"),
        ({"precision": "fp8"}, "Valid names: auto, fp32, bf16, fp16"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 2.5}, "epochs=2.5; expected a whole number"),
        ({"batch_size": 64.0}, "batch_size=64.0; expected a whole number"),
        ({"epochs": 5, "batch_size": ((-1, 32), (6, 64))}, "expected a whole number"),
        ({"seed": 2**43}, "less than 2\\*\\*43"),
        ({"lr": "x"}, "lr='x'; expected a number"),
        ({"lr": True}, "lr=True; expected a number"),
        ({"optimizer": None}, "Unknown optimizer None"),
        ({"schedule": "multistep", "milestones": (4, 2)}, "rising epochs"),
        ({"schedule": "multistep", "milestones": (40, 50)}, "expected epochs up to 5"),
        ({"milestones": (1,)}, "schedule='constant' has none"),
        ({"schedule": "multistep", "milestones": (True,)}, "expected epochs"),
        ({"batch_size": True}, "batch_size=True; expected a whole number"),
        ({"batch_size": ((True, 32), (4, 32))}, "expected a whole number"),
        ({"nesterov": 1}, "nesterov=1; expected True or False"),
        ({"nesterov": torch.tensor([1, 0])}, "nesterov=.*expected True or False"),
        ({"lr": 10**400}, "lr is too large a number"),
        ({"weight_decay": -(10**400)}, "weight_decay is too large a number"),
        ({"milestones": (0,)}, "milestones=\\(0,\\)"),
        ({"nesterov": True, "momentum": 0}, "nesterov=True; expected False"),
        ({"lr": 0}, "lr=0"),
        ({"lr": -1e-3}, "lr=-0.001"),
        ({"lr": math.inf}, "lr=inf"),
        ({"lr": math.nan}, "lr=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001"),
        ({"patience": 0}, "patience=0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": 4097}, "image_size=4097; expected 1 to 4,096 pixels"),
        ({"train_images": 0}, "train_images=0"),
        ({"validation": 0.0}, "validation=0.0"),
        ({"validation": 1.0}, "validation=1.0"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": ((3, 32), (2, 0))}, "a whole number of images, 1 or more"),
        ({"batch_size": ((3, 32), (3, 64))}, "add up to 5"),
        ({"batch_size": ()}, "add up to 5"),
    ],
)
def test_a_bad_setting_is_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**settings)


@pytest.mark.parametrize(
    ("size", "evaluated"), [(64, 128), (((1, 32), (1, 100)), 200), (300, 512), (512, 512)]
)
def test_evaluation_takes_twice_the_largest_batch_up_to_512(size, evaluated):
    assert Config(epochs=2, batch_size=size).evaluation_batch == evaluated


def test_batch_sizes_in_stages():
    config = Config(epochs=6, batch_size=((3, 32), (1, 64), (2, 128)))
    assert [config.batch_size_at(e) for e in range(6)] == [32, 32, 32, 64, 128, 128]
    assert [Config(epochs=2, batch_size=7).batch_size_at(e) for e in range(2)] == [7, 7]
    assert Config(epochs=6, batch_size=[[3, 32], [3, 64]]).batch_size_at(3) == 64  # from JSON


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, {0: 0.1, 5: 0.1, 9.9: 0.1}),
        ({"schedule": "cosine"}, {0: 0.1, 2.5: 0.0853553, 5: 0.05, 10: 0}),
        ({"schedule": "warmup"}, {0: 0.001, 1: 0.05, 2: 0.1, 6: 0.05, 10: 0}),
        (
            {"schedule": "multistep", "milestones": (4, 8)},
            {0: 0.1, 3.99: 0.1, 4: 0.01, 7.99: 0.01, 8: 0.001},
        ),
    ],
)
def test_learning_rate_of_each_schedule(settings, expected):
    config = Config(epochs=10, lr=0.1, **settings)
    assert {e: config.lr_at(e) for e in expected} == pytest.approx(expected)


def test_every_schedule_is_tested_above():
    assert settings_of.SCHEDULES == ("constant", "cosine", "warmup", "multistep")


# --------------------------------------------------------------------------------------- the loop


def test_lenet_learns_the_digits(digits):
    model = lenet()
    config = Config(epochs=5, batch_size=64, lr=6e-3, schedule="cosine", image_size=SIZE)
    history = fit(model, digits, config, show=False)
    frame = history.frame()
    assert list(frame.index) == [1, 2, 3, 4, 5]
    assert frame.val_accuracy.iloc[-1] > 0.92
    assert frame.train_accuracy.iloc[-1] > 0.96
    assert frame.train_loss.is_monotonic_decreasing
    first = history.batch_losses[:18]  # 1,150 images in 18 batches
    sizes = [64] * 17 + [62]
    mean = sum(loss * n for loss, n in zip(first, sizes, strict=True)) / 1150
    assert frame.train_loss[1] == pytest.approx(mean)
    assert history.notes == []
    test = evaluate(model, data.Batches(digits, "test", 512, size=SIZE))
    assert test.accuracy > 0.86


def test_a_seed_gives_the_same_weights_bit_for_bit(digits):
    def run(seed):
        torch.manual_seed(seed)
        model = zoo.build("lenet5_bn")  # with dropout, which draws random numbers as well
        config = short(image_size=32, augment=("crop",), seed=seed)
        return model.state_dict(), fit(model, digits, config, show=False)

    (weights, history), (again, repeated), (other, _) = run(1), run(1), run(2)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert history.batch_losses == repeated.batch_losses
    columns = ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]
    assert history.frame()[columns].equals(repeated.frame()[columns])
    assert not torch.equal(weights["conv1.weight"], other["conv1.weight"])


def test_the_seed_of_the_settings_counts(digits):
    losses = [fit(lenet(), digits, short(seed=s), show=False).batch_losses for s in (0, 1)]
    assert losses[0] != losses[1]  # the same initial weights, other images in another order


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adam", lambda p: torch.optim.Adam(p, 1e-3, weight_decay=0.1)),
        ("adamw", lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1)),
        ("sgd", lambda p: torch.optim.SGD(p, 1e-3, 0.8, weight_decay=0.1, nesterov=True)),
    ],
)
def test_steps_equal_a_plain_loop(digits, name, reference):
    """Two epochs of one batch each, with a rate that falls, against torch's own optimizers."""
    config = short(
        optimizer=name, lr=1e-3, momentum=0.8, weight_decay=0.1, batch_size=256,
        schedule="multistep", milestones=(1,), label_smoothing=0.1, precision="fp32",
        nesterov=name == "sgd",
    )  # fmt: skip
    model, plain = lenet(), lenet()
    history = fit(model, digits, config, show=False)
    assert history.best_epoch == 2  # so the weights are those after the second step

    device = machine.device()
    plain.to(device).train()
    optimizer = reference(plain.parameters())
    ids, _ = data.split(len(digits.train), config.validation, config.seed)
    batches = data.Batches(digits, "train", 256, indices=ids[:256], size=SIZE, seed=config.seed)
    losses = []
    for epoch in range(2):
        for group in optimizer.param_groups:
            group["lr"] = (1e-3, 1e-4)[epoch]
        x, y = next(batches.epoch(epoch))
        logits = plain(x)
        loss = cross_entropy(logits, y, label_smoothing=0.1)
        plain_loss = cross_entropy(logits, y)  # what is written down: without smoothing
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(plain_loss.item())
    assert history.batch_losses == pytest.approx(losses, rel=1e-4)
    for (weight, value), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=weight)


def test_the_training_loss_is_the_one_that_validation_reports(digits):
    """On weights that hardly move: the mean over images, smoothing and batch sizes apart."""
    config = short(
        epochs=1, batch_size=((1, 100),), lr=1e-12, optimizer="sgd", label_smoothing=0.3,
        train_images=250, precision="fp32",
    )  # fmt: skip
    model = lenet()
    run = fit(model, digits, config, show=False)
    ids, _ = data.split(len(digits.train), config.validation, config.seed)
    batches = data.Batches(digits, "train", 77, indices=ids[:250], size=SIZE)
    assert run.epochs[0]["train_loss"] == pytest.approx(evaluate(model, batches).loss, rel=1e-5)


def test_what_a_training_leaves_behind(digits):
    """Generator, threads, gradients' mode and hooks are the caller's, also after a failure."""

    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = lenet(), 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 3:
                raise ZeroDivisionError("in the middle")
            return self.net(x)

    def state():
        return torch.get_rng_state().tolist(), torch.get_num_threads(), torch.is_grad_enabled()

    torch.manual_seed(123)
    before = state()
    model = lenet()
    torch.manual_seed(123)
    with torch.no_grad():
        fit(model, digits, short(), show=False)
        assert not torch.is_grad_enabled()
    assert state() == before
    broken = Fails()
    torch.manual_seed(123)
    with pytest.raises(ZeroDivisionError):
        fit(broken, digits, short(), show=False)
    assert state() == before
    assert not model.training
    assert not broken.training


def test_dropout_does_not_repeat_what_drew_the_weights(digits, monkeypatch):
    """The first masks of seed 0 come from another stream than torch.manual_seed(0)."""
    seen = []

    class Noise(nn.Module):
        def forward(self, x):
            if self.training:
                seen.append(torch.rand(5))
            return x

    torch.manual_seed(0)
    weights = torch.rand(5)
    model = nn.Sequential(Noise(), lenet())
    fit(model, digits, short(batch_size=256, train_images=256), show=False)
    first, second = seen[-2:]  # one batch an epoch; on a GPU a trial comes before
    assert not torch.equal(first, weights)
    assert not torch.equal(first, second)
    other = SimpleNamespace(**vars(ddp) | {"rank": lambda: 1})
    monkeypatch.setattr(train, "ddp", other)  # another process has masks of its own
    fit(model, digits, short(batch_size=256, train_images=256), show=False)
    assert not torch.equal(first, seen[-2])


def test_a_loss_that_is_no_number_in_another_process_ends_this_one_too(digits, monkeypatch):
    """All stop at the same batch, or one would wait for the others."""
    alone = ddp.total
    monkeypatch.setattr(ddp, "total", lambda sums: alone(sums) if sums.any() else sums + 1)
    run = fit(lenet(), digits, short(), show=False)
    assert run.ended == "not finite"
    assert "epoch 1, batch 1," in run.notes[-1]


def test_fewer_training_images_have_as_large_a_share_of_validation_images(digits):
    batches, held_out = split_batches(digits, Config(train_images=100, validation=0.2))
    assert len(batches.indices) == 100
    assert len(held_out.indices) == 24  # of 287, where 1,150 train


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (12, r"returns shape \(2, 12\).*num_classes=10"),
        (1, "returns shape"),
        (None, "returns a dict"),
    ],
)
def test_wrong_outputs_are_refused_before_training(digits, outputs, words):
    class Dict(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(784, 10)

        def forward(self, x):
            return {"logits": self.layer(x.flatten(1))}

    model = lenet(num_classes=outputs) if outputs and outputs > 1 else Dict()
    if outputs == 1:
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 1))
    with pytest.raises(ValueError, match=words):
        fit(model, digits, short(), show=False)


class InTraining(nn.Module):
    """Ten logits in evaluation; in training, what `change` makes of them."""

    def __init__(self, change):
        super().__init__()
        self.norm, self.layer, self.change = nn.BatchNorm1d(784), nn.Linear(784, 10), change

    def forward(self, x):
        logits = self.layer(self.norm(x.flatten(1)))
        return self.change(logits) if self.training else logits


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y.repeat(1, 100), r"returns shape \(2, 1000\) for 2 images in training"),
        (lambda y: (y, y[:, :5]), r"returns shape \(2, 5\) for 2 images in training"),
        (lambda y: {"logits": y}, "returns a dict in training"),
        (lambda y: (y, None), "returns a NoneType in training"),
        (lambda y: (), "returns a tuple in training"),
        (lambda y: y + torch.zeros(2, 7), "do not fit this net"),
    ],
)
def test_what_a_net_returns_in_training_is_looked_at_before(digits, change, words):
    net = InTraining(change)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        fit(net, digits, short(), show=False)
    for name, value in net.state_dict().items():
        assert torch.equal(value.cpu(), before[name]), name


def test_batches_of_one_image_do_not_suit_batch_normalisation(digits):
    with pytest.raises(ValueError, match="needs two images a batch"):
        fit(InTraining(lambda y: y), digits, short(batch_size=1), show=False)
    assert fit(lenet(), digits, short(batch_size=1, train_images=3), show=False).ended == "done"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"config": {"epochs": 1}}, r"config={'epochs': 1}; expected a Config"),
        ({"model": nn.Linear}, "model=.*expected a Module"),
        ({"data": "mnist"}, "data='mnist'; expected an? ImageSet"),
    ],
)
def test_arguments_of_another_kind_are_refused(digits, wrong, words):
    with pytest.raises(TypeError, match=words):
        fit(**({"model": lenet(), "data": digits, "config": short()} | wrong), show=False)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0.0, 1.0]), "labels are torch.float32"),
        (torch.tensor([-1, 0]), "expected class numbers from 0 up"),
        (torch.tensor([3, 12]), r"from 3 to 12, the net knows .* 0 to 9\. .*num_classes=13"),
    ],
)
def test_labels_that_are_no_class_numbers(labels, words):
    with pytest.raises(ValueError, match=words):
        evaluate(lenet(), [(torch.rand(2, 1, 28, 28), labels)])


def test_a_frozen_net_is_refused(digits):
    model = lenet().requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        fit(model, digits, short(), show=False)


def test_a_wrong_addition_is_told_as_torch_tells_it(digits):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, stride=2)

        def forward(self, x):
            return self.conv(x) + x

    model = nn.Sequential(Block(), nn.Flatten(), nn.Linear(4 * 28 * 28, 10))
    words = r"layer '0' \(Block\), got \(2, 4, 13, 13\) and \(2, 1, 28, 28\)\. The size of tensor a"
    with pytest.raises(ValueError, match=words) as error:
        fit(model, digits, short(), show=False)
    assert "pixels" not in str(error.value)


def test_only_who_meets_the_images_is_told_of_in_channels(digits):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_channels, self.conv = 3, nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.conv(x) + x

    inner = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(6, 4, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"'1' \(Conv2d\) got .*It takes 6 channels\.$"):
        fit(inner, digits, short(), show=False)
    joined = nn.Sequential(nn.Conv2d(1, 8, 3), Sum())
    with pytest.raises(ValueError, match=r"add, called by the layer '1' \(Sum\)") as error:
        fit(joined, digits, short(), show=False)
    assert "It takes" not in str(error.value)


def test_numbers_of_numpy_and_torch_are_welcome():
    config = Config(
        seed=np.int64(3), lr=np.float64(0.1), epochs=torch.tensor(2), batch_size=[[1, 8], [1, 4]]
    )
    assert config == Config(seed=3, lr=0.1, epochs=2, batch_size=((1, 8), (1, 4)))
    assert [type(v) for v in (config.seed, config.lr, config.epochs)] == [int, float, int]


def test_auxiliary_classifiers_count_for_a_part():
    main, auxiliary, y = torch.randn(3, 5), torch.randn(3, 5), torch.tensor([0, 3, 4])
    expected = cross_entropy(main, y) + 0.3 * cross_entropy(auxiliary, y)
    assert torch.allclose(train.loss_of((main, auxiliary), y), expected)
    assert torch.equal(train.main_output((main, auxiliary)), main)


def test_stages_train_images_and_rates_reach_the_loop(digits):
    config = short(epochs=3, batch_size=((1, 32), (2, 100)), train_images=200, schedule="cosine")
    history = fit(lenet(), digits, config, show=False)
    assert len(history.batch_losses) == 7 + 2 + 2
    frame = history.frame()
    assert [round(n) for n in frame.images_per_s * frame.seconds] == [200] * 3
    expected = [config.lr_at(6 / 7), config.lr_at(1.5), config.lr_at(2.5)]  # of the last batch
    assert frame.lr.tolist() == pytest.approx(expected)


def test_more_train_images_than_there_are(digits):
    history = fit(lenet(), digits, short(epochs=1, train_images=10**6), show=False)
    frame = history.frame()
    assert round(frame.images_per_s[1] * frame.seconds[1]) == 1150


class Wild(Config):
    """Learns for two epochs and spoils everything in the third."""

    def lr_at(self, epoch):
        return 1e-2 if epoch < 2 else 1.0


def test_best_weights_are_restored(digits):
    torch.manual_seed(0)
    model = zoo.build("lenet5_bn")  # its running statistics belong to the weights
    config = Wild(epochs=3, batch_size=64, image_size=32)
    history = fit(model, digits, config, show=False)
    losses = history.frame().val_loss
    assert history.best_epoch == losses.idxmin() < 3
    again = evaluate(model, held_out(digits, config), history.precision)
    assert again.loss == pytest.approx(losses[history.best_epoch], rel=1e-3)
    assert again.loss < 0.5 * losses[3]


def test_early_stopping_counts_from_the_best_epoch(digits, monkeypatch):
    """Validation losses by script; the weights returned are those that earned the lowest."""
    scripted = iter([0.9, 0.5, 0.7, 0.6, 0.5, 0.1])
    seen = []

    def judge(model, *_):
        seen.append(model.fc3.weight.detach().clone())
        return Evaluation(next(scripted), 0.5, *[torch.zeros(1)] * 3)

    monkeypatch.setattr(train, "evaluate", judge)
    model = lenet()
    history = fit(model, digits, short(epochs=6, patience=3), show=False)
    assert len(history.epochs) == 5  # equal to the best is no progress
    assert history.best_epoch == 2
    assert "Stopped early after epoch 5." in history.notes
    assert torch.equal(model.fc3.weight, seen[1])
    assert not torch.equal(seen[1], seen[-1])


def test_no_patience_no_early_stop(digits, monkeypatch):
    worse = iter(range(1, 5))
    monkeypatch.setattr(
        train, "evaluate", lambda *_: Evaluation(next(worse), 0.5, *[torch.zeros(1)] * 3)
    )
    history = fit(lenet(), digits, short(epochs=4), show=False)
    assert (len(history.epochs), history.best_epoch) == (4, 1)


def test_the_test_images_are_not_touched(digits):
    blank = data.Images(torch.zeros_like(digits.test.images), torch.zeros_like(digits.test.labels))
    without = data.ImageSet(digits.name, digits.source, digits.train, blank, digits.classes)
    histories = [fit(lenet(), d, short(), show=False) for d in (digits, without)]
    assert histories[0].frame().val_loss.equals(histories[1].frame().val_loss)


# ------------------------------------------------------------------------------------- precision


class Cut(nn.Module):
    """A net whose forward pass cuts the way back, or ends in something else than floats."""

    def __init__(self, how):
        super().__init__()
        self.how, self.layer = how, nn.Linear(64, 10)

    def forward(self, x):
        y = self.layer(x.flatten(1))
        if self.how == "detach":
            return y.detach()
        if self.how == "no_grad":
            with torch.no_grad():
                return self.layer(x.flatten(1))
        return y.long() if self.how == "whole" else y.to_sparse()


@pytest.mark.parametrize(
    ("how", "words"),
    [("detach", "No gradient"), ("no_grad", "No gradient"), ("whole", "int64"), ("sparse", "spar")],
)
def test_logits_that_cannot_be_trained_are_refused_before(digits, how, words):
    with pytest.raises(ValueError, match=words):
        fit(Cut(how), digits, short(image_size=8), show=False)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, short(image_size=8), show=False)


@pytest.mark.parametrize(
    ("net", "labels"),
    [
        (lambda x: {"logits": x}, [4]), (lambda x: None, [4]), (lambda x: x, [3, 5]),
        (lambda x: x, [(4, 1)]),
    ],
)  # fmt: skip
def test_evaluate_asks_for_a_row_a_label(net, labels):
    class Net(nn.Module):
        def forward(self, x):
            return net(x)

    batches = [(torch.rand(4, 10), torch.zeros(size, dtype=torch.int64)) for size in labels]
    with pytest.raises(ValueError, match=r"labels.*; expected|expected \(N, K\)"):
        evaluate(Net(), batches)


@pytest.mark.parametrize("bf16", [True, False])
def test_auto_precision_follows_the_hardware(digits, monkeypatch, bf16):
    monkeypatch.setattr(machine, "has_bf16", lambda kind: bf16)
    seen = []
    model = lenet()

    def look(_, __, output):
        if output.requires_grad and len(output) > 2:  # no look before, no evaluation after
            seen.append(output.dtype)

    model.conv1.register_forward_hook(look)
    history = fit(model, digits, short(epochs=1), show=False)
    older_gpu = machine.device().type == "cuda" and not bf16
    expected = "bf16" if bf16 else "fp16" if older_gpu else "fp32"
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    assert history.precision == expected
    assert seen[:4] == [dtypes[expected]] * 4  # batches
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history.batch_losses[-1] < history.batch_losses[0]


def test_a_precision_that_is_not_there_gives_way(digits, monkeypatch, capsys):
    monkeypatch.setattr(machine, "has_bf16", lambda kind: False)
    history = fit(lenet(), digits, short(epochs=1, precision="bf16"), show=False)
    assert history.precision == machine.precision("auto") != "bf16"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "bf16" in line]
    assert f"has no bf16 arithmetic: {history.precision} is used instead" in line


def test_precision_by_device(monkeypatch):
    for bf16, kind, expected in (
        (True, "cuda", "bf16"),
        (False, "cuda", "fp16"),
        (True, "cpu", "bf16"),
        (False, "cpu", "fp32"),
    ):
        monkeypatch.setattr(machine, "has_bf16", lambda _, bf16=bf16: bf16)
        assert machine.precision("auto", kind) == expected
        assert machine.precision("fp32", kind) == "fp32"
    assert machine.precision("fp16", "cpu") == "fp32"
    with pytest.raises(ValueError, match="Unknown precision 'fp8'"):
        machine.precision("fp8", "cpu")


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_gpus_have_bf16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert machine.has_bf16.__wrapped__("cuda") == expected


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_a_cpu_has_bf16_by_any_of_its_names(monkeypatch, name):
    for found in (True, False):
        told = {name: found, "avx512_fp16": True, "cpu_name": "a CPU"}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        assert machine.has_bf16.__wrapped__("cpu") == found
        assert not machine.has_bf16.__wrapped__("mps")


@pytest.mark.real_device
def test_a_gpu_that_this_pytorch_cannot_use(monkeypatch, capsys):
    def too_old(*_, **__):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", too_old)
    machine.gpu_works.cache_clear()
    assert machine.device().type == "cpu"
    machine.gpu_works.cache_clear()
    assert "no kernel image is available" in capsys.readouterr().err


@pytest.mark.real_device
def test_a_mac_s_gpu_is_used_only_where_it_computes_what_the_cpu_does(monkeypatch, capsys):
    step = machine.trial_step
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)

    def device_with(on_gpu) -> str:
        monkeypatch.setattr(
            machine, "trial_step", lambda kind: on_gpu() if kind == "mps" else step(kind)
        )
        machine.mps_works.cache_clear()
        found = machine.device().type
        machine.mps_works.cache_clear()
        return found

    def not_built():
        raise NotImplementedError("no code for it\nand more")

    drawn = torch.get_rng_state()
    assert device_with(lambda: step("cpu")) == "mps"
    assert torch.equal(torch.get_rng_state(), drawn)
    assert capsys.readouterr().err == ""
    assert device_with(lambda: step("cpu") + 0.01) == "cpu"
    assert "it computes something else than the CPU" in capsys.readouterr().err
    assert device_with(not_built) == "cpu"
    assert "(no code for it)" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")  # gloo does not know MPS
    assert device_with(lambda: step("cpu")) == "cpu"


def test_on_a_mac_s_gpu_nothing_is_computed_in_formats_that_it_lacks(monkeypatch):
    assert machine.precision("auto", "mps") == machine.precision("bf16", "mps") == "fp32"
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3))
    assert machine.memory_format(net) is torch.channels_last
    monkeypatch.setattr(machine, "device", lambda: torch.device("mps"))
    assert machine.memory_format(net) is torch.contiguous_format
    monkeypatch.delenv("CNN_PROFILE", raising=False)
    assert machine.profile() == "laptop"


def test_a_mac_s_gpu_is_named_and_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(machine, "device", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    machine.synchronize()
    assert waited == ["mps"]
    assert machine.gpu_name() == "Apple GPU (MPS)"


def test_a_net_trained_again_says_what_it_began_with(digits, capsys):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    first = fit(net, digits, Config(epochs=1), show=False)
    assert capsys.readouterr().err == ""
    left = net[1].weight.clone()
    second = fit(net, digits, Config(epochs=1), show=False)
    assert "has been trained before and goes on from there" in capsys.readouterr().err
    assert first.replaced and not second.replaced  # noqa: PT018
    assert not torch.equal(left, net[1].weight)
    assert records.of(second, None, "again").begun_with
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert (
        records.of(fit(fresh, digits, Config(epochs=1), show=False), None, "new").begun_with == ""
    )


@pytest.mark.parametrize("kept", [True, False])
def test_a_net_that_was_stopped_goes_on_from_what_it_learned(digits, monkeypatch, capsys, kept):
    """Whether or not the caller kept the run that was stopped."""

    def stop(_):
        raise KeyboardInterrupt

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with monkeypatch.context() as patch:
        patch.setattr(train, "validate", stop)
        run = fit(net, digits, Config(epochs=2), show=False)
    assert run.best_epoch == 0  # no epoch was finished: its weights are those of before
    fit(net, digits, Config(epochs=1), show=False)
    assert not hasattr(net, "begun_with")
    assert "trained before" not in capsys.readouterr().err

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    epochs, once = [], train.train_epoch

    def epoch(training):
        epochs.append(1)
        return once(training) if len(epochs) == 1 else stop(training)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", epoch)
        run = fit(net, digits, Config(epochs=2), show=False)
    assert (run.best_epoch, run.ended) == (1, "")
    run = run if kept else None
    gc.collect()
    fit(net, digits, Config(epochs=1, lr=1e-2), show=False)
    assert len(net.begun_with) == 8
    assert "trained before" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU tells its own peak")
def test_a_system_that_tells_no_peak(digits, monkeypatch):
    read = Path.read_text

    def status(path, *arguments, **options):
        text = read(path, *arguments, **options)
        return text.replace("VmHWM", "VmRSS") if path.name == "status" else text

    monkeypatch.setattr(Path, "read_text", status)
    run = fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, Config(epochs=1), show=False)
    assert run.peak_memory_bytes is None
    assert run.ended == "done"


def test_the_commit_is_the_course_s_own(monkeypatch, tmp_path):
    assert len(machine.commit.__wrapped__().removesuffix("+changes")) >= 12
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)  # a student's own repository
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    commit = ["git", "-C", tmp_path, *author, "commit", "--quiet", "--allow-empty", "-m", "one"]
    subprocess.run(commit, check=True)
    (tmp_path / "course").mkdir()
    monkeypatch.setattr(machine, "HOME", tmp_path / "course")
    assert machine.commit.__wrapped__() == "unknown"


def test_a_changed_checkout_is_told_in_the_commit(monkeypatch, tmp_path):
    git = ["git", "-C", tmp_path, "-c", "user.name=A", "-c", "user.email=a@example.org"]
    (tmp_path / "file").write_text("as committed")
    for words in (["init"], ["add", "."], ["commit", "-m", "one"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    monkeypatch.setattr(machine, "HOME", tmp_path)
    commit = machine.commit.__wrapped__()
    assert re.fullmatch(r"[0-9a-f]{12}", commit)
    (tmp_path / "file").write_text("changed")
    assert machine.commit.__wrapped__() == f"{commit}+changes"


def test_a_net_with_statistics_is_trained_again_too(digits):
    net = zoo.build("lenet5_bn")  # its count of batches has no dimension
    quick = Config(epochs=1, train_images=64, image_size=32)
    first = fit(net, digits, quick, show=False)
    assert first.ended == "done"
    assert not hasattr(net, "begun_with")
    fit(net, digits, quick, show=False)
    assert len(net.begun_with) == 8


def test_weights_that_burst_in_the_last_batch_are_told(digits, capsys):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = net[1].weight.clone()
    few = digits.sample(200)
    run = fit(net, few, Config(epochs=1, lr=1e38, batch_size=160, optimizer="sgd"), show=False)
    assert run.ended == "not finite"
    assert "validation loss is no finite number after epoch 1" in run.notes[-1]
    assert torch.equal(net[1].weight.cpu(), before)


def test_without_a_terminal_or_even_a_stream_for_errors(digits, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert fit(net, digits, Config(epochs=1, train_images=64)).ended == "done"


def test_a_net_without_values_is_refused(digits):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta"))
    with pytest.raises(ValueError, match="on the meta device"):
        fit(net, digits, Config(epochs=1), show=False)


def test_batches_of_unlike_numbers_of_classes_are_refused():
    batches = [(torch.zeros(2, k), torch.zeros(2, dtype=torch.int64)) for k in (3, 4)]
    with pytest.raises(ValueError, match=r"shape \(2, 4\) .* expected \(2, 3\)"):
        evaluate(nn.Flatten(), batches)


def test_a_small_step_of_training_changes_the_logits(monkeypatch):
    after = machine.trial_step("cpu")
    assert after.shape == (8, 10)
    assert torch.equal(after, machine.trial_step("cpu"))
    monkeypatch.setattr(torch.optim.Adam, "step", lambda _: None)
    assert not torch.allclose(after, machine.trial_step("cpu"), atol=1e-3)


@pytest.mark.parametrize(("rank", "expected"), [("0", [0]), ("1", [1]), ("2", [0]), (None, [])])
def test_each_process_uses_its_own_gpu_from_the_first_tensor_on(monkeypatch, rank, expected):
    chosen, before = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: before.extend(chosen) or 1)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    machine.gpu_works.cache_clear()
    assert machine.gpu_works()
    machine.gpu_works.cache_clear()
    assert before == chosen == expected


# -------------------------------------------------------------------------- no waiting in the loop


class CountReads(TorchDispatchMode):
    """Counts the values read out of tensors, by whatever name: item, float, bool, if …"""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **(kwargs or {}))


def test_reads_do_not_grow_with_the_batches(digits):
    """Looks below the source: into the optimizer, the loss and the loader.

    Sixteen batches are one window, after which the losses are looked at.
    """

    def reads(batch_size):
        config = short(epochs=1, batch_size=batch_size, augment=("crop", "flip", "colour"))
        with CountReads() as reader:
            fit(lenet(), digits, config, show=False)
        return reader.count

    few, many = reads(128), reads(16)
    assert few == many > 0


# -------------------------------------------------------------------------------------- judging


def test_evaluation_agrees_with_scikit_learn():
    torch.manual_seed(0)
    truth = torch.randint(0, 4, (500,))
    logits = torch.randn(500, 5) + 2 * nn.functional.one_hot(truth, 5)  # class 4 has no images
    model = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.9)).train()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(5))
        model[0].bias.zero_()
    batches = list(zip(logits.split(64), truth.split(64), strict=True))  # the last one is smaller
    found = evaluate(model, batches, "fp32")

    predicted = logits.argmax(1)
    assert torch.equal(found.predictions, predicted)
    assert found.accuracy == pytest.approx(accuracy_score(truth, predicted))
    expected = confusion_matrix(truth, predicted, labels=range(5))
    assert found.confusion.tolist() == expected.tolist()
    assert found.loss == pytest.approx(
        log_loss(truth, logits.double().softmax(1), labels=range(5)), rel=1e-5
    )
    by_class = [accuracy_score(truth[truth == c], predicted[truth == c]) for c in range(4)]
    assert found.class_accuracy[:4] == pytest.approx(by_class)
    assert math.isnan(found.class_accuracy[4])
    torch.testing.assert_close(found.losses, cross_entropy(logits, truth, reduction="none"))


def test_evaluation_takes_the_main_output_and_any_iterable():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), -super().forward(x)

    model = Two(3, 3)
    x, y = torch.randn(10, 3), torch.randint(0, 3, (10,))
    found = evaluate(model, iter([(x, y)]), "fp32")
    assert torch.equal(found.predictions, model(x)[0].argmax(1))


# -------------------------------------------------------------------------------------- bad input


def test_images_too_small_name_the_layer(digits):
    with pytest.raises(ValueError, match=r"'conv2'.*ran out of pixels"):
        fit(lenet(), digits, short(image_size=8), show=False)


def test_images_of_another_size_name_the_layer(digits):
    with pytest.raises(ValueError, match=r"'fc1'.*cannot be multiplied"):
        fit(lenet(), digits, short(image_size=32), show=False)


def test_wrong_channels_are_named(digits):
    with pytest.raises(ValueError, match=r"'conv1'.*to have 3 channels, but got 1"):
        fit(lenet(in_channels=3), digits, short(), show=False)


def test_non_finite_loss_ends_the_training(digits):
    history = fit(lenet(), digits, short(epochs=5, lr=1e3, optimizer="sgd"), show=False)
    assert history.epochs == []
    with pytest.raises(ValueError, match=r"no finished epoch\. The loss was no finite number"):
        _ = history.best
    assert history.ended == "not finite"
    assert re.search(r"in epoch 1, batch \d+, at a learning rate of 1e\+03; it first appears in 'conv1'", history.notes[-1])  # fmt: skip # noqa: E501


class Breaks(nn.Module):
    """Its logits are no numbers from the `at`-th batch of a training on."""

    def __init__(self, at):
        super().__init__()
        self.fc, self.calls, self.at = nn.Linear(64, 10), -1, at  # -1: it is tried once before

    def forward(self, x):
        self.calls += self.training
        return self.fc(x.flatten(1)) * (math.nan if self.calls >= self.at else 1)


@pytest.mark.parametrize(("at", "seen"), [(6, 16), (16, 16), (17, 32), (38, 40)])
def test_a_loss_that_is_no_number_is_seen_soon_and_named_by_its_batch(digits, at, seen):
    """Losses are read every 16 batches, and at the end of an epoch."""
    net = Breaks(at)
    config = Config(epochs=2, batch_size=16, train_images=640)
    run = fit(net, digits, config, show=False)
    assert run.ended == "not finite"
    assert f"in epoch 1, batch {at}, " in run.notes[-1]
    assert seen <= net.calls <= seen + 1  # and once more to find the layer


@pytest.mark.parametrize(("n", "sizes"), [(129, [64, 65]), (130, [64, 64, 2]), (1, [1])])
def test_no_last_batch_of_one_image(digits, n, sizes):
    """Batch normalisation over a vector has nothing to normalise with in a batch of one."""
    assert data.batch_sizes(n, 64) == sizes
    assert data.batch_sizes(n, 1) == [1] * n  # asked for
    if n > 1:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10)
        )
        history = fit(net, digits, short(epochs=1, train_images=n), show=False)
        assert len(history.batch_losses) == len(sizes)


def test_depthwise_convolutions_train_in_fp32_beside_bf16():
    """On a CPU, where bf16 has no fast backward code for them. Pointwise ones stay in bf16."""
    net = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
    )
    seen = []
    for layer in net:
        layer.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    x = torch.randn(2, 8, 6, 6)
    with machine.autocast(torch.device("cpu"), "bf16"):
        net(x).float().sum().backward()
        with torch.no_grad():
            net(x)
    fp32, bf16 = torch.float32, torch.bfloat16
    assert seen == [fp32, bf16, bf16, bf16, bf16, bf16]  # training, then judging
    assert all(p.grad.dtype == fp32 for p in net.parameters())


# -------------------------------------------------------------------------------- memory order


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 32, 3)), torch.channels_last),
        (nn.Sequential(nn.Conv2d(3, 31, 3)), torch.contiguous_format),
        (nn.Sequential(nn.Linear(3, 64)), torch.contiguous_format),
        # A 1 x 1 convolution that strides over few channels writes past its memory.
        (nn.Sequential(nn.Conv2d(7, 64, 1, stride=2)), torch.contiguous_format),
        (nn.Sequential(nn.Conv2d(8, 64, 1, stride=2)), torch.channels_last),
        (nn.Sequential(nn.Conv2d(16, 64, 1, stride=2, groups=4)), torch.contiguous_format),
        (nn.Sequential(nn.Conv2d(7, 64, 1)), torch.channels_last),
    ],
)
def test_channels_last_where_it_pays_and_is_safe(net, expected):
    assert machine.memory_format(net) == expected


def test_a_training_s_peak_does_not_count_what_came_before(digits, monkeypatch):
    calls = []
    monkeypatch.setattr(machine, "reset_peak_memory", lambda: calls.append("reset"))
    monkeypatch.setattr(machine, "peak_memory_bytes", lambda: calls.append("read") or 5)
    assert fit(lenet(), digits, short(epochs=1), show=False).peak_memory_bytes == 5
    assert calls == ["reset", "read"]
