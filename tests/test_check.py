"""Exercises: every solution is right, every wrong answer is told why, nothing is ever raised."""

import ast
import collections
import importlib.util

import pytest
import torch
from torch import nn

from common import check, machine
from common.check import NotYet, catalogue, expect_equal, state_of

EXERCISES = catalogue()
WRONG = [(name, i) for name, e in EXERCISES.items() for i in range(len(e.wrong))]


def answer_of(name: str, source: str):
    """The object that `source` defines, run with what the exercise's notebook has at hand."""
    module = f"common.zoo.{name.split('.')[0]}"
    model_cells = importlib.import_module(module) if importlib.util.find_spec(module) else None
    namespace = {"torch": torch, "nn": nn} | vars(model_cells or collections)
    exec(source, namespace)
    return namespace[EXERCISES[name].answer]


# ---------------------------------------------------------------------------------- the exercises


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_is_right(name):
    assert state_of(EXERCISES[name], answer_of(name, EXERCISES[name].solution)) == ("right", "")


@pytest.mark.parametrize(("name", "i"), WRONG)
def test_a_wrong_answer_is_not_yet(name, i):
    state, message = state_of(EXERCISES[name], answer_of(name, EXERCISES[name].wrong[i]))
    assert state == "not yet"
    assert len(message) > 15


@pytest.mark.parametrize("name", EXERCISES)
def test_the_skeleton_is_not_tried_yet(name):
    exercise = EXERCISES[name]
    state, message = state_of(exercise, answer_of(name, exercise.skeleton))
    assert state == "not tried yet"
    assert f"{exercise.lines} line" in message


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_is_complete(name):
    exercise = EXERCISES[name]
    assert len(set(exercise.wrong)) == len(exercise.wrong) >= 2
    assert len(exercise.hints) >= 2
    assert all(exercise.hints)
    assert exercise.statement.strip()
    assert exercise.skeleton != exercise.solution


def body_lines(source: str, name: str) -> int:
    """Lines in the body of the function or class `name`, without blank ones and docstring."""
    (node,) = [n for n in ast.parse(source).body if getattr(n, "name", None) == name]
    body = node.body[1:] if ast.get_docstring(node) else node.body
    lines = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
    return sum(bool(line.strip()) for line in lines)


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_fits_its_budget(name):
    exercise = EXERCISES[name]
    assert 1 <= body_lines(exercise.solution, exercise.answer) <= exercise.lines


def test_lines_are_counted_right():
    body = ['    """Two', '    lines."""', "    b = (", "        a", "    )", "", "    return b"]
    assert body_lines("\n".join(["x = 1", "def f(a):", *body]), "f") == 4


def test_each_notebook_has_three_to_six():
    counts = collections.Counter(name.split(".")[0] for name in EXERCISES)
    assert {"data", "lenet", "compare"} <= counts.keys()
    assert all(3 <= n <= 6 for n in counts.values()), counts
    notebooks = {path.stem[3:] for path in (machine.HOME / "notebooks").glob("[0-9]*.ipynb")}
    assert counts.keys() <= notebooks


# ------------------------------------------------------------------------------ nonsense for answer


class Awkward:
    """An answer that resists every handling."""

    def __call__(self, *_, **__):
        return self

    def __eq__(self, other):
        raise ArithmeticError("not to be compared")

    __hash__ = None

    def __len__(self):
        raise LookupError("no length")


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no words")


def raises(error):
    def answer(*_, **__):
        raise error

    return answer


def forever(*args, **kwargs):
    return forever(*args, **kwargs)


