"""Receptive fields: which pixels of the image each position of a map depends on.

They are followed along each axis of the image, from one operation of a forward pass to the next.
What an operation not named here makes is not known, nor is anything that comes of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Self

import torch

from common.advice import tensors_in

aten = torch.ops.aten
POINTWISE = {  # beside those that every version of torch from 2.6 on marks so
    aten.celu_, aten.elu_, aten.gelu_, aten.hardsigmoid_, aten.hardswish, aten.hardswish_,
    aten.hardtanh_, aten.leaky_relu, aten.leaky_relu_, aten.log_sigmoid_forward, aten.mish_,
    aten._prelu_kernel, aten.selu_, aten.threshold_,
}  # fmt: skip
ALONG_A_DIMENSION = {aten.cat, aten._softmax, aten._log_softmax}
WINDOWS = {aten.convolution, aten.max_pool2d_with_indices, aten.avg_pool2d}
VIEWS = {aten.view, aten._unsafe_view, aten.squeeze, aten.unsqueeze}


def storage(tensor: torch.Tensor) -> int:
    """What a tensor and its views have in common."""
    return tensor.untyped_storage()._cdata


def pair(value) -> tuple[int, int]:
    """(vertical, horizontal) from one number or two."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(values * 2)[:2]


@dataclass(frozen=True)
class Axis:
    """What the positions along one axis of a map see along the same axis of the image.

    If the image had no edges, position i would see the pixels low + step i … high + step i; with a
    step of 0 all see the same. `sees[i]` are those of the image's `pixels` that it does see, never
    none: bit p of the number stands for pixel p.
    """

    low: int
    high: int
    step: int
    sees: tuple[int, ...]
    pixels: int

    @property
    def whole(self) -> bool:
        """Whether every position sees every pixel, wherever it lies."""
        return self.step == 0 and self.sees[0].bit_count() == self.pixels

    def together(self, n: int) -> Self:
        """`n` positions, each of which sees what all positions of this axis see."""
        seen = reduce(or_, self.sees)
        first, last = (seen & -seen).bit_length() - 1, seen.bit_length() - 1  # bits that are set
        return Axis(first, last, 0, (seen,) * n, self.pixels)

    def window(self, n: int, kernel: int, stride: int, padding: int, dilation: int) -> Self | None:
        """`n` windows of `kernel` taps, `dilation` apart. None where one sees only padding."""
        sees = []
        for start in range(-padding, n * stride - padding, stride):
            taps = range(start, start + kernel * dilation, dilation)
            inside = [self.sees[tap] for tap in taps if 0 <= tap < len(self.sees)]
            sees.append(reduce(or_, inside, 0))
        low = self.low - self.step * padding
        high = self.high + self.step * (dilation * (kernel - 1) - padding)
        return Axis(low, high, self.step * stride, tuple(sees), self.pixels) if all(sees) else None


def union(axes: Sequence[Axis], n: int) -> Axis | None:
    """`n` positions that see what any of `axes` sees there. None where their steps differ.

    What is broadcast, because an axis has one position only, is seen from all.
    """
    axes = [axis if len(axis.sees) == n else axis.together(n) for axis in axes]
    for axis in axes:
        if axis.whole or len(axes) == 1:
            return axis
    if len({axis.step for axis in axes}) > 1:
        return None
    low, high = min(axis.low for axis in axes), max(axis.high for axis in axes)
    sees = [reduce(or_, at) for at in zip(*(axis.sees for axis in axes), strict=True)]
    return Axis(low, high, axes[0].step, tuple(sees), axes[0].pixels)


Seen = tuple[Axis, Axis]  # vertical, horizontal


def field_and_stride(seen: Seen | None) -> tuple[int | str, int | str]:
    """(field, stride) in words: one number, "h x w", "all" or "not known"."""
    if seen is None:
        return "not known", "not known"
    if all(axis.whole for axis in seen):
        return "all", "all"
    fields = [axis.high - axis.low + 1 for axis in seen]
    strides = [axis.step or "all" for axis in seen]
    field, stride = (v if v == h else f"{v} x {h}" for v, h in (fields, strides))
    return field, stride


