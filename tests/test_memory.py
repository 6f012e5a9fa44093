"""What a training leaves of the memory that it took."""

import os
import platform
import subprocess
import sys

import pytest

from common import machine

FITTED = """
import pathlib, resource, torch
from common import data, machine, zoo
from common.config import Config
from common.train import fit

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

digits = data.load("digits")
config = Config(epochs=1, batch_size=256, image_size=32, train_images=256, precision="fp32")
small = Config(epochs=1, batch_size=16, image_size=32, train_images=32, precision="fp32")
fit(zoo.build("alexnet_cifar", 1), digits, small, show=False)  # loads what is loaded once
before = resident()
model = zoo.build("alexnet_cifar", 1)
if {fails}:
    def spoil(*_):
        raise ZeroDivisionError
    model.fc3.register_full_backward_hook(spoil)
try:
    run = fit(model, digits, config, show=False)
    print("peak", run.peak_memory_bytes / 1e6)
except ZeroDivisionError:
    pass
del model
print("left", (resident() - before) / 1e6)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs GNU libc")
@pytest.mark.parametrize("fails", [False, True])
def test_a_training_gives_its_memory_back(fails):
    run = subprocess.run(
        [sys.executable, "-c", FITTED.format(fails=fails)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=machine.HOME, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    said = dict(line.split() for line in run.stdout.splitlines() if line[:4] in ("peak", "left"))
    assert float(said["left"]) < 200
    assert fails or float(said["peak"]) > 300  # MB: there was something to give back
