"""Exercises: `check` an answer, ask for a `hint`, see the `solution`.

An answer is in one of three states: *not tried yet*, *not yet* (with the mismatch named), *right*.
`check` never raises, whatever the answer does.
"""

import functools
import importlib
import pkgutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from common import exercises, machine
from common.machine import unknown


class NotYet(Exception):
    """What an exercise's test raises on a wrong answer, with the mismatch in words."""


@dataclass(frozen=True)
class Exercise:
    """One exercise, whole: what the student reads, what tests the answer, and answers to test with.

    `test(answer)` raises `NotYet` on a wrong answer. `skeleton` defines the object called `answer`,
    whose untried form returns `...`. `solution` and each of `wrong` are source code that defines
    the same object. `lines` is the budget: how many lines the solution's body may take.
    """

    name: str
    statement: str
    skeleton: str
    answer: str
    lines: int
    test: Callable[[Any], None]
    hints: tuple[str, ...]
    solution: str
    wrong: tuple[str, ...]


@functools.cache
def catalogue() -> dict[str, Exercise]:
    """Every exercise by "notebook.name", such as "lenet.output_size"."""
    found = {}
    for module_info in pkgutil.iter_modules(exercises.__path__):
        module = importlib.import_module(f"{exercises.__name__}.{module_info.name}")
        found |= {f"{module_info.name}.{e.name}": e for e in module.EXERCISES}
    return found


def find(name: str) -> Exercise:
    """The exercise called `name`. Raises ValueError for an unknown one."""
    if name not in catalogue():
        raise ValueError(unknown("exercise", name, tuple(catalogue())))
    return catalogue()[name]


def state_of(exercise: Exercise, answer: Any) -> tuple[str, str]:
    """("not tried yet" | "not yet" | "right", what to tell the student)."""
    if answer is ... or answer is None:
        return "not tried yet", budget(exercise)
    try:
        exercise.test(Untried.guard(answer))
    except Untried:
        return "not tried yet", budget(exercise)
    except NotYet as mismatch:
        return "not yet", str(mismatch)
    except (Exception, SystemExit) as error:
        told = "".join(traceback.format_exception_only(error)).strip()
        return "not yet", f"Your code raised {told}"
    return "right", ""


def budget(exercise: Exercise) -> str:
    """How many lines an answer needs, as a sentence."""
    few = "1 line is" if exercise.lines == 1 else f"{exercise.lines} lines are"
    return f"Replace the dots; {few} enough."


class Untried(Exception):
    """Raised while a test runs an answer that still returns its dots."""

    @staticmethod
    def guard(answer: Any) -> Any:
        """A function that raises `Untried` when the answer, a function, returns `...`."""
        if not callable(answer) or isinstance(answer, (type, torch.nn.Module)):
            return answer

        @functools.wraps(answer)
        def guarded(*args, **kwargs):
            result = answer(*args, **kwargs)
            if result is ...:
                raise Untried
            return result

        return guarded


def check(name: str, answer: Any) -> None:
    """Say whether `answer` solves the exercise `name`; never raises for a wrong answer."""
    state, message = state_of(find(name), answer)
    tell(
        f"{name}: {state}.", message, {"right": "#009E73", "not yet": "#D55E00"}.get(state, "#555")
    )


def hint(name: str, number: int = 1) -> None:
    """Show hint `number`, counted from 1; later hints give away more."""
    hints = find(name).hints
    number = min(max(number, 1), len(hints))
    tell(f"Hint {number} of {len(hints)}.", hints[number - 1], "#0072B2")


def solution(name: str) -> None:
    """Print one solution."""
    print(find(name).solution)


def tell(heading: str, message: str, colour: str) -> None:
    """A coloured line in a notebook, plain text elsewhere."""
    text = f"{heading} {message}".strip()
    if not machine.in_notebook():
        print(text)
        return
    from html import escape

    from IPython.display import display

    html = (
        f'<span style="color:{colour};font-weight:bold">{escape(heading)}</span> {escape(message)}'
    )
    display({"text/html": html, "text/plain": text}, raw=True)


def expect_equal(found: Any, expected: Any, where: str) -> None:
    """Raise `NotYet` unless two numbers, shapes or tensors agree (floats to 1e-5)."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor):
            raise NotYet(f"{where}: expected a tensor, got {type(found).__name__}.")
        if found.shape != expected.shape:
            raise NotYet(
                f"{where}: expected shape {tuple(expected.shape)}, got {tuple(found.shape)}."
            )
        if not torch.allclose(found.float(), expected.float(), atol=1e-5):
            gap = (found.float() - expected.float()).abs().max().item()
            raise NotYet(f"{where}: the shape is right, the values differ by up to {gap:.3g}.")
    elif isinstance(expected, float):
        most = 1e-5 * max(1, abs(expected))
        if not isinstance(found, (int, float)) or not abs(found - expected) <= most:  # NaN too
            raise NotYet(f"{where}: expected {expected:.6g}, got {found}.")
    elif found != expected:
        raise NotYet(f"{where}: expected {expected}, got {found}.")
