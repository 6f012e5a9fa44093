"""Draws figures/, the same bytes from the same models and records, and has the tables written."""

import io
import re
from html import escape

import matplotlib
import pandas as pd

from common import compare, look, machine, predict, records, weights, zoo
from tools import documents, start

# Blocks drawn beside the chains: network, block, input of the block, title.
BLOCKS = {
    "nin": ("block1", (1, 1, 224, 224), "NiN's mlpconv"),
    "googlenet": ("inception3a", (1, 192, 28, 28), "GoogLeNet's Inception 3a"),
    "resnet18": ("stage2.0", (1, 64, 56, 56), "ResNet's block with a projection"),
    "resnet34": ("stage1.0", (1, 64, 56, 56), "ResNet's block"),
    "mobilenet": ("block1", (1, 32, 112, 112), "MobileNet's block"),
    "densenet_cifar": ("block1", (1, 24, 32, 32), "DenseNet's first block"),
}
SEER, CAT = "resnet18_cifar_025", machine.HOME / "samples/photos/cat.jpg"


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
    drawings["predict"] = chart(*predict.drawn(weights.trained(SEER), CAT))
    board = compare.leaderboard(records.read_all(yours=False)[0])
    if len(board):
        title = "CIFAR-10 (JPEG copy), one recipe: accuracy against "
        for cost, label in (("params", "parameters"), ("mult_adds", "mult-adds for one image")):
            drawings[f"accuracy_{cost}"] = scatter(board, cost, label, title + label)
    if measured := [row for row in records.read_rows("speed") if row["name"] != "start"]:
        drawings["speed"] = speed([r for r in measured if r["device"] == measured[0]["device"]])
    return drawings


def chart(fig, alt: str) -> str:
    """A figure as SVG text that depends on nothing but what it shows, with a text alternative."""
    settings = {"svg.hashsalt": "figures", "svg.fonttype": "none", "font.family": "sans-serif"}
    settings |= {"font.sans-serif": ["DejaVu Sans"]}  # matplotlib's own, there on every machine
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": alt})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)  # as wide as the page
    label = f'<svg role="img" aria-label="{escape(alt)}" style="background:white"'
    return "\n".join(line.rstrip() for line in text.replace("<svg", label, 1).splitlines()) + "\n"


def timeline() -> str:
    """The course's architectures in order of publication, each with what it added and its size."""
    rows = sorted(zoo.architectures().items(), key=lambda row: row[1].year)
    fig, ax = look.figure(size=(7.6, 0.46 * len(rows) + 0.7))
    told = []
    marks = look.marks(about.photo for _, about in rows)
    for i, (notebook, about) in enumerate(rows):
        label, year, idea = about.name, about.year, about.added
        first = next(n for n in zoo.names() if zoo.notebook_of(n).stem[3:] == notebook)
        params = zoo.variant(first).params
        ax.plot(0, i, "o", ms=9, color=marks[about.photo][0])
        ax.text(-0.25, i, f"{year}", ha="right", va="center")
        ax.text(0.25, i, label, va="center", weight="bold")
        ax.text(1.7, i, idea, va="center")
        ax.text(6.6, i, f"{params:,}", ha="right", va="center")
        told.append(f"{year} {label}: {idea}, {params:,} parameters")
    ax.plot([0, 0], [0, len(rows) - 1], color="#555555", zorder=0)
    ax.text(6.6, -0.9, "parameters", ha="right", va="center")
    ax.set(xlim=(-1, 6.7), ylim=(len(rows) - 0.5, -1.3))
    ax.set_axis_off()
    ax.set_title("The architectures, what each added, and its parameters as built here", loc="left")
    return chart(fig, "; ".join(told) + ".")


def scatter(frame: pd.DataFrame, cost: str, label: str, title: str) -> str:
    """Test accuracy (%) against the column `cost` (logarithmic), a point a row, named by model."""
    fig, ax = look.figure(size=(7.6, 4))
    told = []
    ax.set_xscale("log")
    rows = frame.sort_values("accuracy", ascending=False)
    marks = look.marks(rows["network"])
    for row in rows.itertuples():
        value, (colour, marker) = getattr(row, cost), marks[row.network]
        style = {"ms": 8, "mec": "#222222", "label": f"{row.accuracy:.1f}  {row.network}"}
        ax.plot(value, row.accuracy, marker, color=colour, **style)
        told.append(f"{row.network} {row.accuracy:.1f} % at {value:,}")
    ax.set(xlabel=f"{label} (logarithmic)", ylabel="test accuracy (%)")
    fig.suptitle(title.replace(": ", ":\n"), fontsize=11)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return chart(fig, f"{title}: " + "; ".join(told) + ".")


def speed(rows: list[dict]) -> str:
    """How many times as fast as the conventional way: a bar a row of the benchmark."""
    kinds = {"training": 0, "evaluation": 2}
    fig, ax = look.figure(size=(7.6, 0.27 * len(rows) + 1))
    names, told = [], []
    for row in rows:
        name = f"{row['name']} at {row['image_size']}, {row['work']}"
        names.append(name.replace("loader", "batches").replace(", loading", ", loading only"))
        told.append(f"{names[-1]} {row['ratio']:.1f} times")
    colours = [look.COLOURS[kinds.get(row["work"], 1)] for row in rows]
    beyond = [row["ratio"] - 1 for row in rows]  # bars begin at 1, as fast as the usual way
    drawn = ax.barh(range(len(rows)), beyond, left=1, color=colours)
    ax.bar_label(drawn, [f"{row['ratio']:.1f}" for row in rows], padding=4, fontsize=8)
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set_xscale("log")
    most = max(row["ratio"] for row in rows)
    ax.set_xlim(min(1, *(row["ratio"] for row in rows)), 1.3 * most)
    ticks = [times for times in (1, 2, 5, 10, 20, 50, 100, 200) if times <= most]
    ax.set_xticks(ticks, map(str, ticks))
    ax.set_xticks([], minor=True)
    ax.set_xlabel("times as many images a second as the conventional way (logarithmic)")
    title = f"Our loop against a DataLoader with PIL in fp32, on {rows[0]['device']}"
    fig.suptitle(title, fontsize=11)
    return chart(fig, f"{title}: " + "; ".join(told) + ".")


def main() -> int:
    """Redraw figures/ and rewrite the tables."""
    folder = machine.HOME / "figures"
    drawings = everything()
    for old in folder.glob("*.svg"):
        if old.stem not in drawings:
            old.unlink()
    for name, drawing in drawings.items():
        (folder / f"{name}.svg").write_text(drawing, encoding="utf-8")
    for path, text in documents.documents().items():
        (machine.HOME / path).write_text(text, encoding="utf-8")
    print(f"{len(drawings)} pictures drawn in figures/; {', '.join(documents.TEXTS)} written")
    return 0


if __name__ == "__main__":
    start(main, "tools.figures")
