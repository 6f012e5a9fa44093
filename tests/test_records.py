"""Records of runs: written whole, read with suspicion, and never mistaken for one another."""

import dataclasses
import json
import math
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from common import compare, data, machine, records, zoo
from common.config import Config
from common.run import Run
from common.train import evaluate, fit


@pytest.fixture(scope="module")
def run() -> Run:
    """One short training."""
    torch.manual_seed(0)
    config = Config(
        epochs=3, batch_size=((1, 32), (2, 64)), lr=1e-2, optimizer="sgd", image_size=28,
        train_images=100, seed=3,
    )  # fmt: skip
    return fit(zoo.build("lenet5", activation=nn.ReLU), data.load("digits"), config, show=False)


@pytest.fixture(scope="module")
def test_of_run(run):
    return evaluate(run.model, data.Batches(run.data, "test", 512, size=28), run.precision)


@pytest.fixture
def record(run, test_of_run) -> records.Record:
    return records.of(run, test_of_run, "a test", "at night")


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """An empty folder in place of results/."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setattr(records, "RESULTS", folder)
    return folder


def yours() -> Path:
    return machine.runs_folder() / "records"


def changed(record: records.Record, **values) -> records.Record:
    return dataclasses.replace(record, **values)


def test_validation_accuracy_is_that_of_the_best_epoch(record):
    rows = [dict(row, val_accuracy=n / 10) for n, row in enumerate(record.history["epochs"], 1)]
    for best in (1, 2, 3):
        history = record.history | {"epochs": rows, "best_epoch": best}
        assert dataclasses.replace(record, history=history).val_accuracy == best / 10
    assert math.isnan(changed(record, history=history | {"best_epoch": 0}).val_accuracy)


def test_a_record_says_what_was_run(run, record, test_of_run):
    assert (record.network, record.label, record.name) == (
        "lenet5",
        "at night",
        "lenet5 (at night)",
    )
    assert record.options == {"activation": "ReLU"}
    assert record.digest == run.digest
    assert record.config["batch_size"] == [[1, 32], [2, 64]]
    assert (record.image_size, record.train_images, record.seed, record.epochs) == (28, 100, 3, 3)
    assert record.params == 44_426
    assert record.mult_adds == 286_334
    assert record.test_accuracy == test_of_run.accuracy
    assert record.val_accuracy == run.best["val_accuracy"]
    assert record.class_accuracy["7"] == pytest.approx(test_of_run.class_accuracy[7])
    wrong = (test_of_run.predictions != run.data.test.labels).nonzero().flatten().tolist()
    assert {int(image) for image in record.errors} == set(wrong)
    assert all(record.errors[str(i)] == int(test_of_run.predictions[i]) for i in wrong)
    assert record.images_per_s == pytest.approx(3 * 100 / run.train_seconds)


def test_round_trip(record, results):
    path = records.save(record, results)
    assert records.read(path) == record
    content = path.read_text()
    assert len(content.splitlines()) == len(records.FIELDS) + 2  # a field is one line
    assert json.loads(content)["network"] == "lenet5"


def test_every_recorded_run_is_readable_and_knows_its_net():
    found, problems = records.read_all(yours=False)
    assert problems == []
    assert len(found) == len(list(records.RESULTS.glob("*.json"))) - 1 > 0  # reports.json apart
    for record in found:
        assert record.digest, record.name
        assert record.network in zoo.names()
        assert record.profile != "smoke"
        assert not record.stand_in


def test_two_nets_of_one_size_are_two_runs(record, results):
    """LeNet-5 with sigmoid and with ReLU: equal parameters, equal settings, two files."""
    sigmoid = changed(record, digest="00000000", options={"activation": "Sigmoid"})
    assert records.save(record, results) != records.save(sigmoid, results)
    assert len(records.read_all()[0]) == 2


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("digest", "12345678", False),
        ("options", {"activation": "Tanh"}, False),
        ("label", "by day", False),
        ("source", "another copy", False),
        ("begun_with", "1a2b3c4d", False),
        ("images", "1a2b3c4d", False),
        ("train_images", 99, False),
        ("profile", "laptop", False),
        ("device", "a faster one", True),
        ("train_seconds", 1.0, True),
        ("test_accuracy", 0.5, True),
        ("commit", "abc", True),
    ],
)
def test_what_is_one_run_and_what_is_another(record, field, value, same):
    assert (changed(record, **{field: value}).identity() == record.identity()) == same


def test_yours_and_recorded_stand_apart(record, results):
    """A reader's own run never takes the place of a recorded one."""
    records.save(record, results)
    records.save(changed(record, test_accuracy=0.1))
    found, _ = records.read_all()
    assert [(r.origin, r.test_accuracy) for r in found] == [
        ("yours", 0.1),
        ("recorded", record.test_accuracy),
    ]
    assert [r.origin for r in records.read_all(yours=False)[0]] == ["recorded"]


