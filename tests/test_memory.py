"""Running out of memory, in a process that is really given too little of it."""

import os
import platform
import re
import subprocess
import sys

import pytest
import torch

from common import machine, memory, train, zoo
from common.config import Config
from common.data import Batches, load

# The address space is limited to what is in use when training starts, and `spare` MB.
TRAINING = """
import pathlib, resource, torch
from common import data, zoo
from common.config import Config
from common.train import fit

torch.set_num_threads(1)
digits = data.load("digits")
model = zoo.build("alexnet_cifar", 1)
config = Config(epochs=1, batch_size=1000, image_size=32, precision="fp32")
fit(model, digits, Config(epochs=1, image_size=32, train_images=32, precision="fp32"), show=False)
before = [p.clone() for p in model.parameters()]
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {spare} * 10**6,) * 2)
try:
    fit(model, digits, config, show=False)
except MemoryError as error:
    text = str(error)
    print(text)
assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))
advised = int(text.rsplit("batch_size=")[-1].rstrip("."))
again = Config(epochs=1, batch_size=advised, train_images=4 * advised, image_size=32)
print("trained:", len(fit(model, digits, again, show=False).batch_losses), "batches")
"""


def said(spare: int) -> str:
    run = subprocess.run(
        [sys.executable, "-c", TRAINING.format(spare=spare)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=machine.HOME, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's address limit")
def test_names_the_batch_the_peak_and_what_would_fit():
    text = said(spare=1200)
    assert "Out of memory with batch_size=1000 on the cpu, of" in text
    assert "GB used at most" in text
    found = re.search(r"about (\d+) images would fit: try batch_size=(\d+)", text)
    fits, advised = map(int, found.groups())
    assert 2 <= advised <= fits < 1000
    assert "trained: 4 batches" in text  # in the very process that had run out


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs GNU libc")
def test_what_earlier_work_left_is_given_back():
    machine.recycle_memory()
    machine.reset_peak_memory()
    before = machine.peak_memory_bytes()
    torch.ones(10**8)  # 400 MB, gone at once
    machine.reset_peak_memory()
    assert machine.peak_memory_bytes() - before > 300e6, "kept for the next step"
    machine.recycle_memory()
    machine.reset_peak_memory()
    assert machine.peak_memory_bytes() - before < 100e6


def test_running_out_in_validation_is_explained_too(monkeypatch):
    def too_much(*_):
        raise MemoryError

    monkeypatch.setattr(train, "validate", too_much)
    config = Config(epochs=1, batch_size=64, image_size=28, train_images=128)
    with pytest.raises(MemoryError, match="Out of memory with batch_size=64 on the"):
        train.fit(zoo.build("lenet5"), load("digits"), config, show=False)


@pytest.fixture
def little():
    """A net, its optimizer, batches of digits and a precision, as `fit` has them."""
    net = zoo.build("lenet5")
    batches = Batches(load("digits"), "train", 8, size=28)
    return net, torch.optim.SGD(net.parameters()), batches, "fp32"


def test_where_not_even_two_images_fit(monkeypatch, little):
    monkeypatch.setattr(memory, "largest_batch", lambda *_: 2)
    reason = "not even two images fit: try a smaller image_size"
    with pytest.raises(MemoryError, match=reason), memory.explained(*little):
        raise MemoryError


def test_where_the_peak_cannot_be_measured(monkeypatch, little):
    monkeypatch.setattr(machine, "peak_memory_bytes", lambda: None)
    with pytest.raises(MemoryError, match="; try a smaller one"), memory.explained(*little):
        raise MemoryError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_tells_memory_from_other_errors(error, expected):
    assert memory.ran_out(error) == expected
