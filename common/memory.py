"""Out of memory, in words: how large the batch was, and how large it may be."""

import math
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import nn

from common import ddp, machine
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
        peak = machine.peak_memory_bytes()
        used = f", of {peak / 1e9:.1f} GB used at most" if peak else ""
        said = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        fits = None
        if ddp.ranks() == 1:  # else the other processes wait for gradients
            fits = largest_batch(model, optimizer, batches, precision)
        raise MemoryError(
            f"Out of memory with batch_size={batches.batch_size} on the "
            f"{batches.device.type}{used} ({said}); {advice(fits)}."
        ) from None


def ran_out(error: BaseException) -> bool:
    """Whether an error means that there was not enough memory."""
    return isinstance(error, MemoryError) or any(p in str(error).lower() for p in PHRASES)


def advice(fits: int | None) -> str:
    """What to try where about so many images would fit, or nobody knows how many."""
    if fits is None:
        return "try a smaller one"
    safe = 2 ** int(math.log2(max(0.75 * fits, 1)))  # the next run may need a little more
    if safe < 2:
        return "not even two images fit: try a smaller image_size or a narrower net"
    return f"about {fits} images would fit: try batch_size={safe}"


def largest_batch(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, precision: str
) -> int | None:
    """About how many images one training step can take here: 0 if not two, None if none can tell.

    The batch doubles from 2 until its step takes a tenth of what is free, and no further: a system
    that lends more memory than it has would end the whole process instead of one step.
    """
    free, size, peaks = free_memory(batches.device), 2, []
    while len(peaks) < 2 or (size < batches.batch_size and peaks[-1] - peaks[0] < free / 10):
        machine.reset_peak_memory()
        try:
            step(model, optimizer, batches, size, precision)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            traceback.clear_frames(error.__traceback__)
            return size // 2 if peaks else 0
        peaks.append(machine.peak_memory_bytes() or 0)
        size *= 2
    image = (peaks[-1] - peaks[-2]) / (size // 4)  # bytes, from batches of size / 4 and size / 2
    if image <= 0:
        return None
    return min(int((free - peaks[-1] + peaks[0]) / image), batches.batch_size - 1)


def free_memory(device: torch.device) -> int:
    """The bytes that this process can still get."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + kept
    free = psutil.virtual_memory().available
    if sys.platform != "win32":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            free = min(free, limit - psutil.Process().memory_info().vms)
    return free


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
