"""What a training leaves of the memory that it took, at its end or when it fails."""

import os
import platform
import subprocess
import sys

import pytest

from common import machine

FITTED = """
import pathlib, resource, torch
from torch import nn
from common import data, run
from common.config import Config
from common.train import fit

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def net(channels):  # large maps, little to compute
    body = nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(8)
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(64 * channels, 10))

digits, optimizers = data.load("digits"), []
run.watchers.append(lambda event, training: optimizers.append(training.optimizer))
config = Config(epochs=1, batch_size=128, image_size=96, train_images=256, precision="fp32")
fit(net(1), digits, config, show=False)  # loads what is loaded once
before = resident()
done = fit(net(64), digits, config, show=False)
print("peak", (done.peak_memory_bytes - before) / 1e6)
print("left", (resident() - before) / 1e6)

def spoil(*_):
    if optimizers[-1].state:  # in the second batch
        raise ZeroDivisionError
model = net(64)
model[4].register_full_backward_hook(spoil)
try:
    fit(model, digits, config, show=False)
except ZeroDivisionError:
    print("failed", (resident() - before) / 1e6)
assert not optimizers[-1].state
assert all(p.grad is None for p in model.parameters())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs GNU libc")
def test_a_training_gives_its_memory_back():
    run = subprocess.run(
        [sys.executable, "-c", FITTED],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=machine.HOME, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    said = {name: float(mb) for name, mb in map(str.split, run.stdout.splitlines())}
    assert said["peak"] > 300  # MB: there was something to give back
    assert max(said["left"], said["failed"]) < 100
