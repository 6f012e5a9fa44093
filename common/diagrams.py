"""Draws a network as a row of blocks, from the network itself: an SVG, the same byte for byte."""

import math
from html import escape

import pandas as pd
import torch
from torch import nn

from common import probe

KINDS = {  # the colours of COLOURS, lightened: readable under black text
    "Conv2d": ("#9ecae9", "convolution"),
    "Linear": ("#f4c09a", "fully connected"),
    "pool": ("#9fdcc4", "pooling"),
    "block": ("#e3bcd3", "block of several layers"),
}
BLOCK_WIDTH, GAP, TALLEST, MARGIN = 84, 22, 130, 14


def stages(model: nn.Module, shape: tuple[int, int, int, int]) -> pd.DataFrame:
    """One row a drawn block: the model's own children, merged where they only activate or reshape.

    Columns: `name`, `kind` (a key of KINDS), `text` (what it is), `output` (C, H, W), `params`.
    """
    table = probe.layers(model, shape)
    table["child"] = [name if "." not in name else name.split(".")[0] for name in table["layer"]]
    outputs = outputs_of_children(model, shape)
    rows = []
    for _, part in table.groupby((table["child"] != table["child"].shift()).cumsum()):
        name = part["child"].iloc[0]
        module = model.get_submodule(name)
        kind, text = describe_child(module, part)
        output = outputs.get(name, part["output"].iloc[-1])
        params = int(part["params"].sum())
        if kind:
            rows.append(
                {"name": name, "kind": kind, "text": text, "output": output[1:], "params": params}
            )
        elif rows:  # an activation, a reshape, a normalisation: part of what came before
            rows[-1]["params"] += params
    return pd.DataFrame(rows)


def outputs_of_children(model: nn.Module, shape: tuple[int, int, int, int]) -> dict[str, tuple]:
    """The output shape of each of the model's own children: of a block, its joined branches."""
    net, found = probe.to_meta(model), {}
    handles = [
        child.register_forward_hook(lambda _, __, y, name=name: found.update({name: y.shape}))
        for name, child in net.named_children()
    ]
    with torch.no_grad():
        net(torch.empty(shape, device="meta"))
    for handle in handles:
        handle.remove()
    return found


def describe_child(module: nn.Module, part: pd.DataFrame) -> tuple[str | None, str]:
    """(kind, text) of a child; kind None for one that is not drawn by itself."""
    if isinstance(module, nn.Conv2d):
        k, s = module.kernel_size, module.stride[0]
        return "Conv2d", f"{k[0]}×{k[1]}" + (f", stride {s}" if s > 1 else "")
    if isinstance(module, nn.Linear):
        return "Linear", "linear"
    if "Pool" in type(module).__name__:
        size = getattr(module, "kernel_size", None)
        if size is None:
            return "pool", "global pool"
        size = size if isinstance(size, int) else size[0]
        return "pool", f"{size}×{size} {'max' if 'Max' in type(module).__name__ else 'mean'}"
    if any(True for _ in module.children()):
        convolutions = int((part["kind"] == "Conv2d").sum())
        linears = int((part["kind"] == "Linear").sum())
        if convolutions == 0 and linears == 1:
            return "Linear", "linear"
        counted = [f"{n} {word}" for n, word in ((convolutions, "conv"), (linears, "linear")) if n]
        return ("block", ", ".join(counted)) if counted else (None, "")
    return None, ""


def svg(model: nn.Module, shape: tuple[int, int, int, int], title: str, most: int = 8) -> str:
    """The network as SVG text, at most `most` blocks a row.

    A block's height follows its output's size in pixels (logarithm), and its colour its kind. Below
    it stand the output shape, channels first, and the parameters.
    """
    drawn = stages(model, shape)
    blocks = [{"name": "input", "kind": None, "text": "image", "output": shape[1:], "params": 0}]
    blocks += drawn.to_dict("records")
    largest = math.log2(max(shape[2:]) + 1)
    row_height = TALLEST + 74
    rows = -(-len(blocks) // most)
    columns = -(-len(blocks) // rows)  # rows of equal length
    width = max(2 * MARGIN + columns * (BLOCK_WIDTH + GAP) - GAP, 640)
    height = 40 + rows * row_height + 24
    total = sum(p.numel() for p in model.parameters())
    alt = f"{title}: " + ", then ".join(
        f"{b['text']} to {'×'.join(map(str, b['output']))}" for b in blocks
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(alt)}" style="max-width:100%;background:white" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" text-anchor="middle">',
        f"<title>{escape(alt)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="24" font-size="16" text-anchor="start">{escape(title)}: '
        f"{total:,} parameters</text>",
    ]
    for i, block in enumerate(blocks):
        x = MARGIN + (i % columns) * (BLOCK_WIDTH + GAP)
        middle = 40 + (i // columns) * row_height + 8 + TALLEST / 2
        flat = len(block["output"]) == 1
        pixels = 1 if flat else block["output"][1]
        tall = round(26 + (TALLEST - 26) * math.log2(pixels + 1) / largest)
        colour = KINDS[block["kind"]][0] if block["kind"] else "#dddddd"
        top, bottom = middle - tall / 2, middle + TALLEST / 2
        centre = x + BLOCK_WIDTH / 2
        if i % columns:
            parts.append(
                f'<path d="M{x - GAP + 3} {middle:g}h{GAP - 8}m-5 -4l5 4l-5 4" '
                'fill="none" stroke="#555"/>'
            )
        shape_text = "×".join(map(str, block["output"]))
        cost = f"{block['params']:,}" if block["params"] else ""
        parts += [
            f'<rect x="{x}" y="{top:g}" width="{BLOCK_WIDTH}" height="{tall}" rx="4" '
            f'fill="{colour}" stroke="#444"/>',
            f'<text x="{centre:g}" y="{middle + 4:g}" font-size="11">'
            f"{escape(block['text'])}</text>",
            f'<text x="{centre:g}" y="{bottom + 16:g}" font-weight="bold">'
            f"{escape(block['name'])}</text>",
            f'<text x="{centre:g}" y="{bottom + 32:g}">{shape_text}</text>',
            f'<text x="{centre:g}" y="{bottom + 48:g}" fill="#555">{cost}</text>',
        ]
    used = [kind for kind in KINDS if any(b["kind"] == kind for b in blocks)]
    for i, kind in enumerate(used):
        colour, label = KINDS[kind]
        x, y = MARGIN + i * 160, height - 22
        parts.append(
            f'<rect x="{x}" y="{y}" width="14" height="14" fill="{colour}" stroke="#444"/>'
        )
        parts.append(f'<text x="{x + 20}" y="{y + 12}" text-anchor="start">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw(model: nn.Module, shape: tuple[int, int, int, int], title: str) -> None:
    """Display the drawing in a notebook."""
    from IPython.display import display

    drawing = svg(model, shape, title)
    display({"text/html": drawing, "text/plain": f"[diagram: {title}]"}, raw=True)
