"""Whether two results are the same: numbers and tensors of any kind, and networks."""

import copy
import math
import numbers
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from common.exercises.answers.limit import SECONDS, TooSlow, limit
from common.exercises.answers.wording import brief, few, shown, size, words

ADVICE = "use torch's functions, and no numpy, .item(), detach or no_grad"


class NotYet(Exception):
    """A mismatch, in words for the student."""


@dataclass(frozen=True)
class Case:
    """Arguments for an answer, and what to look at in its result.

    `inputs` are shapes to send through a network that is returned. `keep` says that its weights are
    part of the answer; otherwise any weights will do. `tolerance` is how far a number may lie off.
    """

    args: tuple = ()
    inputs: tuple[tuple[int, ...], ...] = ()
    keep: bool = False
    tolerance: float | None = None


# ------------------------------------------------------------------------------------ values


def must_be_same(found: Any, expected: Any, where: str, case: Case = Case()) -> None:
    """Raise `NotYet` unless two results agree; a number may be of any kind, a row of any type."""
    try:
        if isinstance(expected, nn.Module):
            same_network(found, expected, where, case)
        elif isinstance(expected, torch.Tensor):
            same_tensor(found, expected, where)
        elif isinstance(expected, dict):
            for key, value in expected.items():
                here = f"{where}, {key}" if where else key
                if isinstance(value, bool) and bool(found[key]) is not value:
                    raise NotYet(f"{here}: this should {'' if value else 'not '}be so.")
                must_be_same(found[key], value, here, case)
        elif isinstance(expected, tuple | list):
            row = as_row(found)
            if row is None or len(row) != len(expected):
                raise NotYet(f"{where}: expected {len(expected)} values, got {brief(found)}.")
            if all(isinstance(e, numbers.Number) for e in expected):  # tell the whole row
                for mine, right in zip(row, expected, strict=True):
                    both = f"expected {few(expected)}, got {few(row)}"
                    must_be_same(mine, right, f"{where}: {both}; here", case)
            else:
                for i, (mine, right) in enumerate(zip(row, expected, strict=True)):
                    must_be_same(mine, right, f"{where}, number {i}", case)
        elif isinstance(expected, bool):
            if bool(found) is not expected:
                raise NotYet(f"{where}: expected {expected}, got {brief(found)}.")
        elif isinstance(expected, numbers.Number):
            same_number(found, expected, where, case)
        elif type(found) is not type(expected) or found != expected:
            raise NotYet(f"{where}: expected {brief(expected)}, got {brief(found)}.")
    except NotYet:
        raise
    except Exception as error:
        raise NotYet(
            f"{where}: this result cannot be compared ({type(error).__name__})."
        ) from error


def same_number(found: Any, expected: float, where: str, case: Case) -> None:
    """A whole number must be whole; others may lie off by rounding, or by the case's tolerance."""
    number = as_number(found)
    if number is None:
        raise NotYet(f"{where}: expected {shown(expected)}, got {brief(found)}.")
    whole = isinstance(expected, int) and case.tolerance is None
    if whole and isinstance(number, float) and number == expected:
        raise NotYet(
            f"{where}: {number} is a float; this is counted, so return a whole number (// divides)."
        )
    most = 0 if whole else case.tolerance or 1e-5 * max(1e-3, abs(expected))
    if not abs(number - expected) <= most:  # NaN too
        raise NotYet(f"{where}: expected {shown(expected)}, got {shown(number)}.")


