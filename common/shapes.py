"""Shapes without torch's own machinery for them, which takes seconds to load."""

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def pair(value) -> tuple[int, int]:
    """(vertical, horizontal) from one number or two."""
    values = list(value) if isinstance(value, (list, tuple, torch.Size)) else [value]
    return tuple(values * 2)[:2] if len(values) == 1 else tuple(values)


def same(x: torch.Tensor, *_, **__) -> torch.Tensor:
    """What an elementwise function gives, as far as the shape goes."""
    return x


def of_conv(x: torch.Tensor, weight: torch.Tensor, bias, stride, padding, dilation, groups=1):
    if isinstance(padding, str):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides]
    return x.new_empty(x.shape[0], weight.shape[0], *sizes)


def of_max_pool(
    x: torch.Tensor, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **_
) -> torch.Tensor:
    windows = (kernel_size, stride or kernel_size, padding, dilation)
    sizes = []
    for n, k, s, p, d in zip(x.shape[-2:], *map(pair, windows), strict=True):
        steps = n + 2 * p - d * (k - 1) - 1
        size = (-(-steps // s) if ceil_mode else steps // s) + 1
        size -= ceil_mode and (size - 1) * s >= n + p  # the last window must start on the image
        if size < 1:
            raise RuntimeError(f"a window of {k} does not fit {n} pixels")
        sizes.append(size)
    return x.new_empty(*x.shape[:-2], *sizes)


def of_avg_pool(x: torch.Tensor, kernel_size, stride=None, padding=0, ceil_mode=False, *_):
    return of_max_pool(x, kernel_size, stride, padding, ceil_mode=ceil_mode)


def of_linear(x: torch.Tensor, weight: torch.Tensor, bias=None) -> torch.Tensor:
    if x.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"expected {weight.shape[1]} values, got {x.shape[-1]}")
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def of_cat(tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return tensors[0].new_empty(shape)


def of_pool(x: torch.Tensor, size) -> torch.Tensor:
    return x.new_empty(*x.shape[:-2], *pair(size))


class ShapesOnly(TorchFunctionMode):
    """Answers with the output's shape where torch, on the meta device, would load its compiler.

    That takes seconds, and every net has one of these functions.
    """

    answers = dict.fromkeys(
        (F.relu, F.relu6, F.hardtanh, F.dropout, F.batch_norm, torch.relu, torch.sigmoid), same
    ) | {
        torch.Tensor.normal_: same,
        torch.Tensor.add: same,  # a shortcut's two sides have one shape
        F.conv2d: of_conv,
        F.max_pool2d: of_max_pool,
        F.avg_pool2d: of_avg_pool,
        F.linear: of_linear,
        F.adaptive_avg_pool2d: of_pool,
        torch.cat: of_cat,
    }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self.answers.get(function, function)(*args, **(kwargs or {}))
