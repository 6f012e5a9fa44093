"""The benchmark: both sides do the same work, and the limits are measured ones."""

import pytest
import torch

from common import data, experiments, machine, probe, records, zoo
from common.config import Config
from tools import bench, classroom, scaling

KEYS = {
    "name", "image_size", "batch_size", "conventional_images_per_s", "images_per_s", "ratio",
    "precision", "device", "work", "lowest_ratio", "highest_ratio", "rounds",
}  # fmt: skip
SPREAD = {"lowest_ratio", "highest_ratio", "rounds"}


@pytest.fixture(autouse=True)
def digits(monkeypatch, tmp_path):
    """The digits in place of the sets that the benchmark names; results go to a folder apart."""
    monkeypatch.setattr(bench, "load", lambda name: data.load("digits"))
    monkeypatch.setattr(records, "RESULTS", tmp_path)


def test_a_row_for_training_and_one_for_evaluation():
    training, *_, evaluation = bench.networks(["lenet5"], seconds=0.05, rounds=2)
    assert set(evaluation) == KEYS | {"share_of_limit"}
    assert set(training) > set(evaluation)
    assert (training["work"], evaluation["work"]) == ("training", "evaluation")
    assert (training["name"], training["image_size"], training["batch_size"]) == ("lenet5", 28, 64)
    for row in (training, evaluation):
        assert 0 < row["lowest_ratio"] <= row["ratio"] <= row["highest_ratio"]
        assert row["images_per_s"] > 0
    shares = training["share_of_matrix_rate"], training["share_of_bandwidth"]
    assert training["share_of_limit"] == max(shares)
    assert 0 < max(shares) < 1.1
    assert training["precision"] == machine.precision()


def test_photos_are_timed_alone(monkeypatch):
    plan = experiments.Plan(
        "lenet5", Config(batch_size=16, image_size=28, validation=0.5), "digits"
    )
    monkeypatch.setattr(experiments, "plans", lambda *_: [plan])
    (row,) = bench.photos(seconds=0.01, rounds=1)
    assert (row["name"], row["batch_size"], row["image_size"]) == ("lenet5", 16, 28)
    assert row["digest"] == experiments.structure_of(plan)
    images = len(data.load("digits").train) / 2
    assert row["epoch_s"] == pytest.approx(images / row["images_per_s"], abs=0.01)


def test_a_network_a_notebook():
    rows = bench.measured(None, 128)
    assert [zoo.notebook_of(row["network"]).stem[3:] for row in rows] == list(zoo.architectures())
    for row in rows:
        net = zoo.build_on_meta(row["network"], in_channels=1, **row["options"])
        probe.depth(net, (1, 1, row["image_size"], row["image_size"]))


def test_both_sides_learn_from_the_same_images():
    """The conventional loader and ours give the same pixels, and both loops change the weights."""
    digits = data.load("digits")
    loader = bench.conventional(digits, 8, 64)
    usual = torch.cat([x for x, _ in loader])
    ours = torch.cat([x for x, _ in data.Batches(digits, "train", 64, device="cpu")])
    assert len(usual) == len(ours)
    assert torch.allclose(usual.sum(0), ours.sum(0), atol=0.01)  # one of them is shuffled
    batches = data.Batches(digits, "train", 64, size=28, seed=0)
    for steps in (
        lambda net: bench.conventional_training(net, ((x, y) for x, y in batches)),
        lambda net: bench.our_training(net, digits, Config(image_size=28, train_images=128)),
    ):
        net = zoo.build("lenet5")
        before = net.fc3.weight.detach().clone()
        assert next(steps(net)) > 0
        assert not torch.equal(net.fc3.weight.cpu(), before)


def test_least_work_by_hand():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(64, 10))
    work, moved = bench.least_work(net, (2, 1, 6, 6))
    conv, linear = 2 * 40 * 16, 2 * 65 * 10  # mult-adds of two images, biases included
    assert work == 2 * conv + 3 * linear
    activations, params = 2 * (64 + 64 + 10), 40 + 650
    assert moved == activations * 2 * 4 + params * 4 * 8


def test_in_turn_measures_each_side(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def side(images, *seconds):
        """A first step, then steps that take so many seconds."""
        for each in (1, *seconds):
            clock[0] += each
            yield images

    ours = side(40, 1, 1, 1, 1, 2, 2, 4)  # rounds of four, two and one step
    found = bench.in_turn(side(10, *[1] * 12), ours, seconds=4, rounds=3)
    assert found["conventional_images_per_s"] == 10
    assert found["images_per_s"] == 20
    assert (found["lowest_ratio"], found["ratio"], found["highest_ratio"]) == (1, 2, 4)


def test_the_fastest_repetition_counts(monkeypatch):
    clock, durations = [0.0], [9, 9, 3, 2, 4]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench.machine, "synchronize", lambda: None)

    def work():
        clock[0] += durations.pop(0)

    assert bench.fastest(work, seconds=9) == 2  # after two to warm up
    assert durations == []


