"""Make the samples: thousands of real images of each set, for those without a network.

    CNN_DATA=data python -m tools.samples

writes samples/*.npz and samples/sha256.json from the whole sets. The same sets give the same
images; the same versions of Python, NumPy and zlib give the same bytes.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from common import data, machine, sources
from tools import start

COUNTS = {"mnist": (6_000, 1_000), "fashion_mnist": (6_000, 1_000), "cifar10": (5_000, 1_000)}
SEED = 0


def main() -> None:
    """Write samples/ anew from the whole sets."""
    for name, counts in COUNTS.items():
        arrays = {}
        for part, count in zip(("train", "test"), counts, strict=True):
            arrays |= cifar(part, count) if name == "cifar10" else grey(name, part, count)
        np.savez_compressed(sources.SAMPLES / f"{name}.npz", **arrays)
    files = sorted(sources.SAMPLES.glob("*.npz"))
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (sources.SAMPLES / "sha256.json").write_text(json.dumps(hashes, indent=1) + "\n")
    for path in files:
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def choose(labels: np.ndarray, count: int) -> np.ndarray:
    """The indices of `count` images, as many of each class, in a random order."""
    rng = np.random.default_rng(SEED)
    classes = np.unique(labels)
    each = [rng.permutation(np.flatnonzero(labels == c))[: count // len(classes)] for c in classes]
    return rng.permutation(np.concatenate(each))


def grey(name: str, part: str, count: int) -> dict[str, np.ndarray]:
    """uint8 images (N, 1, 28, 28) and labels (N,) of one part of a set in MNIST's format."""
    images = getattr(data.load(name, strict=True), part)
    chosen = choose(images.labels.numpy(), count)
    return {
        f"{part}_images": images.images.numpy()[chosen],
        f"{part}_labels": images.labels.numpy()[chosen].astype(np.uint8),
    }


def cifar(part: str, count: int) -> dict[str, np.ndarray]:
    """The JPEG files of one part of CIFAR-10 as they are, joined: their bytes, ends and labels."""
    folder = machine.data_folder() / "cifar10" / part
    files: list[tuple[Path, int]] = [
        (path, label)
        for label, name in enumerate(sources.KNOWN["cifar10"].classes)
        for path in sorted((folder / name).glob("*.jpg"))
    ]
    chosen = choose(np.array([label for _, label in files]), count)
    jpegs = [files[i][0].read_bytes() for i in chosen]
    return {
        f"{part}_images": np.frombuffer(b"".join(jpegs), np.uint8),
        f"{part}_ends": np.cumsum([len(jpeg) for jpeg in jpegs]),
        f"{part}_labels": np.array([files[i][1] for i in chosen], np.uint8),
    }


if __name__ == "__main__":
    start(main, "tools.samples")
