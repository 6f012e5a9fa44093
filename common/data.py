"""Images as the notebooks use them: `load` a set, `split` it, draw `Batches` from it."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from common import machine, sources
from common.machine import unknown

AUGMENTATIONS = ("crop", "flip", "colour")


@dataclass(frozen=True)
class Images:
    """uint8 images (N, C, H, W) with int64 labels (N,), each in 0 … number of classes - 1."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageSet:
    """A data set: training and test images, class names, and the training images' statistics.

    `mean` and `std` hold one value a channel on the 0 … 1 scale. `source` tells where the images
    came from; `stand_in` is true when they are not the set that was asked for.
    """

    name: str
    source: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    stand_in: bool = False

    def __post_init__(self) -> None:
        for part, data in (("train", self.train), ("test", self.test)):
            if len(data) == 0:
                raise ValueError(
                    f"{self.name}: the {part} set is empty; at least one image needed."
                )
            if data.images.dtype != torch.uint8 or data.images.ndim != 4:
                raise TypeError(
                    f"{self.name}: {part} images must be uint8 (N, C, H, W), got "
                    f"{data.images.dtype} {tuple(data.images.shape)}."
                )
            if len(data.images) != len(data.labels):
                raise ValueError(
                    f"{self.name}: {len(data.images)} {part} images but {len(data.labels)} labels."
                )
            low, high = int(data.labels.min()), int(data.labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"{self.name}: {part} labels run from {low} to {high}, but {len(self.classes)} "
                    f"classes allow 0 to {len(self.classes) - 1}."
                )

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

    Summed in blocks of about 16 MB, so that the set never exists as floats.
    """
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


def set_names() -> tuple[str, ...]:
    """The sets that `load` knows by name."""
    return (*sources.KNOWN, "digits")


def load(name: str, *, root: Path | str | None = None, strict: bool = False) -> ImageSet:
    """Load "mnist", "fashion_mnist", "cifar10", "digits", or class folders by their path or name.

    The sources, in order: the original files in the data folder (`root`, else `CNN_DATA`, else
    data/); class folders at `root`/`name`/{train,test}/<class>/; a download into the data folder;
    and scikit-learn's digits in the size and channels of the set asked for, with a notice. With
    `strict` that last step is an error (FileNotFoundError). A file that is there but damaged is
    always an error (ValueError, FileNotFoundError), as is an unknown name (ValueError).
    """
    root = machine.data_folder() if root is None else Path(root)
    if name == "digits":
        return image_set(name, sources.read_digits())
    if name not in sources.KNOWN:
        for folder in (root / name, Path(name)):
            if folder.is_dir():
                return image_set(folder.resolve().name, sources.read_class_folders(folder))
        raise ValueError(unknown("data set", name, set_names()) + " A folder's path works as well.")

    known = sources.KNOWN[name]
    if (root / known.folder).is_dir():
        return image_set(name, sources.read_files(known, root))
    if (root / name).is_dir():
        return image_set(name, sources.read_class_folders(root / name))
    try:
        sources.download(known, root)
    except OSError as error:
        why = (
            f"{name} is not in {root} ({known.folder}/ or {name}/train/) and its download failed: "
            f"{error} To get it, connect to the network and run this again, or put its files into "
            f"that folder (CNN_DATA names another one)."
        )
        if strict:
            raise FileNotFoundError(why) from error
        machine.notice(
            f"NOT {name.upper()}: these are scikit-learn's 1,797 digits, enlarged to "
            f"{known.shape[1]} x {known.shape[2]} pixels and used in its place. {why}"
        )
        return image_set(name, sources.read_digits(known.shape), stand_in=True)
    return image_set(name, sources.read_files(known, root))


def image_set(name: str, parts: sources.Parts, stand_in: bool = False) -> ImageSet:
    """An `ImageSet` from what a reader returned."""
    train = Images(parts.train_images, parts.train_labels)
    test = Images(parts.test_images, parts.test_labels)
    return ImageSet(name, parts.source, train, test, parts.classes, stand_in)


def split(n: int, validation: float = 0.2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the indices 0 … n - 1 at random into training and validation, the same for a seed.

    Raises ValueError unless both parts get at least one image.
    """
    held_out = round(n * validation)
    if not 0 < validation < 1 or not 0 < held_out < n:
        raise ValueError(
            f"validation={validation} of {n} images leaves {max(n - held_out, 0)} to train on and "
            f"{held_out} to validate; choose a share between 0 and 1, such as 0.2."
        )
    order = torch.randperm(n, generator=generator(seed))
    return order[held_out:], order[:held_out]


