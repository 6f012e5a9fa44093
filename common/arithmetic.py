"""Which operations compute in which number format, and how fast the machine is in each."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

from common import machine


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Convolutions and matrix products inside compute in `precision`: "fp32", "bf16" or "fp16"."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
        if device.type == "cpu" and precision == "bf16":
            with DepthwiseInFp32():
                yield
        else:
            yield


class DepthwiseInFp32(TorchFunctionMode):
    """Trains depthwise convolutions in fp32, where autocast would take bf16.

    On CPUs their backward pass has no fast bf16 code: MobileNet trains half as fast again with
    this, and its pointwise convolutions keep bf16.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        depthwise = function is torch.conv2d and len(args) > 6 and 1 < args[6] == args[0].shape[1]
        if depthwise and torch.is_grad_enabled():
            with torch.autocast("cpu", enabled=False):
                return function(args[0].float(), *args[1:], **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def matrix_rate(precision: str, seconds: float = 1.0) -> float:
    """The multiply-adds a second that this machine reaches in a product of large matrices."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    n = 8192 if machine.device().type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=machine.device()).to(dtype) for _ in range(2))
    return n**3 / fastest(lambda: a @ b, seconds)


def fastest(work: Callable[[], object], seconds: float = 1.0) -> float:
    """Seconds of the fastest repetition of `work` within so many seconds, after two to warm up."""
    synchronize = torch.cuda.synchronize if machine.device().type == "cuda" else lambda: None
    work(), work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best
