"""What goes on in a net, layer by layer, without computing anything: shapes, costs, fields of view.

A copy of the net runs on PyTorch's meta device, where tensors have shapes but no values. Costs are
read off the operations themselves, so what a net does between its layers is counted too.
"""

import contextlib
import copy
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from common.advice import tensors_in, told_by_layer
from common.probe.fields import FieldTracker, field_and_stride, pair, storage

if TYPE_CHECKING:
    import pandas as pd  # half a second, which a command without tables need not wait for

Shape = tuple[int, int, int, int]  # N, C, H, W
IMAGE = -1  # stands for the net's input among the sources of a call
INSIDE = -2  # made by the layer that is running
COPIES = ("clone", "_to_copy", "_unsafe_view", "detach", "alias", "lift_fresh")


@dataclass
class Call:
    """One step of a forward pass: a layer without parts, or an operation between layers."""

    name: str  # of the layer; of the module that calls the operation
    module: nn.Module | None  # None for an operation
    kind: str  # the layer's class, or the operation's name
    output: tuple[int, ...]
    params: int  # that no call before has used
    mult_adds: int
    sources: tuple[int, ...]  # the calls whose outputs go in; IMAGE for the net's input
    part: str  # which of the net's own children runs it; "" for the net itself
    field: tuple[int | str, int | str]  # and the stride, in words

    @property
    def counts(self) -> bool:
        """Whether the call is a row of the table: every layer, and all that has a cost."""
        return self.module is not None or self.params > 0 or self.mult_adds > 0


class Recorder(TorchDispatchMode):
    """Writes down the calls of a net's forward pass. The net is a copy: it keeps the hooks."""

    def __init__(self, net: nn.Module, image: torch.Tensor) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.tracker = FieldTracker(image)
        self.names = {module: name for name, module in net.named_modules()}
        self.owners = {storage(p): p for p in net.parameters()}
        self.used: set[int] = set()  # ids of parameters already counted
        self.running: list[tuple[nn.Module, tuple]] = []  # innermost last, with its inputs
        self.sources = {id(image): IMAGE}  # by a tensor's id: the call that made it
        self.depths: dict[int, int] = {}  # by storage: whoever shares values has their depth
        self.alive = [image]  # keeps ids from being used twice
        for module in net.modules():
            module.register_forward_pre_hook(self.enter)
            module.register_forward_hook(self.leave)

    def enter(self, module: nn.Module, inputs: tuple) -> None:
        self.running.append((module, inputs))
        # Of a layer without parts: what goes in, its cost, and weights that others hold.
        self.consumed, self.cost, self.operations, self.borrowed = [], 0, 0, []

    def leave(self, module: nn.Module, _, output) -> None:
        self.running.pop()
        if any(module.children()):
            return
        outputs = tensors_in(output)
        if not outputs:
            return
        own = list(module.parameters(recurse=False))
        shape = tuple(outputs[0].shape)
        # A normalisation's weights, and those of layers not known here, count once an image.
        cost = self.cost or shape[0] * sum(p.numel() for p in own)
        if type(module) is nn.Linear:  # whichever operations torch makes of it
            cost = outputs[0].numel() * (module.in_features + (module.bias is not None))
        params = [*own, *self.borrowed]
        call = self.add(module, type(module).__name__, outputs[0], params, cost, self.consumed)
        if not self.operations:  # the input, passed on: others may use it too
            call.sources = tuple(self.sources[id(t)] for t in outputs if id(t) in self.sources)
            return
        for tensor in outputs:
            self.sources[id(tensor)] = len(self.calls) - 1

    def add(self, module, kind, output, params, mult_adds, sources) -> Call:
        new = {id(p): p.numel() for p in params if id(p) not in self.used}
        self.used |= new.keys()
        caller = self.running[-1][0] if module is None else module
        name = self.names.get(caller, "")
        within = [ran for ran, _ in self.running] + [caller]
        part = self.names.get(within[1], "") if len(within) > 1 else ""
        field = field_and_stride(self.tracker.fields.get(id(output)))
        shape, sources = tuple(output.shape), tuple(dict.fromkeys(sources))
        call = Call(name, module, kind, shape, sum(new.values()), mult_adds, sources, part, field)
        self.calls.append(call)
        return call

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        inputs, outputs = tensors_in([args, kwargs]), tensors_in(result)
        self.alive += outputs
        self.tracker.observe(operation, args, kwargs or {}, outputs)
        if not outputs or not self.running:
            return result
        owners = [self.owners[storage(t)] for t in inputs if storage(t) in self.owners]
        cost = cost_of(operation, args, kwargs or {}, result)
        depth = max((self.depths.get(storage(t), 0) for t in inputs), default=0)
        depth += bool(cost and owners and operation not in NORMALISATIONS)
        for tensor in outputs:
            self.depths[storage(tensor)] = max(depth, self.depths.get(storage(tensor), 0))
        kind = operation.overloadpacket.__name__
        alias = operation._schema.arguments and operation._schema.arguments[0].alias_info
        passed_on = kind in COPIES or (alias and not alias.is_write)  # a copy or a view
        sources = [self.sources[id(t)] for t in inputs if id(t) in self.sources]
        if owners and not sources:  # a weight, made ready: normalised, masked, or a view
            self.owners[storage(outputs[0])] = owners[0]
        if not any(self.running[-1][0].children()):
            self.cost += cost
            self.operations += 1
            self.borrowed += owners
            self.consumed += [source for source in sources if source != INSIDE]
            made_by = INSIDE if sources else None
        elif passed_on or not (sources or cost or owners):
            made_by = sources[0] if sources else None
        else:
            self.add(None, kind, outputs[0], owners, cost, sources)
            made_by = len(self.calls) - 1
        for tensor in outputs if made_by is not None else ():
            self.sources[id(tensor)] = made_by
        return result


