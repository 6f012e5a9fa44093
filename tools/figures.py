"""The README's charts, as SVG text: the same bytes from the same models and records."""

import math
from html import escape

import pandas as pd

from common import compare, diagram, experiments, machine, records, zoo
from common.plot import COLOURS
from tools import bench, scaling

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 380, 66, 52, 44, 30

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


# What `make figures` writes between such marks: in README.md, and in docs/scaling.md.
MARKS = "<!-- {}: written by `make figures` -->\n", "<!-- end of {} -->"


def everything() -> dict[str, str]:
    """Every picture of figures/ by name, as SVG text."""
    drawings = {
        name: diagram.svg(zoo.build_on_meta(name), (1, *variant.input_shape), name)
        for name, (variant, _) in zoo.variants().items()
    }
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


def document(width: int, height: int, title: str, alt: str, parts: list[str]) -> str:
    """An SVG document with a title to read and a text alternative."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(alt)}" font-family="Helvetica, Arial, sans-serif" '
            'font-size="13" text-anchor="middle">',
            f"<title>{escape(alt)}</title>",
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="16" y="24" font-size="16" text-anchor="start">{escape(title)}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def timeline() -> str:
    """The course's architectures in order of publication, each with what it added and its size."""
    rows = [row for row in LINE if row[0] in zoo.names()]
    step = (WIDTH - 40) / len(rows)
    parts = [f'<path d="M20 96H{WIDTH - 20}" stroke="#555" stroke-width="2"/>']
    told = []
    for i, (name, label, idea) in enumerate(rows):
        year = compare.architecture(name)["year"]
        x = 20 + step * (i + 0.5)
        count = f"{zoo.variant(name).params / 1e6:.3g} M"
        told.append(f"{year} {label}: {idea}, {count} parameters")
        first, _, second = idea.partition(", ")
        first, *rest = (first, second) if second else idea.rsplit(" ", 1)
        parts += [
            f'<circle cx="{x:.1f}" cy="96" r="7" fill="{COLOURS[0]}"/>',
            f'<text x="{x:.1f}" y="62" font-weight="bold">{label}</text>',
            f'<text x="{x:.1f}" y="80" fill="#555">{year}</text>',
            f'<text x="{x:.1f}" y="122" font-size="11">{escape(first)}</text>',
            f'<text x="{x:.1f}" y="137" font-size="11">{escape(" ".join(rest))}</text>',
            f'<text x="{x:.1f}" y="156" font-size="11" fill="#555">{count}</text>',
        ]
    title = "Eight architectures, what each added, and its parameters as built here"
    return document(WIDTH, 172, title, "; ".join(told) + ".", parts)


def scatter(frame: pd.DataFrame, cost: str, label: str, title: str) -> str:
    """Test accuracy (%) against the column `cost` (logarithmic), a point a row, named by model."""
    x0, x1 = math.log10(frame[cost].min()) - 0.25, math.log10(frame[cost].max()) + 0.35
    low = math.floor(frame["accuracy"].min())
    high = max(math.ceil(frame["accuracy"].max()), low + 1)
    across = (WIDTH - LEFT - RIGHT) / (x1 - x0)
    up = (HEIGHT - TOP - BOTTOM) / (high - low)
    floor = HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}" fill="none" stroke="#555"/>']
    for power in range(math.ceil(x0), math.floor(x1) + 1):
        x = LEFT + (power - x0) * across
        parts.append(f'<path d="M{x:.1f} {TOP}V{floor}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{floor + 18}">10'
            f'<tspan dy="-5" font-size="9">{power}</tspan></text>'
        )
    for value in range(low, high + 1):
        y = floor - (value - low) * up
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    told, placed = [], []
    for row in frame.itertuples():
        x = LEFT + (math.log10(getattr(row, cost)) - x0) * across
        y = floor - (row.accuracy - low) * up
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{COLOURS[0]}"/>')
        near = any(abs(x - a) < 90 and abs(y - b) < 14 for a, b in placed)
        placed.append((x, y))
        baseline = y + (18 if near else -7)  # a name under the point where one stands above already
        parts.append(
            f'<text x="{x + 9:.1f}" y="{baseline:.1f}" text-anchor="start">'
            f"{escape(row.model)}</text>"
        )
        told.append(f"{row.model} {row.accuracy:.1f} % at {getattr(row, cost):,}")
    middle = (TOP + floor) / 2
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}">{escape(label)}</text>',
        f'<text transform="rotate(-90 20 {middle})" x="20" y="{middle}">test accuracy (%)</text>',
    ]
    return document(WIDTH, HEIGHT, title, f"{title}: " + "; ".join(told) + ".", parts)


def speed(rows: list[dict]) -> str:
    """How many times as fast as the conventional way: a bar a row of the benchmark."""
    line, left = 21, 230
    height = TOP + line * len(rows) + BOTTOM
    across = (WIDTH - left - 70) / math.log10(max(1.1, *(row["ratio"] for row in rows)))
    floor = height - BOTTOM + 6
    parts, told = [], []
    for times in (1, 2, 5, 10, 20, 50, 100):
        x = left + math.log10(times) * across
        if x <= WIDTH - 60:
            parts.append(f'<path d="M{x:.1f} {TOP - 6}V{floor}" stroke="#ddd"/>')
            parts.append(f'<text x="{x:.1f}" y="{floor + 16}">{times}</text>')
    for i, row in enumerate(rows):
        y = TOP + line * i
        width = max(math.log10(row["ratio"]) * across, 1)
        colour = COLOURS[{"training": 0, "evaluation": 2}.get(row["work"], 1)]
        label = f"{row['name']} at {row['image_size']}, {row['work']}"
        label = label.replace("loader", "batches").replace(", loading", ", loading only")
        parts += [
            f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="14" fill="{colour}"/>',
            f'<text x="{left + width + 6:.1f}" y="{y + 11}" text-anchor="start">'
            f"{row['ratio']:.1f}</text>",
        ]
        told.append(f"{label} {row['ratio']:.1f} times")
    parts.append(
        f'<text x="{(left + WIDTH - 70) / 2}" y="{height - 10}">'
        "times as many images a second as the conventional way (logarithmic)</text>"
    )
    title = f"Our loop against a DataLoader with PIL in fp32, on {rows[0]['device']}"
    return document(WIDTH, height, title, f"{title}: " + "; ".join(told) + ".", parts)
