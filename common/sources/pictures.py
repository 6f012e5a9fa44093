"""A person's own pictures: class folders as they come, made images of one size, and kept decoded.

Nothing is dropped without a word: a picture that cannot be read is an error that names it, and
what is left out or changed is told in `Parts.note`.
"""

import contextlib
import hashlib
import json
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from common import machine
from common.sources import Parts
from common.sources.mirrors import locked, progress_bar

SIZE = 64  # pixels a side, for pictures of unlike or large sizes
LARGEST = 512 * 512  # pixels; larger pictures are reduced even where all have the same size
TEST_SHARE = 0.2  # of each class, where there is no test/
SPELLINGS = {  # of the folders of a set that is divided already
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
LISTED = 50  # files that an error names at most
# What macOS, Windows and network drives leave behind, besides names that begin with a dot
SYSTEM = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "@eadir")
SYSTEM += ("lost+found", "system volume information", "#recycle", "#snapshot", "@recycle")
# Pillow calls other programs for some formats, and knows only the names of others.
NO_PICTURES = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
UNREADABLE = (  # photographs for which Pillow needs help
    *(".heic", ".heif", ".hif", ".avif", ".jxl"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".svg"),
)

with contextlib.suppress(ImportError):  # where it is installed, HEIC is read like the rest
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()
FORMATS = ["JPEG", "PNG"]  # tried first
FORMATS += [name for name in Image.OPEN if name not in (*FORMATS, *NO_PICTURES)]
ENDINGS = {end for end, name in Image.registered_extensions().items() if name in FORMATS}

Listed = dict[str, list[str]]  # the files of each class, by their names below the set's folder
Decoded = tuple[np.ndarray, dict]  # uint8 (N, C, H, W), and what is to be told about them


class Header(NamedTuple):
    """What is known of a picture before its pixels are: its size held upright, grey or not."""

    width: int
    height: int
    grey: bool
    format: str  # such as "PNG" or "JPEG quality 75 (lossy)"


def read_class_folders(root: Path, size: int | None = None, skip_bad: bool = False) -> Parts:
    """Read `root`/{train,test}/<class>/ or `root`/<class>/, with pictures as Pillow reads them.

    Pictures of one size stay as they are, up to 512 x 512 pixels. Others are reduced, with their
    shorter side to `size` pixels (64 by default), and cut to a square in the middle. They are grey
    where all are, else in colour. Without train/ and test/ a fifth of each class is for testing,
    chosen by the files' names. Folders called training, testing or validation are understood as
    well; pictures for validation train. The note tells what was done.

    Raises FileNotFoundError where a folder or its pictures are missing, and ValueError for pictures
    that cannot be read (all are named; `skip_bad` leaves them out), fewer than two classes, a class
    with too few pictures, or one that is in test but not in train.
    """
    parts, beside, said = list_parts(root)
    files = [name for listed in parts.values() for names in listed.values() for name in names]
    place = hashlib.sha256(os.fsencode(f"{root.resolve()} {size}")).hexdigest()[:12]
    key = fingerprint(root, files)
    name = root.resolve().name
    images, told = cached(f"{name}-{place}", key, lambda: decode(root, files, size))
    if told["bad"] and not skip_bad:
        raise ValueError(
            f"{root}: {len(told['bad'])} of {len(files)} files cannot be read as an image:\n"
            f"{reasons(told['bad'])}\n"
            f"Replace or remove them, or leave them out with load(..., skip_bad=True)."
        )
    gone = told["bad"].keys() | told["others"].keys()
    good = {
        part: {c: [name for name in names if name not in gone] for c, names in listed.items()}
        for part, listed in parts.items()
    }
    classes = tuple(next(iter(good.values())))
    check_classes(root, good, classes)

    notes = [*said, *told["notes"], *left_out([*told["others"], *beside])]
    if told["bad"]:
        notes.append(f"Left out, since they cannot be read:\n{reasons(told['bad'])}")
    labels = [classes.index(c) for listed in good.values() for c in listed for _ in listed[c]]
    labels, n = torch.tensor(labels), len(labels)
    if "" in good:
        tested = {name for names in good[""].values() for name in held_out(names)}
        for_test = torch.tensor([name in tested for names in good[""].values() for name in names])
        chosen = images[~for_test], labels[~for_test], images[for_test], labels[for_test]
        notes.insert(
            0,
            f"There is no train/ and test/: a fifth of each class ({len(tested)} of {n} pictures) "
            f"is kept for testing, always the same.",
        )
    else:  # views: the file on the disk stays mapped, and nothing is copied
        n = sum(map(len, good["train"].values()))
        chosen = images[:n], labels[:n], images[n:], labels[n:]
    note = f"{machine.printable(name)}: {' '.join(notes)}" if notes else ""
    names = tuple(map(machine.printable, classes))  # a figure's text takes no other encoding
    return Parts(*chosen, names, f"class folders, {told['format']}", note)


