"""Receptive fields: which pixels of the image each position of a map depends on."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from common.advice import tensors_in


def storage(tensor: torch.Tensor) -> int:
    """What a tensor and its views have in common."""
    return tensor.untyped_storage()._cdata


def pair(value) -> tuple[int, int]:
    """(vertical, horizontal) from one number or two."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(values * 2)[:2] if len(values) == 1 else tuple(values)


# ------------------------------------------------------------------------------------------- axes


@dataclass(frozen=True, eq=False)
class Axis:
    """What the positions along one axis see of an image of `pixels`.

    Position i sees the pixels low + step i … high + step i, as if the image had no edges; with a
    step of 0 all see the same. `edged` (2, size) holds the first and the last real pixel of each
    position, which tells what all of them see together; (inf, -inf) for none.
    """

    pixels: int
    low: int
    high: int
    step: int
    edged: np.ndarray

    @property
    def flat(self) -> bool:
        return self.step == 0

    @property
    def whole_image(self) -> bool:
        return self.flat and (self.low, self.high) == (0, self.pixels - 1)

    def whole(self) -> "Axis":
        """What depends on all positions of this axis."""
        return self.alike(self.edged[0].min(), self.edged[1].max(), self.edged.shape[1])

    def alike(self, low: float, high: float, size: int) -> "Axis":
        """The axis of `size` positions that all see the pixels low … high."""
        edged = np.repeat([[low], [high]], size, 1)
        return Axis(self.pixels, int(low), int(high), 0, edged)

    def window(
        self, size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> "Axis | None":
        """The axis of `size` windows of `kernel` taps, `dilation` apart, that slide over this one.

        None where all see nothing but padding, or some, while the others all see the same.
        """
        low, high = np.full(size, np.inf), np.full(size, -np.inf)
        for tap in range(kernel):
            places = np.arange(size) * stride + tap * dilation - padding
            inside = (places >= 0) & (places < self.edged.shape[1])
            low[inside] = np.minimum(low[inside], self.edged[0, places[inside]])
            high[inside] = np.maximum(high[inside], self.edged[1, places[inside]])
        edged, seeing = np.stack([low, high]), np.isfinite(low)
        if not seeing.any() or (self.flat and not seeing.all()):
            return None
        if self.flat:
            return replace(self, edged=edged)
        before, beyond = -self.step * padding, self.step * (dilation * (kernel - 1) - padding)
        step = self.step * stride
        return Axis(self.pixels, self.low + before, self.high + beyond, step, edged)


def union(axes: list[Axis], size: int) -> Axis | None:
    """The axis of `size` positions that see what any of `axes` sees, if it is that simple."""
    axes = [a if a.flat or a.edged.shape[1] == size else a.whole() for a in axes]  # broadcast
    if any(axis.whole_image for axis in axes):
        return axes[0].alike(0, axes[0].pixels - 1, size)
    if len({axis.step for axis in axes}) > 1:
        return None
    low, high = min(axis.low for axis in axes), max(axis.high for axis in axes)
    if axes[0].flat:
        return axes[0].alike(low, high, size)
    edges = np.stack([axis.edged for axis in axes])
    edged = np.stack([edges[:, 0].min(0), edges[:, 1].max(0)])
    return Axis(axes[0].pixels, low, high, axes[0].step, edged)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the values of a tensor see of the image.

    Of a map the last two dimensions are positions, `vertical` and `horizontal`. `uniform`: all
    channels see the same, so that one may be taken out. `mixed`: values whose position is lost,
    as in a flattened map; the axes then hold what all of them see together.
    """

    vertical: Axis
    horizontal: Axis
    uniform: bool = True
    mixed: bool = False

    @property
    def axes(self) -> tuple[Axis, Axis]:
        return self.vertical, self.horizontal

    @property
    def flat(self) -> bool:
        """Whether every value sees the same."""
        return all(axis.flat for axis in self.axes) and self.uniform and not self.mixed

    @property
    def whole_image(self) -> bool:
        return self.flat and all(axis.whole_image for axis in self.axes)

    def whole(self) -> "Seen":
        """What depends on all values."""
        return Seen(*(axis.whole() for axis in self.axes))

    def windows(self, output: torch.Tensor, *settings) -> "Seen | None":
        """Windows slide over both axes, as `Axis.window` has it; each setting for one or both."""
        ways = zip(output.shape[-2:], *map(pair, settings), strict=True)
        axes = [axis.window(*way) for axis, way in zip(self.axes, ways, strict=True)]
        return None if None in axes else replace(self, vertical=axes[0], horizontal=axes[1])

    def described(self) -> tuple[int | str, int | str]:
        """(field, stride) in words: one number, "h x w", or "all"."""
        if all(axis.whole_image for axis in self.axes):
            return "all", "all"
        fields = [axis.high - axis.low + 1 for axis in self.axes]
        return one_or_both(*fields), one_or_both(*(axis.step or "all" for axis in self.axes))


def one_or_both(vertical: int | str, horizontal: int | str) -> int | str:
    return vertical if vertical == horizontal else f"{vertical} x {horizontal}"


def seen_together(fields: list[Seen], size: tuple[int, int]) -> list[Axis | None]:
    """Both axes of what sees all that any of `fields` sees."""
    columns = [[field.vertical for field in fields], [field.horizontal for field in fields]]
    return [union(axes, n) for axes, n in zip(columns, size, strict=True)]


# ------------------------------------------------------------------------------------- operations

aten = torch.ops.aten
POINTWISE = {  # beside those that torch marks so
    aten.hardswish, aten.hardswish_, aten._prelu_kernel, aten.native_dropout, aten.threshold,
}  # fmt: skip
REARRANGED = {
    aten.view, aten._unsafe_view, aten.reshape, aten.squeeze, aten.unsqueeze, aten.expand,
    aten.repeat,
}  # fmt: skip
SHUFFLES = {aten.channel_shuffle, aten.native_channel_shuffle}
PARTS = {aten.select, aten.split, aten.split_with_sizes, aten.chunk}
REDUCTIONS = {aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std}
PADDINGS = {aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d}
MAY_PAD = {*PADDINGS, aten.convolution}


class FieldTracker:
    """Follows what every tensor of a forward pass sees of the image, operation by operation.

    `fields[id(tensor)]` is a Seen, or None where it is not known: after an operation that is not
    listed here, such as a transposed convolution with a stride, a mirror image or an upsampling.
    """

    def __init__(self, image: torch.Tensor) -> None:
        self.fields: dict[int, Seen | None] = {}
        self.alive: list[torch.Tensor] = []  # keeps ids from being used twice
        self.overwritten: set[int] = set()  # storages of which parts have changed
        self.batch = image.shape[0]
        axes = (
            Axis(n, 0, 0, 1, np.tile(np.arange(n, dtype=float), (2, 1))) for n in image.shape[-2:]
        )
        self.mark([image], Seen(*axes))

    def mark(self, tensors: list[torch.Tensor], seen: Seen | None) -> None:
        self.fields |= {id(tensor): seen for tensor in tensors}
        self.alive += tensors

    def observe(self, operation, args: tuple, kwargs: dict, result) -> None:
        """`operation` has made `result` from its arguments."""
        given = tensors_in([args, kwargs])
        known = [t for t in given if id(t) in self.fields]
        lost = self.overwritten and any(storage(t) in self.overwritten for t in given)
        name = operation.overloadpacket.__name__
        if not (known or lost) or name.endswith("_like") or name.startswith("new_"):
            return  # what has only the shape of a map sees nothing
        outputs, seen = tensors_in(result), None
        if outputs and not lost and all(self.fields[id(t)] for t in known):
            seen = self.follow(operation, args, known, outputs[0])
        written = operation._schema.arguments[0].alias_info
        if written and written.is_write and not self.alone(args[0]):
            self.overwritten.add(storage(args[0]))
        self.mark(outputs, seen)

    def alone(self, tensor: torch.Tensor) -> bool:
        """Whether no other tensor, and no tensor not followed, holds the same values."""
        return {id(t) for t in self.alive if storage(t) == storage(tensor)} == {id(tensor)}

    def follow(self, operation, args, known, output) -> Seen | None:
        """What `output` sees, made by `operation` from the tracked tensors `known`."""
        kind, x = operation.overloadpacket, known[0]
        fields = [self.fields[id(t)] for t in known]
        first = fields[0]
        if torch.Tag.pointwise in operation.tags or kind in POINTWISE:
            return pointwise(fields, known, output)
        if all(field.flat for field in fields) and kind not in MAY_PAD:  # whatever is done to them
            axes = seen_together(fields, (1, 1))
            return None if None in axes else Seen(*axes)
        if kind in (aten.cat, aten.concatenate):
            return concatenated(args, fields, known, output)
        if len(known) > 1:
            return None
        if kind in (aten.addmm, aten.mm):
            return first.whole() if x.shape[0] == self.batch and collected(first, x) else None
        if kind in REARRANGED:
            return rearranged(first, x, output, self.batch)
        if "batch_norm" in kind.__name__ and args[5:6] != (True,):
            return first
        if first.mixed:
            whole = kind in REDUCTIONS and len(dimensions(args, x)) == x.ndim - 1
            whole |= kind is aten.native_layer_norm and len(args[1]) == x.ndim - 1
            return first.whole() if whole else None
        return of_a_map(kind, args, first, x, output) if x.ndim >= 3 else None


def collected(seen: Seen, x: torch.Tensor) -> bool:
    """Whether the last dimension of x holds all values of an image."""
    return x.ndim == 2 and (seen.mixed or all(axis.flat for axis in seen.axes))


def pointwise(fields: list[Seen], known: list[torch.Tensor], output: torch.Tensor) -> Seen | None:
    """Every value of `output` depends on the values at the same place, or on a broadcast one."""
    if whole := [field for field in fields if field.whole_image]:
        return whole[0]
    mixed = any(field.mixed for field in fields)
    if mixed and not all(field.mixed or field.flat for field in fields):
        return None
    if any(t.ndim < 2 and not f.flat and not f.mixed for t, f in zip(known, fields, strict=True)):
        return None
    axes = seen_together(fields, output.shape[-2:] if output.ndim > 1 and not mixed else (1, 1))
    uniform = all(field.uniform for field in fields)
    return None if None in axes else Seen(*axes, uniform, mixed)


def concatenated(args, fields, known, output) -> Seen | None:
    """Tensors side by side along a dimension that is no position."""
    dim = (args[1] if len(args) > 1 else 0) % output.ndim
    flat = all(field.mixed or field.flat for field in fields)
    mixed = any(field.mixed for field in fields)
    if dim == 0 or (not flat and (mixed or dim >= output.ndim - 2)):
        return None
    axes = seen_together(fields, (1, 1) if flat else output.shape[-2:])
    same = all(f.axes == fields[0].axes and f.uniform for f in fields)  # the very axes
    uniform = same and len(tensors_in(args)) == len(known)
    mixed = mixed or (flat and not uniform and output.ndim == 2)
    return None if None in axes else Seen(*axes, uniform, mixed)


def rearranged(seen: Seen, x: torch.Tensor, output: torch.Tensor, batch: int) -> Seen | None:
    """A view: of a map while its last two dimensions stay, of values in a row otherwise."""
    if seen.mixed:
        return seen if output.shape[:1] == x.shape[:1] else None
    before, after = x.shape[-2:], output.shape[-2:]
    if output.ndim > 2 and all(a in (b, 1) for a, b in zip(before, after, strict=True)):
        down, across = (a == b for a, b in zip(before, after, strict=True))
        vertical = seen.vertical if down else seen.vertical.whole()
        horizontal = seen.horizontal if across else seen.horizontal.whole()
        return replace(seen, vertical=vertical, horizontal=horizontal)
    if output.shape[0] == x.shape[0] == batch and output.numel() == x.numel():
        return replace(seen.whole(), uniform=False, mixed=True)
    return None


def dimensions(args: tuple, x: torch.Tensor) -> set[int]:
    """The dimensions that a reduction runs over, counted from 0."""
    given = args[1] if len(args) > 1 else None
    dims = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    return {dim % x.ndim for dim in dims} or set(range(x.ndim))


def along(seen: Seen, axes: set[int], x: torch.Tensor) -> Seen:
    """Every position sees what all positions along `axes` see; over channels too, if among them."""
    vertical = seen.vertical.whole() if x.ndim - 2 in axes else seen.vertical
    horizontal = seen.horizontal.whole() if x.ndim - 1 in axes else seen.horizontal
    channels = set(range(1, x.ndim - 2))
    return Seen(vertical, horizontal, seen.uniform or (bool(channels) and channels <= axes))


def of_a_map(kind, args: tuple, seen: Seen, x: torch.Tensor, output: torch.Tensor) -> Seen | None:
    """What comes of a map whose last two dimensions are positions."""
    rows, columns = x.ndim - 2, x.ndim - 1
    if kind is aten.convolution:
        return convolved(args, seen, output) if x.ndim == args[1].ndim == 4 else None
    if kind in (aten.max_pool2d_with_indices, aten.avg_pool2d):
        kernel, stride, padding, dilation = (*args[1:5], *([], 0, 1)[len(args) - 2 :])[:4]
        dilation = dilation if kind is aten.max_pool2d_with_indices else 1
        return seen.windows(output, kernel, stride or kernel, padding, dilation)
    if kind is aten.avg_pool3d:  # over channels, in a local response normalisation
        return seen if tuple(args[1][1:]) == tuple(args[2][1:]) == (1, 1) else None
    if kind in (aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d):
        if output.shape[-2:].numel() == 1:
            return along(seen, {rows, columns}, x)
        if any(n % k for n, k in zip(x.shape[-2:], output.shape[-2:], strict=True)):
            return None
        kernel = [n // k for n, k in zip(x.shape[-2:], output.shape[-2:], strict=True)]
        return seen.windows(output, kernel, kernel)
    if kind in PADDINGS:
        left, _, top, _, *channels = (*args[1], 0, 0)[: max(4, len(args[1]))]
        seen = replace(seen, uniform=seen.uniform and not any(channels))
        return seen.windows(output, 1, 1, (top, left))
    if kind is aten.slice or kind in PARTS:
        return selected(kind, args, seen, x, output)
    if kind in SHUFFLES:
        return seen
    if kind is aten.transpose:  # of other dimensions than the last two
        return None if {rows, columns} & {dim % x.ndim for dim in args[1:3]} else seen
    if kind in (aten._softmax, aten._log_softmax):
        return along(seen, {args[1] % x.ndim}, x)
    if kind is aten.native_layer_norm:
        return along(seen, set(range(x.ndim - len(args[1]), x.ndim)), x)
    if kind is aten.native_group_norm or "batch_norm" in kind.__name__:
        return along(seen, {rows, columns}, x)
    if kind in REDUCTIONS:
        axes = dimensions(args, x)
        both = {rows, columns} <= axes
        place_kept = output.ndim == x.ndim or not axes & {rows, columns}
        return along(seen, axes, x) if 0 not in axes and (both or place_kept) else None
    return None


def convolved(args: tuple, seen: Seen, output: torch.Tensor) -> Seen | None:
    """A convolution; a transposed one is another where its stride is 1."""
    kernel = args[1].shape[2:]
    stride, padding, dilation = (pair(value) for value in args[3:6])
    transposed, groups = args[6], args[8]
    if transposed and stride != (1, 1):
        return None
    if transposed:
        taps = zip(dilation, kernel, padding, strict=True)
        padding = tuple(d * (k - 1) - p for d, k, p in taps)
    seen = replace(seen, uniform=seen.uniform or groups == 1)
    return seen.windows(output, kernel, stride, padding, dilation)


def selected(kind, args, seen: Seen, x: torch.Tensor, output: torch.Tensor) -> Seen | None:
    """A part of the channels where all see the same, or of the positions."""
    place = 1 if kind in (aten.slice, aten.select) else 2  # of the dimension among the arguments
    dim = (args[place] if len(args) > place else 0) % x.ndim
    if dim < x.ndim - 2:
        untouched = tuple(output.shape) == tuple(x.shape)
        return seen if untouched or (seen.uniform and dim > 0) else None
    if kind is not aten.slice:
        return None
    start, _, step = slice(*(*args[2:5], None, None, None)[:3]).indices(x.shape[dim])
    steps, starts = [1, 1], [0, 0]
    steps[dim - x.ndim], starts[dim - x.ndim] = step, -start
    return seen.windows(output, 1, steps, starts)
