"""The comparison: means of what belongs together, tests on pairs, what stands beside a report."""

import dataclasses
import json
import math
from itertools import product

import pandas as pd
import pytest

from common import compare, experiments, records, zoo
from common.records import Record
from tools import documents


@pytest.fixture(scope="module")
def record() -> Record:
    """A recorded run: LeNet-5 with batch normalisation on MNIST."""
    found, _ = records.read_all(yours=False)
    return next(r for r in found if r.network == "lenet5_bn" and r.errors and r.dataset == "mnist")


def like(record: Record, seed: int = 0, **values) -> Record:
    return dataclasses.replace(record, config=record.config | {"seed": seed}, **values)


def with_validation(record: Record, value: float, **values) -> Record:
    rows = [dict(row, val_accuracy=value) for row in record.history["epochs"]]
    return like(record, history=record.history | {"epochs": rows}, **values)


def test_runs_that_differ_in_their_seed_are_one_row(record):
    runs = [like(record, seed, test_accuracy=a) for seed, a in ((0, 0.90), (1, 0.94), (2, 0.92))]
    (row,) = compare.grouped(runs).itertuples()
    assert (row.accuracy, row.spread, row.n) == pytest.approx((92, 2, 3))
    assert row.error == pytest.approx(100 * math.sqrt(0.92 * 0.08 / 10_000))


@pytest.mark.parametrize(
    "other",
    [
        {"digest": "00000000"}, {"options": {"dropout": 0.9}}, {"label": "x"}, {"origin": "yours"},
        {"device": "a GPU"}, {"precision": "bf16"}, {"source": "a copy"}, {"train_images": 5},
        {"profile": "full"}, {"experiment": "another"}, {"begun_with": "1a2b3c4d"},
    ],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_runs_that_differ_in_anything_else_are_not(record, other):
    runs = [like(record, 0, profile="laptop"), like(record, 1, **({"profile": "laptop"} | other))]
    assert compare.grouped(runs)["n"].tolist() == [1, 1]


def test_settings_keep_runs_apart(record):
    warm = dataclasses.replace(record, config=record.config | {"lr": 0.5, "seed": 1})
    assert len(compare.grouped([record, warm])) == 2


def test_rows_are_in_the_order_of_validation(record):
    """A run that is luckier on the test images does not come first by that."""
    lucky = with_validation(record, 0.80, test_accuracy=0.99, label="lucky")
    sound = with_validation(record, 0.90, test_accuracy=0.95, label="sound")
    unjudged = with_validation(record, 0.99, test_accuracy=None, label="unjudged")
    frame = compare.grouped([lucky, sound, unjudged])
    assert frame["label"].tolist() == ["unjudged", "sound", "lucky"]


def test_no_runs_at_all():
    assert compare.grouped([]).empty
    assert compare.leaderboard([]).empty
    assert compare.beside_reports([])["reproduced"].isna().all()
    assert compare.hardest([]).empty


def test_leaderboard(record):
    photo = zoo.architectures()["lenet"].photo
    row = zoo.variant(photo)
    run = like(record, network=photo, experiment="cifar10", dataset="cifar10", params=row.params)
    board = compare.leaderboard([run, like(record, experiment="elsewhere")])
    (found,) = board.itertuples()
    assert (found.architecture, found.network, found.year) == ("LeNet-5", photo, 1998)
    assert (found.depth, found.params, found.n) == (5, 62_050, 1)
    assert found.accuracy == pytest.approx(100 * record.test_accuracy)
    assert "LeNet-5 (`lenet5_cifar`) | 1998 | 5 | 62,050" in documents.board(board)


def test_seconds_alone_are_a_column_a_machine(record, monkeypatch, tmp_path):
    photo = zoo.architectures()["lenet"].photo
    (plan,) = experiments.plans("cifar10", "full", only=[photo])
    about = {"name": photo, "digest": experiments.structure_of(plan)}
    earlier = about | {"digest": "0badf00d", "device": "a GPU", "precision": "bf16", "epoch_s": 9.9}
    (tmp_path / "bench").mkdir()
    for device, precision, seconds in (("two cores", "fp32", 3.7), ("a GPU", "bf16", 0.6)):
        row = about | {"device": device, "precision": precision, "epoch_s": seconds}
        unknown = {name: value for name, value in earlier.items() if name != "digest"}
        rows = json.dumps([row, earlier, unknown])  # of a net of this name that was another
        (tmp_path / f"bench/photos-{device}.json").write_text(rows)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    run = like(record, network=photo, experiment="cifar10", dataset="cifar10")
    board = compare.leaderboard([run, like(run, network="Mine")]).set_index("network")
    assert board["s an epoch, two cores, fp32"][photo] == 3.7
    assert board["s an epoch, a GPU, bf16"].isna()["Mine"]
    text = documents.board(board.reset_index())
    assert "| s an epoch, a GPU, bf16 | s an epoch, two cores, fp32 |" in text
    assert "| 0.6 | 3.7 |" in text
    assert "| – | – |" in text


def test_the_error_is_that_of_the_images_judged_and_seconds_are_of_the_median_epoch(record):
    """A run judged on the sample's 1,000 images stands beside one judged on all 10,000."""
    rows = [
        dict(record.history["epochs"][0], epoch=i, seconds=s) for i, s in enumerate((3, 2, 90), 1)
    ]
    history = record.history | {"epochs": rows, "best_epoch": 1}
    whole = like(record, history=history, test_accuracy=0.9, label="whole", stand_in=False)
    sample = like(whole, label="sample", stand_in=True)
    frame = compare.grouped([whole, sample]).set_index("label")
    assert frame.error["whole"] == pytest.approx(0.3)
    assert frame.error["sample"] == pytest.approx(0.9487, abs=1e-4)
    assert frame.seconds["whole"] == 3


def test_the_peak_is_the_least_and_the_settings_compare_whatever_their_order(record):
    peaks = (5_000_000, 3_000_000, None)
    runs = [like(record, seed, peak_memory_bytes=peak) for seed, peak in enumerate(peaks)]
    runs[1].config = dict(reversed(runs[1].config.items()))
    (row,) = compare.grouped(runs).itertuples()
    assert row.peak_MB == 3  # 3,000,000 bytes
    assert row.n == 3


def test_a_run_on_few_images_has_a_larger_error(record):
    """Whether a sample's or one's own: it is that of the images that judged it."""
    few = like(record, test_accuracy=0.5, test_images=100)
    assert compare.grouped([few]).error[0] == pytest.approx(5)


def test_a_name_makes_no_html_and_no_column(record):
    odd = like(record, network="<script>alert(1)</script>", label="a|b")
    text = documents.groups(compare.grouped([odd]))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines()}) == 1