def reasons(bad: dict[str, str]) -> str:
    """A line for each bad file, for so many at most."""
    lines = [f"  {machine.printable(name)}: {why}" for name, why in bad.items()]
    return "\n".join(
        lines[:LISTED] + [f"  … and {len(lines) - LISTED} more"] * (len(lines) > LISTED)
    )


# ------------------------------------------------------------------------------------ which files


def list_parts(root: Path) -> tuple[dict[str, Listed], list[str], list[str]]:
    """The files of each class of "train" and "test", or of "" without these; those beside; notes.

    Pictures for validation train as well, for `fit` holds out its own; without test/ they test.
    Classes are in alphabetical order, their names in Unicode's NFC: a name copied from another
    system may be spelt with other code points than the one beside it.
    """
    layout = f"Expected pictures in {root}/<class>/, or in {root}/{{train,test}}/<class>/."
    inside = [path for path in sorted(root.iterdir()) if not system(path.name)]
    named, notes = {}, []
    for part, spellings in SPELLINGS.items():  # Train/ and train/ may lie side by side
        folders = [path for path in inside if path.name.lower() in spellings and path.is_dir()]
        named |= {part: folders} if folders else {}
    if "val" in named and "train" in named:
        own = "/, ".join(folder.name for folder in named["val"])
        if "test" in named:
            notes.append(f"{own}/ trains too: fit holds out pictures of its own for validation.")
        else:
            named["test"] = named.pop("val")
            notes.append(f"There is no test/: {own}/ takes its place.")
    elif named and named.keys() != {"val"} and not named.keys() >= {"train", "test"}:
        folders = [folder for folders in named.values() for folder in folders]
        below = [path for folder in folders for path in folder.iterdir()]
        if any(path.is_dir() and not system(path.name) for path in below):
            other = "test" if "train" in named else "train"
            raise FileNotFoundError(f"{root / other} is missing. {layout}")
    if not named.keys() >= {"train", "test"}:
        named = {}  # pictures of trains, or of tests
    parts, beside = {}, []
    used = [(part, folder) for part in named for folder in named[part]] or [("", root)]
    for path in inside if named else ():
        beside += files_at(path, root) if path not in [folder for _, folder in used] else []
    for part, folder in used:
        entries = [path for path in sorted(folder.iterdir()) if not system(path.name)]
        beside += [path.name for path in entries if not path.is_dir()]
        if not any(path.is_dir() for path in entries):
            raise FileNotFoundError(f"{folder} has no class folders. {layout}")
        whole = parts.setdefault("train" if part == "val" else part, {})
        for path in entries:
            if path.is_dir():
                files = whole.setdefault(unicodedata.normalize("NFC", path.name), [])
                files += files_at(path, root)
    return {part: dict(sorted(whole.items())) for part, whole in parts.items()}, beside, notes


def files_at(path: Path, root: Path) -> list[str]:
    """The names below `root` of a file, or of all files in a folder, in alphabetical order."""

    def stop(error: OSError) -> None:
        raise error

    if not path.is_dir():
        return [path.relative_to(root).as_posix()]
    found = []
    for where, folders, files in os.walk(path, onerror=stop):
        folders[:] = [name for name in folders if not system(name)]
        files += [name for name in folders if os.path.islink(f"{where}/{name}")]  # not followed
        where = Path(where).relative_to(root).as_posix()
        found += [f"{where}/{name}" for name in files if not system(name)]
    return sorted(found, key=lambda name: name.split("/"))


def system(name: str) -> bool:
    """Whether a file or folder of this name is the operating system's, not the person's."""
    name = name.lower()
    found = re.fullmatch(r"found\.\d{3}", name)  # where Windows puts what it repairs
    return name.startswith((".", "~$")) or name in SYSTEM or bool(found)


