"""A limit on the time that an answer may take."""

import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator

SECONDS = 2.0  # what one call of an answer may take


class TooSlow(BaseException):
    """Raised inside an answer that does not end; no `except Exception` of its own catches it."""

    def __str__(self) -> str:
        return f"it had not ended after {SECONDS:g} seconds"


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow inside when the time is up, again and again for code that catches it."""
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():

        def ring(*_):
            raise TooSlow

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    else:  # Windows, or a thread: an exception from outside waits for the next line of Python
        here = ctypes.c_ulong(threading.get_ident())
        raise_there = ctypes.pythonapi.PyThreadState_SetAsyncExc
        timer = threading.Timer(seconds, raise_there, (here, ctypes.py_object(TooSlow)))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
