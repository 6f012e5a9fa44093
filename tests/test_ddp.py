"""Several processes train as one: with torchrun and Gloo, as a user starts them."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from common import data, ddp, machine, zoo
from common.checkpoints import read_checked
from common.config import Config
from common.train import fit

TRAINING = """
import pathlib
import torch
from common import data, ddp, zoo
from common.checkpoints import read_checked
from common.config import Config
from common.train import fit

with ddp.joined():
    torch.manual_seed(7 + ddp.rank())  # the first process's weights count
    model = zoo.build({network!r})
    {fault}
    file = pathlib.Path({folder!r}, "run.checkpoint")
    history = fit(model, data.load("digits"), Config(**{config}), show=False, checkpoint=file)
    assert ddp.ranks() == 2
    torch.save([model.state_dict(), history.epochs], f"{{file.parent}}/{{ddp.rank()}}.pt")
"""

CONFIG = {
    "epochs": 2, "batch_size": 50, "image_size": 28, "train_images": 330, "optimizer": "sgd",
    "lr": 0.05, "precision": "fp32", "augment": ("crop",),
}  # fmt: skip


def torchrun(*arguments: str, env: dict | None = None) -> subprocess.CompletedProcess:
    """Two processes on this machine, at most two minutes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return subprocess.run(
        [*command, *arguments],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | (env or {}),
        cwd=machine.HOME,
        capture_output=True,
        text=True,
        timeout=120,
    )


