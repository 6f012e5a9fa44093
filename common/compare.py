"""The comparison: one pandas table of all runs at hand beside the reports' figures."""

import functools
import math

import pandas as pd

from common import probe, records, reports, sources, zoo
from common.machine import unknown

# Of each notebook's architecture, the year in which it was first published.
YEARS = {
    "lenet": 1998,
    "alexnet": 2012,
    "nin": 2013,
    "vgg": 2014,
    "googlenet": 2014,
    "resnet": 2015,
    "densenet": 2016,
    "mobilenet": 2017,
}
GROUP = ["model", "params", "dataset", "source", "experiment", "profile", "image_size"]
GROUP += ["train_images", "origin"]
COLUMNS = [
    *GROUP,
    "epochs",
    "mult_adds",
    "accuracy",
    "std",
    "n",
    "report",
    "train_seconds",
    "seconds_an_epoch",
]
COLUMNS += ["images_per_s", "peak_MB", "machine", "precision"]
BOARD = ["origin", "model", "year", "params", "mult_adds", "depth", "field", "image_size"]
BOARD += ["dataset", "source", "experiment", "profile", "train_images", "epochs", "accuracy"]
BOARD += ["std", "n", "seconds_an_epoch", "images_per_s", "peak_MB", "machine", "precision"]


def table() -> tuple[pd.DataFrame, list[str]]:
    """(table, problems): a row for each group of runs that differ only in their seed, best first.

    Accuracy is in per cent: the mean over seeds, its standard deviation (NaN for one run) and n.
    Runs of different data, sources, sizes or settings are never put into one mean. `report` is the
    accuracy that a lab report states for this very experiment. `problems` says which record files
    were left out, and why.
    """
    runs, problems = records.read_all()
    return grouped(runs), problems


def grouped(runs: pd.DataFrame) -> pd.DataFrame:
    """The table for records as `records.read_all` returns them."""
    if runs.empty:
        return pd.DataFrame(columns=COLUMNS)
    # Runs belong together when their whole configurations agree, the seed apart.
    settings = [repr(sorted((config | {"seed": None}).items())) for config in runs["config"]]
    frame = (
        runs.assign(settings=settings)
        .groupby([*GROUP, "settings"], sort=False)
        .agg(
            epochs=("epochs", "mean"),  # early stopping may end runs of one group at different ones
            mult_adds=("mult_adds", "first"),
            accuracy=("test_accuracy", lambda shares: 100 * shares.mean()),
            std=("test_accuracy", lambda shares: 100 * shares.std()),
            n=("seed", "size"),
            train_seconds=("train_seconds", "mean"),
            images_per_s=("images_per_s", "mean"),
            peak_MB=("peak_memory_bytes", lambda sizes: sizes.astype(float).max() / 1e6),
            machine=("device", "first"),
            precision=("precision", "first"),
            stand_in=("stand_in", "first"),
        )
        .reset_index()
    )
    frame["seconds_an_epoch"] = frame["train_seconds"] / frame["epochs"]
    frame["report"] = [reported(row) for row in frame.itertuples()]
    order = frame.sort_values(["dataset", "accuracy"], ascending=[True, False])
    return order[COLUMNS].reset_index(drop=True)


def leaderboard(frame: pd.DataFrame, by: str = "accuracy") -> pd.DataFrame:
    """Rows of `grouped` and the reports' figures in one table, sorted by the column `by`.

    `origin` tells them apart. `year`, `depth` (layers with weights on the longest way) and `field`
    (receptive field of the last layer that does not see all, pixels) are the architecture's own, at
    the image size it was made for. Raises ValueError for a column that is not there.
    """
    if by not in BOARD:
        raise ValueError(unknown("column", by, tuple(BOARD)))
    stated = pd.DataFrame(
        [
            {
                "origin": f"report {result.report}",
                "model": result.model,
                "dataset": result.dataset,
                "experiment": result.experiment,
                "params": result.params,
                "mult_adds": result.mult_adds and result.mult_adds / result.batch_size,
                "epochs": result.epochs,
                "accuracy": result.accuracy,
                "n": 1,
                "seconds_an_epoch": result.seconds and result.seconds / result.epochs,
                "machine": result.machine,
            }
            for result in reports.REPORTED
        ]
    )
    board = pd.concat([frame, stated], ignore_index=True) if len(frame) else stated
    about = pd.DataFrame([architecture(name) for name in board["model"]])
    board = board.assign(**about)
    descending = by in ("accuracy", "images_per_s", "n")
    return board.reindex(columns=BOARD).sort_values(by, ascending=not descending, kind="stable")


def beside_reports(frame: pd.DataFrame) -> pd.DataFrame:
    """Every figure of the reports, and what rows of `grouped` have to set beside it.

    `stated` is the report's accuracy, `ours` that of the same run here, in `profile` and of
    `origin`; both in per cent. `best` is the best accuracy of the same network on the same `source`
    of images by any recipe, at any size, and `by` says which run that is.
    """
    stated = pd.DataFrame(reports.REPORTED)[["report", "model", "dataset", "accuracy"]]
    stated["experiment"] = [result.experiment for result in reports.REPORTED]
    stated["network"] = stated["model"].map(network)
    best = frame.sort_values("accuracy", ascending=False).rename(columns={"accuracy": "best"})
    best["network"] = best["model"].map(network)
    named = best["experiment"] + ", " + best["model"]
    best["by"] = named + ", " + best["profile"] + ", " + best["origin"]
    one = ["network", "dataset", "source"]
    same = ["model", "dataset", "experiment", "source"]
    ours = frame[[*same, "profile", "origin", "accuracy"]].rename(columns={"accuracy": "ours"})
    both = stated.merge(best.drop_duplicates(one)[[*one, "best", "by"]], how="left", on=one[:2])
    both = both.merge(ours, how="left", on=same).rename(columns={"accuracy": "stated"})
    columns = ["report", "model", "dataset", "stated", "source", "ours", "profile", "origin"]
    return both[[*columns, "best", "by"]]


