"""What this machine is: its device, its number format, its profile, its folders, its commit."""

import contextlib
import ctypes
import difflib
import errno
import functools
import glob
import html
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

HOME = Path(__file__).resolve().parent.parent  # the folder that holds common/ and notebooks/
PROFILES = ("smoke", "laptop", "full")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def device() -> torch.device:
    """The device to train on: a GPU that PyTorch can use, by CUDA or Apple's MPS, else the CPU."""
    return torch.device("cuda" if gpu_works() else "mps" if mps_works() else "cpu")


@functools.cache
def gpu_works() -> bool:
    """Whether there is a GPU and this PyTorch has code for it; an older GPU may be too old.

    Of several processes on one machine each uses its own from here on.
    """
    if not torch.cuda.is_available():
        return False
    if "LOCAL_RANK" in os.environ:  # torchrun's; `ddp.joined` says where there are too few GPUs
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    try:
        torch.ones(1, device="cuda") + 1
    except RuntimeError as error:
        return not_used(error)
    return True


@functools.cache
def mps_works() -> bool:
    """Whether this is a Mac on whose GPU a step of training comes out as on its CPU.

    Several processes, as of torchrun, use the CPU: they cannot talk to each other through MPS.
    """
    if not torch.backends.mps.is_available() or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return False
    try:
        if not torch.allclose(trial_step("mps"), trial_step("cpu"), atol=1e-3):
            raise RuntimeError("it computes something else than the CPU")
    except (RuntimeError, TypeError) as error:
        return not_used(error)
    return True


def not_used(error: Exception) -> bool:
    """Say why the GPU is not used, and return False."""
    reason = str(error).splitlines()[0]
    notice(f"PyTorch {torch.__version__} cannot use this GPU ({reason}): the CPU is used.")
    return False


