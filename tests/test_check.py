"""The checker: states and messages, limits, what is shown, and the reader's progress."""

import contextlib
import json
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from common import check, machine
from common.check import state_of
from common.exercises import catalogue, find
from common.exercises.answers import alike, limit, wording
from common.exercises.answers.alike import NotYet, must_be_same

EXERCISES = catalogue()
JUDGED = {name: e for name, e in EXERCISES.items() if not e.rubric}


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
    "no arguments": lambda: -77,
    "returns a number": lambda *_, **__: 5,
    "returns nan": lambda *_, **__: float("nan"),
    "returns a tensor": lambda *_, **__: torch.rand(2, 3),
    "returns no values": lambda *_, **__: torch.empty(2, device="meta"),
    "returns a layer": lambda *_, **__: nn.Linear(2, 2),
    "returns itself": Awkward(),
    "leaves": raises(SystemExit(3)),
    "calls itself": forever,
    "its error has no words": raises(Unspeakable()),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_never_right_and_never_raises(answer, capsys):
    for name, exercise in JUDGED.items():
        if name == "resnet.add_up_gradients" and not exercise.returns:
            continue  # some of these do nothing, which is what its faulty code does wrong
        state, message = state_of(exercise, answer)
        assert state == "not yet", name
        assert message
    check.check("lenet.output_size", answer)
    assert "lenet.output_size: not yet. " in capsys.readouterr().out


def test_an_interruption_is_not_swallowed():
    """Stop must stop an answer that never ends."""
    with pytest.raises(KeyboardInterrupt):
        state_of(EXERCISES["lenet.output_size"], raises(KeyboardInterrupt()))


@pytest.mark.parametrize("answer", [..., None, lambda *_, **__: ...])
def test_untried_answers(answer):
    assert {state_of(e, answer)[0] for e in JUDGED.values()} == {"not tried yet"}


def test_an_answer_that_changes_the_number_format_changes_it_for_itself():
    state_of(EXERCISES["lenet.output_size"], lambda *_: torch.set_default_dtype(torch.float64))
    assert torch.get_default_dtype() == torch.float32


def test_the_error_of_an_answer_is_told():
    message = state_of(EXERCISES["lenet.output_size"], raises(ZeroDivisionError("by zero")))[1]
    assert message.endswith("your line `raise error` raised ZeroDivisionError: by zero")
    assert message.startswith("size=28, kernel=5: ")
    assert "no words" not in state_of(EXERCISES["lenet.output_size"], raises(Unspeakable()))[1]


def test_an_error_is_told_with_the_line_of_the_cell_that_raised_it():
    """Also where torch raised it, several calls further down."""

    def grow(x, layers):
        y = torch.cat([x, x], dim=3)
        return torch.cat([y, layers[0](x)], dim=1)

    message = state_of(EXERCISES["densenet.grow"], grow)[1]
    assert "your line `return torch.cat([y, layers[0](x)], dim=1)` raised RuntimeError" in message


def test_a_forgotten_return_is_said_in_one_place_for_all():
    def forgets(*args):
        _ = args

    for name, exercise in JUDGED.items():
        if name != "resnet.add_up_gradients":
            assert "return" in state_of(exercise, forgets)[1], name


def test_layers_in_a_plain_list_are_named():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = [nn.Conv2d(3, 3, 3, padding=1)]

        def forward(self, x):
            return self.parts[0](x)

    message = state_of(EXERCISES["vgg.column_c"], lambda *_: Listed())[1]
    assert "`parts`" in message
    assert "ModuleList" in message


# ------------------------------------------------------------------------------ answers without end


def sleeps(*_):
    time.sleep(60)


def spins(*_):
    while True:
        pass


def spins_and_swallows(*_):
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


@pytest.mark.parametrize("endless", [sleeps, spins, spins_and_swallows])
def test_an_endless_answer_is_stopped(endless, monkeypatch):
    monkeypatch.setattr("common.exercises.answers.outcome.SECONDS", 0.3)
    start = time.monotonic()
    state, message = state_of(EXERCISES["lenet.output_size"], endless)
    assert state == "not yet"
    assert "had not ended" in message
    assert time.monotonic() - start < 30  # a busy machine; without a limit it is for ever


def test_a_thread_has_a_limit_too(monkeypatch):
    monkeypatch.setattr("common.exercises.answers.outcome.SECONDS", 0.3)
    said = []
    exercise = EXERCISES["lenet.output_size"]
    thread = threading.Thread(target=lambda: said.append(state_of(exercise, spins)), daemon=True)
    thread.start()
    thread.join(60)
    assert said
    assert said[0][0] == "not yet"


def test_a_limit_leaves_nothing_behind():
    with limit.limit(0.2):
        pass
    time.sleep(0.4)


def test_the_caller_s_random_numbers_go_on_as_before():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for exercise in list(JUDGED.values())[:10]:
        state_of(exercise, exercise.solution)
    assert torch.equal(torch.rand(3), expected)


# ------------------------------------------------------------------------------------ what is shown


