"""Out of memory, in words: how large the batch was, and how large it may be."""

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from common import parallel, session
from common.arithmetic import autocast
from common.data import Batches

# How the allocators of PyTorch and C++ say it, and what oneDNN says when it gets none.
PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
PHRASES += ("could not create a primitive", "could not create a memory")


@contextmanager
def explained(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, precision: str
) -> Iterator[None]:
    """Turns running out of memory into a MemoryError that says what would fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that were too much
        optimizer.zero_grad()
        session.recycle_memory(False)
        peak = session.peak_memory_bytes()
        used = f", of {peak / 1e9:.1f} GB used at most" if peak else ""
        said = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        advice = "try a smaller one"
        if parallel.ranks() == 1:  # else the other processes wait for gradients
            fits = largest_batch(model, optimizer, batches, precision)
            safe = 2 ** int(math.log2(max(0.75 * fits, 1)))  # the next run may need a little more
            advice = f"the largest batch that fits has {fits} images: try batch_size={safe}"
            if fits == 0:
                advice = "not even one image fits: try a smaller image_size or a narrower net"
        raise MemoryError(
            f"Out of memory with batch_size={batches.batch_size} on the "
            f"{batches.device.type}{used} ({said}); {advice}."
        ) from None


def ran_out(error: BaseException) -> bool:
    """Whether an error means that there was not enough memory."""
    return isinstance(error, MemoryError) or any(p in str(error).lower() for p in PHRASES)


def largest_batch(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, precision: str
) -> int:
    """The most images, up to an eighth, that one training step can take here; 0 if not one."""
    fits, fails = 0, batches.batch_size
    while fails - fits > max(fits // 8, 1):
        size = max((fits + fails) // 2, 1)
        try:
            step(model, optimizer, batches, size, precision)
            fits = size
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            traceback.clear_frames(error.__traceback__)
            fails = size
    return fits


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    size: int,
    precision: str,
) -> None:
    """A training step on `size` images that changes no weight: its learning rate is 0."""
    x = batches.prepare(batches.images[batches.indices[:1]]).expand(size, -1, -1, -1).contiguous()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    try:
        with autocast(batches.device, precision):
            outputs = model(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.float().sum() for output in outputs).backward()
        optimizer.step()
    finally:
        optimizer.zero_grad()
