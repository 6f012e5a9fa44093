"""The comparison: pandas tables of all runs at hand, of one experiment, and beside the reports."""

import functools
import json
import math
import statistics
from typing import NamedTuple

import pandas as pd

from common import experiments, probe, records, sources, zoo
from common.records import Record

EPOCH_ON = "s an epoch, "  # begins the names of the columns of `alone`

# Runs belong together when all of this agrees: they differ in their seed alone.
GROUP = ["network", "label", "options", "digest", "begun_with", "dataset", "source", "experiment"]
GROUP += ["profile", "image_size", "train_images", "params", "machine", "precision", "settings"]
GROUP += ["images", "origin"]


class Stated(NamedTuple):
    """One result of one report: `accuracy` on test images in per cent, `seconds` of training on
    `machine`, `mult_adds` of a whole batch by torchinfo. None where the report does not say."""

    report: str
    network: str
    label: str
    dataset: str
    params: int
    accuracy: float | None
    seconds: float | None
    epochs: int | None
    machine: str | None
    mult_adds: float | None
    batch_size: int | list

    @property
    def experiment(self) -> str:
        """The experiment that runs it."""
        return f"report-{self.report.lower()}"

    @property
    def name(self) -> str:
        """The network and its label, for people."""
        return f"{self.network} ({self.label})" if self.label else self.network


@functools.cache
def reports() -> dict:
    """What the five lab reports state, from results/reports.json.

    `stated`: a `Stated` row a result; `class_accuracy`: report E's test accuracy by class of
    CIFAR-10 (per cent); `paper_params`: parameters at the papers' own setting, 3 channels and 1,000
    classes; `layer_params` and `layer_shapes`: [layer, count or (C, H, W)] where one prints it.
    """
    found = json.loads((records.RESULTS / "reports.json").read_text(encoding="utf-8"))
    return found | {"stated": tuple(Stated(**row) for row in found["stated"])}


# --------------------------------------------------------------------------------------- groups


def grouped(runs: list[Record]) -> pd.DataFrame:
    """A row for each group of runs that differ only in their seed, best validation first.

    Accuracies are in per cent: means over seeds. `spread` is the standard deviation over seeds (NaN
    for one), `error` the standard error that the number of test images leaves, `n` the seeds.
    Runs of different structure, data, settings, machine, number format or origin are never put into
    one mean. `runs` judged by validation alone have no `accuracy`.
    """
    rows = [
        vars(run)
        | {
            "options": json.dumps(run.options, sort_keys=True),
            "image_size": str(run.image_size),
            "machine": run.device,
            "settings": json.dumps(run.config | {"seed": None}, sort_keys=True),
            "name": run.name,
            "epochs": run.epochs,
            "mult_adds": math.nan if run.mult_adds is None else run.mult_adds,
            "accuracy": math.nan if run.test_accuracy is None else 100 * run.test_accuracy,
            "validation": 100 * run.val_accuracy,
            "seconds": statistics.median(row["seconds"] for row in run.history["epochs"]),
            "peak_MB": (run.peak_memory_bytes or math.nan) / 1e6,
            "judged_on": run.judged_on,
        }
        for run in runs
    ]
    values = ["epochs", "accuracy", "validation", "seconds", "images_per_s", "peak_MB"]
    frame = (
        pd.DataFrame(rows, columns=[*GROUP, "name", "mult_adds", "judged_on", *values])
        .astype(dict.fromkeys(values, float))
        .groupby(GROUP, sort=False)
        .agg(
            name=("name", "first"),
            epochs=("epochs", "mean"),  # early stopping may end runs of one group at different ones
            mult_adds=("mult_adds", "first"),
            accuracy=("accuracy", "mean"),
            spread=("accuracy", "std"),
            n=("accuracy", "size"),
            validation=("validation", "mean"),
            seconds=("seconds", "median"),  # of training, an epoch: a disturbed one tells nothing
            images_per_s=("images_per_s", "mean"),
            peak_MB=("peak_MB", "min"),
            judged_on=("judged_on", "min"),
        )
        .reset_index()
    )
    share = frame["accuracy"] / 100
    frame["error"] = 100 * (share * (1 - share) / frame["judged_on"]) ** 0.5
    return frame.sort_values(["dataset", "validation"], ascending=[True, False], ignore_index=True)


