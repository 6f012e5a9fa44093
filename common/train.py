"""Training: `fit` trains a net as a `Config` says, `evaluate` judges it, `History` tells all."""

import copy
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from common import ddp, look, machine, memory, probe, sentinel
from common.arithmetic import autocast
from common.checkpoints import digest, load_checkpoint, save_checkpoint
from common.config import Config
from common.data import Batches, ImageSet, batch_sizes, generator, split

AUXILIARY_WEIGHT = 0.3  # Szegedy et al. 2015, section 5: weight of an auxiliary classifier's loss


@dataclass
class History:
    """What a training did: a row an epoch, the loss of every batch, and what it was told."""

    epochs: list[dict] = field(default_factory=list)
    batch_losses: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    best_epoch: int = 0  # counted from 1; 0 before the first
    best_loss: float = math.inf  # of the validation images, in that epoch
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
    model: nn.Module,
    data: ImageSet,
    config: Config | None = None,
    *,
    show: bool = True,
    checkpoint: Path | None = None,
) -> History:
    """Train `model` on `data`, keep the weights of the best validation loss, return the History.

    With `show`, a progress bar and, in a notebook, a curve that is redrawn after every epoch.
    `checkpoint` names a file that is written after every epoch; where it is there already, the
    training goes on from it, to the same weights, bit for bit, as without the break.
    Raises ValueError where images, settings or checkpoint do not fit the model, MemoryError where
    a batch is too large for this machine.
    """
    config = config or Config()
    size = config.image_size or data.shape[-1]
    probe.check_fits(model, (1, data.shape[0], size, size))
    batches, held_out = split_batches(data, config)  # the test images are not touched here
    show = show and ddp.rank() == 0

    # --- the model and its optimizer
    machine.reset_peak_memory()
    device = machine.device()
    model.to(device, memory_format=memory_format(model))
    net = ddp.averaging(model)  # the model itself, unless torchrun started several processes
    optimizer = make_optimizer(model, config)
    history = History(precision=machine.precision(config.precision))
    scaler = torch.amp.GradScaler(device.type, enabled=history.precision == "fp16")
    best_weights = model.state_dict()  # of no epoch yet: these are the model's own tensors

    task = asdict(config) | {
        "network": f"{type(model).__name__} {digest(repr(model).encode())}",
        "data set": f"{data.name} from {data.source} {digest(data.train.labels.numpy().tobytes())}",
        "arithmetic": history.precision,
        "processes": ddp.ranks(),
        "threads": torch.get_num_threads(),  # another number rounds otherwise
    }
    if saved := load_checkpoint(checkpoint, task):
        history, best_weights = History(**saved["history"]), saved["best_weights"]
        model.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        if show:
            print(f"Going on after epoch {len(history.epochs)}, from {checkpoint}.")

    curve = look.LiveCurve() if show and machine.in_notebook() else None
    watched = show and (machine.in_notebook() or sys.stderr.isatty())  # no bars in log files
    bar = tqdm(total=steps(batches, config), unit="batch", leave=False, disable=not watched)
    bar.update(len(history.batch_losses))
    while not finished(history, config):
        epoch = len(history.epochs)
        start = time.perf_counter()
        with (
            machine.recycled_memory(),
            machine.own_generator(),
            memory.explained(model, optimizer, batches, history.precision),
        ):
            losses, loss, accuracy = train_epoch(
                net, batches, epoch, config, optimizer, scaler, history.precision, bar
            )
            seconds = time.perf_counter() - start
            val_loss, val_accuracy = validate(model, held_out, history.precision)

        # --- write the epoch down, keep the best weights
        history.batch_losses += losses
        history.epochs.append(
            {
                "epoch": epoch + 1,
                "train_loss": loss,
                "train_accuracy": accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "lr": optimizer.param_groups[0]["lr"],
                "seconds": seconds,
                "images_per_s": len(batches.indices) / seconds,
            }
        )
        if val_loss < history.best_loss:
            history.best_loss, history.best_epoch = val_loss, epoch + 1
            best_weights = copy.deepcopy(model.state_dict())
        if curve:
            curve.update(history)
        bar.set_postfix_str(f"validation accuracy {val_accuracy:.2%}")
        take_note(history, config, model, batches, len(data.classes))
        save_checkpoint(
            checkpoint,
            task,
            weights=model.state_dict(),
            best_weights=best_weights,
            optimizer=optimizer.state_dict(),
            scaler=scaler.state_dict(),
            history=asdict(history),
        )
    bar.close()

    model.load_state_dict(best_weights)
    history.peak_memory_bytes = machine.peak_memory_bytes()
    return history


