"""A class on one machine: the same notebooks in many kernels at once, and what each one needs."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil
from tyro.conf import Positional

from common import machine
from tools import start


def run_together(notebooks: list[str], kernels: int) -> pd.DataFrame:
    """Run notebooks in so many kernels at once, as a class does on one server.

    All share the data folder; each has its own runs folder. Returns a row a kernel: `seconds`,
    `private_MB`, the most memory that only this kernel held, and `error`, empty where all cells
    ran.
    """
    if not notebooks:
        raise ValueError("No notebook is named: python -m tools.classroom 01 02 --kernels 8")
    if kernels < 1:
        raise ValueError(f"kernels={kernels}; expected 1 or more.")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        folders = [Path(folder) / str(i) for i in range(kernels)]
        students = [enter(notebooks, own) for own in folders]
        seconds, private = [0.0] * kernels, [0.0] * kernels
        try:
            while not all(seconds):
                for i, student in enumerate(students):
                    if not seconds[i]:
                        private[i] = max(private[i], private_bytes(student.pid))
                        if student.poll() is not None:
                            seconds[i] = time.perf_counter() - start
                            print(f"kernel {i + 1} of {kernels}: {seconds[i]:.0f} s", flush=True)
                time.sleep(0.5)
        finally:
            for student in students:
                student.terminate()
        errors = [
            f"exit code {student.returncode}: {(own / 'said.txt').read_text()}"
            if student.returncode
            else ""
            for student, own in zip(students, folders, strict=True)
        ]
    private_mb = [size / 1e6 for size in private]
    return pd.DataFrame({"seconds": seconds, "private_MB": private_mb, "error": errors})


def enter(notebooks: list[str], own: Path) -> subprocess.Popen:
    """One student: a process that runs the notebooks, with a folder of its own."""
    own.mkdir()
    command = [sys.executable, "-m", "common", "run", *notebooks, "--out", str(own)]
    # One thread a kernel: threads of many kernels on a few cores wait for each other.
    environment = os.environ | {"CNN_RUNS": str(own / "runs"), "OMP_NUM_THREADS": "1"}
    with open(own / "said.txt", "w", encoding="utf-8") as said:
        return subprocess.Popen(
            command, env=environment, cwd=machine.HOME, stdout=said, stderr=subprocess.STDOUT
        )


def private_bytes(pid: int) -> int:
    """The largest memory that one of this process's kernels holds for itself alone."""
    try:
        kernels = psutil.Process(pid).children(recursive=True)
        return max((kernel.memory_full_info().uss for kernel in kernels), default=0)
    except psutil.Error:  # it has just ended
        return 0


def main(notebooks: Positional[tuple[str, ...]], kernels: int = 8) -> int:
    """Run notebooks in many kernels at once, as a class on one server does.

    Args:
        notebooks: numbers or names, such as 01 or lenet.
        kernels: how many at once.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ended from outside, its kernels end too
    found = run_together(list(notebooks), kernels)
    print(found.drop(columns="error").round(1).to_string())
    for error in filter(None, found["error"]):
        print(error)
    print(
        f"{(found['error'] == '').sum()} of {len(found)} kernels ran to the end; "
        f"at most {found['private_MB'].max():,.0f} MB private, {found['seconds'].max():.0f} s"
    )
    return int((found["error"] != "").any())


if __name__ == "__main__":
    start(main, "tools.classroom")
