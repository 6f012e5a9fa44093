"""The experiments: the tables follow the reports, and a table is performed once, whatever fails."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common import compare, data, experiments, machine, probe, records, run, train, zoo
from common.__main__ import main
from common.config import Config
from common.experiments import plans, table_of
from common.perform import perform, train_and_judge

NAMES = experiments.experiment_names()
ALL = [(name, plan) for name in NAMES for plan in table_of(name)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Nothing is downloaded; what is loaded is whatever comes last in the chain of sources."""

    def unreachable(*_):
        raise OSError("no network")

    monkeypatch.setattr("common.sources.download", unreachable)
    monkeypatch.setenv("CNN_DATA", str(tmp_path))
    monkeypatch.setenv("CNN_PROFILE", "smoke")
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()


# ------------------------------------------------------------------------------------ the tables


@pytest.mark.parametrize("name", NAMES)
def test_every_run_fits_its_network(name):
    nets = {}  # many runs share one
    for plan in (plan for experiment, plan in ALL if experiment == name):
        for profile in machine.PROFILES:
            fitted = plan.at(profile, None)
            channels, size = 3 if plan.dataset == "cifar10" else 1, fitted.config.image_size
            nets[fitted.network, str(fitted.options), channels, size] = fitted
    for (_, _, channels, size), fitted in nets.items():
        with torch.device("meta"):
            model = fitted.build(channels, 10)
        probe.depth(model, (1, channels, size, size))


@pytest.mark.parametrize("name", NAMES)
def test_no_two_runs_of_an_experiment_are_the_same(name):
    """In `smoke` they may be: there one epoch of every net has to do."""
    for profile in ("laptop", "full"):
        found = plans(name, profile)
        assert len({plan.name for plan in found}) == len(found)


@pytest.mark.parametrize(
    "stated", compare.reports()["stated"], ids=lambda r: f"{r.report}-{r.name}"
)
def test_every_reported_result_has_its_run_with_the_reports_settings(stated):
    found = [
        plan
        for plan in table_of(stated.experiment)
        if (plan.network, plan.dataset) == (stated.network, stated.dataset)
        and plan.label in (stated.label, "our recipe")  # report E states no settings
    ]
    (plan,) = found
    assert (plan.label == "our recipe") == (stated.report == "E")
    if stated.epochs is not None:
        assert plan.config.epochs == stated.epochs
        assert records.plain(plan.config.batch_size) == stated.batch_size or stated.report == "C"
    with torch.device("meta"):
        net = plan.build(3 if plan.dataset == "cifar10" else 1, 10)
    assert sum(p.numel() for p in net.parameters()) == stated.params


def test_settings_the_reports_print():
    a = [plan.config for plan in table_of("report-a") if not plan.label]
    assert len(a) == 7
    for config in a:
        assert (config.optimizer, config.lr, config.weight_decay) == ("adam", 1e-4, 1e-3)
        assert (config.batch_size, config.patience, config.epochs) == (64, 3, 5)
    for plan in table_of("report-b"):
        config = plan.config
        assert (config.optimizer, config.lr, config.batch_size) == ("adam", 1e-3, 128)
        assert (config.weight_decay, config.schedule, config.epochs) == (0, "constant", 5)
        assert config.image_size == (28 if plan.network == "lenet5" else 224)
    assert {plan.config.lr for plan in table_of("report-c")} == {0.001, 0.05}
    for plan in table_of("report-d"):
        config = plan.config
        assert (config.optimizer, config.lr, config.seed) == ("adamw", 1e-3, 42)
        assert (config.batch_size, config.weight_decay) == (128, 0.01)  # AdamW's own decay
        if not plan.label:
            assert config.image_size == (28 if plan.network == "lenet5" else 56)
    for plan in table_of("report-c"):
        assert plan.config.optimizer == "adam" or plan.config.momentum == 0.9
        assert not plan.config.nesterov
    last = table_of("report-c")[5].config
    rates = [last.lr_at(epoch) for epoch in (0, 20, 40)]
    assert rates == pytest.approx([0.05, 0.005, 0.0005])
    assert [last.batch_size_at(epoch) for epoch in (0, 20, 40)] == [32, 128, 256]


@pytest.mark.parametrize("name", ["course", "cifar10"])
def test_an_architecture_has_one_run_and_all_have_one_recipe(name):
    table = table_of(name)
    notebooks = [zoo.notebook_of(plan.network) for plan in table]
    assert notebooks == list(dict.fromkeys(zoo.notebook_of(n) for n in zoo.names()))
    recipe = ("optimizer", "weight_decay", "schedule", "label_smoothing", "augment", "epochs")
    assert len({tuple(getattr(plan.config, key) for key in recipe) for plan in table}) == 1


def test_photographs_are_not_enlarged_and_cost_at_most_40_million_mult_adds():
    for plan in table_of("cifar10"):
        row = zoo.variant(plan.network)
        assert row.input_shape == (3, 32, 32)
        assert plan.config.image_size == 32
        assert row.mult_adds <= 40e6


