"""Exercises: `check` an answer, ask for a `hint`, see the `solution` and your `progress`.

An answer is in one of four states: *not tried yet*, *not yet* (with the mismatch named), *right*,
or *open*, where only you can judge it. `check` never raises, whatever the answer does.
"""

import contextlib
import json
from html import escape
from pathlib import Path
from typing import Any

import torch

from common import exercises, machine
from common.exercises import Exercise
from common.exercises.answers.alike import NotYet
from common.exercises.answers.outcome import Untried

STATES = ("not tried yet", "not yet", "open", "right")
COLOURS = {"right": "#009E73", "not yet": "#D55E00", "open": "#0072B2"}


def state_of(exercise: Exercise, answer: Any) -> tuple[str, str]:
    """(one of STATES, what to tell the student); settings and random numbers stay as they were."""
    if answer is ... or answer is None:
        return "not tried yet", budget(exercise)
    if not callable(answer):
        return "not yet", f"Give check the function itself: check(..., {exercise.name})."
    number_format = torch.get_default_dtype()
    with machine.own_generator(), torch.inference_mode(False), torch.enable_grad():
        try:
            torch.manual_seed(0)
            return verdict(exercise, answer)
        except Untried:
            return "not tried yet", budget(exercise)
        except NotYet as mismatch:
            return "not yet", str(mismatch)
        finally:
            torch.set_default_dtype(number_format)


def verdict(exercise: Exercise, answer: Any) -> tuple[str, str]:
    """The state of a callable answer. Raises `NotYet` and `Untried`."""
    if exercise.rubric:
        if returns_dots(answer):
            raise Untried
        return "open", " ".join(["Judge your work yourself.", *exercise.rubric])
    if exercise.broken and exercise.still_broken(answer):
        same = "This still does what the faulty code does."
        if is_skeleton(exercise, answer):
            return "not tried yet", same
        raise NotYet(f"{exercise.recognised(answer)} {same}".strip())
    exercise.test(answer)
    return "right", exercise.because


def is_skeleton(exercise: Exercise, answer: Any) -> bool:
    """Whether an answer is the faulty code as it was given: the same names in the same order."""
    mine, given = (getattr(f, "__code__", None) for f in (answer, exercise.broken))
    return mine is None or (mine.co_names, mine.co_varnames) == (given.co_names, given.co_varnames)


def returns_dots(answer: Any) -> bool:
    """Whether a function is a skeleton: it does nothing but return its dots."""
    code = getattr(answer, "__code__", None)
    dots = (lambda: ...).__code__
    return code is not None and code.co_names == () and len(code.co_code) == len(dots.co_code) and (
        Ellipsis in code.co_consts
    )  # fmt: skip


def budget(exercise: Exercise) -> str:
    """How to begin, and how many lines an answer needs, as advice."""
    if exercise.experiment:
        return "Replace the dots by your prediction; the check then runs the experiment."
    if exercise.rubric:
        return f"Replace the dots by your experiment. {' '.join(exercise.rubric)}"
    return f"Replace the dots; {enough(exercise)}"


def enough(exercise: Exercise) -> str:
    """The length of the solution: "3 lines are enough."."""
    return "1 line is enough." if exercise.lines == 1 else f"{exercise.lines} lines are enough."


def check(name: str, answer: Any) -> None:
    """Say whether `answer` solves the exercise `name`, and note it; never raises for an answer."""
    state, message = state_of(exercises.find(name), answer)
    note(name, state)
    tell(f"{name}: {state}.", message, colour_of(state))


def colour_of(state: str) -> str:
    return COLOURS.get(state, "#555")


def hint(name: str, number: int = 1) -> None:
    """Show hint `number`, counted from 1; later hints give away more."""
    hints = exercises.find(name).hints
    number = min(max(number, 1), len(hints))
    tell(f"Hint {number} of {len(hints)}.", hints[number - 1], "#0072B2")


def solution(name: str) -> None:
    """Print one solution."""
    print(exercises.find(name).source)


# -------------------------------------------------------------------------------------- progress


def progress(notebook: str) -> None:
    """Show the state of each exercise of a notebook, such as "lenet".

    Raises ValueError for a notebook without exercises.
    """
    names = [name for name in exercises.catalogue() if name.split(".")[0] == notebook]
    if not names:
        known = tuple({name.split(".")[0]: None for name in exercises.catalogue()})
        raise ValueError(machine.unknown("notebook", notebook, known))
    noted = read_notes()
    show_both(*progress_table({name.split(".")[1]: noted.get(name, STATES[0]) for name in names}))


def progress_table(states: dict[str, str]) -> tuple[str, str]:
    """Exercises and their states as HTML and as plain text."""
    rows = list(states.items())
    return (
        "<table><tr><th>exercise</th><th>state</th></tr>"
        + "".join(
            f'<tr><td>{escape(name)}</td><td style="color:{colour_of(state)}">{state}</td></tr>'
            for name, state in rows
        )
        + "</table>",
        "\n".join(f"{name:28}{state}" for name, state in rows),
    )


def notes_file() -> Path:
    return machine.runs_folder() / "progress.json"


def read_notes() -> dict[str, str]:
    """The best state so far of each exercise; a file that is missing or damaged holds nothing."""
    try:
        noted = json.loads(notes_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    noted = noted if isinstance(noted, dict) else {}
    return {
        name: state for name, state in noted.items() if isinstance(state, str) and state in STATES
    }


def note(name: str, state: str) -> None:
    """Write down an exercise's state, if it is better than before; whole, or not at all."""
    noted = read_notes()
    if STATES.index(state) <= STATES.index(noted.get(name, STATES[0])):
        return
    better = json.dumps(noted | {name: state}, indent=1)
    # A place that cannot be written to is no reason to fail.
    with contextlib.suppress(OSError), machine.written_whole(notes_file()) as fresh:
        fresh.write_text(better, encoding="utf-8")


# --------------------------------------------------------------------------------------- showing


def tell(heading: str, message: str, colour: str) -> None:
    """A coloured line in a notebook, plain text elsewhere."""
    show_both(*both(heading, message, colour))


def both(heading: str, message: str, colour: str) -> tuple[str, str]:
    """The same line as HTML and as plain text."""
    page = f'<span style="color:{colour};font-weight:bold">{escape(heading)}</span>'
    return f"{page} {escape(message)}".rstrip(), f"{heading} {message}".strip()


def show_both(page: str, words: str) -> None:
    """HTML in a notebook, words elsewhere."""
    if not machine.in_notebook():
        print(words)
        return
    from IPython.display import display

    display({"text/html": page, "text/plain": words}, raw=True)