def test_own_pictures_under_a_set_s_name_reproduce_nothing(record):
    (plan,) = [
        p
        for p in experiments.plans("report-a", "full")
        if (p.network, p.label) == ("lenet5_bn", "")
    ]
    run = dataclasses.replace(
        record, network="lenet5_bn", label="", experiment="report-a", dataset="mnist", digest="",
        stand_in=False, config=records.as_json(plan.config), profile="full", options={},
        train_images=48_000, test_images=10_000,
    )  # fmt: skip
    beside = compare.beside_reports([run])
    assert beside.reproduced.notna().sum() == 1
    for other in ({"test_images": 40}, {"train_images": 400}):
        assert compare.beside_reports([dataclasses.replace(run, **other)]).reproduced.isna().all()


def test_a_network_that_the_zoo_does_not_have(record):
    assert compare.facts("Mine")["year"] is None
    mine = like(record, network="Mine", experiment="cifar10")
    assert compare.leaderboard([mine])["architecture"].tolist() == ["Mine"]


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 2**5), (1, 9, 2 * 11 / 2**10), (10, 30, 0.00222)],
)
def test_mcnemar_by_hand(record, only_a, only_b, expected):
    both = {str(i): 0 for i in range(1000, 1050)}
    a = like(record, errors=both | {str(i): 0 for i in range(only_a)})
    b = like(record, errors=both | {str(100 + i): 0 for i in range(only_b)})
    assert compare.mcnemar(a, b) == pytest.approx(expected, rel=0.01)
    assert compare.mcnemar(b, a) == compare.mcnemar(a, b)


def test_mcnemar_needs_the_errors(record):
    with pytest.raises(ValueError, match="does not say which images"):
        compare.mcnemar(record, like(record, errors=None))


