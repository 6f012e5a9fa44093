"""Training: `fit` trains a net as a `Config` says and returns the `Run`; `evaluate` judges it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from common import ddp, machine
from common.advice import main_output
from common.config import Config
from common.data import ImageSet, generator
from common.run import WINDOW, Run, Training, check_logits

AUXILIARY_WEIGHT = 0.3  # Szegedy et al. 2015, section 5: weight of an auxiliary classifier's loss


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
    model: nn.Module,
    data: ImageSet,
    config: Config | None = None,
    *,
    show: bool = True,
    checkpoint: Path | str | bool | None = None,
) -> Run:
    """Train `model` on `data`, keep the weights of the best validation loss, return the `Run`.

    With `show`, a progress bar and, in a notebook, a curve that is redrawn after every epoch.
    `checkpoint` names a file written after every epoch, or is True for one in the runs folder named
    after net, data and settings; where it is there already, the training goes on from it, to the
    same weights as without the break (on a CPU bit for bit), unless the net keeps what it computes
    with elsewhere than in its `state_dict`. `judge` removes it.
    Stopped by Ctrl-C, it returns the run so far. Raises ValueError where images, settings or
    checkpoint do not fit the model, OSError where nothing can be written, MemoryError where a
    batch is too large for this machine.
    """
    training = Training(model, data, Config() if config is None else config, show, checkpoint)
    run = training.run
    with machine.recycled_memory(), training, machine.own_generator(), torch.enable_grad():
        while not training.finished():
            start = time.perf_counter()
            row = train_epoch(training)
            seconds = time.perf_counter() - start
            row |= validate(training)
            row |= {"seconds": seconds, "images_per_s": len(training.batches.indices) / seconds}
            training.note(row)
    return run


def train_epoch(training: Training) -> dict:
    """One pass over the training images: predict, measure, go back, step, note.

    The losses noted are what validation reports: cross entropy of the main output, without label
    smoothing; the epoch's is the mean over images.
    """
    run, batches, optimizer = training.run, training.batches, training.optimizer
    config, epoch = run.config, len(run.epochs)
    # Dropout: anew each epoch and process, and not the numbers that drew the first weights.
    machine.seed(generator(config.seed, epoch, ddp.rank(), 2).initial_seed())
    training.net.train()
    batches.batch_size = config.batch_size_at(epoch)
    sizes = batches.sizes
    losses, correct = [], torch.zeros((), device=batches.device)
    for step, (x, y) in enumerate(batches.epoch(epoch)):
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(epoch + step / len(sizes))
        share = len(y) / sizes[step]  # of the batch: 1, unless several processes share it
        with machine.autocast(batches.device, run.precision):
            outputs = training.net(x)
            loss = loss_of(outputs, y, config.label_smoothing)
        optimizer.zero_grad()
        # Several processes take the mean of their gradients; times their number, it is the sum.
        training.scaler.scale(loss * share * ddp.ranks()).backward()
        training.scaler.step(optimizer)
        training.scaler.update()
        # Only tensors are kept here: reading a value (.item()) would make the CPU wait.
        logits = main_output(outputs).detach().float()
        losses.append(cross_entropy(logits, y) * share)
        correct += (logits.argmax(1) == y).sum()
        training.bar.update()
        if (step + 1) % WINDOW == 0 or step + 1 == len(sizes):
            training.check_finite(losses, step, x)
    losses = ddp.total(torch.stack(losses)).tolist()
    run.batch_losses += losses
    mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    accuracy = ddp.total(correct).item() / sum(sizes)
    lr = optimizer.param_groups[0]["lr"]
    return {"epoch": epoch + 1, "train_loss": mean, "train_accuracy": accuracy, "lr": lr}


def validate(training: Training) -> dict:
    """Mean loss and accuracy on the validation images, of which each process judges its share."""
    ddp.same_buffers(training.run.model)
    result = evaluate(training.run.model, training.held_out, training.run.precision)
    n = len(result.predictions)
    sums = torch.tensor([result.loss * n, result.accuracy * n, n], dtype=torch.float64)
    loss, correct, n = ddp.total(sums).tolist()
    return {"val_loss": loss / n, "val_accuracy": correct / n}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    precision: str = "auto",
) -> Evaluation:
    """Judge `model` on batches (x, y), in one pass, in evaluation mode.

    Raises ValueError where there are no images, or where logits (N, K) and labels do not fit.
    """
    precision = machine.precision(precision)
    model.eval()
    all_logits, labels = [], []
    for x, y in batches:
        with machine.autocast(x.device, precision):
            output = main_output(model(x))
        check_logits(output, len(y), all_logits[0].shape[1] if all_logits else None)
        all_logits.append(output.float())
        labels.append(y)
    if sum(map(len, labels)) == 0:
        raise ValueError("There are no images to judge: expected one batch (x, y) or more.")
    logits, truth = torch.cat(all_logits).cpu(), torch.cat(labels).cpu()
    check_labels(truth, logits.shape[1])
    losses = cross_entropy(logits, truth, reduction="none")
    predictions = logits.argmax(1)
    K = logits.shape[1]
    confusion = torch.bincount(truth * K + predictions, minlength=K * K).view(K, K)
    accuracy = (predictions == truth).double().mean().item()
    return Evaluation(losses.mean().item(), accuracy, confusion, predictions, losses)


def check_labels(labels: torch.Tensor, classes: int) -> None:
    """Raise ValueError unless these are numbers of classes that the net knows."""
    if labels.dtype != torch.int64 or labels.ndim != 1:
        kind = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"The labels are {kind}; expected int64 class numbers (N,).")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(f"The labels go from {low} to {high}; expected class numbers from 0 up.")
    if high >= classes:
        raise ValueError(
            f"The labels go from {low} to {high}, the net knows the classes 0 to {classes - 1}. "
            f"Build it with num_classes={high + 1}."
        )


def loss_of(
    outputs: torch.Tensor | tuple[torch.Tensor, ...], y: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross entropy of the logits; auxiliary classifiers' count with `AUXILIARY_WEIGHT` each."""
    if not isinstance(outputs, tuple):
        return cross_entropy(outputs, y, label_smoothing=label_smoothing)
    main, *auxiliary = (cross_entropy(o, y, label_smoothing=label_smoothing) for o in outputs)
    return main + AUXILIARY_WEIGHT * sum(auxiliary)