def test_a_record_under_two_names_is_found_once(record, results):
    path = records.save(record, results)
    shutil.copy(path, results / "a copy.json")
    assert records.read_all()[0] == [record]


@pytest.mark.parametrize(
    ("images", "validation", "whole"),
    [(39_599, 0.2, False), (39_600, 0.2, True), (44_549, 0.1, False), (44_550, 0.1, True)],
)
def test_a_training_on_nearly_all_images_of_a_known_set_is_one_on_the_whole(
    record, images, validation, whole
):
    config = record.config | {"train_images": None, "validation": validation}
    known = {"dataset": "cifar10", "stand_in": False, "test_images": 10_000}
    assert changed(record, config=config, train_images=images, **known).whole == whole


def test_a_record_of_one_epoch_is_read(record, results):
    """What `DAMAGE` spoils is right before."""
    config = records.as_json(Config(epochs=1))
    path = records.save(
        changed(record, config=config, history={"epochs": [ROW], "best_epoch": 1}), results
    )
    assert records.read(path).epochs == 1


def test_the_oldest_records_lack_what_came_later(record, results):
    path = records.save(record, results)
    values = json.loads(path.read_text())
    del values["errors"]
    path.write_text(json.dumps(values))
    assert records.read(path).errors is None


ROW = {
    "epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.5,
    "lr": 0.1, "seconds": 1.0, "images_per_s": 9.0,
}  # fmt: skip
DAMAGE = [
    ("errors", {"360": 1}), ("errors", {"3": 10}), ("errors", {"3": -1}), ("errors", {"x": 1}),
    *(("history", {"epochs": [ROW | {key: value}], "best_epoch": 1}) for key, value in (
        ("seconds", "x"), ("seconds", -5), ("seconds", None), ("val_accuracy", 7),
        ("val_accuracy", [1]), ("train_loss", "x"), ("images_per_s", True),
    )),
    ("history", {"epochs": [{k: v for k, v in ROW.items() if k != "seconds"}], "best_epoch": 1}),
    ("history", {"epochs": [ROW], "best_epoch": True}), ("errors", {"a": "b"}),
    ("errors", {"1": "cat"}), ("image_size", []), ("precision", "int8"), ("test_images", 0),
    ("class_accuracy", {str(n): 7 for n in range(10)}),
    ("network", 5), ("options", []), ("stand_in", 1), ("image_size", 0), ("image_size", True),
    ("image_size", [0, 4]), ("params", 0), ("mult_adds", -1), ("train_images", 0),
    ("test_accuracy", 1.5), ("test_accuracy", "high"), ("train_seconds", 0), ("images_per_s", -1),
    ("peak_memory_bytes", -5), ("history", {}), ("versions", None), ("errors", []),
    ("history", {"epochs": [], "best_epoch": 0}), ("history", {"epochs": [ROW], "best_epoch": 2}),
    ("history", {"epochs": [ROW | {"epoch": 2}], "best_epoch": 1}),
    ("history", {"epochs": [ROW], "best_epoch": "1"}), ("config", {}), ("config", {"epochs": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), DAMAGE, ids=lambda v: str(v)[:24])
def test_a_damaged_field_is_named_and_the_record_left_out(record, results, field, value):
    path = records.save(record, results)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {field: value}))
    found, problems = records.read_all()
    assert found == []
    (problem,) = problems
    assert path.name in problem
    assert field in problem or "'seconds'" in problem


