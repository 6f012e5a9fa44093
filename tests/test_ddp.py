"""Several processes train as one: with Gloo, and by torchrun where the start is in question."""

import itertools
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from common import data, ddp, machine, zoo
from common.__main__ import main
from common.checkpoints import read_checked
from common.config import Config
from common.run import split_batches
from common.train import fit

CONFIG = {
    "epochs": 2, "batch_size": 50, "image_size": 28, "train_images": 317, "optimizer": "sgd",
    "lr": 0.05, "precision": "fp32", "augment": ("crop",),
}  # fmt: skip

# Processes that find PyTorch imported already: by torchrun, each test would wait for it anew.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["common.train", "common.zoo", "torchvision"])


def luckless(at: int, model: nn.Module) -> None:
    """Let the second process fail in its forward pass number `at`."""
    calls = itertools.count(1)

    def fail(*_) -> None:
        if ddp.rank() == 1 and next(calls) == at:
            raise LookupError("the second process is out of luck")

    model.register_forward_pre_hook(fail)


def one_of_two(rank: int, port: int, folder: Path, network: str, fails_at: int, config: dict):
    """A process such as torchrun starts; what it ends with lies in `folder`, or why it failed."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"CNN_RUNS": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    try:
        with ddp.joined():
            torch.manual_seed(7 + rank)  # the first process's weights count
            model = zoo.build(network)
            if fails_at:
                luckless(fails_at, model)
            file, digits = folder / "run.checkpoint", data.load("digits")
            run = fit(model, digits, Config(**config), show=False, checkpoint=file)
            assert ddp.ranks() == 2
            torch.save([model.state_dict(), run.epochs], folder / f"{rank}.pt")
    except Exception as error:
        (folder / f"{rank}.error").write_text(repr(error))
        os._exit(1)  # at once, as a process does that torchrun ends


def two(folder: Path, network: str, fails_at: int = 0, **settings) -> bool:
    """Whether two processes train to their end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    told = (port, folder, network, fails_at, CONFIG | settings)
    both = [forks.Process(target=one_of_two, args=(rank, *told)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        process.kill()
    return [process.exitcode for process in both] == [0, 0]


def said(folder: Path) -> str:
    """Why processes failed."""
    return " ".join(path.read_text() for path in folder.glob("*.error"))


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What two processes end with: (weights, epochs) of each."""
    folder = tmp_path_factory.mktemp("whole")
    assert two(folder, "lenet5"), said(folder)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_two_processes_give_the_weights_of_one(whole):
    """317 images in batches of 50: of the last 17 one process has 9 and the other 8."""
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


def test_running_statistics_are_the_same_everywhere(tmp_path):
    assert two(tmp_path, "lenet5_bn", image_size=32, epochs=1), said(tmp_path)
    weights = [torch.load(tmp_path / f"{rank}.pt")[0] for rank in (0, 1)]
    assert any("running_mean" in name for name in weights[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


FAILING = """
import torch
from common import ddp

with ddp.joined():
    if ddp.rank() == 1:
        raise LookupError("the second process is out of luck")
    ddp.total(torch.ones(1))
    print("the first process goes on")
"""


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(tmp_path):
    """By torchrun, whose work that is: the first process waits for the second one's gradients."""
    program = tmp_path / "training.py"
    program.write_text(FAILING)
    start = time.perf_counter()
    run = torchrun(str(program))
    assert run.returncode != 0
    assert "LookupError: the second process is out of luck" in run.stderr
    assert time.perf_counter() - start < 60
    assert "goes on" not in run.stdout


def test_goes_on_from_a_checkpoint_bit_for_bit(whole, tmp_path):
    """The second process fails in the second epoch; a second start goes on after the first."""
    # Two passes before the training, 7 batches an epoch, 2 of validation
    assert not two(tmp_path, "lenet5", fails_at=2 + 7 + 2 + 3)
    assert "out of luck" in said(tmp_path)
    saved = read_checked(tmp_path / "run.checkpoint")
    assert len(saved["history"]["epochs"]) == 1
    assert two(tmp_path, "lenet5"), said(tmp_path)
    (expected, _), (found, rows) = whole[1], torch.load(tmp_path / "1.pt")
    assert len(rows) == 2
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
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


def test_a_bad_argument_is_told_before_the_processes_meet(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "lenet6", "--dataset", "digits"]) == 2
    assert "Unknown model 'lenet6'" in capsys.readouterr().err


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


def test_every_stage_has_two_images_for_each_process(monkeypatch):
    monkeypatch.setattr(ddp, "ranks", lambda: 2)
    stages = Config(epochs=2, batch_size=((1, 50), (1, 3)))
    words = "batch_size=3 for 2 processes; expected two images or more for each: 4"
    with pytest.raises(ValueError, match=words):
        split_batches(data.load("digits"), stages)


def test_commands_that_cannot_be_shared_say_so(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["list"]) == 2
    assert "torchrun works with train;" in capsys.readouterr().err


def test_processes_that_torchrun_did_not_start_are_told_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="start the processes by torchrun"), ddp.joined():
        pass


def test_more_processes_than_gpus_are_refused_with_the_number_to_start(monkeypatch):
    monkeypatch.setattr(machine, "gpu_works", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    words = r"process 2 .* has no GPU: there are 1.*nproc-per-node=1"
    with pytest.raises(ValueError, match=words), ddp.joined():
        pass
