"""Every architecture by name, built from the notebooks' own cells.

A notebook's code cells whose first line is `#| model` are the one definition of its networks. They
are imported as a module: `common.zoo.lenet` is made of the marked cells of 01_lenet.ipynb. Such a
module ends in `VARIANTS`, a list of `Variant` rows with their names written out, and
`ARCHITECTURE`. A name is looked up in the text of the cells, so that only the notebook that defines
it is run: a broken one breaks nothing else.
"""

import ast
import functools
import importlib
import importlib.abc
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from common import machine
from common.config import in_python, whole
from common.machine import unknown

MARK = "#| model"
NOTEBOOKS = machine.HOME / "notebooks"
__path__: list[str] = []  # makes this module a package, so that common.zoo.lenet can be imported


@dataclass(frozen=True)
class Variant:
    """One network of a notebook.

    `build(in_channels, num_classes, **options)` makes it; `input_shape` is (C, H, W); `params` and
    `mult_adds` (one image, by torchinfo) are the counts to expect there; `source` names the paper
    or report.
    """

    name: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    params: int
    mult_adds: int
    source: str
    num_classes: int = 10


@dataclass(frozen=True)
class Architecture:
    """What is true of all variants of a notebook.

    `year` is that of the first publication and `added` what was new. `photo` names the variant of
    the experiment cifar10 and `rate` its learning rate there; `course` is the run of the course's
    own experiment and `bench` what the benchmark measures (see common.experiments, tools.bench).
    """

    name: str
    year: int
    added: str
    photo: str
    rate: float
    course: dict = field(default_factory=dict)
    bench: dict = field(default_factory=dict)


# ------------------------------------------------------------------------- cells as a module


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
        for notebook in notebooks() if package == __name__ else ():
            if notebook.stem[3:] == name:
                return importlib.util.spec_from_loader(fullname, NotebookLoader(notebook))
        return None


sys.meta_path.append(NotebookFinder())


def notebooks() -> list[Path]:
    """The notebooks in the order of the course; a copy stands behind what it is a copy of."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"), key=lambda path: path.stem)


# --------------------------------------------------------------------------------- the names


@functools.cache
def index() -> tuple[dict[str, Path], tuple[str, ...]]:
    """(name of each variant -> its notebook, problems), read from the text of the model cells.

    Where a name is defined twice the first notebook keeps it. A problem is one line: a notebook
    that cannot be read, or a name's second definition.
    """
    found: dict[str, Path] = {}
    problems = []
    for notebook in notebooks():
        try:
            names = variant_names(NotebookLoader(notebook).get_data("").decode())
        except SyntaxError as error:
            line = (error.text or "").strip()
            problems.append(f"{notebook.name} is left out: {error.msg} in {line!r}")
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"{notebook.name} is left out: it is no readable notebook ({error})")
            continue
        for name in names:
            if name in found:
                first = found[name].name
                problems.append(f"{notebook.name} defines {name} too: that of {first} counts")
            else:
                found[name] = notebook
    return found, tuple(problems)


def variant_names(source: str) -> list[str]:
    """The names in the `Variant("name", …)` rows of a module's source. Raises SyntaxError."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    rows = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "Variant" and c.args]
    firsts = sorted((r.args[0] for r in rows), key=lambda node: (node.lineno, node.col_offset))
    return [node.value for node in firsts if isinstance(node, ast.Constant)]


def names() -> tuple[str, ...]:
    """The names that `build` takes, in the order of the course."""
    return tuple(index()[0])


def notebook_of(name: str) -> Path:
    """The notebook that defines a variant. Raises ValueError for an unknown name."""
    found, problems = index()
    if not isinstance(name, str) or name not in found:
        raise ValueError(" ".join([unknown("model", name, tuple(found)), *problems]))
    return found[name]


def module_of(notebook: Path) -> ModuleType:
    """The model cells of a notebook as a module. Raises ValueError, naming it, where they fail."""
    try:
        return importlib.import_module(f"{__name__}.{notebook.stem[3:]}")
    except (Exception, SystemExit) as error:  # whatever its cells do
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"The model cells of {notebook.name} do not run: {told}") from error


def variant(name: str) -> Variant:
    """The table row of a variant. Raises ValueError for an unknown name or a broken notebook."""
    notebook = notebook_of(name)
    for row in module_of(notebook).VARIANTS:
        if row.name == name:
            return row
    raise ValueError(f"{notebook.name} names {name}, but its VARIANTS do not hold it.")


def architectures() -> dict[str, Architecture]:
    """What each notebook with networks says of them, by its name such as "lenet", in order.

    A notebook that does not run, or says nothing, is left out.
    """
    found = {}
    for notebook in dict.fromkeys(index()[0].values()):
        try:
            found[notebook.stem[3:]] = module_of(notebook).ARCHITECTURE
        except (ValueError, AttributeError):
            continue
    return found


# ------------------------------------------------------------------------------- the networks


def build(
    name: str, in_channels: int | None = None, num_classes: int | None = None, **options
) -> nn.Module:
    """A freshly initialised network. Channels and classes default to the variant's own.

    Its attributes `zoo_name` and `options` say what it was built as. Raises ValueError for an
    unknown name or option, fewer than 1 channel, or fewer than 2 classes.
    """
    row = variant(name)
    channels = whole("in_channels", row.input_shape[0] if in_channels is None else in_channels)
    classes = whole("num_classes", row.num_classes if num_classes is None else num_classes, least=2)
    options = {option: in_python(value) for option, value in options.items()}
    try:
        model = row.build(in_channels=channels, num_classes=classes, **options)
    except ValueError:
        raise
    except Exception as error:  # whatever the notebook's code makes of an odd value
        raise ValueError(f"{name} cannot be built with {options}: {error}.") from error
    model.zoo_name, model.options = name, options
    return model


def build_on_meta(name: str, **options) -> nn.Module:
    """The network without memory or values, for counting."""
    with torch.device("meta"):
        return build(name, **options)


def scaled(channels: int, width: float) -> int:
    """`channels` times the factor `width`, rounded. Raises ValueError where none would be left."""
    if round(channels * width) < 1:
        raise ValueError(
            f"width={width} leaves {round(channels * width)} of {channels} channels; "
            f"choose a width of at least {1 / channels:.3g}."
        )
    return round(channels * width)


def name_of(model: nn.Module) -> str:
    """The variant that a model is of: as it was built, else the first one of its class.

    A class that no notebook knows gives its own name.
    """
    if isinstance(told := getattr(model, "zoo_name", None), str):
        return told
    kind = type(model).__name__
    for name, notebook in index()[0].items():
        source = NotebookLoader(notebook).get_data("").decode()
        if f"class {kind}(" in source:
            maker = variant(name).build
            maker = getattr(maker, "func", maker)
            if maker.__name__ == kind:
                return name
    return kind