aten = torch.ops.aten
NORMALISATIONS = (
    aten.native_batch_norm.default, aten._native_batch_norm_legit_no_training.default,
    aten.native_layer_norm.default, aten.native_group_norm.default,
)  # fmt: skip


def cost_of(operation, args: tuple, kwargs: dict, result) -> int:
    """Mult-adds of one operation: torch's own count, and one for each output that has a bias.

    A normalisation's weights count once an image, as torchinfo has it.
    """
    if operation in NORMALISATIONS:
        affine = [t for t in args[1:3] if isinstance(t, torch.Tensor)]
        if operation is aten.native_layer_norm.default:
            affine = [t for t in args[2:4] if isinstance(t, torch.Tensor)]
        return args[0].shape[0] * sum(t.numel() for t in affine)
    if (count := flop_registry.get(operation.overloadpacket)) is None:
        return 0
    bias = operation.overloadpacket is aten.addmm
    if operation.overloadpacket is aten.convolution:
        bias = args[2] is not None
    return count(*args, **kwargs, out_val=result) // 2 + bias * tensors_in(result)[0].numel()


# ------------------------------------------------------------------------------------- rehearsal


def rehearse(model: nn.Module, meta: bool) -> nn.Module:
    """A copy of the model in evaluation mode, without its weights' values (`meta`) or sharing them.

    The caller's own hooks are left out: they have no business here. Raises ValueError for a net
    whose lazy layers have no weights yet.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(isinstance(t, nn.parameter.UninitializedTensorMixin) for t in tensors):
        raise ValueError("Lazy layers have no weights yet: show the net one batch first, net(x).")
    memo = {}
    for module in model.modules():
        # A tensor that is a plain attribute, such as a kept activation, cannot be copied as it is.
        kept = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
        for tensor in (t for t in kept if isinstance(t, torch.Tensor)):
            memo[id(tensor)] = stand_in(tensor, meta)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            own = {i: hook for i, hook in hooks.items() if hook.__module__.startswith("torch.")}
            memo[id(hooks)] = OrderedDict(own)
        for hooks in (module._backward_hooks, module._backward_pre_hooks):
            memo[id(hooks)] = OrderedDict()
    try:
        net = copy.deepcopy(model, dict(memo)).eval()
    except Exception:  # a lock, a file, a module of Python: shared, not copied
        memo |= {id(value): value for value in uncopied(model)}
        net = copy.deepcopy(model, memo).eval()
    return net.float() if meta else net


def uncopied(model: nn.Module) -> list[object]:
    """The attributes of a net's modules that cannot be copied."""
    found = []
    for value in [v for m in model.modules() for name, v in vars(m).items() if name[0] != "_"]:
        try:
            copy.deepcopy(value, {})
        except Exception:
            found.append(value)
    return found


