"""Which operations compute in which number format."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


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
