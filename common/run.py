"""A training: the `Run`, which is what `fit` returns, and the `Training`, which is under way."""

import copy
import functools
import math
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from common import advice, checkpoints, ddp, digests, graphs, machine
from common.advice import main_output
from common.config import Config
from common.data import Batches, ImageSet, batch_sizes, split

WINDOW = 16  # batches after which the losses are read, so that a GPU need not wait for each
# What looks on: each is called as watcher(event, training), with "start" before the first batch and
# "epoch" after each. `common.look` enters its curve here.
watchers: list[Callable[[str, "Training"], None]] = []
# The last training of each net: what came before has left it with other weights.
latest: "weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[Run], bool]]"
latest = weakref.WeakKeyDictionary()


@dataclass
class Run:
    """One training: what it was told, what it did, and the net that it left.

    `epochs` has a row an epoch (see `frame`), `batch_losses` the loss of every batch, `notes` what
    was said meanwhile. `best_epoch` counts from 1; the model has its weights. `digest` stands for
    the structure of the net. `ended` is "done", "early" (out of patience), "not finite", or empty
    for a training that was stopped.
    """

    model: nn.Module
    data: ImageSet
    config: Config
    digest: str = ""
    precision: str = "fp32"
    commit: str = "unknown"  # when the training began
    checkpoint: checkpoints.Store | None = None
    epochs: list[dict] = field(default_factory=list)
    batch_losses: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = float("inf")  # of the validation images, in that epoch
    peak_memory_bytes: int | None = None
    ended: str = ""

    HISTORY: ClassVar = ("epochs", "batch_losses", "notes", "best_epoch", "best_loss", "ended")

    def frame(self) -> pd.DataFrame:
        """One row an epoch: losses (nats), accuracies (0 to 1), rate, seconds, images a second."""
        columns = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
        columns += ("seconds", "images_per_s")
        return pd.DataFrame(self.epochs, columns=columns).set_index("epoch")

    @property
    def best(self) -> dict:
        """The row of the best epoch. Raises ValueError where no epoch was finished."""
        if not self.best_epoch:
            raise ValueError(f"This training has no finished epoch. {' '.join(self.notes)}")
        return self.epochs[self.best_epoch - 1]

    @property
    def replaced(self) -> bool:
        """Whether its net was trained again since, and no longer has the weights of this run."""
        return self.model in latest and latest[self.model][0]() is not self

    @property
    def train_seconds(self) -> float:
        """Seconds spent in the training batches, validation left out."""
        return sum(row["seconds"] for row in self.epochs)

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Pixels that the net sees: one number, or (height, width) where they differ."""
        H, W = self.data.shape[1:]
        return self.config.image_size or (H if H == W else (H, W))


class NotFinite(Exception):
    """Raised inside an epoch whose loss is no number any more."""


class Training:
    """A training under way: the run and all that is needed to go on with it.

    It loads itself from its checkpoint and saves itself there; as a context it puts the best
    weights in place at the end, whatever ended it.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageSet,
        config: Config,
        show: bool = False,
        checkpoint: Path | str | bool | None = None,
    ):
        for name, value, kind in (
            ("model", model, nn.Module), ("data", data, ImageSet), ("config", config, Config)
        ):  # fmt: skip
            if not isinstance(value, kind):
                raise TypeError(f"{name}={repr(value)[:60]}; expected a {kind.__name__}.")
        self.show = show and ddp.rank() == 0
        self.curve: object | None = None  # what `common.look` draws in a notebook
        self.batches, self.held_out = split_batches(data, config)  # the test images stay untouched
        device = self.batches.device
        if any(p.is_meta for p in model.parameters()):
            raise ValueError("This net is on the meta device: its weights have no values to train.")
        before = digests.settings(model)
        with advice.memory_explained(self.batches.batch_size, device.type):
            model.to(device, memory_format=machine.memory_format(model))
            check_outputs(model, self.batches, len(data.classes))
            self.best_weights = copy.deepcopy(model.state_dict())
        # The model itself, unless torchrun started several processes or there is a GPU.
        self.net = ddp.averaging(model)
        if device.type == "cuda" and self.net is model:
            self.net = graphs.Replayed(model)
        self.optimizer = make_optimizer(model, config)
        self.run = Run(
            model,
            data,
            config,
            digest=digests.of_net(model, before),
            precision=machine.precision(config.precision),
            commit=machine.commit(),
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.run.precision == "fp16")
        self.file = checkpoints.Store(checkpoint, self.run)
        _, trained = latest.get(model, (None, False))
        if trained and not (self.file.path and self.file.path.exists()):
            model.begun_with = digests.of_weights(model)
            machine.notice(
                "This net has been trained before and goes on from there, which its record will "
                "say. Build it anew for a training of its own."
            )
            self.file = checkpoints.Store(checkpoint, self.run)
        self.run.checkpoint = self.file
        machine.runs_folder()  # where the record will go: that it can be written is asked for now
        total = steps(self.batches, config)
        hidden = not (self.show and machine.watched())
        self.bar = tqdm(total=total, unit="batch", leave=False, disable=hidden)

    def __enter__(self) -> "Training":
        self.file.lock()
        try:
            if saved := self.file.load():
                self.load(saved)
                if self.show:
                    print(f"Going on after epoch {len(self.run.epochs)}, from {self.file.path}.")
            self.save()  # before the first batch: a disk that is full says so now
            if not saved:
                self.file.check(self.run.model)
            self.bar.update(len(self.run.batch_losses))
            self.tell("start")
            machine.reset_peak_memory()
        except BaseException:
            self.file.unlock()
            raise
        return self

    def __exit__(self, kind, error, _) -> bool:
        try:
            return self.end(error)
        finally:
            self.file.unlock()

    def end(self, error: BaseException | None) -> bool:
        """Put the best weights in place; whether the error is dealt with."""
        run = self.run
        run.peak_memory_bytes = machine.peak_memory_bytes()
        run.model.load_state_dict(self.best_weights)
        run.model.eval()
        latest[run.model] = weakref.ref(run), bool(run.best_epoch)
        self.net = run.model  # recorded passes end here
        self.bar.close()
        if isinstance(error, NotFinite):
            run.ended = "not finite"
            run.notes.append(str(error))
            machine.notice(str(error))
            self.save()
        elif isinstance(error, KeyboardInterrupt):
            again = "Call it again to go on." if self.file.path else "No checkpoint was kept."
            print(f"Stopped in epoch {len(run.epochs) + 1}; the best weights are in place. {again}")
        if error is None or isinstance(error, (NotFinite, KeyboardInterrupt)):
            return True
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the step that failed
        if advice.ran_out(error):
            size, device = self.batches.batch_size, self.batches.device.type
            raise advice.out_of_memory(error, size, device, run.peak_memory_bytes) from None
        return False

    def tell(self, event: str) -> None:
        """Let the watchers know."""
        for watcher in watchers:
            watcher(event, self)

    def finished(self) -> bool:
        """Whether all epochs are done, or patience has run out, or the loss was no number."""
        return bool(self.run.ended)

    def check_finite(self, losses: list[torch.Tensor], step: int, x: torch.Tensor) -> None:
        """Raise NotFinite at the first loss, of the last ones, that is no number."""
        first = step + 1 - (step % WINDOW + 1)
        # In the share of any process: all of them stop, and at the same batch.
        broken = ddp.total((~torch.stack(losses[first:]).isfinite()).float()).nonzero()
        if not len(broken):
            return
        at = first + int(broken[0])
        run, epoch = self.run, len(self.run.epochs)
        lr = run.config.lr_at(epoch + at / len(self.batches.sizes))
        raise NotFinite(
            f"The loss was no finite number any more in epoch {epoch + 1}, batch {at + 1}, at a "
            f"learning rate of {lr:.3g}; {advice.first_not_finite(run.model, x)}. The best weights "
            "so far are in place. Try a learning rate ten times smaller, and check that the images "
            "are normalised."
        )

    def note(self, row: dict) -> None:
        """Write an epoch down, keep the best weights, tell the watchers, save."""
        run, config = self.run, self.run.config
        run.epochs.append(row)
        if row["val_loss"] < run.best_loss:  # the weights first: Ctrl-C may come in between
            self.best_weights = copy.deepcopy(run.model.state_dict())
            run.best_loss, run.best_epoch = row["val_loss"], row["epoch"]
        self.bar.set_postfix_str(f"validation accuracy {row['val_accuracy']:.2%}")
        if row["epoch"] == config.epochs:
            run.ended = "done"
        elif config.patience is not None and row["epoch"] - run.best_epoch >= config.patience:
            run.ended = "early"
            run.notes.append(f"Stopped early after epoch {row['epoch']}.")
        self.take_advice()
        self.tell("epoch")
        self.save()
        if run.ended and not math.isfinite(row["val_loss"]):  # or the next batch would have told
            raise NotFinite(
                f"The validation loss is no finite number after epoch {row['epoch']}. The best "
                "weights so far are in place. Try a learning rate ten times smaller."
            )

    def take_advice(self) -> None:
        """Say in words, and write down, where the net is not learning: once, until it has learned
        something and lost it again."""
        run = self.run
        labels = self.batches.labels[self.batches.indices.to(self.batches.device)]
        said = [int(note.split()[2][:-1]) for note in run.notes if note.startswith("After epoch")]
        since = [row["train_loss"] for row in run.epochs[max(said, default=0) :]]
        if said and not advice.has_learned(min(since), labels):
            return
        x, y = next(self.batches.epoch(len(run.epochs) - 1))
        try:
            found = advice.diagnose(run.model, run.batch_losses, (x[:64], y[:64]), labels)
        except Exception:  # whatever a net does with other batches, or in another mode
            return
        for note in (one for one in found if not any(old.endswith(one) for old in run.notes)):
            run.notes.append(f"After epoch {len(run.epochs)}: {note}")
            if ddp.rank() == 0:
                machine.notice(run.notes[-1])

    def save(self) -> None:
        """Write all that is needed to go on."""
        self.file.save(
            {
                "weights": self.run.model.state_dict(),
                "best_weights": self.best_weights,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "history": {name: getattr(self.run, name) for name in Run.HISTORY},
            }
        )

    def load(self, saved: dict) -> None:
        """Go on from what `save` wrote."""
        for name in Run.HISTORY:
            setattr(self.run, name, saved["history"][name])
        self.best_weights = saved["best_weights"]
        try:
            self.run.model.load_state_dict(self.best_weights)  # asked now, for they come last
            self.run.model.load_state_dict(saved["weights"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.file.path} does not fit this training ({str(error)[:100]}). "
                "Choose another file, or delete this one to start anew."
            ) from error


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


