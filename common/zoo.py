"""Every architecture by name, built from the notebooks' own cells.

A notebook's code cells whose first line is `#| model` are the one definition of its networks.
They are imported as a module: `common.zoo.lenet` is made of the marked cells of 01_lenet.ipynb.
Each such module ends in `VARIANTS`, a list of `Variant`.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common import machine, probe
from common.machine import unknown

MARK = "#| model"
NOTEBOOKS = machine.HOME / "notebooks"
__path__: list[str] = []  # makes this module a package, so that common.zoo.lenet can be imported


@dataclass(frozen=True)
class Variant:
    """One network of a notebook.

    `build(in_channels, num_classes, **options)` makes it; `input_shape` is (C, H, W); `params` is
    the count to expect at these channels and `num_classes`; `source` names the paper or report.
    """

    name: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    params: int
    source: str
    num_classes: int = 10


class NotebookLoader(importlib.abc.SourceLoader):
    """Serves the marked cells of one notebook as a module's source."""

    def __init__(self, notebook: Path):
        self.notebook = notebook

    def get_filename(self, fullname: str) -> str:
        # A name that is no file, so that tracebacks and inspect ask get_source for the lines.
        return f"{self.notebook.name}[model]"

    def get_data(self, path: str) -> bytes:
        cells = json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]
        sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        return "\n\n\n".join(s for s in sources if s.startswith(MARK)).encode()


class NotebookFinder(importlib.abc.MetaPathFinder):
    """Finds common.zoo.NAME in notebooks/NN_NAME.ipynb."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.rpartition(".")
        if package != __name__:
            return None
        for notebook in NOTEBOOKS.glob(f"[0-9][0-9]_{name}.ipynb"):
            loader = NotebookLoader(notebook)
            spec = importlib.machinery.ModuleSpec(
                fullname, loader, origin=loader.get_filename(fullname)
            )
            spec.has_location = True  # gives the module a __file__, without which inspect gives up
            return spec
        return None


sys.meta_path.append(NotebookFinder())


@functools.cache
def variants() -> dict[str, tuple[Variant, str]]:
    """Every variant by name, with its notebook's file name, in the order of the course."""
    found = {}
    for notebook in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        name = notebook.stem[3:]
        if NotebookLoader(notebook).get_data(""):
            module = importlib.import_module(f"{__name__}.{name}")
            found |= {variant.name: (variant, notebook.name) for variant in module.VARIANTS}
    return found


def names() -> tuple[str, ...]:
    """The names that `build` takes, in the order of the course."""
    return tuple(variants())


def variant(name: str) -> Variant:
    """The table row of a variant. Raises ValueError for an unknown name."""
    if name not in variants():
        raise ValueError(unknown("model", name, names()))
    return variants()[name][0]


def build(
    name: str, in_channels: int | None = None, num_classes: int | None = None, **options
) -> nn.Module:
    """A freshly initialised network. Channels and classes default to the variant's own.

    Raises ValueError for an unknown name, fewer than 1 channel, or fewer than 2 classes.
    """
    row = variant(name)
    in_channels = row.input_shape[0] if in_channels is None else in_channels
    num_classes = row.num_classes if num_classes is None else num_classes
    if in_channels < 1:
        raise ValueError(f"in_channels={in_channels}; expected 1 (grey), 3 (colour) or more.")
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}; a classifier needs at least 2.")
    model = row.build(in_channels=in_channels, num_classes=num_classes, **options)
    model.register_forward_pre_hook(InputCheck())
    return model


class InputCheck:
    """A forward hook that raises ValueError, once for each new shape, where images do not fit."""

    def __init__(self) -> None:
        self.passed: set[tuple[int, ...]] = set()

    def __call__(self, model: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if torch.compiler.is_compiling():  # torch.compile runs the model on no real images
            return
        shape = tuple(inputs[0].shape[1:])
        if not inputs[0].is_meta and shape not in self.passed:
            probe.check_fits(model, (1, *shape))
            self.passed.add(shape)


def scaled(channels: int, width: float) -> int:
    """`channels` times the factor `width`, rounded. Raises ValueError where none would be left."""
    if round(channels * width) < 1:
        raise ValueError(
            f"width={width} leaves {round(channels * width)} of {channels} channels; "
            f"choose a width of at least {1 / channels:.3g}."
        )
    return round(channels * width)


def build_on_meta(name: str, **options) -> nn.Module:
    """The network without memory or values, for counting: takes milliseconds for any size."""
    with torch.device("meta"):
        return build(name, **options)
