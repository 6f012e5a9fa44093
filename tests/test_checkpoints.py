"""A training that stops goes on from its checkpoint as if it had not."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from common import data, machine, train, zoo
from common.checkpoints import load_checkpoint, save_checkpoint
from common.config import Config
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


STATE = {"weights": {}, "best_weights": {}, "optimizer": {}, "scaler": {}}


class PowerCut(Exception):
    """Ends a training where it stands."""


def stop_after(epochs: int, monkeypatch) -> None:
    """Let `fit` fail in the epoch after so many."""
    whole = train.train_epoch

    def cut(net, batches, epoch, *rest):
        result = whole(net, batches, epoch, *rest)
        if epoch == epochs:
            raise PowerCut
        return result

    monkeypatch.setattr(train, "train_epoch", cut)


def numbers(history) -> list[dict]:
    timed = ("seconds", "images_per_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in history.epochs]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_goes_on_bit_for_bit(digits, tmp_path, monkeypatch, precision, optimizer):
    if precision == "bf16" and not machine.has_bf16(machine.device().type):
        pytest.skip("no bf16 on this machine")
    config = replace(CONFIG, precision=precision, optimizer=optimizer)
    whole = lenet()
    expected = fit(whole, digits, config, show=False)

    file = tmp_path / "run.pt"
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(PowerCut):
            fit(lenet(), digits, config, show=False, checkpoint=file)
    torch.manual_seed(99)  # whatever state the second process is in
    model = zoo.build("lenet5_bn")
    history = fit(model, digits, config, show=False, checkpoint=file)

    assert numbers(history) == numbers(expected)
    assert history.batch_losses == expected.batch_losses
    assert history.best_epoch == expected.best_epoch
    for name, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_killed_process_goes_on(tmp_path):
    """SIGKILL between two epochs, as a time limit or a closed laptop does it."""
    words = [sys.executable, "-m", "common", "train", "lenet5_bn", "--dataset", "digits"]
    words += ["--epochs", "12", "--batch-size", "8", "--seed", "3"]

    def run(folder):
        env = os.environ | {"CNN_RUNS": str(tmp_path / folder)}
        return subprocess.Popen(
            words, env=env, cwd=machine.HOME, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    killed = run("killed")
    checkpoint_folder = tmp_path / "killed/checkpoints"
    for _ in range(600):
        if list(checkpoint_folder.glob("*.pt")):
            break
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again, whole = run("killed").communicate()[0], run("whole").communicate()[0]
    assert re.search(r"Going on after epoch \d+", again)
    assert not list(checkpoint_folder.glob("*"))

    def table(text):  # the epochs without their seconds and images a second
        rows = [line.split() for line in text.splitlines() if re.match(r"\d+ ", line)]
        return [row[:-2] for row in rows]

    assert len(table(whole)) == 12
    assert table(again) == table(whole)


def test_a_finished_training_is_not_trained_again(digits, tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    first, second = lenet(), lenet()
    expected = fit(first, digits, CONFIG, show=False, checkpoint=file)
    monkeypatch.setattr(train, "train_epoch", None)  # would fail if called
    history = fit(second, digits, CONFIG, show=False, checkpoint=file)
    assert history.batch_losses == expected.batch_losses
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_early_stopping_is_remembered(digits, tmp_path, monkeypatch):
    config = replace(CONFIG, epochs=9, patience=1, lr=0.5)
    file = tmp_path / "run.pt"
    history = fit(lenet(), digits, config, show=False, checkpoint=file)
    assert len(history.epochs) < 9
    monkeypatch.setattr(train, "train_epoch", None)
    again = fit(lenet(), digits, config, show=False, checkpoint=file)
    assert again.notes == history.notes
    assert again.notes[-1].startswith("Stopped early")


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"lr": 0.1}, "lr was 0.003 there, and is 0.1 here"), ({"seed": 6}, "seed was 5 there")],
)
def test_another_trainings_file_is_refused(digits, tmp_path, changed, message):
    file = tmp_path / "run.pt"
    fit(lenet(), digits, CONFIG, show=False, checkpoint=file)
    with pytest.raises(ValueError, match=message):
        fit(lenet(), digits, replace(CONFIG, **changed), show=False, checkpoint=file)


def test_another_networks_file_is_refused(digits, tmp_path):
    file = tmp_path / "run.pt"
    config = Config(epochs=1, image_size=32, train_images=100)
    fit(lenet(), digits, config, show=False, checkpoint=file)
    with pytest.raises(ValueError, match=r"run\.pt belongs to another training: network"):
        fit(zoo.build("alexnet_cifar", 1), digits, config, show=False, checkpoint=file)


@pytest.mark.parametrize("change", ["layers", "images", "precision"])
def test_another_net_of_the_same_size_or_other_images_are_refused(digits, tmp_path, change):
    file = tmp_path / "run.pt"
    config = replace(CONFIG, epochs=1, precision="auto")
    fit(lenet(), digits, config, show=False, checkpoint=file)
    model, images = lenet(), digits
    if change == "layers":
        (name, *_) = [n for n, m in model.named_children() if isinstance(m, torch.nn.ReLU)]
        setattr(model, name, torch.nn.Sigmoid())
    if change == "images":
        labels = digits.train.labels.roll(1)
        images = replace(digits, train=data.Images(digits.train.images, labels))
    if change == "precision":
        state = torch.load(file)
        state["task"]["arithmetic"] = "fp16"
        torch.save(state, file)
    expected = {"layers": "network", "images": "data set", "precision": "arithmetic"}[change]
    with pytest.raises(ValueError, match=f"{expected} was"):
        fit(model, images, config, show=False, checkpoint=file)


@pytest.mark.parametrize("spoil", ["cut", "empty", "text"])
def test_a_damaged_file_is_named(digits, tmp_path, spoil):
    file = tmp_path / "run.pt"
    fit(lenet(), digits, CONFIG, show=False, checkpoint=file)
    content = file.read_bytes()
    file.write_bytes({"cut": content[:5000], "empty": b"", "text": b"hello"}[spoil])
    with pytest.raises(ValueError, match=r"run\.pt is not a readable checkpoint.*Delete it"):
        fit(lenet(), digits, CONFIG, show=False, checkpoint=file)


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    save_checkpoint(file, {}, **STATE, history={"epoch": 1})

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(file, {}, **STATE, history={"epoch": 2})
    assert load_checkpoint(file, {})["history"] == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_a_checkpoint_cannot_run_code(tmp_path):
    file = tmp_path / "run.pt"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"task": {}, "weights": Evil(), "history": {}}, file)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(file, {})
    assert not (tmp_path / "harm").exists()
