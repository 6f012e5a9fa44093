"""How fast it is: our loop and loader against the conventional ones, and both against the machine.

Both sides take turns in one run on images of the same set, several times; the ratio is the median
of the rounds'.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common import experiments, machine, probe, records, train, zoo
from common.config import Config
from common.data import Batches, ImageSet, load
from common.run import Training
from tools import start

ROUNDS = 5
SECONDS = 3.0  # of each side in a round
LOADER_BATCH = 128


# ------------------------------------------------------------------------- the conventional way


class ConventionalImages(Dataset):
    """A data set as torchvision's MNIST and CIFAR10 are: each item a PIL image, transformed."""

    def __init__(self, data: ImageSet, transform: Callable):
        self.images = data.train.images
        self.labels = data.train.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        array = self.images[index].permute(1, 2, 0).squeeze(-1).numpy()
        return self.transform(Image.fromarray(array)), self.labels[index]


def conventional(data: ImageSet, size: int, batch_size: int = LOADER_BATCH) -> DataLoader:
    """The usual loader: PIL, Resize, ToTensor, Normalize, a worker a core."""
    steps = [transforms.Resize((size, size))] if size != data.shape[-1] else []
    steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    images = ConventionalImages(data, transforms.Compose(steps))
    workers = os.cpu_count() or 0
    return DataLoader(
        images, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def endless(batches) -> Iterator:
    """Epoch after epoch."""
    while True:
        yield from batches


def conventional_training(
    model: nn.Module, batches: Iterator, precision: str = "fp32"
) -> Iterator[int]:
    """The usual loop, with `.item()` each step. Gives each step's images.

    In another precision than fp32 it is the usual loop with the usual advice: autocast and
    `channels_last`.
    """
    device = machine.device()
    memory = torch.contiguous_format if precision == "fp32" else torch.channels_last
    model.to(device, memory_format=memory).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    running_loss = 0.0
    for x, y in batches:
        x, y = x.to(device, memory_format=memory), y.to(device)
        optimizer.zero_grad()
        with machine.autocast(device, precision):
            loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        yield len(y)


def conventional_evaluation(model: nn.Module, batches: Iterator) -> Iterator[int]:
    """The usual test loop, in fp32. Gives each step's images."""
    device = machine.device()
    model.to(device).eval()
    correct = 0
    for x, y in batches:
        with torch.no_grad():
            correct += (model(x.to(device)).argmax(1) == y.to(device)).sum().item()
        yield len(y)


# --------------------------------------------------------------------------------- our way


def our_training(model: nn.Module, data: ImageSet, config: Config) -> Iterator[int]:
    """The epoch that `fit` runs, on the same images again and again. Gives the images of each."""
    training = Training(model, data, config)
    while True:
        train.train_epoch(training)
        training.run.batch_losses.clear()
        yield len(training.batches.indices)


def batches_an_epoch(on_cpu: int) -> int:
    """Of a measured epoch. On a GPU few steps are short beside all else that an epoch does."""
    return 40 if machine.device().type == "cuda" else on_cpu


def our_evaluation(model: nn.Module, batches: Batches, precision: str) -> Iterator[int]:
    """`evaluate`, on as many images as `our_training` takes at a time."""
    model.to(machine.device(), memory_format=machine.memory_format(model))
    while True:
        train.evaluate(model, batches, precision)
        yield len(batches.indices)


# --------------------------------------------------------------------------------- measuring


def images_per_s(steps: Iterator[int], seconds: float) -> float:
    """Images a second from an iterator that works while it is asked for the next step."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += next(steps)
    machine.synchronize()
    return count / (time.perf_counter() - start)


def in_turn(usual: Iterator[int], ours: Iterator[int], seconds: float, rounds: int) -> dict:
    """Both sides by turns: medians of their images a second, and of the ratio in each round."""
    next(usual), next(ours)  # workers, caches and kernels are ready after the first step
    pairs = []
    for _ in range(rounds):
        slow = images_per_s(usual, seconds)
        with machine.recycled_memory():
            pairs.append((slow, images_per_s(ours, seconds)))
    slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    return {
        "conventional_images_per_s": round(slow, 1),
        "images_per_s": round(fast, 1),
        "ratio": round(statistics.median(ratios), 2),
        "lowest_ratio": round(min(ratios), 2),
        "highest_ratio": round(max(ratios), 2),
        "rounds": rounds,
    }


def matrix_rate(precision: str, seconds: float = 1.0) -> float:
    """The multiply-adds a second that this machine reaches in a product of large matrices."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    n = 8192 if machine.device().type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=machine.device()).to(dtype) for _ in range(2))
    return n**3 / fastest(lambda: a @ b, seconds)


def fastest(work: Callable[[], object], seconds: float = 1.0) -> float:
    """Seconds of the fastest repetition of `work` within so many seconds, after two to warm up."""
    work(), work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        machine.synchronize()
        start = time.perf_counter()
        work()
        machine.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def bandwidth() -> float:
    """The bytes a second that this machine reads and writes in a copy of 256 MB."""
    source = torch.zeros(2**28, dtype=torch.uint8, device=machine.device())
    target = torch.ones_like(source)
    return 2 * source.numel() / fastest(lambda: target.copy_(source))


def least_work(model: nn.Module, shape: tuple[int, int, int, int]) -> tuple[float, float]:
    """(multiply-adds, bytes) of a training step on a batch of `shape`, as little as it can be.

    A step computes the forward pass and twice as much backward, but no gradient of the images. It
    writes every activation and reads it back, once in each direction, in two bytes, and moves each
    weight, its gradient and Adam's two averages in and out, in four.
    """
    layers = probe.layers(model, shape)
    first = layers["mult_adds"][layers["mult_adds"] > 0].iloc[0]
    mult_adds = 3 * layers["mult_adds"].sum() - first
    activations = layers["activation_bytes"].sum() / 4
    params = sum(p.numel() for p in model.parameters())
    return mult_adds, activations * 2 * 4 + params * 4 * 8


def measured(names: list[str] | None, most: int) -> list[dict]:
    """What to measure: each notebook's own choice, or networks by name at their own size."""
    if names:
        rows = [{"network": n, "image_size": zoo.variant(n).input_shape[-1]} for n in names]
    else:
        rows = [each.bench for each in zoo.architectures().values() if each.bench]
    rows = [{"batch_size": 64, "options": {}} | row for row in rows]
    return [row | {"batch_size": min(row["batch_size"], most)} for row in rows]


def networks(
    names: list[str] | None = None,
    *,
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    precision: str = "auto",
    most: int = 128,
) -> list[dict]:
    """Rows for each network's training and evaluation, on Fashion-MNIST.

    `names` are the zoo's, measured at their own image size. A batch has `most` images at most.
    Where ours computes in another format than fp32, a row "training, both in fp32" and one against
    the usual loop in that very format tell the loop from the format.
    """
    chosen, wanted = machine.precision(precision), measured(names, most)
    data = load("fashion_mnist")
    rate, bytes_per_s = matrix_rate(chosen), bandwidth()
    rows = []
    for row in wanted:
        name, size, batch_size = row["network"], row["image_size"], row["batch_size"]

        def fresh(row=row) -> nn.Module:
            return zoo.build(row["network"], data.shape[0], len(data.classes), **row["options"])

        def usual(precision: str, fresh=fresh, size=size, batch_size=batch_size) -> Iterator[int]:
            loader = endless(conventional(data, size, batch_size))
            return conventional_training(fresh(), loader, precision)

        def ours(precision: str, fresh=fresh, size=size, batch_size=batch_size) -> Iterator[int]:
            config = Config(
                batch_size=batch_size, lr=1e-4, image_size=size, precision=precision,
                train_images=batch_size * batches_an_epoch(2),
            )  # fmt: skip
            return our_training(fresh(), data, config)

        about = {
            "name": name,
            "image_size": size,
            "batch_size": batch_size,
            "device": records.device_name(),
        }
        works = [("training", "fp32", chosen)]
        if chosen != "fp32":
            works += [("training, both in fp32", "fp32", "fp32")]
            works += [(f"training, both in {chosen}", chosen, chosen)]
        for work, theirs, own in works:
            rates = in_turn(usual(theirs), ours(own), seconds, rounds)
            added = {"share_of_limit": None}
            if work == "training":
                least, moved = least_work(fresh(), (batch_size, data.shape[0], size, size))
                steps_per_s = rates["images_per_s"] / batch_size
                shares = {
                    "share_of_matrix_rate": round(least * steps_per_s / rate, 3),
                    "share_of_bandwidth": round(moved * steps_per_s / bytes_per_s, 3),
                }
                added = {"share_of_limit": max(shares.values())} | shares
                added |= {"matrix_mult_adds_per_s": round(rate), "bytes_per_s": round(bytes_per_s)}
            rows.append(about | {"work": work, "precision": own} | rates | added)
        two = Batches(data, "test", batch_size, indices=torch.arange(2 * batch_size), size=size)
        loader = endless(conventional(data, size, batch_size))
        judged = in_turn(
            conventional_evaluation(fresh(), loader),
            our_evaluation(fresh(), two, chosen),
            seconds / 2,
            rounds,
        )
        rows.append(
            about | {"work": "evaluation", "precision": chosen} | judged | {"share_of_limit": None}
        )
    return rows


def loaders(
    seconds: float = SECONDS, sizes: tuple[int, ...] = (28, 224), rounds: int = ROUNDS
) -> list[dict]:
    """Throughput of both loaders on MNIST at each size (pixels)."""
    data = load("mnist")
    rows = []
    for size in sizes:
        usual = endless(conventional(data, size))
        ours = endless(Batches(data, "train", LOADER_BATCH, size=size, seed=0))
        rates = in_turn((len(y) for _, y in usual), (len(y) for _, y in ours), seconds, rounds)
        about = {"name": "loader", "work": "loading", "image_size": size}
        rows.append(
            about
            | {"batch_size": LOADER_BATCH, "precision": "fp32", "device": records.device_name()}
            | rates
            | {"share_of_limit": None}
        )
    return rows


def photos(seconds: float = SECONDS, rounds: int = ROUNDS) -> list[dict]:
    """Rows for the networks of `cifar10`, each training alone: seconds of one of its epochs."""
    rows = []
    for plan in experiments.plans("cifar10", "full"):
        data, config = load(plan.dataset), plan.config
        some = replace(config, train_images=config.batch_size * batches_an_epoch(10))
        steps = our_training(plan.build(data.shape[0], len(data.classes)), data, some)
        next(steps)
        rate = statistics.median(images_per_s(steps, seconds) for _ in range(rounds))
        images = round(len(data.train) * (1 - config.validation))
        rows.append(
            {
                "name": plan.network,
                "digest": experiments.structure_of(plan),
                "work": "training alone",
                "image_size": config.image_size,
                "batch_size": config.batch_size,
                "precision": machine.precision(config.precision),
                "device": records.device_name(),
                "images_per_s": round(rate, 1),
                "epoch_s": round(images / rate, 2),
                "rounds": rounds,
            }
        )
    return rows


def starting() -> list[dict]:
    """Seconds to import, and to the first batch of MNIST, in fresh processes."""
    usual = "import torch, torchvision, pandas, matplotlib.pyplot"
    ours = f"{usual}; from common import data, train"
    first = "next(iter(data.Batches(data.load('mnist'), 'train', 128)))"
    root = str(machine.data_folder())
    usual_first = (
        "from torchvision import datasets, transforms; from torch.utils.data import DataLoader; "
        f"images = datasets.MNIST({root!r}, transform=transforms.ToTensor()); "
        f"next(iter(DataLoader(images, 128, num_workers={os.cpu_count()})))"
    )
    about = {"image_size": 28, "batch_size": LOADER_BATCH, "precision": "fp32"}
    about |= {"conventional_images_per_s": None, "images_per_s": None, "share_of_limit": None}
    rows = []
    works = [("import", (usual, ours))]
    if not load("mnist").stand_in:
        both = f"{usual}; {usual_first}", f"{ours}; {first}"
        works.append(("import and first batch", both))
    for work, both in works:
        slow, fast = map(timed, both)
        seconds = {"conventional_s": slow, "s": fast, "ratio": round(slow / fast, 2)}
        rows.append(
            {"name": "start", "work": work, "device": records.device_name()} | about | seconds
        )
    return rows


def timed(code: str, times: int = 3) -> float:
    """Seconds that a fresh Python takes for `code`: the median of so many."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=machine.HOME)
        spent.append(time.perf_counter() - start)
    return round(statistics.median(spent), 2)


def save_rows(rows: list[dict], kind: str) -> None:
    """Write measured rows to results/bench/; they replace earlier rows of the same work."""
    folder = records.RESULTS / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"\W+", "-", rows[0]["device"]).strip("-").lower()
    file = folder / f"{kind}-{device}.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    about = {"versions": records.versions(), "commit": machine.commit()}
    kept = {identify(row): row for row in old} | {identify(row): row | about for row in rows}
    file.write_text(json.dumps(list(kept.values()), indent=1) + "\n", encoding="utf-8")


def identify(row: dict) -> tuple:
    """What a row measures."""
    keys = ("name", "work", "image_size", "processes", "precision")
    return tuple(row.get(key) for key in keys)


def as_json(rows: list[dict]) -> str:
    """The rows as JSON."""
    return json.dumps(rows, indent=1)


def as_text(rows: list[dict]) -> str:
    """The rows as text."""
    return pd.DataFrame(rows).to_string(index=False, na_rep="-")


def main(
    only: tuple[str, ...] = (),
    quick: bool = False,
    precision: str = "auto",
    photos_alone: bool = False,
    save: bool = False,
    json: bool = False,
) -> int:
    """Measure our training and loading against conventional ones, and against the machine.

    Args:
        only: networks to measure (default: one a notebook).
        quick: about two minutes: smaller batches, fewer and shorter rounds.
        precision: of ours: auto, fp32, bf16 or fp16.
        photos_alone: only the networks of `cifar10`, each training alone: seconds an epoch.
        save: also write results/bench/.
        json: a JSON list instead of a table.
    """
    if save and quick:
        raise ValueError("--save is for full rounds: leave out --quick.")
    short = {"seconds": 0.5, "rounds": 2} if quick else {}
    small = {"most": 32} if quick else {}
    if photos_alone:
        if only or precision != "auto":
            raise ValueError(
                "--photos-alone has its own networks and format: leave out the others."
            )
        kind, rows = "photos", photos(**short)
    else:
        kind, rows = "speed", networks(list(only), precision=precision, **short, **small)
        rows += [] if only else loaders(**short)
        rows += [] if only or quick else starting()
    if save:
        save_rows(rows, kind)
    print(as_json(rows) if json else as_text(rows))
    return 0


if __name__ == "__main__":
    start(main, "tools.bench")
