"""Pictures: every figure goes through `show`, which gives it alternative text."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from common.train import History

# Okabe and Ito's colours, told apart by colour-blind readers (Wong, Nature Methods 8, 441, 2011).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DPI = 90
STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
}


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.2)):
    """(figure, axes) in the house style; `size` in inches. Not yet shown: end with `show`."""
    # Here, not above: it takes longer to import than the whole course. And not by way of pyplot,
    # which would keep every figure until it is closed.
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=size)
        return made, made.subplots(rows, columns)


def bundle(fig: "Figure", alt: str) -> dict[str, str]:
    """A figure as what Jupyter displays: an HTML figure with alternative text, and the text alone.

    The picture is a PNG of at most 128 colours, which keeps a notebook small.
    """
    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=DPI, format="png")
    small = io.BytesIO()
    palette = Image.Palette.ADAPTIVE
    Image.open(buffer).convert("RGB").convert("P", palette=palette, colors=128).save(
        small, "PNG", optimize=True
    )
    data = base64.b64encode(small.getvalue()).decode()
    source = f"data:image/png;base64,{data}"
    image = f'<img style="max-width:100%" alt="{escape(alt)}" src="{source}">'
    html = f'<figure style="margin:0">{image}</figure>'
    return {"text/html": html, "text/plain": f"[figure: {alt}]"}


def show(fig: "Figure", alt: str) -> None:
    """Display a figure with its alternative text, which says in words what there is to see."""
    from IPython.display import display

    display(bundle(fig, alt), raw=True)


# --------------------------------------------------------------------------------------- curves


def draw_curves(axes: Sequence["Axes"], frame: pd.DataFrame) -> None:
    """Loss on the first axes and accuracy on the second, training and validation, by epoch."""
    for ax, what, unit in zip(
        axes, ("loss", "accuracy"), ("cross entropy, nats", "%"), strict=True
    ):
        scale = 100 if unit == "%" else 1
        for part, style in (("train", "o--"), ("val", "o-")):
            label = {"train": "training", "val": "validation"}[part]
            ax.plot(frame.index, scale * frame[f"{part}_{what}"], style, ms=4, label=label)
        ax.set_ylabel(f"{what} ({unit})")
        epoch_axis(ax)
        ax.legend()


def epoch_axis(ax: "Axes") -> None:
    """Whole epochs along the horizontal axis, also when there is only one."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def curves_with_alt(history: "History", title: str) -> tuple["Figure", str]:
    frame = history.frame()
    fig, axes = figure(1, 2)
    draw_curves(axes, frame)
    fig.suptitle(title)
    last = frame.iloc[-1]
    alt = (
        f"{title}. Two curves by epoch. After epoch {frame.index[-1]}: training loss "
        f"{last.train_loss:.3f}, validation loss {last.val_loss:.3f}, training accuracy "
        f"{last.train_accuracy:.1%}, validation accuracy {last.val_accuracy:.1%}."
    )
    return fig, alt


class LiveCurve:
    """Loss and accuracy in one picture that is redrawn in place after every epoch."""

    def __init__(self) -> None:
        from IPython.display import display

        waiting = {"text/plain": "The curves appear after the first epoch."}
        self.handle = display(waiting, raw=True, display_id=True)

    def update(self, history: "History") -> None:
        """Redraw with all epochs so far."""
        fig, alt = curves_with_alt(history, "Training and validation by epoch")
        self.handle.update(bundle(fig, alt), raw=True)


def compare_curves(
    histories: Mapping[str, "History"], title: str, what: str = "val_accuracy"
) -> None:
    """One line a run: a column of `History.frame()` by epoch, accuracies in per cent."""
    percent = what.endswith("accuracy")
    fig, ax = figure(size=(7, 3.4))
    ends = []
    for (name, history), marker in zip(histories.items(), "osD^vPX*" * 4, strict=False):
        values = history.frame()[what] * (100 if percent else 1)
        ax.plot(values.index, values, marker=marker, ms=5, label=name)
        ends.append(f"{name} {values.iloc[-1]:.3g}")
    part, kind = what.split("_")
    part = {"train": "training", "val": "validation"}[part]
    ax.set(title=title, ylabel=f"{part} {kind} ({'%' if percent else 'nats'})")
    epoch_axis(ax)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves, not over them
    show(fig, f"{title}. Last values of the {part} {kind}: {', '.join(ends)}.")