def train_epoch(
    net: nn.Module,
    batches: Batches,
    epoch: int,
    config: Config,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: str,
    bar: tqdm,
) -> tuple[list[float], float, float]:
    """One pass over the training images: every batch's loss, the mean over images, the accuracy.

    These losses are what validation reports: cross entropy of the main output, without label
    smoothing.
    """
    # Dropout: anew each epoch and process, and not the numbers that drew the first weights.
    torch.manual_seed(generator(config.seed, epoch, ddp.rank(), 2).initial_seed())
    net.train()
    batches.batch_size = config.batch_size_at(epoch)
    sizes = batches.sizes
    losses, correct = [], torch.zeros((), device=batches.device)
    for step, (x, y) in enumerate(batches.epoch(epoch)):
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(epoch + step / len(sizes))
        share = len(y) / sizes[step]  # of the batch: 1, unless several processes share it
        with autocast(batches.device, precision):
            outputs = net(x)
            loss = loss_of(outputs, y, config.label_smoothing)
        optimizer.zero_grad()
        # Several processes take the mean of their gradients; times their number, it is the sum.
        scaler.scale(loss * share * ddp.ranks()).backward()
        scaler.step(optimizer)
        scaler.update()
        # Only tensors are kept here: reading a value (.item()) would make the CPU wait.
        logits = main_output(outputs).detach().float()
        losses.append(cross_entropy(logits, y) * share)
        correct += (logits.argmax(1) == y).sum()
        bar.update()
    accuracy = ddp.total(correct).item() / len(batches.indices)
    losses = ddp.total(torch.stack(losses)).tolist()
    mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    return losses, mean, accuracy


def split_batches(data: ImageSet, config: Config) -> tuple[Batches, Batches]:
    """The batches to train on and those held out for validation, this process's share of each."""
    train_ids, val_ids = split(len(data.train), config.validation, config.seed)
    ranks = ddp.ranks()
    if config.train_images:
        val_ids = val_ids[: max(config.train_images * len(val_ids) // len(train_ids), ranks)]
        train_ids = train_ids[: config.train_images]
    for _, size in config.stages:
        if ranks > 1 and size < 2 * ranks:
            raise ValueError(
                f"batch_size={size} for {ranks} processes; expected two images or more for each: "
                f"{2 * ranks}."
            )
    shared = {"size": config.image_size, "share": (ddp.rank(), ranks)}
    batches = Batches(
        data,
        "train",
        config.batch_size_at(0),
        indices=train_ids,
        seed=config.seed,
        augment=config.augment,
        **shared,
    )
    return batches, Batches(data, "train", config.evaluation_batch, indices=val_ids, **shared)


def steps(batches: Batches, config: Config) -> int:
    """The number of batches in the whole training."""
    n, ranks = len(batches.indices), ddp.ranks()
    return sum(len(batch_sizes(n, config.batch_size_at(e), ranks)) for e in range(config.epochs))


def validate(model: nn.Module, held_out: Batches, precision: str) -> tuple[float, float]:
    """(mean loss, accuracy) on the validation images, of which each process judges its share."""
    ddp.same_buffers(model)
    result = evaluate(model, held_out, precision)
    n = len(result.predictions)
    sums = torch.tensor([result.loss * n, result.accuracy * n, n], dtype=torch.float64)
    loss, correct, n = ddp.total(sums.to(held_out.device)).tolist()
    return loss / n, correct / n


def finished(history: History, config: Config) -> bool:
    """Whether all epochs are done, the loss has blown up, or patience has run out."""
    if not history.epochs:
        return False
    blown_up = not math.isfinite(history.epochs[-1]["train_loss"])
    return len(history.epochs) == config.epochs or blown_up or out_of_patience(history, config)


def out_of_patience(history: History, config: Config) -> bool:
    waited = len(history.epochs) - history.best_epoch
    return config.patience is not None and waited >= config.patience


def take_note(
    history: History, config: Config, model: nn.Module, batches: Batches, n_classes: int
) -> None:
    """Say in words, and write down, when the net is not learning or the training ends early."""
    epoch = len(history.epochs)
    losses = history.batch_losses[-len(batches) :]
    if not history.notes or not all(map(math.isfinite, losses)):  # say it once
        x, y = next(batches.epoch(epoch - 1))
        for note in sentinel.diagnose(model, losses, (x[:64], y[:64]), n_classes):
            history.notes.append(note)
            if ddp.rank() == 0:
                machine.notice(f"After epoch {epoch}: {note}")
    if epoch < config.epochs and out_of_patience(history, config):
        history.notes.append(f"Stopped early after epoch {epoch}.")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    precision: str = "auto",
) -> Evaluation:
    """Judge `model` on batches (x, y), in one pass, in evaluation mode."""
    device = next(model.parameters()).device
    precision = machine.precision(precision)
    model.eval()
    all_logits, labels = [], []
    for x, y in batches:
        with autocast(device, precision):
            all_logits.append(main_output(model(x)).float())
        labels.append(y)
    logits, truth = torch.cat(all_logits).cpu(), torch.cat(labels).cpu()
    losses = cross_entropy(logits, truth, reduction="none")
    predictions = logits.argmax(1)
    K = logits.shape[1]
    confusion = torch.bincount(truth * K + predictions, minlength=K * K).view(K, K)
    accuracy = (predictions == truth).double().mean().item()
    return Evaluation(losses.mean().item(), accuracy, confusion, predictions, losses)


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
        return torch.optim.SGD(
            model.parameters(), momentum=config.momentum, nesterov=config.nesterov, **shared
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), **shared)


def memory_format(model: nn.Module) -> torch.memory_format:
    """Channels last for nets with wide convolutions, where it pays; LeNet's are too narrow.

    Not where a 1 x 1 convolution strides over fewer than 8 channels: there, PyTorch 2.14 writes
    past its memory on a CPU without bf16.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    unsafe = any(
        m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels // m.groups < 8
        for m in layers
    )
    wide = max((m.out_channels for m in layers), default=0) >= 32
    return torch.channels_last if wide and not unsafe else torch.contiguous_format
