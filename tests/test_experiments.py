"""The experiments: the tables follow the reports, and a table is performed once, whatever fails."""

import json
from dataclasses import replace

import pytest
import torch

from common import data, experiments, machine, probe, records, reports, zoo
from common.__main__ import main
from common.experiments import EXPERIMENTS, perform, runs_of


@pytest.fixture(autouse=True)
def digits_for_all(monkeypatch, tmp_path):
    """Every set is the digits, in its own size; nothing is downloaded."""

    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr("common.sources.download", unreachable)
    monkeypatch.setenv("CNN_DATA", str(tmp_path))
    monkeypatch.setenv("CNN_PROFILE", "smoke")
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()


ALL = [(name, run) for name, table in EXPERIMENTS.items() for run in table]


@pytest.mark.parametrize(("name", "run"), ALL, ids=[f"{name}-{run.name}" for name, run in ALL])
def test_every_run_fits_its_network(name, run):
    for profile in machine.PROFILES:
        fitted = run.at(profile, None)
        channels, size = 3 if run.dataset == "cifar10" else 1, fitted.config.image_size
        model = zoo.build_on_meta(run.model, in_channels=channels, num_classes=10, **fitted.options)
        probe.check_fits(model, (1, channels, size, size))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_two_runs_of_an_experiment_are_the_same(name):
    """In `smoke` they may be: there one epoch of every net has to do."""
    for profile in ("laptop", "full"):
        runs = runs_of(name, profile)
        assert len({run.name for run in runs}) == len(runs)
        assert len({(run.model, str(run.options), run.config) for run in runs}) == len(runs)


@pytest.mark.parametrize("result", reports.REPORTED, ids=lambda r: f"{r.report}-{r.model}")
def test_every_reported_result_has_its_run_with_the_reports_settings(result):
    table = EXPERIMENTS[result.experiment]
    (run,) = [run for run in table if run.name == result.model and run.dataset == result.dataset]
    if result.epochs is not None:
        assert run.config.epochs == result.epochs
        assert run.config.batch_size == result.batch_size
    channels = 3 if run.dataset == "cifar10" else 1
    model = zoo.build_on_meta(run.model, in_channels=channels, num_classes=10, **run.options)
    assert sum(p.numel() for p in model.parameters()) == result.params


def test_settings_the_reports_print():
    a = [run.config for run in EXPERIMENTS["report-a"] if not run.label]
    assert len(a) == 7
    for config in a:
        assert (config.optimizer, config.lr, config.weight_decay) == ("adam", 1e-4, 1e-3)
        assert (config.batch_size, config.patience) == (64, 3)
    d = {run.name: run.config for run in EXPERIMENTS["report-d"]}
    for config in d.values():
        assert (config.optimizer, config.lr, config.seed) == ("adamw", 1e-3, 42)
        assert config.batch_size == 128
    last = EXPERIMENTS["report-c"][5].config
    rates = [last.lr_at(epoch) for epoch in (0, 20, 40)]
    assert rates == pytest.approx([0.05, 0.005, 0.0005])
    assert [last.batch_size_at(epoch) for epoch in (0, 20, 40)] == [32, 128, 256]


def test_the_course_is_one_recipe_for_eight_notebooks():
    table = EXPERIMENTS["course"]
    assert len({zoo.variants()[run.model][1] for run in table}) == 8
    recipe = ("optimizer", "lr", "weight_decay", "schedule", "label_smoothing", "augment", "epochs")
    assert len({tuple(getattr(run.config, key) for key in recipe) for run in table}) == 1


def test_our_recipe_for_report_a_is_the_course_s_in_the_report_s_epochs():
    course = EXPERIMENTS["course-mnist"][0].config
    ours = [run for run in EXPERIMENTS["report-a"] if run.label]
    reports = [run for run in EXPERIMENTS["report-a"] if not run.label]
    assert [run.model for run in ours] == [run.model for run in reports if run.model != "lenet5_bn"]
    for run in ours:
        assert run.config.epochs == reports[0].config.epochs
        for key in ("optimizer", "weight_decay", "schedule", "label_smoothing", "augment"):
            assert getattr(run.config, key) == getattr(course, key), (run.name, key)
        assert run.label == f"our recipe at {run.config.image_size} x {run.config.image_size}"


def test_no_digit_is_mirrored():
    for table in EXPERIMENTS.values():
        for run in table:
            assert run.dataset != "mnist" or "flip" not in run.config.augment, run.name


def test_settings_of_one_run(monkeypatch):
    assert experiments.settings("report-d", "lenet5").epochs == 1
    monkeypatch.setenv("CNN_PROFILE", "full")
    for run in EXPERIMENTS["report-d"]:
        assert experiments.settings("report-d", run.name) == run.config
    with pytest.raises(ValueError, match="Unknown run in report-d 'lenet'"):
        experiments.settings("report-d", "lenet")


def test_lenet_computes_in_fp32_as_its_notebook_says():
    """The notebook's runs are the experiments' own, so that they are recorded as one."""
    for name, table in EXPERIMENTS.items():
        for run in table:
            expected = "fp32" if run.model.startswith("lenet5") else "auto"
            assert run.config.precision == expected, (name, run.name)


