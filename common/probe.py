"""What goes on in a net, layer by layer, without computing anything: shapes, costs, fields of view.

Nets are probed on PyTorch's meta device, where tensors have shapes but no values.
"""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torchinfo
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.shapes import ShapesOnly, pair

if TYPE_CHECKING:
    import pandas as pd  # half a second, which `python -m common list` need not wait for

aten = torch.ops.aten


@dataclass(frozen=True)
class Field:
    """What output position i sees along one axis: pixels first + i stride … last + i stride."""

    first: int = 0
    last: int = 0
    stride: int = 1

    def slide(self, kernel: int, stride: int, padding: int, dilation: int) -> "Field":
        """The field after a window of `kernel` taps, `dilation` apart, slides over this one."""
        start = self.first - padding * self.stride
        reach = self.last - padding * self.stride + dilation * (kernel - 1) * self.stride
        return Field(start, reach, self.stride * stride)

    def join(self, other: "Field") -> "Field":
        """The field of a sum or a concatenation: everything that either sees."""
        return Field(
            min(self.first, other.first),
            max(self.last, other.last),
            min(self.stride, other.stride),
        )


def tensors_in(values) -> list[torch.Tensor]:
    """The tensors among `values` and in the lists among them."""
    flat = [v for value in values for v in (value if isinstance(value, (list, tuple)) else [value])]
    return [v for v in flat if isinstance(v, torch.Tensor)]


class FieldTracker(TorchDispatchMode):
    """Follows the field of view of every tensor through the operations of a forward pass.

    `fields[id(tensor)]` is a pair of Fields (vertical, horizontal), or None for "sees all".
    """

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[int, tuple[Field, Field] | None] = {}
        self.alive: list[torch.Tensor] = []  # keeps ids from being used twice

    def mark(self, tensor: torch.Tensor, field: tuple[Field, Field] | None) -> None:
        self.fields[id(tensor)] = field
        self.alive.append(tensor)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        seen = [t for t in tensors_in(args) if id(t) in self.fields]
        if seen:
            for output in tensors_in([result]):
                self.mark(output, self.follow(operation, args, seen, output))
        return result

    def follow(self, operation, args, seen, output) -> tuple[Field, Field] | None:
        """The field of `output`, made by `operation` from the tracked tensors `seen`."""
        fields = [self.fields[id(t)] for t in seen]
        if None in fields:
            return None
        if operation is aten.convolution.default and not args[6]:  # not transposed
            kernel, stride, padding, dilation = args[1].shape[2:], args[3], args[4], args[5]
        elif operation is aten.max_pool2d_with_indices.default:
            kernel, stride, padding, dilation = (*args[1:], *[None] * 4)[:4]
            stride, padding, dilation = stride or kernel, padding or [0], dilation or [1]
        elif operation is aten.avg_pool2d.default:
            kernel, stride, padding = (*args[1:], *[None] * 4)[:3]
            stride, padding, dilation = stride or kernel, padding or [0], [1]
        elif operation is aten.constant_pad_nd.default:  # F.pad, nn.ZeroPad2d
            left, _, top, _ = (*args[1], 0, 0)[:4]
            kernel, stride, padding, dilation = 1, 1, (top, left), 1
        elif operation is aten.slice.Tensor and seen[0].ndim == 4 and args[1] % 4 > 1:  # a crop
            start, _, step = slice(*(*args[2:], None, None)[:3]).indices(seen[0].shape[args[1]])
            vertical = args[1] % 4 == 2
            kernel, dilation = 1, 1
            stride = (step, 1) if vertical else (1, step)
            padding = (-start, 0) if vertical else (0, -start)
        else:
            size = output.shape[-2:]
            same_size = output.ndim >= 4 and all(t.ndim >= 4 and t.shape[-2:] == size for t in seen)
            if not same_size:
                return None  # flattened, averaged or multiplied by a matrix
            joined = fields[0]
            for other in fields[1:]:
                joined = tuple(a.join(b) for a, b in zip(joined, other, strict=True))
            return joined
        per_axis = zip(*(pair(v) for v in (kernel, stride, padding, dilation)), strict=True)
        return tuple(f.slide(*v) for f, v in zip(fields[0], per_axis, strict=True))


class DepthTracker(TorchDispatchMode):
    """Counts the layers with weights on the longest way from the images to each tensor."""

    layers = (aten.convolution.default, aten.addmm.default, aten.mm.default)

    def __init__(self) -> None:
        super().__init__()
        self.depths: dict[int, int] = {}
        self.alive: list[torch.Tensor] = []  # keeps ids from being used twice

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        depth = max((self.depths.get(id(t), 0) for t in tensors_in(args)), default=0)
        for output in tensors_in([result]):
            self.depths[id(output)] = depth + (operation in self.layers)
            self.alive.append(output)
        return result


