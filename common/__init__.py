"""The small package behind the notebooks: data, training, probes, plots, records and exercises."""

import os

# Threads that wait for others spin a while before they sleep. GNU OpenMP's default (300,000 rounds)
# starves the other kernels of a shared machine; this is no slower alone. It is read once, when
# PyTorch is loaded, and so stands before everything else.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
