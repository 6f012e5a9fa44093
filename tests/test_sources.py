"""Where images come from: original files, class folders, the cache, downloads, the digits."""

import dataclasses
import gzip
import hashlib
import http.server
import os
import pickle
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import data, sources

# ---------------------------------------------------------------------------------------- files


def idx_array(path: Path) -> np.ndarray:
    """A second reader of the MNIST format, which believes the header."""
    raw = path.read_bytes()
    ndim = raw[3]
    shape = np.frombuffer(raw, ">u4", ndim, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def test_idx_files_are_read_byte_for_byte(mnist_files: Path):
    parts = sources.read_files(sources.KNOWN["mnist"], mnist_files)
    written = [idx_array(mnist_files / "MNIST/raw" / name) for name in sources.IDX]
    assert parts.train_images.shape == (120, 1, 28, 28)
    assert parts.train_images.dtype == torch.uint8
    assert parts.train_labels.dtype == torch.int64
    for found, array in zip(parts[:4], written, strict=True):
        assert np.array_equal(found.numpy().reshape(array.shape), array)
    assert parts.classes == tuple("0123456789")
    assert parts.source == "MNIST files"


def mapped(tensor: torch.Tensor, path: Path) -> bool:
    """Whether the tensor's bytes lie in a mapping of the file (Linux)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= tensor.data_ptr() < high:
            return name == str(path.resolve())
    return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the mappings on Linux")


@linux
def test_idx_images_are_mapped_not_copied(mnist_files: Path):
    images = data.load("mnist").train.images
    path = mnist_files / "MNIST/raw" / sources.IDX[0]
    assert mapped(images, path)
    assert not mapped(images.clone(), path)


def test_writing_to_a_mapped_image_leaves_the_file_alone(mnist_files: Path):
    images = data.load("mnist").train.images
    before = images[0].clone()
    images[0] = 255 - images[0]
    assert torch.equal(data.load("mnist").train.images[0], before)


@pytest.mark.parametrize("name", sources.IDX)
def test_truncated_altered_or_missing_file(mnist_files: Path, name: str):
    path = mnist_files / "MNIST/raw" / name
    whole = path.read_bytes()
    expected = sources.KNOWN["mnist"].hashes[name][:12]
    altered = bytearray(whole)
    altered[-1] ^= 1

    for damaged in (whole[:-1], altered, b"", whole + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="truncated or altered") as caught:
            data.load("mnist")
        message = str(caught.value)
        assert str(path) in message
        assert f"expected the hash {expected}" in message
        assert f"in {len(damaged):,} bytes" in message
        assert f"Delete the folder {path.parent} and load" in message

    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing") as caught:
        data.load("mnist")
    assert str(path) in str(caught.value)
    assert f"Delete the folder {path.parent} and load" in str(caught.value)

    path.write_bytes(whole)
    assert len(data.load("mnist").train) == 120  # and whole again, it is read again


@pytest.fixture
def cifar_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with CIFAR-10's six pickles as Python 2 wrote them, of 3 x 2 x 2 pixels."""
    root = tmp_path / "data"
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    known = sources.KNOWN["cifar10"]
    hashes = {}
    for name in known.hashes:
        batch = {
            "data": rng.integers(0, 256, (10_000, 12), dtype=np.uint8),
            "labels": rng.integers(0, 10, 10_000).tolist(),
        }
        raw = pickle.dumps(batch, protocol=2)
        for key in (b"data", b"labels"):  # unicode strings to Python 2's byte strings
            unicode = b"X" + len(key).to_bytes(4, "little") + key
            assert raw.count(unicode) == 1
            raw = raw.replace(unicode, b"U" + bytes([len(key)]) + key)
        (folder / name).write_bytes(raw)
        hashes[name] = hashlib.md5(raw).hexdigest()
    small = dataclasses.replace(known, shape=(3, 2, 2), hashes=hashes, mirrors=())
    monkeypatch.setitem(sources.KNOWN, "cifar10", small)
    return root


def test_cifar_batches(cifar_files: Path):
    images = data.load("cifar10", root=cifar_files)
    assert images.source == "cifar-10-batches-py files"
    assert (len(images.train), len(images.test)) == (50_000, 10_000)
    assert images.shape == (3, 2, 2)
    for name, part, start in (
        ("data_batch_1", images.train, 0),
        ("data_batch_5", images.train, 40_000),
        ("test_batch", images.test, 0),
    ):
        raw = (cifar_files / "cifar-10-batches-py" / name).read_bytes()
        batch = pickle.loads(raw, encoding="latin1")
        # A row is all of red, then green, then blue, each row by row.
        assert part.images[start + 3, 1, 0, 1] == batch["data"][3][5]
        assert part.labels[start : start + 10_000].tolist() == batch["labels"]


def test_cifar_batches_are_decoded_once_and_checked_every_time(
    cifar_files: Path, monkeypatch: pytest.MonkeyPatch
):
    first = data.load("cifar10", root=cifar_files)
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("decoded again"))
    again = data.load("cifar10", root=cifar_files)
    assert torch.equal(again.train.images, first.train.images)
    assert torch.equal(again.test.labels, first.test.labels)
    path = cifar_files / "cifar-10-batches-py/data_batch_4"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="data_batch_4 is truncated or altered"):
        data.load("cifar10", root=cifar_files)