def same_tensor(found: Any, expected: torch.Tensor, where: str) -> None:
    tensor = as_tensor(found)
    if tensor is None:
        raise NotYet(f"{where}: expected a tensor, got {brief(found)}.")
    if tensor.shape != expected.shape:
        raise NotYet(f"{where}: expected shape {size(expected)}, got {size(tensor)}.")
    if expected.is_floating_point() and not tensor.is_floating_point():
        raise NotYet(f"{where}: expected floats, got {str(tensor.dtype).removeprefix('torch.')}.")
    if not close(tensor, expected):
        gap = (tensor.double() - expected.double()).abs().max().item()
        raise NotYet(f"{where}: the shape is right, the values differ by up to {gap:.3g}.")


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors agree up to the rounding of float32."""
    a, b = a.detach().double(), b.detach().double()
    scale = max(1e-3, b.abs().max().item()) if b.numel() else 1.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=2e-5 * scale)


def or_zero(gradient: torch.Tensor | None, like: torch.Tensor | None) -> torch.Tensor:
    """A gradient that did not come back is 0."""
    if gradient is not None:
        return gradient
    return torch.zeros(()) if like is None else torch.zeros_like(like)


# ------------------------------------------------------------------------------------- networks


def same_network(found: Any, expected: nn.Module, where: str, case: Case) -> None:
    """Raise `NotYet` unless two networks compute the same, in both modes, forwards and backwards.

    Unless the case keeps weights, both get the same new ones first, layer by layer as they run.
    """
    if isinstance(found, type):
        raise NotYet(
            f"{where}: this is the class itself; call it to make a network: {brief(found)}()."
        )
    if not isinstance(found, nn.Module):
        raise NotYet(f"{where}: return a network (an nn.Module), not {brief(found)}.")
    if case.keep and not isinstance(found, type(expected)):
        kind = f"nn.{type(expected).__name__}"
        raise NotYet(f"{where}: return one {kind}, not {type(found).__name__}.")
    if name := unregistered(found):
        raise NotYet(
            f"The layers in `{name}` are in a plain Python list or dict, so PyTorch does not know "
            "them: they get no training. Use nn.ModuleList or nn.Sequential."
        )
    found, expected = copied(found), copied(expected)
    first = torch.randn(case.inputs[0])
    mine, right = in_order(found, first, where), in_order(expected, first, where)
    known = set(map(id, found.parameters()))
    if not all(id(p) in known for p in mine):
        raise NotYet(
            "Layers run here that PyTorch does not know, as in a list within a list: they get no "
            "training. Use nn.ModuleList or nn.Sequential."
        )
    frozen = any(not p.requires_grad for p in found.parameters())
    if frozen and not case.keep:
        raise NotYet("Some weights are frozen: their requires_grad is False, so they do not learn.")
    if not case.keep:
        share_weights(mine, right, where)
        for module in [*found.modules(), *expected.modules()]:
            if isinstance(module, nn.BatchNorm2d):  # what finding the order has moved
                module.reset_running_stats()
    modes = (expected.training,) if case.keep else (True, False)
    for training in modes:
        for net in (found, expected):
            net.train(training)
        for i, shape in enumerate(case.inputs):
            mode = "" if case.keep else f", in {'training' if training else 'evaluation'} mode"
            image = torch.randn(shape) * (8 if i else 1)  # large values too: ReLU6 is not ReLU
            same_answers(found, expected, mine, right, image, f"{where}{mode}")


def same_answers(
    found: nn.Module, expected: nn.Module, mine: list, right: list, image: torch.Tensor, where: str
) -> None:
    """One batch through both networks: outputs, gradients, and an input that stays as it was."""
    where = f"{where}, an input of {size(image)}"
    grads = []
    for net, weights in ((found, mine), (expected, right)):
        x = image.clone().requires_grad_()
        y = x * 1  # not a leaf, so that a layer may work in place on it, and be told so below
        try:
            with limit(SECONDS):
                output = net(y)
        except (Exception, TooSlow) as error:
            raise NotYet(f"{where}: the network raised {words(error)}") from error
        if net is found:
            output_found = output
        if not torch.equal(y, x):
            raise NotYet(f"{where}: the network changes its own input.")
        grads.append((x, weights, output))
    same_tensor(output_found, grads[1][2], where)
    if not isinstance(output_found, torch.Tensor) or not output_found.requires_grad:
        raise NotYet(f"{where}: no gradient flows back through the network.")
    lists = [
        torch.autograd.grad(weighted(output), [x, *(w for w in weights if w.requires_grad)],
                            allow_unused=True)
        for x, weights, output in grads
    ]  # fmt: skip
    for a, b in zip(*lists, strict=False):
        if not close(or_zero(a, b).flatten(), or_zero(b, a).flatten()):
            raise NotYet(f"{where}: the output is right, but not the gradient: {ADVICE}.")


def copied(net: nn.Module) -> nn.Module:
    """A copy, or the net itself where an attribute has none, such as a generator or an output."""
    try:
        return copy.deepcopy(net)
    except (TypeError, RuntimeError):
        return net


def unregistered(net: nn.Module) -> str:
    """The first attribute that holds layers in a plain list, tuple or dict alone, or ""."""
    known = set(net.modules())
    for module in net.modules():  # in their order, unlike the set
        for name, value in vars(module).items():
            items = value.values() if isinstance(value, dict) else value
            if name.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            if any(isinstance(item, nn.Module) and item not in known for item in items):
                return name
    return ""


def in_order(net: nn.Module, x: torch.Tensor, where: str) -> list[nn.Parameter]:
    """The net's parameters in the order in which its layers first run, then any others."""
    ran: list[nn.Parameter] = []

    def note(module: nn.Module, *_) -> None:
        ran.extend(module.parameters(recurse=False))

    try:
        with limit(SECONDS), torch.no_grad(), register_module_forward_hook(note):
            net(x.clone())
    except (Exception, TooSlow) as error:
        raise NotYet(f"{where}, an input of {size(x)}: it raised {words(error)}") from error
    everything = {id(p): p for p in [*ran, *net.parameters()]}
    return list(everything.values())


