"""Drawings of networks, made from the networks themselves: SVG text, the same byte for byte."""

import math
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from itertools import groupby

from torch import nn

from common import probe
from common.probe import IMAGE, Call, Shape
from common.probe.fields import pair

KINDS = {  # Okabe and Ito's colours, lightened: readable under black text
    "convolution": "#9ecae9",
    "fully connected": "#f4c09a",
    "pooling": "#9fdcc4",
    "several layers": "#e3bcd3",
    "join": "#ffffff",
    "": "#dddddd",
}
JOINS = {"add": "add", "cat": "concatenate", "mul": "multiply", "sub": "subtract"}
SHORT = {"BatchNorm2d": "BN", "BatchNorm1d": "BN", "Flatten": "flatten", "view": "flatten"}
IN_PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Sequential)  # change nothing in evaluation
MARGIN, LINE, INK, GREY = 14, 16, "#222", "#555"


def words_for(call: Call) -> tuple[str, str]:
    """(kind, words) of a step; kind "" for what belongs to its neighbour, as an activation does."""
    module, kind = call.module, call.kind
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        words = "×".join(map(str, module.kernel_size))
        words += " transposed" if isinstance(module, nn.ConvTranspose2d) else ""
        depthwise = 1 < module.groups == module.in_channels
        words += " depthwise" if depthwise else " conv"
        words += f" in {module.groups} groups" * (module.groups > 1 and not depthwise)
        return "convolution", words + f", stride {module.stride[0]}" * (module.stride[0] > 1)
    if kind == "convolution":
        return "convolution", "conv"
    if isinstance(module, nn.Linear) or kind in ("addmm", "mm", "bmm"):
        return "fully connected", "linear"
    if "pool" in kind.lower():
        if "Adaptive" in kind or "adaptive" in kind:
            words = "global mean" if call.output[-2:] == (1, 1) else "mean"
            return "pooling", words.replace("mean", "max") if "ax" in kind else words
        size = getattr(module, "kernel_size", None)
        words = "×".join(map(str, pair(size))) if size else ""
        sort = "LP" if "LP" in kind else "max" if "max" in kind.lower() else "mean"
        words = f"{words} {sort} pool".strip()
        stride = pair(getattr(module, "stride", 1) or size or 1)[0]
        return "pooling", words + f", stride {stride}" * (stride > 1)
    if kind == "mean":
        return "pooling", "mean"
    if module is None and kind.strip("_") in JOINS and len(call.sources) > 1:
        return "join", JOINS[kind.strip("_")]
    return "", SHORT.get(kind, kind.strip("_"))


