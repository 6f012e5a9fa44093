"""figures/ and the README's tables: the same bytes from the same models, records and libraries."""

import io
import re
from html import escape

import matplotlib
import pandas as pd

from common import compare, experiments, look, machine, records, zoo
from tools import bench, scaling

# The line of descent: variant, name, what it added.
LINE = (
    ("lenet5", "LeNet-5", "shared kernels, pooling"),
    ("alexnet_paper", "AlexNet", "depth, ReLU, dropout"),
    ("nin", "NiN", "1×1 kernels, global pooling"),
    ("vgg16", "VGG", "3×3 kernels, blocks"),
    ("googlenet", "GoogLeNet", "parallel branches"),
    ("resnet18", "ResNet", "shortcuts that add"),
    ("densenet121", "DenseNet", "shortcuts that concatenate"),
    ("mobilenet", "MobileNet", "depthwise separable"),
)

# Blocks drawn beside the chains: network, block, input of the block, title.
BLOCKS = {
    "nin": ("block1", (1, 1, 224, 224), "NiN's mlpconv"),
    "googlenet": ("inception3a", (1, 192, 28, 28), "GoogLeNet's Inception 3a"),
    "resnet18": ("stage2.0", (1, 64, 56, 56), "ResNet's block with a projection"),
    "resnet34": ("stage1.0", (1, 64, 56, 56), "ResNet's block"),
    "mobilenet": ("block1", (1, 32, 112, 112), "MobileNet's block"),
    "densenet_cifar": ("block1", (1, 24, 32, 32), "DenseNet's first block"),
}

# What `make figures` writes between such marks: in README.md, and in docs/scaling.md.
MARKS = "<!-- {}: written by `make figures` -->\n", "<!-- end of {} -->"


def everything() -> dict[str, str]:
    """Every picture of figures/ by name, as SVG text."""
    drawings = {
        name: look.svg(zoo.build_on_meta(name), (1, *variant.input_shape), name)
        for name, (variant, _) in zoo.variants().items()
    }
    for name, (block, shape, title) in BLOCKS.items():
        module = zoo.build_on_meta(name).get_submodule(block)
        drawings[f"block_{name}"] = look.block_svg(module, shape, title)
    drawings["timeline"] = timeline()
    results = compare.at_a_glance(profile="laptop")
    clothes = results[results["dataset"] == "fashion_mnist"]
    notebooks = clothes["network"].map(lambda name: zoo.variants()[name][1])
    clothes = clothes[~notebooks.duplicated()]  # the best of each notebook
    if len(clothes):
        title = "Fashion-MNIST, recorded runs on a laptop's budget: accuracy against "
        for cost, label in (
            ("params", "parameters"),
            ("mult_adds", "mult-adds for one image"),
        ):
            drawings[f"accuracy_{cost}"] = scatter(clothes, cost, label, title + label)
    if measured := [row for row in bench.read_rows("speed") if row["name"] != "start"]:
        drawings["speed"] = speed([r for r in measured if r["device"] == measured[0]["device"]])
    return drawings


def documents() -> dict[str, str]:
    """The texts that hold tables, by their path, with each table written anew."""
    tables = {
        "README.md": {
            "results": compare.markdown(compare.at_a_glance()),
            "experiments": experiments_table(),
        },
        "docs/scaling.md": {"scaling": scaling.scaling_markdown(bench.read_rows("scaling"))},
    }
    written = {}
    for path, parts in tables.items():
        text = (machine.HOME / path).read_text(encoding="utf-8")
        for name, table in parts.items():
            begin, end = (mark.format(name) for mark in MARKS)
            before, rest = text.split(begin)
            text = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
        written[path] = text
    return written


def experiments_table() -> str:
    """A Markdown table of the experiments: how many of their networks have a recorded run."""
    runs, _ = records.read_all(yours=False)
    lines = [
        "| experiment | runs a seed | recorded, `laptop`, by seed | recorded, `full`, by seed |",
        "|---|---|---|---|",
    ]
    for name, table in experiments.EXPERIMENTS.items():
        known = runs[(runs["experiment"] == name) & ~runs["stand_in"].astype(bool)]
        known = known.to_dict("records")
        seeds = sorted({record["seed"] for record in known})
        cells = []
        for profile in ("laptop", "full"):
            counts = [
                sum(
                    experiments.recorded(name, run, profile, known)
                    for run in experiments.runs_of(name, profile, [seed])
                )
                for seed in seeds
            ]
            done = [f"{count} of {len(table)}" for count in counts if count]
            cells.append(" + ".join(done) if done else "not yet run")
        lines.append(f"| `{name}` | {len(table)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
    rows = [row for row in LINE if row[0] in zoo.names()]
    fig, ax = look.figure(size=(7.6, 0.46 * len(rows) + 0.7))
    told = []
    for i, (name, label, idea) in enumerate(rows):
        year = compare.architecture(name)["year"]
        params = zoo.variant(name).params
        ax.plot(0, i, "o", ms=9, color=look.COLOURS[0])
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
    for i, row in enumerate(rows.itertuples()):
        value, marker = getattr(row, cost), look.MARKERS[i % 8]
        style = {"ms": 8, "mec": "#222222", "label": f"{row.accuracy:.1f}  {row.model}"}
        ax.plot(value, row.accuracy, marker, **style)
        told.append(f"{row.model} {row.accuracy:.1f} % at {value:,}")
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