# -------------------------------------------------------------------------------- class folders


def write_image(path: Path, array: np.ndarray, **options) -> None:
    """Write a uint8 image, (H, W) or (H, W, 3), in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Six training and two test images of cats, dogs and owls, in colour, 7 x 5 pixels, PNG."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pets"
    train = ("dog/2", "dog/10", "cat/0", "owl/1", "owl/b", "owl/c")
    test = ("owl/0", "cat/0")
    for n, name in enumerate([f"train/{name}" for name in train] + [f"test/{n}" for n in test]):
        array = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
        array[0, 0] = n  # the first pixel numbers the image
        write_image(folder / f"{name}.png", array)
    return folder


def test_class_folders(pets: Path):
    images = data.load(str(pets))
    assert images.name == "pets"
    assert images.source == "class folders, PNG"
    assert images.classes == ("cat", "dog", "owl")  # in alphabetical order, as are the files
    assert images.shape == (3, 7, 5)
    assert images.train.images.dtype == torch.uint8
    assert images.train.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert images.train.images[:, 0, 0, 0].tolist() == [2, 1, 0, 3, 4, 5]
    assert images.test.labels.tolist() == [0, 2]
    assert images.test.images[:, 0, 0, 0].tolist() == [7, 6]
    with Image.open(pets / "test/owl/0.png") as image:
        assert np.array_equal(images.test.images[1].permute(1, 2, 0), np.asarray(image))


def test_grey_class_folders_have_one_channel(tmp_path: Path):
    for part, value in (("train", 40), ("test", 90)):
        write_image(tmp_path / part / "a/0.png", np.full((4, 6), value, np.uint8))
    images = data.load(str(tmp_path))
    assert images.shape == (1, 4, 6)
    assert images.train.images.unique().tolist() == [40]
    assert images.test.images.unique().tolist() == [90]


def test_class_folders_ignore_what_is_no_image(pets: Path):
    (pets / "train/.ipynb_checkpoints").mkdir()
    (pets / "train/notes.txt").write_text("mine")
    (pets / "train/cat/Thumbs.db").write_bytes(b"?")
    write_image(pets / "train/cat/1.PNG", np.zeros((7, 5, 3), np.uint8))
    images = data.load(str(pets))
    assert images.classes == ("cat", "dog", "owl")
    assert len(images.train) == 7


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpeg_source_tells_the_quality(tmp_path: Path, quality: int):
    array = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    for part in ("train", "test"):
        write_image(tmp_path / part / "a/0.jpg", array, quality=quality)
    images = data.load(str(tmp_path))
    assert images.source == f"class folders, JPEG quality {quality} (lossy)"
    gap = images.train.images[0].permute(1, 2, 0).numpy().astype(int) - array
    assert np.abs(gap).max() < 25


def test_class_folders_are_decoded_once(pets: Path, monkeypatch: pytest.MonkeyPatch):
    first = data.load(str(pets))
    with monkeypatch.context() as patch:
        patch.setattr(sources, "decode_images", lambda _: pytest.fail("decoded again"))
        again = data.load(str(pets))
    assert torch.equal(again.train.images, first.train.images)
    assert torch.equal(again.test.labels, first.test.labels)

    write_image(pets / "train/cat/0.png", np.full((7, 5, 3), 99, np.uint8))  # a changed file
    assert (data.load(str(pets)).train.images[0] == 99).all()
    write_image(pets / "train/cat/0.png", np.full((7, 5, 3), 97, np.uint8))  # of the same size
    os.utime(pets / "train/cat/0.png", (0, 0))  # surely another time, however coarse the clock
    assert (data.load(str(pets)).train.images[0] == 97).all()
    write_image(pets / "train/cat/1.png", np.full((7, 5, 3), 98, np.uint8))  # one more
    assert len(data.load(str(pets)).train) == 7
    (pets / "train/dog").rename(pets / "train/ape")  # another name, another order
    assert data.load(str(pets)).train.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]


@linux
def test_decoded_images_are_mapped(pets: Path, runs: Path):
    images = data.load(str(pets)).train.images
    (path,) = runs.glob("cache/pets-*/images.npy")
    assert mapped(images, path)


def test_a_cache_half_written_is_not_trusted(
    pets: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
):
    save = np.save

    def disk_full(path: Path, array: np.ndarray) -> None:
        save(path, array)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", disk_full)
        with pytest.raises(OSError, match="No space left"):
            data.load(str(pets))
    assert not list(runs.glob("cache/pets-*"))
    assert len(data.load(str(pets)).train) == 6


def test_of_two_processes_the_first_one_wins(tmp_path: Path):
    mine, theirs, place = (tmp_path / name for name in ("mine", "theirs", "place"))
    for folder in (mine, theirs):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    sources.move_in(theirs, place)
    sources.move_in(mine, place)
    assert (place / "file").read_text() == "theirs"
    assert not mine.exists()


def refused(folder: Path, kind: type[Exception], *parts: str) -> None:
    """Loading the folder fails with an error of this kind that names all of `parts`."""
    with pytest.raises(kind) as caught:
        data.load(str(folder))
    for part in parts:
        assert part in str(caught.value)


def test_class_folder_layout_errors(pets: Path):
    layout = f"Expected {pets}/{{train,test}}/<class>/*.png or *.jpg"
    (pets / "train/yak").mkdir()
    refused(pets, FileNotFoundError, f"{pets}/train/yak has no .png or .jpg images", layout)
    (pets / "train/yak").rmdir()

    (pets / "test").rename(pets / "exam")
    refused(pets, FileNotFoundError, f"{pets}/test is missing", layout)
    (pets / "test").mkdir()
    refused(pets, FileNotFoundError, f"{pets}/test has no class folders", layout)


def test_a_class_in_test_but_not_in_train(pets: Path):
    write_image(pets / "test/yak/0.png", np.zeros((7, 5, 3), np.uint8))
    expected = f"{pets}/test/yak: the class 'yak' is in test but not in train (cat, dog, owl)"
    refused(pets, ValueError, expected, "remove the folder")


def test_a_class_in_train_alone_is_fine(pets: Path):
    images = data.load(str(pets))
    assert "dog" in images.classes
    assert 1 not in images.test.labels


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_broken_image_is_named_wherever_it_breaks(pets: Path, ending: str, runs: Path):
    whole = pets.parent / f"whole.{ending}"
    write_image(whole, np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8))
    path = pets / f"train/dog/3.{ending}"
    raw = whole.read_bytes()
    for length in range(0, len(raw) - 40, 9):  # the last bytes of a file hold no pixels
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match="cannot be read as an image") as caught:
            sources.decode_image(path)
        assert str(path) in str(caught.value)
    path.write_text("not an image at all")
    refused(pets, ValueError, f"{path} cannot be read as an image", "Replace it or remove it")
    assert not list(runs.glob("cache/*"))


def test_images_of_mixed_sizes(pets: Path):
    path = pets / "test/owl/9.png"
    write_image(path, np.zeros((7, 6, 3), np.uint8))
    refused(pets, ValueError, str(path), "(3, 7, 6)", "(3, 7, 5)", "Resize the images to one size")


def test_grey_and_colour_mixed(pets: Path):
    path = pets / "train/owl/9.png"
    write_image(path, np.zeros((7, 5), np.uint8))
    refused(pets, ValueError, str(path), "(1, 7, 5)", "(3, 7, 5)", "all grey or all in colour")


def test_images_of_16_bits_are_refused_rather_than_clipped(pets: Path):
    path = pets / "train/owl/9.png"
    write_image(path, np.full((7, 5), 20_000, np.uint16))
    refused(pets, ValueError, str(path), "more than 8 bits a value")


# ------------------------------------------------------------------------------------- download


class Mirror(http.server.BaseHTTPRequestHandler):
    """GET /<behaviour>/<file>: the file, or one of the ways in which servers fail."""

    def do_GET(self):
        _, behaviour, name = self.path.split("/")
        self.server.asked.append((behaviour, name))
        body = self.server.files[name]
        if behaviour == "silent":
            self.server.closing.wait()
        elif behaviour == "garbage":
            self.wfile.write(b"Please log in to use this network\r\n")
        elif behaviour == "missing":
            self.send_error(404)
        elif behaviour == "chunks":  # breaks off in the middle of the body
            self.answer("Transfer-Encoding", "chunked")
            self.wfile.write(b"5\r\n" + body[:5] + b"\r\n")
        else:
            self.answer("Content-Length", len(body))
            self.send(behaviour, body)

    def answer(self, header: str, value: object) -> None:
        self.send_response(200)
        self.send_header(header, str(value))
        self.end_headers()

    def send(self, behaviour: str, body: bytes) -> None:
        if behaviour == "good":
            self.wfile.write(body)
        elif behaviour == "wrong":
            self.wfile.write(body[:-1] + bytes([body[-1] ^ 1]))
        elif behaviour == "short":
            self.wfile.write(body[: len(body) // 2])
        elif behaviour == "stalls":
            self.wfile.write(body[: len(body) // 2])
            self.server.closing.wait()
        elif behaviour == "crawls":
            for value in body:
                self.wfile.write(bytes([value]))
                if self.server.closing.wait(0.02):
                    return

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` as `Mirror` does and lists in `asked` what was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Mirror)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.closing = threading.Event()

    def handle_error(self, *_):
        pass  # a client that hangs up in the middle is what some tests are about


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.closing.set()
        running.shutdown()


Offer = Callable[..., None]


@pytest.fixture
def offer(server: Server, mnist_files: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """offer("wrong", "good"): "mnist" has these mirrors, in this order, for its small files."""
    packed = {
        f"{name}.gz": gzip.compress((mnist_files / "MNIST/raw" / name).read_bytes())
        for name in sources.IDX
    }
    server.files |= packed

    def offer(*behaviours: str) -> None:
        changed = dataclasses.replace(
            sources.KNOWN["mnist"],
            archives=tuple((name, hashlib.md5(raw).hexdigest()) for name, raw in packed.items()),
            mirrors=tuple(address(server, behaviour) for behaviour in behaviours),
        )
        monkeypatch.setitem(sources.KNOWN, "mnist", changed)

    return offer


def address(server: Server, behaviour: str) -> str:
    """The mirror that behaves like this; one that nobody serves for "refused"."""
    port = server.server_port
    if behaviour == "refused":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/{behaviour}/"


def same_as(images: data.ImageSet, folder: Path) -> bool:
    """Whether these are the training images of the MNIST files in the folder."""
    written = idx_array(folder / "MNIST/raw" / sources.IDX[0])
    return np.array_equal(images.train.images[:, 0].numpy(), written)


def test_download(offer: Offer, server: Server, mnist_files: Path, tmp_path: Path, capsys):
    root = tmp_path / "not/yet/there"
    offer("good", "wrong")
    images = data.load("mnist", root=root, strict=True)
    assert same_as(images, mnist_files)
    assert not images.stand_in
    assert images.source == "MNIST files"
    assert server.asked == [("good", f"{name}.gz") for name in sources.IDX]
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert files == {f"MNIST/raw/{name}" for name in sources.IDX}
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz:   0%" in error  # the progress bar, which knows the size
    assert "***" not in error  # no notice

    again = data.load("mnist", root=root, strict=True)
    assert same_as(again, mnist_files)
    assert len(server.asked) == 4  # the second time, nothing was fetched


BAD = ("wrong", "short", "missing", "garbage", "chunks", "refused")


@pytest.mark.parametrize("bad", BAD)
def test_the_second_mirror_makes_up_for_the_first(
    offer: Offer, server: Server, mnist_files: Path, tmp_path: Path, bad: str
):
    offer(bad, "good")
    images = data.load("mnist", root=tmp_path / "new", strict=True)
    assert same_as(images, mnist_files)
    good = [name for behaviour, name in server.asked if behaviour == "good"]
    assert good == [f"{name}.gz" for name in sources.IDX]


def failure(root: Path) -> str:
    """The message of a download into `root` that fails soon, and leaves nothing there."""
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist", root=root, strict=True)
    assert time.monotonic() - start < 2.5
    assert not list(root.iterdir())
    return str(caught.value)


def test_without_a_good_mirror_nothing_is_left_behind(
    offer: Offer, server: Server, mnist_files: Path, tmp_path: Path
):
    offer(*BAD)
    message = failure(tmp_path / "new")
    assert "train-images-idx3-ubyte.gz could not be downloaded" in message
    for behaviour in BAD:
        assert f"/{behaviour}/: " in message  # a reason for each mirror
    assert "truncated or altered" in message
    assert "404" in message
    assert "refused" in message
    assert "Delete the folder" not in message  # which is gone already
    rounds = [behaviour for behaviour, _ in server.asked]
    assert rounds == [name for name in BAD if name != "refused"] * sources.ROUNDS

    offer("good")
    assert same_as(data.load("mnist", root=tmp_path / "new", strict=True), mnist_files)


def test_a_later_file_that_fails_undoes_the_earlier_ones(
    offer: Offer, server: Server, tmp_path: Path
):
    offer("good")
    server.files[f"{sources.IDX[3]}.gz"] = b"gone"
    assert f"{sources.IDX[3]}.gz could not be downloaded" in failure(tmp_path / "new")
    assert [name for _, name in server.asked[:3]] == [f"{name}.gz" for name in sources.IDX[:3]]


@pytest.mark.parametrize("bad", ["silent", "stalls"])
def test_a_server_that_stalls_is_given_up(
    offer: Offer, mnist_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
):
    monkeypatch.setattr(sources, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(sources, "ROUNDS", 1)
    offer(bad)
    assert "timed out" in failure(tmp_path / "new")


def test_a_server_that_crawls_is_given_up(
    offer: Offer, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "SLOW_AFTER_S", 0.2)
    monkeypatch.setattr(sources, "ROUNDS", 1)
    offer("crawls")
    assert "only 0 kB/s" in failure(tmp_path / "new")


def test_an_interrupted_download_leaves_nothing(
    offer: Offer, mnist_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    offer("good")
    root = tmp_path / "new"
    copy_url = sources.copy_url

    def interrupted(url: str, target: Path) -> None:
        copy_url(url, target)
        if sources.IDX[2] in url:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sources, "copy_url", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.load("mnist", root=root)
    assert not list(root.iterdir())
    assert same_as(data.load("mnist", root=root, strict=True), mnist_files)


def test_what_a_killed_download_leaves_is_not_trusted(
    offer: Offer, mnist_files: Path, tmp_path: Path
):
    offer("good")
    root = tmp_path / "new"
    left = root / ".download-killed/MNIST/raw"
    left.mkdir(parents=True)
    for name in sources.IDX:
        (left / name).write_bytes(b"half")
    assert same_as(data.load("mnist", root=root, strict=True), mnist_files)


def test_an_archive_of_several_files_is_unpacked(
    server: Server, cifar_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    packed = tmp_path / "cifar.tar.gz"
    with tarfile.open(packed, "w:gz", compresslevel=1) as tar:
        tar.add(cifar_files / "cifar-10-batches-py", "cifar-10-batches-py")
    server.files["cifar.tar.gz"] = packed.read_bytes()
    known = dataclasses.replace(
        sources.KNOWN["cifar10"],
        archives=(("cifar.tar.gz", hashlib.md5(packed.read_bytes()).hexdigest()),),
        mirrors=(address(server, "good"),),
    )
    monkeypatch.setitem(sources.KNOWN, "cifar10", known)
    root = tmp_path / "new"
    images = data.load("cifar10", root=root, strict=True)
    assert (len(images.train), len(images.test)) == (50_000, 10_000)
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]


def test_a_data_folder_that_cannot_be_made(offer: Offer, tmp_path: Path):
    offer("good")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileNotFoundError, match=r"download failed: .*file"):
        data.load("mnist", root=tmp_path / "file/data", strict=True)


# ---------------------------------------------------------------------- the sets the course knows


@pytest.mark.parametrize("name", sources.KNOWN)
def test_known_sets_are_complete(name: str):
    known = sources.KNOWN[name]
    assert len(known.classes) == 10
    assert len(known.mirrors) >= 2
    assert all(mirror.startswith("http") and mirror.endswith("/") for mirror in known.mirrors)
    assert all(len(md5) == 32 for _, md5 in known.archives)
    assert all(len(value) in (32, 64) for value in known.hashes.values())
    if known.folder.endswith("raw"):
        assert [file.removesuffix(".gz") for file, _ in known.archives] == list(known.hashes)


# --------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = data.load("digits")
    assert images.shape == (1, 8, 8)
    assert (len(images.train), len(images.test)) == (1437, 360)
    assert images.source == "scikit-learn digits"
    assert not images.stand_in  # they are what was asked for
    both = torch.cat([images.train.images, images.test.images])
    assert np.array_equal(both[:, 0].numpy(), np.rint(digits.images * (255 / 16)))
    labels = torch.cat([images.train.labels, images.test.labels])
    assert labels.tolist() == digits.target.tolist()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_digits_in_the_size_and_channels_asked_for(shape: tuple[int, int, int]):
    parts = sources.read_digits(shape)
    small = sources.read_digits()
    assert parts.train_images.shape == (1437, *shape)
    assert parts.train_images.dtype == torch.uint8
    assert torch.equal(parts.test_labels, small.test_labels)
    for channel in parts.train_images.unbind(1):  # grey in every channel
        assert torch.equal(channel, parts.train_images[:, 0])
    # Enlarged, a digit keeps its mean brightness to within a few of 255 levels.
    means = [images.float().mean(dim=(1, 2, 3)) for images in (parts[0], small[0])]
    assert (means[0] - means[1]).abs().max() < 8
    assert (means[0] - means[1]).mean().abs() < 1
