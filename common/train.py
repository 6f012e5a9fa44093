"""Training: `Config` says how, `fit` does it, `evaluate` judges it, `History` keeps the numbers."""

import copy
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from common import plot, probe, sentinel, session
from common.data import AUGMENTATIONS, Batches, ImageSet, split
from common.names import unknown

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "warmup", "multistep")
WARMUP = 0.2  # share of the training in which "warmup" raises the learning rate
AUXILIARY_WEIGHT = 0.3  # Szegedy et al. 2015, section 5: weight of an auxiliary classifier's loss


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
    momentum: float = 0.9  # SGD only, Nesterov's form
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
        for name, valid in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in valid:
                raise ValueError(unknown(name, getattr(self, name), valid))
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise ValueError(unknown("augmentation", name, AUGMENTATIONS))
        for name, fits, expected in (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("lr", 0 < self.lr < math.inf, "a number above 0, such as 1e-3"),
            ("momentum", 0 <= self.momentum < 1, "0 or more and less than 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("patience", self.patience is None or self.patience >= 1, "1 or more, or None"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 or more and less than 1"),
            ("image_size", self.image_size is None or self.image_size >= 1, "1 or more, or None"),
            ("train_images", self.train_images is None or self.train_images >= 1, "1 or more"),
            ("validation", 0 < self.validation < 1, "a share between 0 and 1, such as 0.2"),
            ("seed", self.seed >= 0, "0 or more"),
        ):  # fmt: skip
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)}; expected {expected}.")
        if sum(epochs for epochs, _ in self.stages) != self.epochs:
            raise ValueError(
                f"batch_size={self.batch_size}: the stages' epochs must add up to {self.epochs}."
            )
        if min(size for _, size in self.stages) < 1:
            raise ValueError(f"batch_size={self.batch_size}; expected 1 or more images a batch.")
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("schedule='multistep' needs milestones, such as (30, 40).")

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """The batch sizes as ((epochs, size), …)."""
        if isinstance(self.batch_size, int):
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


@dataclass
class History:
    """What a training did: a row an epoch, the loss of every batch, and what it was told."""

    epochs: list[dict] = field(default_factory=list)
    batch_losses: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    best_epoch: int = 0  # counted from 1; 0 before the first
    precision: str = "fp32"
    peak_memory_bytes: int | None = None

    def frame(self) -> pd.DataFrame:
        """One row an epoch: losses, accuracies (0 to 1), learning rate, seconds, images/s."""
        return pd.DataFrame(self.epochs).set_index("epoch")

    @property
    def train_seconds(self) -> float:
        """Seconds spent in the training batches, validation left out."""
        return sum(row["seconds"] for row in self.epochs)


@dataclass(frozen=True)
class Evaluation:
    """A model judged on images: mean loss, accuracy (0 to 1), and what lies behind them."""

    loss: float
    accuracy: float
    confusion: torch.Tensor  # (K, K) counts: row = true class, column = predicted class
    predictions: torch.Tensor  # (N,) in the batches' order
    losses: torch.Tensor  # (N,) cross entropy of each image

    @property
    def class_accuracy(self) -> list[float]:
        """Accuracy by true class, 0 to 1; NaN for a class without images."""
        return (self.confusion.diag() / self.confusion.sum(1)).tolist()


