"""What an answer does with a case, watched, and whether that is what it should have done."""

import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from common.exercises.answers.alike import (
    ADVICE,
    Case,
    NotYet,
    close,
    must_be_same,
    or_zero,
    weighted,
)
from common.exercises.answers.limit import SECONDS, TooSlow, limit
from common.exercises.answers.wording import names_of, told

NOTHING = "Your function returns nothing (None): end it with a `return`."


class Untried(Exception):
    """The answer still returns its dots."""


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


class Without(TorchFunctionMode):
    """Refuses the functions that an exercise asks to do without, wherever they are called.

    "groups" stands for a convolution whose kernels see some of the channels alone.
    """

    def __init__(self, names: tuple[str, ...]):
        super().__init__()
        self.names = names

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("conv1d", "conv2d", "conv3d") and "groups" in self.names:
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            weight = given["weight"]
            grouped = given["input"].shape[1 - weight.ndim] != weight.shape[1]
            name = "groups" if grouped else name
        if name in self.names:
            raise NotYet(f"Do it without `{name}`: the exercise is to build what that does.")
        return function(*args, **(kwargs or {}))


def run(
    function: Callable, case: Case, gradient: bool = False, without: tuple[str, ...] = ()
) -> Outcome:
    """Call `function` on a copy of the case's arguments, and once more for the gradients."""
    args = copy.deepcopy(case.args)
    try:
        with limit(SECONDS), Without(without) if without else contextlib.nullcontext():
            value = function(*args)
    except (Exception, SystemExit, TooSlow) as error:
        return Outcome(error=error)
    return Outcome(value, args, gradients_of(function, case) if gradient else None)


def gradients_of(function: Callable, case: Case) -> list[torch.Tensor | None] | None:
    """The gradient of one fixed weighted sum of the result, for each floating argument."""
    args = copy.deepcopy(case.args)
    floats = [leaf for leaf in all_tensors(args, buffers=False) if leaf.is_floating_point()]
    leaves = [leaf.requires_grad_() for leaf in floats]
    try:
        with limit(SECONDS):
            value = function(*args)
            weighted(value).backward()
    except (Exception, SystemExit, TooSlow):
        return None
    return [leaf.grad for leaf in leaves]


def all_tensors(value: Any, buffers: bool = True) -> list[torch.Tensor]:
    """The tensors of nested tuples, lists and modules, in order; a module's with its statistics."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *(value.buffers() if buffers else ())]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in all_tensors(item, buffers)]
    return []


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
    must_be_same(found.value, expected.value, where, case)
    for name, mine, right in zip(
        names_of(answer, len(case.args)), found.args, expected.args, strict=False
    ):
        if not unchanged(mine, right):
            raise NotYet(
                f"Your function changes `{name}`, which belongs to its caller: make a copy."
            )
    if expected.gradients is not None:
        if found.gradients is None:
            if isinstance(found.value, list | tuple):
                raise NotYet("The values are right, but in a list: make them one tensor.")
            raise NotYet(f"The values are right, but no gradient can flow back: {ADVICE}.")
        for mine, right in zip(found.gradients, expected.gradients, strict=True):
            if not close(or_zero(mine, right), or_zero(right, mine)):
                raise NotYet(
                    f"The values are right, but the gradient of an input is not: {ADVICE}."
                )


def agrees(found: Outcome, other: Outcome, case: Case) -> bool:
    """Whether two calls did the same, also when both fail in the same way."""
    if found.error is not None or other.error is not None:
        return repr(found.error) == repr(other.error)
    if found.value is None or other.value is None:
        return found.value is other.value
    try:
        must_agree(found, other, case, "")
        must_agree(other, found, case, "")
    except (NotYet, Untried):
        return False
    return True


def unchanged(found: Any, expected: Any) -> bool:
    """Whether an argument looks after the call as it does after the solution's."""
    mine, right = all_tensors(found), all_tensors(expected)
    if len(mine) != len(right) or modes_of(found) != modes_of(expected):
        return False
    if mine:
        return all(
            a.shape == b.shape and a.dtype == b.dtype and close(a, b)
            for a, b in zip(mine, right, strict=True)
        )
    return not isinstance(expected, list | dict) or found == expected


def modes_of(value: Any) -> list[bool]:
    """Of a module: which parts are in training mode, and which weights learn."""
    if not isinstance(value, nn.Module):
        return []
    return [*(m.training for m in value.modules()), *(p.requires_grad for p in value.parameters())]


def guarded(answer: Callable, returns: bool = True) -> Callable:
    """The answer, but dots for a result raise `Untried`, and, if it `returns`, None `NotYet`."""

    @functools.wraps(answer, updated=())
    def call(*args, **kwargs):
        result = answer(*args, **kwargs)
        if result is ...:
            raise Untried
        if result is None and returns:
            raise NotYet(NOTHING)
        return result

    return call