@pytest.mark.parametrize(
    ("config", "words"),
    [({"epochs": 0}, "epochs=0; expected"), ({"unknown": 1}, "unknown"), ({"lr": -1}, "lr=-1")],
)
def test_a_record_of_settings_that_cannot_be_is_left_out(record, results, config, words):
    path = records.save(record, results)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"config": values["config"] | config}))
    found, (problem,) = records.read_all()
    assert found == []
    assert words in problem


@pytest.mark.parametrize(
    ("value", "words"),
    [("[" * 900 + "]" * 900, "nested too deeply"), ('"\\ud800"', "surrogates not allowed")],
)
def test_what_could_not_be_written_again_is_refused(record, results, value, words):
    path = records.save(changed(record, options={"width": 0.125}), results)
    path.write_text(path.read_text().replace('"width": 0.125', f'"width": {value}'))
    found, (problem,) = records.read_all()
    assert found == []
    assert path.name in problem
    assert words in problem


@pytest.mark.parametrize("word", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(record, results, word):
    path = records.save(changed(record, options={"width": 0.125}), results)
    path.write_text(path.read_text().replace('"width": 0.125', f'"width": {word}'))
    with pytest.raises(ValueError, match=word):
        records.read(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "5", '{"network": "x"}', "[" * 100_000, '{"params": ' + "9" * 400 + "}",
     '{"train_seconds": NaN}'],
    ids=lambda t: t[:12],
)  # fmt: skip
def test_what_is_not_a_record_is_named_and_left_out(record, results, text):
    records.save(record, results)
    (results / "odd.json").write_text(text)
    found, problems = records.read_all()
    assert len(found) == 1
    assert [p for p in problems if p.startswith("odd.json")] == problems
    assert len(problems) == 1


def test_not_a_number_is_written_as_none(record, results):
    rows = [row | {"val_loss": float("nan")} for row in record.history["epochs"]]
    path = records.save(changed(record, history=record.history | {"epochs": rows}), results)
    assert "NaN" not in path.read_text()
    assert records.read(path).history["epochs"][0]["val_loss"] is None


def test_writing_is_all_or_nothing(record, results, monkeypatch):
    path = records.save(record, results)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device; .*MB free"):
        records.save(record, results)
    assert [p.name for p in results.iterdir()] == [path.name]


def test_a_name_may_hold_anything(record):
    path = records.save(changed(record, label="ReLU/sigmoid: a * b"))
    assert path.parent == yours()
    assert records.read(path).label == "ReLU/sigmoid: a * b"


# ------------------------------------------------------------------------------------- judging


def small_run(model=None, images=None, **config):
    settings = {"epochs": 1, "image_size": 8, "train_images": 60} | config
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return fit(model, images or data.load("digits"), Config(**settings), show=False)


class Awkward(nn.Sequential):
    """A net with attributes that records, or a copy for counting, may stumble on."""

    def __init__(self, **kept):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        for name, value in kept.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    "kept",
    [
        {"lock": threading.Lock()}, {"source": (n for n in range(3))}, {"options": ["a"]},
        {"options": 3}, {"variant": 2}, {"variant": "relu"}, {"zoo_name": nn.ReLU},
    ],
    ids=lambda kept: " ".join(kept),
)  # fmt: skip
def test_no_attribute_of_a_net_loses_a_training(kept, results):
    records.judge(small_run(Awkward(**kept)), "a test")
    (found,), problems = records.read_all()
    assert (found.network, found.options, problems) == ("Awkward", {}, [])


@pytest.mark.parametrize("words", [{"experiment": None}, {"label": 3}, {"experiment": Path("a")}])
def test_a_name_that_is_none_is_refused_before_the_test_images_are_used(words, monkeypatch):
    monkeypatch.setattr(records, "evaluate", None)
    with pytest.raises(TypeError, match="expected words"):
        records.judge(small_run(), **{"experiment": "a test"} | words)


def test_long_names_have_files(results):
    images = dataclasses.replace(data.load("digits"), name="x" * 300)
    records.judge(small_run(images=images), "ä" * 200, "y" * 300)
    records.judge(small_run(images=images), "ä" * 200, "y" * 299)
    assert len(records.read_all()[0]) == 2


