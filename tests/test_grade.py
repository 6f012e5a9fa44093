"""The grader: ten honest submissions and ten hostile ones, each of which costs only itself."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common import zoo
from common.exercises import catalogue, find
from common.exercises.answers.alike import NotYet, must_be_same
from tools import grade, notebooks

NOTEBOOKS = sorted({name.split(".")[0] for name in catalogue()})


def submission(*cells: str) -> str:
    code = [{"cell_type": "code", "source": cell, "outputs": [], "metadata": {}} for cell in cells]
    return json.dumps({"cells": code, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def solved(notebook: str) -> str:
    names = [name for name in catalogue() if name.startswith(f"{notebook}.")]
    return submission(
        "import this_is_not_run",
        *(notebooks.answer_cell(name, find(name).source, find(name).name) for name in names),
    )


GOOD = notebooks.answer_cell("lenet.output_size", find("lenet.output_size").source, "output_size")
HOSTILE = {
    "endless": "while True: pass",
    "endless_and_deaf": "while True:\n    try:\n        while True: pass\n"
    "    except BaseException: pass",
    "crashing": "import os; os._exit(0)",
    "killing": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "printing": "print('x' * 10**7); import sys; print('y' * 10**7, file=sys.stderr)",
    "forking": "import os, time\nfor _ in range(50):\n    os.fork() or time.sleep(300)",
    "greedy": "a = [bytearray(10**9) for _ in range(100)]",
    "writing": "open('big', 'wb').write(bytes(10**9))",
    "forging": "import common.check, common.exercises.answers.outcome, torch\n"
    "common.check.state_of = lambda *_: ('right', '')\n"
    "common.check.verdict = lambda *_: ('right', '')\n"
    "common.exercises.answers.outcome.must_agree = lambda *_: None\n"
    "torch.allclose = lambda *_, **__: True\n"
    'print(\'["lenet.convolve", "right", ""]\')',
    "calling_out": "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=300)",
}
WRONG = "def convolve(image, kernel):\n    return image\n\n\ncheck('lenet.convolve', convolve)"

needs_namespaces = pytest.mark.skipif(
    not grade.sandboxed(), reason="this machine makes no namespaces"
)


@pytest.mark.slow
def test_ten_honest_submissions_are_right(tmp_path: Path):
    for notebook in NOTEBOOKS:
        (tmp_path / f"{notebook}.ipynb").write_text(solved(notebook))
    rows = grade.grade(tmp_path)
    assert len(rows) == len(catalogue())
    wrong = [row for row in rows if row[2] != ("open" if find(row[1]).rubric else "right")]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_submission_costs_only_itself(kind: str, tmp_path: Path):
    (tmp_path / "a.ipynb").write_text(submission(GOOD, HOSTILE[kind], WRONG))
    (tmp_path / "b.ipynb").write_text(submission(GOOD))
    rows = {row[:2]: row[2:] for row in grade.grade(tmp_path, seconds=60)}
    assert rows["a.ipynb", "lenet.convolve"][0] == "not yet"
    assert rows["b.ipynb", "lenet.output_size"] == ("right", "")
    assert rows["b.ipynb", "lenet.convolve"][0] == "not tried yet"
    if kind not in ("endless_and_deaf", "crashing", "killing", "forking"):  # the others go on
        assert rows["a.ipynb", "lenet.output_size"] == ("right", "")


@pytest.mark.slow
@needs_namespaces
def test_a_deleting_submission_deletes_nothing(tmp_path: Path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    attack = f"import os; os.remove({str(victim)!r})"
    spared = (
        "try:\n    open('own', 'w').close()\n    made = True\nexcept OSError:\n    made = False"
    )
    (tmp_path / "a.ipynb").write_text(submission(GOOD, attack, spared))
    rows = grade.grade(tmp_path)
    assert victim.read_text() == "mine"
    assert ("a.ipynb", "lenet.output_size", "right", "") in rows


FORGING = {
    "method": "from common.exercises import Exercise\nExercise.test = lambda *_: None",
    "catalogue": "import dataclasses\nfrom common.exercises import catalogue\nc = catalogue()\n"
    "c['lenet.convolve'] = dataclasses.replace(c['lenet.convolve'], cases=lambda: ())",
    "exercise": "from common.exercises import find\n"
    "object.__setattr__(find('lenet.convolve'), 'cases', lambda: ())",
    "code": "import common.check as c\nc.state_of.__code__ = (lambda *_: ('right', '')).__code__",
    "shadows": "from common.exercises.answers import outcome\nimport torch\n"
    "outcome.zip = lambda *_, **__: ()\noutcome.must_be_same = lambda *_: None\n"
    "torch.Tensor.double = lambda t: torch.zeros(3, 7)",
    "frame": "import sys, json\nf, seen = sys._getframe(), {}\n"
    "while f:\n    seen |= f.f_locals\n    f = f.f_back\n"
    "print(seen['word'] + json.dumps(['lenet.convolve', 'right', '']), file=seen['report'])",
    "frame_locals": "import dataclasses, sys\nf = sys._getframe()\nwhile f:\n"
    "    for value in list(f.f_locals.values()):\n"
    "        if isinstance(value, dict) and 'lenet.convolve' in value:\n"
    "            e = value['lenet.convolve']\n"
    "            value['lenet.convolve'] = dataclasses.replace(e, cases=lambda: ())\n"
    "    f = f.f_back",
    "bytes": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\xff\\n')\n"
    "    except OSError: pass",
}


@pytest.mark.slow
def test_no_verdict_is_forged(tmp_path: Path):
    for kind, cell in FORGING.items():
        (tmp_path / f"{kind}.ipynb").write_text(submission(GOOD, cell, WRONG))
    rows = {row[:2]: row[2:] for row in grade.grade(tmp_path)}
    for kind in FORGING:
        assert rows[f"{kind}.ipynb", "lenet.output_size"] == ("right", "")
        state, message = rows[f"{kind}.ipynb", "lenet.convolve"]
        assert state == "not yet"
        assert "expected shape" in message


@pytest.mark.slow
def test_a_process_that_stays_does_not_keep_the_grader(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(grade, "sandboxed", lambda: False)
    stays = "import os, time\nif not os.fork():\n    os.setsid(), time.sleep(60), os._exit(0)"
    (tmp_path / "a.ipynb").write_text(submission(GOOD, stays))
    begun = time.monotonic()
    assert ("a.ipynb", "lenet.output_size", "right", "") in grade.grade(tmp_path, seconds=30)
    assert time.monotonic() - begun < 50


def in_sandbox(tmp_path: Path, script: str, *before: str) -> str:
    """What a script of the shell prints there; its own folder is `own`, and `hidden` is hidden."""
    own, hidden = tmp_path / "own", tmp_path / "hidden"
    own.mkdir()
    hidden.mkdir()
    (hidden / "other.ipynb").write_text("an answer")
    apart = [*grade.NAMESPACES.split(), "sh", "-c", grade.SANDBOX.format(size=1)]
    command = [*before, *apart, str(own), str(hidden), "sh", "-c", script, str(tmp_path)]
    return subprocess.run(command, capture_output=True, text=True).stdout


@needs_namespaces
def test_a_submission_cannot_undo_the_sandbox(tmp_path: Path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    undo = 'cut -d" " -f2 /proc/self/mounts | while read -r place; do\n'
    undo += 'mount -o remount,bind,rw "$place"; umount "$place"; done\n'
    spared = 'rm -f "$0/victim.txt"; echo > made && ls; ls "$0/hidden"; echo end'
    assert in_sandbox(tmp_path, undo + spared) == "made\nend\n"
    assert victim.read_text() == "mine"


@needs_namespaces
def test_a_mount_point_with_a_space_is_read_only_too(tmp_path: Path):
    stick = 'mkdir "$0/a b" && mount -t tmpfs none "$0/a b" && exec "$@"'
    before = "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", stick, str(tmp_path)
    script = 'mountpoint -q "$0/a b" && ! echo > "$0/a b/x" && echo refused'
    assert in_sandbox(tmp_path, script, *before) == "refused\n"


def test_a_spoilt_report_loses_only_what_is_spoilt(tmp_path: Path):
    words = [str(i) * 32 for i in range(6)]
    lines = ['["a", "right", ""]', '["b", "ri', "7", '[["c"], "right", ""]', "[" * 10**5]
    lines.append(json.dumps(["d", "not yet", "\udc80"]))
    said = b"\xff\n" + "\n".join(map(str.__add__, words, lines)).encode()
    said += f"\n{words[5]}{json.dumps(['d', 'right', ''])}".encode()  # a second one under a word
    found = grade.verdicts_in(said, words)
    assert found == {"a": ("right", ""), "d": ("not yet", "\\udc80")}
    grade.write_csv([("s", name, *rest) for name, rest in found.items()], tmp_path / "g.csv")


def test_what_a_submission_says_is_read_up_to_a_limit():
    endless = "while True: print('x' * 1000)"
    with subprocess.Popen([sys.executable, "-c", endless], stdout=subprocess.PIPE, bufsize=0) as p:
        said, ended = grade.heard(p.stdout, 20)
        p.kill()
    assert len(said) < 2 * grade.REPORT
    assert ended == "wrote too much"


def test_what_only_a_notebook_has_ends_no_cell():
    cells = ["%%time\nhelp?\n%time 1\n!ls\ndisplay(get_ipython())\n" + GOOD]
    cells.append("def convolve(a, b):\n    return (\n        a\n        % b\n    )\n\n\n")
    cells[1] += "check('lenet.convolve', convolve)"
    answers = dict(grade.run_cells([*cells, "1 / 0\ncheck('lenet.train_step', 1)"]))
    assert answers["lenet.output_size"](28, 5) == 24
    assert answers["lenet.convolve"](7, 4) == 3
    assert answers["lenet.train_step"] == "ZeroDivisionError came before its check"


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_what_its_notebook_imports_is_there(notebook: str):
    """An answer may use every name that the cells above it have imported or built nets with."""
    (path,) = notebooks.paths([notebook])
    code = [cell.source for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    above = [cell for cell in code if not grade.ASKED.search(cell)]
    lines = [line for cell in above for line in ast.parse(cell).body]
    names = {
        alias.asname or alias.name.split(".")[0]
        for line in lines
        if isinstance(line, (ast.Import, ast.ImportFrom))
        for alias in line.names
    }
    names |= {
        line.name
        for cell in above
        if cell.startswith(zoo.MARK)
        for line in ast.parse(cell).body
        if isinstance(line, (ast.ClassDef, ast.FunctionDef))
    }
    names -= {"check", "hint", "solution", "progress", "display"}  # which do nothing here
    exercise = next(name for name in catalogue() if name.split(".")[0] == notebook)
    cell = f"check('{exercise}', [{', '.join(sorted(names))}])"
    ((_, answer),) = grade.run_cells([cell])
    assert isinstance(answer, list), answer
    assert len(answer) == len(names) > 3


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_hint_names_no_module_that_its_notebook_lacks(notebook: str):
    there = grade.given({notebook})
    for name, exercise in catalogue().items():
        said = " ".join(exercise.hints) if name.split(".")[0] == notebook else ""
        modules = {"F", "math", "nn", "np", "numpy", "pandas", "pd", "torch"}
        named = modules & set(re.findall(r"\b(\w+)\.\w", said))
        assert named <= there.keys(), f"{name}: {named - there.keys()}"


def test_an_experiment_that_takes_its_time_stays_an_open_question(monkeypatch):
    monkeypatch.setattr(grade, "CELL_SECONDS", 0.2)
    name = next(name for name, exercise in catalogue().items() if exercise.rubric)
    own = find(name).name
    cell = f"def {own}(*_):\n    return 1\n\n\nwhile True:\n    pass\ncheck('{name}', {own})"
    ((asked, answer),) = grade.run_cells([cell])
    assert asked == name
    assert answer() == 1


def test_exercises_of_each_notebook_asked_about_have_rows(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(grade, "run_apart", lambda *_: ({}, "ended"))
    other = next(name for name in catalogue() if name.startswith("data."))
    (tmp_path / "a.ipynb").write_text(submission(f"check('{other}', ...)", GOOD))
    asked = {row[1].split(".")[0] for row in grade.grade(tmp_path)}
    assert asked == {"data", "lenet"}


def test_a_number_that_compares_itself_is_compared():
    class Whole(int):
        def __sub__(self, other):
            return 0

    class Image(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return True if function is torch.allclose else torch.zeros(3)

    for found, expected in ((Whole(5), 24), (torch.ones(3).as_subclass(Image), torch.zeros(3))):
        with pytest.raises(NotYet):
            must_be_same(found, expected, "here")


@pytest.mark.parametrize("seconds", [0, -1, 1e10, float("inf"), float("nan")])
def test_a_time_that_cannot_be_meant_is_refused(seconds: float, tmp_path: Path):
    with pytest.raises(ValueError, match="expected 1 to 3600"):
        grade.grade(tmp_path, seconds)


def test_what_programs_leave_is_no_submission(tmp_path: Path):
    for name in (".ipynb_checkpoints/a.ipynb", "__MACOSX/b.ipynb", "._c.ipynb", "d.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{")
    assert [row[0] for row in grade.grade(tmp_path)] == ["d.ipynb"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', "\x00", "[" * 100_000])
def test_what_is_no_notebook_is_said(text: str, tmp_path: Path):
    (tmp_path / "a.ipynb").write_text(text)
    assert grade.grade(tmp_path) == [("a.ipynb", "-", "not yet", "This is not a notebook.")]


def test_a_notebook_without_exercises_is_said(tmp_path: Path):
    cell = {"cell_type": "code", "source": ["1 + 1"]}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert grade.grade(tmp_path) == [
        ("a.ipynb", "-", "not yet", "There are no exercises in this notebook.")
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="such names exist on Linux")
def test_every_notebook_of_the_folder_is_graded_whatever_its_name(tmp_path: Path):
    (tmp_path / "late").mkdir()
    for name in (b"late/a.ipynb", b"B.IPYNB", b"J\xfcrgen.ipynb"):
        (tmp_path / os.fsdecode(name)).write_text("{")
    rows = grade.grade(tmp_path)
    assert sorted(row[0] for row in rows) == ["B.IPYNB", "J\\xfcrgen.ipynb", "late/a.ipynb"]
    grade.write_csv(rows, tmp_path / "g.csv")
    assert len((tmp_path / "g.csv").read_text().splitlines()) == 4
    assert "rgen.ipynb" in grade.page(rows)


def test_only_the_exercises_and_what_follows_run():
    cells = grade.answer_cells(submission("train()", "%time 1", GOOD, "!rm x\nhelper = 1"))
    assert cells == [GOOD, "!rm x\nhelper = 1"]


def test_the_page_is_escaped_and_the_table_complete(tmp_path: Path):
    rows = [("<a>.ipynb", "lenet.convolve", "not yet", "<script>&")]
    page = grade.page([*rows, ("<a>.ipynb", "lenet.drop", "right", ""), ("b", "-", "right", "")])
    assert "<script>" not in page
    assert "&lt;a&gt;.ipynb: 1 of 2 right" in page
    assert "b: 1 of 1 right" in page
    grade.write_csv(rows, tmp_path / "g.csv")
    with open(tmp_path / "g.csv", newline="") as file:
        assert list(csv.reader(file))[1] == list(rows[0])


def test_a_folder_that_is_not_there_is_said():
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        grade.main(Path("nowhere"))
