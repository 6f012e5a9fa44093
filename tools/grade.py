"""Grade a folder of submitted notebooks: `python -m tools.grade FOLDER`, for a CSV and a page.

Each submission runs in a process of its own, with limits on time, memory, files and processes.
Where Linux lets `unshare` make namespaces, it has besides no network, no privileges, a read-only
system without the submitted notebooks (unless the course lies among them), a small disk in memory
as its folder, and none of its processes outlives it. Elsewhere a guard in Python refuses sockets,
and a submission that means harm can delete what the person who grades can: grade the work of
strangers in a container.

The answers are called in the process that judges them. What judges is put back before each check,
and each verdict is reported under a word of its own that stands in no variable. So a verdict cannot
be had by printing one, by replacing functions, methods or exercises, or from a caller's frame.
Whoever searches the interpreter's memory or changes what torch keeps outside of its modules and
classes, such as its modes and hooks, can still forge one.
"""

import ast
import contextlib
import csv
import functools
import html
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from unittest.mock import MagicMock

from IPython.core.inputtransformer2 import TransformerManager
from tyro.conf import Positional

from common import check, exercises, machine, zoo
from common.exercises import catalogue
from common.exercises.answers.limit import limit
from tools import notebooks, start

SECONDS, CELL_SECONDS = 120, 10  # for a submission, and for one of its cells
MEGABYTES, FILE_MEGABYTES, PROCESSES = 8_000, 64, 64
MESSAGE, REPORT = 1_000, 2**20  # the most characters of a message, and bytes of a report
SANDBOX = """\
cut -d' ' -f2 /proc/self/mounts | while read -r place; do
    mount -o remount,bind,ro "$(printf %b "$place")" 2>/dev/null
done
mount -o remount,bind,ro / && mount -t tmpfs none "$1" &&
mount -o remount,bind,ro "$1" && mount -t tmpfs -o size={size}m none "$0" && cd "$0" && shift &&
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""
NAMESPACES = "unshare --user --map-root-user --net --mount --pid --fork --kill-child"
ASKED = re.compile(r"""^\s*check\(\s*["'](\w+\.\w+)["']""", re.MULTILINE)
# The packages that give the verdict, or that it is computed with.
TRUSTED = {"builtins", "common", "contextlib", "copy", "functools", "inspect", "json", "math",
           "numpy", "os", "signal", "tools", "torch"}  # fmt: skip
Row = tuple[str, str, str, str]  # submission, exercise, state, message


def grade(folder: Path, seconds: float = SECONDS) -> list[Row]:
    """A row for every exercise of every notebook in `folder` and below, whatever they do."""
    if not 1 <= seconds <= 3600:
        raise ValueError(f"seconds is {seconds:g}; expected 1 to 3600.")
    return [row for path in submissions(folder) for row in rows_of(path, folder, seconds)]


def submissions(folder: Path) -> list[Path]:
    """The notebooks in `folder` and below, but for those that a program has left there."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() == ".ipynb")
    return [path for path in sorted(paths) if not of_system(path.relative_to(folder))]


def of_system(path: Path) -> bool:
    """Whether a program has left this file: a checkpoint of Jupyter's, or what macOS zips along."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def rows_of(path: Path, folder: Path, seconds: float) -> list[Row]:
    """The verdicts on one submission; what it never got to is *not yet*."""
    name = machine.printable(path.relative_to(folder))
    try:
        cells = answer_cells(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [(name, "-", "not yet", "This is not a notebook.")]
    asked = [name for cell in cells for name in ASKED.findall(cell) if name in catalogue()]
    if not asked:
        return [(name, "-", "not yet", "There are no exercises in this notebook.")]
    verdicts, ended = run_apart(cells, seconds, folder)
    notebooks = {exercise.split(".")[0] for exercise in asked}
    of_it = [exercise for exercise in catalogue() if exercise.split(".")[0] in notebooks]
    lost = ("not yet", f"The notebook {ended} before this could be checked.")
    missing = ("not tried yet", "")
    return [
        (name, exercise, *verdicts.get(exercise, lost if exercise in asked else missing))
        for exercise in of_it
    ]


def answer_cells(text: str) -> list[str]:
    """The code cells from the first exercise on."""
    cells = json.loads(text)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    first = next((i for i, source in enumerate(code) if ASKED.search(source)), len(code))
    return code[first:]


def run_apart(
    cells: list[str], seconds: float, submissions: Path
) -> tuple[dict[str, tuple[str, str]], str]:
    """The verdicts that a process of its own gives on these cells, and how it ended."""
    words = [secrets.token_hex(16) for _ in catalogue()]
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with temporary as folder, tempfile.TemporaryFile("w+") as told:
        told.write(f"{json.dumps(words)}\n{json.dumps(cells)}")
        told.seek(0)
        command = [sys.executable, "-c", "from tools.grade import grade_one; grade_one()"]
        if sandboxed():
            needed = [folder, sys.executable, str(machine.HOME), *filter(None, sys.path)]
            among = any(Path(p).resolve().is_relative_to(submissions.resolve()) for p in needed)
            hidden = folder if among else str(submissions.resolve())
            script = SANDBOX.format(size=FILE_MEGABYTES)
            command = [*NAMESPACES.split(), "sh", "-c", script, folder, hidden, *command]
        # One thread each, so that a class can be graded beside other work.
        environment = os.environ | {"CNN_RUNS": folder, "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": str(machine.HOME), "PYTHONDONTWRITEBYTECODE": "1"}
        child = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True, bufsize=0,
            stdin=told, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            said, ended = heard(child.stdout, seconds)
        finally:
            kill(child)
            child.stdout.close()
            child.wait()
    return verdicts_in(said, words), ended


def verdicts_in(said: bytes, words: list[str]) -> dict[str, tuple[str, str]]:
    """The first line under each word; what is no verdict is left out."""
    lines: dict[str, str] = {}
    for line in said.decode(errors="replace").split("\n"):
        lines.setdefault(line[:32], line[32:])
    found = {}
    for word in words:
        with contextlib.suppress(ValueError, TypeError, RecursionError):  # cut off while it wrote
            name, state, message = json.loads(lines.get(word, ""))
            message = str(message).encode(errors="backslashreplace").decode()  # for the files
            found[name] = state, message
    return found


def heard(pipe, seconds: float) -> tuple[bytes, str]:
    """What a process says in this time, up to a limit, and how that ended."""
    said, end = b"", time.monotonic() + seconds
    while len(said) < REPORT:
        if not select.select([pipe], [], [], max(0, end - time.monotonic()))[0]:
            return said, f"ran longer than {seconds:g} seconds"
        if not (piece := pipe.read(2**16)):
            return said, "ended"
        said += piece
    return said, "wrote too much"


def kill(child: subprocess.Popen) -> None:
    """End a process and all of its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


@functools.cache
def sandboxed() -> bool:
    """Whether this machine lets us make namespaces."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(FileNotFoundError):
        command = [*NAMESPACES.split(), "sh", "-c", SANDBOX.format(size=1), folder, folder, "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


# ------------------------------------------------------------------------- in the child's process


def grade_one() -> None:
    """Read the words and the cells, run these, then report each verdict under the next word."""
    # In no variable: the student's code can see those of its callers.
    os.fdopen(os.dup(1), "w", 1).writelines(
        map(str.__add__, json.loads(sys.stdin.readline()), verdicts())
    )


def verdicts() -> Iterator[str]:
    """A line for each exercise that the cells ask to check."""
    cells = json.load(sys.stdin)
    for fd in (0, 1):  # what the student prints goes nowhere, and there is nothing to read
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    catalogue()  # all that is needed is loaded before the student's code runs
    restrain()
    # Before each check all is put back, by what no variable holds either.
    for (name, answer), _ in zip(run_cells(cells), iter(keeper(), True), strict=False):
        try:
            lost = isinstance(answer, Lost)
            state, message = check.state_of(exercises.find(name), answer)
            message = f"The cell failed: {answer}." if lost else message
        except BaseException as error:  # a submission may break anything, but only for itself
            state, message = "not yet", f"The check failed: {type(error).__name__}."
        yield json.dumps([name, state, message[:MESSAGE]]) + "\n"
    os._exit(0)  # no handler or thread of the student's runs after this


def keeper() -> Callable[[], None]:
    """A function that makes whatever gives the verdict again what it is now."""
    modules = [m for name, m in [*sys.modules.items()] if name.split(".")[0] in TRUSTED]
    inner = [value for module in modules for value in vars(module).values()]
    classes = {id(c): c for c in inner if issubclass(type(c), type)}.values()
    inner += [value for c in classes for value in vars(c).values()]
    codes = [(f, f.__code__, f.__defaults__) for f in inner if type(f) is FunctionType]
    things = [(thing, object) for thing in [*modules, *catalogue().values()]]
    kept = [(c, how, dict(vars(c))) for c, how in [*things, *((c, type) for c in classes)]]
    known = dict(catalogue())

    # The built-in functions by other names: the student's code may replace them.
    def put_back(names=vars, kind=type, module=ModuleType):
        for thing, how, was in kept:
            now = names(thing)
            for name in now.keys() - was.keys():
                if kind(now[name]) is not module:  # parts of torch that were imported since
                    how.__delattr__(thing, name)
            for name, value in was.items():
                if now.get(name) is not value:
                    how.__setattr__(thing, name, value)
        for function, code, defaults in codes:
            if function.__code__ is not code or function.__defaults__ is not defaults:
                function.__code__, function.__defaults__ = code, defaults
        catalogue().update(known)
        exercises.measured.cache_clear()

    return put_back


def restrain() -> None:
    """Limits of the operating system, and no sockets."""
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        for kind, most in (
            (resource.RLIMIT_AS, MEGABYTES * 2**20),
            (resource.RLIMIT_FSIZE, FILE_MEGABYTES * 2**20),
            (resource.RLIMIT_CORE, 0),
        ):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (most, most))
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))

    def refuse(*_, **__):
        raise OSError("there is no network while grading")

    socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse


class Lost(str):
    """Why an exercise has no answer."""


def run_cells(cells: list[str]) -> Iterator[tuple[str, object]]:
    """Run the cells one after another, each with a limit, and then give what they give to check."""
    answers: dict[str, object] = {}
    known = {name: e for name, e in catalogue().items() if any(name in cell for cell in cells)}
    names = {"__name__": "submission", "check": answers.__setitem__}
    names = given({name.split(".")[0] for name in known}) | names
    # What belongs to the notebook does nothing here, and magic commands with it.
    idle = ("hint", "solution", "progress", "display", "get_ipython")
    names |= dict.fromkeys(idle, MagicMock())
    for exercise in catalogue().values():
        names.pop(exercise.name, None)
    for number, cell in enumerate(cells):
        reason = "its check was not reached"
        try:
            with limit(CELL_SECONDS):
                exec(compile(plain(cell), f"exercise cell {number + 1}", "exec"), names)  # noqa: S102
        except BaseException as error:
            reason = f"{type(error).__name__} came before its check"
        for name in set(ASKED.findall(cell)) & known.keys() - answers.keys():
            # An open question's experiment may take its time before it comes to the check.
            mine = names.get(known[name].name) if known[name].rubric else None
            answers[name] = mine if callable(mine) else Lost(reason)
    yield from [(name, answer) for name, answer in answers.items() if name in catalogue()]


def given(courses: set[str]) -> dict[str, object]:
    """What the course's own notebooks, such as "lenet", import, and their networks."""
    names: dict[str, object] = {}
    for path in notebooks.paths(sorted(courses)) if courses else []:
        code = [cell.source for cell in notebooks.read(path).cells if cell.cell_type == "code"]
        lines = [line for cell in code for line in ast.parse(plain(cell)).body]
        imports = [line for line in lines if isinstance(line, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), path.name, "exec"), names)  # noqa: S102
        names |= vars(zoo.module_of(path))
    return names


