"""Trained weights: those that ship with the course, ImageNet's, and those of your own runs."""

import hashlib
import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from common import digests, machine, zoo
from common.config import MOST_PIXELS
from common.machine import unknown

WEIGHTS = machine.HOME / "weights"
SUMS = WEIGHTS / "SHA256SUMS"
IMAGENET = {  # our variant -> torchvision's model; the options that make the forms agree
    "alexnet": ("alexnet", {"channels": (64, 192, 384, 256, 256, 4096), "stem": (11, 4, 2),
                            "dropout": (0.5, 0.5, 0.0)}),
    "vgg11": ("vgg11", {}),
    "vgg13": ("vgg13", {}),
    "vgg16": ("vgg16", {}),
    "vgg19": ("vgg19", {}),
    "resnet18": ("resnet18", {}),
    "resnet34": ("resnet34", {}),
    "densenet121": ("densenet121", {}),
}  # fmt: skip


def shipped() -> tuple[str, ...]:
    """The networks whose trained weights lie in weights/."""
    return tuple(path.stem for path in sorted(WEIGHTS.glob("*.safetensors")))


def trained(name: str) -> nn.Module:
    """The network with the weights of its recorded run, in evaluation mode.

    Its attribute `about` holds the file's metadata: network, accuracy, data set, source, classes,
    mean and std (0 … 1 scale, one value a channel), image size. Raises ValueError for a name
    without weights, or a file that is damaged or of another network.
    """
    if name not in shipped():
        raise ValueError(unknown("trained network", name, shipped()))
    path = WEIGHTS / f"{name}.safetensors"
    expected = dict(reversed(line.split()) for line in SUMS.read_text().splitlines())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if expected.get(path.name) != found:
        raise ValueError(
            f"{path} is damaged: its SHA-256 begins with {found[:12]}, in {SUMS.name} stands "
            f"{str(expected.get(path.name))[:12]}. Fetch it again."
        )
    return from_file(path)


def from_file(path: Path) -> nn.Module:
    """The network in a file that `write` wrote, in evaluation mode; see `trained`.

    Raises ValueError, naming the file, where it is no such file, FileNotFoundError where none is.
    """
    about = metadata(path)
    options = {  # a class, such as nn.ReLU, is written down by its name
        key: getattr(nn, value, value) if isinstance(value, str) else value
        for key, value in about["options"].items()
    }
    model = zoo.build(about["network"], about["channels"], len(about["classes"]), **options)
    load_into(model, path)
    model.about = about
    return model.eval().to(memory_format=machine.memory_format(model))


def metadata(path: Path) -> dict:
    """What a weights file says of itself.

    Raises FileNotFoundError where nothing is there, ValueError where it is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or is no file.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
        check_about(about)
        return about
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError) as error:
        raise ValueError(
            f"{path} is no weights file of this course ({type(error).__name__}: "
            f"{str(error)[:80]}). Expected a .safetensors file that `train` wrote."
        ) from error


def check_about(about: dict) -> None:
    """Raise ValueError unless metadata holds what a net is built and its images prepared from."""
    kinds = {"network": str, "options": dict, "classes": list, "channels": int, "mean": list}
    kinds |= {"std": list, "image_size": int | list}
    if not isinstance(about, dict):
        raise ValueError("its metadata is no JSON object")
    for name, kind in kinds.items():
        if not isinstance(about.get(name), kind):
            raise ValueError(f"its {name} is {str(about.get(name))[:40]!r}, not {kind}")
    if given := {"in_channels", "num_classes"} & about["options"].keys():
        raise ValueError(f"its options name {', '.join(sorted(given))}, which it states elsewhere")
    numbers = [*about["mean"], *about["std"]]
    sizes = about["image_size"]
    sizes = sizes if isinstance(sizes, list) else [sizes, sizes]
    if not (
        len(about["mean"]) == len(about["std"]) == about["channels"]
        and all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
        and min(about["std"]) > 0
        and len(sizes) == 2
        and all(isinstance(n, int) and 1 <= n <= MOST_PIXELS for n in sizes)
    ):
        raise ValueError("its mean, std, channels and image_size do not belong together")


def load_into(model: nn.Module, path: Path) -> None:
    """Put the weights of a file into a model of the same structure.

    Its attribute `begun_with` stands for the file: runs that begin otherwise are other runs.
    Raises ValueError, naming what differs, where the file is of another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole .safetensors file ({str(error)[:80]}).") from error
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{path}: {broken[0]} holds a value that is no finite number.")
    own = model.state_dict()
    differ = [
        f"{name} is {tuple(state[name].shape) if name in state else 'missing'} there, "
        f"{tuple(own[name].shape) if name in own else 'missing'} here"
        for name in {**own, **state}
        if name not in state or name not in own or state[name].shape != own[name].shape
    ]
    if differ:
        raise ValueError(
            f"{path} is of another network: {differ[0]}"
            + (f", and {len(differ) - 1} more differ." if len(differ) > 1 else ".")
        )
    model.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()})
    model.begun_with = digests.of_bytes(path.read_bytes())