def generator(*numbers: int) -> torch.Generator:
    """A random generator of its own for each tuple of numbers, such as (seed, epoch)."""
    # With their count in front: SeedSequence takes (1,), (1, 0) and (1, 0, 0) for the same.
    state = np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def batch_sizes(n: int, batch_size: int, ranks: int = 1) -> list[int]:
    """The sizes of an epoch's batches of `n` images.

    The last one takes what is left; where that is less than two images for each of `ranks`
    processes, which batch normalisation could not train on, it joins the one before.
    """
    full, rest = divmod(n, batch_size)
    sizes = [batch_size] * full + [rest] * (rest > 0)
    if full and 0 < rest < 2 * ranks:
        sizes[-2:] = [sum(sizes[-2:])]
    return sizes


class Batches:
    """Normalised float batches on the device, made from uint8 images a batch at a time.

    `for x, y in batches.epoch(3)` gives x (B, C, size, size) float32 and y (B,) int64. With a
    `seed` the order and the augmentation depend on (seed, epoch) alone: not on the batch size, the
    device, or what ran before. Without one, images come in order.

    `part` is "train" or "test"; `indices` picks images of it; `size` resizes them (bilinear);
    `augment` names any of "crop" (pad by an eighth, crop back), "flip" (left-right) and "colour"
    (brightness, contrast, saturation by up to 20 %), drawn anew for each image and epoch.
    `share` (rank, ranks) gives one of several processes its part of each batch.
    """

    def __init__(
        self,
        data: ImageSet,
        part: str,
        batch_size: int,
        *,
        indices: torch.Tensor | None = None,
        size: int | None = None,
        seed: int | None = None,
        augment: tuple[str, ...] = (),
        share: tuple[int, int] = (0, 1),
        device: torch.device | str | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; expected 1 or more images a batch.")
        if part not in ("train", "test"):
            raise ValueError(f"part={part!r}; expected 'train' or 'test'.")
        if size is not None and size < 1:
            raise ValueError(f"size={size}; expected 1 or more pixels, or None to keep the size.")
        for name in augment:
            if name not in AUGMENTATIONS:
                raise ValueError(unknown("augmentation", name, AUGMENTATIONS))
        chosen = getattr(data, part)
        self.device = torch.device(device or machine.device())
        # On a GPU the whole set moves once, as bytes; on a CPU this copies nothing.
        self.images = chosen.images.to(self.device)
        self.labels = chosen.labels.to(self.device)
        self.indices = torch.arange(len(chosen)) if indices is None else indices
        if len(self.indices) == 0:
            raise ValueError("indices is empty; expected at least one image.")
        self.rank, self.ranks = share
        if min(batch_size, len(self.indices)) < self.ranks:
            raise ValueError(
                f"{min(batch_size, len(self.indices))} images a batch cannot be shared by "
                f"{self.ranks} processes; expected at least one image for each."
            )
        self.batch_size, self.size = batch_size, size
        self.seed, self.augment = seed, augment
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
        return self.epoch(0)

    def epoch(self, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches (x, y) of epoch `number`, counted from 0."""
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


def augment(x: torch.Tensor, draws: torch.Tensor, kinds: tuple[str, ...]) -> torch.Tensor:
    """Augment uint8 images (B, C, H, W) by `draws` (B, 6), a row of numbers in 0 … 1 an image.

    Columns 0 and 1 place the crop, 2 decides the flip, 3 to 5 set brightness, contrast and
    saturation. Returns the same shape; float32 on the 0 … 255 scale after "colour", else uint8.
    """
    _, C, H, W = x.shape
    if "crop" in kinds:
        edge = max(H, W) // 8
        padded = pad(x, (edge, edge, edge, edge))
        top, left = (draws[:, :2] * (2 * edge + 1)).long().unbind(1)
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