def fit(
    model: nn.Module, data: ImageSet, config: Config | None = None, *, show: bool = True
) -> History:
    """Train `model` on `data`, keep the weights of the best validation loss, return the History.

    With `show`, a progress bar and, in a notebook, a curve that is redrawn after every epoch.
    Raises ValueError where the images do not fit the model or the settings.
    """
    config = config or Config()
    device = session.device()
    size = config.image_size or data.shape[-1]
    probe.check_fits(model, (1, data.shape[0], size, size))
    history = History(precision=session.precision(config.precision))

    # --- the data: the test images are not touched here
    train_ids, val_ids = split(len(data.train), config.validation, config.seed)
    if config.train_images:
        val_ids = val_ids[: max(config.train_images * len(val_ids) // len(train_ids), 1)]
        train_ids = train_ids[: config.train_images]
    batches = Batches(
        data,
        "train",
        config.batch_size_at(0),
        indices=train_ids,
        size=config.image_size,
        seed=config.seed,
        augment=config.augment,
    )
    held_out = Batches(data, "train", 512, indices=val_ids, size=config.image_size)

    # --- the model and its optimizer
    model.to(device, memory_format=memory_format(model))
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=history.precision == "fp16")
    steps = sum(math.ceil(len(train_ids) / config.batch_size_at(e)) for e in range(config.epochs))
    best_loss, best_weights = math.inf, None
    curve = plot.LiveCurve() if show and session.in_notebook() else None

    with tqdm(total=steps, desc="training", unit="batch", leave=False, disable=not show) as bar:
        for epoch in range(config.epochs):
            torch.manual_seed(config.seed * 1_000_003 + epoch)  # dropout: anew, and repeatable
            model.train()
            batches.batch_size = config.batch_size_at(epoch)
            losses, correct = [], torch.zeros((), device=device)
            start = time.perf_counter()
            for step, (x, y) in enumerate(batches.epoch(epoch)):
                for group in optimizer.param_groups:
                    group["lr"] = config.lr_at(epoch + step / len(batches))
                with autocast(device, history.precision):
                    outputs = model(x)
                    loss = loss_of(outputs, y, config.label_smoothing)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                if isinstance(outputs, tuple):  # validation has the main loss alone: keep that one
                    loss = loss_of(main_output(outputs), y, config.label_smoothing)
                # Only tensors are kept here: reading a value (.item()) would make the CPU wait.
                losses.append(loss.detach())
                correct += (main_output(outputs).argmax(1) == y).sum()
                bar.update()
            losses = torch.stack(losses).tolist()
            seconds = time.perf_counter() - start

            # --- judge the epoch, keep the best, stop when it no longer pays
            result = evaluate(model, held_out, history.precision)
            history.batch_losses += losses
            history.epochs.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": sum(losses) / len(losses),
                    "train_accuracy": correct.item() / len(train_ids),
                    "val_loss": result.loss,
                    "val_accuracy": result.accuracy,
                    "lr": optimizer.param_groups[0]["lr"],
                    "seconds": seconds,
                    "images_per_s": len(train_ids) / seconds,
                }
            )
            if result.loss < best_loss:
                best_loss, history.best_epoch = result.loss, epoch + 1
                best_weights = copy.deepcopy(model.state_dict())
            if curve:
                curve.update(history)
            bar.set_postfix_str(f"validation accuracy {result.accuracy:.2%}")
            finite = all(map(math.isfinite, losses))
            if not history.notes or not finite:  # say it once
                for note in sentinel.diagnose(model, losses, (x, y), len(data.classes)):
                    history.notes.append(note)
                    session.notice(f"After epoch {epoch + 1}: {note}")
            if not finite:
                break
            if config.patience and epoch + 1 - history.best_epoch >= config.patience:
                history.notes.append(f"Stopped early after epoch {epoch + 1}.")
                break

    if best_weights is not None:
        model.load_state_dict(best_weights)
    history.peak_memory_bytes = session.peak_memory_bytes()
    return history


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    precision: str = "auto",
) -> Evaluation:
    """Judge `model` on batches (x, y), in one pass, in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    all_logits, labels = [], []
    for x, y in batches:
        with autocast(device, session.precision(precision, device.type)):
            all_logits.append(main_output(model(x)).float())
        labels.append(y)
    logits, truth = torch.cat(all_logits).cpu(), torch.cat(labels).cpu()
    losses = cross_entropy(logits, truth, reduction="none")
    predictions = logits.argmax(1)
    K = logits.shape[1]
    confusion = torch.bincount(truth * K + predictions, minlength=K * K).view(K, K)
    accuracy = (predictions == truth).double().mean().item()
    return Evaluation(losses.mean().item(), accuracy, confusion, predictions, losses)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which convolutions and matrix products run in `precision`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def main_output(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The classifier's logits (N, K), without those of auxiliary classifiers."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def loss_of(
    outputs: torch.Tensor | tuple[torch.Tensor, ...], y: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross entropy of the logits; auxiliary classifiers' count with `AUXILIARY_WEIGHT` each."""
    if not isinstance(outputs, tuple):
        return cross_entropy(outputs, y, label_smoothing=label_smoothing)
    main, *auxiliary = (cross_entropy(o, y, label_smoothing=label_smoothing) for o in outputs)
    return main + AUXILIARY_WEIGHT * sum(auxiliary)


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer named in `config`, fused: one kernel for all weights instead of one each."""
    shared = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(
            model.parameters(), momentum=config.momentum, nesterov=nesterov, **shared
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), **shared)


def memory_format(model: nn.Module) -> torch.memory_format:
    """Channels last for nets with wide convolutions, where it pays; LeNet's are too narrow."""
    widest = max((m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)), default=0)
    return torch.channels_last if widest >= 32 else torch.contiguous_format
