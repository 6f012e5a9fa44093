"""The tables in the texts of README, results/ and docs/, written from the records."""

import html
import math

import pandas as pd

from common import compare, experiments, machine, records
from common.compare import EPOCH_ON
from tools import scaling

# What stands between such marks in a text is written here.
MARKS = "<!-- {}: written by `make figures` -->\n", "<!-- end of {} -->"
TEXTS = {"README.md": "board", "results/README.md": "results", "docs/scaling.md": "scaling"}


def documents() -> dict[str, str]:
    """The texts that hold tables, by their path, with each table written anew."""
    runs, _ = records.read_all(yours=False)
    tables = {
        "board": board(compare.leaderboard(runs)),
        "results": groups(compare.grouped(runs)) + "\n" + experiments_table(runs),
        "scaling": scaling.scaling_markdown(records.read_rows("scaling")),
    }
    written = {}
    for path, name in TEXTS.items():
        text = (machine.HOME / path).read_text(encoding="utf-8")
        begin, end = (mark.format(name) for mark in MARKS)
        before, rest = text.split(begin)
        written[path] = f"{before}{begin}\n{tables[name]}\n{end}{rest.split(end)[1]}"
    return written


def experiments_table(runs: list[records.Record]) -> str:
    """A Markdown table of the experiments: how many of their runs are recorded."""
    lines = [
        "| experiment | runs a seed | recorded in `laptop` | recorded in `full` |",
        "|---|---|---|---|",
    ]
    for name in experiments.experiment_names():
        cells = []
        for profile in ("laptop", "full"):
            seeds = {run.seed for run in runs if run.experiment == name}
            done = [
                any(experiments.is_of(run, plan, name, profile) for run in runs)
                for seed in seeds
                for plan in experiments.plans(name, profile, [seed])
            ]
            cells.append(f"{sum(done)} of {len(done)}" if any(done) else "not yet run")
        lines.append(f"| `{name}` | {len(experiments.table_of(name))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table_row(*cells: object) -> str:
    """A row of a Markdown table; what stands in a cell makes no HTML and no further column."""
    told = (html.escape(str(cell), quote=False).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(told)} |"


def groups(frame: pd.DataFrame) -> str:
    """Rows of `grouped` as a Markdown table."""
    heads = ["network", "experiment", "data set", "source", "image", "training images", "epochs"]
    heads += ["parameters", "mult-adds", "test accuracy (%)", "s an epoch", "machine"]
    lines = [table_row(*heads), "|---" * len(heads) + "|"]
    for row in frame.itertuples():
        spread = f" ± {row.spread:.2f} (n = {row.n})" if row.n > 1 else ""
        accuracy = "validation only" if math.isnan(row.accuracy) else f"{row.accuracy:.2f}{spread}"
        cells = [row.name, row.experiment, row.dataset, row.source, row.image_size]
        cells += [f"{row.train_images:,}", f"{row.epochs:g}", f"{row.params:,}"]
        cells += [f"{row.mult_adds / 1e6:,.1f} M", accuracy]
        lines.append(table_row(*cells, f"{row.seconds:.1f}", f"{row.machine}, {row.precision}"))
    return "\n".join(lines) + "\n"


def board(frame: pd.DataFrame) -> str:
    """Rows of `leaderboard` as a Markdown table."""
    timed = [name for name in frame if name.startswith(EPOCH_ON)]
    heads = ["network", "year", "depth", "parameters", "mult-adds", "test accuracy (%)", *timed]
    lines = [table_row(*heads), "|---" * len(heads) + "|"]
    for row, seconds in zip(frame.itertuples(), frame[timed].values.tolist(), strict=True):
        spread = f", spread {row.spread:.2f} (n = {row.n})" if row.n > 1 else " (n = 1)"
        cells = [f"{row.architecture} (`{row.network}`)", row.year, row.depth, f"{row.params:,}"]
        cells += [f"{row.mult_adds / 1e6:,.1f} M", f"{row.accuracy:.2f} ± {row.error:.2f}{spread}"]
        lines.append(table_row(*cells, *("–" if math.isnan(s) else f"{s:.1f}" for s in seconds)))
    return "\n".join(lines) + "\n"
