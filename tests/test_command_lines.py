"""Odd command lines: an exit code, words on what is wrong, and never a traceback."""

import importlib
import shlex
import sys

import pytest

from common import machine
from common.__main__ import main
from tools import start

CAT = machine.HOME / "samples/photos/cat.jpg"
TRAIN = "train lenet5 --dataset digits --epochs 1 --train-images 64"
WRONG = f"""
list more
list --jsn
LIST
""
-v
train
train ""
train " lenet5"
train LENET5
train ../lenet5
train lenet5 lenet5
train lenet5 --dataset ""
train lenet5 --dataset /nonexistent
train lenet5 --dataset /etc/passwd
train lenet5 --dataset digits/../digits
train lenet5 --dataset digits --weights .
train lenet5 --dataset digits --weights /dev/null
train lenet5 --dataset digits --weights README.md
train vgg11 --dataset digits --epochs 1 --image-size 3
{TRAIN} --epochs -3
{TRAIN} --epochs 1.5
{TRAIN} --epochs 99999999999999999999
{TRAIN} --lr nan
{TRAIN} --lr inf
{TRAIN} --lr 1e400
{TRAIN} --lr 0
{TRAIN} --lr one
{TRAIN} --optimizer sgd --momentum 2
{TRAIN} --optimizer sgd --momentum nan
{TRAIN} --weight-decay -1
{TRAIN} --label-smoothing 1.5
{TRAIN} --validation 1
{TRAIN} --validation -0.1
{TRAIN} --validation nan
{TRAIN} --augment spin
{TRAIN} --batch-size 0
{TRAIN} --batch-size 1 0
{TRAIN} --batch-size 5 32 1
{TRAIN} --seed -1
{TRAIN} --seed 99999999999999999999999
{TRAIN} --train-images 0
{TRAIN} --train-images -5
{TRAIN} --image-size -1
{TRAIN} --schedule multistep --milestones 0
{TRAIN} --schedule multistep --milestones 5 1
{TRAIN} --milestones one
{TRAIN} --patience 0
{TRAIN} --precision bf17
experiment
experiment ""
experiment report-z
experiment report-a --seeds x
experiment report-a --seeds -1
experiment report-a --only lenet6
experiment report-a --profile huge
run 98
run ""
run 01 --cell-minutes soon
run 01 --cell-minutes nan
run 01 --cell-minutes 0
run 01 --out README.md
predict
predict lenet5_cifar
predict lenet5_cifar missing.jpg
predict lenet5_cifar /dev/null
predict lenet5_cifar README.md
predict lenet5 {CAT}
predict README.md {CAT}
predict lenet5_cifar {CAT} --top two
""".strip().splitlines()
GOOD = f"""
list --json
experiment list
predict lenet5_cifar {CAT} --top 0
predict lenet5_cifar {CAT} --top 99999
predict lenet5_cifar {CAT} {CAT}
{TRAIN} --lr 1e-3
{TRAIN} --train-images 99999
{TRAIN} --seed 0 --augment
""".strip().splitlines()


TOOLS = """
bench --photos-alone --only lenet5
bench --quick --save
bench --precision bf17
bench --only lenet6
bench lenet5
classroom
classroom 98 --kernels 0
classroom 01 --kernels two
figures now
glossary now
grade
grade /nonexistent
grade README.md
grade figures
grade . --seconds soon
instructors now
notebooks 01
samples mnist
scaling
scaling --jsn
ship --experiment nosuch
""".strip().splitlines()


@pytest.fixture(autouse=True)
def profile(monkeypatch):
    """`experiment --profile` sets the variable for its process: here it is put back."""
    monkeypatch.setenv("CNN_PROFILE", machine.profile())


def run(line: str, capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    """(exit code, what was printed, what was said of errors) of a command line."""
    try:
        code = main(shlex.split(line))
    except SystemExit as stop:  # of the parser
        code = stop.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_said(line, capsys, monkeypatch):
    monkeypatch.chdir(machine.HOME)
    code, out, err = run(line, capsys)
    assert code in (1, 2)
    assert "Traceback" not in out + err
    assert len((out + err).strip()) > 20
    assert not list((machine.runs_folder() / "records").glob("*"))  # nothing counts as a run


@pytest.mark.parametrize("line", TOOLS)
def test_a_tool_says_what_is_wrong(line, capsys, monkeypatch):
    monkeypatch.chdir(machine.HOME)
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    tool = f"tools.{sys.argv[0]}"
    with pytest.raises(SystemExit) as stop:
        start(importlib.import_module(tool).main, tool)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert "Traceback" not in out + err
    assert len(err.strip()) > 20


@pytest.mark.parametrize("line", GOOD)
def test_what_is_right_is_done(line, capsys):
    code, out, err = run(line, capsys)
    assert code == 0, err
    assert out.strip()


def test_there_are_sixty():
    assert len({*WRONG, *GOOD}) >= 60
