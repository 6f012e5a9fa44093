"""One JSON record a run: written by the notebooks and the command line, read by 99_compare."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from common import ddp, machine, probe
from common.arithmetic import matrix_rate
from common.config import Config
from common.data import Batches, ImageSet
from common.machine import file_name
from common.train import Evaluation, History, evaluate

RESULTS = machine.HOME / "results"
PACKAGES = ("torch", "torchvision", "numpy")
FIELDS = {  # every record has these; the types are checked when it is read
    "model": str,
    "dataset": str,
    "source": str,
    "stand_in": bool,
    "experiment": str,
    "profile": str,
    "image_size": int,
    "train_images": int,
    "seed": int,
    "epochs": int,
    "batch_size": (int, list),
    "optimizer": str,
    "lr": float,
    "params": int,
    "mult_adds": int,
    "history": dict,
    "test_accuracy": float,
    "class_accuracy": dict,
    "train_seconds": float,
    "images_per_s": float,
    "peak_memory_bytes": (int, type(None)),
    "device": str,
    "precision": str,
    "versions": dict,
    "commit": str,
    "config": dict,
}
LATER = ("errors", "mfu")  # not in the oldest records
# What makes two records the same run: they may differ in time and machine only.
IDENTITY = (
    "model",
    "params",
    "dataset",
    "source",
    "experiment",
    "profile",
    "train_images",
    "config",
)


def make(
    name: str,
    model: nn.Module,
    data: ImageSet,
    config: Config,
    history: History,
    test: Evaluation,
    *,
    experiment: str,
) -> dict:
    """The record of one run: `model`, trained on `data` as `config` says and judged by `test`.

    Accuracies are 0 to 1, sizes in pixels, times in seconds. `mult_adds` is for one image;
    `images_per_s` counts training only. `mfu` is the model FLOPs utilisation (Chowdhery et al.
    2022, section 4.1), 0 to 1: of the rate that large matrix products reach on this machine, the
    share that forward and backward passes used, at three times the forward mult-adds.
    """
    epochs = history.epochs
    size = config.image_size or data.shape[-1]
    train_images = round(epochs[0]["images_per_s"] * epochs[0]["seconds"])
    images_per_s = train_images * len(epochs) / history.train_seconds
    mult_adds = probe.mult_adds(model, (1, data.shape[0], size, size))
    limit = ddp.ranks() * rate_of(history.precision, torch.get_num_threads())
    return {
        "model": name,
        "dataset": data.name,
        "source": data.source,
        "stand_in": data.stand_in,
        "experiment": experiment,
        "profile": machine.profile(),
        "image_size": size,
        "train_images": train_images,
        "seed": config.seed,
        "epochs": len(epochs),
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "lr": float(config.lr),
        "params": sum(p.numel() for p in model.parameters()),
        "mult_adds": mult_adds,
        "history": {
            "epochs": epochs,
            "batch_losses": [round(loss, 4) for loss in history.batch_losses],
            "best_epoch": history.best_epoch,
            "notes": history.notes,
        },
        "test_accuracy": test.accuracy,
        "class_accuracy": dict(zip(data.classes, test.class_accuracy, strict=True)),
        "errors": errors(test, data),
        "train_seconds": history.train_seconds,
        "images_per_s": images_per_s,
        "mfu": 3 * mult_adds * images_per_s / limit,
        "peak_memory_bytes": history.peak_memory_bytes,
        "device": device_name(),
        "precision": history.precision,
        "versions": versions(),
        "commit": machine.commit(),
        "config": dataclasses.asdict(config),
    }


@functools.cache
def rate_of(precision: str, threads: int) -> float:
    """The `matrix_rate` of this machine with so many threads, measured once in a process."""
    return matrix_rate(precision, seconds=0.1)


def errors(test: Evaluation, data: ImageSet) -> dict[str, int]:
    """The test images classified wrongly: number of the image -> class it was taken for."""
    wrong = (test.predictions != data.test.labels).nonzero().flatten()
    return {str(int(image)): int(test.predictions[image]) for image in wrong}


def judge(
    name: str,
    model: nn.Module,
    data: ImageSet,
    config: Config,
    history: History,
    *,
    experiment: str,
) -> tuple[Evaluation, dict]:
    """Judge a trained model on the test images, once, and save the record of its run.

    Returns the evaluation and the record.
    """
    batches = Batches(data, "test", config.evaluation_batch, size=config.image_size)
    test = evaluate(model, batches, history.precision)
    record = make(name, model, data, config, history, test, experiment=experiment)
    save(record)
    return test, record


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    packages = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version()} | packages


def device_name() -> str:
    """The GPU's name, or the CPU's with its threads, once for each process of the training."""
    if machine.device().type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{cpu_name()}, {machine.threads()}"
    return name if ddp.ranks() == 1 else f"{ddp.ranks()} x {name}"


def cpu_name() -> str:
    """The processor as the operating system calls it."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return str(capabilities.get("cpu_name") or platform.processor() or platform.machine())


