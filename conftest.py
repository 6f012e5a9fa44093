"""Every test run, notebooks included, uses the smallest budget unless told otherwise.

What it writes goes to a folder of its own, and it asks no network: without data the samples serve.
"""

import os
import shutil
import time
from pathlib import Path
from queue import Empty

from nbval import kernel

HERE = Path(__file__).parent
RUNS = HERE / "build/test-runs"
os.environ.setdefault("CNN_PROFILE", "smoke")
os.environ["CNN_RUNS"] = str(RUNS)
if "CNN_DATA" not in os.environ and not (HERE / "data").is_dir():
    os.environ |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


def watched(get_message):
    """nbval's way to wait for a kernel's message, which now ends when the kernel does.

    By itself it waits for a dead one as long as a cell may take, and then says only "Timeout".
    """

    def wait(self, stream, timeout=None):
        end = time.monotonic() + (timeout or 3600)
        while True:
            try:
                return get_message(self, stream, timeout=1)
            except Empty:
                if not self.km.is_alive():
                    raise RuntimeError("The kernel died in this cell.") from None
                if time.monotonic() > end:
                    raise

    return wait


def pytest_configure(config) -> None:
    """Nothing of an earlier test run goes on or is compared, but what is decoded stays so."""
    if not hasattr(config, "workerinput"):
        for part in ("records", "weights", "checkpoints"):
            shutil.rmtree(RUNS / part, ignore_errors=True)
        (RUNS / "progress.json").unlink(missing_ok=True)


kernel.RunningKernel.get_message = watched(kernel.RunningKernel.get_message)
