"""A class on one machine: the same notebooks in many kernels at once, and what each one needs."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil

from common import session


def run_together(notebooks: list[str], kernels: int) -> pd.DataFrame:
    """Run notebooks in so many kernels at once, as a class does on one server.

    All share the data folder; each has its own runs folder. Returns a row a kernel: `seconds`,
    `private_MB`, the most memory that only this kernel held, and `error`, empty where all cells
    ran.
    """
    if kernels < 1:
        raise ValueError(f"kernels={kernels}; expected 1 or more.")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        students = []
        for i in range(kernels):
            own = Path(folder) / str(i)
            command = [sys.executable, "-m", "common", "run", *notebooks, "--out", str(own)]
            students.append(
                subprocess.Popen(
                    command,
                    env=os.environ | {"CNN_RUNS": str(own / "runs")},
                    cwd=session.HOME,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        seconds, private = [0.0] * kernels, [0.0] * kernels
        while not all(seconds):
            for i, student in enumerate(students):
                if not seconds[i]:
                    private[i] = max(private[i], private_bytes(student.pid))
                    if student.poll() is not None:
                        seconds[i] = time.perf_counter() - start
            time.sleep(0.5)
        said = [student.communicate()[0] for student in students]
    return pd.DataFrame(
        {
            "seconds": seconds,
            "private_MB": [size / 1e6 for size in private],
            "error": [text if s.returncode else "" for text, s in zip(said, students, strict=True)],
        }
    )


def private_bytes(pid: int) -> int:
    """The largest memory that one of this process's kernels holds for itself alone."""
    try:
        kernels = psutil.Process(pid).children(recursive=True)
        return max((kernel.memory_full_info().uss for kernel in kernels), default=0)
    except psutil.Error:  # it has just ended
        return 0