def svg_page(width: float, height: float, title: str, alt: str, parts: list[str]) -> str:
    """An SVG document on white, for light and dark pages, with a title and a text alternative."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'role="img" aria-label="{escape(alt)}" '
            f'style="width:100%;max-width:{width:g}px;background:white" '
            'font-family="Helvetica, Arial, sans-serif" font-size="13" text-anchor="middle">',
            f"<title>{escape(alt)}</title>",
            f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
            written(MARGIN, 24, title, 'font-size="15" font-weight="bold" text-anchor="start"'),
            *parts,
            "</svg>",
            "",
        ]
    )


def written(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{INK}" {style}>{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" '
        f'fill="{KINDS[kind]}" stroke="#444"/>'
    )


def arrow(path: str, x: float, y: float, way: str = "down") -> str:
    """A line along `path` that ends in a head at (x, y)."""
    head = f"M{x - 4:g} {y - 6:g}L{x:g} {y:g}L{x + 4:g} {y - 6:g}"
    if way == "right":
        head = f"M{x - 6:g} {y - 4:g}L{x:g} {y:g}L{x - 6:g} {y + 4:g}"
    return f'<path d="{path}{head}" fill="none" stroke="{GREY}" stroke-width="1.3"/>'


def sizes(shape: tuple[int, ...]) -> str:
    return "×".join(f"{n:,}" for n in shape)


# ------------------------------------------------------------------------------ the whole network


def stages(model: nn.Module, shape: Shape) -> list[dict]:
    """The boxes of a net: its own children, merged where they only activate, normalise or reshape.

    Each has a `name`, a `kind` of KINDS, `words`, its `output` (C, H, W) and its `params`.
    """
    boxes = []
    calls = probe.trace(model, shape)[0].calls
    for name, group in groupby(calls, key=lambda call: call.part):
        part = list(group)
        told = [words_for(call) for call in part]
        kinds = Counter(kind for kind, _ in told)
        params, output = sum(call.params for call in part), part[-1].output[1:]
        heavy = kinds["convolution"] + kinds["fully connected"]
        if heavy + kinds["pooling"] == 0 and boxes:
            boxes[-1]["params"] += params
            if kinds["join"]:
                boxes[-1]["output"] = output
            continue
        if heavy > 1:
            counts = (kinds["convolution"], "conv"), (kinds["fully connected"], "linear")
            kind, words = "several layers", ", ".join(f"{n} {word}" for n, word in counts if n)
        else:
            wanted = ("convolution", "fully connected") if heavy else ("pooling", "")
            kind, words = next((t for t in told if t[0] in wanted), told[0])
        boxes.append(
            {"name": name, "kind": kind, "words": words, "output": output, "params": params}
        )
    return boxes


def svg(model: nn.Module, shape: Shape, title: str, most: int = 5) -> str:
    """A network as SVG text: its children in a row, at most `most` a line.

    A box's height follows its output's size in pixels (logarithm). In it stands what it is, and
    below it the output shape, channels first, and the parameters.
    """
    boxes = [{"name": "input", "kind": "", "words": "image", "output": shape[1:], "params": 0}]
    boxes += stages(model, shape)
    rows = -(-len(boxes) // most)
    columns = -(-len(boxes) // rows)  # rows of equal length
    box, gap, tallest = 92, 18, 96
    width = max(2 * MARGIN + columns * (box + gap) - gap, 460)
    total = sum(p.numel() for p in model.parameters())
    parts, told, largest = [], [], math.log2(max(shape[2:]) + 1)
    for i, made in enumerate(boxes):
        x = MARGIN + (i % columns) * (box + gap)
        middle = 44 + (i // columns) * (tallest + 72) + tallest / 2
        pixels = made["output"][1] if len(made["output"]) > 1 else 1
        tall = round(40 + (tallest - 40) * math.log2(pixels + 1) / largest)
        below, centre = middle + tallest / 2, x + box / 2
        parts.append(rectangle(x, middle - tall / 2, box, tall, made["kind"]))
        first, _, second = made["words"].partition(", ")
        parts.append(written(centre, middle + (-3 if second else 5), first))
        parts += [written(centre, middle + 13, second)] if second else []
        parts.append(written(centre, below + 16, made["name"], 'font-weight="bold"'))
        parts.append(written(centre, below + 32, sizes(made["output"])))
        parts += [written(centre, below + 48, f"{made['params']:,}")] if made["params"] else []
        if i % columns:
            parts.append(arrow(f"M{x - gap + 2:g} {middle:g}H{x - 2:g}", x - 2, middle, "right"))
        told.append(f"{made['words']} to {sizes(made['output'])}")
    height = 44 + rows * (tallest + 72) + 8
    alt = f"{title}: " + ", then ".join(told)
    return svg_page(width, height, f"{title}: {total:,} parameters", alt, parts)


# ----------------------------------------------------------------------------------------- a block


@dataclass
class Box:
    """A step of a block with what belongs to it, at a `rank` from above and in a `lane`."""

    name: str
    output: tuple[int, ...]
    sources: list[int]  # boxes; IMAGE for the block's input
    params: int = 0
    kind: str = ""
    main: str = ""  # the words of the step that gives the kind
    channels: str = ""
    before: list[str] = field(default_factory=list)  # activations and the like
    after: list[str] = field(default_factory=list)
    rank: int = 0
    lane: float = 0

    def take(self, call: Call) -> None:
        """Put a further step into the box."""
        kind, words = words_for(call)
        self.output, self.params = call.output, self.params + call.params
        if not kind:
            (self.after if self.kind else self.before).append(words)
            return
        self.kind, self.main, self.name = kind, words, call.name if call.module else ""
        if isinstance(call.module, (nn.Conv2d, nn.ConvTranspose2d)):
            conv = call.module
            alone = 1 < conv.groups == conv.in_channels
            self.channels = f"{conv.in_channels:,} → {conv.out_channels:,} channels"
            self.channels = f"{conv.groups:,} channels, one by one" if alone else self.channels

    def lines(self) -> list[str]:
        cost = f"{self.params:,} parameters" if self.params else ""
        before, after = ", ".join(self.before), ", ".join(self.after)
        told = (self.name, before, self.main, self.channels, after, sizes(self.output[1:]), cost)
        return [line for line in told if line]


def boxes_of(calls: list[Call]) -> list[Box]:
    """The steps of a forward pass; activations and normalisations join the box they belong to.

    A concatenation whose output is concatenated again is told by what goes in: every layer of a
    dense block has all earlier ones among its sources.
    """
    piled = {s for call in calls if call.kind == "cat" for s in call.sources if s != IMAGE}
    piled = {i for i in piled if calls[i].kind == "cat"}

    def unpiled(sources):
        for source in sources:
            yield from unpiled(calls[source].sources) if source in piled else [source]

    drawn = [
        i for i, call in enumerate(calls)
        if i not in piled and not isinstance(call.module, IN_PASSING)
    ]  # fmt: skip
    inputs = {i: list(dict.fromkeys(unpiled(calls[i].sources))) for i in drawn}
    uses = Counter(source for sources in inputs.values() for source in sources)
    boxes, place = [], {IMAGE: IMAGE}
    for i in drawn:
        sources = [place[source] for source in inputs[i]]
        last = boxes[sources[0]] if len(sources) == 1 and sources[0] != IMAGE else None
        if not last or uses[inputs[i][0]] > 1 or (last.kind and words_for(calls[i])[0]):
            last = Box("", calls[i].output, sources)
            boxes.append(last)
        last.take(calls[i])
        place[i] = boxes.index(last)
    return boxes


def arrange(boxes: list[Box]) -> float:
    """Give each box its rank, below all its sources, and its lane: a branch each.

    Returns the input's own lane, above the middle of those that start there.
    """
    continued, lanes = set(), 0
    for box in boxes:
        above = [source for source in box.sources if source != IMAGE]
        box.rank = 1 + max((boxes[source].rank for source in above), default=0)
        if box.kind == "join" and above:
            box.lane = sum(boxes[source].lane for source in above) / len(above)
        elif above and above[-1] not in continued:
            box.lane = boxes[above[-1]].lane
            continued.add(above[-1])
        else:
            box.lane, lanes = lanes, lanes + 1
    heads = [box.lane for box in boxes if box.rank == 1]
    return sum(heads) / max(len(heads), 1)


def block_svg(module: nn.Module, shape: Shape, title: str) -> str:
    """A block as SVG text, from above: branches side by side, shortcuts and piles as arcs.

    Drawn from a forward pass of the module for an input of `shape` (N, C, H, W). Each box tells
    its layer, kernel, channels, output (C, H, W) and parameters; the title has their sum.
    """
    recorder, _ = probe.trace(module, shape)
    boxes = boxes_of(recorder.calls)
    start = Box("input", shape, [], lane=arrange(boxes))
    width, gap, between = 138, 12, 30
    step, tops, bottoms, y = width + gap, {}, {}, 56
    for rank, group in groupby(sorted([start, *boxes], key=lambda b: b.rank), lambda b: b.rank):
        tops[rank], tall = y, max(len(box.lines()) for box in group) * LINE + 10
        y += tall + between
    parts, told, right = [], [], 0.0
    for box in (start, *boxes):
        x, top = MARGIN + box.lane * step + width / 2, tops[box.rank]
        lines = box.lines()
        tall = len(lines) * LINE + 10
        bottoms[id(box)] = top + tall
        right = max(right, x + width / 2)
        parts.append(rectangle(x - width / 2, top, width, tall, box.kind))
        for i, line in enumerate(lines):
            bold = 'font-weight="bold"' if i == 0 and box.name else ""
            parts.append(written(x, top + 17 + i * LINE, line, f'font-size="12" {bold}'))
        told.append(" ".join(lines))
        for source in (start if s == IMAGE else boxes[s] for s in box.sources):
            a, low = MARGIN + source.lane * step + width / 2, bottoms[id(source)]
            between_them = [
                b for b in boxes
                if source.rank < b.rank < box.rank and abs(b.lane - source.lane) < 0.9
            ]  # fmt: skip
            if between_them:  # an arc past them, the wider the further
                reach = a + width / 2 + 26 + 15 * (box.rank - source.rank - 2)
                right = max(right, reach - 4)
                path = f"M{a + width / 2:g} {low - 12:g}C{reach:g} {low + 10:g} {reach:g} "
                path += f"{top - 16:g} {x + width / 2 - 14:g} {top - 1:g}"
                parts.append(arrow(path, x + width / 2 - 14, top - 1))
                if box.main == "add":
                    style = 'font-size="12" text-anchor="start"'
                    parts.append(written(reach - 6, (low + top) / 2, "shortcut", style))
                    right = max(right, reach + 50)
            else:
                turn = tops[box.rank] - between
                path = f"M{a:g} {low:g}V{max(turn, low):g}C{a:g} {top - 8:g} {x:g} {turn:g} "
                parts.append(arrow(f"{path}{x:g} {top - 1:g}", x, top - 1))
    params = sum(call.params for call in recorder.calls)
    cost = sum(call.mult_adds for call in recorder.calls)
    heading = f"{params:,} parameters, {cost:,} mult-adds"
    parts.append(written(MARGIN, 40, heading, 'font-size="12" text-anchor="start"'))
    alt = f"{title}: {heading}. " + "; ".join(told) + "."
    return svg_page(max(right + MARGIN, 330), y - between + MARGIN, title, alt, parts)


# ------------------------------------------------------------------------------------ in notebooks


def draw(model: nn.Module, shape: Shape, title: str) -> None:
    """Display a network as a row of boxes, for an input of `shape` (N, C, H, W)."""
    show_svg(svg(model, shape, title), title)


def draw_block(module: nn.Module, shape: Shape, title: str) -> None:
    """Display a block with its branches, shortcuts and concatenations, for an input of `shape`."""
    show_svg(block_svg(module, shape, title), title)


def show_svg(drawing: str, title: str) -> None:
    from IPython.display import display

    display({"text/html": drawing, "text/plain": f"[diagram: {title}]"}, raw=True)
