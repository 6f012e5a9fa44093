"""Images as the notebooks use them: `load` a set, `split` it, draw `Batches` from it."""

import contextlib
import functools
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from common import machine, sources
from common.config import AUGMENTATIONS, MOST_PIXELS, whole
from common.machine import unknown
from common.sources import pictures

Indices = torch.Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Images:
    """uint8 images (N, C, H, W) with int64 labels (N,), each in 0 … number of classes - 1."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


def check_images(images: torch.Tensor, name: str = "images") -> None:
    """Raise TypeError unless these are uint8 (N, C, H, W), ValueError when one of those is 0."""
    kind = f"{getattr(images, 'dtype', type(images))} {tuple(getattr(images, 'shape', ()))}"
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        raise TypeError(f"{name} must be uint8 (N, C, H, W), as a torch.Tensor, got {kind}.")
    if not images.numel():
        raise ValueError(
            f"{name}: the set is empty, {tuple(images.shape)}; at least one image, channel and "
            f"pixel needed."
        )


@dataclass(frozen=True)
class ImageSet:
    """A data set: training and test images, class names, and the training images' statistics.

    `mean` and `std` hold one value a channel on the 0 … 1 scale. `source` tells where the images
    came from; `stand_in` is true when they are not the whole set that was asked for, but a sample.

    Raises TypeError for images that are not uint8 (N, C, H, W) or labels that are not int64 (N,),
    and ValueError for empty or unlike parts or labels without a class.
    """

    name: str
    source: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    stand_in: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.classes, tuple | list):
            raise TypeError(f"{self.name}: classes={self.classes!r}; expected a row of names.")
        if len(set(map(str, self.classes))) < len(self.classes):
            raise ValueError(f"{self.name}: two of the classes {self.classes} have the same name.")
        for part in ("train", "test"):
            if not isinstance(getattr(self, part), Images):
                kind = type(getattr(self, part)).__name__
                raise TypeError(
                    f"{self.name}: {part} is a {kind}; expected Images(images, labels)."
                )
            images, labels = getattr(self, part).images, getattr(self, part).labels
            check_images(images, f"{self.name}: {part} images")
            kind = getattr(labels, "dtype", type(labels).__name__)
            if not isinstance(labels, torch.Tensor) or kind != torch.int64:
                raise TypeError(f"{self.name}: {part} labels must be an int64 tensor, got {kind}.")
            if labels.shape != images.shape[:1]:
                raise ValueError(
                    f"{self.name}: {len(images)} {part} images but {labels.numel()} labels of the "
                    f"shape {tuple(labels.shape)}; expected one for each image."
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"{self.name}: {part} labels run from {low} to {high}, but {len(self.classes)} "
                    f"classes allow 0 to {len(self.classes) - 1}."
                )
        if self.test.images.shape[1:] != self.shape:
            raise ValueError(
                f"{self.name}: test images are {tuple(self.test.images.shape[1:])}, training "
                f"images {self.shape} (channels, height, width); expected the same."
            )

    def sample(self, n: int, seed: int = 0) -> "ImageSet":
        """The same set with at most `n` images of each part, drawn at random.

        It is a stand-in for the whole. Raises ValueError unless n is 1 or more.
        """
        n, parts = whole("n", n), {}
        for name in ("train", "test"):
            part = getattr(self, name)
            chosen = torch.randperm(len(part), generator=generator(seed))[:n]
            parts[name] = Images(part.images[chosen], part.labels[chosen])
        return replace(self, stand_in=True, **parts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.train.images.shape[1:])

    @functools.cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) of the training images, one value a channel, on the 0 … 1 scale."""
        return statistics(self.train.images)

    @property
    def mean(self) -> tuple[float, ...]:
        return self.statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        return self.statistics[1]


def statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of uint8 images (N, C, H, W), by channel, on the 0 … 1 scale.

    Summed in blocks of about 16 MB, so that the set never exists as floats. Raises as `ImageSet`.
    """
    check_images(images)
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for block in images.split(max(1, 2**22 // images[0].numel())):
        values = block.float()
        total += values.sum(dim=(0, 2, 3)).cpu()
        squares += values.square_().sum(dim=(0, 2, 3)).cpu()
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean**2).clamp(min=0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def side(size: int | None) -> int | None:
    """A side in pixels as a plain int, or None. Raises ValueError unless 1 to `MOST_PIXELS`."""
    if size is None:
        return None
    if (pixels := whole("size", size)) > MOST_PIXELS:
        raise ValueError(f"size={size}; expected 1 to {MOST_PIXELS:,} pixels.")
    return pixels


def set_names() -> tuple[str, ...]:
    """The sets that `load` knows by name."""
    return (*sources.KNOWN, "digits")


def load(
    name: str | Path,
    *,
    root: Path | str | None = None,
    strict: bool = False,
    size: int | None = None,
    skip_bad: bool = False,
) -> ImageSet:
    """Load "mnist", "fashion_mnist", "cifar10", "digits", or pictures in class folders.

    The sources, in order: the original files in the data folder (`root`, else `CNN_DATA`, else
    data/); class folders at `root`/`name`; a download into the data folder; and the sample of the
    set that the course carries, with a notice. With `strict` that last step is an error
    (FileNotFoundError). A file that is there but damaged is always an error (ValueError), as is an
    unknown name (ValueError) and a set of which some files are missing (FileNotFoundError).

    Any other name is a folder's, below the data folder or as a path; one that begins with a dot is
    a path from the current folder. It holds `name`/<class>/ with pictures, or
    `name`/{train,test}/<class>/. Pictures of unlike sizes are made `size` x `size` pixels (64 by
    default); `skip_bad` leaves out what cannot be read. A notice says what was done, and
    `pictures.read_class_folders` what is refused.
    """
    if not isinstance(name, str | Path) or not str(name) or "\0" in str(name):
        raise ValueError(f"Data set {name!r}: expected a name or a folder's path, such as 'mnist'.")
    name, size = os.path.expanduser(str(name)), side(size)
    root = machine.data_folder() if root is None else Path(root).expanduser()
    known = sources.KNOWN.get(name)
    places = [] if name.startswith(".") else [root / name]
    if not known:
        places.append(Path(name))
    folder = next((path for path in places if os.path.isdir(path)), None)
    here = known and len(sources.missing(known, root)) < len(known.hashes)
    if name == "digits" or here or (known and not folder):
        if size is not None:
            raise ValueError(f"size={size} is for folders of pictures; use Batches(size=) instead.")
        parts = sources.read_known(name, root, strict) if known else sources.read_digits()
    elif folder:
        parts = pictures.read_class_folders(folder, size, skip_bad)
        name = name if known else machine.printable(folder.resolve().name)
    elif os.path.isfile(name):
        raise ValueError(f"{name} is a file; expected a folder. Unpack it if it is an archive.")
    else:
        raise ValueError(unknown("data set", name, set_names()) + " A folder's path works as well.")
    if parts.note:
        machine.notice(parts.note)
    train = Images(parts.train_images, parts.train_labels)
    test = Images(parts.test_images, parts.test_labels)
    return ImageSet(name, parts.source, train, test, parts.classes, parts.stand_in)


def split(n: int, validation: float = 0.2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the indices 0 … n - 1 at random into training and validation, the same for a seed.

    Raises ValueError unless both parts get at least one image.
    """
    n = whole("n", n, least=0)
    try:
        share = float(validation)
    except (TypeError, ValueError):
        raise ValueError(f"validation={validation!r}; expected a share between 0 and 1.") from None
    held_out = round(n * share) if 0 < share < 1 else n * (share >= 1)
    if not 0 < held_out < n:
        better = 0.2 if n > 2 and share != 0.2 else 0.5
        advice = f"choose a share between 0 and 1, such as {better}" if n > 1 else "use more images"
        raise ValueError(
            f"validation={validation} of {n} images leaves {n - held_out} to train on and "
            f"{held_out} to validate; {advice}."
        )
    order = torch.randperm(n, generator=generator(seed))
    return order[held_out:], order[:held_out]