def test_each_rate_is_the_best_of_those_tried_on_validation_images(monkeypatch):
    """The rate in a notebook's row is the one that its recorded short trainings favour."""
    monkeypatch.setattr(records, "RESULTS", machine.HOME / "results")
    found = [r for r in records.read_all(yours=False)[0] if r.experiment == "cifar10-rates"]
    assert all(record.test_accuracy is None for record in found)
    for each in zoo.architectures().values():
        tried = {r.config["lr"]: r.val_accuracy for r in found if r.network == each.photo}
        assert set(tried) == set(experiments.RATES), each.name
        assert tried[each.rate] == max(tried.values()), each.name


def test_our_recipe_for_report_a_is_the_course_s_in_the_report_s_epochs():
    course = table_of("course-mnist")[0].config
    ours = [plan for plan in table_of("report-a") if plan.label]
    theirs = [plan for plan in table_of("report-a") if not plan.label]
    assert [p.network for p in ours] == [p.network for p in theirs if p.network != "lenet5_bn"]
    for plan in ours:
        assert plan.config.epochs == theirs[0].config.epochs
        for key in ("optimizer", "weight_decay", "schedule", "label_smoothing", "augment"):
            assert getattr(plan.config, key) == getattr(course, key), (plan.name, key)
        assert plan.label == f"our recipe at {plan.config.image_size} x {plan.config.image_size}"


def test_no_digit_is_mirrored():
    for _, plan in ALL:
        assert plan.dataset != "mnist" or "flip" not in plan.config.augment, plan.name


def test_where_time_is_short_a_net_is_narrower_and_a_training_shorter():
    plan = experiments.Plan(
        "resnet18", Config(epochs=9), options={"a": 1}, laptop={"epochs": 2}, narrow={"width": 0.25}
    )
    found = {profile: plan.at(profile, None) for profile in machine.PROFILES}
    assert {profile: p.options for profile, p in found.items()} == {
        "full": {"a": 1}, "laptop": {"a": 1, "width": 0.25}, "smoke": {"a": 1, "width": 0.25},
    }  # fmt: skip
    assert {p: found[p].config.epochs for p in found} == {"full": 9, "laptop": 2, "smoke": 1}


# ------------------------------------------------------------------------------------ performing


def performed(name="report-d", only=("lenet5",), **options):
    said = []
    found = list(perform(name, only=list(only), say=said.append, **options))
    return found, said


def kept() -> list[records.Record]:
    return records.read_all()[0]


def test_performs_records_and_skips():
    found, said = performed(seeds=[1, 2])
    assert len(found) == 4
    assert sorted((r.label, r.seed) for r in kept()) == [
        ("", 1), ("", 2), ("at 54 x 54", 1), ("at 54 x 54", 2),
    ]  # fmt: skip
    assert {(r.experiment, r.profile) for r in kept()} == {("report-d", "smoke")}
    again, said = performed(seeds=[1, 2, 3])
    assert [run.config.seed for run in again] == [3, 3]
    assert sum(line.startswith("recorded already") for line in said) == 4


@pytest.fixture
def two_rates(monkeypatch):
    """An experiment of two short runs on the digits, of two epochs in the laptop profile."""
    config = Config(epochs=2, train_images=64, image_size=28)
    table = tuple(
        experiments.Plan("lenet5", replace(config, lr=lr), "digits", label=f"lr {lr:g}")
        for lr in (0.1, 0.01)
    )
    monkeypatch.setitem(experiments.REPORTS, "two-rates", table)


@pytest.mark.usefixtures("two_rates")
def test_a_run_on_other_images_of_this_name_does_not_count():
    """On a sample, where the whole set is at hand now."""
    assert len(list(perform("two-rates"))) == 2
    path, _ = sorted((machine.runs_folder() / "records").glob("*.json"))
    record = records.read(path)
    path.unlink()
    records.save(replace(record, source="a sample"))
    (run,) = perform("two-rates")
    assert run.config.lr == record.config["lr"]
    assert len(kept()) == 3


def test_what_makes_a_run_another_one():
    performed(seeds=[1])
    record = next(r for r in kept() if not r.label)
    (plan, _) = plans("report-d", "smoke", [1], ["lenet5"])
    assert experiments.is_of(record, plan, "report-d", "smoke")
    assert not experiments.is_of(record, plan, "report-d", "laptop")
    assert not experiments.is_of(record, plan, "report-b", "smoke")
    for changed in (
        replace(plan, options={"image_size": 54}),
        replace(plan, options={"activation": torch.nn.ReLU}),  # of equal size
        replace(plan, config=replace(plan.config, lr=0.1)),
        replace(plan, label="at night"),
    ):
        assert not experiments.is_of(record, changed, "report-d", "smoke")
    for other in (replace(record, digest="x"), replace(record, begun_with="1a2b3c4d")):
        assert not experiments.is_of(other, plan, "report-d", "smoke")


