"""The notebooks as files: the cells they share, running them, and cleaning what a run stored."""

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from common import check, machine
from common.exercises import Exercise, catalogue
from common.machine import unknown
from common.zoo import NOTEBOOKS
from tools import start

# At most 8 lines of code, and it must stand alone: on Colab there is nothing but the one notebook.
# An import statement would cost a ninth: the formatter puts an empty line below it.
SETUP = """\
import os, pathlib, sys  # noqa: E401, I001  # setup: this cell is the same in every notebook

url = os.environ.get("COURSE_URL", "{url}")
kaggle = pathlib.Path(os.environ.get("KAGGLE_INPUT", "/kaggle/input")).glob("*/**/")
places = [*pathlib.Path("x").absolute().parents, pathlib.Path("course").absolute(), *kaggle]
homes = [str(p) for p in places if (p / "common/setup.py").exists()]
assert homes or not os.system(f"git clone --depth 1 {{url}} course"), f"cannot fetch {{url}}"
sys.path.insert(0, homes[0] if homes else os.path.abspath("course"))
import common.setup"""

# What a notebook's metadata may hold: nothing that changes from one machine to the next.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# A table's row fits on one line: 99_compare is a tenth smaller so, and a diff reads like the table.
BETWEEN_CELLS = re.compile(r"(?<=</t[dh]>)\s+(?=<t[dh])")
# Where pandas styles nothing, the class it gives each cell is half of the table's bytes.
UNSTYLED = '<style type="text/css">\n</style>\n'
CELL_CLASS = re.compile(r' class="(?:data|col_heading) [^"]*" ?')


class CellFailed(RuntimeError):
    """A notebook stopped at a cell; the message names the notebook, the cell and the error."""


class Stopped(CellFailed):
    """Somebody stopped the notebook, by Ctrl-C or SIGTERM."""


def setup_cell() -> str:
    """The setup cell, with the course's address as pyproject.toml has it."""
    project = tomllib.loads((machine.HOME / "pyproject.toml").read_text())["project"]
    return SETUP.format(url=project["urls"]["Repository"])


def paths(names: list[str] | None = None) -> list[Path]:
    """The notebooks in the order of the course, or those named, such as "01" or "lenet"."""
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not names:
        return found
    known = {key: path for path in found for key in (path.stem, path.stem[:2], path.stem[3:])}
    for name in names:
        if name not in known:
            raise ValueError(unknown("notebook", name, tuple(path.stem for path in found)))
    wanted = {known[name] for name in names}
    return [path for path in found if path in wanted]


# -------------------------------------------------------------------------------- shared cells


def statement_cell(name: str, exercise: Exercise) -> str:
    """The markdown of an exercise."""
    title = exercise.name.replace("_", " ").capitalize()
    advice = []
    if exercise.gradient:
        advice.append("The gradient must be able to flow back: no numpy, `.item()` or `detach`.")
    if not (exercise.experiment or exercise.broken or exercise.rubric):
        advice.append(check.enough(exercise))
    parts = [f"### Exercise: {title}", exercise.statement.strip(), "\n".join(advice)]
    return "\n\n".join(part for part in parts if part)


def answer_cell(name: str, code: str, answer: str) -> str:
    """The code cell of an exercise: the student's code, then the check, hints and solution."""
    asks = "\n".join([f'# hint("{name}", 1)', f'# solution("{name}")'])
    gap = "\n\n\n" if code.lstrip().startswith(("def ", "class ")) else "\n\n"
    return f'{code.strip()}{gap}check("{name}", {answer})\n{asks}'


def sync(notebook: NotebookNode) -> None:
    """Rewrite the setup cell and the exercises' cells in place from their one definition.

    Cells of new exercises come in, those of old ones go, and the table of progress stands last.
    """
    lay_out(notebook)
    for cell in notebook.cells:
        if cell.id == "setup":
            cell.source = setup_cell()
        elif cell.id.startswith(("ask-", "try-")):
            name = cell.id[4:].replace("--", ".")
            exercise = catalogue()[name]
            cell.source = (
                statement_cell(name, exercise)
                if cell.id.startswith("ask-")
                else answer_cell(name, exercise.skeleton, exercise.answer)
            )


def lay_out(notebook: NotebookNode) -> None:
    """Give a notebook with a summary the cells of its exercises, in place and in their order.

    A new cell has the output that its first run would give, and all code cells are counted anew.
    """
    ids = [cell.id for cell in notebook.cells]
    of = next((id[4:].split("--")[0] for id in ids if id.startswith("ask-")), None)
    names = [name for name in catalogue() if name.split(".")[0] == of]
    wanted = [f"{kind}-{n.replace('.', '--')}" for n in names for kind in ("ask", "try")]
    wanted.append("progress")
    if "summary" not in ids or [id for id in ids if is_exercise(id)] == wanted:
        return
    new = [new_cell(id, names) for id in wanted]
    rest = [cell for cell in notebook.cells if not is_exercise(cell.id)]
    end = [cell.id for cell in rest].index("summary")
    notebook.cells = [*rest[:end], *new, *rest[end:]]
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.get("execution_count") is not None:
                output.execution_count = count


