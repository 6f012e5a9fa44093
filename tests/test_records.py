"""Records of runs: written whole, read with suspicion, counted once; and the table made of them."""

import json
import math
import os
import time

import pandas as pd
import pytest
import torch

from common import compare, data, machine, records, sources, zoo
from common.train import Config, evaluate, fit


@pytest.fixture(scope="module")
def run():
    """One short training: (model, data, config, history, test)."""
    digits = data.load("digits")
    torch.manual_seed(0)
    model = zoo.build("lenet5")
    config = Config(
        epochs=3, batch_size=((1, 32), (2, 64)), lr=1, optimizer="sgd", image_size=28,
        train_images=100, seed=3,
    )  # fmt: skip
    history = fit(model, digits, config, show=False)
    test = evaluate(model, data.Batches(digits, "test", 512, size=28), history.precision)
    return model, digits, config, history, test


@pytest.fixture
def record(run):
    return records.make("lenet5", *run, experiment="a test")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder in place of results/."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setattr(records, "RESULTS", folder)
    return folder


def yours():
    return machine.runs_folder() / "records"


def test_utilisation_is_of_the_rate_of_all_processes(run, monkeypatch):
    monkeypatch.setattr(records, "rate_of", lambda precision, threads: 1e9)
    monkeypatch.setattr(records.parallel, "ranks", lambda: 2)
    record = records.make("lenet5", *run, experiment="a test")
    forward = 89_856 + 154_624 + 30_840 + 10_164 + 850  # mult-adds of an image, biases included
    assert record["mfu"] == pytest.approx(3 * forward * record["images_per_s"] / 2e9)


def test_a_record_says_what_was_run(run, record):
    _, _, config, history, test = run
    assert set(record) == {*records.FIELDS, *records.LATER}
    expected = {
        "model": "lenet5", "dataset": "digits", "source": "scikit-learn digits", "stand_in": False,
        "experiment": "a test", "profile": machine.profile(), "image_size": 28,
        "train_images": 100, "seed": 3, "epochs": 3, "batch_size": ((1, 32), (2, 64)),
        "optimizer": "sgd", "lr": 1.0, "params": 44_426, "test_accuracy": test.accuracy,
        "train_seconds": history.train_seconds, "precision": history.precision,
        "commit": machine.commit(),
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert 0 < record["mfu"] < 1
    assert record["class_accuracy"] == dict(zip("0123456789", test.class_accuracy, strict=True))
    assert record["images_per_s"] == pytest.approx(300 / history.train_seconds)
    assert record["history"]["epochs"] == history.epochs
    assert len(record["history"]["batch_losses"]) == 4 + 2 + 2
    assert record["history"]["best_epoch"] == history.best_epoch
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert Config(**record["config"]) == config
    assert record["mult_adds"] == 156 * 24 * 24 + 2416 * 8 * 8 + 257 * 120 + 121 * 84 + 85 * 10


def test_round_trip(record, results):
    path = records.save(record)
    assert path.parent == yours()
    back = records.read_record(path)
    assert back == json.loads(json.dumps(record))  # tuples come back as lists
    assert records.identity(back) == records.identity(record)
    assert [Config(**back["config"]).batch_size_at(e) for e in range(3)] == [32, 64, 64]
    table, problems = records.read_all()
    assert problems == []
    assert table["test_accuracy"].tolist() == [record["test_accuracy"]]
    assert list(table.columns) == [*records.FIELDS, *records.LATER, "origin"]


def test_no_records_at_all(results):
    table, problems = records.read_all()
    assert (len(table), problems) == (0, [])
    assert "test_accuracy" in table
    assert len(compare.table()[0]) == 0


def test_an_experiments_name_may_hold_anything(record):
    path = records.save(record | {"experiment": 'ReLU/sigmoid: "..\\x"'})
    assert path.parent == yours()
    assert records.read_record(path)["experiment"] == 'ReLU/sigmoid: "..\\x"'


def test_writing_is_all_or_nothing(record, results, monkeypatch):
    path = records.save(record)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="full"):
            records.save(record | {"test_accuracy": 0.5})
    assert path.read_bytes() == before
    with pytest.raises(TypeError):
        records.save(record | {"commit": object()})  # cannot be written as JSON
    assert path.read_bytes() == before
    table, problems = records.read_all()
    assert (len(table), problems) == (1, [])


def test_what_is_one_run_and_what_is_another(record):
    same = records.identity(record)
    for change in ({"train_seconds": 9.0}, {"device": "abacus"}, {"commit": "x"}, {"history": {}}):
        assert records.identity(record | change) == same, change
    for change in (
        {"model": "lenet5_bn"}, {"dataset": "mnist"}, {"source": "MNIST files"},
        {"experiment": "other"}, {"profile": "full"}, {"train_images": 99}, {"params": 1},
        {"config": record["config"] | {"lr": 0.5}}, {"config": record["config"] | {"seed": 4}},
    ):  # fmt: skip
        assert records.identity(record | change) != same, change