def save(record: dict, folder: Path | None = None) -> Path:
    """Write a record, by default to the runs folder; the same run again replaces its file."""
    folder = folder or machine.runs_folder() / "records"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [str(record[key]) for key in ("experiment", "model", "dataset", "profile", "seed")]
    name = "-".join([*parts, identity(record)[:8]]) + ".json"
    path = folder / file_name(name)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(json.dumps(without_nan(record), indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)
    return path


def as_json(config: Config) -> dict:
    """A configuration as a record holds it: with lists for tuples."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def without_nan(value):
    """The same value with None for every NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def publish(*, since: float = 0.0, experiment: str | None = None) -> None:
    """Copy your records to results/: those written after `since` (seconds since 1970), or those of
    one experiment.

    What was trained on the command line stays yours, and so does what cannot be read.
    """
    for path in sorted((machine.runs_folder() / "records").glob("*.json")):
        if path.stat().st_mtime < since:
            continue
        try:
            record = read_record(path)
        except ValueError:
            continue
        if record["experiment"] == (experiment or record["experiment"]) != "command line":
            save(record, RESULTS)


def identity(record: dict) -> str:
    """A hash of what was run, the same for a repetition on another day or machine."""
    what = json.dumps({key: record[key] for key in IDENTITY}, sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()


def read_record(path: Path) -> dict:
    """Read one record. Raises ValueError, naming the file and what is wrong, for anything else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} is not readable JSON ({error}).") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path.name} is not a record: expected a JSON object.")
    for key, kind in FIELDS.items():
        if key not in record:
            raise ValueError(f"{path.name} has no {key!r}: not a record, or from an older version.")
        if not isinstance(record[key], kind):
            raise ValueError(f"{path.name}: {key} is {record[key]!r}, not the type expected.")
    if not 0 <= record["test_accuracy"] <= 1:
        raise ValueError(f"{path.name}: test_accuracy {record['test_accuracy']} is not in 0 to 1.")
    return record


def read_all(*, yours: bool = True) -> tuple[pd.DataFrame, list[str]]:
    """Every record at hand, and a reason for each file left out.

    The column `origin` is "yours" for the runs folder and "recorded" for results/. A run found in
    both, or twice, counts once: yours goes first. Without `yours`, only results/ is read.
    """
    rows, problems, seen = [], [], set()
    folders = [("yours", machine.runs_folder() / "records")] if yours else []
    for origin, folder in (*folders, ("recorded", RESULTS)):
        for path in sorted(folder.glob("*.json")):
            try:
                record = read_record(path)
            except ValueError as error:
                problems.append(str(error))
                continue
            if identity(record) not in seen:
                seen.add(identity(record))
                rows.append(record | {"origin": origin})
    return pd.DataFrame(rows, columns=[*FIELDS, *LATER, "origin"]), problems
