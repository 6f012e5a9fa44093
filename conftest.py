"""Every test run, notebooks included, uses the smallest budget unless told otherwise."""

import os
import time
from queue import Empty

os.environ.setdefault("CNN_PROFILE", "smoke")

from nbval import kernel


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


kernel.RunningKernel.get_message = watched(kernel.RunningKernel.get_message)
