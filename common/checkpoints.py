"""Checkpoints: all that a training needs to go on, in a file that is whole or is not believed.

A file ends in the SHA-256 of all that comes before, so that damage of any byte is found; the one
before it is kept beside it, for that case.
"""

import contextlib
import errno
import functools
import hashlib
import inspect
import io
import itertools
import os
import re
import shutil
import tokenize
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from common import ddp, machine
from common.config import in_python
from common.data import Images
from common.sources.mirrors import locked

if TYPE_CHECKING:
    from common.run import Run  # for its type alone

DIGEST_BYTES = 32
PARTS = ("task", "weights", "best_weights", "optimizer", "scaler", "history")  # of a checkpoint
# What PyTorch's layers are told, apart from the numbers of channels.
LAYER_SETTINGS = """
    kernel_size stride padding dilation groups padding_mode ceil_mode output_size
    count_include_pad p eps momentum num_groups negative_slope alpha min_val max_val approximate
    start_dim end_dim scale_factor size mode dim upscale_factor beta threshold value lambd lower
    upper norm_type k align_corners divisor_override return_indices affine num_heads batch_first
    norm_first dropout bidirectional num_layers unflattened_size downscale_factor padding_idx
    elementwise_affine activation nonlinearity max_norm scale_grad_by_freq add_zero_attn
""".split()  # noqa: SIM905
# Of a net's own: its mode, and what the zoo and a weights file note.
NO_SETTINGS = ("training", "zoo_name", "options", "about", "begun_with")
PLAIN = bool | int | float | complex | str | bytes | tuple | list | dict | set | frozenset
PLAIN |= range | slice | torch.dtype | np.generic | np.ndarray
LAYOUT_TOKENS = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


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
        end = f"-{digest(repr(named).encode())}.pt"
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
        then, now = flat(saved["task"]), flat(self.task)
        differ = [
            f"{key} was {then.get(key)}, is {now.get(key)}"
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
        "frozen": frozen_in(run.model),
        "begun with": getattr(run.model, "begun_with", ""),
        "images": f"{run.data.name} {digest_of_images(run.data.train)}",
        "classes": ", ".join(map(str, run.data.classes)),
        "arithmetic": run.precision,
        "processes": ddp.ranks(),
        "threads": torch.get_num_threads(),  # another number rounds otherwise
        **asdict(run.config),
    }


def flat(task: dict) -> dict:
    """The same with lists for tuples, as a comparison wants it."""
    return {key: repr(value).replace("[", "(").replace("]", ")") for key, value in task.items()}


def digest(content: bytes) -> str:
    """Eight characters that differ where the content does."""
    return hashlib.sha256(content).hexdigest()[:8]


def digest_of_weights(model: nn.Module) -> str:
    """Eight characters for the values of a net's weights and statistics."""
    state = [v.detach().cpu() for v in model.state_dict().values() if isinstance(v, torch.Tensor)]
    return digest(b"".join(v.contiguous().view(torch.uint8).numpy().tobytes() for v in state))


def frozen_in(model: nn.Module) -> str:
    """The names of the weights that are not trained."""
    return ", ".join(name for name, p in model.named_parameters() if not p.requires_grad)


def digest_of_images(part: Images) -> str:
    """Eight characters for the images and labels of a set's part."""
    return digest(part.images.numpy().tobytes() + part.labels.numpy().tobytes())


def digest_of(model: nn.Module, before: dict[str, dict] | None = None) -> str:
    """Eight characters for a net's structure: its layers, sizes, options, and what forward does.

    Values of weights do not count, nor do comments and layout in the source of `forward`, nor which
    PyTorch it is: another one prints its layers otherwise. What differs from the `settings` of
    `before` a forward pass is state, such as a count of calls, and does not count either.
    """
    parts = []
    for name, told in settings(model).items():
        kept = (before or {}).get(name, told)
        told = {key: value for key, value in told.items() if kept.get(key) == value}
        parts.append(f"{name}: {type(model.get_submodule(name)).__name__} {told}")
    if frozen := frozen_in(model):
        parts.append(f"frozen: {frozen}")
    parts += [f"{name} {tuple(p.shape)}" for name, p in model.named_parameters()]
    parts += [f"{name} {tuple(b.shape)}" for name, b in model.named_buffers()]
    kinds = {type(m) for m in model.modules() if not is_torch_s(type(m))}
    does = {kind: source_of_forward(kind) + shared_by(kind) for kind in kinds}
    parts += sorted(f"{kind.__name__}: {told}" for kind, told in does.items())
    return digest("\n".join(parts).encode())