def performed(name="report-d", only=("lenet5",), **options):
    said = []
    found = list(perform(name, only=list(only), say=said.append, **options))
    return found, said


def test_performs_records_and_skips():
    found, said = performed(seeds=[1, 2])
    assert [(r["model"], r["seed"]) for r in found] == [
        ("lenet5", 1),
        ("lenet5 (at 54 x 54)", 1),
        ("lenet5", 2),
        ("lenet5 (at 54 x 54)", 2),
    ]
    assert {(r["experiment"], r["profile"], r["stand_in"]) for r in found} == {
        ("report-d", "smoke", True)
    }
    assert sum("left, about" in line for line in said) == 3  # known from the second on
    again, said = performed(seeds=[1, 2, 3])
    assert [r["seed"] for r in again] == [3, 3]
    assert sum(line.startswith("recorded already") for line in said) == 4


def test_another_width_or_setting_is_not_recorded_yet():
    (record, *_), _ = performed(seeds=[1])
    record = json.loads(json.dumps(record))
    (run, _) = runs_of("report-d", "smoke", [1], ["lenet5"])
    assert experiments.recorded("report-d", run, "smoke", [record])
    assert not experiments.recorded("report-d", run, "laptop", [record])
    assert not experiments.recorded("report-d", run, "smoke", [record], source="another copy")
    for changed in (
        replace(run, options={"image_size": 54}),  # more parameters
        replace(run, config=replace(run.config, lr=0.1)),
        replace(run, label="at night"),
    ):
        assert not experiments.recorded("report-d", changed, "smoke", [record])


def test_publishes_the_experiments_records_whenever_they_were_made(capsys):
    performed(seeds=[5])
    performed("report-a", ["lenet5_bn"])
    (machine.runs_folder() / "records/damaged.json").write_text("{")
    assert main(["experiment", "report-d", "--only", "lenet5", "--seeds", "5", "--save"]) == 0
    kept = [records.read_record(path) for path in records.RESULTS.glob("*.json")]
    assert [record["experiment"] for record in kept] == ["report-d"] * 2


def test_what_the_command_line_trained_is_not_published():
    words = ["train", "lenet5", "--dataset", "digits", "--epochs", "1", "--train-images", "100"]
    assert main(words) == 0
    assert len(list((machine.runs_folder() / "records").glob("*.json"))) == 1
    records.publish()
    assert not list(records.RESULTS.glob("*.json"))


def test_goes_on_after_a_failure_and_names_it(monkeypatch):
    build = zoo.build

    def broken(name, *arguments, **options):
        if options.get("image_size") is None:
            raise LookupError("the wheel came off")
        return build(name, *arguments, **options)

    monkeypatch.setattr(zoo, "build", broken)
    said = []
    steps = perform("report-d", only=["lenet5"], say=said.append)
    assert next(steps)["model"] == "lenet5 (at 54 x 54)"
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed:\nlenet5, seed 42: LookupError"):
        next(steps)
    monkeypatch.setattr(zoo, "build", build)
    found, _ = performed()
    assert [r["model"] for r in found] == ["lenet5"]  # the other one is recorded


def test_a_stopped_run_goes_on_where_it_was(monkeypatch, capsys):
    class Stop(BaseException):
        pass

    judge = records.judge

    def stop(*_, **__):
        raise Stop

    monkeypatch.setattr(records, "judge", stop)
    with pytest.raises(Stop):
        performed()
    files = list((machine.runs_folder() / "checkpoints").glob("*.pt"))
    assert len(files) == 1
    monkeypatch.setattr(records, "judge", judge)
    performed()
    assert "Going on after epoch 1" in capsys.readouterr().out
    assert not list((machine.runs_folder() / "checkpoints").glob("*.pt"))


def test_a_seed_gives_the_same_result():
    (first, _), _ = performed(seeds=[3])
    torch.manual_seed(1)
    data.load("digits")
    for path in (machine.runs_folder() / "records").glob("*.json"):
        path.unlink()
    (second, _), _ = performed(seeds=[3])
    assert first["history"]["batch_losses"] == second["history"]["batch_losses"]
    assert first["test_accuracy"] == second["test_accuracy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report-f"], "Unknown experiment 'report-f'. Did you mean 'report-"),
        (["report-d", "--only", "lenet"], "Unknown network in report-d 'lenet'. Did you mean"),
        (["report-d", "--profile", "tiny"], "expected one of smoke, laptop, full"),
    ],
)
def test_bad_arguments(capsys, words, message):
    assert main(["experiment", *words]) == 2
    assert message in capsys.readouterr().err


def test_command_line(capsys):
    assert main(["experiment", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    assert main(["experiment", "report-d", "--only", "lenet5", "--seeds", "5", "--save"]) == 0
    out = capsys.readouterr().out
    assert "[2/2] lenet5 (at 54 x 54), seed 5; 1 left, about" in out
    assert len(list(records.RESULTS.glob("*.json"))) == 2


def test_seeds_and_profiles():
    runs = runs_of("report-c", "laptop", [0, 1])
    assert len(runs) == 2 * len(EXPERIMENTS["report-c"])
    assert {run.config.train_images for run in runs} == {4_000}
    assert runs_of("report-c", "full")[3].config.augment == ("flip",)
