"""Odd command lines: an exit code, words on what is wrong, and never a traceback."""

import importlib
import shlex
import sys
from pathlib import Path

import pytest

from common import machine
from common.__main__ import main
from tools import start

CAT = machine.HOME / "samples/photos/cat.jpg"
TRAIN = "train lenet5 --dataset digits --epochs 1 --train-images 64"
WRONG = [  # a line, its exit code, and what is said
    ("list more", 2, "Unrecognized options: more"),
    ("list --jsn", 2, "Perhaps you meant: --json"),
    ("LIST", 2, "Available subcommands: list, train"),
    ('""', 2, "Available subcommands: list, train"),
    ("-v", 2, "Unrecognized options: -v"),
    ("train", 2, "`python -m common list` shows them all"),
    ('train ""', 2, "Unknown model ''"),
    ('train " lenet5"', 2, "Did you mean 'lenet5'?"),
    ("train LENET5", 2, "Did you mean 'lenet5'?"),
    ("train ../lenet5", 2, "Did you mean 'lenet5'?"),
    ("train lenet5 lenet5", 2, "Unrecognized options: lenet5"),
    ('train lenet5 --dataset ""', 2, "expected a name or a folder's path"),
    ("train lenet5 --dataset /nonexistent", 2, "Unknown data set '/nonexistent'"),
    ("train lenet5 --dataset /etc/passwd", 2, "is a file; expected a folder"),
    ("train lenet5 --dataset digits/../digits", 2, "Did you mean 'digits'?"),
    ("train lenet5 --dataset digits --weights .", 2, ". is not there, or is no file"),
    ("train lenet5 --dataset digits --weights /dev/null", 2, "is not there, or is no file"),
    ("train lenet5 --dataset digits --weights README.md", 2, "README.md is no weights file"),
    ("train vgg11 --dataset digits --epochs 1 --image-size 3", 2, "use larger images"),
    (f"{TRAIN} --epochs -3", 2, "epochs=-3; expected 1 to"),
    (f"{TRAIN} --epochs 1.5", 2, "--epochs: invalid literal for int() with base 10: '1.5'"),
    (f"{TRAIN} --epochs 99999999999999999999", 2, "epochs=99999999999999999999; expected 1 to"),
    (f"{TRAIN} --lr nan", 2, "lr=nan; expected a number above 0"),
    (f"{TRAIN} --lr inf", 2, "lr=inf; expected a number above 0"),
    (f"{TRAIN} --lr 1e400", 2, "lr=inf; expected a number above 0"),
    (f"{TRAIN} --lr 0", 2, "lr=0.0; expected a number above 0"),
    (f"{TRAIN} --lr one", 2, "--lr: could not convert string to float: 'one'"),
    (f"{TRAIN} --optimizer sgd --momentum 2", 2, "momentum=2.0; expected 0 or more"),
    (f"{TRAIN} --optimizer sgd --momentum nan", 2, "momentum=nan; expected 0 or more"),
    (f"{TRAIN} --weight-decay -1", 2, "weight_decay=-1.0; expected 0 or more"),
    (f"{TRAIN} --label-smoothing 1.5", 2, "label_smoothing=1.5; expected 0 or more"),
    (f"{TRAIN} --validation 1", 2, "validation=1.0; expected a share"),
    (f"{TRAIN} --validation -0.1", 2, "validation=-0.1; expected a share"),
    (f"{TRAIN} --validation nan", 2, "validation=nan; expected a share"),
    (f"{TRAIN} --augment spin", 2, "Unknown augmentation 'spin'"),
    (f"{TRAIN} --batch-size 0", 2, "batch_size=0; expected a whole number"),
    (f"{TRAIN} --batch-size 1 0", 2, "batch_size=((1, 0),); expected a whole number"),
    (f"{TRAIN} --batch-size 5 32 1", 2, "from ['5', '32', '1']"),
    (f"{TRAIN} --seed -1", 2, "seed=-1; expected 0 to"),
    (f"{TRAIN} --seed 99999999999999999999999", 2, "seed=99999999999999999999999; expected 0 to"),
    (f"{TRAIN} --train-images 0", 2, "train_images=0; expected 1 or more"),
    (f"{TRAIN} --train-images -5", 2, "train_images=-5; expected 1 or more"),
    (f"{TRAIN} --image-size -1", 2, "image_size=-1; expected 1 to"),
    (f"{TRAIN} --schedule multistep --milestones 0", 2, "milestones=(0,); expected epochs"),
    (f"{TRAIN} --schedule multistep --milestones 5 1", 2, "milestones=(5, 1); expected epochs"),
    (f"{TRAIN} --milestones one", 2, "--milestones: Could not find valid parse"),
    (f"{TRAIN} --patience 0", 2, "patience=0; expected 1 or more"),
    (f"{TRAIN} --precision bf17", 2, "Did you mean 'bf16'?"),
    ("experiment", 2, "an experiment, or `list`"),
    ('experiment ""', 2, "Unknown experiment ''"),
    ("experiment report-z", 2, "Unknown experiment 'report-z'"),
    ("experiment report-a --seeds x", 2, "--seeds: Could not find valid parse"),
    ("experiment report-a --seeds -1", 2, "seed=-1; expected 0 to"),
    ("experiment report-a --only lenet6", 2, "Unknown network in report-a 'lenet6'"),
    ("experiment report-a --profile huge", 2, "'huge'; expected one of smoke, laptop, full"),
    ("run 98", 2, "Unknown notebook '98'"),
    ('run ""', 2, "Unknown notebook ''"),
    ("run 01 --cell-minutes soon", 2, "--cell-minutes: could not convert"),
    ("run 01 --cell-minutes nan", 2, "--cell-minutes nan; expected a number above 0"),
    ("run 01 --cell-minutes 0", 2, "--cell-minutes 0; expected a number above 0"),
    ("run 01 --out README.md", 2, "File exists: 'README.md'"),
    ("predict", 2, "a network with trained weights"),
    ("predict lenet5_cifar", 2, "No picture is named"),
    ("predict lenet5_cifar missing.jpg", 1, "missing.jpg: it is no file"),
    ("predict lenet5_cifar /dev/null", 1, "/dev/null: it is no file"),
    ("predict lenet5_cifar README.md", 1, "README.md: Pillow finds no image in it"),
    (f"predict lenet5 {CAT}", 2, "Did you mean 'lenet5_cifar'?"),
    (f"predict README.md {CAT}", 2, "README.md is no weights file"),
    (f"predict lenet5_cifar {CAT} --top two", 2, "--top: invalid literal"),
]
GOOD = f"""
list --json
experiment list
predict lenet5_cifar {CAT} {CAT}
{TRAIN} --lr 1e-3
{TRAIN} --train-images 99999
{TRAIN} --seed 0 --augment
""".strip().splitlines()


