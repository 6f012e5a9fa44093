"""Checkpoints: all that a training needs to go on, in one file, written whole or not at all."""

import hashlib
import os
from pathlib import Path

import torch

from common import ddp, machine
from common.config import Config
from common.machine import file_name

KEYS = ("task", "weights", "best_weights", "optimizer", "scaler", "history")


def checkpoint_file(name: str, config: Config) -> Path:
    """The file for a training of this name and configuration, in the runs folder."""
    name = f"{name}-{digest(repr(config).encode())}.pt"
    return machine.runs_folder() / "checkpoints" / file_name(name)


def digest(content: bytes) -> str:
    """Eight characters that differ where the content does."""
    return hashlib.sha256(content).hexdigest()[:8]


def save_checkpoint(path: Path | None, task: dict, **state) -> None:
    """Write `state`, and the `task` it belongs to; without a path, do nothing.

    Of several processes the first one writes.
    """
    if path is None or ddp.rank() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")  # what a killed process leaves is overwritten by the next
    try:
        torch.save({"task": task, **state}, fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def load_checkpoint(path: Path | None, task: dict) -> dict | None:
    """What was saved, on the CPU, or None where there is no such file.

    Raises ValueError when the file is damaged or belongs to another task, saying what differs.
    """
    saved = read_checkpoint(path) if path is not None and ddp.rank() == 0 else None
    saved = ddp.from_first(saved)
    if saved is None:
        return None
    for key in task:
        if saved["task"].get(key) != task[key]:
            raise ValueError(
                f"{path} belongs to another training: {key} was {saved['task'].get(key)!r} there, "
                f"and is {task[key]!r} here. Choose another file, or delete this one to start anew."
            )
    return saved


def read_checkpoint(path: Path) -> dict | None:
    """The file as `save_checkpoint` wrote it. Raises ValueError when it is something else."""
    if not path.exists():
        return None
    try:
        # Weights only: a checkpoint that came from elsewhere cannot run code here.
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if missing := {*KEYS} - {*saved}:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise ValueError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {str(error)[:80]}). "
            "Delete it to start the training anew."
        ) from error
    return saved