def is_torch_s(thing: object) -> bool:
    """Whether a class or function is PyTorch's own."""
    return (getattr(thing, "__module__", "") or "").startswith("torch.")


def settings(model: nn.Module) -> dict[str, dict[str, str]]:
    """What each module was told beyond the sizes of its weights, by the modules' names."""
    return {name: settings_of(module) for name, module in model.named_modules()}


def settings_of(module: nn.Module) -> dict[str, str]:
    """A module's own attributes in words, by name."""
    told = {}
    for name, value in sorted(vars(module).items()):
        own = not (is_torch_s(type(module)) or name in NO_SETTINGS or name.startswith("_"))
        if name in LAYER_SETTINGS or own:
            with contextlib.suppress(Exception):  # whatever an attribute does when it is looked at
                told[name] = value_of(value)
    return {name: words for name, words in told.items() if words or name in LAYER_SETTINGS}


def shared_by(kind: type) -> str:
    """The plain values that a class holds for all its modules, in words."""
    told = {
        name: value_of(value)
        for base in reversed(kind.__mro__)
        if not (is_torch_s(base) or base is object)
        for name, value in vars(base).items()
        if isinstance(value, PLAIN) and not name.startswith("__")
    }
    return f" {told}" if told else ""


def value_of(value: object, depth: int = 3) -> str:
    """A setting in words that are the same in every process; "" for what has none."""
    if isinstance(value, functools.partial):
        return f"{value_of(value.func)} {value.args} {value.keywords}"
    if isinstance(value, type):
        return value.__name__
    if inspect.isroutine(value):
        words = "" if is_torch_s(value) else words_of(value, depth)
        return f"{value.__name__} {words}".strip()
    if any(isinstance(leaf, nn.Module | torch.Tensor) for leaf in tree_leaves(value)):
        return ""  # a part of the net stands for itself, and what it keeps is no setting
    if isinstance(value, set | frozenset):  # in an order that is the same in every process
        return f"{type(value).__name__} {sorted(map(repr, value))}"
    if isinstance(value, PLAIN):
        if isinstance(value, str) or " at 0x" not in repr(value):
            return repr(value)
        value = value if isinstance(value, dict) else dict(enumerate(value))
    elif not hasattr(value, "__dict__"):
        return ""
    # An object, by what it holds; its address, which repr may tell, is another in every process.
    inside = value if isinstance(value, dict) else vars(value)
    told = {key: value_of(item, depth - 1) for key, item in inside.items()} if depth else ""
    return f"{type(value).__name__} {told}"


def source_of_forward(kind: type[nn.Module]) -> str:
    """The words of a class's `forward` and of the methods it uses, its own and those it builds on,
    without comments and layout; empty where none is known."""
    found: dict[str, str] = {}
    left = ["forward"]
    while left:
        method = getattr(kind, name := left.pop(), None)
        if name in found or not inspect.isfunction(method) or is_torch_s(method):
            continue
        if words := words_of(method):
            found[name] = words
            left += re.findall(r"self \. (\w+)", words)
            for above in re.findall(r"super \( \) \. (\w+)", words):
                others = [vars(base).get(above) for base in kind.__mro__]
                others = [f for f in others if inspect.isfunction(f) and not is_torch_s(f)]
                found[f"{above} above"] = " ".join(words_of(f) for f in others if f is not method)
    return " ".join(found[name] for name in sorted(found))


def words_of(function: Callable, depth: int = 3) -> str:
    """The words of a function's source, without comments and layout, or the names in it where that
    is not known, as for a lambda in the middle of a line; and the values it uses from outside."""
    try:
        source = inspect.cleandoc(inspect.getsource(function))
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        words = " ".join(token.string for token in tokens if token.type not in LAYOUT_TOKENS)
    except (OSError, TypeError, tokenize.TokenError, IndentationError):
        code = getattr(function, "__code__", None)
        words = f"{code.co_names} {value_of(code.co_consts)}" if code else ""
    told = {
        name: value_of(value, depth - 1)
        for name, value in sorted(caught_by(function).items())
        if depth and name != "__class__" and not inspect.ismodule(value) and not is_torch_s(value)
    }
    return f"{words} {told}" if told else words


def caught_by(function: Callable) -> dict[str, object]:
    """What a function uses from outside: of the functions around it, and of its module."""
    if not inspect.isfunction(function):
        return {}
    try:
        caught = inspect.getclosurevars(function)
    except ValueError:  # a variable that has no value yet
        return {}
    return {**caught.globals, **caught.nonlocals}
