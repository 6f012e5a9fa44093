"""`Config`: how to train, in one place, checked before any work is done."""

import math
from dataclasses import dataclass
from numbers import Integral

from common.data import AUGMENTATIONS
from common.machine import PRECISIONS, unknown

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "warmup", "multistep")
WARMUP = 0.2  # share of the training in which "warmup" raises the learning rate


@dataclass(frozen=True)
class Config:
    """How to train. Wrong values raise ValueError here, before any work is done.

    `batch_size` is a number, or stages ((epochs, size), …) whose epochs add up to `epochs`.
    `schedule`: "constant"; "cosine" from `lr` down to 0; "warmup", a linear rise over the first
    fifth and then the cosine; "multistep", a tenth of the rate after each of the `milestones`.
    `patience` stops after that many epochs without a lower validation loss. `image_size` resizes
    (pixels); `train_images` uses only so many of the training images, and as large a share of the
    validation images.
    """

    epochs: int = 5
    batch_size: int | tuple[tuple[int, int], ...] = 128
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9  # SGD only
    nesterov: bool = False  # SGD only: look ahead by the momentum
    weight_decay: float = 0.0
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()  # epochs
    patience: int | None = None
    label_smoothing: float = 0.0
    augment: tuple[str, ...] = ()
    precision: str = "auto"
    image_size: int | None = None
    train_images: int | None = None
    validation: float = 0.2  # share of the training images held out
    seed: int = 0

    def __post_init__(self) -> None:
        for name, valid in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in valid:
                raise ValueError(unknown(name, getattr(self, name), valid))
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise ValueError(unknown("augmentation", name, AUGMENTATIONS))
        for name in ("epochs", "seed", "image_size", "train_images", "patience"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Integral):
                raise ValueError(f"{name}={value!r}; expected a whole number.")
        for name, fits, expected in (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("lr", 0 < self.lr < math.inf, "a number above 0, such as 1e-3"),
            ("momentum", 0 <= self.momentum < 1, "0 or more and less than 1"),
            ("nesterov", not self.nesterov or self.momentum > 0, "False where momentum is 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("patience", self.patience is None or self.patience >= 1, "1 or more, or None"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more and less than 1"),
            ("image_size", self.image_size is None or self.image_size >= 1, "1 or more, or None"),
            ("train_images", self.train_images is None or self.train_images >= 1, "1 or more"),
            ("validation", 0 < self.validation < 1, "a share between 0 and 1, such as 0.2"),
            ("seed", 0 <= self.seed < 2**43, "0 or more and less than 2**43"),
        ):  # fmt: skip
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)}; expected {expected}.")
        if sum(epochs for epochs, _ in self.stages) != self.epochs:
            raise ValueError(
                f"batch_size={self.batch_size}: the stages' epochs must add up to {self.epochs}."
            )
        if not all(isinstance(n, Integral) and n >= 1 for stage in self.stages for n in stage):
            raise ValueError(
                f"batch_size={self.batch_size}; expected a whole number of images, 1 or more, or "
                "stages such as ((5, 32), (5, 128)): epochs and images a batch."
            )
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("schedule='multistep' needs milestones, such as (30, 40).")

    @property
    def evaluation_batch(self) -> int:
        """Images a batch when nothing is trained: twice as many fit, for no gradients are kept."""
        return min(2 * max(size for _, size in self.stages), 512)

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """The batch sizes as ((epochs, size), …)."""
        if isinstance(self.batch_size, (Integral, float)):
            return ((self.epochs, self.batch_size),)
        return tuple(self.batch_size)

    def batch_size_at(self, epoch: int) -> int:
        """The batch size of epoch `epoch`, counted from 0."""
        sizes = [size for epochs, size in self.stages for _ in range(epochs)]
        return sizes[epoch]

    def lr_at(self, epoch: float) -> float:
        """The learning rate at a point of the training, in epochs from 0 to `epochs`."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "multistep":
            return self.lr * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        done = epoch / self.epochs
        if self.schedule == "warmup":
            if done < WARMUP:
                return self.lr * max(done / WARMUP, 0.01)
            done = (done - WARMUP) / (1 - WARMUP)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))