class FieldTracker:
    """Follows what the tensors of a forward pass see of the image.

    `fields[id(tensor)]` is what a position sees, all its channels together, or None where it is not
    known; what does not depend on the image is left out. The positions are the places of a map
    (N, C, H, W); what an image has become in any other tensor (N, …) is one position. The caller
    keeps all tensors, so that no id is used twice.
    """

    def __init__(self, image: torch.Tensor) -> None:
        self.batch = len(image)
        pixels = [tuple(1 << i for i in range(n)) for n in image.shape[2:]]
        self.fields = {id(image): tuple(Axis(0, 0, 1, sees, len(sees)) for sees in pixels)}
        self.viewed: set[int] = set()  # storages that several tensors share

    def observe(self, operation, args: tuple, kwargs: dict, outputs: list[torch.Tensor]) -> None:
        """`operation` has made `outputs` from its arguments."""
        inputs = tensors_in([args, kwargs])
        known = [tensor for tensor in inputs if id(tensor) in self.fields]
        if not known:
            return
        shared = {storage(t) for t in inputs} & {storage(t) for t in outputs}
        if not operation._schema.is_mutable:
            self.viewed |= shared
        elif not (outputs and outputs[0] is inputs[0] is known[0]) or shared & self.viewed:
            self.fields.clear()  # tensors may have changed that do not appear here: give up
            return
        fields = dict.fromkeys(map(id, outputs))
        if outputs and all(self.fields[id(tensor)] for tensor in known):
            fields[id(outputs[0])] = self.follow(operation, args, kwargs, known, outputs[0])
        self.fields |= fields

    def follow(self, operation, args, kwargs, known, output) -> Seen | None:
        """What `output` sees, made by `operation` from the tensors `known`, whose fields are."""
        if output.ndim < 2 or len(output) != self.batch:
            return None
        size = tuple(output.shape[2:]) if output.ndim == 4 else (1, 1)
        kind, names = operation.overloadpacket, operation._schema.arguments
        given = {a.name: a.default_value for a in names} | kwargs
        given |= {a.name: value for a, value in zip(names, args, strict=False)}
        x, seen = known[0], self.fields[id(known[0])]

        # Each position of the output depends on the same position of the inputs, on all of one
        # input, or on a window of it.
        same_place = torch.Tag.pointwise in operation.tags or kind in POINTWISE
        same_place |= kind in ALONG_A_DIMENSION and given["dim"] % output.ndim == 1  # the channels
        same_place |= kind is aten.native_batch_norm and not given["training"]
        same_place |= kind is aten._adaptive_avg_pool2d and output.shape == x.shape
        everything = kind in VIEWS or (kind in (aten.addmm, aten.mm) and args[-2] is x)
        everything |= kind is aten.mean and {d % x.ndim for d in given["dim"] or ()} == {2, 3}
        windows = kind in WINDOWS and x is args[0] and not given.get("transposed")
        if same_place and all(tensor.ndim == output.ndim for tensor in known):
            columns = zip(*(self.fields[id(tensor)] for tensor in known), strict=True)
            axes = [union(column, n) for column, n in zip(columns, size, strict=True)]
        elif len(known) == 1 and everything and size == (1, 1):
            axes = [axis.together(1) for axis in seen]
        elif len(known) == 1 and windows and x.ndim == 4:
            kernel = given.get("kernel_size") or given["weight"].shape[2:]
            settings = kernel, given["stride"] or kernel, given["padding"], given.get("dilation", 1)
            ways = zip(seen, size, *map(pair, settings), strict=True)
            axes = [axis.window(*way) for axis, *way in ways]
        else:
            return None
        return None if None in axes else tuple(axes)
