"""Files from the network: whole, right and once, or an error that says what each mirror did."""

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import filelock
from tqdm.auto import tqdm

from common import machine

TIMEOUT_S = 10  # to connect, and between two pieces: a server silent for longer counts as dead
SLOW_AFTER_S = 30  # a mirror that was slower than SLOWEST_BYTES_PER_S for so long is given up
SLOWEST_BYTES_PER_S = 100_000


@dataclass(frozen=True)
class Known:
    """A data set the course knows. torchvision's class lists its addresses and their hashes."""

    title: str
    folder: str  # below the data folder, as torchvision lays it out
    shape: tuple[int, int, int]  # C, H, W
    classes: tuple[str, ...]
    hashes: dict[str, str]  # file -> sha256 (64 digits) or md5 (32) of the file on disk
    archives: tuple[tuple[str, str], ...]  # what is fetched: (file, md5)
    largest: int  # bytes of the largest archive
    mirrors: tuple[str, ...]


def verify(path: Path, expected: str) -> None:
    """Raise FileNotFoundError or ValueError unless the file's sha256 or md5 is `expected`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing.")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5" if len(expected) == 32 else "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is truncated or altered: expected the hash {expected[:12]}…, "
            f"found {found[:12]}… in {path.stat().st_size:,} bytes."
        )


def missing(known: Known, root: Path) -> list[str]:
    """The names of the set's files that are not below `root`."""
    return [name for name in known.hashes if not (root / known.folder / name).is_file()]


def progress_bar(items: Any = None, description: str = "", **options: Any) -> tqdm:
    """A progress bar that is gone at the end, and that a log file never sees."""
    hidden = not machine.watched()
    return tqdm(items, description, leave=False, mininterval=0.5, disable=hidden, **options)


