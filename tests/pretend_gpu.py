"""A GPU that is not there: `python -m pytest -p tests.pretend_gpu` finds what a real one refuses.

All is computed on the CPU. The pretended device is "cpu:0", which PyTorch takes for the CPU. What
is moved there carries a mark, and so does what is computed from it; marked and unmarked tensors in
one operation, or a marked one as an array of NumPy, raise what CUDA raises. Recorded passes are
pretended too: warmed up as PyTorch does, then called one by one.
"""

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GPU = torch.device("cpu:0")
OF_THE_FIRST = ("__getitem__", "copy_")  # the result lies where the first argument does
ANYWHERE = (*OF_THE_FIRST, "__get__", "__set__", "__setitem__", "set_")  # take both kinds
ALONE = ("__deepcopy__", "_has_compatible_shallow_copy_type")  # the other arguments do not count


def tensors(value: object) -> list[Tensor]:
    """All tensors in arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for one in value for t in tensors(one)] if isinstance(value, (list, tuple)) else []


def marked(tensor: Tensor) -> bool:
    return vars(tensor).get("on_pretended_gpu", False)


def mark(value: object, on_gpu: bool) -> object:
    for tensor in tensors(value):
        vars(tensor)["on_pretended_gpu"] = on_gpu
    return value


def named_device(args: tuple, kwargs: dict) -> bool | None:
    """Whether a call names the GPU (True) or the CPU (False) as a device; None where neither."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.device) or (isinstance(value, str) and value[:3] == "cpu"):
            return torch.device(value).index is not None
    return None


def moved(func, args: tuple, kwargs: dict, on_gpu: bool) -> Tensor:
    """What `to` returns: another tensor where the device is another."""
    result = func(*args, **kwargs)
    if result is args[0] and on_gpu != marked(result):
        result = result.clone()
    return mark(result, on_gpu)


def parameter(cls, data=None, requires_grad=True) -> torch.nn.Parameter:
    """A new parameter lies where its values do; PyTorch does not tell the mode of it."""
    result = new_parameter(cls, data, requires_grad)
    return mark(result, data is not None and marked(data))


new_parameter = torch.nn.Parameter.__new__


class PretendedGpu(TorchFunctionMode):
    def __enter__(self):
        torch.nn.Parameter.__new__ = parameter
        return super().__enter__()

    def __exit__(self, *error):
        torch.nn.Parameter.__new__ = new_parameter
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        given = tensors(args[:1] if name in ALONE else [args, kwargs])
        gpu, cpu = [t for t in given if marked(t)], [t for t in given if not marked(t)]
        attribute = getattr(func, "__self__", None)
        if name == "__get__" and attribute is Tensor.device:
            return GPU if gpu else func(*args, **kwargs)
        if gpu and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. (pretended)")
        if name == "cpu":
            return moved(func, args, kwargs, on_gpu=False)
        if given and name == "to":
            place = named_device(args[1:], kwargs)
            like = marked(given[-1])  # of x.to(other) the other, else x itself
            return moved(func, args, kwargs, like if place is None else place)
        if gpu and name not in ANYWHERE and any(t.dim() and t.numel() for t in cpu):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! (pretended, in {name})"
            )
        if name == "__getitem__" and not marked(args[0]) and any(t.dim() for t in gpu):
            raise RuntimeError("indices should be on the same device as the tensor. (pretended)")
        result = func(*args, **kwargs)
        if name == "__set__":
            if attribute is Tensor.data:
                mark(args[0], marked(args[1]))
            return result
        place = named_device(args, kwargs)
        if place is None:
            place = bool(gpu) if name not in OF_THE_FIRST else marked(args[0])
        return mark(result, place)


def graphed(net: torch.nn.Module, batch: tuple, **_) -> torch.nn.Module:
    """What `make_graphed_callables` does to a net before it records: three passes, both ways."""
    weights = [p for p in net.parameters() if p.requires_grad]
    for _ in range(3):
        outputs = [o for o in tensors([net(*batch)]) if o.requires_grad]
        if outputs and weights:
            upstream = [torch.zeros_like(o) for o in outputs]
            torch.autograd.grad(outputs, weights, upstream, allow_unused=True)
    return net


def pytest_configure(config) -> None:
    from common import graphs, machine, run

    def init(training, model, *args, **kwargs):
        original(training, model, *args, **kwargs)
        if training.net is model:
            training.net = graphs.Replayed(model)

    original, run.Training.__init__ = run.Training.__init__, init
    torch.cuda.is_available = lambda: False  # a real one, if there is one, is left alone
    torch.cuda.make_graphed_callables = graphed
    torch.cuda.get_sync_debug_mode = lambda: 0
    torch.cuda.set_sync_debug_mode = lambda mode: None
    machine.device = lambda: GPU
    PretendedGpu().__enter__()


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if item.get_closest_marker("real_device"):
            item.add_marker(pytest.mark.skip(reason="asks for the device itself"))
