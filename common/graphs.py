"""CUDA graphs: a GPU gets the kernels of a whole pass at once, where the net can be recorded.

One by one, Python hands a GPU the kernels of a small net more slowly than they compute.
"""

import contextlib
import copy
import gc
import inspect
import io
import pickle
import random
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from common import machine

Call = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]

# What PyTorch says of every recorded net's first step, though the streams are in order, and of the
# way to find out whether a net reads a value.
warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")


class Replayed(nn.Module):
    """A net on a GPU, called like the net itself, whose training passes are replayed.

    Forward and backward are recorded once for each shape of a batch, by PyTorch's
    `make_graphed_callables`. A net that does not repeat itself is left as it is: see `repeats`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.recorded: dict[torch.Size, Call] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if not self.training:
            return self.model(x)
        if x.shape not in self.recorded:
            self.recorded[x.shape] = record(self.model, x)
        return self.recorded[x.shape](x)

    def __del__(self) -> None:
        """Give the recordings back here and now.

        They refer to each other, so that only the garbage collector finds them; and where that
        runs in a forked process, such as a DataLoader's worker, CUDA aborts it.
        """
        if self.recorded:
            self.recorded.clear()
            gc.collect()


def record(model: nn.Module, x: torch.Tensor) -> Call:
    """Both passes of a net in training on batches like `x`; the net itself where that cannot be.

    Neither what it holds nor the random numbers, Python's and NumPy's included, are changed by it.
    """
    x, kind = x.clone(), x.device.type
    uncached = torch.autocast(
        kind,
        torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,
    )
    with as_before(model), machine.own_generator(), uncached:
        try:
            if not repeats(model, x):
                return model
            # In a Sequential, for what is recorded gets another forward, and the net keeps its own.
            return torch.cuda.make_graphed_callables(
                nn.Sequential(model), (x,), allow_unused_input=True
            )
        except RuntimeError:  # a step that the GPU cannot repeat by itself, or too little memory
            return model


@contextlib.contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """What a forward pass in training writes into the net's buffers is undone at the end."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def repeats(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether Python has nothing to do in the forward pass that would not be the same each time.

    False for a net that has hooks, draws random numbers on the CPU, or counts its own calls. One
    that reads a value of a tensor raises RuntimeError.
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(m, name) for m in model.modules() for name in hooks):
        return False
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters()):
        return False
    try:
        model = copy.deepcopy(model)  # a trial that the net itself does not notice
    except Exception:  # whatever the objects of a student's net do
        return False
    before = state_of_python(model)
    if before is None:
        return False
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return state_of_python(model) == before


def state_of_python(model: nn.Module) -> tuple | None:
    """All that Python keeps between two calls of a net: what its parts hold, and random generators.

    None where an object cannot be written down, such as an open file.
    """
    held = io.BytesIO()
    try:
        WhatIsHeld(model, held).dump([vars(module) for module in model.modules()])
    except Exception:  # whatever the objects of a student's net do
        return None
    generators = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    return held.getvalue(), *generators


class WhatIsHeld(pickle.Pickler):
    """Writes down all that a net holds but its weights, its buffers and what lies on a GPU.

    Those are recorded with the pass. Nothing of this is ever read back: it is only compared.
    """

    def __init__(self, model: nn.Module, file: io.BytesIO):
        super().__init__(file)
        self.recorded = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def reducer_override(self, value: object) -> object:
        if isinstance(value, torch.Tensor):
            if value.is_cuda or id(value) in self.recorded:
                return bytes, ()
            return bytes, (value.detach().flatten().view(torch.uint8).numpy().tobytes(),)
        if isinstance(value, torch.Generator):
            return str, (str(value.get_state().tolist()),)
        # By name alone: pickle looks those up in their module, where one in a function is not.
        named = inspect.isroutine(value) or inspect.isclass(value)
        if named and value not in (str, bytes):
            return str, (value.__qualname__,)
        return NotImplemented
