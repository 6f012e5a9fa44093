"""A training that stops goes on from its checkpoint as if it had not."""

import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from common import checkpoints, data, machine, train, zoo
from common.__main__ import main
from common.config import Config
from common.digests import of_net, value_of
from common.run import Run
from common.train import fit

CONFIG = Config(
    epochs=4, batch_size=64, image_size=32, train_images=320, optimizer="adamw", lr=3e-3,
    weight_decay=0.01, schedule="warmup", augment=("crop",), seed=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def lenet():
    torch.manual_seed(5)
    return zoo.build("lenet5_bn")  # with dropout and running statistics


class PowerCut(Exception):
    """Ends a training where it stands."""


def stop_after(epochs: int, monkeypatch, error: type[BaseException] = PowerCut) -> None:
    """Let `fit` fail in the epoch after so many."""
    whole = train.train_epoch

    def cut(training):
        result = whole(training)
        if len(training.run.epochs) == epochs:
            raise error
        return result

    monkeypatch.setattr(train, "train_epoch", cut)


def numbers(run: Run) -> list[dict]:
    timed = ("seconds", "images_per_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in run.epochs]


def assert_same(model, other) -> None:
    for (name, value), expected in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(value.cpu(), expected.cpu()), name


STAGES = {"batch_size": ((1, 32), (2, 64), (1, 100)), "label_smoothing": 0.1}


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "schedule": "cosine"},
        {"optimizer": "adamw", "patience": 2, "augment": ("crop", "flip", "colour")},
        {"optimizer": "sgd", "lr": 0.05, "nesterov": True, **STAGES},
        {"optimizer": "sgd", "schedule": "multistep", "milestones": (2, 3)},
    ],
    ids=["adam", "adamw", "stages", "multistep"],
)
def test_goes_on_bit_for_bit(digits, tmp_path, monkeypatch, settings):
    config = replace(CONFIG, **settings)
    whole = lenet()
    expected = fit(whole, digits, config, show=False)

    file = tmp_path / "run.pt"
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(PowerCut):
            fit(lenet(), digits, config, show=False, checkpoint=file)
    torch.manual_seed(99)  # whatever state the second process is in
    model = zoo.build("lenet5_bn")
    run = fit(model, digits, config, show=False, checkpoint=file)

    assert numbers(run) == numbers(expected)
    assert run.batch_losses == expected.batch_losses
    assert run.best_epoch == expected.best_epoch
    assert_same(model, whole)


def test_validation_losses_that_are_no_numbers(digits, tmp_path, monkeypatch):
    """The weights of no best epoch are the first ones, with and without a break."""
    nan = {"val_loss": float("nan"), "val_accuracy": 0.1}
    monkeypatch.setattr(train, "validate", lambda _: dict(nan))
    whole, resumed, file = lenet(), lenet(), tmp_path / "run.pt"
    fit(whole, digits, CONFIG, show=False)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(PowerCut):
            fit(lenet(), digits, CONFIG, show=False, checkpoint=file)
    fit(resumed, digits, CONFIG, show=False, checkpoint=file)
    assert_same(resumed, whole)
    assert_same(resumed, lenet())


def test_ctrl_c_returns_the_run_so_far(digits, tmp_path, monkeypatch, capsys):
    whole = lenet()
    expected = fit(whole, digits, CONFIG, show=False)
    file, model = tmp_path / "run.pt", lenet()
    with monkeypatch.context() as patch:
        stop_after(2, patch, KeyboardInterrupt)
        run = fit(model, digits, CONFIG, show=False, checkpoint=file)
    assert len(run.epochs) == 2
    assert run.ended == ""
    assert not model.training
    assert "Stopped in epoch 3" in capsys.readouterr().out
    batches = train.Training(lenet(), digits, CONFIG).held_out
    assert train.evaluate(model, batches).loss == pytest.approx(run.best_loss)
    again = fit(model, digits, CONFIG, show=False, checkpoint=file)  # the next call goes on
    assert numbers(again) == numbers(expected)
    assert_same(model, whole)


WORDS = ["train", "lenet5_bn", "--dataset", "digits", "--epochs", "6", "--batch-size", "16"]
WORDS += ["--train-images", "320", "--seed", "3"]


