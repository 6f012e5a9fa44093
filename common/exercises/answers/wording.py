"""Values, shapes, arguments and errors in a few words, whatever they are."""

import contextlib
import inspect
import linecache
import numbers
import traceback
from typing import Any

import numpy as np
import torch
from torch import nn

from common.exercises.answers.limit import TooSlow


def brief(value: Any) -> str:
    """A value in a few words, whatever it is."""
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {size(value)}"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, tuple | list) and any(isinstance(v, torch.Tensor) for v in value):
        return f"a {type(value).__name__} of {len(value)}; join them to one tensor"
    if isinstance(value, int | float | str | tuple | list | np.generic):
        with contextlib.suppress(Exception):
            text = repr(value)
            return text if len(text) <= 60 else f"{text[:57]}..."
    return f"an object of type {type(value).__name__}"


def shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.6g}"


def few(row: list) -> str:
    """A row of numbers: the first six."""
    told = [
        shown(n) if isinstance(n, int | float) and not isinstance(n, bool) else brief(n)
        for n in row[:6]
    ]
    return f"[{', '.join(told)}{', …' if len(row) > 6 else ''}]"


def size(tensor: torch.Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "none (a single value)"


def names_of(function: Any, count: int = 9) -> list[str]:
    """The names of a function's first parameters; "argument 2" where they cannot be read."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    return names if len(names) >= count else [f"argument {i}" for i in range(1, count + 1)]


def described(names: list[str], args: tuple) -> str:
    """The case as a call: "size=28, kernel=5"."""
    pairs = zip(names, args, strict=False)
    return ", ".join(f"{name}={named(value)}" for name, value in pairs)


def named(value: Any) -> str:
    """An argument: its shape if it is a tensor, its type if it is a layer or a function."""
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if value.numel() > 6 or (value.ndim > 1 and value.is_floating_point()):
            return f"<{size(value)}, {kind}>"
        return few(value.tolist()) if value.ndim == 1 else str(value.tolist())
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
    if file and not lines:  # it came after the answer had returned
        return f"what your code returns is of another kind than asked for ({words(error)})"
    return f"{line} raised {words(error)}"