def depth(model: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Layers with weights on the longest way through a net, for an input of `shape` (N, C, H, W).

    This is the depth that papers state: 18 for ResNet-18, whose projections lie beside the way.
    """
    tracker = DepthTracker()
    with tracker, torch.no_grad():
        output = to_meta(model)(torch.empty(shape, device="meta"))
    return tracker.depths[id(output)]


def to_meta(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device, in evaluation mode, made without copying a weight."""
    tensors = [*model.parameters(), *model.buffers()]
    memo = {id(t): copy_to_meta(t) for t in tensors}
    probe = copy.deepcopy(model, memo).float().eval()
    for module in probe.modules():  # hooks that read values cannot do so here
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return probe


def copy_to_meta(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def layers(model: nn.Module, shape: tuple[int, int, int, int]) -> "pd.DataFrame":
    """One row a layer, in the order of the forward pass, for an input of `shape` (N, C, H, W).

    Columns: `layer` and `kind`; `output` shape; `params`, those of the layer itself, counted at
    its first use; `mult_adds` for the whole batch, by torchinfo's count; `activation_bytes` of the
    output as float32; `field`, the receptive field in input pixels (height, or height x width
    where they differ, as if the input had no edges; "all" where every pixel counts); `stride`, in
    input pixels from one output position to the next. `df.attrs["receptive_field"]` is that of the
    last layer that is not "all". Raises ValueError where the input does not fit the net.
    """
    probe = to_meta(model)
    layer_names = {module: name for name, module in probe.named_modules()}
    tracker, rows = FieldTracker(), []

    def record(module: nn.Module, _, output) -> None:
        rows.append((module, tuple(output.shape), tracker.fields.get(id(output))))

    leaves = [m for m in probe.modules() if not any(m.children())]
    handles = [m.register_forward_hook(record) for m in leaves]
    x = torch.empty(shape, device="meta")
    tracker.mark(x, (Field(), Field()))
    try:
        with tracker:
            summary = torchinfo.summary(probe, input_data=x, device="meta", verbose=0)
    except RuntimeError as error:
        raise ValueError(misfit(probe, shape)) from error
    finally:
        for handle in handles:
            handle.remove()
    costs = [info.macs for info in summary.summary_list if info.is_leaf_layer]

    table, used = [], set()
    for (module, output, field), mult_adds in zip(rows, costs, strict=True):
        new = [p for p in module.parameters(recurse=False) if id(p) not in used]
        used.update(map(id, new))
        table.append(
            {
                "layer": layer_names[module],
                "kind": type(module).__name__,
                "output": output,
                "params": sum(p.numel() for p in new),
                "mult_adds": mult_adds,
                "activation_bytes": 4 * math.prod(output),
                "field": describe_field(field),
                "stride": "all" if field is None else one_or_both(*(f.stride for f in field)),
            }
        )
    import pandas as pd

    frame = pd.DataFrame(table)
    local = frame[frame["field"] != "all"]
    frame.attrs["receptive_field"] = local["field"].iloc[-1] if len(local) else "all"
    return frame


def mult_adds(model: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """torchinfo's mult-adds of a whole net for an input of `shape` (N, C, H, W), in evaluation."""
    probe = model if next(model.parameters()).is_meta else to_meta(model)
    x = torch.empty(shape, device="meta")
    with ShapesOnly():
        summary = torchinfo.summary(probe, input_data=x, device="meta", mode="eval", verbose=0)
    return summary.total_mult_adds


def check_fits(model: nn.Module, shape: tuple[int, int, int, int]) -> None:
    """Raise ValueError, with the layer where it fails, unless an input of `shape` fits the net."""
    if len(shape) != 4:
        raise ValueError(f"Expected images of four dimensions (N, C, H, W), got {shape}.")
    probe = to_meta(model)
    try:
        with torch.no_grad():
            probe(torch.empty(shape, device="meta"))
    except RuntimeError as error:
        raise ValueError(misfit(probe, shape)) from error


def misfit(probe: nn.Module, shape: tuple[int, ...]) -> str:
    """Why an input of `shape` does not pass the net: the layer, what came, what it needs."""
    entered = []

    def enter(module: nn.Module, inputs: tuple) -> None:
        entered.append((module, tuple(inputs[0].shape)))

    handles = [m.register_forward_pre_hook(enter) for m in probe.modules() if not any(m.children())]
    reason = "it passes in evaluation mode"
    try:
        with torch.no_grad():
            probe(torch.empty(shape, device="meta"))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    for handle in handles:
        handle.remove()
    text = f"An input of shape {shape} (N, C, H, W) does not fit this net: "
    if not entered:
        return text + reason
    module, came = entered[-1]
    name = {m: n for n, m in probe.named_modules()}[module] or type(module).__name__
    text += f"the layer {name!r} ({module}) got {came}"
    wanted = getattr(module, "in_channels", None)
    if wanted not in (None, came[1]):
        return (
            f"{text}, but it takes {wanted} channels. Give the net {wanted} channels, "
            f"or build it with in_channels={came[1]}."
        )
    if isinstance(module, nn.Linear) and came[-1] != module.in_features:
        return (
            f"{text}, but it takes {module.in_features} values an image. "
            "Use the image size the net was made for."
        )
    if len(came) == 4:
        return f"{text} and ran out of pixels. Use larger images (image_size)."
    return f"{text}: {reason}"


def receptive_field(model: nn.Module, shape: tuple[int, int, int, int]) -> int | str:
    """The receptive field in input pixels of the last layer that sees less than the whole image."""
    return layers(model, shape).attrs["receptive_field"]


def describe_field(field: tuple[Field, Field] | None) -> int | str:
    """A field's extent in pixels: one number, "h x w", or "all"."""
    return "all" if field is None else one_or_both(*(f.last - f.first + 1 for f in field))


def one_or_both(vertical: int, horizontal: int) -> int | str:
    return vertical if vertical == horizontal else f"{vertical} x {horizontal}"