def classes_beside_report_e(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by class of CIFAR-10 (per cent): what report E states, under it our best run.

    `runs` are records as `records.read_all` returns them; each source of images has its own row.
    """
    cifar = runs[runs["dataset"] == "cifar10"].sort_values("test_accuracy", ascending=False)
    classes, rows = sources.KNOWN["cifar10"].classes, {}
    for model, stated in reports.CLASS_ACCURACY.items():
        rows[f"{model}, report E"] = dict(zip(classes, stated, strict=True))
        for run in cifar[cifar["model"] == model].drop_duplicates("source").itertuples():
            shares = pd.Series(run.class_accuracy)  # by name: a record's order is its own
            rows[f"{model}, {run.source}, {run.profile}, {run.origin}"] = 100 * shares
    return pd.DataFrame(rows).T.reindex(columns=classes)


def network(model: str) -> str:
    """A record's model without what its experiment varies: "lenet5 (lr 0.1)" is a lenet5."""
    return model.split(" (")[0]


@functools.cache
def architecture(model: str) -> dict:
    """Year, depth and receptive field of a record's model, empty where the zoo does not have it."""
    name = network(model)
    if name not in zoo.names():
        return {"year": None, "depth": None, "field": None}
    row, notebook = zoo.variants()[name]
    net, shape = zoo.build_on_meta(name), (1, *row.input_shape)
    return {
        "year": YEARS[notebook[3:].removesuffix(".ipynb")],
        "depth": probe.depth(net, shape),
        "field": probe.receptive_field(net, shape),
    }


def hardest(runs: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """The test images that most networks take for something else, hardest first.

    `runs` are records of one data set, as `records.read_all` returns them; the best run of each
    model counts. Columns: `image` (its number in the test set), `wrong` (networks that err), `of`
    (networks asked) and `taken_for` (their most frequent answer, a class number).
    """
    known = runs[runs["errors"].notna()].sort_values("test_accuracy", ascending=False)
    answers = [
        (int(image), answer)
        for errors in known.drop_duplicates("model")["errors"]
        for image, answer in errors.items()
    ]
    given = pd.DataFrame(answers, columns=["image", "answer"]).groupby("image")["answer"]
    found = pd.DataFrame({"wrong": given.size(), "taken_for": given.agg(lambda a: a.mode()[0])})
    found["of"] = known["model"].nunique()
    return found.sort_values("wrong", ascending=False, kind="stable").head(most).reset_index()


def distinct(labels: list[str]) -> list[str]:
    """The labels, with a number behind each that has come before."""
    return [
        label if label not in labels[:i] else f"{label} ({labels[: i + 1].count(label)})"
        for i, label in enumerate(labels)
    ]


def reported(row) -> float:
    """The accuracy (per cent) a report states for this model, data set and experiment, or NaN."""
    for result in reports.of(row.model, row.dataset):
        if row.experiment == result.experiment and not row.stand_in:
            return result.accuracy
    return math.nan


def at_a_glance(profile: str | None = None) -> pd.DataFrame:
    """The best recorded run of each `network` on real images and data set, in a profile or any."""
    runs, _ = records.read_all(yours=False)
    runs = runs[~runs["stand_in"].astype(bool)]
    if profile:
        runs = runs[runs["profile"] == profile]
    frame = grouped(runs)
    frame["network"] = frame["model"].map(network)
    return frame.drop_duplicates(["network", "dataset", "source"]).reset_index(drop=True)


def text(frame: pd.DataFrame) -> str:
    """Rows of `grouped` for a terminal: what was run, the accuracies, the time."""
    columns = ["model", "dataset", "source", "experiment", "profile", "origin", "image_size"]
    columns += ["train_images", "epochs", "params", "accuracy", "std", "n", "report"]
    return frame[[*columns, "seconds_an_epoch"]].round(2).to_string(index=False, na_rep="-")


def markdown(frame: pd.DataFrame) -> str:
    """Rows of `grouped` as a Markdown table."""
    lines = [
        "| model | data set | source | image | training images | epochs | parameters | mult-adds | "
        "test accuracy (%) | s an epoch | machine |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in frame.itertuples():
        spread = f" ± {row.std:.2f} (n = {row.n})" if row.n > 1 else ""
        lines.append(
            f"| {row.model} | {row.dataset} | {row.source} | {row.image_size} | "
            f"{row.train_images:,} | {row.epochs:g} | {row.params:,} | "
            f"{row.mult_adds / 1e6:,.1f} M | {row.accuracy:.2f}{spread} | "
            f"{row.seconds_an_epoch:.1f} | {row.machine} |"
        )
    return "\n".join(lines) + "\n"


def pareto(frame: pd.DataFrame, cost: str) -> pd.Series:
    """Which rows are on the Pareto front: no other is as accurate for at most this `cost`."""
    return pd.Series(
        [
            not (
                (frame[cost] <= row[cost])
                & (frame["accuracy"] >= row["accuracy"])
                & ((frame[cost] < row[cost]) | (frame["accuracy"] > row["accuracy"]))
            ).any()
            for _, row in frame.iterrows()
        ],
        index=frame.index,
    )