@contextlib.contextmanager
def locked(path: Path, waiting: str = "", refusal: str = "") -> Iterator[None]:
    """Hold a lock file, which names this process; where another one holds it, `waiting` is said.

    With a `refusal` that is a ValueError instead: the other process's number, and these words. The
    system frees the lock of a process that dies, however it dies.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if refusal:
            who = "Another process"
            with contextlib.suppress(OSError):  # it may end at this moment
                who = f"Process {path.read_text().strip()}"
            raise ValueError(f"{who} {refusal}") from None
        if waiting:
            machine.notice(waiting)
        lock.acquire()
    except NotImplementedError:
        pass  # a network drive without locks: each process is on its own
    try:
        with contextlib.suppress(OSError):  # Windows keeps a locked file closed
            path.write_text(f"{os.getpid()}\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def download(known: Known, root: Path) -> None:
    """Fetch the files of a set that are missing below `root`: all of them, or none.

    One process fetches, others wait for it. Raises ConnectionError, with a reason for each
    mirror, when none of them delivers the right bytes, and OSError when `root` cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    waiting = f"Another process fetches a set into {root}: waiting for it."
    with locked(root / ".download.lock", waiting):
        for left in root.glob(".download*/"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        names = missing(known, root)
        if not names:
            return
        fresh = root / ".download"
        try:
            fetch_files(known, names, fresh)
            (root / known.folder).mkdir(parents=True, exist_ok=True)
            for name in names:
                os.replace(fresh / known.folder / name, root / known.folder / name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def fetch_files(known: Known, names: list[str], folder: Path) -> None:
    """Fetch and unpack the archives of these files into `folder`, and check each file's hash."""
    (folder / known.folder).mkdir(parents=True)
    mirrors = dict.fromkeys(known.mirrors, "")
    try:
        for archive, md5 in known.archives:
            unpacked = archive.removesuffix(".gz")
            if unpacked in known.hashes and unpacked not in names:
                continue  # it is here already
            fetch(mirrors, archive, md5, folder, 2 * known.largest)
            if archive.endswith(".tar.gz"):
                with tarfile.open(folder / archive) as tar:
                    for name in names:
                        inside = f"{known.folder}/{name}"
                        unpack(tar.extractfile(inside), folder / inside)
            else:
                with gzip.open(folder / archive) as packed:
                    unpack(packed, folder / known.folder / unpacked)
        for name in names:
            verify(folder / known.folder / name, known.hashes[name])
    except (
        KeyError,
        ValueError,
        FileNotFoundError,
        EOFError,
        zlib.error,
        tarfile.TarError,
        gzip.BadGzipFile,
    ):
        raise ConnectionError(
            f"What was downloaded holds something else than the files of {known.title}."
        ) from None


def unpack(packed: IO[bytes] | None, path: Path) -> None:
    """Write what is read from an archive; None stands for a folder or link in it."""
    if packed:
        with open(path, "wb") as file:
            shutil.copyfileobj(packed, file)


def fetch(mirrors: dict[str, str], name: str, md5: str, folder: Path, most: int) -> None:
    """Fetch one file of at most `most` bytes from the first mirror that delivers it right.

    `mirrors` tells why a mirror is not asked again; one that fails is added. Raises ConnectionError
    with what happened at each.
    """
    import requests  # not needed by those who have the data

    said = dict(mirrors)
    for mirror in [mirror for mirror, dead in mirrors.items() if not dead]:
        try:
            return transfer(mirror, name, md5, folder, most)
        except requests.HTTPError as error:
            said[mirror] = f"answered {error.response.status_code}"
            if error.response.status_code != 404:  # it may have the other files
                mirrors[mirror] = said[mirror]
        except (requests.TooManyRedirects, ValueError) as error:
            said[mirror] = mirrors[mirror] = f"sent something else: {str(error).split('. ')[0]}"
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            # The innermost of the reasons that requests puts into one another
            inner = re.sub(r"[\"']\)+$", "", str(error).rpartition(": ")[2])
            said[mirror] = mirrors[mirror] = f"failed: {inner}"
    reasons = "; ".join(f"{mirror} {why}" for mirror, why in said.items())
    raise ConnectionError(f"{name} could not be downloaded. {reasons or 'There is no mirror'}.")


class Watch:
    """What pooch takes for a progress bar: it ends a transfer that is too long or given up."""

    def __init__(self, most: int):
        self.most, self.total, self.file, self.given_up = most, 0, None, False

    def size(self) -> int:
        """Bytes on the disk so far. (pooch counts a full piece for each, however small it is.)"""
        try:
            return os.path.getsize(self.file)
        except (OSError, TypeError):
            return 0

    def update(self, _: int) -> None:
        if self.given_up or self.size() > self.most:
            raise ValueError(f"more than {self.most:,} bytes")

    def reset(self) -> None: ...

    def close(self) -> None: ...


def transfer(mirror: str, name: str, md5: str, folder: Path, most: int) -> None:
    """Fetch `mirror` + `name` into `folder`.

    Raises TimeoutError when the server crawls, ValueError for more than `most` bytes or another
    md5, requests' errors for the rest, and OSError when the disk is at fault.
    """
    import pooch

    watch, outcome = Watch(most), futures.Future()
    options = {"timeout": TIMEOUT_S, "headers": {"Accept-Encoding": "identity"}}
    http = pooch.HTTPDownloader(progressbar=watch, chunk_size=2**16, **options)
    pooch.get_logger().setLevel("WARNING")

    def downloader(url: str, file: str, _: Any) -> None:
        watch.file = file
        http(url, file, None)

    def work() -> None:
        try:
            outcome.set_result(
                pooch.retrieve(mirror + name, f"md5:{md5}", name, folder, downloader=downloader)
            )
        except BaseException as error:  # for the thread that waits
            outcome.set_exception(error)

    # A thread of its own: a server that sends a byte now and then passes every socket's time-out.
    threading.Thread(target=work, daemon=True).start()
    since, before = time.monotonic(), 0
    try:
        with progress_bar(description=name, unit="B", unit_scale=True) as bar:
            while not futures.wait([outcome], timeout=0.05).done:
                now, size = time.monotonic(), watch.size()
                bar.total = watch.total or None
                bar.update(size - bar.n)
                if now - since > SLOW_AFTER_S:
                    speed = (size - before) / (now - since)
                    if speed < SLOWEST_BYTES_PER_S:
                        raise TimeoutError(f"only {speed / 1000:.0f} kB/s")
                    since, before = now, size
        outcome.result()
    finally:
        watch.given_up = True