def stand_in(tensor: torch.Tensor, meta: bool) -> torch.Tensor:
    if not meta:
        return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def trace(model: nn.Module, shape: Shape) -> tuple[Recorder, torch.Tensor]:
    """The calls of a forward pass for an input of `shape`, and its output.

    Where the meta device does not do, as for `if y.mean() > 0`, one real pass on zeros does.
    Raises ValueError where the input does not fit the net.
    """
    if len(shape) != 4 or any(not hasattr(n, "__index__") or n < 1 for n in shape):
        raise ValueError(f"Expected images of four dimensions (N, C, H, W), got {shape}.")
    try:
        return passed(model, shape, True)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # not followed without values: the real pass says whether it is wrong
        bare = any(p.is_meta for p in model.parameters())
        return passed(model, shape, bare, told=True)


def passed(model: nn.Module, shape: Shape, meta: bool, told: bool = False):
    """One recorded pass of a copy; where `told`, a misfit is explained by a ValueError."""
    net = rehearse(model, meta)
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.zeros(shape, device="meta" if meta else weight.device)
    x = x if meta else x.to(weight.dtype)
    recorder = Recorder(net, x)
    own_random_numbers = torch.random.fork_rng(devices=())
    explained = told_by_layer(net, shape) if told else contextlib.nullcontext()
    with explained, torch.no_grad(), own_random_numbers, recorder:
        return recorder, net(x)


# ---------------------------------------------------------------------------------------- asking


def layers(model: nn.Module, shape: Shape) -> "pd.DataFrame":
    """One row a layer, in the order of the forward pass, for an input of `shape` (N, C, H, W).

    Columns: `layer` and `kind`; `output` shape; `params`, those of the layer itself, counted at
    its first use; `mult_adds` for the whole batch; `activation_bytes` of the output as float32;
    `field`, the receptive field in input pixels of an output position, all channels together
    (height, or height x width where they differ, as if the input had no edges; "all" where every
    row and column of the image counts; "not known" from the first operation on that
    `common.probe.fields` does not follow); `stride`, in input pixels from one output position to
    the next, "all" where all positions see the same.

    Operations with a cost between layers have rows too, under the name of the module that calls
    them, with the operation as `kind`. A last row, "(not run)", holds the parameters that the pass
    does not use: `df.attrs["unseen_params"]`. `df.attrs["receptive_field"]` is that of the last
    step, a layer or a sum or concatenation, whose positions do not all see the same.

    Mult-adds follow torchinfo, whose totals the reports print: a bias counts one for each output,
    a normalisation's weights one an image. Where torchinfo errs, for transposed convolutions,
    linear layers on maps and operations between layers, torch's own counter is followed.

    Raises ValueError where the input does not fit the net.
    """
    import pandas as pd

    recorder, _ = trace(model, shape)
    rows, local = [], "all"
    for call in recorder.calls:
        field, stride = call.field
        local = local if stride == "all" else field
        if call.counts:
            row = (call.name or type(model).__name__, call.kind, call.output, call.params)
            rows.append((*row, call.mult_adds, 4 * math.prod(call.output), field, stride))
    unseen = sum(p.numel() for p in model.parameters()) - sum(row[3] for row in rows)
    if unseen > 0:
        rows.append(("(not run)", "parameters", (), unseen, 0, 0, "not known", "not known"))
    columns = ["layer", "kind", "output", "params", "mult_adds", "activation_bytes"]
    frame = pd.DataFrame(rows, columns=[*columns, "field", "stride"])
    frame.attrs = {"receptive_field": local, "unseen_params": unseen}
    return frame


def fields_of(table: "pd.DataFrame") -> list[tuple[str, tuple[int, int]]]:
    """(layer, (height, width)) of the rows of `layers` that see more than those before, not all."""
    found, largest = [], 0
    for name, field in zip(table["layer"], table["field"], strict=True):
        if field == "not known" or "all" in str(field):
            continue
        height, width = pair([int(n) for n in str(field).split(" x ")])
        if height * width > largest:
            found.append((name, (height, width)))
            largest = height * width
    return found


def mult_adds(model: nn.Module, shape: Shape) -> int:
    """Mult-adds of a whole net for an input of `shape` (N, C, H, W), in evaluation."""
    return sum(call.mult_adds for call in trace(model, shape)[0].calls)


def depth(model: nn.Module, shape: Shape) -> int:
    """Layers with weights on the longest way through a net, for an input of `shape` (N, C, H, W).

    This is the depth that papers state: 18 for ResNet-18, whose projections lie beside the way.
    """
    recorder, output = trace(model, shape)
    return max(recorder.depths.get(storage(tensor), 0) for tensor in tensors_in(output))


def receptive_field(model: nn.Module, shape: Shape) -> int | str:
    """The receptive field in input pixels of the last step that sees less than the whole image."""
    return layers(model, shape).attrs["receptive_field"]