def trial_step(kind: str) -> "torch.Tensor":
    """The logits (8, 10) of a small net after one step of training on this kind of device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv, norm = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
        pool = torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten()
        net = torch.nn.Sequential(conv, norm, *pool, torch.nn.Linear(8 * 4 * 4, 10))
        x, y = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
    net, x, y = net.to(kind), x.to(kind), y.to(kind)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    torch.nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    return net(x).detach().cpu()


def profile() -> str:
    """The budget in force: `CNN_PROFILE`, else "full" on a CUDA GPU and "laptop" elsewhere.

    Raises ValueError when `CNN_PROFILE` names no profile.
    """
    chosen = os.environ.get("CNN_PROFILE") or ("full" if device().type == "cuda" else "laptop")
    if chosen not in PROFILES:
        raise ValueError(f"CNN_PROFILE is {chosen!r}; expected one of {', '.join(PROFILES)}.")
    return chosen


def choose(**budgets: dict) -> dict:
    """Show the settings of the three profiles side by side and return those in force.

    `budgets` maps each of "smoke", "laptop" and "full" to a dict with the same keys.
    """
    import pandas as pd
    from IPython.display import display

    if set(budgets) != set(PROFILES):
        raise ValueError(f"choose() needs the profiles {PROFILES}, got {tuple(budgets)}.")
    # A column at a time: a whole table at once turns 96 into 96.0 beside a width of 0.25.
    table = pd.DataFrame({name: pd.Series(b, dtype=object) for name, b in budgets.items()})
    table = table.rename(columns={profile(): f"{profile()} (in use)"})
    display(table.map(lambda value: f"{value:,}" if type(value) is int else value))
    return budgets[profile()]


@functools.cache
def has_bf16(kind: str) -> bool:
    """Whether a "cuda" or "cpu" device has bf16 arithmetic in hardware, not emulated; others no."""
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind != "cpu":
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older torch
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def precision(wanted: str = "auto", kind: str | None = None) -> str:
    """The number format to compute in: "bf16", "fp16" or "fp32".

    "auto" takes bf16 where the hardware has it, fp16 on an older GPU, fp32 elsewhere. A format
    that this device lacks gives way to that choice, with a notice. Raises ValueError for an
    unknown one.
    """
    if wanted not in PRECISIONS:
        raise ValueError(unknown("precision", wanted, PRECISIONS))
    kind = kind or device().type
    available = ["bf16"] * has_bf16(kind) + ["fp16"] * (kind == "cuda") + ["fp32"]
    if wanted in available:
        return wanted
    if wanted != "auto":
        notice(f"This {kind} device has no {wanted} arithmetic: {available[0]} is used instead.")
    return available[0]


def memory_format(model: "torch.nn.Module") -> "torch.memory_format":
    """Channels last for nets with wide convolutions, where it pays; LeNet's are too narrow.

    Not where a 1 x 1 convolution strides over fewer than 8 channels: there, PyTorch 2.14 writes
    past its memory on a CPU without bf16. Nor on MPS, where nothing of this was measured.
    """
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    unsafe = any(
        m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels // m.groups < 8
        for m in layers
    )
    wide = max((m.out_channels for m in layers), default=0) >= 32
    pays = wide and not unsafe and device().type != "mps"
    return torch.channels_last if pays else torch.contiguous_format


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Convolutions and matrix products inside compute in `precision`: "fp32", "bf16" or "fp16"."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
        if device.type == "cpu" and precision == "bf16":
            with DepthwiseInFp32():
                yield
        else:
            yield


class DepthwiseInFp32(TorchFunctionMode):
    """Trains depthwise convolutions in fp32, where autocast would take bf16.

    On CPUs their backward pass has no fast bf16 code: MobileNet trains half as fast again with
    this, and its pointwise convolutions keep bf16.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        depthwise = function is torch.conv2d and len(args) > 6 and 1 < args[6] == args[0].shape[1]
        if depthwise and torch.is_grad_enabled():
            with torch.autocast("cpu", enabled=False):
                return function(args[0].float(), *args[1:], **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def folder(variable: str, default: str) -> Path:
    """The folder named by an environment variable, else `default` beside the notebooks' folder.

    Where the course cannot be written to, as in Kaggle's input, `default` is in the current folder.
    """
    home = HOME if os.access(HOME, os.W_OK) else Path.cwd()
    return Path(os.environ.get(variable) or home / default).expanduser()


def data_folder() -> Path:
    """Where data sets are looked for and downloaded to: `CNN_DATA`, else data/."""
    return folder("CNN_DATA", "data")


def runs_folder() -> Path:
    """Where runs and caches are written: `CNN_RUNS`, else runs/; made when missing.

    Raises OSError, with the path and the free space, where nothing can be written.
    """
    runs = folder("CNN_RUNS", "runs")
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs) as file:
            file.write(b"can this be written?")
        for part in ("records", "weights", "checkpoints", "cache"):
            if (runs / part).exists() and not (runs / part).is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"its {part} is a file, not a folder")
    except OSError as error:
        raise cannot_write(runs, error) from error
    return runs


