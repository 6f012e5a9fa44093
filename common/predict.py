"""What is on a picture: a trained net's classes with their probabilities."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from common import machine, weights
from common.advice import main_output
from common.sources import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST = 4  # pixels on the shorter side below which there is nothing to see


def network(name: str) -> nn.Module:
    """A trained network: one that ships with the course, by name, or a .safetensors file.

    Raises ValueError for an unknown name or a file that is no weights file, FileNotFoundError where
    a .safetensors file is not there.
    """
    path = Path(name)
    if path.suffix == ".safetensors" or path.is_file():
        return weights.from_file(path)
    return weights.trained(name)


def files_in(path: Path) -> list[Path]:
    """The pictures in a folder by their endings, in order, readable or not; of a file, itself.

    Raises ValueError for a folder without pictures, OSError for one that cannot be read.
    """
    if not path.is_dir():
        return [path]
    endings = {*pictures.ENDINGS, *pictures.UNREADABLE}
    inside = [path / name for name in pictures.files_at(path, path)]
    inside = [file for file in inside if file.suffix.lower() in endings]
    if not inside:
        raise ValueError("it is a folder without pictures; name a picture or a folder of some")
    return inside


def prepared(model: nn.Module, path: Path) -> torch.Tensor:
    """A picture as the net's batch (1, C, H, W): upright, its centre cropped, normalised.

    Raises ValueError, with the reason, where the file is no picture or too small to see.
    """
    about = model.about
    header = pictures.read_header(path)
    if min(header.width, header.height) < SMALLEST:
        raise ValueError(
            f"it has {header.width} x {header.height} pixels; expected {SMALLEST} or more each way"
        )
    size = about["image_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    values = pictures.read_picture(path, about["channels"] == 1, size)
    x = torch.tensor(values).float() / 255
    mean, std = (torch.tensor(about[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return ((x - mean) / std)[None].to(machine.device())


def classes(model: nn.Module, path: Path, top: int = 3) -> list[tuple[str, float]]:
    """The `top` most likely (class, probability 0 to 1) of a picture, most likely first."""
    return likeliest(model, shares_of(model, prepared(model, path)), top)


@torch.no_grad()
def shares_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The probability (K,) of each class, of a picture that is `prepared` already."""
    model.to(x.device).eval()
    return main_output(model(x)).float().softmax(1)[0]


def likeliest(model: nn.Module, shares: torch.Tensor, top: int) -> list[tuple[str, float]]:
    """As `classes`, of the probability of each class."""
    values, indices = shares.topk(min(max(top, 1), len(shares)))
    names = model.about["classes"]
    return [(names[int(i)], float(v)) for i, v in zip(indices, values, strict=True)]


def show_prediction(model: nn.Module, path: Path, top: int = 3) -> None:
    """Draw a picture as the net gets it, its likely classes, and where the first comes from.

    The heat is Grad-CAM's, from the last maps of 4 x 4 or more. Raises ValueError as `prepared`.
    """
    from common import look  # here, not above: the command line draws nothing

    look.show(*drawn(model, path, top))


def drawn(model: nn.Module, path: Path, top: int = 3) -> "tuple[Figure, str]":
    """The figure that `show_prediction` shows, and its text alternative."""
    from common import look

    x = prepared(model, path)
    answer = shares_of(model, x)
    found, first = likeliest(model, answer, top), answer.argmax()[None]
    title = f"{model.about['network']} sees {found[0][0]}"
    fig, axes = look.figure(1, 3, (7, 2.4))
    axes[0].imshow(look.to_picture(x[0]), cmap="gray")
    axes[0].set_title("what it is given", fontsize=9)
    look.lay_over(axes[1], x[0], look.heat_maps(model, x, first)[0])
    axes[1].set_title("where it looks", fontsize=9)
    for ax in axes[:2]:
        ax.set_axis_off()
    names, shares = zip(*found, strict=True)
    # By place, for two of ImageNet's classes may have one name; and in tenths: what lies behind is
    # another on another machine.
    places = range(len(names))
    axes[2].barh(places, [round(100 * share, 1) for share in shares], color=look.COLOURS[0])
    axes[2].set_yticks(places, names)
    axes[2].invert_yaxis()
    axes[2].set(xlim=(0, 100), xlabel="probability (%)")
    fig.suptitle(title)
    told = ", ".join(f"{name} {share:.0%}" for name, share in found)
    return fig, f"{title}, in {path.name}: {told}."
