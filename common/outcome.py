"""What an answer does with a case, watched, and whether that is what it should have done."""

import contextlib
import copy
import ctypes
import functools
import inspect
import linecache
import math
import numbers
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

SECONDS = 2.0  # what one call of an answer may take
NOTHING = "Your function returns nothing (None): end it with a `return`."
ADVICE = "use torch's functions, and no numpy, .item(), detach or no_grad"


class NotYet(Exception):
    """A mismatch, in words for the student."""


class Untried(Exception):
    """The answer still returns its dots."""


class TooSlow(BaseException):
    """Raised inside an answer that does not end; no `except Exception` of its own catches it."""

    def __str__(self) -> str:
        return f"it had not ended after {SECONDS:g} seconds"


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


@dataclass
class Outcome:
    """What one call did: its value or error, its arguments afterwards, and the gradients.

    `gradients` has one entry for each floating tensor in the arguments, None for "none came back",
    and is None itself where no gradient could flow at all.
    """

    value: Any = None
    args: tuple = ()
    gradients: list[torch.Tensor | None] | None = None
    error: BaseException | None = None


# -------------------------------------------------------------------------------------- running


def run(function: Callable, case: Case, gradient: bool = False) -> Outcome:
    """Call `function` on a copy of the case's arguments, and once more for the gradients."""
    args = copy.deepcopy(case.args)
    try:
        with limit(SECONDS):
            value = function(*args)
    except (Exception, SystemExit, TooSlow) as error:
        return Outcome(error=error)
    return Outcome(value, args, gradients_of(function, case) if gradient else None)


def gradients_of(function: Callable, case: Case) -> list[torch.Tensor | None] | None:
    """The gradient of one fixed weighted sum of the result, for each floating argument."""
    args = copy.deepcopy(case.args)
    floats = [leaf for leaf in tensors_in(args, buffers=False) if leaf.is_floating_point()]
    leaves = [leaf.requires_grad_() for leaf in floats]
    try:
        with limit(SECONDS):
            value = function(*args)
            weighted(value).backward()
    except (Exception, SystemExit, TooSlow):
        return None
    return [leaf.grad for leaf in leaves]


def weighted(value: torch.Tensor) -> torch.Tensor:
    """A sum with unlike weights, so that no gradient vanishes by symmetry."""
    weights = torch.arange(1.0, value.numel() + 1, dtype=torch.float64).cos().view(value.shape)
    return (value.double() * weights).sum()


def tensors_in(value: Any, buffers: bool = True) -> list[torch.Tensor]:
    """The tensors of nested tuples, lists and modules, in order; a module's with its statistics."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *(value.buffers() if buffers else ())]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_in(item, buffers)]
    return []


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow inside when the time is up, again and again for code that catches it."""
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():

        def ring(*_):
            raise TooSlow

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    else:  # Windows, or a thread: an exception from outside waits for the next line of Python
        here = ctypes.c_ulong(threading.get_ident())
        raise_there = ctypes.pythonapi.PyThreadState_SetAsyncExc
        timer = threading.Timer(seconds, raise_there, (here, ctypes.py_object(TooSlow)))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


# ------------------------------------------------------------------------------------ comparing


def must_agree(
    found: Outcome, expected: Outcome, case: Case, where: str, answer: Any = None
) -> None:
    """Raise `NotYet` unless both calls did the same; `answer` is whose line an error names."""
    if isinstance(found.error, NotYet | Untried):
        raise found.error
    if found.error is not None:
        raise NotYet(f"{where}: {told(found.error, answer)}")
    if found.value is ...:
        raise Untried
    if found.value is None and expected.value is not None:
        raise NotYet(NOTHING)
    same(found.value, expected.value, where, case)
    for name, mine, right in zip(names_of(answer), found.args, expected.args, strict=False):
        if not unchanged(mine, right):
            raise NotYet(
                f"Your function changes `{name}`, which belongs to its caller: make a copy."
            )
    if expected.gradients is not None:
        if found.gradients is None:
            raise NotYet(f"The values are right, but no gradient can flow back: {ADVICE}.")
        for mine, right in zip(found.gradients, expected.gradients, strict=True):
            if not close(or_zero(mine, right), or_zero(right, mine)):
                raise NotYet(
                    f"The values are right, but the gradient of an input is not: {ADVICE}."
                )


def agrees(found: Outcome, other: Outcome, case: Case) -> bool:
    """Whether two calls did the same, also when both fail in the same way."""
    if found.error is not None or other.error is not None:
        return type(found.error) is type(other.error)
    if found.value is None or other.value is None:
        return found.value is other.value
    try:
        must_agree(found, other, case, "")
        must_agree(other, found, case, "")
    except (NotYet, Untried):
        return False
    return True


def same(found: Any, expected: Any, where: str, case: Case = Case()) -> None:
    """Raise `NotYet` unless two results agree; a number may be of any kind, a row of any type."""
    try:
        if isinstance(expected, nn.Module):
            same_network(found, expected, where, case)
        elif isinstance(expected, torch.Tensor):
            same_tensor(found, expected, where)
        elif isinstance(expected, dict):
            for key, value in expected.items():
                same(found[key], value, f"{where}, {key}" if where else key, case)
        elif isinstance(expected, tuple | list):
            row = as_row(found)
            if row is None or len(row) != len(expected):
                raise NotYet(f"{where}: expected {len(expected)} values, got {brief(found)}.")
            if all(isinstance(e, numbers.Number) for e in expected):  # tell the whole row
                for mine, right in zip(row, expected, strict=True):
                    same(mine, right, f"{where}: expected {list(expected)}, got {row}; here", case)
            else:
                for i, (mine, right) in enumerate(zip(row, expected, strict=True)):
                    same(mine, right, f"{where}, number {i}", case)
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