def plain(cell: str) -> str:
    """The cell in Python: its magic commands become calls, and a first line with %% goes."""
    return TransformerManager().transform_cell(re.sub(r"\A\s*%%.*", "", cell))


# --------------------------------------------------------------------------------------- the result


def write_csv(rows: list[Row], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("submission", "exercise", "state", "message"), *rows])


def page(rows: list[Row]) -> str:
    """One self-contained HTML page: a count for each submission, then every verdict."""
    style = "body{font:15px sans-serif;margin:2em}td,th{padding:3px 10px;text-align:left}"
    parts = [f"<!doctype html><meta charset=utf-8><title>Grades</title><style>{style}</style>"]
    for submission in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == submission]
        right = sum(state == "right" for _, _, state, _ in mine)
        parts.append(f"<h2>{html.escape(submission)}: {right} of {len(mine)} right</h2><table>")
        for _, name, state, message in mine:
            cells = f"<td>{html.escape(name)}<td style='color:{check.colour_of(state)}'>"
            parts.append(f"<tr>{cells}{html.escape(state)}<td>{html.escape(message)}")
        parts.append("</table>")
    return "\n".join(parts)


def main(
    folder: Positional[Path | None] = None,
    out: Path = Path("grades"),
    seconds: float = SECONDS,
) -> int:
    """Grade the notebooks of a folder, each in a process of its own.

    Args:
        folder: the submitted notebooks.
        out: where grades.csv and grades.html go.
        seconds: for one submission.
    """
    if folder is None or not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected that of the submitted notebooks.")
    if not submissions(folder):
        raise ValueError(f"{folder} holds no notebooks (.ipynb).")
    out.mkdir(parents=True, exist_ok=True)  # raises for a file, before hours of work
    rows = grade(folder, seconds)
    write_csv(rows, out / "grades.csv")
    (out / "grades.html").write_text(page(rows), encoding="utf-8")
    print(f"{len(rows)} verdicts in {out}; {'sandboxed' if sandboxed() else 'NO sandbox'}")
    return 0


if __name__ == "__main__":
    start(main, "tools.grade")