def test_the_hardest_images(record):
    answers = {"a": {"1": 3, "2": 5}, "b": {"1": 3, "4": 0}, "c": {"1": 7, "2": 5}}
    runs = [like(record, network=name, errors=errors) for name, errors in answers.items()]
    runs.append(like(record, network="old", errors=None))
    hard = compare.hardest(runs, most=2)
    assert hard[["image", "wrong", "taken_for", "of"]].values.tolist() == [
        [1, 3, 3, 3],
        [2, 2, 5, 3],
    ]
    assert hard.attrs["tied"] == 1


def test_of_each_network_the_run_with_the_best_validation_tells_the_hardest_images(record):
    good = with_validation(record, 0.9, network="a", errors={"1": 3})
    poor = with_validation(record, 0.8, network="a", errors={"2": 5, "4": 0})
    for runs in ([good, poor], [poor, good]):
        assert compare.hardest(runs)["image"].tolist() == [1]


def test_of_equally_hard_images_not_the_first_ones_are_shown(record):
    """The test images lie class by class in some copies: the first twelve are all airplanes."""
    run = like(record, errors={str(i): 3 for i in range(1000)})
    hard = compare.hardest([run])
    assert hard.attrs["tied"] == 1000
    assert len({image // 100 for image in hard["image"]}) > 4
    assert hard["image"].tolist() == compare.hardest([run])["image"].tolist()


def brute_force(costs, accuracies) -> list[bool]:
    points = list(zip(costs, accuracies, strict=True))
    return [
        not any(c <= cost and a >= acc and (c, a) != (cost, acc) for c, a in points)
        for cost, acc in points
    ]


def test_the_pareto_front():
    for accuracies in product((90, 91, 92), repeat=4):
        frame = pd.DataFrame({"params": [1, 2, 2, 3], "accuracy": accuracies})
        expected = brute_force(frame["params"], frame["accuracy"])
        assert compare.pareto(frame, "params").tolist() == expected


# ---------------------------------------------------------------------------- beside the reports


def of_plan(record: Record, plan, **values) -> Record:
    """A record of a plan at its full size."""
    return dataclasses.replace(
        record, network=plan.network, label=plan.label, options=records.plain(plan.options),
        digest=experiments.structure_of(plan), dataset=plan.dataset, profile="full",
        config=records.as_json(plan.config), **values,
    )  # fmt: skip


def test_only_a_run_by_the_report_s_settings_reproduces_it(record):
    plan = experiments.table_of("report-d")[0]
    exact = of_plan(record, plan, experiment="report-d", test_accuracy=0.975)
    short = dataclasses.replace(exact, profile="laptop", test_accuracy=0.99)
    other = dataclasses.replace(exact, config=exact.config | {"lr": 0.5}, test_accuracy=0.98)
    stated = compare.beside_reports([short, other]).set_index(["report", "network"])
    assert math.isnan(stated.loc[("D", "lenet5"), "reproduced"])
    assert stated.loc[("D", "lenet5"), "stated"] == 97.44
    beside = compare.beside_reports([short, other, exact]).set_index(["report", "network"])
    assert beside.loc[("D", "lenet5"), "reproduced"] == pytest.approx(97.5)
    assert math.isnan(beside.loc[("D", "mobilenet"), "ours"])


def test_another_seed_of_the_report_s_settings_counts(record):
    plan = experiments.table_of("report-d")[0].at("full", 7)
    exact = of_plan(record, plan, experiment="report-d")
    assert not math.isnan(
        compare.beside_reports([exact]).set_index("network").loc["lenet5", "reproduced"]
    )


def test_of_several_runs_the_best_in_validation_stands_beside_a_report(record):
    """Though another is luckier on the test images."""
    exact = of_plan(record, experiments.table_of("report-d")[0], experiment="report-d")
    lucky = with_validation(exact, 0.90, seed=1, test_accuracy=0.98)
    sound = with_validation(exact, 0.95, seed=2, test_accuracy=0.96)
    for runs in ([lucky, sound], [sound, lucky]):
        beside = compare.beside_reports(runs).set_index(["report", "network"])
        found = beside.loc[("D", "lenet5"), ["reproduced", "ours"]]
        assert found.tolist() == pytest.approx([96, 96])


def test_beside_a_report_stands_its_own_variant_on_all_images(record):
    """Of whole runs before short ones, of the report's label before others."""
    plan = next(p for p in experiments.table_of("report-c") if p.label == "with flips")

    def ours(*runs) -> float:
        table = compare.beside_reports(list(runs)).query("report == 'C'").set_index("network")
        return table.loc[plan.name, "ours"]

    def run(label: str, accuracy: float, **settings) -> Record:
        made = of_plan(record, plan, experiment="another", test_accuracy=accuracy)
        return dataclasses.replace(made, label=label, config=made.config | settings)

    short, whole = run("with flips", 0.9, train_images=4_000), run("", 0.8)
    assert ours(short) == pytest.approx(90)
    assert ours(short, whole) == pytest.approx(80)
    assert ours(short, whole, run("with flips", 0.7)) == pytest.approx(70)


def test_ours_beside_a_row_without_label_is_by_any_recipe_but_another_row_s(record):
    plan = next(p for p in experiments.table_of("report-a") if p.network == "vgg11")

    def run(label: str, validation: float, test: float) -> Record:
        epochs = [{"epoch": 1, "val_accuracy": validation, "val_loss": 1.0}]
        made = of_plan(record, plan, experiment="another", test_accuracy=test)
        return dataclasses.replace(
            made, label=label, history=made.history | {"epochs": epochs, "best_epoch": 1}
        )

    def ours(*runs) -> float:
        table = compare.beside_reports(list(runs)).query("report == 'A'").set_index("network")
        return table.loc["vgg11", "ours"]

    assert ours(run("", 0.8, 0.81), run("our recipe", 0.9, 0.91)) == pytest.approx(91)
    taken = next(r for r in compare.reports()["stated"] if r.label)._replace(network="vgg11")
    stated = compare.reports()["stated"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "reports", lambda: {"stated": [*stated, taken]})
        assert ours(run("", 0.8, 0.81), run(taken.label, 0.9, 0.91)) == pytest.approx(81)


def test_report_e_s_classes_are_those_of_all_images(record):
    run = like(
        record, network="densenet_cifar", dataset="cifar10", class_accuracy={"cat": 0.5},
        train_images=45_000,
    )  # fmt: skip
    short = dataclasses.replace(run, config=run.config | {"train_images": 4_000})
    assert len(compare.classes_beside_report_e([run])) == 3
    assert len(compare.classes_beside_report_e([short])) == 2


def test_report_e_s_classes(record):
    run = like(
        record, network="resnet18_cifar", dataset="cifar10",
        class_accuracy={"cat": 0.5, "airplane": 0.75},
    )  # fmt: skip
    table = compare.classes_beside_report_e([run])
    assert table.index[0] == "resnet18_cifar, report E"
    assert table.iloc[0]["automobile"] == 100
    assert table.iloc[1]["cat"] == 50
    assert table.iloc[1]["airplane"] == 75
    means = {name: sum(values) / 10 for name, values in compare.reports()["class_accuracy"].items()}
    assert means == pytest.approx({"resnet18_cifar": 91.7, "densenet_cifar": 92.5})
    poor = with_validation(run, 0.8)
    good = with_validation(run, 0.9, class_accuracy={"cat": 0.6})
    for runs in ([poor, good], [good, poor]):
        assert compare.classes_beside_report_e(runs).iloc[1]["cat"] == 60


ACCURACIES = {  # as the reports print them, in the order of their tables
    "A": [97.48, 99.22, 99.23, 99.14, 99.37, 98.81, 99.07],
    "C": [75.56, 80.30, 82.95, 86.01, 88.63, 89.49],
    "D": [97.44, 99.13, 99.30, 98.36, 98.80, 97.5],  # the last is ResNet-18 without upsampling
    "E": [90, 92],
}


def test_the_stated_figures_are_the_reports():
    stated = compare.reports()["stated"]
    found = {report: [r.accuracy for r in stated if r.report == report] for report in ACCURACIES}
    assert found == ACCURACIES
    assert len(stated) == 21
    assert sum(r.seconds for r in stated if r.report == "A") == pytest.approx(1597, abs=1)
    assert sum(r.seconds or 0 for r in stated if r.report == "D") == pytest.approx(3122, abs=1)