def command(folder, *words: str) -> subprocess.Popen:
    """`python -m common train` on the digits, in a process of its own."""
    line = [sys.executable, "-m", "common", *WORDS, *words]
    return subprocess.Popen(
        line, env=os.environ | {"CNN_RUNS": str(folder)}, cwd=machine.HOME,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(folder, epochs: int, process: subprocess.Popen) -> None:
    """Wait until a process has written the checkpoint of so many epochs."""
    for _ in range(1200):
        for file in (folder / "checkpoints").glob("*.pt"):
            try:
                saved = checkpoints.read_checked(file)
            except (OSError, ValueError):
                continue
            if len(saved["history"]["epochs"]) >= epochs:
                return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError("no checkpoint in time")


def rows(text: str) -> list[list[str]]:
    """The epochs of a printed table, without their seconds and images a second."""
    found = [line.split() for line in text.splitlines() if re.match(r"\d+ ", line)]
    return [row[:-2] for row in found]


def test_a_killed_process_goes_on(tmp_path, monkeypatch, capsys):
    """SIGKILL between two epochs, as a time limit or a closed laptop does it."""
    epochs = ["--epochs", "20"]  # time enough for the signal, on a busy machine too

    def here(folder) -> str:
        monkeypatch.setenv("CNN_RUNS", str(folder))
        assert main([*WORDS, *epochs]) == 0
        return capsys.readouterr().out

    killed = command(tmp_path / "killed", *epochs)
    until(tmp_path / "killed", 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again, whole = here(tmp_path / "killed"), here(tmp_path / "whole")
    assert re.search(r"Going on after epoch \d+", again)
    assert not list((tmp_path / "killed/checkpoints").glob("*"))
    assert len(rows(whole)) == 20
    assert rows(again) == rows(whole)
    weights = [next((tmp_path / who / "weights").glob("*")) for who in ("killed", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_second_training_on_the_same_run_is_refused(tmp_path, digits, small):
    run, _ = small
    store = checkpoints.Store(tmp_path / "run.pt", run)
    store.lock()
    with pytest.raises(ValueError, match=f"Process {os.getpid()} is at work on"):
        fit(lenet(), digits, CONFIG, show=False, checkpoint=tmp_path / "run.pt")
    store.unlock()


def test_a_finished_training_is_not_trained_again(digits, tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    first, second = lenet(), lenet()
    expected = fit(first, digits, CONFIG, show=False, checkpoint=file)
    monkeypatch.setattr(train, "train_epoch", None)  # would fail if called
    run = fit(second, digits, CONFIG, show=False, checkpoint=file)
    assert run.batch_losses == expected.batch_losses
    assert_same(first, second)


def test_early_stopping_is_remembered(digits, tmp_path, monkeypatch):
    config = replace(CONFIG, epochs=9, patience=1, lr=0.5)
    file = tmp_path / "run.pt"
    run = fit(lenet(), digits, config, show=False, checkpoint=file)
    assert len(run.epochs) < 9
    monkeypatch.setattr(train, "train_epoch", None)
    again = fit(lenet(), digits, config, show=False, checkpoint=file)
    assert again.notes == run.notes
    assert again.notes[-1].startswith("Stopped early")


def other(change: str, digits):
    """(model, images, settings) of a training that differs in one thing from `lenet` on digits."""
    model, images, config = lenet(), digits, replace(CONFIG, epochs=1)
    if change == "lr":
        config = replace(config, lr=0.1)
    if change == "network":
        model.act1 = torch.nn.Sigmoid()
    if change == "labels":
        labels = digits.train.labels.roll(1)
        images = replace(digits, train=data.Images(digits.train.images, labels))
    if change == "images":
        dark = digits.train.images // 2
        images = replace(digits, train=data.Images(dark, digits.train.labels))
    return model, images, config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr", r"lr was 0\.003, is 0\.1"),
        ("network", "network was"),
        ("labels", "images was"),
        ("images", "images was"),
    ],
)
def test_another_training_is_refused(digits, tmp_path, change, message):
    file = tmp_path / "run.pt"
    fit(lenet(), digits, replace(CONFIG, epochs=1), show=False, checkpoint=file)
    model, images, config = other(change, digits)
    with pytest.raises(ValueError, match=message) as error:
        fit(model, images, config, show=False, checkpoint=file)
    assert str(error.value).count(" was ") == 1


@pytest.fixture
def small(digits):
    """A run of a tiny net, as a store wants it, and a state to keep."""
    net = torch.nn.Linear(2, 2)
    run = Run(net, digits, CONFIG, digest=of_net(net))
    state = {part: {} for part in checkpoints.PARTS if part != "task"}
    return run, state | {"weights": net.state_dict(), "history": {"epochs": [1, 2]}}


def past(epochs: int) -> dict:
    """The history of so many epochs."""
    return {
        "epochs": [{"epoch": n} for n in range(1, epochs + 1)], "batch_losses": [], "notes": [],
        "best_epoch": epochs, "best_loss": 1.0, "ended": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    "odd",
    [
        {"epochs": "three"}, {"epochs": [1, 2]}, {"best_epoch": 99}, {"best_epoch": -1},
        {"notes": None}, {"ended": 1}, {"batch_losses": {}},
    ],
)  # fmt: skip
def test_a_whole_file_with_an_odd_history_is_passed_over(tmp_path, small, odd):
    run, state = small
    store = checkpoints.Store(tmp_path / "run.pt", run)
    store.save(state | {"history": past(1)})
    store.save(state | {"history": past(2) | odd})
    with pytest.warns(UserWarning, match="its history is not that of a training"):
        assert store.load()["history"] == past(1)


@pytest.mark.parametrize("part", ["weights", "best_weights", "optimizer"])
def test_a_whole_file_with_odd_weights_says_so(tmp_path, digits, part):
    file = tmp_path / "run.pt"
    run = fit(lenet(), digits, CONFIG, show=False, checkpoint=file)
    store = checkpoints.Store(file, run)
    store.save(checkpoints.read_checked(file) | {part: {}})
    for _ in range(2):  # nor does the failure keep the file locked
        with pytest.raises(ValueError, match=r"run\.pt does not fit this training"):
            fit(lenet(), digits, CONFIG, show=False, checkpoint=file)


def test_the_lock_has_one_holder(tmp_path, small):
    """Also of several that ask at once, and in one process; a dead holder's lock is free."""
    run, _ = small
    stores = [checkpoints.Store(tmp_path / "run.pt", run) for _ in range(8)]

    def ask(store: checkpoints.Store) -> bool:
        try:
            store.lock()
            return True
        except ValueError:  # another one is at work on it
            return False

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(ask, stores)) == 1
        for store in stores:
            store.unlock()


def test_a_second_ctrl_c_does_not_keep_the_file(tmp_path, digits, monkeypatch):
    file = tmp_path / "run.pt"
    with monkeypatch.context() as patch:
        stop_after(1, patch, KeyboardInterrupt)
        patch.setattr(train.Training, "end", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(lenet(), digits, CONFIG, show=False, checkpoint=file)
    assert fit(lenet(), digits, CONFIG, show=False, checkpoint=file).ended == "done"


def test_every_flipped_bit_is_found_and_the_file_before_serves(tmp_path, small):
    run, state = small
    store = checkpoints.Store(tmp_path / "run.pt", run)
    store.save(state | {"history": past(1)})
    store.save(state | {"history": past(2)})
    assert store.load()["history"] == past(2)
    content = bytearray(store.path.read_bytes())
    for place in range(0, len(content), max(len(content) // 200, 1)):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << (place % 8)
        store.path.write_bytes(spoilt)
        with pytest.warns(UserWarning, match=r"run\.pt is damaged"):
            assert store.load()["history"] == past(1), place


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 5000])
def test_damage_without_a_file_before_starts_anew_with_a_warning(tmp_path, small, content):
    run, _ = small
    store = checkpoints.Store(tmp_path / "run.pt", run)
    store.path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert store.load() is None


def test_a_file_that_is_no_checkpoint_is_kept(digits, tmp_path):
    """It may be somebody's own: whatever is trained under its name, its content stays."""
    thesis = tmp_path / "thesis.txt"
    for number in (1, 2):
        thesis.write_text(f"my thesis, draft {number}")
        with pytest.warns(UserWarning, match=f"lies in thesis.txt.damaged{number}"):
            fit(lenet(), digits, CONFIG, show=False, checkpoint=thesis)
        kept = tmp_path / f"thesis.txt.damaged{number}"
        assert kept.read_text() == f"my thesis, draft {number}"
        (tmp_path / "thesis.txt").unlink()
        (tmp_path / "thesis.txt.previous").unlink(missing_ok=True)


def test_other_classes_or_frozen_layers_are_another_training(digits, tmp_path):
    file = tmp_path / "run.pt"
    fit(lenet(), digits, CONFIG, show=False, checkpoint=file)
    frozen = lenet()
    frozen.conv1.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen was '', is 'conv1\.weight, conv1\.bias'"):
        fit(frozen, digits, CONFIG, show=False, checkpoint=file)
    renamed = replace(digits, classes=digits.classes[::-1])
    with pytest.raises(ValueError, match="classes was '0, 1"):
        fit(lenet(), renamed, CONFIG, show=False, checkpoint=file)


def test_a_folder_is_no_checkpoint(digits, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match=r"is no file; expected a file's name"):
        fit(lenet(), digits, CONFIG, show=False, checkpoint=tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("part", ["task", "weights", "history", "optimizer"])
def test_a_checkpoint_that_lacks_a_part_is_passed_over(tmp_path, small, part):
    """Though its checksum is right."""
    run, state = small
    store = checkpoints.Store(tmp_path / "run.pt", run)
    store.task = None if part == "task" else store.task
    store.save({name: value for name, value in state.items() if name != part})
    with pytest.warns(UserWarning, match="it lacks one of"):
        assert store.load() is None


def test_stopped_before_the_first_batch_leaves_no_lock(digits, tmp_path, monkeypatch):
    def interrupt(event, training):
        raise KeyboardInterrupt

    monkeypatch.setattr("common.run.watchers", [interrupt])
    file = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(lenet(), digits, CONFIG, show=False, checkpoint=file)
    monkeypatch.setattr("common.run.watchers", [])
    assert fit(lenet(), digits, CONFIG, show=False, checkpoint=file).ended == "done"


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch, small):
    run, state = small
    store = checkpoints.Store(tmp_path / "run.pt", run)
    store.save(state | {"history": past(1)})

    def full(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed: unexpected pos 511552 vs 511444")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"run\.pt cannot be written \(.*MB free there\)"):
        store.save(state | {"history": past(2)})
    assert store.load()["history"] == past(1)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize("what", ["a file", "read-only"])
def test_a_runs_folder_that_cannot_be_written_is_told_before_training(
    tmp_path, what, monkeypatch, capsys
):
    """From the command line: one line, exit code 2, nothing trained."""
    if what == "a file":
        folder = tmp_path / "taken"
        folder.write_text("x")
    else:
        folder = "/proc/1/no"
    monkeypatch.setenv("CNN_RUNS", str(folder))
    monkeypatch.setattr(train, "train_epoch", None)  # would fail if called
    assert main(["train", "lenet5_bn", "--dataset", "digits"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"cannot be written \(.*MB free there\)", said)
    assert "Traceback" not in said


@pytest.mark.parametrize("part", ["records", "weights", "checkpoints", "cache"])
def test_a_file_in_the_place_of_a_folder_of_runs_is_named(runs, part):
    (runs / part).write_text("x")
    with pytest.raises(OSError, match=rf"cannot be written \(its {part} is a file, not a folder"):
        machine.runs_folder()


def test_a_checkpoint_cannot_run_code(tmp_path, small):
    run, _ = small
    store = checkpoints.Store(tmp_path / "run.pt", run)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    store.save({"weights": Evil(), "history": {}})
    with pytest.warns(UserWarning, match="damaged"):
        assert store.load() is None
    assert not (tmp_path / "harm").exists()


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path, small):
    run, _ = small
    store = checkpoints.Store(tmp_path / "run.pt", run)
    store.lock_file.write_text("999999999 1.0")
    store.lock()
    assert str(os.getpid()) in store.lock_file.read_text()
    store.unlock()
    assert not store.lock_file.exists()


def test_what_a_killed_process_left_half_written_goes(tmp_path, small):
    run, _ = small
    store = checkpoints.Store(tmp_path / "run.pt", run)
    half, busy = (tmp_path / f"run.pt.{number}.tmp" for number in (999999999, os.getppid()))
    for file in (half, busy):
        file.write_bytes(b"half")
    store.lock()
    store.unlock()
    assert not half.exists()
    assert busy.exists()  # its process lives


# ------------------------------------------------------------------------------------- structure


def test_the_digest_knows_two_nets_of_equal_size_apart():
    class Adds(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + x

    class Subtracts(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) - x

    Subtracts.__name__ = Subtracts.__qualname__ = "Adds"
    nets = [
        zoo.build("lenet5", activation=torch.nn.Sigmoid),
        zoo.build("lenet5", activation=torch.nn.ReLU),
        zoo.build("lenet5_bn", dropout=0.1),
        zoo.build("lenet5_bn", dropout=0.2),
        Adds(3, 3),
        Subtracts(3, 3),
    ]
    digests = [of_net(net) for net in nets]
    assert len(set(digests)) == len(nets)
    assert of_net(zoo.build("lenet5")) == digests[0]  # values do not count
    assert of_net(zoo.build_on_meta("lenet5")) == digests[0]


SLOPE = 0.1


def activation(x):
    return torch.nn.functional.leaky_relu(x, SLOPE)


class Plain(torch.nn.Module):
    """A net for digits, with something of its own."""

    factor = 1.0

    def __init__(self, own=None):
        super().__init__()
        self.fc, self.own = torch.nn.Linear(64, 10), own

    def forward(self, x):
        return self.fc(activation(self.factor * x.flatten(1)))


class Above(Plain):
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({1}, {1, 2}), (frozenset("a"), frozenset("b")), (np.int64(1), np.int64(3)),
        (np.float32(0.1), np.float32(0.9)), (range(2), range(9)), (slice(1), slice(5)),
        (b"a", b"b"), (1j, 2j), (torch.float32, torch.float16), (np.arange(3), np.arange(4)),
    ],
)  # fmt: skip
def test_whatever_a_net_was_told_counts(one, two):
    assert of_net(Plain(one)) == of_net(Plain(one))
    assert of_net(Plain(one)) != of_net(Plain(two))


def test_what_forward_uses_from_outside_counts(monkeypatch):
    digests = [of_net(kind()) for kind in (Plain, Above)]
    monkeypatch.setattr(sys.modules[__name__], "SLOPE", 0.9)
    digests += [of_net(kind()) for kind in (Plain, Above)]
    monkeypatch.setattr(Plain, "factor", 2.0)
    digests += [of_net(kind()) for kind in (Plain, Above)]
    monkeypatch.setattr(Plain, "forward", lambda self, x: self.fc(x.flatten(1).sin()))
    digests += [of_net(kind()) for kind in (Plain, Above)]
    assert len(set(digests)) == 8


class Keeps(Plain):
    """Counts its calls and keeps what it saw, as one does to look at it."""

    def __init__(self):
        super().__init__({})
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.own["seen"] = x.detach()
        return super().forward(x)


def test_what_a_net_keeps_of_its_passes_is_no_setting(digits, tmp_path, monkeypatch):
    net = Keeps()
    config = Config(epochs=2, train_images=128)
    with monkeypatch.context() as patch:
        stop_after(1, patch, KeyboardInterrupt)
        stopped = fit(net, digits, config, checkpoint=tmp_path / "run.pt", show=False)
    run = fit(net, digits, config, checkpoint=tmp_path / "run.pt", show=False)
    assert (len(stopped.epochs), len(run.epochs)) == (1, 2)
    assert stopped.digest == run.digest == fit(Keeps(), digits, config, show=False).digest


@pytest.mark.parametrize("library", [random.random, np.random.rand])
def test_random_numbers_of_other_libraries_go_on_too(digits, tmp_path, monkeypatch, library):
    class Noisy(Plain):
        def forward(self, x):
            return super().forward(x) * (1 + self.training * float(library()))

    def build():
        torch.manual_seed(0)
        return Noisy()

    config = Config(epochs=3, train_images=128)
    states = random.getstate(), np.random.get_state()[1].tolist()
    whole = fit(build(), digits, config, show=False)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    with monkeypatch.context() as patch:
        stop_after(1, patch, KeyboardInterrupt)
        fit(build(), digits, config, checkpoint=tmp_path / "run.pt", show=False)
    library()
    again = fit(build(), digits, config, checkpoint=tmp_path / "run.pt", show=False)
    assert_same(again.model, whole.model)


def test_a_state_that_cannot_be_read_again_is_refused_before_training(digits, tmp_path):
    class Odd(Plain):
        def get_extra_state(self):
            return {"seen": np.int64(2)}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match="get_extra_state return tensors"):
        fit(Odd(), digits, Config(epochs=1), checkpoint=tmp_path / "run.pt", show=False)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["run.pt.lock"])


def test_a_disk_that_would_be_full_later_is_told_before_training(digits, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    fit(Plain(), digits, Config(epochs=1), checkpoint=tmp_path / "small.pt", show=False)
    monkeypatch.setattr(train, "train_epoch", lambda _: pytest.fail("trained"))
    for _ in range(2):  # nor does the second call take the first one's file for a training
        with pytest.raises(OSError, match=r"its files will take \d MB; 0 MB free there"):
            fit(lenet(), digits, CONFIG, checkpoint=tmp_path / "run.pt", show=False)
    # 2 MB would do for three files of weights, but the optimizer's numbers come along
    free = free._replace(free=2_000_000)
    with pytest.raises(OSError, match=r"its files will take"):
        fit(lenet(), digits, CONFIG, checkpoint=tmp_path / "run.pt", show=False)


def test_a_file_that_cannot_be_read_now_is_no_damaged_one(digits, tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    stop_after(1, monkeypatch, KeyboardInterrupt)
    fit(lenet(), digits, CONFIG, checkpoint=file, show=False)
    before = file.read_bytes()

    def no_rights(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints, "read_checked", no_rights)
    with pytest.raises(PermissionError, match=r"run\.pt"):
        fit(lenet(), digits, CONFIG, checkpoint=file, show=False)
    assert file.read_bytes() == before
    assert not list(tmp_path.glob("*damaged*"))


def test_another_number_of_threads_is_told(digits, monkeypatch):
    stop_after(1, monkeypatch, KeyboardInterrupt)
    fit(lenet(), digits, CONFIG, checkpoint=True, show=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(ValueError, match=r"threads was \d+, is 77"):
        fit(lenet(), digits, CONFIG, checkpoint=True, show=False)


@pytest.mark.parametrize("where", [1, 2.5, ["a"]])
def test_a_checkpoint_s_place_is_a_name(digits, where):
    with pytest.raises(TypeError, match="expected a file's name, True or None"):
        fit(Plain(), digits, Config(epochs=1), checkpoint=where, show=False)


def test_a_setting_that_holds_itself_and_others_counts():
    class Setting:
        def __init__(self, value):
            self.value, self.me = value, self

    def digest_with(setting) -> str:
        net = zoo.build("lenet5")
        net.setting = setting
        return of_net(net)

    for held in (lambda a: Setting(Setting(a)), lambda a: [Setting(a)]):
        assert digest_with(held(1)) == digest_with(held(1)) != digest_with(held(2))


def test_another_pytorch_prints_its_layers_otherwise_and_the_digest_stays(monkeypatch):
    before = of_net(zoo.build("lenet5_bn"))
    monkeypatch.setattr(torch.nn.BatchNorm2d, "extra_repr", lambda self: "eps, and more")
    monkeypatch.setattr(torch.nn.Sequential, "__repr__", lambda self: "a row of layers")
    assert of_net(zoo.build("lenet5_bn")) == before


@pytest.mark.parametrize(
    "layers",
    [
        (torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Conv2d(3, 3, 3, padding=2)),
        (torch.nn.Conv2d(3, 3, 3), torch.nn.Conv2d(3, 3, 3, dilation=2)),
        (torch.nn.MaxPool2d(2), torch.nn.MaxPool2d(2, ceil_mode=True)),
        (torch.nn.MaxPool2d(2), torch.nn.AvgPool2d(2)),
        (torch.nn.Dropout(0.1), torch.nn.Dropout(0.2)),
        (torch.nn.LeakyReLU(0.1), torch.nn.LeakyReLU(0.2)),
        (torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3, eps=1e-3)),
        (torch.nn.Softplus(1), torch.nn.Softplus(5)),
        (torch.nn.Threshold(0.1, 0), torch.nn.Threshold(0.5, 0)),
        (torch.nn.LPPool2d(1, 2), torch.nn.LPPool2d(2, 2)),
        (torch.nn.Softshrink(0.1), torch.nn.Softshrink(0.9)),
        (torch.nn.AvgPool2d(2), torch.nn.AvgPool2d(2, divisor_override=1)),
    ],
)
def test_what_a_layer_was_told_counts(layers):
    assert of_net(layers[0]) != of_net(layers[1])


def test_a_function_that_a_net_keeps_counts():
    values = [torch.relu, torch.tanh, [1, 2], [3, 4], {"a": 1}, {"a": 2}]
    values += [functools.partial(torch.relu, a) for a in (1, 2)]
    values += [functools.partial(torch.relu, a=a) for a in (1, 2)]
    digests = set()
    for value in values:
        net = zoo.build("lenet5")
        net.setting = value
        digests.add(of_net(net))
    assert len(digests) == len(values)


def test_a_method_that_forward_calls_counts():
    class Adds(torch.nn.Module):
        def forward(self, x):
            return self.change(x)

        def change(self, x):
            return x + 1

    class Subtracts(torch.nn.Module):
        def forward(self, x):
            return self.change(x)

        def change(self, x):
            return x - 1

    Subtracts.__name__ = "Adds"
    assert of_net(Adds()) != of_net(Subtracts())


def test_what_forward_does_counts_where_its_source_is_not_known():
    def made(function: str) -> torch.nn.Module:
        names = {"Module": torch.nn.Module}
        exec(f"class Net(Module):\n    def forward(self, x):\n        return x.{function}()", names)
        return names["Net"]()

    assert of_net(made("sin")) == of_net(made("sin")) != of_net(made("cos"))
    two = [eval(f"lambda x: x {sign} 1") for sign in "+-"]
    assert value_of(two[0]) != value_of(two[1])


@pytest.mark.parametrize("holder", [lambda held: {held}, lambda held: functools.partial(abs, held)])
def test_a_set_or_partial_that_holds_itself_has_words(holder):
    class Setting:
        pass

    setting = Setting()
    setting.inside = holder(setting)
    assert value_of(setting) == value_of(setting) != ""
    assert "Setting" in value_of(setting.inside)


def test_equal_settings_have_equal_words_and_others_do_not():
    class Setting:
        def __init__(self, a):
            self.a = a

    array = np.arange(2000)
    other = array.copy()
    other[1000] = 0
    settings = [
        lambda: {torch.relu, torch.tanh, len},
        lambda: {torch.relu, torch.tanh},
        lambda: functools.partial(torch.relu, Setting(1)),
        lambda: functools.partial(torch.relu, Setting(2)),
        lambda: functools.partial(torch.relu, a=Setting(1)),
        lambda: {torch.relu: 1},
        lambda: {torch.tanh: 1},
        lambda: {Setting(1)},
        lambda: {Setting(2)},
        lambda: array,
        lambda: other,
        lambda: np.array([Setting(1)]),
    ]
    words = [value_of(make()) for make in settings]
    assert words == [value_of(make()) for make in settings]
    assert len(set(words)) == len(words)
    assert not [said for said in words if "0x" in said]


# ------------------------------------------------------------------------------------------ slow

KILLED = [
    ("--optimizer", "adam"),
    ("--optimizer", "sgd", "--lr", "0.05", "--nesterov", "--label-smoothing", "0.1"),
    ("--optimizer", "adamw", "--schedule", "warmup", "--augment", "crop"),
    ("--schedule", "multistep", "--milestones", "2", "4"),
    ("--schedule", "cosine", "--augment", "flip", "colour"),
    ("--patience", "2"),
]


@pytest.mark.slow
@pytest.mark.parametrize("words", KILLED, ids=lambda words: " ".join(words[:2]))
def test_killed_at_random_moments(tmp_path, words):
    """Eight or nine kills a configuration, 50 in all, at moments drawn from the run's length."""
    start = time.monotonic()
    whole = command(tmp_path / "whole", *words).communicate()[0]
    seconds = time.monotonic() - start
    generator = torch.Generator().manual_seed(len(words[1]))
    for _ in range(9 if words in KILLED[:2] else 8):
        process = command(tmp_path / "killed", *words)
        wait = 1.1 * seconds * torch.rand(1, generator=generator).item()
        try:
            process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    process = command(tmp_path / "killed", *words)
    again, error = process.communicate()
    assert process.returncode == 0, error
    assert rows(again) == rows(whole)
    weights = [next((tmp_path / who / "weights").glob("*")) for who in ("killed", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    left = [p.name for p in (tmp_path / "killed").rglob("*") if p.suffix in (".tmp", ".lock")]
    assert left == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("unexpected pos 64\nin a long story"), "unexpected pos 64"),  # torch's own
    ],
)
def test_the_reason_why_a_file_cannot_be_written_is_one_line(tmp_path, error, reason):
    said = str(machine.cannot_write(tmp_path / "new/run.pt", error))
    assert re.search(rf"run\.pt cannot be written \({reason}; [\d,]+ MB free there\)", said)
