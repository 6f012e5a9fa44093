"""The README's charts, as SVG text: the same bytes from the same models and records."""

import math
from html import escape

import pandas as pd

from common import compare, diagram, zoo
from common.plot import COLOURS

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


BEGIN, END = "<!-- results: written by `make figures` -->\n", "<!-- end of results -->"


def everything() -> dict[str, str]:
    """Every picture of figures/ by name, as SVG text."""
    drawings = {
        name: diagram.svg(zoo.build_on_meta(name), (1, *variant.input_shape), name)
        for name, (variant, _) in zoo.variants().items()
    }
    drawings["timeline"] = timeline()
    results = compare.at_a_glance()
    clothes = results[results["dataset"] == "fashion_mnist"]
    if len(clothes):
        title = "Fashion-MNIST, recorded runs on a laptop's budget: accuracy against "
        for cost, label in (
            ("params", "parameters"),
            ("mult_adds", "mult-adds for one image"),
        ):
            drawings[f"accuracy_{cost}"] = scatter(clothes, cost, label, title + label)
    return drawings


def with_results(readme: str) -> str:
    """The README with its table of results written anew between its two marks."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{compare.markdown(compare.at_a_glance())}\n{END}{after}"


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
    low, high = math.floor(frame["accuracy"].min()), math.ceil(frame["accuracy"].max())
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
    told = []
    for row in frame.itertuples():
        x = LEFT + (math.log10(getattr(row, cost)) - x0) * across
        y = floor - (row.accuracy - low) * up
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{COLOURS[0]}"/>')
        parts.append(
            f'<text x="{x + 9:.1f}" y="{y - 7:.1f}" text-anchor="start">{row.model}</text>'
        )
        told.append(f"{row.model} {row.accuracy:.1f} % at {getattr(row, cost):,}")
    middle = (TOP + floor) / 2
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}">{escape(label)}</text>',
        f'<text transform="rotate(-90 20 {middle})" x="20" y="{middle}">test accuracy (%)</text>',
    ]
    return document(WIDTH, HEIGHT, title, f"{title}: " + "; ".join(told) + ".", parts)