TOOLS = [
    ("bench --photos-alone --only lenet5", "has its own networks and format: leave out the others"),
    ("bench --quick --save", "--save is for full rounds: leave out --quick"),
    ("bench --precision bf17", "Did you mean 'bf16'?"),
    ("bench --only lenet6", "Unknown model 'lenet6'. Did you mean 'lenet5'?"),
    ("bench lenet5", "Unrecognized options: lenet5"),
    ("classroom", "No notebook is named"),
    ("classroom 98 --kernels 0", "kernels=0; expected 1 or more"),
    ("classroom 01 --kernels two", "--kernels: invalid literal"),
    ("figures now", "Unrecognized options: now"),
    ("glossary now", "Unrecognized options: now"),
    ("grade", "None is not a folder"),
    ("grade /nonexistent", "/nonexistent is not a folder"),
    ("grade README.md", "README.md is not a folder"),
    ("grade figures", "figures holds no notebooks"),
    ("grade . --seconds soon", "--seconds: could not convert"),
    ("instructors now", "Unrecognized options: now"),
    ("notebooks 01", "Unrecognized options: 01"),
    ("samples mnist", "Unrecognized options: mnist"),
    ("scaling", "start it with torchrun"),
    ("scaling --jsn", "Perhaps you meant: --json"),
    ("ship --experiment nosuch", "Unknown experiment 'nosuch'"),
]


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


@pytest.mark.parametrize(("line", "expected", "words"), WRONG)
def test_what_is_wrong_is_said(line, expected, words, capsys, monkeypatch):
    monkeypatch.chdir(machine.HOME)
    code, out, err = run(line, capsys)
    assert (code, out) == (expected, "")
    assert "Traceback" not in err
    assert words in " ".join(err.replace("│", " ").split())
    assert not list((machine.runs_folder() / "records").glob("*"))  # nothing counts as a run


@pytest.mark.parametrize(("line", "words"), TOOLS)
def test_a_tool_says_what_is_wrong(line, words, capsys, monkeypatch):
    monkeypatch.chdir(machine.HOME)
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    tool = f"tools.{sys.argv[0]}"
    with pytest.raises(SystemExit) as stop:
        start(importlib.import_module(tool).main, tool)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert "Traceback" not in out + err
    assert words in " ".join(err.replace("│", " ").split())
    assert not Path("grades").exists()


@pytest.mark.parametrize("line", GOOD)
def test_what_is_right_is_done(line, capsys):
    code, out, err = run(line, capsys)
    assert code == 0, err
    assert out.strip()


@pytest.mark.parametrize(("top", "named"), [(0, 1), (3, 3), (99_999, 10)])
def test_one_class_at_least_and_all_at_most_are_named(top, named, capsys):
    code, out, _ = run(f"predict lenet5_cifar {CAT} --top {top}", capsys)
    assert code == 0
    assert out.count("%") == named