def check_classes(root: Path, good: dict[str, Listed], classes: tuple[str, ...]) -> None:
    """Raise the errors of `read_class_folders` that are about classes."""
    for part, listed in good.items():
        for name, paths in listed.items():
            where = root / part / name
            if name not in classes:
                raise ValueError(
                    f"{where}: the class {name!r} is in test but not in train "
                    f"({', '.join(classes)}). Add training images of it, or remove the folder."
                )
            if not paths:
                raise FileNotFoundError(f"{where} has no pictures. Add some, or remove the folder.")
            if not part and len(paths) == 1:
                raise ValueError(
                    f"{where} has one picture only; expected two or more, one of them for testing."
                )
    if len(classes) == 1:
        raise ValueError(
            f"{root} has one class only, {classes[0]!r}; expected two or more, each in a folder of "
            f"its own. Are they the folders inside {classes[0]!r}? Then load that one."
        )


def held_out(names: list[str]) -> list[str]:
    """A fifth of a class, at least one: chosen by a hash, so that one more picture moves few."""
    order = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    return order[: max(1, round(TEST_SHARE * len(names)))]


def left_out(names: list[str]) -> list[str]:
    """A sentence on the files that are no pictures in a class folder, if there are any."""
    counts = Counter(Path(name).suffix.lower() or "no ending" for name in names)
    kinds = ", ".join(f"{n} {end}" for end, n in sorted(counts.items()))
    return [f"Left out, as no pictures of a class: {kinds}."] if names else []


# -------------------------------------------------------------------------------------- one file


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The opened image; whatever Pillow raises inside becomes a ValueError with the reason."""
    try:
        if not path.is_file():
            raise ValueError("it is no file, or a link to none")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd EXIF data and palettes
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = Image.MAX_IMAGE_PIXELS // 10**6
        raise ValueError(f"it has more than {most} megapixels; make it smaller") from error
    except UnidentifiedImageError as error:
        kind = path.suffix[1:].upper()
        if path.suffix.lower() in UNREADABLE:
            hint = ", or install pillow-heif" * kind.startswith("H")
            raise ValueError(f"Pillow does not read {kind}; export it as JPEG{hint}") from error
        raise ValueError(
            "it is empty" if not path.stat().st_size else "Pillow finds no image in it"
        ) from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise ValueError(str(error) or type(error).__name__) from error


def read_header(path: Path) -> Header:
    """Read a picture's header. Raises ValueError when it is none."""
    with opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112) in (5, 6, 7, 8) and image.format != "TIFF"
        grey = image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16")
        if image.mode in ("P", "PA"):
            palette = image.getpalette() or []
            grey = palette[0::3] == palette[1::3] == palette[2::3]
        return Header(*((height, width) if turned else (width, height)), grey, format_of(image))


def format_of(image: Image.Image) -> str:
    """ "PNG", or "JPEG quality 75 (lossy)" from the image's own quantisation table."""
    table = getattr(image, "quantization", None)
    if not table:
        return str(image.format)
    # The standard's luminance table (ITU-T T.81, Annex K.1) sums to 3,685 at quality 50;
    # libjpeg scales it by (200 - 2 q) % from there up, by 5000 / q % below.
    scale = 100 * sum(table[0]) / 3685
    quality = 100 - scale / 2 if scale <= 100 else 5000 / scale
    return f"JPEG quality {quality:.0f} (lossy)"


def read_picture(path: Path, grey: bool, size: tuple[int, int] | None) -> np.ndarray:
    """A picture as uint8 (C, H, W), held upright, on white, reduced to `size` (H, W) if given.

    Raises ValueError with the reason when it cannot be read.
    """
    with opened(path) as image:
        format = image.format
        if size:
            side = 2 * max(size)
            image.draft(None, (side, side))  # a JPEG is decoded at about the size needed
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "I" or image.mode.startswith("I;16"):
            if image.mode == "I" and format == "TIFF":
                raise ValueError("it has 32 bits a value; save it with 8 or 16")
            values = np.asarray(image)
            values = np.where(values == image.info.get("transparency", -1), 65_535, values)
            image = Image.fromarray((values / 257).round().astype(np.uint8))
        if image.mode == "F":
            raise ValueError("its values are fractions; save it with 8 or 16 bits a value")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        mode = "L" if grey else "RGB"
        image = image if image.mode == mode else image.convert(mode)  # which would copy it
        if size and image.size != size[::-1]:
            image = ImageOps.fit(image, size[::-1])
        array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


# ------------------------------------------------------------------------------------- all files


