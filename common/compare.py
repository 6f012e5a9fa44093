"""The comparison: one pandas table of all runs at hand beside the reports' figures."""

import math

import pandas as pd

from common import records, reports

GROUP = ["model", "params", "dataset", "source", "experiment", "profile", "image_size"]
GROUP += ["train_images", "epochs", "origin"]
COLUMNS = [*GROUP, "mult_adds", "accuracy", "std", "n", "report", "seconds_an_epoch"]
COLUMNS += ["images_per_s", "peak_MB", "machine", "precision"]


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


def distinct(labels: list[str]) -> list[str]:
    """The labels, with a number behind each that has come before."""
    return [
        label if label not in labels[:i] else f"{label} ({labels[: i + 1].count(label)})"
        for i, label in enumerate(labels)
    ]


def reported(row) -> float:
    """The accuracy (per cent) a report states for this model, data set and experiment, or NaN."""
    for result in reports.of(row.model, row.dataset):
        if row.experiment == f"report-{result.report.lower()}" and not row.stand_in:
            return result.accuracy
    return math.nan


def at_a_glance() -> pd.DataFrame:
    """The README's table: the best recorded run of each model on real images, by data set."""
    runs, _ = records.read_all(yours=False)
    frame = grouped(runs[~runs["stand_in"].astype(bool)])
    return frame.drop_duplicates(["model", "dataset"]).reset_index(drop=True)


def text(frame: pd.DataFrame) -> str:
    """Rows of `grouped` for a terminal: what was run, the accuracies, the time."""
    columns = ["model", "dataset", "source", "experiment", "profile", "origin", "image_size"]
    columns += ["train_images", "epochs", "params", "accuracy", "std", "n", "report"]
    return frame[[*columns, "seconds_an_epoch"]].round(2).to_string(index=False, na_rep="-")


def markdown(frame: pd.DataFrame) -> str:
    """Rows of `grouped` as a Markdown table."""
    lines = [
        "| model | data set | image | training images | epochs | parameters | mult-adds | "
        "test accuracy (%) | s an epoch | machine |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in frame.itertuples():
        spread = f" ± {row.std:.2f} (n = {row.n})" if row.n > 1 else ""
        lines.append(
            f"| {row.model} | {row.dataset} | {row.image_size} | {row.train_images:,} | "
            f"{row.epochs} | {row.params:,} | {row.mult_adds / 1e6:,.1f} M | "
            f"{row.accuracy:.2f}{spread} | {row.seconds_an_epoch:.1f} | {row.machine} |"
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