def test_a_run_without_test_images_says_nothing_of_them():
    _, said = performed("report-a-lr", seeds=[1])
    assert len(kept()) == 3
    assert all(record.test_accuracy is None for record in kept())
    assert sum("judged by validation alone" in line for line in said) == 3
    assert not list((machine.runs_folder() / "checkpoints").glob("*"))


def test_smoke_runs_are_not_published(capsys):
    assert main(["experiment", "report-d", "--only", "lenet5", "--seeds", "5", "--save"]) == 0
    out = capsys.readouterr().out
    assert "[2/2] lenet5 (at 54 x 54), seed 5\n" in out
    assert out.count("it is not a result") == 2
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
    assert next(steps).model.options == {"image_size": 54}
    with pytest.raises(RuntimeError, match=r"1 of 2 runs failed:\nlenet5, seed 42: LookupError"):
        next(steps)
    monkeypatch.setattr(zoo, "build", build)
    found, _ = performed()
    assert [run.model.options for run in found] == [{}]  # the other one is recorded


def test_a_run_stopped_before_it_is_judged_goes_on_there(monkeypatch, capsys):
    class Stop(BaseException):
        pass

    def stop(*_, **__):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(records, "judged", stop)
        with pytest.raises(Stop):
            performed()
    folder: Path = machine.runs_folder() / "checkpoints"
    assert len(list(folder.glob("*.pt"))) == 1
    performed()
    assert "Going on after epoch 1" in capsys.readouterr().out
    assert not list(folder.glob("*"))


@pytest.mark.usefixtures("two_rates")
def test_ctrl_c_ends_all_runs_and_the_next_call_goes_on(monkeypatch, capsys):
    monkeypatch.setenv("CNN_PROFILE", "laptop")
    whole, said = train.train_epoch, []

    def stop(training):
        if training.run.epochs:
            raise KeyboardInterrupt
        return whole(training)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            list(perform("two-rates", say=said.append))
    assert said == ["[1/2] lenet5 (lr 0.1), seed 0"]
    assert not kept()
    assert len(list(perform("two-rates", say=said.append))) == 2
    assert capsys.readouterr().out.count("Going on after epoch 1") == 1


def test_a_seed_gives_the_same_result_whatever_ran_before():
    (first, _), _ = performed(seeds=[3])
    torch.manual_seed(1)
    data.load("digits")
    for path in (machine.runs_folder() / "records").glob("*.json"):
        path.unlink()
    (second, _), _ = performed(seeds=[3])
    close = 0 if machine.device().type == "cpu" else 1e-5  # a GPU adds up in no fixed order
    assert second.batch_losses == pytest.approx(first.batch_losses, rel=close, abs=0)


def test_each_seed_begins_with_its_own_weights(monkeypatch):
    begun = []

    def note(net, *_, **__):
        begun.append(net.fc3.weight.detach().clone())
        raise LookupError("seen")

    monkeypatch.setattr("common.perform.fit", note)
    digits = data.load("digits")
    for seed in (1, 1, 2):
        with pytest.raises(LookupError, match="seen"):
            train_and_judge(lambda: zoo.build("lenet5"), digits, Config(seed=seed), "none")
    assert torch.equal(begun[0], begun[1])
    assert not torch.allclose(begun[1], begun[2])


def test_a_loss_that_is_no_number_is_a_failure(monkeypatch):
    check = run.Training.check_finite

    def broken(training, losses, *where):
        losses[-1] = losses[-1] * float("nan")
        check(training, losses, *where)

    monkeypatch.setattr(run.Training, "check_finite", broken)
    with pytest.raises(RuntimeError, match=r"2 of 2 runs failed:\nlenet5.*no finite number"):
        performed()
    assert not kept()


def test_the_weights_are_kept_before_the_record_says_that_all_is_done(monkeypatch):
    """Where they cannot be written, the same call again goes on to its end."""

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records, "keep_weights", full)
        with pytest.raises(RuntimeError, match="No space left"):
            performed()
    assert not kept()
    performed()
    assert len(kept()) == 2
    assert len(list((machine.runs_folder() / "weights").glob("*.safetensors"))) == 2


def test_the_list(capsys):
    assert main(["experiment", "list"]) == 0
    listed = capsys.readouterr().out
    assert [re.split(r" +", line)[0] for line in listed.splitlines()] == list(NAMES)


def test_seeds_and_profiles():
    found = plans("report-c", "laptop", [0, 1])
    assert len(found) == 2 * len(table_of("report-c"))
    assert len(plans("report-d", "smoke", [1, 1])) == len(table_of("report-d"))
    assert {plan.config.train_images for plan in found} == {4_000}
    assert plans("report-c", "full")[3].config.augment == ("flip",)