def generator(*numbers: int) -> torch.Generator:
    """A random generator of its own for each tuple of numbers from 0 up, such as (seed, epoch)."""
    numbers = [whole("seed or epoch", number, least=0) for number in numbers]
    # With their count in front: SeedSequence takes (1,), (1, 0) and (1, 0, 0) for the same.
    state = np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def batch_sizes(n: int, batch_size: int, ranks: int = 1) -> list[int]:
    """The sizes of an epoch's batches of `n` images.

    The last one takes what is left; where that is less than two images for each of `ranks`
    processes, which batch normalisation could not train on, it joins the one before.
    Raises ValueError for numbers that are not whole and positive.
    """
    n, batch_size, ranks = whole("n", n, 0), whole("batch_size", batch_size), whole("ranks", ranks)
    full, rest = divmod(n, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    if full and 0 < rest < 2 * ranks:
        sizes[-2:] = [sum(sizes[-2:])]
    return sizes


def chosen_indices(indices: Indices | None, n: int) -> torch.Tensor:
    """Which of n images: int64 indices from numbers 0 … n - 1, a mask of n truth values, or None.

    Raises ValueError for others and for none at all.
    """
    if indices is None:
        return torch.arange(n)
    array = np.array(None)
    with contextlib.suppress(TypeError, ValueError):  # such as rows of unlike lengths
        array = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else indices)
    mask = array.dtype.kind == "b"
    if array.size == 0 or (mask and not array.any()):
        raise ValueError("indices is empty or a mask without a True; expected at least one image.")
    if array.ndim != 1 or array.dtype.kind not in "biu" or (mask and len(array) != n):
        raise ValueError(
            f"indices: {type(indices).__name__} of {array.dtype} {array.shape}; expected a row of "
            f"whole numbers, or a mask of {n} truth values."
        )
    array = array.nonzero()[0] if mask else array
    if array.min() < 0 or array.max() >= n:
        raise ValueError(
            f"indices run from {array.min()} to {array.max()}; expected 0 to {n - 1}: {n} images."
        )
    return torch.from_numpy(array.astype(np.int64))


