"""Draws figures/ and writes the tables of README, results/ and docs/: the same bytes from the same
models and records."""

import io
import sys

import matplotlib
import pandas as pd
import seaborn as sns

from common import compare, experiments, look, machine, records, zoo
from tools import bench, scaling

# What stands between such marks in a text is written here.
MARKS = "<!-- {}: written by `make figures` -->\n", "<!-- end of {} -->"
TEXTS = {"README.md": "board", "results/README.md": "results", "docs/scaling.md": "scaling"}

# Blocks drawn beside the chains: network, block, input of the block, title.
BLOCKS = {
    "nin": ("block1", (1, 1, 224, 224), "NiN's mlpconv"),
    "googlenet": ("inception3a", (1, 192, 28, 28), "GoogLeNet's Inception 3a"),
    "resnet18": ("stage2.0", (1, 64, 56, 56), "ResNet's block with a projection"),
    "resnet34": ("stage1.0", (1, 64, 56, 56), "ResNet's block"),
    "mobilenet": ("block1", (1, 32, 112, 112), "MobileNet's block"),
    "densenet_cifar": ("block1", (1, 24, 32, 32), "DenseNet's first block"),
}


def everything() -> dict[str, str]:
    """Every picture of figures/ by name, as SVG text."""
    drawings = {
        name: look.svg(zoo.build_on_meta(name), (1, *zoo.variant(name).input_shape), name)
        for name in zoo.names()
    }
    for name, (block, shape, title) in BLOCKS.items():
        module = zoo.build_on_meta(name).get_submodule(block)
        drawings[f"block_{name}"] = look.block_svg(module, shape, title)
    drawings["timeline"] = timeline()
    board = compare.leaderboard(records.read_all(yours=False)[0])
    if len(board):
        drawings["accuracy_params"] = accuracy(board, "params", "parameters")
        drawings["accuracy_mult_adds"] = accuracy(board, "mult_adds", "mult-adds for one image")
    if measured := [row for row in bench.read_rows("speed") if row["name"] != "start"]:
        drawings["speed"] = speed([r for r in measured if r["device"] == measured[0]["device"]])
    return drawings


def as_svg(fig, alt: str) -> str:
    """A figure as SVG with a text alternative, free of dates and random names."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "cnn-workbook", "svg.fonttype": "none"}):
        fig.savefig(text, format="svg", metadata={"Date": None, "Title": alt}, facecolor="white")
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(lines) + "\n"


def timeline() -> str:
    """The architectures in order of publication, each with what it added and its size."""
    rows = sorted(zoo.architectures().items(), key=lambda row: row[1].year)
    fig, ax = look.figure(size=(10, 2.4))
    ax.set_axis_off()
    ax.axhline(0, color="#555", zorder=0)
    ax.set(xlim=(-0.5, len(rows) - 0.5), ylim=(-1.1, 0.9))
    told = []
    for x, (name, about) in enumerate(rows):
        first = next(n for n in zoo.names() if zoo.notebook_of(n).stem[3:] == name)
        millions = zoo.variant(first).params / 1e6
        count = f"{millions:.{0 if millions > 10 else 1 if millions > 1 else 2}f} M parameters"
        ax.plot(x, 0, "o", ms=9, color=look.COLOURS[0])
        ax.text(x, 0.5, about.name, ha="center", weight="bold", fontsize=10)
        ax.text(x, 0.22, str(about.year), ha="center", fontsize=9)
        added = about.added.replace(", ", "\n").replace(" that ", "\nthat ")
        ax.text(x, -0.2, f"{added}\n{count}", ha="center", va="top", fontsize=8)
        told.append(f"{about.year} {about.name}: {about.added}, {count}")
    title = "The architectures, what each added, and its size as built here"
    ax.set_title(title)
    return as_svg(fig, f"{title}. {'; '.join(told)}.")


def accuracy(board: pd.DataFrame, cost: str, label: str) -> str:
    """Test accuracy against a cost, a point a network, with the Pareto front."""
    fig, ax = look.figure(size=(7.5, 4))
    sns.scatterplot(board, x=cost, y="accuracy", hue="architecture", style="architecture",
                    s=90, legend=False, ax=ax)  # fmt: skip
    for row in board.itertuples():
        ax.annotate(row.network, (getattr(row, cost), row.accuracy), xytext=(6, 6), fontsize=8,
                    textcoords="offset points")  # fmt: skip
    front = board[compare.pareto(board, cost)].sort_values(cost)
    ax.plot(front[cost], front["accuracy"], "k", lw=1, drawstyle="steps-post")
    title = f"CIFAR-10 (JPEG copy), one recipe: accuracy against {label}"
    ax.set(xscale="log", title=title, xlabel=label, ylabel="test accuracy (%)")
    ax.margins(x=0.2, y=0.15)
    told = [f"{r.network} {r.accuracy:.1f} % at {getattr(r, cost):,}" for r in board.itertuples()]
    return as_svg(fig, f"{title}: {'; '.join(told)}.")


def speed(rows: list[dict]) -> str:
    """How many times as fast as the conventional way: a bar a row of the benchmark."""
    labels = [f"{row['name']} at {row['image_size']}, {row['work']}" for row in rows]
    fig, ax = look.figure(size=(8, 0.26 * len(rows) + 1.2))
    colours = [look.COLOURS[{"evaluation": 2, "loading": 1}.get(row["work"], 0)] for row in rows]
    bars = ax.barh(labels, [row["ratio"] for row in rows], color=colours)
    ax.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    ax.invert_yaxis()
    formats = ", ".join(sorted({row["precision"] for row in rows}))
    title = f"Our loop ({formats}) against the usual one (fp32)\n{rows[0]['device']}"
    ax.set(xscale="log", title=title, xlabel="times as many images a second (logarithmic)")
    ax.axvline(1, color="k", lw=0.8)
    told = [f"{label} {row['ratio']:.1f}" for label, row in zip(labels, rows, strict=True)]
    return as_svg(fig, f"{title}: times as fast: {'; '.join(told)}.")


# ------------------------------------------------------------------------------------- documents


def documents() -> dict[str, str]:
    """The texts that hold tables, by their path, with each table written anew."""
    runs, _ = records.read_all(yours=False)
    tables = {
        "board": compare.markdown_board(compare.leaderboard(runs)),
        "results": compare.markdown(compare.grouped(runs)) + "\n" + experiments_table(runs),
        "scaling": scaling.scaling_markdown(bench.read_rows("scaling")),
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


def main() -> int:
    """Redraw figures/ and rewrite the tables."""
    folder = machine.HOME / "figures"
    drawings = everything()
    for old in folder.glob("*.svg"):
        if old.stem not in drawings:
            old.unlink()
    for name, drawing in drawings.items():
        (folder / f"{name}.svg").write_text(drawing, encoding="utf-8")
    for path, text in documents().items():
        (machine.HOME / path).write_text(text, encoding="utf-8")
    print(f"{len(drawings)} pictures drawn in figures/; {', '.join(TEXTS)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
