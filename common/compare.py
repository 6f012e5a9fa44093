"""The comparison: one pandas table of all runs at hand beside the reports' figures."""

import pandas as pd

from common import records, reports

GROUP = ["model", "dataset", "source", "experiment", "profile", "image_size"]
GROUP += ["train_images", "epochs", "origin"]


def table() -> tuple[pd.DataFrame, list[str]]:
    """(table, problems): a row for each group of runs that differ only in their seed, best first.

    Accuracy is in per cent: the mean over seeds, its standard deviation (NaN for one run) and n.
    Runs of different data, sources, sizes or settings are never put into one mean. `report` is the
    accuracy a lab report states for the same model, data set and number of epochs on the real
    data. `problems` says which record files were left out, and why.
    """
    runs, problems = records.read_all()
    if runs.empty:
        return pd.DataFrame(), problems
    runs["settings"] = [repr(sorted((c | {"seed": None}).items())) for c in runs["config"]]
    grouped = runs.groupby([*GROUP, "settings"], sort=False)
    frame = grouped.agg(
        params=("params", "first"),
        accuracy=("test_accuracy", "mean"),
        std=("test_accuracy", "std"),
        n=("seed", "size"),
        seconds_an_epoch=("train_seconds", "mean"),
        images_per_s=("images_per_s", "mean"),
        peak_MB=("peak_memory_bytes", "max"),
        machine=("device", "first"),
        precision=("precision", "first"),
        stand_in=("stand_in", "first"),
    ).reset_index()
    frame["accuracy"] *= 100
    frame["std"] *= 100
    frame["seconds_an_epoch"] /= frame["epochs"]
    frame["peak_MB"] = frame["peak_MB"].astype(float) / 1e6
    frame["report"] = [
        max((r.accuracy for r in reports.of(row.model, row.dataset)), default=float("nan"))
        if not row.stand_in
        else float("nan")
        for row in frame.itertuples()
    ]
    columns = ["model", "dataset", "source", "experiment", "origin", "profile", "image_size"]
    columns += ["train_images", "epochs", "params", "accuracy", "std", "n", "report"]
    columns += ["seconds_an_epoch", "images_per_s", "peak_MB", "machine", "precision"]
    order = frame.sort_values(["dataset", "accuracy"], ascending=[True, False])
    return order[columns].round(2).reset_index(drop=True), problems