def unchanged(found: Any, expected: Any) -> bool:
    """Whether an argument looks after the call as it does after the solution's."""
    mine, right = tensors_in(found), tensors_in(expected)
    if len(mine) != len(right):
        return False
    if mine:
        return all(
            a.shape == b.shape and a.dtype == b.dtype and close(a, b)
            for a, b in zip(mine, right, strict=True)
        )
    return not isinstance(expected, list | dict) or found == expected


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
    found, expected = copy.deepcopy(found), copy.deepcopy(expected)
    first = torch.randn(case.inputs[0])
    mine, right = in_order(found, first, where), in_order(expected, first, where)
    if not case.keep:
        share_weights(mine, right, where)
        for module in [*found.modules(), *expected.modules()]:
            if isinstance(module, nn.BatchNorm2d):  # what finding the order has moved
                module.reset_running_stats()
    modes = (expected.training,) if case.keep else (True, False)
    for training in modes:
        for net in (found, expected):
            net.train(training)
        for shape in case.inputs:
            mode = "" if case.keep else f", in {'training' if training else 'evaluation'} mode"
            same_answers(found, expected, mine, right, shape, f"{where}{mode}")


def same_answers(
    found: nn.Module, expected: nn.Module, mine: list, right: list, shape: tuple, where: str
) -> None:
    """One batch through both networks: outputs, gradients, and an input that stays as it was."""
    where = f"{where}, an input of {' × '.join(map(str, shape))}"
    image = torch.randn(shape)
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
        if not close(or_zero(a, b), or_zero(b, a)):
            raise NotYet(f"{where}: the output is right, but not the gradient: {ADVICE}.")


def unregistered(net: nn.Module) -> str:
    """The first attribute that holds layers in a plain list, tuple or dict, or ""."""
    for module in net.modules():
        for name, value in vars(module).items():
            items = value.values() if isinstance(value, dict) else value
            if name.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            if any(isinstance(item, nn.Module) for item in items):
                return name
    return ""


def in_order(net: nn.Module, x: torch.Tensor, where: str) -> list[nn.Parameter]:
    """The net's parameters in the order in which its layers first run, then any others."""
    ran: list[nn.Parameter] = []
    hooks = [
        module.register_forward_hook(
            lambda module, *_: ran.extend(module.parameters(recurse=False))
        )
        for module in net.modules()
    ]
    try:
        with limit(SECONDS), torch.no_grad():
            net(x.clone())
    except (Exception, TooSlow) as error:
        shape = " × ".join(map(str, x.shape))
        raise NotYet(f"{where}, an input of {shape}: it raised {words(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
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


# ---------------------------------------------------------------------------------- what is what


def as_number(value: Any) -> int | float | None:
    """A Python number from any kind of one: int, float, NumPy's, or a tensor of one value."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        if math.prod(value.shape) != 1 or value.ndim > 1:
            return None
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


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
    """A tensor from a tensor, an array, or rows of numbers or tensors."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return torch.as_tensor(value)
    if isinstance(value, tuple | list):
        tensors = [as_tensor(item) for item in value]
        if tensors and all(t is not None for t in tensors):
            return torch.stack(tensors)
    return torch.tensor(value) if isinstance(value, int | float) else None


def brief(value: Any) -> str:
    """A value in a few words, whatever it is."""
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {size(value)}"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, int | float | str | tuple | list | np.generic):
        with contextlib.suppress(Exception):
            text = repr(value)
            return text if len(text) <= 60 else f"{text[:57]}..."
    return f"an object of type {type(value).__name__}"


def shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.6g}"


def size(tensor: torch.Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "none (a single value)"


def names_of(function: Any) -> list[str]:
    """The names of a function's parameters, "argument 1" and so on where they cannot be read."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return [f"argument {i}" for i in range(1, 10)]


def guarded(answer: Callable) -> Callable:
    """The answer, but dots in place of a result raise `Untried`, and nothing at all `NotYet`."""

    @functools.wraps(answer, updated=())
    def call(*args, **kwargs):
        result = answer(*args, **kwargs)
        if result is ...:
            raise Untried
        if result is None:
            raise NotYet(NOTHING)
        return result

    return call


def described(names: list[str], case: Case) -> str:
    """The case as a call: "size=28, kernel=5"."""
    pairs = zip(names, case.args, strict=False)
    return ", ".join(f"{name}={named(value)}" for name, value in pairs)


def named(value: Any) -> str:
    """An argument: its shape if it is a tensor, its type if it is a layer or a function."""
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"<{size(value)}, {kind}>" if value.numel() > 6 else str(value.tolist())
    if isinstance(value, nn.Module):
        return type(value).__name__
    if callable(value):
        return "<function>"
    if isinstance(value, tuple | list) and any(not isinstance(v, numbers.Number) for v in value):
        return f"[{', '.join(named(v) for v in value)}]"
    text = repr(value)
    return text if len(text) <= 70 else f"{text[:67]}..."


def words(error: BaseException) -> str:
    """An error's type and message, on one line, also where it has no words."""
    if isinstance(error, TooSlow):
        return f"nothing: {error}"
    return " ".join("".join(traceback.format_exception_only(error)).split())


def told(error: BaseException, answer: Any) -> str:
    """An error with the student's own line that raised it, where that can be found."""
    file = getattr(getattr(answer, "__code__", None), "co_filename", None)
    lines = [
        linecache.getline(file, number).strip()
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == file
    ]
    line = f"your line `{lines[-1]}`" if lines and lines[-1] else "your code"
    if isinstance(error, TooSlow):
        return f"{error}, at {line}."
    return f"{line} raised {words(error)}"