def is_exercise(id: str) -> bool:
    return id == "progress" or id.startswith(("ask-", "try-"))


def new_cell(id: str, names: list[str]) -> NotebookNode:
    """A cell of an exercise, still without its source, or the table of progress."""
    if id.startswith("ask-"):
        return new_markdown_cell(id=id)
    of = names[0].split(".")[0]
    source = f'from common.check import progress\n\nprogress("{of}")' if id == "progress" else ""
    return new_code_cell(source, id=id, outputs=untried(id, names))


def untried(id: str, names: list[str]) -> list[NotebookNode]:
    """What a cell shows when its exercise, or all of them, have not been tried yet."""
    if id == "progress":
        page, text = check.progress_table({name.split(".")[1]: check.STATES[0] for name in names})
    else:
        name = id[4:].replace("--", ".")
        exercise = catalogue()[name]
        defined = dict(vars(sys.modules[exercise.solution.__module__]))
        exec(exercise.skeleton, defined)  # noqa: S102
        state, message = check.state_of(exercise, defined[exercise.name])
        page, text = check.both(f"{name}: {state}.", message, check.colour_of(state))
    return [new_output("display_data", {"text/html": page, "text/plain": text})]


def solve(notebook: NotebookNode) -> None:
    """Fill in the solution of every exercise, in place."""
    for cell in notebook.cells:
        if cell.id.startswith("try-"):
            name = cell.id[4:].replace("--", ".")
            cell.source = answer_cell(name, catalogue()[name].source, catalogue()[name].answer)


# -------------------------------------------------------------------------------- running


def execute(
    notebook: NotebookNode,
    name: str,
    tick: Callable[[int, int], None] | None = None,
    cell_seconds: float = 1800,
) -> None:
    """Run a notebook in place, in the notebooks folder; `tick(done, total)` follows the code cells.

    Raises CellFailed at the first cell that fails or takes longer than `cell_seconds`, Stopped
    where somebody stops it.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    number = 0  # of the code cell that runs, or ran last

    def starts(cell: NotebookNode, cell_index: int) -> None:
        nonlocal number
        number = code.index(cell_index) + 1

    def finished(cell: NotebookNode, **_) -> None:
        if tick:
            tick(number, len(code))

    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    client = NotebookClient(
        notebook,
        timeout=cell_seconds,
        resources=resources,
        coalesce_streams=True,  # or what is printed in pieces is stored in pieces
        on_cell_execute=starts,
        on_cell_executed=finished,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # nothing about its own transport
    )
    try:
        client.execute()
    except (KeyboardInterrupt, AssertionError) as error:  # the latter is what nbclient makes of it
        raise Stopped(f"{name}, code cell {number} of {len(code)}: stopped") from error
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        # nbclient takes Ctrl-C and SIGTERM for itself, and ends the kernel.
        if hasattr(client, "_async_cleanup_kernel_future"):
            raise Stopped(f"{name}, code cell {number} of {len(code)}: stopped") from error
        reason = getattr(error, "evalue", "") or str(error)
        kind = getattr(error, "ename", type(error).__name__)
        raise CellFailed(f"{name}, code cell {number} of {len(code)}: {kind}: {reason}") from error


def clean(notebook: NotebookNode) -> None:
    """Keep what a reader should see, in place: counts 1 to n, fixed metadata, no progress bars."""
    notebook.metadata = nbformat.from_dict(METADATA)
    count = 0
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        kept = []
        for output in cell.outputs:
            widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
            if widget or output.get("name") == "stderr":
                continue
            output.pop("transient", None)
            if "metadata" in output:
                output.metadata = {}
            if page := output.get("data", {}).get("text/html"):
                page = BETWEEN_CELLS.sub("", page)
                if page.startswith(UNSTYLED):
                    page = CELL_CLASS.sub("", page.removeprefix(UNSTYLED))
                output.data["text/html"] = page
            if output.get("execution_count") is not None:
                output.execution_count = count
            kept.append(output)
        cell.outputs = kept


def read(path: Path) -> NotebookNode:
    """A notebook as nbformat's version 4."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # of JSON, of the schema
        raise ValueError(f"{path} is no readable notebook ({str(error)[:80]}).") from error


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    with machine.written_whole(path) as fresh:
        fresh.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")


def words(notebook: NotebookNode) -> int:
    """Words of prose in the markdown cells: no exercises, tables, code or pictures."""
    told = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    text = "\n".join(cell.source for cell in told if not cell.id.startswith("ask-"))
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "!["))]
    return len(re.findall(r"[A-Za-z][\w'-]*", "\n".join(lines)))


def main() -> int:
    """Rewrite the cells that the notebooks share from their one definition."""
    for path in paths():
        notebook = read(path)
        sync(notebook)
        write(notebook, path)
    return 0


if __name__ == "__main__":
    start(main, "tools.notebooks")