# ------------------------------------------------------------------------------- one fair table


def leaderboard(runs: list[Record], experiment: str = "cifar10") -> pd.DataFrame:
    """A row for each network of one experiment on one data set, most accurate first.

    Columns: `network`, its `architecture`, `year`, `depth` (layers with weights on the longest
    way), `params`, `mult_adds`, test `accuracy` with `error` and `spread` (per cent), `n` seeds,
    `seconds` of the median epoch, on which `machine` in which `precision`, `peak_MB`, receptive
    `field` (pixels), `origin`, `source`, and the columns of `alone`.
    """
    frame = grouped([run for run in runs if run.experiment == experiment])
    frame = frame[frame["accuracy"].notna()]
    about = pd.DataFrame([facts(name) for name in frame["network"]], index=frame.index)
    columns = ["architecture", "network", "year", "depth", "params", "mult_adds", "accuracy"]
    columns += ["error", "spread", "n", "seconds", "machine", "precision", "peak_MB", "field"]
    columns += ["origin", "source"]
    board = frame.assign(**about).reindex(columns=columns).join(alone(), on="network")
    return board.sort_values("accuracy", ascending=False, ignore_index=True)


def alone() -> pd.DataFrame:
    """Seconds of an epoch of each network when nothing else trains: a column a machine.

    Measured by `python -m tools.bench --photos-alone --save`. A row of a net that was built
    otherwise then is left out.
    """
    columns: dict[str, dict[str, float]] = {}
    plans = {plan.network: plan for plan in experiments.table_of("cifar10")}
    for row in records.read_rows("photos"):
        plan = plans.get(row["name"])
        if plan and row.get("digest") == experiments.structure_of(plan):
            column = f"{EPOCH_ON}{row['device']}, {row['precision']}"
            columns.setdefault(column, {})[row["name"]] = row["epoch_s"]
    return pd.DataFrame(columns)


@functools.cache
def facts(network: str) -> dict:
    """Architecture, year, depth and receptive field of a variant; empty where it is not known."""
    notebook = zoo.index()[0].get(network)
    about = zoo.architectures().get(notebook.stem[3:]) if notebook else None
    if about is None:
        return {"architecture": network, "year": None, "depth": None, "field": None}
    row, net = zoo.variant(network), zoo.build_on_meta(network)
    shape = (1, *row.input_shape)
    return {
        "architecture": about.name,
        "year": about.year,
        "depth": probe.depth(net, shape),
        "field": probe.receptive_field(net, shape),
    }


def mcnemar(a: Record, b: Record) -> float:
    """The probability (0 to 1) of a difference as large as that of two nets on the same images.

    McNemar's exact test: of the images that only one of them gets wrong, each net should have half.
    Source: McNemar 1947, Psychometrika 12. Raises ValueError where a record has no list of errors.
    """
    from scipy.stats import binomtest  # half a second, which other tables need not wait for

    if a.errors is None or b.errors is None:
        raise ValueError(f"{a.name} and {b.name}: one of them does not say which images it missed.")
    only_a, only_b = len(a.errors.keys() - b.errors.keys()), len(b.errors.keys() - a.errors.keys())
    n = only_a + only_b
    return float(binomtest(only_a, n).pvalue) if n else 1.0


def hardest(runs: list[Record], most: int = 12) -> pd.DataFrame:
    """The test images that most networks take for something else, hardest first.

    The run of each network with the best validation accuracy counts. Columns: `image` (its number
    in the test set), `wrong` (networks that err), `of` (networks asked), `taken_for` (their most
    frequent answer, a class number); `attrs["tied"]` says how many images are as hard as the last.
    """
    known = sorted((r for r in runs if r.errors is not None), key=lambda r: -r.val_accuracy)
    one_each = {run.network: run for run in reversed(known)}
    answers = [
        (int(image), answer) for run in one_each.values() for image, answer in run.errors.items()
    ]
    given = pd.DataFrame(answers, columns=["image", "answer"]).groupby("image")["answer"]
    found = pd.DataFrame({"wrong": given.size(), "taken_for": given.agg(lambda a: a.mode()[0])})
    found["of"] = len(one_each)
    found = found.sample(frac=1, random_state=0)  # of equally hard ones, not the first by number
    found = found.sort_values("wrong", ascending=False, kind="stable").reset_index()
    shown = found.head(most)
    shown.attrs["tied"] = int((found["wrong"] == shown["wrong"].min()).sum()) if len(shown) else 0
    return shown