@contextlib.contextmanager
def written_whole(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """A temporary name beside `path`; what is written there takes its place, whole or not at all.

    Raises OSError, with the path and the free space, for one and for the `failures` of a library.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        yield fresh
        os.replace(fresh, path)
    except (OSError, *failures) as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()


def clear_leftovers(path: Path) -> None:
    """Delete what killed processes left of writing `path`: NAME.NUMBER.tmp beside it."""
    import psutil  # here, not above: the setup cell runs before anything is installed

    for left in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        number = left.name.removesuffix(".tmp").rpartition(".")[2]
        if not (number.isdigit() and psutil.pid_exists(int(number))):
            left.unlink(missing_ok=True)


def cannot_write(path: Path, error: BaseException) -> OSError:
    """The error for a file or folder that cannot be written: why, the free space, what to try."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    place = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free / 1e6
    return OSError(
        f"{path} cannot be written ({reason}; {free:,.0f} MB free there). "
        "Make room, or set CNN_RUNS to a folder of your own."
    )


@functools.cache
def commit() -> str:
    """The course's git commit, with "+changes" where the checkout differs from it, or "unknown"."""
    if not (HOME / ".git").exists():  # git would go on to look in the folders around it
        return "unknown"
    describe = ["describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    git = ["git", "-C", str(HOME), *describe]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel rather than in a script or a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def watched() -> bool:
    """Whether somebody looks on, in a notebook or at a terminal; a log should see no bars."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def notice(text: str) -> None:
    """Say what must not be missed: in a framed box in a notebook, else on standard error."""
    if in_notebook():
        from IPython.display import display

        box = "border-left:6px solid #d55e00;background:#fff4e5;color:#222;padding:8px 12px"
        page = f'<div role="alert" style="{box}">{html.escape(text)}</div>'
        display({"text/html": page, "text/plain": text}, raw=True)
    else:
        print(f"\n*** {text}\n", file=sys.stderr)


def threads() -> str:
    """How many processor threads PyTorch computes with, in words."""
    n = torch.get_num_threads()
    return f"{n} thread" if n == 1 else f"{n} threads"


@contextlib.contextmanager
def recycled_memory() -> Iterator[None]:
    """Inside, the memory that tensors give back is kept for those of the next step (GNU libc only).

    By default it goes back to the system, whose fresh pages cost a sixth of AlexNet's step. At the
    end all that is free goes back, so that no training's peak counts what came before it.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_MMAP_MAX, 0)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 2**17)
        libc.mallopt(M_MMAP_MAX, 2**16)
        libc.malloc_trim(0)


@contextlib.contextmanager
def own_generator() -> Iterator[None]:
    """Inside, random numbers are drawn apart; afterwards the caller's go on as before."""
    import numpy as np  # here, not above: the setup cell has no need of it

    gpu = [torch.cuda.current_device()] if device().type == "cuda" else []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(gpu):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed(number: int) -> None:
    """Set the random numbers of torch, Python and NumPy, all of which a net may use."""
    import numpy as np

    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


def describe() -> None:
    """Print the device, the precision and the profile, and how to switch a GPU on.

    In `smoke` the first line says that no accuracy means anything.
    """
    if profile() == "smoke":
        print("smoke: a few images, to see that all cells run. Its accuracies mean nothing.")
    if device().type != "cpu":
        where = gpu_name()
    else:
        where = (
            f"CPU, {threads()} (no GPU: on Colab choose Runtime > Change "
            "runtime type > GPU, on Kaggle Settings > Accelerator)"
        )
    print(f"device: {where}\nprecision: {precision()}   profile: {profile()}")


def gpu_name() -> str:
    """The GPU's name, in this process's training."""
    return torch.cuda.get_device_name() if device().type == "cuda" else "Apple GPU (MPS)"


def synchronize() -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if device().type != "cpu":
        getattr(torch, device().type).synchronize()


def reset_peak_memory() -> None:
    """Let `peak_memory_bytes` start anew from what is in use now, where the system can do that."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def peak_memory_bytes() -> int | None:
    """Most memory used since the reset: on the GPU by tensors, on a CPU by the whole process."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text().splitlines()
        # A system such as gVisor tells no peak.
        peaks = [int(line.split()[1]) for line in status if line.startswith("VmHWM")]
        return peaks[0] * 1024 if peaks else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def unknown(kind: str, name: object, valid: tuple[str, ...]) -> str:
    """The message for a name that does not exist: the nearest match, then all that do."""
    near = difflib.get_close_matches(str(name).lower(), valid, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} Valid names: {', '.join(valid)}."


def exit_code(run: Callable[[], int | None], name: str) -> int:
    """What `run()` returns, or an exit code for what it raises, which is told in one line."""
    try:
        return run() or 0
    except (ValueError, OSError) as error:
        print(f"python -m {name}: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        print(f"python -m {name} failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same words again go on.", file=sys.stderr)
        return 1


def printable(path: Path) -> str:
    """A path in words, also where its name is of another encoding."""
    return os.fsencode(path).decode(errors="backslashreplace")


def file_name(text: str, end: str) -> str:
    """The text with a hyphen for what not every file system takes; it may say "ReLU/sigmoid".

    At most 160 bytes of it, before the `end`: a file system takes 255.
    """
    short = re.sub(r"[^\w.+=-]+", "-", text).encode()[:160]
    return short.decode(errors="ignore") + end