def test_the_same_run_counts_once_and_yours_goes_first(record, results):
    records.save(record | {"train_seconds": 1.0})
    records.save(record | {"train_seconds": 2.0})  # a repetition replaces its file
    assert len(list(yours().glob("*.json"))) == 1
    records.save(record | {"train_seconds": 3.0}, results)
    other = record | {"config": record["config"] | {"seed": 4}, "seed": 4}
    records.save(other, results)
    table, problems = records.read_all()
    assert problems == []
    assert table["train_seconds"].tolist() == [2.0, record["train_seconds"]]
    assert table["origin"].tolist() == ["yours", "recorded"]
    table, _ = records.read_all(yours=False)
    assert set(table["train_seconds"]) == {3.0, record["train_seconds"]}
    assert table["origin"].tolist() == ["recorded", "recorded"]


def damage(record):
    """File name -> (content, what the reason must say)."""
    older = {key: value for key, value in record.items() if key != "source"}
    return {
        "half.json": (json.dumps(record)[:200], "not readable JSON"),
        "empty.json": ("", "not readable JSON"),
        "list.json": ("[1, 2]", "expected a JSON object"),
        "foreign.json": ('{"name": "settings"}', "has no 'model'"),
        "older.json": (json.dumps(older), "has no 'source'.*older version"),
        "text.json": (json.dumps(record | {"params": "many"}), "params is 'many'"),
        "percent.json": (json.dumps(record | {"test_accuracy": 97.5}), r"97\.5 is not in 0 to 1"),
        "nan.json": (json.dumps(record | {"test_accuracy": math.nan}), "nan is not in 0 to 1"),
    }


def test_what_is_not_a_record_is_named_and_left_out(record, results):
    good = records.save(record)
    files = damage(record)
    for name, (content, reason) in files.items():
        (good.parent / name).write_text(content)
        with pytest.raises(ValueError, match=f"{name}.*{reason}"):
            records.read_record(good.parent / name)
    (results / "bytes.json").write_bytes(b"\xff\xfe\x00")
    table, problems = records.read_all()
    assert len(table) == 1
    assert len(problems) == len(files) + 1
    for name in (*files, "bytes.json"):
        assert sum(problem.startswith(name) for problem in problems) == 1


def test_judge_saves_the_run(run, results):
    model, digits, config, history, expected = run
    test, record = records.judge("lenet5", model, digits, config, history, experiment="judged")
    assert torch.equal(test.confusion, expected.confusion)
    table, _ = records.read_all()
    assert table["experiment"].tolist() == ["judged"]
    assert table["test_accuracy"].tolist() == [test.accuracy]
    assert record["test_accuracy"] == test.accuracy


def test_publish_copies_only_what_is_new(record, results):
    old = records.save(record | {"experiment": "old"})
    os.utime(old, (1, 1))
    since = time.time() - 60
    new = records.save(record | {"experiment": "new"})
    records.publish(since=since)
    assert [p.name for p in results.iterdir()] == [new.name]


# -------------------------------------------------------------------------------------- the table


def with_seed(record, seed, accuracy):
    config = record["config"] | {"seed": seed}
    return record | {"seed": seed, "config": config, "test_accuracy": accuracy}


def test_runs_that_differ_in_their_seed_are_one_row(record, results):
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        records.save(with_seed(record, seed, accuracy))
    slower = record["config"] | {"lr": 0.5}
    records.save(with_seed(record | {"config": slower}, 0, 0.5))
    table, problems = compare.table()
    assert problems == []
    assert table["accuracy"].tolist() == pytest.approx([93, 50])  # best first
    assert table["n"].tolist() == [3, 1]
    assert table["std"][0] == pytest.approx(3.6055513)
    assert math.isnan(table["std"][1])  # one run has no spread
    assert table["seconds_an_epoch"][0] == pytest.approx(record["train_seconds"] / 3)


def test_a_reports_figure_stands_beside_the_same_experiment_only(record, results):
    same = record | {"dataset": "mnist", "experiment": "report-d"}
    records.save(same)
    records.save(same | {"experiment": "other"})
    records.save(same | {"source": "scikit-learn digits (stand-in)", "stand_in": True})
    table, _ = compare.table()
    reported = {(r.experiment, r.source): r.report for r in table.itertuples()}
    assert reported.pop(("report-d", record["source"])) == 97.44
    assert len(reported) == 2
    assert all(map(math.isnan, reported.values()))


