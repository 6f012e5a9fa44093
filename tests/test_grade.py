"""The grader: ten honest submissions and ten hostile ones, each of which costs only itself."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.exercises import catalogue, find
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
@pytest.mark.skipif(not grade.sandboxed(), reason="this machine makes no namespaces")
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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', "\x00", "[" * 100_000])
def test_what_is_no_notebook_is_said(text: str, tmp_path: Path):
    (tmp_path / "a.ipynb").write_text(text)
    assert grade.grade(tmp_path) == [("a.ipynb", "-", "not yet", "This is not a notebook.")]


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
    assert cells == [GOOD, "\nhelper = 1"]


def test_the_page_is_escaped_and_the_table_complete(tmp_path: Path):
    rows = [("<a>.ipynb", "lenet.convolve", "not yet", "<script>&")]
    page = grade.page(rows)
    assert "<script>" not in page
    assert "&lt;a&gt;.ipynb: 0 of 1 right" in page
    grade.write_csv(rows, tmp_path / "g.csv")
    with open(tmp_path / "g.csv", newline="") as file:
        assert list(csv.reader(file))[1] == list(rows[0])


def test_a_folder_that_is_not_there_is_said():
    command = [sys.executable, "-m", "tools.grade", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2
    assert "nowhere is not a folder" in done.stderr