# What lies on a GPU: by the tensor on the CPU, how often it was changed, and the device.
copies: weakref.WeakValueDictionary[tuple[int, int, str], torch.Tensor]
copies = weakref.WeakValueDictionary()


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device: a whole set moves once, for all that ask while one of them lives."""
    if tensor.device == device:
        return tensor
    changes = 0 if tensor.is_inference() else tensor._version
    key = (id(tensor), changes, str(device))
    copy = copies.get(key)
    if copy is None:
        copy = copies[key] = tensor.to(device)
        copy.original = tensor  # which keeps its id from becoming another's
    return copy


class Batches:
    """Normalised float batches on the device, made from uint8 images a batch at a time.

    `for x, y in batches.epoch(3)` gives x (B, C, size, size) float32 and y (B,) int64. With a
    `seed` the order and the augmentation depend on (seed, epoch) alone: not on the batch size, the
    device, or what ran before. Without one, images come in order.

    `for x, y in batches` is epoch 0 at first and goes on to the next epoch each time, so that two
    passes differ in order and augmentation.

    `part` is "train" or "test"; `indices` picks images of it, as numbers or as a mask; `size`
    resizes them (bilinear); `augment` names any of "crop" (pad by an eighth, crop back), "shift"
    (the same by a sixteenth), "flip" (left-right) and "colour" (brightness, contrast, saturation by
    up to 20 %), drawn anew for each image and epoch. `share` (rank, ranks) gives one of several
    processes its part of each batch.

    Raises ValueError for values that make no sense.
    """

    def __init__(
        self,
        data: ImageSet,
        part: str,
        batch_size: int,
        *,
        indices: Indices | None = None,
        size: int | None = None,
        seed: int | None = None,
        augment: tuple[str, ...] = (),
        share: tuple[int, int] = (0, 1),
        device: torch.device | str | None = None,
    ):
        if part not in ("train", "test"):
            raise ValueError(f"part={part!r}; expected 'train' or 'test'.")
        chosen = getattr(data, part)
        self.batch_size = whole("batch_size", batch_size)
        self.size = side(size)
        self.seed = None if seed is None else whole("seed", seed, least=0)
        self.augment = augmentations(augment)
        if not isinstance(share, tuple | list) or len(share) != 2:
            raise ValueError(f"share={share!r}; expected (rank, ranks), such as (0, 2).")
        self.rank, self.ranks = (whole("rank or ranks", number, 0) for number in share)
        self.indices = chosen_indices(indices, len(chosen))
        fewest = min(self.batch_size, len(self.indices))
        if not self.rank < self.ranks <= fewest:
            raise ValueError(
                f"share={share}: {fewest} images a batch cannot be shared by {self.ranks} "
                f"processes; expected (rank, ranks), such as (0, 2), and an image for each."
            )
        self.device = torch.device(device or machine.device())
        self.images = on_device(chosen.images, self.device)
        self.labels = on_device(chosen.labels, self.device)
        self.passes = 0
        # x / 255 - mean over std, in two operations on 0 … 255
        self.shift = 255 * torch.tensor(data.mean, device=self.device).view(-1, 1, 1)
        self.scale = 255 * torch.tensor(data.std, device=self.device).view(-1, 1, 1).clamp(min=1e-6)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Images in each batch of an epoch, all processes' shares together."""
        return batch_sizes(len(self.indices), self.batch_size, self.ranks)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.passes += 1
        return self.epoch(self.passes - 1)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches (x, y) of epoch `number`, counted from 0: the same ones at every call."""
        return self.draw(whole("epoch", number, least=0))

    def draw(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What `epoch` returns."""
        order = self.indices
        if self.seed is not None:
            order = order[torch.randperm(len(order), generator=generator(self.seed, number, 0))]
        draws = None
        if self.augment:
            # Six numbers for every image of the set, so that image i's are always the same.
            draws = torch.rand(len(self.labels), 6, generator=generator(self.seed or 0, number, 1))
        # Moved to the device once: a copy for each batch would make a GPU wait for it.
        order, draws = order.to(self.device), None if draws is None else draws.to(self.device)
        for ids in order.split(self.sizes):
            ids = ids[self.rank :: self.ranks]
            x = self.images[ids]
            if draws is not None:
                x = augment(x, draws[ids], self.augment)
            yield self.prepare(x), self.labels[ids]

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 or float images on the 0 … 255 scale to normalised float32, resized."""
        # Normalised first: a weighted mean commutes with it, and the small image is less work.
        x = (x - self.shift).div_(self.scale)
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            shrinks = self.size < max(x.shape[-2:])  # then average over what is left out
            x = interpolate(x, (self.size, self.size), mode="bilinear", antialias=shrinks)
        return x


def augmentations(kinds: tuple[str, ...] | str) -> tuple[str, ...]:
    """The kinds as a tuple. Raises ValueError for a name that is none of `AUGMENTATIONS`."""
    kinds = tuple(kinds) if isinstance(kinds, tuple | list | set) else (kinds,)
    for name in kinds:
        if name not in AUGMENTATIONS:
            raise ValueError(unknown("augmentation", name, AUGMENTATIONS))
    return kinds


def augment(x: torch.Tensor, draws: torch.Tensor, kinds: tuple[str, ...]) -> torch.Tensor:
    """Augment uint8 images (B, C, H, W) by `draws` (B, 6), a row of numbers in 0 … 1 an image.

    Columns 0 and 1 place the crop or the smaller shift, 2 decides the flip, 3 to 5 set brightness,
    contrast and saturation. Returns the same shape; float32 on the 0 … 255 scale after "colour",
    else uint8.
    Raises TypeError or ValueError for other shapes and kinds.
    """
    check_images(x)
    kinds = augmentations(kinds)
    if not isinstance(draws, torch.Tensor) or draws.shape != (len(x), 6):
        came = tuple(getattr(draws, "shape", ())) or type(draws).__name__
        raise ValueError(f"draws must be a tensor ({len(x)}, 6), a row an image; got {came}.")
    _, C, H, W = x.shape
    if "crop" in kinds or "shift" in kinds:
        edge = max(H, W) // (8 if "crop" in kinds else 16)
        padded = pad(x, (edge, edge, edge, edge))
        top, left = (draws[:, :2] * (2 * edge + 1)).long().clamp(0, 2 * edge).unbind(1)
        rows = top[:, None] + torch.arange(H, device=x.device)  # B x H
        columns = left[:, None] + torch.arange(W, device=x.device)  # B x W
        image = torch.arange(len(x), device=x.device)[:, None, None, None]
        channel = torch.arange(C, device=x.device)[None, :, None, None]
        x = padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    if "flip" in kinds:
        x = torch.where((draws[:, 2] < 0.5).view(-1, 1, 1, 1), x.flip(-1), x)
    if "colour" in kinds:
        brightness, contrast, saturation = (0.8 + 0.4 * draws[:, 3:]).T.reshape(3, -1, 1, 1, 1)
        x = x.float() * brightness
        x = torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, contrast)
        x = torch.lerp(x.mean(dim=1, keepdim=True), x, saturation).clamp(0, 255)
    return x
