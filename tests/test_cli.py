"""The command line: what it prints, and its exit codes."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from common import data, machine, perform, records, train, weights, zoo
from common.__main__ import main
from common.config import Config
from tools import notebooks as files

QUICK = ["--dataset", "digits", "--epochs", "1", "--train-images", "128"]


@pytest.fixture
def no_results(monkeypatch, tmp_path):
    """An empty folder in place of results/, which takes a while to read."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")


def test_list_as_json(capsys):
    assert main(["list", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = json.loads(out)
    assert [row["name"] for row in rows] == list(zoo.names())
    kinds = {
        "name": str, "notebook": str, "input_shape": list, "num_classes": int, "params": int,
        "mult_adds": int, "source": str,
    }  # fmt: skip
    for row in rows:
        assert {key: type(value) for key, value in row.items()} == kinds
        assert (machine.HOME / "notebooks" / row["notebook"]).exists()
    assert rows[0] == {
        "name": "lenet5",
        "notebook": "01_lenet.ipynb",
        "input_shape": [1, 28, 28],
        "num_classes": 10,
        "params": 44_426,
        "mult_adds": 156 * 24 * 24 + 2416 * 8 * 8 + 257 * 120 + 121 * 84 + 85 * 10,
        "source": zoo.variant("lenet5").source,
    }


def test_list_for_people(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 + len(zoo.names())
    assert "44,426" in out
    assert "1x28x28" in out


def test_a_list_of_nothing_says_why(capsys, monkeypatch, tmp_path):
    (tmp_path / "01_broken.ipynb").write_text("{")
    monkeypatch.setattr(zoo, "NOTEBOOKS", tmp_path)
    zoo.index.cache_clear()
    try:
        assert main(["list"]) == 0
    finally:
        monkeypatch.undo()
        zoo.index.cache_clear()
    out, err = capsys.readouterr()
    assert out == ""
    assert "01_broken.ipynb is left out" in err


def test_list_waits_for_no_package_that_it_does_not_need():
    words = [sys.executable, "-X", "importtime", "-m", "common", "list"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=machine.HOME)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in imported
    assert not imported & {"torchvision", "torch._dynamo", "pandas", "matplotlib", "IPython"}


def test_train_prints_its_record(capsys):
    arguments = ["--batch-size", "32", "--lr", "0.002", "--seed", "5", "--optimizer", "adamw"]
    arguments += ["--augment", "crop", "flip", "--label-smoothing", "0.1", "--validation", "0.3"]
    assert main(["train", "lenet5", *QUICK, *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)  # one JSON document and nothing else
    assert "batch/s" not in err  # no progress bar in a log
    assert set(record) == set(records.FIELDS)
    expected = {
        "network": "lenet5", "dataset": "digits", "source": "scikit-learn digits",
        "image_size": 28, "train_images": 128, "params": 44_426, "stand_in": False,
        "experiment": "command line",
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    settings = {"seed": 5, "batch_size": 32, "optimizer": "adamw", "lr": 0.002, "validation": 0.3}
    settings |= {"augment": ["crop", "flip"], "label_smoothing": 0.1, "epochs": 1}
    assert {key: record["config"][key] for key in settings} == settings
    assert 0 <= record["test_accuracy"] <= 1
    assert list(record["class_accuracy"]) == list("0123456789")
    assert len(record["history"]["batch_losses"]) == 4
    (path,) = (machine.runs_folder() / "records").glob("*.json")
    assert records.read(path).test_accuracy == record["test_accuracy"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--schedule", "multistep", "--milestones", "1"], {"milestones": [1]}),
        (["--batch-size", "1", "32", "2", "64"], {"batch_size": [[1, 32], [2, 64]]}),
        (["--optimizer", "sgd", "--momentum", "0.5", "--nesterov"], {"nesterov": True}),
        (["--patience", "1"], {"patience": 1}),
    ],
)
def test_every_setting_can_be_given(capsys, words, expected):
    quick = [*QUICK[:2], "--epochs", "3", "--train-images", "64"]
    assert main(["train", "lenet5", *quick, *words, "--json"]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert {key: config[key] for key in expected} == expected


def test_weights_are_kept_and_gone_on_from(capsys):
    assert main(["train", "lenet5", *QUICK, "--lr", "1e-4"]) == 0  # another run, another file
    assert main(["train", "lenet5", *QUICK]) == 0
    kept, _ = (machine.runs_folder() / "weights").glob("*.safetensors")
    assert str(kept) in capsys.readouterr().out
    words = ["train", "lenet5", *QUICK, "--seed", "1", "--lr", "1e-12", "--optimizer", "sgd"]
    assert main([*words, "--weights", str(kept)]) == 0
    (second,) = kept.parent.glob("lenet5-digits-1-*.safetensors")
    first, second = weights.from_file(kept), weights.from_file(second)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("no_results")
def test_what_begins_with_other_weights_is_another_run():
    words = ["train", "lenet5", *QUICK]
    assert main(words) == 0
    (first,) = (machine.runs_folder() / "weights").glob("*.safetensors")
    assert main([*words, "--weights", str(first)]) == 0
    assert main([*words, "--weights", str(first)]) == 0  # the same run again
    made, _ = records.read_all()
    made.sort(key=lambda run: run.begun_with)
    assert [run.name for run in made] == ["lenet5", f"lenet5 (from {made[1].begun_with})"]
    assert made[0].digest == made[1].digest
    assert len({records.weights_file(run) for run in made}) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is not there"), (b"hello", "no weights file"), (b"", "no weights file")],
)
def test_bad_weights_are_exit_code_2(capsys, tmp_path, content, words):
    file = tmp_path / "some.safetensors"
    if content is not None:
        file.write_bytes(content)
    assert main(["train", "lenet5", *QUICK, "--weights", str(file)]) == 2
    assert words in capsys.readouterr().err


def test_weights_of_another_network_are_refused(capsys):
    assert main(["train", "lenet5", *QUICK]) == 0
    (kept,) = (machine.runs_folder() / "weights").glob("*.safetensors")
    assert main(["train", "lenet5_bn", *QUICK, "--weights", str(kept)]) == 2
    assert "is of another network" in capsys.readouterr().err


def test_train_for_people(capsys):
    assert main(["train", "lenet5_bn", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "val_accuracy" in out
    assert f"recorded in {machine.runs_folder()}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet6", "--dataset", "digits"], "Did you mean 'lenet5'?"),
        (["lenet5", "--dataset", "diggits"], "Did you mean 'digits'?"),
        (["lenet5", *QUICK, "--image-size", "8"], "'conv2'"),
    ],
)
def test_a_wrong_argument_is_exit_code_2(capsys, arguments, message):
    assert main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("python -m common train: ")
    assert message in err
    assert "Traceback" not in err
    assert not (machine.runs_folder() / "records").exists()


def test_a_wrong_name_does_not_wait_for_the_data(capsys, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("the data were loaded"))
    assert main(["train", "lenet6"]) == 2
    assert main(["train", "lenet5", "--weights", "no.safetensors"]) == 2


def test_a_missing_set_with_strict_is_exit_code_2(capsys, monkeypatch, tmp_path):
    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr("common.sources.download", unreachable)
    monkeypatch.setenv("CNN_DATA", str(tmp_path))
    assert main(["train", "lenet5", *QUICK[2:], "--dataset", "mnist", "--strict"]) == 2
    assert "no network" in capsys.readouterr().err


def test_a_failed_training_is_exit_code_1(capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("common.perform.fit", fail)
    assert main(["train", "lenet5", *QUICK]) == 1
    assert capsys.readouterr().err == "python -m common train failed: out of memory\n"


def test_ctrl_c_is_exit_code_1_and_the_same_words_go_on(capsys, monkeypatch):
    whole = train.train_epoch

    def stop(training):
        if training.run.epochs:
            raise KeyboardInterrupt
        return whole(training)

    words = ["train", "lenet5", *QUICK[:2], "--epochs", "2", "--train-images", "64"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", stop)
        assert main(words) == 1
    assert capsys.readouterr().err == "Stopped: the same words again go on.\n"
    assert not (machine.runs_folder() / "records").exists()
    assert main(words) == 0
    assert "Going on after epoch 1" in capsys.readouterr().out


@pytest.mark.usefixtures("no_results")
@pytest.mark.parametrize("words", [[], ["--save"]])
def test_an_experiment_is_published_where_asked_for_alone(monkeypatch, words):
    monkeypatch.setenv("CNN_PROFILE", machine.profile())  # which `--profile` sets
    published = []
    monkeypatch.setattr(perform, "perform", lambda *_, **__: iter([None]))
    monkeypatch.setattr(records, "publish", lambda **which: published.append(which) or [])
    assert main(["experiment", "report-d", "--profile", "smoke", *words]) == 0
    assert published == 2 * len(words) * [{"experiment": "report-d"}]  # after each run, at the end


def test_half_a_minute_is_a_limit_too_and_none_is_not(tmp_path, capsys):
    here = tmp_path / "here"
    here.write_text("a file")
    assert main(["run", "99", "--cell-minutes", "0.5", "--out", str(here)]) == 2
    assert "cell-minutes" not in capsys.readouterr().err
    for minutes in ("0", "-1", "nan", "inf", "1e308", "1440.1"):
        assert main(["run", "99", "--cell-minutes", minutes, "--out", str(here)]) == 2
        expected = f"--cell-minutes {float(minutes):g}; expected a number above 0, 1440 (a day)"
        assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("no_results")
@pytest.mark.parametrize(
    ("minutes", "seconds"), [("0.33", 20), ("1.01", 61), ("1e-9", 1), ("1440", 86_400)]
)
def test_the_limit_of_a_cell_is_in_whole_seconds(tmp_path, monkeypatch, minutes, seconds):
    limits = []
    monkeypatch.setattr("tools.notebooks.execute", lambda *words: limits.append(words[3]))
    assert main(["run", "01", "--cell-minutes", minutes, "--out", str(tmp_path)]) == 0
    assert limits == [seconds]
    assert type(limits[0]) is int  # nbclient refuses 60.0


@pytest.mark.usefixtures("no_results")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_notebook_that_fails_keeps_no_other_from_running(tmp_path, monkeypatch, capsys, stopped):
    ran = []

    def execute(notebook, name, *_):
        ran.append(name)
        if name.startswith("02"):
            raise (files.Stopped if stopped else files.CellFailed)(f"{name}, code cell 3 of 31: no")

    monkeypatch.setattr(files, "execute", execute)
    assert main(["run", "01", "02", "03", "--out", str(tmp_path)]) == 1
    assert len(ran) == (2 if stopped else 3)
    said = capsys.readouterr().out
    assert f"The notebook as far as it ran: {tmp_path}/02_alexnet.ipynb" in said
    assert ("failed: 02_alexnet.ipynb, code cell 3 of 31: no" in said) is not stopped


def test_a_notebook_that_is_not_there(capsys):
    assert main(["run", "nosuch"]) == 2
    assert "Unknown notebook 'nosuch'" in capsys.readouterr().err
    assert main(["run", "01", "transfomer"]) == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["list", "train", "experiment", "run", "predict"]),
        (["list"], ["--json"]),
        (["train"], [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(Config)]),
        (["train"], ["--dataset", "--weights", "--strict", "--json"]),
        (["experiment"], ["--profile", "--seeds", "--only", "--save"]),
        (["run"], ["--out", "--save", "--cell-minutes"]),
        (["predict"], ["--top"]),
    ],
)
def test_help(capsys, command, words):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(" ".join(["usage: python -m common", *command]))
    assert all(word in out for word in words)


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"]])
def test_a_wrong_command_line_is_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("result", "code", "words"),
    [
        (None, 0, ""), (0, 0, ""), (1, 1, ""), (2, 2, ""),
        (ValueError("no"), 2, "python -m me: no\n"), (OSError("full"), 2, "python -m me: full\n"),
        (RuntimeError("no"), 1, "python -m me failed: no\n"),
        (MemoryError("no"), 1, "python -m me failed: no\n"),
        (KeyboardInterrupt(), 1, "Stopped. The same words again go on.\n"),
    ],
)  # fmt: skip
def test_what_a_command_returns_or_raises_is_its_exit_code(capsys, result, code, words):
    def run():
        if isinstance(result, BaseException):
            raise result
        return result

    assert machine.exit_code(run, "me") == code
    assert capsys.readouterr().err == words


def test_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "common", "train", "lenet6", "--dataset", "digits"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=machine.HOME, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Did you mean 'lenet5'?" in done.stderr
    assert "Traceback" not in done.stderr