def decode(root: Path, files: list[str], size: int | None) -> Decoded:
    """Decode the pictures among the files; what is bad, what no picture, and notes go with them."""
    headers, bad, others = {}, {}, {}
    for name in progress_bar(files, "reading headers", delay=1):
        try:
            headers[name] = read_header(root / name)
        except ValueError as error:
            expected = Path(name).suffix.lower() in (*ENDINGS, *UNREADABLE)
            (bad if expected else others)[name] = str(error)
    sizes = {header[:2] for header in headers.values()}
    grey = all(header.grey for header in headers.values())
    kept = size is None and len(sizes) == 1 and max(w * h for w, h in sizes) <= LARGEST
    side = None if kept else size or SIZE
    width, height = next(iter(sizes)) if kept else (side, side)

    images = np.empty((len(headers), 1 if grey else 3, height, width), np.uint8)
    n = 0
    for name in progress_bar(headers, "decoding images", delay=1):
        try:
            images[n] = read_picture(root / name, grey, side and (side, side))
            n += 1
        except ValueError as error:
            bad[name] = str(error)
    if n < len(headers):  # those that are left may be of one size, or all grey
        images, told = decode(root, [name for name in headers if name not in bad], size)
        return images, told | {"bad": bad | told["bad"], "others": others}

    notes = []
    if sizes - {(width, height)}:
        notes.append(
            f"The pictures have {len(sizes)} sizes: the shorter side is now {side} pixels, and the "
            f"middle is cut out; load(..., size=) takes another size."
            if len(sizes) > 1
            else f"The pictures were made {side} x {side} pixels, cut out of the middle."
        )
    if not grey and any(header.grey for header in headers.values()):
        notes.append("Some are grey, some in colour: all are used in colour.")
    formats = {header.format.split()[0]: header.format for header in reversed(headers.values())}
    format = ", ".join(formats[name] for name in sorted(formats))
    return images[:n], {"bad": bad, "others": others, "notes": notes, "format": format}


# ----------------------------------------------------------------------------------------- cache


def fingerprint(root: Path, names: list[str]) -> str:
    """A short hash of the files' names, sizes and times, and of the formats that can be read."""
    facts: list = [FORMATS]
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere
            stat = os.stat(f"{root}/{name}")
            facts.append((name, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def cached(name: str, key: str, decode: Callable[[], Decoded]) -> tuple[torch.Tensor, dict]:
    """What `decode()` returns, kept in the runs folder under a name and mapped into memory.

    It is decoded anew when the key is another one, or when a bit of what was kept has changed.
    With bad files nothing is kept: they may be readable next time, by new rights or a new reader.
    Where nothing can be kept, a notice says so.
    """
    fresh = kept = None
    try:
        folder = machine.runs_folder() / "cache"
        folder.mkdir(exist_ok=True)
        with locked(folder / f"{name}.lock", f"Another process decodes {name}: waiting for it."):
            kept = kept_images(folder / name, key)
            if kept is None:
                fresh = decode()
                if not fresh[1]["bad"]:
                    keep(folder / name, key, *fresh)
                    kept = kept_images(folder / name, key)
    except OSError as error:
        machine.notice(
            f"The decoded images cannot be kept for the next time ({error}): make room, or let "
            f"CNN_RUNS name a folder to write to."
        )
    images, told = kept or fresh or decode()
    return torch.from_numpy(images), told


def keep(path: Path, key: str, images: np.ndarray, told: dict) -> None:
    """Write images and what is told about them; the checksum comes last."""
    with machine.written_whole(Path(f"{path}.npy")) as fresh, open(fresh, "wb") as file:
        np.save(file, images)
    with machine.written_whole(Path(f"{path}.json")) as fresh:
        about = {"key": key, "told": told, "sha256": checksum(path, key, told)}
        fresh.write_text(json.dumps(about))


def kept_images(path: Path, key: str) -> Decoded | None:
    """What `keep` wrote, if it is all there, undamaged, and of this key."""
    try:
        about = json.loads(Path(f"{path}.json").read_text())
        if about["key"] == key and about["sha256"] == checksum(path, key, about["told"]):
            return np.load(f"{path}.npy", "c"), about["told"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def checksum(path: Path, key: str, told: dict) -> str:
    """The sha256 of the kept images, of the key and of what is told about them."""
    with open(f"{path}.npy", "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps([key, told]).encode())
    return digest.hexdigest()
