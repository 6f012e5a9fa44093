"""Checkpoints: all that a training needs to go on, in a file that is whole or is not believed.

A file ends in the SHA-256 of all that comes before, so that damage of any byte is found; the one
before it is kept beside it, for that case.
"""

import contextlib
import errno
import hashlib
import io
import itertools
import os
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from common import ddp, digests, machine
from common.config import in_python
from common.sources.mirrors import locked

if TYPE_CHECKING:
    from common.run import Run  # for its type alone

DIGEST_BYTES = 32
PARTS = ("task", "weights", "best_weights", "optimizer", "scaler", "history")  # of a checkpoint


class Store:
    """The checkpoint of one training; without a path, every method does nothing.

    `where` is a path, True for a file in the runs folder that is named after the training, or None.
    Of several processes the first one writes.
    """

    def __init__(self, where: Path | str | bool | None, run: "Run"):
        self.path: Path | None = None
        self.task: dict = {}
        self.held = contextlib.ExitStack()  # the lock, while it is held
        where = in_python(where)
        if where is None or where is False:
            return
        if not isinstance(where, str | Path | bool):
            raise TypeError(f"checkpoint={where!r}; expected a file's name, True or None.")
        self.task = task_of(run)
        # Not by the number of threads: another one is to be told, and not to begin anew unnoticed.
        named = {key: value for key, value in self.task.items() if key != "threads"}
        end = f"-{digests.of_bytes(repr(named).encode())}.pt"
        self.path = (
            machine.runs_folder()
            / "checkpoints"
            / machine.file_name(f"{type(run.model).__name__}-{run.data.name}", end)
            if where is True
            else Path(where)
        )
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"checkpoint={str(where)!r} is no file; expected a file's name.")

    @property
    def previous(self) -> Path:
        """The file before the last one."""
        return self.path.with_name(f"{self.path.name}.previous")

    # ---------------------------------------------------------------- one training, one process

    @property
    def lock_file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    def lock(self) -> None:
        """Keep other processes off. Raises ValueError, with its number, where one is at work."""
        if self.path is None or ddp.rank() > 0:
            return
        refusal = (
            f"is at work on {self.path}. Wait for it or stop it, or choose another checkpoint."
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.held.enter_context(locked(self.lock_file, refusal=refusal))
            machine.clear_leftovers(self.path)
        except OSError as error:
            raise machine.cannot_write(self.path, error) from error

    def unlock(self) -> None:
        self.held.close()

    # ------------------------------------------------------------------------- writing, reading

    def save(self, state: dict) -> None:
        """Write `state` and what it belongs to, whole or not at all; the last file becomes the
        previous one. Raises OSError, with path and free space, where that fails."""
        if self.path is None or ddp.rank() > 0:
            return
        # torch raises RuntimeError on a full disk
        with machine.written_whole(self.path, RuntimeError) as fresh:
            torch.save({"task": self.task, **state}, fresh)
            with open(fresh, "rb+") as file:
                checksum = hashlib.file_digest(file, "sha256").digest()
                file.write(checksum)
                file.flush()
                os.fsync(file.fileno())
            if self.path.exists():
                os.replace(self.path, self.previous)

    def check(self, model: nn.Module) -> None:
        """Whether what was just saved can be read again, and the later ones will fit on the disk.

        Raises ValueError and OSError.
        """
        if self.path is None or ddp.rank() > 0:
            return
        if not all(isinstance(value, torch.Tensor) for value in model.state_dict().values()):
            try:
                read_checked(self.path)
            except Exception as error:  # whatever a net's own state makes of being read
                self.path.unlink()
                raise ValueError(
                    f"A checkpoint of this net cannot be read again ({str(error)[:80]}): let its "
                    "get_extra_state return tensors, numbers, words, and lists or dicts of these."
                ) from error
        size = self.path.stat().st_size
        # Three files lie there while one is written, and an optimizer keeps up to two more numbers
        # for each weight.
        needed = 2 * size + 3 * 8 * sum(p.numel() for p in model.parameters())
        if shutil.disk_usage(self.path.parent).free < needed:
            self.path.unlink()
            lacking = OSError(errno.ENOSPC, f"its files will take {(size + needed) / 1e6:,.0f} MB")
            raise machine.cannot_write(self.path, lacking)

    def load(self) -> dict | None:
        """What was saved last, on the CPU, or None where nothing was.

        A damaged file is passed over with a warning, for the one before it. Raises ValueError when
        the file belongs to another training, with all that differs.
        """
        saved = self.read() if self.path is not None and ddp.rank() == 0 else None
        saved = ddp.from_first(saved)
        if saved is None:
            return None
        then, now = saved["task"], self.task
        differ = [
            f"{key} was {then.get(key)!r}, is {now.get(key)!r}"
            for key in sorted({*then, *now})
            if then.get(key) != now.get(key)
        ]
        if differ:
            raise ValueError(
                f"{self.path} belongs to another training: {'; '.join(differ)}. Choose another "
                "file, or delete this one to start anew."
            )
        return saved

    def read(self) -> dict | None:
        """The newest of the two files that is whole, or None. One that is not is kept aside."""
        for path in (self.path, self.previous):
            try:
                return read_checked(path)
            except FileNotFoundError:
                continue
            except (OSError, MemoryError):  # it may be whole, and readable next time
                raise
            except Exception as error:  # torch.load raises whatever the bytes lead it to
                aside = put_aside(path)
                warnings.warn(
                    f"{path} is damaged, or no checkpoint ({str(error)[:80]}): it is passed over, "
                    f"and lies in {aside.name}.",
                    stacklevel=2,
                )
        return None

    def remove(self) -> None:
        """Delete both files: the training is over and written down."""
        if self.path is not None and ddp.rank() == 0:
            self.path.unlink(missing_ok=True)
            self.previous.unlink(missing_ok=True)


def read_checked(path: Path) -> dict:
    """A file as `Store.save` wrote it. Raises ValueError where a byte of it has changed."""
    content = path.read_bytes()
    content, checksum = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != checksum:
        raise ValueError("its checksum does not fit")
    # Weights only: a checkpoint that came from elsewhere cannot run code here.
    saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(saved, dict) or not all(isinstance(saved.get(part), dict) for part in PARTS):
        raise ValueError(f"it lacks one of {', '.join(PARTS)}")
    check_history(saved["history"])
    return saved


def check_history(history: dict) -> None:
    """Raise ValueError unless this is what `Run.HISTORY` names, as a training leaves it."""
    rows, best = history.get("epochs"), history.get("best_epoch")
    kinds = {"epochs": list, "batch_losses": list, "notes": list, "best_epoch": int}
    kinds |= {"best_loss": float, "ended": str}
    if not all(isinstance(history.get(name), kind) for name, kind in kinds.items()) or not (
        all(isinstance(row, dict) for row in rows) and 0 <= best <= len(rows)
    ):
        raise ValueError("its history is not that of a training")


def put_aside(path: Path) -> Path:
    """Give a file another name, one that is free: it may be somebody's own."""
    names = (path.with_name(f"{path.name}.damaged{n}") for n in itertools.count(1))
    return path.rename(next(name for name in names if not name.exists()))


# ----------------------------------------------------------------------- what a training is of


def task_of(run: "Run") -> dict:
    """What must be the same for a training to go on: net, images, settings, arithmetic."""
    return {
        "network": f"{type(run.model).__name__} {run.digest}",
        "frozen": digests.frozen_in(run.model),
        "begun with": getattr(run.model, "begun_with", ""),
        "images": f"{run.data.name} {digests.of_images(run.data.train)}",
        "classes": ", ".join(map(str, run.data.classes)),
        "arithmetic": run.precision,
        "processes": ddp.ranks(),
        "threads": torch.get_num_threads(),  # another number rounds otherwise
        **asdict(run.config),
    }