def write(model: nn.Module, path: Path, about: dict, half: bool = False) -> None:
    """Write a model's weights, and what there is to say `about` them, whole or not at all.

    With `half`, in fp16. Raises OSError where that fails, ValueError where a value does not fit.
    """
    # Copies: tied weights are written as often as they are used, which safetensors asks for.
    state = {n: v.detach().cpu().contiguous().clone() for n, v in model.state_dict().items()}
    if half:
        state = {n: v.half() if v.is_floating_point() else v for n, v in state.items()}
    if not all(value.isfinite().all() for value in state.values()):
        raise ValueError(f"{path}: a weight is no finite number{' in fp16' * half}.")
    with machine.written_whole(path, SafetensorError) as fresh:
        save_file(state, fresh, {"about": json.dumps(about)})
        fresh.chmod(0o644)  # the library leaves it to its owner alone


def pretrained(name: str) -> nn.Module:
    """Our own class with torchvision's official ImageNet weights, in evaluation mode.

    `about` holds the thousand classes and the normalisation. Raises ValueError for a network
    without such weights, OSError, with the file and its place, where they cannot be fetched.
    """
    import torchvision

    if name not in IMAGENET:
        raise ValueError(unknown("network with ImageNet weights", name, tuple(IMAGENET)))
    theirs, options = IMAGENET[name]
    weights = torchvision.models.get_model_weights(theirs).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])
    try:
        check_download(file)
        state = weights.get_state_dict(check_hash=True, weights_only=True)
    except Exception as error:  # of the network, of the hub, of the file
        raise OSError(
            f"ImageNet's weights for {name} could not be had ({error}). Connect to the network, or "
            f"fetch {weights.url} elsewhere and put it at {file}."
        ) from error
    model = zoo.build(name, in_channels=3, num_classes=1000, **options)
    fill(model, state)
    model.begun_with = "ImageNet"
    prepared = weights.transforms()  # as its images were
    model.about = {
        "network": name,
        "classes": weights.meta["categories"],
        "mean": tuple(prepared.mean),
        "std": tuple(prepared.std),
        "image_size": prepared.crop_size[0],
        "channels": 3,
        "dataset": "ImageNet",
    }
    return model.eval()


def check_download(file: Path) -> None:
    """Raise ValueError where a file lies there whose hash is not that in its name."""
    if file.exists():
        begins = file.stem.rsplit("-", 1)[-1]
        with open(file, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if not found.startswith(begins):
            raise ValueError(f"the file there has the hash {found[:8]}, not {begins}: delete it")


def fill(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Copy another library's tensors into a model of the same structure, by order and shape."""
    own = model.state_dict()
    shapes = [tuple(value.shape) for value in own.values()]
    if shapes != [tuple(value.shape) for value in state.values()]:
        raise ValueError(f"These weights are not of a net like {type(model).__name__}.")
    model.load_state_dict(dict(zip(own, state.values(), strict=True)))
