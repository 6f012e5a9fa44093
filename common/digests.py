"""Eight characters that stand for a net, its weights, or images, and differ where those do."""

import contextlib
import functools
import hashlib
import inspect
import io
import re
import tokenize
from collections.abc import Callable
from types import CodeType

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from common.data import Images

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


def of_bytes(content: bytes) -> str:
    """Eight characters that differ where the content does."""
    return hashlib.sha256(content).hexdigest()[:8]


def of_weights(model: nn.Module) -> str:
    """Eight characters for the values of a net's weights and statistics."""
    state = [v.detach().cpu() for v in model.state_dict().values() if isinstance(v, torch.Tensor)]
    # Flat, for a count such as batch normalisation's has no dimension to look at as bytes.
    return of_bytes(b"".join(v.flatten().view(torch.uint8).numpy().tobytes() for v in state))


def frozen_in(model: nn.Module) -> str:
    """The names of the weights that are not trained."""
    return ", ".join(name for name, p in model.named_parameters() if not p.requires_grad)


def of_images(part: Images) -> str:
    """Eight characters for the images and labels of a set's part."""
    return of_bytes(part.images.numpy().tobytes() + part.labels.numpy().tobytes())


def of_net(model: nn.Module, before: dict[str, dict] | None = None) -> str:
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
    return of_bytes("\n".join(parts).encode())


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
        return " ".join(value_of(v, depth) for v in (value.func, value.args, value.keywords))
    if isinstance(value, type):
        return value.__name__
    if inspect.isroutine(value):
        words = "" if is_torch_s(value) else words_of(value, depth)
        return f"{value.__name__} {words}".strip()
    if any(isinstance(leaf, nn.Module | torch.Tensor) for leaf in tree_leaves(value)):
        return ""  # a part of the net stands for itself, and what it keeps is no setting
    if isinstance(value, set | frozenset):  # in an order that is the same in every process
        told = sorted(value_of(item, depth - 1) for item in value) if depth else ""
        return f"{type(value).__name__} {told}"
    if isinstance(value, np.ndarray):  # whose own words leave out the middle of a large one
        return f"{value.dtype} {value_of(value.tolist(), depth)}"
    if isinstance(value, PLAIN):
        if isinstance(value, str) or " at 0x" not in repr(value):
            return repr(value)
        value = value if isinstance(value, dict) else dict(enumerate(value))
    elif not hasattr(value, "__dict__"):
        return ""
    # An object, by what it holds; its address, which repr may tell, is another in every process.
    inside = value if isinstance(value, dict) else vars(value)
    told = {
        key if isinstance(key, str) else value_of(key, depth - 1): value_of(item, depth - 1)
        for key, item in (inside.items() if depth else ())
    }
    return f"{type(value).__name__} {told or ''}"


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
    """The words of a function's source, without comments and layout, or its byte code where that is
    not known, as for a lambda in the middle of a line; and the values it uses from outside."""
    try:
        source = inspect.cleandoc(inspect.getsource(function))
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        words = " ".join(token.string for token in tokens if token.type not in LAYOUT_TOKENS)
    except (OSError, TypeError, tokenize.TokenError, IndentationError):
        code = getattr(function, "__code__", None)
        words = code_of(code) if code else ""
    told = {
        name: value_of(value, depth - 1)
        for name, value in sorted(caught_by(function).items())
        if depth and name != "__class__" and not inspect.ismodule(value) and not is_torch_s(value)
    }
    return f"{words} {told}" if told else words


def code_of(code: CodeType) -> str:
    """What a function computes: the operations of this Python, and the names and values in them."""
    inner = [code_of(c) if isinstance(c, CodeType) else value_of(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"


def caught_by(function: Callable) -> dict[str, object]:
    """What a function uses from outside: of the functions around it, and of its module."""
    if not inspect.isfunction(function):
        return {}
    try:
        caught = inspect.getclosurevars(function)
    except ValueError:  # a variable that has no value yet
        return {}
    return {**caught.globals, **caught.nonlocals}