def test_limits_are_measured(monkeypatch):
    """A copy of 256 MB moves twice as much; a product of n x n takes n**3 multiply-adds."""
    monkeypatch.setattr(bench, "fastest", lambda work, seconds=1.0: work() is not None and 0.5)
    assert bench.bandwidth() == 2 * 2**28 / 0.5
    n = 8192 if bench.machine.device().type == "cuda" else 2048
    assert bench.matrix_rate("fp32") == n**3 / 0.5


def test_unknown_network(brief):
    with pytest.raises(ValueError, match=r"Unknown model .lenet.\. Did you mean .lenet5."):
        bench.networks(["lenet"])


@pytest.fixture
def brief(monkeypatch):
    """Limits that take no second each to measure, and loaders in this process."""
    monkeypatch.setattr(bench, "matrix_rate", lambda *_: 1e11)
    monkeypatch.setattr(bench, "bandwidth", lambda *_: 1e10)
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 0)


def test_any_network_of_the_zoo_can_be_measured(brief):
    training, *_ = bench.networks(["lenet5_bn"], seconds=0.01, rounds=1)
    assert (training["image_size"], training["batch_size"]) == (32, 64)


def test_the_short_form_has_smaller_batches(monkeypatch, brief):
    asked, networks = {}, bench.networks
    monkeypatch.setattr(bench, "networks", lambda names, **kind: asked.update(kind) or [{}])
    monkeypatch.setattr(bench, "loaders", lambda seconds, rounds: [])
    assert bench.main(quick=True) == 0
    training, *_ = networks(["lenet5_bn"], **asked | {"seconds": 0.01, "rounds": 1})
    assert training["batch_size"] == asked["most"] < 64


def test_rows_about_the_start_have_the_same_columns(monkeypatch):
    monkeypatch.setattr(bench, "timed", lambda code: 2.0 if "DataLoader" in code else 1.0)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    rows = bench.starting() + bench.loaders(seconds=0.01, sizes=(28,))
    assert all(set(row) >= {*KEYS, "share_of_limit"} - SPREAD for row in rows)
    assert [row["ratio"] for row in rows[:2]] == [1.0, 2.0]


def test_saved_rows_come_back(tmp_path):
    rows = [{"name": "a", "device": "Some CPU, 2 threads", "ratio": 2.0}]
    bench.save_rows(rows, "speed")
    (file,) = (tmp_path / "bench").glob("*.json")
    assert file.name == "speed-some-cpu-2-threads.json"
    (row,) = records.read_rows("speed")
    assert set(row) == {*rows[0], "versions", "commit"}
    bench.save_rows([row | {"name": "b"}, row | {"ratio": 3.0}], "speed")
    assert [(r["name"], r["ratio"]) for r in records.read_rows("speed")] == [("a", 3.0), ("b", 2.0)]
    assert records.read_rows("scaling") == []


def test_save_is_for_the_whole_benchmark():
    with pytest.raises(ValueError, match="leave out --quick"):
        bench.main(quick=True, save=True)


# ---------------------------------------------------------------------------- several processes


def test_the_table_of_scaling():
    row = {
        "name": "a", "image_size": 8, "params": 10**6, "mult_adds": 10**7, "batch_size": 64,
        "processes": 2, "compute_s": 0.2, "send_s": 0.3, "step_s": 0.55, "rate": 1e10, "link": 1e9,
    }  # fmt: skip
    *_, line = scaling.scaling_markdown([row]).splitlines()
    assert line.startswith("| a at 8 | 1,000,000 | 10.0 M | 32 | 0.200 | 0.300 |")
    assert line.endswith("| 0.300 to 0.500 | 0.550 | 10 | 1.3 |")


def test_break_even_by_hand():
    assert scaling.send_bytes(1_000_000, 2) == 4_000_000
    assert scaling.send_bytes(1_000_000, 4) == 6_000_000
    # 4 MB over 1 GB/s take 4 ms; an image takes 3 x 10 M mult-adds at 10 G a second, 3 ms.
    assert scaling.break_even(10**6, 10**7, 2, rate=1e10, link=1e9) == pytest.approx(4 / 3)


def test_scaling_needs_torchrun():
    with pytest.raises(ValueError, match=r"torchrun --nproc-per-node=2 -m tools\.scaling"):
        scaling.main()


# ---------------------------------------------------------------------------------- classroom


@pytest.mark.slow  # it executes a notebook once more
def test_a_class_runs_to_the_end(monkeypatch):
    monkeypatch.setenv("CNN_PROFILE", "smoke")
    found = classroom.run_together(["99"], kernels=1)
    assert found["error"].tolist() == [""]
    assert (found["private_MB"] > 50).all()
    assert (found["seconds"] > 1).all()


def test_a_class_that_fails_says_why():
    (found,) = classroom.run_together(["nosuch"], kernels=1)["error"]
    assert "Unknown notebook 'nosuch'" in found
    with pytest.raises(ValueError, match="kernels=0"):
        classroom.run_together(["99"], kernels=0)


@pytest.mark.parametrize("other", [{"only": ("lenet5",)}, {"precision": "fp32"}])
def test_what_photos_alone_would_ignore_is_refused(other):
    with pytest.raises(ValueError, match="leave out the others"):
        bench.main(photos_alone=True, **other)
