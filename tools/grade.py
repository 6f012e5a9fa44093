"""Grade a folder of submitted notebooks: `python -m tools.grade FOLDER`, for a CSV and a page.

Each submission runs in a process of its own, with limits on time, memory, files and processes.
Where Linux lets `unshare` make namespaces, it has besides no network, a read-only system, a small
disk in memory as its folder, and none of its processes outlives it. Elsewhere a guard in Python
refuses sockets, and a submission that means harm can delete what the person who grades can: grade
the work of strangers in a container. The checker is loaded before the student's cells and put back
after them, and reports under a word that it alone was told. So a verdict cannot be had by printing
one or by replacing functions; somebody who reads the interpreter's memory can still forge it.
"""

import builtins
import contextlib
import csv
import functools
import html
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tyro.conf import Positional

from common import check, exercises, machine
from common.exercises import catalogue
from common.exercises.answers import alike, outcome, wording
from common.exercises.answers.limit import limit
from tools import start

SECONDS, CELL_SECONDS = 120, 10  # for a submission, and for one of its cells
MEGABYTES, FILE_MEGABYTES, PROCESSES = 8_000, 64, 64
SANDBOX = """\
cut -d' ' -f2 /proc/self/mounts | while read -r place; do
    mount -o remount,bind,ro "$place" 2>/dev/null
done
mount -o remount,bind,ro / && mount -t tmpfs -o size={size}m none "$0" && cd "$0" && exec "$@"
"""
NAMESPACES = "unshare --user --map-root-user --net --mount --pid --fork --kill-child"
ASKED = re.compile(r"""^\s*check\(\s*["'](\w+\.\w+)["']""", re.MULTILINE)
Row = tuple[str, str, str, str]  # submission, exercise, state, message


def grade(folder: Path, seconds: float = SECONDS) -> list[Row]:
    """A row for every exercise of every notebook in `folder` and below, whatever they do."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() == ".ipynb")
    return [row for path in sorted(paths) for row in rows_of(path, folder, seconds)]


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
    verdicts, ended = run_apart(cells, seconds)
    notebook = asked[0].split(".")[0]
    of_it = [exercise for exercise in catalogue() if exercise.split(".")[0] == notebook]
    lost = ("not yet", f"The notebook {ended} before this could be checked.")
    missing = ("not tried yet", "")
    return [
        (name, exercise, *verdicts.get(exercise, lost if exercise in asked else missing))
        for exercise in of_it
    ]


def answer_cells(text: str) -> list[str]:
    """The code cells from the first exercise on, without the notebook's magic commands."""
    cells = json.loads(text)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    first = next((i for i, source in enumerate(code) if ASKED.search(source)), len(code))
    return [re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE) for source in code[first:]]


def run_apart(cells: list[str], seconds: float) -> tuple[dict[str, tuple[str, str]], str]:
    """The verdicts that a process of its own gives on these cells, and how it ended."""
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from tools.grade import grade_one; grade_one()"]
        if sandboxed():
            script = SANDBOX.format(size=FILE_MEGABYTES)
            command = [*NAMESPACES.split(), "sh", "-c", script, folder, *command]
        # One thread each, so that a class can be graded beside other work.
        environment = os.environ | {"CNN_RUNS": folder, "OMP_NUM_THREADS": "1"}
        environment |= {"PYTHONPATH": str(machine.HOME), "PYTHONDONTWRITEBYTECODE": "1"}
        child = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            said, _ = child.communicate(json.dumps([word, cells]), timeout=seconds)
            ended = "ended"
        except subprocess.TimeoutExpired:
            kill(child)
            said, ended = child.communicate()[0], f"ran longer than {seconds:g} seconds"
        finally:
            kill(child)
    lines = [line.removeprefix(word) for line in said.splitlines() if line.startswith(word)]
    return {name: (state, message) for name, state, message in map(json.loads, lines)}, ended


def kill(child: subprocess.Popen) -> None:
    """End a process and all of its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


@functools.cache
def sandboxed() -> bool:
    """Whether this machine lets us make namespaces."""
    if not shutil.which("unshare"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = [*NAMESPACES.split(), "sh", "-c", SANDBOX.format(size=1), folder, "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


# ------------------------------------------------------------------------- in the child's process


def grade_one() -> None:
    """Read the word and the cells, run these, then check the answers and report under the word."""
    word, cells = json.load(sys.stdin)
    report = os.fdopen(os.dup(1), "w")
    for fd in (0, 1):  # what the student prints goes nowhere, and there is nothing to read
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    catalogue()  # all that is needed is loaded before the student's code runs
    kept = [(module, dict(vars(module))) for module in trusted()]
    restrain()
    answers = run_cells(cells)
    for module, names in kept:
        vars(module).update(names)
    for name, answer in answers.items():
        try:
            state, message = check.state_of(exercises.find(name), answer)
        except BaseException as error:  # a submission may break anything, but only for itself
            state, message = "not yet", f"The check failed: {type(error).__name__}."
        print(word + json.dumps([name, state, message]), file=report, flush=True)
    os._exit(0)  # no handler or thread of the student's runs after this


def trusted() -> list:
    """The modules that give the verdict."""
    import torch

    modules = [sys.modules[e.solution.__module__] for e in catalogue().values()]
    unique = {id(m): m for m in modules}.values()
    return [builtins, torch, json, os, alike, check, exercises, outcome, wording, *unique]


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


def run_cells(cells: list[str]) -> dict[str, object]:
    """Run the cells one after another, each with a limit, and return what they give to check."""
    answers: dict[str, object] = {}
    known = {name: e for name, e in catalogue().items() if any(name in cell for cell in cells)}
    names = {"__name__": "submission", "check": answers.__setitem__}
    for exercise in known.values():  # what the notebook has imported and defined further up
        names = vars(sys.modules[exercise.solution.__module__]) | names
    names |= dict.fromkeys(("hint", "solution", "progress"), lambda *_: None)
    for exercise in catalogue().values():
        names.pop(exercise.name, None)
    for number, cell in enumerate(cells):
        with contextlib.suppress(BaseException), limit(CELL_SECONDS):
            exec(compile(cell, f"exercise cell {number + 1}", "exec"), names)  # noqa: S102
        for name in set(ASKED.findall(cell)) & known.keys() - answers.keys():
            answers[name] = failed(name)
    return {name: answer for name, answer in answers.items() if name in catalogue()}


def failed(name: str):
    def answer(*_):
        raise RuntimeError(f"the cell of {name} failed")

    return answer


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
            cells = f"<td>{html.escape(name)}<td style='color:{check.colour_of(state)}'>{state}"
            parts.append(f"<tr>{cells}<td>{html.escape(message)}")
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
    out.mkdir(parents=True, exist_ok=True)
    if not (rows := grade(folder, seconds)):
        raise ValueError(f"{folder} holds no notebooks (.ipynb).")
    write_csv(rows, out / "grades.csv")
    (out / "grades.html").write_text(page(rows), encoding="utf-8")
    print(f"{len(rows)} verdicts in {out}; {'sandboxed' if sandboxed() else 'NO sandbox'}")
    return 0


if __name__ == "__main__":
    start(main, "tools.grade")