def test_beside_a_reports_figure_stand_the_same_run_and_our_best(record, results):
    same = record | {"dataset": "mnist", "experiment": "report-d", "profile": "full"}
    records.save(same | {"test_accuracy": 0.97})
    records.save(same | {"test_accuracy": 0.95, "profile": "laptop"})
    records.save(same | {"test_accuracy": 0.98, "model": "lenet5 (at 54 x 54)"})
    records.save(same | {"test_accuracy": 0.99, "model": "vgg11 (our recipe at 32 x 32)"})
    records.save(same | {"test_accuracy": 0.999, "dataset": "fashion_mnist"})
    beside = compare.beside_reports(compare.table()[0])
    found = beside[beside["model"] == "lenet5"].set_index("profile")
    assert found["ours"].to_dict() == pytest.approx({"full": 97, "laptop": 95})
    assert found["stated"].tolist() == [97.44, 97.44]
    assert found["origin"].tolist() == ["yours", "yours"]
    assert set(found["by"]) == {"report-d, lenet5 (at 54 x 54), full, yours"}
    vgg = beside[beside["model"] == "vgg11"].squeeze()
    assert math.isnan(vgg["ours"])
    assert vgg["best"] == pytest.approx(99)
    assert beside[beside["dataset"] == "cifar10"]["best"].isna().all()
    assert list(dict.fromkeys(beside["model"])) == list(
        dict.fromkeys(result.model for result in compare.reports.REPORTED)
    )


def test_under_report_e_s_classes_stands_our_best_run_of_the_net(record, results):
    shares = dict(zip(sources.KNOWN["cifar10"].classes, [0.5, *[0.25] * 9], strict=True))
    cifar = record | {"dataset": "cifar10", "model": "densenet_cifar"}
    backwards = dict(reversed(shares.items()))  # the names count, not their order
    records.save(cifar | {"test_accuracy": 0.3, "source": "JPEG", "class_accuracy": backwards})
    worse = dict.fromkeys(shares, 0.1)
    records.save(with_seed(cifar | {"source": "JPEG", "class_accuracy": worse}, 1, 0.1))
    records.save(record | {"model": "densenet_cifar"})  # of another data set
    found = compare.classes_beside_report_e(records.read_all()[0])
    ours = f"densenet_cifar, JPEG, {record['profile']}, yours"
    assert list(found.index) == ["resnet18_cifar, report E", "densenet_cifar, report E", ours]
    assert found["airplane"].tolist() == [93, 96, 50]
    assert found["truck"].tolist() == [96, 96, 25]


def test_the_reports_figures_stand_alone_without_runs(results):
    beside = compare.beside_reports(compare.table()[0])
    assert len(beside) == len(compare.reports.REPORTED)
    assert beside[["ours", "best", "by"]].isna().all(axis=None)


def test_errors_are_the_images_taken_for_something_else(run, record):
    _, digits, _, _, test = run
    assert len(record["errors"]) == round((1 - test.accuracy) * len(digits.test))
    for image, answer in record["errors"].items():
        assert answer == test.predictions[int(image)] != digits.test.labels[int(image)]


def test_the_hardest_images(record):
    runs = pd.DataFrame(
        [
            {"model": "a", "test_accuracy": 0.9, "errors": {"7": 1, "3": 2}},
            {"model": "a", "test_accuracy": 0.8, "errors": {"9": 5}},  # not the best of its model
            {"model": "b", "test_accuracy": 0.7, "errors": {"7": 1}},
            {"model": "c", "test_accuracy": 0.7, "errors": {"7": 4}},
            {"model": "d", "test_accuracy": 0.7, "errors": None},  # an old record
        ]
    )
    assert compare.hardest(runs).to_dict("records") == [
        {"image": 7, "wrong": 3, "taken_for": 1, "of": 3},
        {"image": 3, "wrong": 1, "taken_for": 2, "of": 3},
    ]
    assert len(compare.hardest(runs.drop(columns="errors").assign(errors=None))) == 0


def test_the_leaderboard_keeps_ours_and_the_reports_apart(record, results):
    records.save(record)
    records.save(record | {"model": "lenet5 (at 54 x 54)"})
    records.save(record | {"model": "my own net"})
    board = compare.leaderboard(compare.table()[0])
    ours = board[board["origin"] == "yours"].set_index("model")
    assert len(board) == len(ours) + len(compare.reports.REPORTED)
    assert ours.loc["lenet5", ["year", "depth", "field"]].tolist() == [1998, 5, 16]
    assert ours.loc["lenet5 (at 54 x 54)", "year"] == 1998
    assert math.isnan(ours.loc["my own net", "year"])
    stated = board[board["origin"] == "report A"].set_index("model")
    assert stated.loc["vgg19", "seconds_an_epoch"] == pytest.approx(661.17 / 5)
    assert stated.loc["lenet5_bn", "mult_adds"] == pytest.approx(27.08e6 / 64)
    assert board["accuracy"].is_monotonic_decreasing
    assert compare.leaderboard(compare.table()[0], by="params")["params"].is_monotonic_increasing
    with pytest.raises(ValueError, match="Did you mean 'accuracy'"):
        compare.leaderboard(compare.table()[0], by="acuracy")


def test_the_pareto_front():
    frame = pd.DataFrame({"params": [1, 2, 2, 3, 4], "accuracy": [90, 95, 94, 95, 99]})
    assert compare.pareto(frame, "params").tolist() == [True, True, False, False, True]


def test_labels_are_told_apart():
    assert compare.distinct(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
