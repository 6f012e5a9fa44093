"""The small package behind the notebooks. The way of the data, from top to bottom:

    data.load("mnist")            images as bytes                       data, sources
    fit(net, mnist, Config(…))    drawn in batches, trained on          train, config, run
    judge(run, "our recipe")      the test images, once; written down   records
    99_compare                    all runs side by side                 compare, experiments

Beside it: `machine` (device, number format, folders), `ddp` (several processes), `graphs` (what a
GPU replays), `advice` (what goes wrong, in words), `checkpoints` (how a training goes on),
`digests` (what tells two nets apart), `probe` (a net layer by layer), `look` (every picture), `zoo`
(the notebooks' networks by name), `weights` and `predict` (trained nets), `check` (exercises).
"""

import importlib
import os

# Threads that wait for others spin a while before they sleep. GNU OpenMP's default (300,000 rounds)
# starves the other kernels of a shared machine; this is no slower alone. It is read once, when
# PyTorch is loaded, and so stands before everything else.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# On a Mac: what its GPU has no code for is computed on the CPU. Read when PyTorch is loaded, too.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

# The names that a notebook uses, with the modules that define them. They are imported when asked
# for: PyTorch alone takes two seconds.
NAMES = {
    "Batches": "data",
    "Config": "config",
    "evaluate": "train",
    "fit": "train",
    "judge": "records",
}


def __getattr__(name: str):
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{NAMES[name]}"), name)
