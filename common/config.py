"""`Config`: how to train, in one place, checked before any work is done."""

import math
import operator
from dataclasses import dataclass, fields
from numbers import Integral, Real

from common.machine import PRECISIONS, unknown

AUGMENTATIONS = ("crop", "shift", "flip", "colour")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "warmup", "multistep")
WARMUP = 0.2  # share of the training in which "warmup" raises the learning rate
NUMBERS = ("lr", "momentum", "weight_decay", "label_smoothing", "validation")
MOST_PIXELS = 4096  # a side
WHOLE = ("epochs", "seed", "image_size", "train_images", "patience")


@dataclass(frozen=True)
class Config:
    """How to train. Wrong values raise ValueError here, before any work is done."""

    epochs: int = 5
    """Passes over the training images."""
    batch_size: int | tuple[tuple[int, int], ...] = 128
    """Images a step, or stages ((epochs, size), …) whose epochs add up to `epochs`."""
    optimizer: str = "adam"
    """adam, adamw or sgd."""
    lr: float = 1e-3
    """Learning rate, the highest of the schedule."""
    momentum: float = 0.9
    """Of sgd."""
    nesterov: bool = False
    """Of sgd: look ahead by the momentum."""
    weight_decay: float = 0.0
    """Pull of all weights towards 0."""
    schedule: str = "constant"
    """constant; cosine, from `lr` down to 0; warmup, a linear rise over the first fifth and then
    the cosine (one cycle); multistep, a tenth of the rate after each of the milestones."""
    milestones: tuple[int, ...] = ()
    """Of multistep: epochs."""
    patience: int | None = None
    """Stop after so many epochs without a lower validation loss."""
    label_smoothing: float = 0.0
    """Share of the target that goes to all classes alike."""
    augment: tuple[str, ...] = ()
    """Any of crop, shift, flip and colour."""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16."""
    image_size: int | None = None
    """Resize images to so many pixels."""
    train_images: int | None = None
    """Use only so many training images, and as large a share of the validation images."""
    validation: float = 0.2
    """Share of the training images held out."""
    seed: int = 0
    """Of the split, the order of the images, augmentation and dropout."""

    def __post_init__(self) -> None:
        for field in fields(self):  # numbers of numpy and torch become Python's, lists tuples
            object.__setattr__(self, field.name, in_python(getattr(self, field.name)))
        for name, valid in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in valid:
                raise ValueError(unknown(name, getattr(self, name), valid))
        if not isinstance(self.augment, tuple):
            raise ValueError(f"augment={self.augment!r}; expected names, such as ('crop', 'flip').")
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise ValueError(unknown("augmentation", name, AUGMENTATIONS))
        for name in NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ValueError(f"{name}={value!r}; expected a number.")
            try:  # fractions, and whole numbers: 0 and 0.0 are the same setting
                object.__setattr__(self, name, float(value))
            except OverflowError:
                raise ValueError(f"{name} is too large a number.") from None
        for name in WHOLE:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise ValueError(f"{name}={value!r}; expected a whole number.")
        if not isinstance(self.nesterov, bool):
            raise ValueError(f"nesterov={self.nesterov!r}; expected True or False.")
        size, pixels = self.image_size, f"1 to {MOST_PIXELS:,} pixels, or None"
        for name, fits, expected in (
            ("epochs", self.epochs is not None and 1 <= self.epochs <= 10_000, "1 to 10,000"),
            ("lr", 0 < self.lr < math.inf, "a number above 0, such as 1e-3"),
            ("momentum", 0 <= self.momentum < 1, "0 or more and less than 1"),
            ("nesterov", not self.nesterov or self.momentum > 0, "False where momentum is 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("patience", self.patience is None or self.patience >= 1, "1 or more, or None"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more and less than 1"),
            ("image_size", size is None or 1 <= size <= MOST_PIXELS, pixels),
            ("train_images", self.train_images is None or self.train_images >= 1, "1 or more"),
            ("validation", 0 < self.validation < 1, "a share above 0 and below 1"),
            ("seed", self.seed is not None and 0 <= self.seed < 2**43, "0 to less than 2**43"),
        ):
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)}; expected {expected}.")
        self.check_stages()
        self.check_milestones()

    def check_stages(self) -> None:
        expected = (
            f"batch_size={self.batch_size}; expected a whole number of images, 1 or more, or "
            "stages such as ((5, 32), (5, 128)): epochs and images a batch"
        )
        stages = self.stages
        if not all(isinstance(stage, tuple) and len(stage) == 2 for stage in stages):
            raise ValueError(f"{expected}.")
        if not all(counts(n) for stage in stages for n in stage):
            raise ValueError(f"{expected}.")
        if sum(epochs for epochs, _ in stages) != self.epochs:
            raise ValueError(f"{expected}. The stages' epochs must add up to {self.epochs}.")

    def check_milestones(self) -> None:
        stones = self.milestones
        if not isinstance(stones, tuple) or not all(map(counts, stones)):
            raise ValueError(f"milestones={stones!r}; expected epochs, such as (30, 40).")
        if stones and self.schedule != "multistep":
            raise ValueError(f"milestones={stones}; schedule='{self.schedule}' has none.")
        if any(epoch > self.epochs for epoch in stones):
            raise ValueError(f"milestones={stones}; expected epochs up to {self.epochs}, the last.")
        if self.schedule == "multistep" and not stones:
            raise ValueError("schedule='multistep' needs milestones, such as (30, 40).")
        if list(stones) != sorted(set(stones)):
            raise ValueError(f"milestones={stones}; expected rising epochs, such as (30, 40).")

    @property
    def evaluation_batch(self) -> int:
        """Images a batch when nothing is trained: twice as many fit, for no gradients are kept."""
        return min(2 * max(size for _, size in self.stages), 512)

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """The batch sizes as ((epochs, size), …)."""
        if isinstance(self.batch_size, tuple):
            return self.batch_size
        return ((self.epochs, self.batch_size),)

    def batch_size_at(self, epoch: int) -> int:
        """The batch size of epoch `epoch`, counted from 0."""
        for epochs, size in self.stages:
            if epoch < epochs:
                return size
            epoch -= epochs
        raise IndexError(f"The training has {self.epochs} epochs.")

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


def counts(value) -> bool:
    """Whether a value is a whole number from 1 up."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def in_python(value):
    """The same value in Python's own types: numbers of numpy and torch, tuples for lists."""
    if isinstance(value, (list, tuple)):
        return tuple(map(in_python, value))
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return value.item()
    return value


def whole(name: str, value: int, least: int = 1) -> int:
    """The value as a plain int. Raises ValueError unless it is whole and at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name}={value!r}; expected {least} or more, as a whole number.")
    return number