@torch.no_grad()
def check_outputs(model: nn.Module, batches: Batches, classes: int) -> None:
    """Raise ValueError unless the net gives a row of `classes` logits an image, in both modes.

    What the net itself raises is shown as torch states it, with the layer and what it got. Neither
    its statistics nor the random numbers are changed.
    """
    x = batches.prepare(batches.images[batches.indices[: min(2, *batches.sizes)]])
    told = functools.partial(advice.told_by_layer, model, tuple(x.shape))
    with advice.evaluating(model), graphs.as_before(model), machine.own_generator():
        with told():
            outputs = model(x)
        check_logits(main_output(outputs), len(x), classes)
        model.train()
        with told(), torch.enable_grad():
            outputs = model(x)
        # In training, auxiliary classifiers may stand beside the main one.
        for output in outputs if isinstance(outputs, tuple) and outputs else (outputs,):
            check_logits(output, len(x), classes, " in training")
            if not output.requires_grad and not advice.all_frozen(model):
                raise ValueError(
                    "No gradient can flow back from what the net returns: look for detach, no_grad "
                    "or numpy in its forward method, or for inference_mode around the training."
                )
    if advice.all_frozen(model):
        raise ValueError("All weights of this net are frozen (requires_grad=False): none learns.")


def check_logits(output: object, n: int, classes: int | None = None, when: str = "") -> None:
    """Raise ValueError unless `output` is (n, classes); any number of classes where None is."""
    if not isinstance(output, torch.Tensor):
        kind = type(output).__name__
        raise ValueError(f"The net returns a {kind}{when}; expected (N, K) logits, as a tensor.")
    if not output.is_floating_point() or output.layout is not torch.strided:
        raise ValueError(f"The net returns {output.dtype}, {output.layout}{when}; expected floats.")
    if output.ndim != 2 or len(output) != n or classes not in (None, output.shape[1]):
        build = f" Build it with num_classes={classes}." if classes else ""
        raise ValueError(
            f"The net returns shape {tuple(output.shape)} for {n} images{when} and as many labels; "
            f"expected ({n}, {classes or 'K'}): one number for each class.{build}"
        )


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer named in `config`, fused: one kernel for all weights instead of one each."""
    shared = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), momentum=config.momentum, nesterov=config.nesterov, **shared
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), **shared)