def share_weights(mine: list, right: list, where: str) -> None:
    """Give both networks the same new weights; raises `NotYet` where they do not fit."""
    if sum(p.numel() for p in mine) != sum(p.numel() for p in right):
        raise NotYet(
            f"{where}: the network has {sum(p.numel() for p in mine):,} parameters, "
            f"expected {sum(p.numel() for p in right):,}."
        )
    if [p.numel() for p in mine] != [p.numel() for p in right]:
        raise NotYet(f"{where}: the number of parameters is right, but not layer by layer.")
    for p, q in zip(mine, right, strict=True):
        fan_in = p[0].numel() if p.dim() > 1 else 1
        new = torch.randn(p.shape) * (2 / fan_in) ** 0.5 if p.dim() > 1 else torch.rand(p.shape)
        p.data.copy_(new)
        q.data.copy_(new.view(q.shape))


def weighted(value: torch.Tensor) -> torch.Tensor:
    """A sum with unlike weights, so that no gradient vanishes by symmetry."""
    weights = torch.arange(1.0, value.numel() + 1, dtype=torch.float64).cos().view(value.shape)
    return (value.double() * weights).sum()


# ---------------------------------------------------------------------------------- what is what


def as_number(value: Any) -> int | float | None:
    """A Python number from any kind of one: int, float, NumPy's, or a tensor of one value."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        if math.prod(value.shape) != 1 or value.ndim > 1:
            return None
        value = value.item()
    if isinstance(value, Fraction | Decimal):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Of a class of one's own, it could answer each comparison itself.
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)


def as_row(value: Any) -> list | None:
    """A list from a list, tuple, or anything that has `tolist`."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist() if value.ndim else None
    if hasattr(value, "tolist") and hasattr(value, "__len__"):  # a pandas Series
        return list(value.tolist())
    if isinstance(value, tuple | list | range):
        return [number if (number := as_number(v)) is not None else v for v in value]
    return None


def as_tensor(value: Any) -> torch.Tensor | None:
    """A plain tensor from a tensor, an array, or rows of numbers or tensors."""
    if isinstance(value, torch.Tensor):
        with torch._C.DisableTorchFunctionSubclass():  # which a class of one's own may answer
            return torch.Tensor.as_subclass(value, torch.Tensor)
    if isinstance(value, np.ndarray | np.generic):
        return torch.as_tensor(np.array(value, order="C"))  # a flipped one has strides below 0
    if isinstance(value, tuple | list):
        tensors = [as_tensor(item) for item in value]
        if tensors and all(t is not None and t.shape == tensors[0].shape for t in tensors):
            return torch.stack(tensors)
        return None
    return torch.tensor(value) if isinstance(value, int | float) else None