def test_a_net_that_was_trained_again_is_not_judged_as_the_run_before(results):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    first, second = small_run(net), small_run(net, seed=1)
    with pytest.raises(ValueError, match="was trained again"):
        records.judge(first, "a test")
    records.judge(second, "a test")


def test_a_loss_that_is_never_a_number_is_said(results):
    run = small_run()
    run.best_epoch = 0
    with pytest.raises(ValueError, match="In no epoch was the validation loss a number"):
        records.judge(run, "a test")


def test_own_images_under_one_name_are_two_sets(results):
    digits = data.load("digits")
    bright = data.Images(digits.train.images // 2, digits.train.labels)
    for images in (digits, dataclasses.replace(digits, train=bright)):
        records.judge(small_run(images=images), "a test")
    assert len(records.read_all()[0]) == 2
    assert len(compare.grouped(records.read_all()[0])) == 2


def test_frozen_layers_make_another_run(results):
    for frozen in (False, True):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 10))
        net[2].requires_grad_(not frozen)
        records.judge(small_run(net), "a test")
    assert len(records.read_all()[0]) == 2


def test_tied_weights_are_kept(results):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    net[2].weight = net[1].weight
    run = small_run(net)
    _, record = records.judged(run, "a test")
    assert records.keep_weights(run, record).is_file()


def test_judge_writes_the_record_and_removes_the_checkpoint(results):
    config = Config(epochs=1, image_size=28, train_images=64)
    run = fit(zoo.build("lenet5"), data.load("digits"), config, show=False, checkpoint=True)
    assert run.checkpoint.path.exists()
    test = records.judge(run, "a test")
    (path,) = yours().glob("*.json")
    assert records.read(path).test_accuracy == test.accuracy
    assert not run.checkpoint.path.exists()


def test_a_class_of_one_s_own_gives_its_name(results):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x):
            return self.layer(x.flatten(1))

    config = Config(epochs=1, train_images=64)
    records.judge(fit(Mine(), data.load("digits"), config, show=False), "a test")
    (path,) = yours().glob("*.json")
    assert records.read(path).network == "Mine"


def test_an_unfinished_training_is_not_judged(run):
    stopped = dataclasses.replace(run, ended="")
    with pytest.raises(ValueError, match="Only a finished training is judged"):
        records.judge(stopped, "a test")


# ------------------------------------------------------------------------------------ publishing


def test_publish_copies_only_results(record, results):
    images = {"dataset": "mnist", "test_images": 10_000, "train_images": 48_000}
    whole = changed(record, profile="laptop", stand_in=False, **images)
    all_of_them = whole.config | {"train_images": None}
    old = records.save(changed(whole, label="old"))
    os.utime(old, (1, 1))
    records.save(whole)
    records.save(changed(whole, experiment="command line"))
    records.save(changed(whole, profile="smoke", label="smoke"))
    records.save(changed(whole, stand_in=True, label="sample"))
    records.save(changed(whole, test_images=40, label="own pictures in a folder named mnist"))
    records.save(changed(whole, config=all_of_them, train_images=400, label="few"))
    records.save(changed(whole, dataset="my_pictures", label="own pictures"))
    (yours() / "damaged.json").write_text("{")
    left = records.publish(since=time.time() - 1000)
    assert [records.read(path) for path in results.glob("*.json")] == [whole]
    assert len(left) == 6
    assert any("smoke run" in reason for reason in left)
    records.publish(experiment="another")
    assert len(list(results.glob("*.json"))) == 1
    records.publish(experiment=whole.experiment)
    assert {records.read(path).label for path in results.glob("*.json")} == {whole.label, "old"}


def test_weights_of_a_run_come_back(run, results):
    from common import weights

    record = dataclasses.replace(records.of(run, None, "a test"), test_accuracy=0.5)
    path = records.keep_weights(run, record)
    net = weights.from_file(path)
    assert net.about["accuracy"] == 0.5
    assert net.about["classes"] == list("0123456789")
    assert not net.training
    x = torch.randn(3, 1, 28, 28)
    assert torch.equal(net(x), run.model.cpu().eval()(x))