NONSENSE = {
    "a number": 5,
    "a string": "nonsense",
    "a list": [1, 2],
    "a tensor": torch.zeros(3, 3),
    "a class": nn.Linear,
    "a layer": nn.Linear(2, 2),
    "no arguments": lambda: 1,
    "returns None": lambda *_, **__: None,
    "returns a number": lambda *_, **__: 5,
    "returns nan": lambda *_, **__: float("nan"),
    "returns a string": lambda *_, **__: "x",
    "returns a tensor": lambda *_, **__: torch.rand(2, 3),
    "returns no values": lambda *_, **__: torch.empty(2, device="meta"),
    "returns a tuple": lambda *_, **__: (1, "x"),
    "returns a layer": lambda *_, **__: nn.Linear(2, 2),
    "returns itself": Awkward(),
    "raises": raises(ZeroDivisionError("by zero")),
    "leaves": raises(SystemExit(3)),
    "calls itself": forever,
    "its error has no words": raises(Unspeakable()),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_never_right_and_never_raises(answer, capsys):
    for name, exercise in EXERCISES.items():
        state, message = state_of(exercise, answer)
        assert state == "not yet", name
        assert message
        check.check(name, answer)
    assert capsys.readouterr().out.count(": not yet. ") == len(EXERCISES)


def test_an_interruption_is_not_swallowed():
    """Stop must stop an answer that never ends."""
    with pytest.raises(KeyboardInterrupt):
        state_of(EXERCISES["lenet.output_size"], raises(KeyboardInterrupt()))


@pytest.mark.parametrize("answer", [..., None, lambda *_, **__: ...])
def test_untried_answers(answer):
    assert {state_of(e, answer)[0] for e in EXERCISES.values()} == {"not tried yet"}


def test_the_error_of_an_answer_is_told():
    message = state_of(EXERCISES["lenet.output_size"], raises(ZeroDivisionError("by zero")))[1]
    assert message == "Your code raised ZeroDivisionError: by zero"
    assert "no words" not in state_of(EXERCISES["lenet.output_size"], raises(Unspeakable()))[1]


# ------------------------------------------------------------------------------------ what is shown


def test_states_hints_and_solutions_are_shown(capsys):
    def shown(call, *args):
        call(*args)
        return capsys.readouterr().out.strip()

    name = "lenet.output_size"
    exercise = EXERCISES[name]
    right = answer_of(name, exercise.solution)
    assert shown(check.check, name, right) == f"{name}: right."
    assert shown(check.check, name, ...).startswith(f"{name}: not tried yet. Replace the dots")
    assert shown(check.check, name, lambda *_: 0).startswith(f"{name}: not yet. size=28, kernel=5")
    n = len(exercise.hints)
    for asked, given in ((1, 1), (2, 2), (99, n), (0, 1), (-3, 1)):
        expected = f"Hint {given} of {n}. {exercise.hints[given - 1]}"
        assert shown(check.hint, name, asked) == expected
    assert shown(check.hint, name) == shown(check.hint, name, 1)
    assert shown(check.solution, name) == exercise.solution


def test_in_a_notebook_the_message_is_escaped(monkeypatch):
    bundles = []
    monkeypatch.setattr(machine, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    check.check("lenet.output_size", raises(ValueError("<b>&")))
    (bundle,) = bundles
    assert "&lt;b&gt;&amp;" in bundle["text/html"]
    assert bundle["text/plain"].endswith("ValueError: <b>&")


@pytest.mark.parametrize(
    "ask", [lambda n: check.check(n, 1), check.hint, check.solution, check.find]
)
def test_an_unknown_exercise_gets_the_nearest(ask):
    with pytest.raises(ValueError, match=r"Did you mean 'lenet\.output_size'"):
        ask("lenet.outputsize")


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (3, 4, "here: expected 4, got 3"),
        ([1, 2], [1, 3], r"expected \[1, 3\]"),
        (0.1, 0.2, "expected 0.2, got 0.1"),
        (float("nan"), 0.2, "got nan"),
        ("x", 0.2, "got x"),
        ([1.0], torch.ones(1), "expected a tensor, got list"),
        (torch.ones(2), torch.ones(3), r"expected shape \(3,\), got \(2,\)"),
        (torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), "differ by up to 0.5"),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), "differ"),
    ],
)
def test_a_mismatch_is_named(found, expected, message):
    with pytest.raises(NotYet, match=message):
        expect_equal(found, expected, "here")


def test_what_is_equal():
    expect_equal(4.0, 4, "")
    expect_equal(1_000_000.5, 1_000_000.0, "relative to its size")
    expect_equal(torch.tensor([1, 2]), torch.tensor([1.0, 2.000001]), "")
