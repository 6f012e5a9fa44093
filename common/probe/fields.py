"""Receptive fields: which pixels of the image each position of a map depends on."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch

from common.advice import tensors_in

MARGIN = 4096  # positions followed beyond either edge, as if the image went on
HOLE = -(10**9)  # no position: a tap of a transposed convolution that falls between two

Places = Callable[[np.ndarray], list[np.ndarray]]  # which positions each of some new ones takes


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
    """The lowest and highest pixel that each position along one axis depends on.

    `free` holds them as if the image had no edges, for positions -margin … size + margin - 1;
    `edged` for the real positions and pixels, which tells what all of them see together. Where
    every position sees the same, the axis is `flat` and holds one column. A position that sees
    nothing has (inf, -inf).
    """

    pixels: int  # of the image
    free: np.ndarray  # (2, size + 2 margins)
    edged: np.ndarray  # (2, size)
    flat: bool = False

    @property
    def size(self) -> int:
        return self.edged.shape[1]

    @property
    def whole_image(self) -> bool:
        return self.flat and tuple(self.edged[:, 0]) == (0, self.pixels - 1)

    def whole(self) -> "Axis":
        """What depends on all positions of this axis."""
        span = np.array([[self.edged[0].min()], [self.edged[1].max()]])
        return Axis(self.pixels, span, span, True)

    def take(self, places: "Places", size: int, rate: float = 1) -> "Axis":
        """The axis of `size` positions, of which o depends on those that places(o) lists.

        `rate` is the number of new positions to one of the old.
        """
        if self.flat:
            gaps = np.all([place == HOLE for place in places(np.arange(size))], 0)
            if not gaps.any():
                return self
            edged = np.where(gaps, [[np.inf], [-np.inf]], self.edged)
            return Axis(self.pixels, np.full((2, size), np.nan), edged)  # not the same everywhere
        margin = (self.free.shape[1] - self.size) // 2
        reach = min(int(margin * rate), MARGIN)
        taps = places(np.arange(-reach, size + reach))
        reached = np.concatenate(taps)
        reached = reached[reached != HOLE]
        lowest, highest = reached.min(initial=0), reached.max(initial=0)
        if lowest < -margin or highest >= self.size + margin:  # keep what needs no more margin
            over = max(-margin - lowest, highest - self.size - margin + 1)
            reach = max(reach - math.ceil(over * rate) - 1, 0)
            taps = places(np.arange(-reach, size + reach))
        free = gather(self.free, [np.where(t == HOLE, HOLE, t + margin) for t in taps])
        return Axis(self.pixels, free, gather(self.edged, places(np.arange(size))))

    def described(self) -> tuple[int | None, int | Fraction | str | None]:
        """(extent, stride) in pixels; None where nothing is seen or not the same everywhere."""
        extents = self.free[1] - self.free[0] + 1
        known = len(extents) and np.isfinite(extents).all() and (extents == extents[0]).all()
        if not known or (len(extents) < self.size + 2 and not self.flat):
            return None, None
        if self.flat:
            return int(extents[0]), "all"
        steps = (self.free[0, -1] - self.free[0, 0]) / (len(extents) - 1)
        stride = Fraction(steps).limit_denominator(64)
        return int(extents[0]), int(stride) if stride.denominator == 1 else stride


def gather(values: np.ndarray, taps: list[np.ndarray]) -> np.ndarray:
    """Lowest and highest of `values` (2, n) at each list of places; outside there is nothing."""
    low, high = np.full(len(taps[0]), np.inf), np.full(len(taps[0]), -np.inf)
    for places in taps:
        inside = (places >= 0) & (places < values.shape[1])
        if inside.all():
            np.minimum(low, values[0][places], out=low)
            np.maximum(high, values[1][places], out=high)
        else:
            low[inside] = np.minimum(low[inside], values[0][places[inside]])
            high[inside] = np.maximum(high[inside], values[1][places[inside]])
    return np.stack([low, high])


def union(axes: list[Axis], size: int) -> Axis:
    """The axis of `size` positions that see what any of `axes` sees."""
    axes = [a if a.flat or a.size == size else a.whole() for a in axes]  # one position for all
    if full := [axis for axis in axes if axis.whole_image]:
        return full[0]
    if all(axis is axes[0] for axis in axes):
        return axes[0]
    length = min((a.free.shape[1] for a in axes if not a.flat), default=1)  # the least margin
    cuts = [max((a.free.shape[1] - length) // 2, 0) for a in axes]
    free = widest([a.free[:, c : c + length] for a, c in zip(axes, cuts, strict=True)])
    flat = all(axis.flat for axis in axes)
    return Axis(axes[0].pixels, free, widest([axis.edged for axis in axes]), flat)


def widest(values: list[np.ndarray]) -> np.ndarray:
    """The lowest and the highest (2, n) of several; a flat axis has one column for all."""
    columns = np.broadcast_arrays(*values)
    return np.stack([np.min([v[0] for v in columns], 0), np.max([v[1] for v in columns], 0)])


def by_axis(fields: "list[Seen]") -> list[list[Axis]]:
    """The vertical axes and the horizontal axes of several fields."""
    return [[field.vertical for field in fields], [field.horizontal for field in fields]]


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

    def take(self, places, output: torch.Tensor, rate=(1, 1)) -> "Seen":
        """Both axes taken at `places`, a function for each, for a new map `output`."""
        how = zip(places, output.shape[-2:], rate, strict=True)
        vertical, horizontal = (a.take(*h) for a, h in zip(self.axes, how, strict=True))
        return replace(self, vertical=vertical, horizontal=horizontal)

    def described(self) -> tuple[int | str, int | str]:
        """(field, stride) in words: one number, "h x w", "all" or "not known"."""
        (height, down), (width, across) = (axis.described() for axis in self.axes)
        if height is None or width is None:
            return "not known", "not known"
        if all(axis.whole_image for axis in self.axes):
            return "all", "all"
        return one_or_both(height, width), one_or_both(down, across)


def one_or_both(vertical, horizontal) -> int | str:
    one = vertical if vertical == horizontal else f"{vertical} x {horizontal}"
    return one if isinstance(one, int) else str(one)


# ------------------------------------------------------------------------------------- operations

aten = torch.ops.aten
POINTWISE = {  # beside those that torch marks so
    aten.hardswish, aten.hardswish_, aten._prelu_kernel, aten.native_dropout, aten.threshold,
}  # fmt: skip
REARRANGED = {
    aten.view, aten._unsafe_view, aten.reshape, aten.squeeze, aten.unsqueeze, aten.expand,
    aten.repeat,
}  # fmt: skip
WITHIN_CHANNELS = {  # what changes the dimensions before the last two alone, if at all
    aten.transpose, aten.permute, aten.channel_shuffle, aten.native_channel_shuffle,
}  # fmt: skip
SELECTIONS = {aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.chunk, aten.flip}
REDUCTIONS = {aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std,
    aten.linalg_vector_norm}  # fmt: skip
PADDINGS = {aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d}
POOLS = {aten.max_pool2d_with_indices, aten.avg_pool2d}


class FieldTracker:
    """Follows what every tensor of a forward pass sees of the image, operation by operation.

    `fields[id(tensor)]` is a Seen, or None where it is not known.
    """

    def __init__(self, image: torch.Tensor) -> None:
        self.fields: dict[int, Seen | None] = {}
        self.alive: list[torch.Tensor] = []  # keeps ids from being used twice
        self.overwritten: set[int] = set()  # storages of which parts have changed
        self.batch = image.shape[0]
        axes = []
        for pixels in image.shape[-2:]:
            free = np.repeat(np.arange(-MARGIN, pixels + MARGIN, dtype=float)[None], 2, 0)
            axes.append(Axis(pixels, free, free[:, MARGIN : MARGIN + pixels]))
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
        gaps = kind is aten.convolution and args[6]  # transposed: some values may see nothing
        if all(field.flat for field in fields) and not gaps:  # whatever is done to them
            return Seen(*(union(axes, 1) for axes in by_axis(fields)))
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
            whole = kind in REDUCTIONS and len(dimensions(kind, args, x)) == x.ndim - 1
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
    size = output.shape[-2:] if output.ndim > 1 and not mixed else (1, 1)
    axes = [union(axes, n) for axes, n in zip(by_axis(fields), size, strict=True)]
    return Seen(*axes, all(field.uniform for field in fields), mixed)


def concatenated(args, fields, known, output) -> Seen | None:
    """Tensors side by side along a dimension that is no position."""
    dim = (args[1] if len(args) > 1 else 0) % output.ndim
    flat = all(field.mixed or field.flat for field in fields)
    if dim == 0 or (dim >= output.ndim - 2 and not flat):
        return None
    mixed = any(field.mixed for field in fields)
    if mixed and not flat:
        return None
    size = (1, 1) if flat else output.shape[-2:]
    columns = by_axis(fields)
    axes = [union(column, n) for column, n in zip(columns, size, strict=True)]
    same = all(axis is column[0] for column in columns for axis in column)
    uniform = same and all(f.uniform for f in fields) and len(tensors_in(args)) == len(known)
    return Seen(*axes, uniform, mixed or (flat and not uniform and output.ndim == 2))


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


def dimensions(kind, args: tuple, x: torch.Tensor) -> set[int]:
    """The dimensions that a reduction runs over, counted from 0."""
    given = args[2:3] if kind is aten.linalg_vector_norm else args[1:2]
    if not given or given[0] is None:
        return set(range(x.ndim))
    dims = given[0] if isinstance(given[0], (list, tuple)) else [given[0]]
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
        if x.ndim != 4 or args[1].ndim != 4:
            return None
        seen = replace(seen, uniform=seen.uniform or args[8] == 1)
        how = [pair(value) for value in (args[1].shape[2:], *args[3:6])]
        return (transposed if args[6] else window)(seen, output, *how)
    if kind in POOLS:
        kernel, stride, padding, dilation = (*args[1:5], *([], 0, 1)[len(args) - 2 :])[:4]
        dilation = dilation if kind is aten.max_pool2d_with_indices else 1
        return window(seen, output, *map(pair, (kernel, stride or kernel, padding, dilation)))
    if kind is aten.avg_pool3d:  # over channels, in a local response normalisation
        return seen if tuple(args[1][1:]) == tuple(args[2][1:]) == (1, 1) else None
    if kind in (aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d):
        if any(n % k for n, k in zip(x.shape[-2:], output.shape[-2:], strict=True)):
            return None
        kernel = [n // k for n, k in zip(x.shape[-2:], output.shape[-2:], strict=True)]
        made = window(seen, output, kernel, kernel, (0, 0), (1, 1))
        return along(seen, {rows, columns}, x) if output.shape[-2:].numel() == 1 else made
    if kind in (aten.upsample_nearest2d, aten.upsample_bilinear2d):
        return upsampled(kind, args, seen, x, output)
    if kind in PADDINGS:
        left, _, top, _, *channels = (*args[1], 0, 0)[: max(4, len(args[1]))]
        seen = replace(seen, uniform=seen.uniform and not any(channels))
        return window(seen, output, (1, 1), (1, 1), (top, left), (1, 1))
    if kind in SELECTIONS:
        return selected(kind, args, seen, x, output)
    if kind is aten.index:
        chosen = [i for i, index in enumerate(args[1]) if index is not None]
        return seen if seen.uniform and chosen == [1] and x.ndim == 4 else None
    if kind in WITHIN_CHANNELS:
        order = list(range(x.ndim))
        if kind is aten.permute:
            order = [dim % x.ndim for dim in args[1]]
        elif kind is aten.transpose:
            a, b = (dim % x.ndim for dim in args[1:3])
            order[a], order[b] = b, a
        return seen if order[-2:] == [rows, columns] else None
    if kind is aten._softmax or kind is aten._log_softmax:
        return along(seen, {args[1] % x.ndim}, x)
    if kind is aten.native_layer_norm:
        return along(seen, set(range(x.ndim - len(args[1]), x.ndim)), x)
    if kind is aten.native_group_norm or "batch_norm" in kind.__name__:
        return along(seen, {rows, columns}, x)
    if kind in REDUCTIONS:
        axes = dimensions(kind, args, x)
        both = {rows, columns} <= axes
        place_kept = output.ndim == x.ndim or not axes & {rows, columns}
        return along(seen, axes, x) if 0 not in axes and (both or place_kept) else None
    return None


def window(seen: Seen, output: torch.Tensor, kernel, stride, padding, dilation) -> Seen:
    """A window of `kernel` taps, `dilation` apart, slides over the map."""

    def places(k, s, p, d):
        return lambda out: [out * s - p + d * tap for tap in range(k)]

    ways = [places(*how) for how in zip(kernel, stride, padding, dilation, strict=True)]
    return seen.take(ways, output, [1 / s for s in stride])


def transposed(seen: Seen, output: torch.Tensor, kernel, stride, padding, dilation) -> Seen:
    """Every position is spread over a window: output o gets input i where o = s i - p + d k."""

    def places(k, s, p, d):
        def of(out):
            taps = [out + p - d * tap for tap in range(k)]
            return [np.where(tap % s == 0, tap // s, HOLE) for tap in taps]

        return of

    ways = [places(*how) for how in zip(kernel, stride, padding, dilation, strict=True)]
    return seen.take(ways, output, stride)


def upsampled(kind, args, seen: Seen, x: torch.Tensor, output: torch.Tensor) -> Seen | None:
    """Each position several times, or drawn from its two neighbours; by whole factors only."""
    factors = [b / a for a, b in zip(x.shape[-2:], output.shape[-2:], strict=True)]
    if any(f != int(f) for f in factors) or (kind is aten.upsample_bilinear2d and args[2]):
        return None

    def places(f):
        if kind is aten.upsample_nearest2d:
            return lambda out: [out // f]
        # The centre of output o lies at (2 o + 1 - f) / 2 f; a neighbour of weight 0 is left out.
        return lambda out: [(2 * out + 1 - f) // (2 * f), -((f - 1 - 2 * out) // (2 * f))]

    return seen.take([places(int(f)) for f in factors], output, factors)


def selected(kind, args, seen: Seen, x: torch.Tensor, output: torch.Tensor) -> Seen | None:
    """A part of a map, or its mirror image."""
    if kind is aten.flip:
        dims = {dim % x.ndim for dim in args[1]}
        sides = enumerate(x.shape[-2:], x.ndim - 2)
        ways = [mirror(n) if dim in dims else same for dim, n in sides]
        inner = dims <= {x.ndim - 2, x.ndim - 1}
        return seen.take(ways, output) if inner or (seen.uniform and 0 not in dims) else None
    place = 1 if kind in (aten.slice, aten.select) else 2  # of the dimension among the arguments
    dim = (args[place] if len(args) > place else 0) % x.ndim
    if dim < x.ndim - 2:
        untouched = tuple(output.shape) == tuple(x.shape)
        return seen if untouched or (seen.uniform and dim > 0) else None
    if kind is not aten.slice:
        return None
    start, _, step = slice(*(*args[2:5], None, None, None)[:3]).indices(x.shape[dim])
    ways, rate = [same, same], [1, 1]
    ways[dim - x.ndim] = lambda out: [out * step + start]
    rate[dim - x.ndim] = 1 / step
    return seen.take(ways, output, rate)


def same(out: np.ndarray) -> list[np.ndarray]:
    return [out]


def mirror(size: int) -> Places:
    return lambda out: [size - 1 - out]
