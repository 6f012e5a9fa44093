"""Every picture of the course. All go through `show`, which gives them alternative text.

Diagrams of networks come from `drawing`, what a layer puts out from `hooks`, and what all pictures
stand on from `figures`; all are called from here, as look.draw, look.outputs_of and look.show.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from common import machine, probe, run, zoo
from common.data import Batches, ImageSet
from common.look.drawing import block_svg, draw, draw_block, svg
from common.look.figures import COLOURS, MARKERS, STYLE, bundle, figure, show
from common.look.hooks import first_convolution, grad_cam, heat_maps, last_maps, outputs_of
from common.machine import unknown
from common.run import Run, Training
from common.train import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "block_svg", "draw", "draw_block", "first_convolution", "grad_cam", "heat_maps",
    "last_maps", "outputs_of", "svg",
]  # fmt: skip


def marks(networks: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of each network, the same in every chart: an architecture's, or grey."""
    nets = [each.photo for each in zoo.architectures().values()]
    # From the ninth on the marks are moved on by one: no two of 64 nets share both.
    ours = {net: (COLOURS[i % 8], MARKERS[(i + i // 8) % 8]) for i, net in enumerate(nets)}
    return {network: ours.get(network, ("#777777", "h")) for network in networks}


# --------------------------------------------------------------------------------------- curves


def epoch_axis(ax: "Axes") -> None:
    """Whole epochs along the horizontal axis, also when there is only one."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def curves(run: Run) -> tuple["Figure", str]:
    """(figure, alternative text) of a training: loss and accuracy by epoch."""
    title = f"{type(run.model).__name__} on {run.data.name}: training and validation by epoch"
    frame = run.frame()
    fig, axes = figure(1, 2)
    for ax, what, scale, unit in zip(
        axes, ("loss", "accuracy"), (1, 100), ("cross entropy, nats", "%"), strict=True
    ):
        for part, style, label in (("train", "o--", "training"), ("val", "s-", "validation")):
            ax.plot(frame.index, scale * frame[f"{part}_{what}"], style, ms=4, label=label)
        ax.set_ylabel(f"{what} ({unit})")
        epoch_axis(ax)
        ax.legend()
    fig.suptitle(title)
    last = frame.iloc[-1]
    alt = (
        f"{title}. Two curves by epoch. After epoch {frame.index[-1]}: training loss "
        f"{last.train_loss:.3f}, validation loss {last.val_loss:.3f}, training accuracy "
        f"{last.train_accuracy:.1%}, validation accuracy {last.val_accuracy:.1%}."
    )
    return fig, alt


def watch(event: str, training: Training) -> None:
    """In a notebook, draw a training's curves in one place, anew after every epoch."""
    if not training.show or not machine.in_notebook():
        return
    if event == "start":
        from IPython.display import display

        waiting = {"text/plain": "The curves appear after the first epoch."}
        training.curve = display(waiting, raw=True, display_id=True)
    if training.run.epochs:
        training.curve.update(bundle(*curves(training.run)), raw=True)


run.watchers.append(watch)


def compare_curves(
    runs: Mapping[str, Run],
    title: str,
    what: str = "val_accuracy",
    only: Sequence[str] | None = None,
) -> None:
    """One line a run: "train" or "val" with "_loss" or "_accuracy", by epoch; accuracy in per cent.

    Where `only` some are shown, by name, each keeps the colour that it has among all. Raises
    ValueError for a name that is none of theirs.
    """
    for name in set(only or ()) - set(runs):
        raise ValueError(unknown("run", name, tuple(runs)))
    percent = what.endswith("accuracy")
    fig, ax = figure(size=(7, 3.4))
    ends = []
    for i, (name, each) in enumerate(runs.items()):
        if (only is not None and name not in only) or not each.epochs:
            continue
        values = each.frame()[what] * (100 if percent else 1)
        style = "-" if i < len(COLOURS) else "--"
        shape = {"color": COLOURS[i % 8], "marker": MARKERS[i % 8], "ms": 5}
        ax.plot(values.index, values, style, **shape, label=name)
        ends.append(f"{name} {values.iloc[-1]:.3g}")
    part, kind = what.split("_")
    part = {"train": "training", "val": "validation"}[part]
    ax.set(title=title, ylabel=f"{part} {kind} ({'%' if percent else 'nats'})")
    epoch_axis(ax)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves, not over them
    show(fig, f"{title}. Last values of the {part} {kind}: {', '.join(ends)}.")


# --------------------------------------------------------------------------------------- images


def to_picture(image: torch.Tensor) -> np.ndarray:
    """(C, H, W) to a picture of values 0 … 1: colour (H, W, 3), or grey (H, W).

    Bytes are shown as they are, other values stretched from their least to their largest. Grey is
    the first channel, unless there are three.
    """
    array = image.detach().float().cpu()
    low, high = (0, 255) if image.dtype == torch.uint8 else (array.min(), array.max())
    array = (array - low) / max(float(high - low), 1e-8)
    return array.permute(1, 2, 0).numpy() if len(array) == 3 else array[0].numpy()


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
            ax.set_title(titles[i], fontsize=7, pad=2)  # "seen as Ankle boot" has to fit
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
    ax.imshow(np.log1p(mistakes), cmap="Oranges", vmin=0, vmax=np.log1p(max(mistakes.max(), 1)))
    for row, column in zip(*counts.nonzero(), strict=True):
        dark = mistakes[row, column] > 0.4 * max(mistakes.max(), 1)
        style = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
        ax.text(column, row, f"{counts[row, column]:,}", fontsize=7, **style)
    ax.set_xticks(range(K), classes, rotation=45, ha="right", fontsize=8)
    ax.set_yticks(range(K), classes, fontsize=8)
    ax.grid(False)
    ax.set(title=title, xlabel="predicted class (count of images)", ylabel="true class")
    row, column = np.unravel_index(mistakes.argmax(), mistakes.shape)
    worst = f"{classes[row]} taken for {classes[column]}, {mistakes[row, column]:,} times"
    told = f"Most frequent mistake: {worst}" if mistakes.any() else "No mistakes"
    show(fig, f"{title}. {told}.")


def bars(values: Mapping[str, float], title: str, label: str) -> None:
    """Horizontal bars, one a name, which tells its value, such as an accuracy in per cent."""
    fig, ax = figure(size=(7, 0.42 * len(values) + 1.1))
    names = list(values)
    ax.barh(range(len(names)), list(values.values()), color=COLOURS[0], height=0.6)
    told = [f"{name} {value:.4g}" for name, value in values.items()]
    ax.set_yticks(range(len(names)), told)
    ax.invert_yaxis()
    low, high = min(values.values()), max(values.values())
    if low > 0.5 * high:  # bars that hardly differ: cut the axis, and say so
        ax.set_xlim(low - 0.5 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9)
        label += ", axis cut"
    ax.set_xlabel(label)
    fig.suptitle(title, fontsize=11)
    show(fig, f"{title}: {', '.join(told)}.")


# ------------------------------------------------------------------------------- inside a net


def filters(model: nn.Module, title: str, most: int = 32) -> None:
    """Show the first layer's kernels, each stretched to its own range."""
    kernels = first_convolution(model).weight.detach().float()[:most]
    images = list(kernels) if kernels.shape[1] in (1, 3) else list(kernels[:, :1])
    size = " x ".join(map(str, kernels.shape[-2:]))
    grid(images, None, title, f"{title}: {len(images)} kernels of {size} pixels.")


def feature_maps(
    model: nn.Module, layer: nn.Module, x: torch.Tensor, title: str, most: int = 16
) -> None:
    """Show the channels that `layer` puts out for one image x (1, C, H, W)."""
    with torch.no_grad():
        maps = outputs_of(layer, model, x)[0].float().cpu()
    size = f"{maps.shape[1]} x {maps.shape[2]} pixels"
    alt = f"{title}: {min(len(maps), most)} of {len(maps)} channels of {size}."
    grid(list(maps[:most, None]), None, title, alt, colour_map="viridis")


def lay_over(ax: "Axes", image: torch.Tensor, heat: torch.Tensor) -> None:
    """Draw an image (C, H, W) with heat (H, W), 0 to 1, over it: where it is cold, the image."""
    ax.imshow(to_picture(image), cmap="gray")
    ax.imshow(heat, cmap="inferno", alpha=0.65 * heat.numpy(), vmin=0, vmax=1)


def show_grad_cam(
    model: nn.Module,
    data: ImageSet,
    indices: torch.Tensor,
    size: int | None,
    title: str,
    layer: nn.Module | None = None,
) -> None:
    """Grad-CAM of the predicted class over test images `indices`, from `layer` or `last_maps`."""
    x, truth = next(iter(Batches(data, "test", len(indices), indices=indices, size=size)))
    x = x.to(next(model.parameters()).device)
    with torch.no_grad():
        predicted = outputs_of(model, model, x).argmax(1).cpu()
    heat = heat_maps(model, x, predicted, layer)
    columns = min(len(indices), 6)
    rows = -(-len(indices) // columns)
    fig, axes = figure(rows, columns, (max(1.25 * columns, 2.5), 1.5 * rows + 0.4))
    for i, ax in enumerate(np.ravel(axes)):
        ax.set_axis_off()
        if i < len(indices):
            lay_over(ax, x[i], heat[i])
            mark = "" if predicted[i] == truth[i] else f"\nnot {data.classes[truth[i]]}"
            ax.set_title(data.classes[predicted[i]] + mark, fontsize=8, pad=2)
    fig.suptitle(title)
    wrong = int((predicted != truth.cpu()).sum())
    show(fig, f"{title}: {len(indices)} test images, {wrong} of them classified wrongly.")


def worst(test: Evaluation, data: ImageSet, most: int = 16) -> torch.Tensor:
    """Indices of the wrongly classified test images with the highest loss, worst first."""
    wrong = (test.predictions != data.test.labels).nonzero().flatten()
    return wrong[test.losses[wrong].argsort(descending=True)][:most]


def right_and_wrong(test: Evaluation, data: ImageSet, most: int = 6) -> torch.Tensor:
    """Indices of test images: `most` right ones, the classes in turn, then the worst mistakes."""
    right = (test.predictions == data.test.labels).nonzero().flatten()
    labels = pd.Series(data.test.labels[right].numpy())
    turns = labels.groupby(labels).cumcount().sort_values(kind="stable")
    return torch.cat([right[turns.index[:most].tolist()], worst(test, data, most)])


def worst_mistakes(test: Evaluation, data: ImageSet, title: str, most: int = 16) -> None:
    """Show the test images that the net got most wrong: truth, then prediction.

    Those of the highest loss: to their true class it gave the least probability.
    """
    chosen = worst(test, data, most)
    if len(chosen) == 0:
        print(f"{title}: no mistakes on the test images.")
        return
    names, labels = data.classes, data.test.labels
    titles = [f"{names[labels[i]]}\nseen as {names[test.predictions[i]]}" for i in chosen]
    alt = f"{title}: " + "; ".join(t.replace("\n", " ") for t in titles) + "."
    grid(list(data.test.images[chosen]), titles, title, alt, inches=1.2)


# ------------------------------------------------------------------------- how a convolution works


def numbers(ax: "Axes", values: torch.Tensor, title: str, colour_map: str = "gray") -> None:
    """A small matrix as shaded squares with its numbers in them."""
    values = values.float()
    ax.imshow(values, cmap=colour_map, interpolation="nearest")
    low, high = values.min(), values.max()
    for (row, column), value in np.ndenumerate(values.numpy()):
        dark = (value - low) < 0.5 * (high - low)
        style = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
        ax.text(column, row, f"{value + 0.0:.4g}", fontsize=9, **style)  # -0 is 0
    ax.set_title(title, fontsize=9)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.grid(False)


def convolution(
    image: torch.Tensor,
    kernel: torch.Tensor,
    title: str,
    at: tuple[int, int] = (0, 0),
    stride: int = 1,
    padding: int = 0,
) -> torch.Tensor:
    """Show how one output value of a convolution comes about; returns the output (h, w).

    `image` (C, H, W) and `kernel` (C, k, l) are small; `at` is the row and column of the value. A
    row of pictures a channel: the padded image with the window, the kernel, the products. Their
    sum over all channels stands in the output. Raises ValueError where the kernel does not fit the
    image, or the output has no such value.
    """
    from matplotlib.patches import Rectangle

    padded = F.pad(image.float(), (padding,) * 4)
    (row, column), (k, l) = at, kernel.shape[1:]
    if len(kernel) != len(image) or k > padded.shape[1] or l > padded.shape[2]:
        sizes = f"{tuple(kernel.shape)} for an image of {tuple(padded.shape)}, padding included"
        raise ValueError(f"A kernel of {sizes}; expected as many channels, and no more pixels.")
    output = F.conv2d(padded[None], kernel.float()[None], stride=stride)[0, 0]
    h, w = output.shape
    if not (0 <= row < h and 0 <= column < w):
        raise ValueError(f"at={at}; the output has {h} x {w} values, counted from 0.")
    top, left = row * stride, column * stride
    products = padded[:, top : top + k, left : left + l] * kernel
    C = len(image)
    fig, axes = figure(C, 4, (8.4, 2.3 * C + 0.5))
    axes = np.reshape(axes, (C, 4))
    for c, (first, second, third, last) in enumerate(axes):
        channel = f"channel {c + 1}" if C > 1 else "image"
        numbers(first, padded[c], channel + (f", padded by {padding}" if padding else ""))
        frame = {"fill": False, "edgecolor": COLOURS[1], "linewidth": 3}
        first.add_patch(Rectangle((left - 0.5, top - 0.5), l, k, **frame))
        numbers(second, kernel[c], "× kernel")
        numbers(third, products[c], f"= products, sum {products[c].sum():.4g}")
        last.set_axis_off()
    axes[0, 3].set_axis_on()
    numbers(axes[0, 3], output, "output: all sums" if C > 1 else "output")
    axes[0, 3].add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **frame))
    fig.suptitle(title)
    sums = " + ".join(f"{value:.4g}" for value in products.sum((1, 2)).tolist())
    value = f"{sums} = {output[row, column]:.4g}" if C > 1 else sums
    show(fig, f"{title}. Output at row {row}, column {column}: {value}.")
    return output


def growing_field(model: nn.Module, x: torch.Tensor, title: str, most: int = 8) -> None:
    """Frames on one image x (1, C, H, W): what the middle position of each layer's map sees.

    Layers whose field does not grow, that see the whole image or whose field is not known are
    left out.
    """
    from matplotlib.patches import Rectangle

    known = probe.fields_of(probe.layers(model, tuple(x.shape)))[:most]
    fig, ax = figure(size=(5.4, 4))
    ax.imshow(to_picture(x[0]), cmap="gray")
    H, W = x.shape[2:]
    for i, (name, (height, width)) in enumerate(known):
        corner = (W - width) / 2 - 0.5, (H - height) / 2 - 0.5
        frame = {"fill": False, "linewidth": 2.5, "linestyle": ("-", "--", ":", "-.")[i % 4]}
        label = f"{name}: {height} × {width}"
        ax.add_patch(Rectangle(corner, width, height, ec=COLOURS[i % 8], label=label, **frame))
    ax.set(title=title, xlabel="pixels", ylabel="pixels")
    ax.grid(False)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    told = ", ".join(f"{name} {height} × {width}" for name, (height, width) in known)
    show(fig, f"{title}. Receptive fields in pixels: {told}.")


def from_pixels_to_class(
    model: nn.Module, x: torch.Tensor, classes: Sequence[str], title: str, most: int = 8
) -> None:
    """The maps of each convolution and pooling for one image x (1, C, H, W), and the answer.

    One row a layer with at most `most` of its maps; below them the probability of each class.
    """
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, kinds)]
    rows = [("image", x[0][:1].float().cpu())]
    with torch.no_grad():
        for name, layer in layers:
            rows.append((name, outputs_of(layer, model, x)[0].float().cpu()))
        answer = outputs_of(model, model, x)[0].float().softmax(0).cpu()
    fig, axes = figure(len(rows) + 1, most, (0.9 * most, 0.95 * len(rows) + 1.9))
    axes = np.reshape(axes, (len(rows) + 1, most))
    for (name, maps), line in zip(rows, axes, strict=False):
        for ax in line:
            ax.set_axis_off()
        told = f"{name}, {maps.shape[1]} × {maps.shape[2]}"
        told += f", {most} of {len(maps)} maps" if len(maps) > most else ""
        line[0].set_title(told, fontsize=8, loc="left")
        for ax, values in zip(line, maps, strict=False):
            ax.imshow(to_picture(values[None]), cmap="gray" if name == "image" else "viridis")
    for ax in axes[-1]:
        ax.remove()
    with matplotlib.rc_context(STYLE):
        ax = fig.add_subplot(axes[-1, 0].get_gridspec()[-1, :])
    ax.bar(range(len(classes)), 100 * answer, color=COLOURS[0])
    ax.set_xticks(range(len(classes)), classes, fontsize=8)
    ax.set(xlabel="class", ylabel="probability (%)", ylim=(0, 100))
    fig.suptitle(title)
    best = int(answer.argmax())
    show(fig, f"{title}. Answer: {classes[best]}, with a probability of {answer[best]:.0%}.")