def test_states_hints_and_solutions_are_shown(capsys):
    def shown(call, *args):
        call(*args)
        return capsys.readouterr().out.strip()

    name = "lenet.output_size"
    exercise = EXERCISES[name]
    right = exercise.solution
    assert shown(check.check, name, right) == f"{name}: right."
    assert shown(check.check, name, ...).startswith(f"{name}: not tried yet. Replace the dots")
    assert shown(check.check, name, lambda *_: 0).startswith(f"{name}: not yet. size=28, kernel=5")
    n = len(exercise.hints)
    for asked, given in ((1, 1), (2, 2), (99, n), (0, 1), (-3, 1)):
        expected = f"Hint {given} of {n}. {exercise.hints[given - 1]}"
        assert shown(check.hint, name, asked) == expected
    assert shown(check.hint, name) == shown(check.hint, name, 1)
    assert shown(check.solution, name) == exercise.source


def test_in_a_notebook_the_message_is_escaped(monkeypatch):
    bundles = []
    monkeypatch.setattr(machine, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    check.check("lenet.output_size", raises(ValueError("<b>&")))
    (bundle,) = bundles
    assert "&lt;b&gt;&amp;" in bundle["text/html"]
    assert bundle["text/plain"].endswith("ValueError: <b>&")


@pytest.mark.parametrize("ask", [lambda n: check.check(n, 1), check.hint, check.solution, find])
def test_an_unknown_exercise_gets_the_nearest(ask):
    with pytest.raises(ValueError, match=r"Did you mean 'lenet\.output_size'"):
        ask("lenet.outputsize")


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (3, 4, "here: expected 4, got 3"),
        (4.0, 4, "a float.*//"),
        ([1, 2], [1, 3], r"expected \[1, 3\], got \[1, 2\]"),
        ([1, 2], [1, 2, 3], "expected 3 values"),
        (0.1, 0.2, "expected 0.2, got 0.1"),
        (float("nan"), 0.2, "got nan"),
        ("x", 0.2, "got 'x'"),
        (None, 0.2, "got None"),
        (torch.ones(2), 0.2, "got a tensor of shape 2"),
        ({"a": 1}, torch.ones(1), "expected a tensor, got an object of type dict"),
        (torch.ones(2), torch.ones(3), "expected shape 3, got 2"),
        (torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), "differ by up to 0.5"),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), "differ"),
    ],
)
def test_a_mismatch_is_named(found, expected, message):
    with pytest.raises(NotYet, match=message):
        must_be_same(found, expected, "here")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (np.int64(4), 4),
        (torch.tensor(4), 4),
        (torch.tensor([4]), 4),
        (1_000_000.5, 1_000_000.0),
        (np.float32(9.67741935483871), 9.67741935483871),
        (torch.tensor([1.0, 2.000001]), torch.tensor([1.0, 2.0])),
        (torch.tensor([1, 2]).double(), torch.tensor([1.0, 2.0])),
        (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])),
        ([torch.tensor(1.0), 2.0], (1.0, 2.0)),
        (np.array([1, 2]), [1, 2]),
    ],
)
def test_what_is_equal(found, expected):
    must_be_same(found, expected, "")


# ------------------------------------------------------------------------------------- progress


def test_progress_shows_the_best_state_of_each_exercise(capsys, runs):
    name = "lenet.output_size"
    for answer in (..., lambda *_: 0, find(name).solution, lambda *_: 0, ...):
        check.check(name, answer)
    check.check("lenet.convolve", lambda *_: 0)
    check.check("lenet.shifted_digits", find("lenet.shifted_digits").solution)
    capsys.readouterr()
    check.progress("lenet")
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["output_size"] == "right"
    assert rows["convolve"] == "not yet"
    assert rows["shifted_digits"] == "open"
    assert rows["modern_lenet"] == "not tried yet"
    assert len(rows) == 6
    assert [path.name for path in runs.iterdir()] == ["progress.json"]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"lenet.convolve": 3, "x": "right"}', "\x00"])
def test_a_damaged_file_costs_the_notes_and_no_more(damage, runs, capsys):
    (runs / "progress.json").write_text(damage)
    check.progress("lenet")
    assert "right" not in capsys.readouterr().out
    check.check("lenet.output_size", find("lenet.output_size").solution)
    noted = json.loads((runs / "progress.json").read_text())
    assert noted["lenet.output_size"] == "right"


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_fail(monkeypatch, capsys):
    def full(*_):
        raise OSError("full")

    monkeypatch.setattr(machine.os, "replace", full)
    check.check("lenet.output_size", find("lenet.output_size").solution)
    assert "right" in capsys.readouterr().out


def test_progress_of_no_notebook():
    with pytest.raises(ValueError, match="Did you mean 'lenet'"):
        check.progress("lenett")


def test_one_line_is_one_line():
    assert check.enough(find("data.flip")) == "1 line is enough."
    assert alike.brief(1) == "1"


def test_rows_and_small_tensors_in_a_few_words():
    two = [torch.ones(1), torch.ones(2)]
    assert alike.brief(two) == "a list of 2; join them to one tensor"
    assert wording.few([True, 1234, 0.123456789, "x"]) == "[True, 1,234, 0.123457, 'x']"
    assert wording.few(list(range(9))) == "[0, 1, 2, 3, 4, 5, …]"
    assert wording.named(torch.tensor([[1, 2], [3, 4]])) == "[[1, 2], [3, 4]]"
    assert wording.named(torch.tensor([0.1, 0.2])) == "[0.1, 0.2]"
    assert wording.named(torch.zeros(2, 2)) == "<2 × 2, float32>"
    assert wording.named(torch.tensor(3)) == "3"