def pareto(frame: pd.DataFrame, cost: str) -> pd.Series:
    """Which rows are on the Pareto front: no other is as accurate for at most this `cost`."""
    costs, accuracies = frame[cost].to_numpy(), frame["accuracy"].to_numpy()
    as_good = (costs <= costs[:, None]) & (accuracies >= accuracies[:, None])
    better = as_good & ((costs < costs[:, None]) | (accuracies > accuracies[:, None]))
    return pd.Series(~better.any(axis=1), index=frame.index)


# ---------------------------------------------------------------------------- beside the reports


def beside_reports(runs: list[Record]) -> pd.DataFrame:
    """Every accuracy that a report states, and what our runs have to set beside it (per cent).

    `reproduced` is that of a run with the report's own settings, structure and data set; NaN where
    none is recorded. `ours` is the run of the same network on the same data set with the best
    validation accuracy by any recipe: of those on all training images, and of those with the
    report's label, or none that the report gives to another row, where there are such; `by` says
    which it is.
    """
    judged = [run for run in runs if run.test_accuracy is not None and run.whole]
    rows = []
    for stated in reports()["stated"]:
        same = [r for r in judged if reproduces(r, stated)]
        other = [r for r in judged if (r.network, r.dataset) == (stated.network, stated.dataset)]
        other = [r for r in other if not r.limited] or other
        taken = {row.label for row in reports()["stated"] if row.network == stated.network} - {""}
        wanted = {stated.label} if stated.label else {r.label for r in other} - taken
        other = [r for r in other if r.label in wanted] or other
        top = max(other, key=lambda r: r.val_accuracy, default=None)
        own = max(same, key=lambda r: r.val_accuracy, default=None)
        rows.append(
            {
                "report": stated.report,
                "network": stated.name,
                "dataset": stated.dataset,
                "stated": stated.accuracy,
                "reproduced": own and 100 * own.test_accuracy,
                "ours": top and 100 * top.test_accuracy,
                "by": top and f"{top.experiment}, {top.profile}, {top.name}",
                "source": top and top.source,
            }
        )
    return pd.DataFrame(rows).astype({"reproduced": float, "ours": float})


def reproduces(record: Record, stated: Stated) -> bool:
    """Whether a record is of the very run that a report states: never by a shorter budget."""
    seed = record.config["seed"]
    for plan in experiments.plans(stated.experiment, "full", [seed]):
        if (plan.network, plan.label) == (stated.network, stated.label):
            return experiments.is_of(record, plan, stated.experiment, "full")
    return False


def classes_beside_report_e(runs: list[Record]) -> pd.DataFrame:
    """Accuracy by class of CIFAR-10 (per cent): what report E states, under it our best run.

    Only runs on all training images count.
    """
    cifar = [r for r in runs if r.dataset == "cifar10" and r.test_accuracy is not None]
    cifar = [r for r in cifar if r.whole and not r.limited]
    classes, rows = sources.KNOWN["cifar10"].classes, {}
    for network, stated in reports()["class_accuracy"].items():
        rows[f"{network}, report E"] = dict(zip(classes, stated, strict=True))
        own = [r for r in cifar if r.network == network]
        if own:
            top = max(own, key=lambda r: r.val_accuracy)
            shares = pd.Series(top.class_accuracy)  # by name: a record's order is its own
            rows[f"{network}, {top.source}, {top.profile}, {top.origin}"] = 100 * shares
    return pd.DataFrame(rows).T.reindex(columns=classes)


# ---------------------------------------------------------------------------------------- as text


def text(frame: pd.DataFrame) -> str:
    """Rows of `grouped` for a terminal: what was run, the accuracies, the time."""
    columns = ["name", "dataset", "source", "experiment", "profile", "origin", "image_size"]
    columns += ["train_images", "epochs", "params", "validation", "accuracy", "spread", "n"]
    return frame[[*columns, "seconds"]].round(2).to_string(index=False, na_rep="-")