def script(tmp_path, network: str, fault: str = "", **settings) -> str:
    path = tmp_path / "training.py"
    config = CONFIG | settings
    path.write_text(
        TRAINING.format(network=network, config=config, folder=str(tmp_path), fault=fault)
    )
    return str(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What two processes end with: (weights, epochs) of each."""
    folder = tmp_path_factory.mktemp("whole")
    run = torchrun(script(folder, "lenet5"))
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_two_processes_give_the_weights_of_one(whole):
    """330 images in batches of 50: the last one has 30, and 2 x 25 is not the same as 50."""
    (together, rows), (other, _) = whole

    torch.manual_seed(7)
    alone = zoo.build("lenet5")
    start = {name: value.clone() for name, value in alone.state_dict().items()}
    history = fit(alone, data.load("digits"), Config(**CONFIG), show=False)
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(together[name], expected.cpu(), rtol=0, atol=1e-5, msg=name)
        assert torch.equal(together[name], other[name])
    assert not torch.allclose(start["fc3.weight"], together["fc3.weight"], atol=1e-3)
    for row, expected in zip(rows, history.epochs, strict=True):
        for key in ("train_loss", "val_loss"):
            assert row[key] == pytest.approx(expected[key], abs=1e-5)
        for key in ("train_accuracy", "val_accuracy"):
            assert row[key] == pytest.approx(expected[key])


def test_an_uneven_last_batch_counts_each_image_once(tmp_path):
    """One epoch of a batch of 50 and one of 17: one process has 9 of them, the other 8."""
    settings = {"train_images": 67, "epochs": 1}
    run = torchrun(script(tmp_path, "lenet5", **settings))
    assert run.returncode == 0, run.stderr[-3000:]
    together, _ = torch.load(tmp_path / "0.pt")
    torch.manual_seed(7)
    alone = zoo.build("lenet5")
    fit(alone, data.load("digits"), Config(**CONFIG | settings), show=False)
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(together[name], expected.cpu(), rtol=0, atol=1e-5, msg=name)


def test_running_statistics_are_the_same_everywhere(tmp_path):
    run = torchrun(script(tmp_path, "lenet5_bn", image_size=32, epochs=1))
    assert run.returncode == 0, run.stderr[-3000:]
    weights = [torch.load(tmp_path / f"{rank}.pt")[0] for rank in (0, 1)]
    assert any("running_mean" in name for name in weights[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_process_that_fails_ends_the_others(tmp_path):
    fault = """
    def fail(module, inputs, calls=[]):
        calls.append(1)
        if ddp.rank() == 1 and len(calls) == 3:
            raise LookupError("the second process is out of luck")
    model.register_forward_pre_hook(fail)
    """
    start = time.perf_counter()
    run = torchrun(script(tmp_path, "lenet5", fault=fault))
    assert run.returncode != 0
    assert "LookupError: the second process is out of luck" in run.stderr
    assert time.perf_counter() - start < 60
    assert not list(tmp_path.glob("*.pt"))


def test_goes_on_from_a_checkpoint_bit_for_bit(whole, tmp_path):
    """The second process fails in the second epoch; a second start goes on after the first."""
    fault = """
    def fail(module, inputs, calls=[]):
        calls.append(1)
        if ddp.rank() == 1 and module.training and sum(calls) > 12:
            raise LookupError
    model.register_forward_pre_hook(fail)
    """
    assert torchrun(script(tmp_path, "lenet5", fault=fault)).returncode != 0
    saved = read_checked(tmp_path / "run.checkpoint")
    assert len(saved["history"]["epochs"]) == 1
    run = torchrun(script(tmp_path, "lenet5"))
    assert run.returncode == 0, run.stderr[-3000:]
    (expected, _), (found, rows) = whole[1], torch.load(tmp_path / "1.pt")
    assert len(rows) == 2
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_command_line_trains_and_records_once(runs):
    words = ["-m", "common", "train", "lenet5", "--dataset", "digits", "--image-size", "28"]
    words += ["--epochs", "1", "--train-images", "200", "--batch-size", "40", "--json"]
    run = torchrun(*words)
    assert run.returncode == 0, run.stderr[-3000:]
    record = json.loads(run.stdout)  # from one process, and nothing else
    assert record["config"]["epochs"] == 1
    assert record["train_images"] == 200
    assert record["device"].startswith("2 x ")
    assert len(list((runs / "records").glob("*.json"))) == 1
    assert not list((runs / "checkpoints").glob("*"))


def test_a_bad_argument_ends_all_processes_with_its_message():
    run = torchrun("-m", "common", "train", "lenet6", "--dataset", "digits")
    assert run.returncode != 0
    assert "Unknown model 'lenet6'" in run.stderr


@pytest.mark.parametrize(("n", "batch_size", "ranks"), [(330, 50, 2), (67, 50, 2), (103, 25, 3)])
def test_shares_make_up_each_batch(n, batch_size, ranks):
    digits = data.load("digits")

    def batches(share=(0, 1)):
        options = {"indices": torch.arange(n), "seed": 3, "augment": ("flip",), "device": "cpu"}
        return data.Batches(digits, "train", batch_size, share=share, **options)

    assert sum(batches().sizes) == n
    shares = [list(batches((rank, ranks)).epoch(4)) for rank in range(ranks)]
    whole_sizes = batches((0, ranks)).sizes
    assert sum(whole_sizes) == n
    whole = torch.cat([x for x, _ in batches().epoch(4)]).split(whole_sizes)
    for step, expected in enumerate(whole):
        parts = [share[step][0] for share in shares]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        joined = torch.empty_like(expected)
        for rank, part in enumerate(parts):
            joined[rank::ranks] = part
        assert torch.equal(joined, expected)


def test_every_stage_has_two_images_for_each_process(tmp_path):
    run = torchrun(script(tmp_path, "lenet5", batch_size=((1, 50), (1, 3))))
    assert run.returncode != 0
    assert "batch_size=3 for 2 processes; expected two images or more for each: 4" in run.stderr


def test_commands_that_cannot_be_shared_say_so():
    run = torchrun("-m", "common", "list")
    assert run.returncode != 0
    assert "torchrun works with train;" in run.stderr


def test_too_few_images_for_the_processes():
    with pytest.raises(ValueError, match="1 images a batch cannot be shared by 2 processes"):
        data.Batches(data.load("digits"), "train", 1, share=(0, 2))


def test_more_processes_than_gpus_are_refused_with_the_number_to_start(monkeypatch):
    monkeypatch.setattr(machine, "gpu_works", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    words = r"process 2 .* has no GPU: there are 1.*nproc-per-node=1"
    with pytest.raises(ValueError, match=words), ddp.joined():
        pass
