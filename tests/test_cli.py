"""The command line: what it prints, and its exit codes."""

import json
import pkgutil
import statistics
import subprocess
import sys
import time

import pytest

import common
from common import data, machine, records, zoo
from common.__main__ import main

QUICK = ["--dataset", "digits", "--epochs", "1", "--train-images", "128"]
FIELDS = [
    "model", "dataset", "source", "experiment", "profile", "image_size", "train_images", "seed",
    "epochs", "batch_size", "optimizer", "lr", "params", "history", "test_accuracy",
    "class_accuracy", "train_seconds", "images_per_s", "peak_memory_bytes", "device", "precision",
    "versions", "commit",
]  # fmt: skip


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


def test_list_for_people(capsys, monkeypatch):
    lenets = {name: zoo.variants()[name] for name in ("lenet5", "lenet5_bn")}
    monkeypatch.setattr(zoo, "variants", lambda: lenets)  # all of them is the test above
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    assert "44,426" in out
    assert "1x28x28" in out


def test_train_prints_its_record(capsys):
    arguments = ["--batch-size", "32", "--lr", "0.002", "--seed", "5", "--optimizer", "adamw"]
    assert main(["train", "lenet5", *QUICK, *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)  # one JSON document and nothing else
    assert "batch/s" not in err  # no progress bar in a log
    assert set(FIELDS) <= set(record)
    for key, kind in records.FIELDS.items():
        assert isinstance(record[key], kind), key
    expected = {
        "model": "lenet5", "dataset": "digits", "source": "scikit-learn digits", "image_size": 28,
        "train_images": 128, "seed": 5, "epochs": 1, "batch_size": 32, "optimizer": "adamw",
        "lr": 0.002, "params": 44_426, "stand_in": False,
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert 0 <= record["test_accuracy"] <= 1
    assert list(record["class_accuracy"]) == list("0123456789")
    assert len(record["history"]["epochs"]) == 1
    assert len(record["history"]["batch_losses"]) == 4
    assert record["train_seconds"] > 0
    (path,) = (machine.runs_folder() / "records").glob("*.json")
    assert records.read_record(path) == record


def test_train_for_people(capsys):
    assert main(["train", "lenet5_bn", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "val_accuracy" in out
    assert f"recorded in {machine.runs_folder()}" in out


def test_train_depends_on_its_seed_alone(capsys):
    def losses(seed):
        assert main(["train", "lenet5", *QUICK, "--seed", seed, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["history"]["batch_losses"]

    first = losses("1")
    assert losses("1") == first
    assert losses("2") != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet6", "--dataset", "digits"], "Did you mean 'lenet5'?"),
        (["lenet5", "--dataset", "diggits"], "Did you mean 'digits'?"),
        (["lenet5", *QUICK, "--epochs", "0"], "epochs=0"),
        (["lenet5", *QUICK, "--batch-size", "0"], "batch_size=0"),
        (["lenet5", *QUICK, "--lr", "-1"], "lr=-1.0"),
        (["lenet5", *QUICK, "--optimizer", "sdg"], "Did you mean 'sgd'?"),
        (["lenet5", *QUICK, "--image-size", "8"], "'conv2'"),
        (["lenet5", *QUICK, "--image-size", "0"], "image_size=0"),
        (["lenet5", *QUICK, "--precision", "fp8"], "Unknown precision 'fp8'"),
    ],
)
def test_a_wrong_argument_is_exit_code_2(capsys, arguments, message):
    assert main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("python -m common train: ")
    assert message in err
    assert not (machine.runs_folder() / "records").exists()


def test_a_wrong_name_does_not_wait_for_the_data(capsys, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("the data were loaded"))
    assert main(["train", "lenet6"]) == 2
    assert main(["train", "lenet5", "--lr", "0"]) == 2


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

    monkeypatch.setattr("common.experiments.fit", fail)
    assert main(["train", "lenet5", *QUICK]) == 1
    assert capsys.readouterr().err == "python -m common train failed: out of memory\n"


def test_a_notebook_that_is_not_there(capsys):
    assert main(["run", "nosuch"]) == 2
    assert "No notebook matches ['nosuch']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["list", "train", "bench", "run", "figures", "sync"]),
        (["list"], ["--json"]),
        (
            ["train"],
            ["--dataset", "--epochs", "--batch-size", "--lr", "--optimizer", "--weight-decay",
             "--schedule", "--patience", "--precision", "--image-size", "--train-images", "--seed",
             "--strict", "--json"],
        ),
        (["experiment"], ["name", "--profile", "--seeds", "--only", "--save"]),
        (["scaling"], ["--save", "--json"]),
        (["classroom"], ["notebooks", "--kernels"]),
        (["bench"], ["--only", "--quick", "--precision", "--save", "--json"]),
        (["run"], ["notebooks", "--out", "--save"]),
        (["figures"], []),
        (["sync"], []),
    ],
)  # fmt: skip
def test_help(capsys, command, words):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(" ".join(["usage: python -m common", *command]))
    assert all(word in out for word in words)


@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["train"], ["train", "lenet5", "--epochs", "x"]]
)
def test_a_wrong_command_line_is_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m common" in capsys.readouterr().err


def test_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "common", "train", "lenet6", "--dataset", "digits"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=machine.HOME, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Did you mean 'lenet5'?" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------- what imports cost

# common.notebooks needs nbformat, which only `run` and `sync` use; common.setup runs on import.
MODULES = sorted(
    f"common.{module.name}"
    for module in pkgutil.iter_modules(common.__path__)
    if module.name not in ("__main__", "notebooks", "setup")
)
MEASURE = """\
import importlib, os, time
import torch, torchvision, pandas, matplotlib, PIL.Image

for _ in range(3):
    reader, writer = os.pipe()
    if not os.fork():
        start = time.process_time()
        for name in {modules}:
            importlib.import_module(name)
        os.write(writer, str(time.process_time() - start).encode())
        os._exit(0)
    os.wait()
    print(os.read(reader, 100).decode())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot fork there")
def test_imports_are_cheap():
    """Each of three copies of a process that has imported torch and the like imports the course."""
    assert {"common.train", "common.plot", "common.records", "common.check"} <= set(MODULES)
    command = [sys.executable, "-c", MEASURE.format(modules=MODULES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=machine.HOME, check=True)
    seconds = [float(line) for line in done.stdout.split()]
    assert len(seconds) == 3
    assert statistics.median(seconds) < 0.3


def test_list_takes_little_more_than_importing_torch():
    """The target is 3 s on two cores, two of which torch's import takes: the rest is ours."""

    def seconds(*words: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, cwd=machine.HOME, check=True)
        return time.perf_counter() - start

    torch_alone = min(seconds("-c", "import torch") for _ in range(2))
    assert min(seconds("-m", "common", "list") for _ in range(2)) < torch_alone + 1