# --------------------------------------------------------------------------------------- images


def to_picture(image: torch.Tensor) -> np.ndarray:
    """(C, H, W) of any range to a picture: grey (H, W) or colour (H, W, 3), stretched to 0 … 1."""
    array = image.detach().float().cpu()
    array = (array - array.min()) / (array.max() - array.min()).clamp(min=1e-8)
    return array[0].numpy() if len(array) == 1 else array.permute(1, 2, 0).numpy()


def grid(
    images: Sequence[torch.Tensor],
    titles: Sequence[str] | None,
    heading: str,
    alt: str,
    columns: int = 8,
    inches: float = 0.95,
    colour_map: str = "gray",
) -> None:
    """A grid of images (C, H, W), each with a short title, under one heading."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = inches * rows * (1.25 if titles else 1.02) + 0.45
    fig, axes = figure(rows, columns, (max(inches * columns, 3.4), height))
    for ax in np.ravel(axes):
        ax.set_axis_off()
    for i, (ax, image) in enumerate(zip(np.ravel(axes), images, strict=False)):
        ax.imshow(to_picture(image), cmap=colour_map, interpolation="nearest")
        if titles:
            ax.set_title(titles[i], fontsize=8, pad=2)
    fig.suptitle(heading, fontsize=11)
    show(fig, alt)


def confusion(matrix: torch.Tensor, classes: Sequence[str], title: str) -> None:
    """A confusion matrix (K, K) of counts: true class by row, predicted class by column.

    Shades follow the mistakes' logarithm; the diagonal, the right answers, is left white.
    """
    K = len(classes)
    counts = matrix.numpy()
    mistakes = np.where(np.eye(K, dtype=bool), 0, counts)
    fig, ax = figure(size=(5.2, 4.4))
    ax.imshow(np.log1p(mistakes), cmap="Oranges")
    for row in range(K):
        for column in range(K):
            if counts[row, column]:
                dark = mistakes[row, column] > 0.4 * max(mistakes.max(), 1)
                ax.text(
                    *(column, row, f"{counts[row, column]}"),
                    ha="center", va="center", fontsize=7, color="white" if dark else "black",
                )  # fmt: skip
    ax.set_xticks(range(K), classes, rotation=45, ha="right", fontsize=8)
    ax.set_yticks(range(K), classes, fontsize=8)
    ax.grid(False)
    ax.set(title=title, xlabel="predicted class (count of images)", ylabel="true class")
    row, column = np.unravel_index(mistakes.argmax(), mistakes.shape)
    worst = f"{classes[row]} taken for {classes[column]}, {mistakes[row, column]} times"
    show(fig, f"{title}. Most frequent mistake: {worst}.")


def bars(
    values: Mapping[str, float],
    title: str,
    label: str,
    reference: Mapping[str, float] | None = None,
) -> None:
    """Horizontal bars, one a name, with an open diamond where `reference` has a value."""
    fig, ax = figure(size=(7, 0.42 * len(values) + 1.1))
    places = range(len(values))
    ax.barh(places, list(values.values()), color=COLOURS[0], height=0.6)
    if reference:
        known = [(i, reference[name]) for i, name in enumerate(values) if name in reference]
        ax.plot(
            *zip(*[(v, i) for i, v in known], strict=True),
            "D",
            mfc="white",
            mec=COLOURS[1],
            label="report",
        )
        ax.legend(loc="lower right")
    ax.set_yticks(places, list(values))
    ax.invert_yaxis()
    low = min([*values.values(), *(reference or {}).values()])
    high = max([*values.values(), *(reference or {}).values()])
    if low > 0.5 * high:  # bars that hardly differ: cut the axis, and say so
        ax.set_xlim(low - 0.5 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9)
        label += ", axis cut"
    ax.set_xlabel(label)
    fig.suptitle(title, fontsize=11)
    show(fig, f"{title}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()) + ".")
