"""Measures this machine: our loader against a conventional one, in turn, several times."""

import statistics
import time
from collections.abc import Callable, Iterator

import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common.data import Batches, ImageSet, load

ROUNDS = 5
BATCH = 128


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


def conventional(data: ImageSet, size: int) -> DataLoader:
    """The usual loader: PIL, Resize, ToTensor, Normalize, a worker a core."""
    steps = [transforms.Resize((size, size))] if size != data.shape[-1] else []
    steps += [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    images = ConventionalImages(data, transforms.Compose(steps))
    workers = min(2, torch.get_num_threads())
    return DataLoader(
        images, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def ours(data: ImageSet, size: int) -> Batches:
    """Our loader for the same images, also shuffled, resized and normalised."""
    return Batches(data, "train", BATCH, size=size, seed=0)


def images_per_s(make: Callable[[], Iterator], seconds: float) -> float:
    """Images a second from an endless iterator over batches, its first batch left out."""
    batches = make()
    next(batches)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        count += len(next(batches)[1])
    return count / spent


def endless(batches) -> Iterator:
    """Epoch after epoch."""
    while True:
        yield from batches


def loaders(seconds: float = 2.0, sizes: tuple[int, ...] = (28, 224)) -> list[dict]:
    """Throughput of both loaders on MNIST at each size (pixels): in turn, medians of 5 rounds."""
    data = load("mnist")
    rows = []
    for size in sizes:
        usual, ready = conventional(data, size), ours(data, size)
        pairs = [
            (
                images_per_s(lambda loader=usual: endless(loader), seconds),
                images_per_s(lambda loader=ready: endless(loader), seconds),
            )
            for _ in range(ROUNDS)
        ]
        slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = [b / a for a, b in pairs]
        rows.append(
            {
                "name": "loader",
                "image_size": size,
                "batch_size": BATCH,
                "conventional_images_per_s": round(slow),
                "images_per_s": round(fast),
                "ratio": round(statistics.median(ratios), 2),
                "lowest_ratio": round(min(ratios), 2),
                "highest_ratio": round(max(ratios), 2),
                "rounds": ROUNDS,
                "device": ready.device.type,
            }
        )
    return rows


def as_text(rows: list[dict]) -> str:
    """The rows as text."""
    return pd.DataFrame(rows).to_string(index=False)
