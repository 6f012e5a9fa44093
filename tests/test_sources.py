"""Where the known sets come from: original files, downloads, the samples, the digits."""

import dataclasses
import errno
import functools
import gzip
import hashlib
import http.server
import multiprocessing
import os
import pickle
import shutil
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch

from common import data, sources
from common.sources import mirrors

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
        assert "Delete this file and load the set again to fetch a fresh copy" in message

    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing and its download failed") as caught:
        data.load("mnist")  # even without strict: the others are there
    assert str(path) in str(caught.value)
    assert "Delete" not in str(caught.value)

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


def test_cifar_batches_are_checked_before_they_are_unpickled(
    cifar_files: Path, monkeypatch: pytest.MonkeyPatch
):
    path = cifar_files / "cifar-10-batches-py/data_batch_4"
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(ValueError, match="data_batch_4 is truncated or altered"):
        data.load("cifar10", root=cifar_files)


# ------------------------------------------------------------------------------------- download


class Mirror(http.server.BaseHTTPRequestHandler):
    """GET /<behaviour>/<file>: the file, or one of the ways in which servers fail."""

    def do_GET(self):
        _, behaviour, name = self.path.split("/")
        self.server.asked.append((behaviour, name))
        body = self.server.files[name]
        if behaviour == "silent":
            self.server.closing.wait()
        elif behaviour == "header":  # one byte of the header now and then
            self.drip(b"HTTP/1.0 200 OK\r\nX: " + 1000 * b"x")
        elif behaviour == "garbage":
            self.wfile.write(b"Please log in to use this network\r\n")
        elif behaviour.isdigit():
            self.send_error(int(behaviour))
        elif behaviour == "circle":
            self.answer("Location", self.path, 302)
        elif behaviour == "page":
            self.answer("Content-Type", "text/html")
            self.wfile.write(b"<html>Please log in</html>")
        elif behaviour == "endless":
            self.answer("Content-Type", "application/gzip")
            while not self.server.closing.is_set():
                self.wfile.write(bytes(2**16))
        elif behaviour == "chunks":  # breaks off in the middle of the body
            self.answer("Transfer-Encoding", "chunked")
            self.wfile.write(b"5\r\n" + body[:5] + b"\r\n")
        elif behaviour == "pieces":  # small pieces of a whole file
            self.protocol_version = "HTTP/1.1"
            self.answer("Transfer-Encoding", "chunked")
            for start in range(0, len(body), 100):
                piece = body[start : start + 100]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.answer("Content-Length", len(body) + (10 if behaviour == "long" else 0))
            self.send(behaviour, body)

    def answer(self, header: str, value: object, code: int = 200) -> None:
        self.send_response(code)
        self.send_header(header, str(value))
        self.end_headers()

    def send(self, behaviour: str, body: bytes) -> None:
        if behaviour in ("good", "long"):
            self.wfile.write(body)
        elif behaviour == "wrong":
            self.wfile.write(body[:-1] + bytes([body[-1] ^ 1]))
        elif behaviour == "short":
            self.wfile.write(body[: len(body) // 2])
        elif behaviour == "stalls":
            self.wfile.write(body[: len(body) // 2])
            self.server.closing.wait()
        elif behaviour == "crawls":
            self.drip(body)
        elif behaviour == "tires":  # the first nine tenths at once
            self.wfile.write(body[: len(body) // 10 * 9])
            self.drip(body[len(body) // 10 * 9 :])

    def drip(self, body: bytes) -> None:
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


LIMITS = dict.fromkeys(("silent", "stalls"), "TIMEOUT_S")
LIMITS |= dict.fromkeys(("header", "crawls", "tires"), "SLOW_AFTER_S")


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that behaves like one of `LIMITS` is given up by that limit, after 0.4 s."""
    transfer = mirrors.transfer

    def hurried(mirror: str, *rest) -> None:
        limit = LIMITS.get(mirror.split("/")[-2])
        with monkeypatch.context() as patch:
            if limit:
                patch.setattr(mirrors, limit, 0.4)
            transfer(mirror, *rest)

    monkeypatch.setattr(mirrors, "transfer", hurried)


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
            largest=max(map(len, packed.values())),
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


@pytest.mark.parametrize("kind", ["good", "pieces"])
def test_download(
    offer: Offer, server: Server, mnist_files: Path, tmp_path: Path, capsys, kind: str
):
    root = tmp_path / "not/yet/there"
    offer(kind, "wrong")
    images = data.load("mnist", root=root, strict=True)
    assert same_as(images, mnist_files)
    assert not images.stand_in
    assert images.source == "MNIST files"
    assert server.asked == [(kind, f"{name}.gz") for name in sources.IDX]
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert files == {f"MNIST/raw/{name}" for name in sources.IDX}
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert capsys.readouterr() == ("", "")  # no notice, and no bar in a log file

    again = data.load("mnist", root=root, strict=True)
    assert same_as(again, mnist_files)
    assert len(server.asked) == 4  # the second time, nothing was fetched


def test_a_terminal_sees_a_bar(
    offer: Offer, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    offer("good")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    data.load("mnist", root=tmp_path / "new", strict=True)
    assert "train-images-idx3-ubyte.gz: " in capsys.readouterr().err


def test_only_what_is_missing_is_fetched(
    offer: Offer, server: Server, mnist_files: Path, tmp_path: Path
):
    offer("good")
    root = tmp_path / "new"
    shutil.copytree(mnist_files, root)
    kept = root / "MNIST/raw" / sources.IDX[0]
    before = kept.stat()
    for name in sources.IDX[1:3]:
        (root / "MNIST/raw" / name).unlink()
    assert same_as(data.load("mnist", root=root), mnist_files)
    assert [name for _, name in server.asked] == [f"{name}.gz" for name in sources.IDX[1:3]]
    assert kept.stat().st_mtime_ns == before.st_mtime_ns

    kept.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="Delete this file and load the set again"):
        data.load("mnist", root=root)
    kept.unlink()  # as the message says
    assert same_as(data.load("mnist", root=root), mnist_files)


BAD = {  # what is said of a mirror that behaves like this
    "wrong": "sent something else: MD5 hash of downloaded file",
    "short": "failed: IncompleteRead",
    "long": "failed: IncompleteRead",
    "chunks": "failed: Response ended prematurely",
    "page": "sent something else",
    "garbage": "failed: ",
    "circle": "sent something else: Exceeded 30 redirects",
    "endless": "sent something else: more than ",
    "403": "answered 403",
    "404": "answered 404",
    "500": "answered 500",
    "refused": "refused",
    "silent": "timed out",
    "stalls": "timed out",
    "header": "failed: only 0 kB/s",
    "crawls": "failed: only 0 kB/s",
}


@pytest.mark.usefixtures("hurry")
def test_a_server_that_tires_is_given_up(server: Server, tmp_path: Path):
    """Though over the whole time it was fast enough: by its mean it could go on for 20 s."""
    server.files["big"] = bytes(2_000_000)
    md5 = hashlib.md5(server.files["big"]).hexdigest()
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="only 0 kB/s"):
        mirrors.transfer(address(server, "tires"), "big", md5, tmp_path, 10**7)
    assert time.monotonic() - start < 10


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("bad", ["404", "403", "page", "stalls"])  # each its own way on
def test_the_second_mirror_makes_up_for_the_first(
    offer: Offer, server: Server, mnist_files: Path, tmp_path: Path, bad: str
):
    offer(bad, "good")
    start = time.monotonic()
    images = data.load("mnist", root=tmp_path / "new", strict=True)
    assert time.monotonic() - start < 10
    assert same_as(images, mnist_files)
    good = [name for behaviour, name in server.asked if behaviour == "good"]
    assert good == [f"{name}.gz" for name in sources.IDX]
    asked = [name for behaviour, name in server.asked if behaviour == bad]
    if bad == "404":  # it may have the other files
        assert asked == good
    elif bad not in ("refused", "circle"):  # asked once, then passed over
        assert len(asked) == 1


def failure(root: Path) -> str:
    """The message of a download into `root` that fails soon, and leaves nothing there."""
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist", root=root, strict=True)
    assert time.monotonic() - start < 10
    assert not list(root.iterdir())
    return str(caught.value)


@pytest.mark.usefixtures("hurry")
def test_without_a_good_mirror_nothing_is_left_behind(
    offer: Offer, server: Server, mnist_files: Path, tmp_path: Path
):
    offer(*BAD)
    message = failure(tmp_path / "new")
    assert "train-images-idx3-ubyte.gz could not be downloaded" in message
    for behaviour, words in BAD.items():  # a reason for each mirror
        assert f"/{behaviour}/ " in message
        assert words in message.split(f"/{behaviour}/ ")[1].split("; http")[0]
    most = 2 * sources.KNOWN["mnist"].largest
    assert f"/endless/ sent something else: more than {most:,} bytes" in message
    assert "connect to the network and run this again" in message
    assert "Delete" not in message
    asked = [behaviour for behaviour, _ in server.asked if behaviour != "circle"]
    assert asked == [name for name in BAD if name not in ("refused", "circle")]

    offer("good")
    assert same_as(data.load("mnist", root=tmp_path / "new", strict=True), mnist_files)


def test_a_later_file_that_fails_undoes_the_earlier_ones(
    offer: Offer, server: Server, tmp_path: Path
):
    offer("good")
    server.files[f"{sources.IDX[3]}.gz"] = b"gone"
    assert f"{sources.IDX[3]}.gz could not be downloaded" in failure(tmp_path / "new")
    assert [name for _, name in server.asked[:3]] == [f"{name}.gz" for name in sources.IDX[:3]]


def test_a_right_archive_with_wrong_content(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    offer("good")
    hashes = sources.KNOWN["mnist"].hashes | {sources.IDX[2]: "0" * 64}
    changed = dataclasses.replace(sources.KNOWN["mnist"], hashes=hashes)
    monkeypatch.setitem(sources.KNOWN, "mnist", changed)
    message = failure(tmp_path / "new")
    assert "What was downloaded holds something else than the files of MNIST" in message
    assert ".download" not in message  # which is gone


def test_an_interrupted_download_leaves_nothing(
    offer: Offer, mnist_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    offer("good")
    root = tmp_path / "new"
    transfer = mirrors.transfer

    def interrupted(mirror: str, name: str, *rest) -> None:
        transfer(mirror, name, *rest)
        if sources.IDX[2] in name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mirrors, "transfer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.load("mnist", root=root)
    assert not list(root.iterdir())
    assert same_as(data.load("mnist", root=root, strict=True), mnist_files)


linux_fork = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def process(root: Path) -> multiprocessing.Process:
    """Another process that loads "mnist" as this one knows it."""
    arguments = {"name": "mnist", "root": root, "strict": True}
    other = multiprocessing.get_context("fork").Process(target=data.load, kwargs=arguments)
    other.start()
    return other


def wait_for(server: Server, behaviour: str) -> None:
    """Until this mirror has been asked."""
    deadline = time.monotonic() + 60
    while not any(found == behaviour for found, _ in server.asked):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@linux_fork
def test_a_killed_download_leaves_nothing_to_the_next(
    offer: Offer, server: Server, mnist_files: Path, tmp_path: Path
):
    root = tmp_path / "new"
    offer("stalls")
    killed = process(root)
    wait_for(server, "stalls")
    killed.kill()
    killed.join()
    assert list(root.iterdir())  # what it left
    (root / ".download-older/MNIST").mkdir(parents=True)  # and what an earlier version left

    offer("good")
    assert same_as(data.load("mnist", root=root, strict=True), mnist_files)
    assert [path.name for path in root.iterdir()] == ["MNIST"]


@linux_fork
def test_one_of_several_processes_downloads(
    offer: Offer, server: Server, mnist_files: Path, tmp_path: Path
):
    offer("good")
    root = tmp_path / "new"
    others = [process(root) for _ in range(3)]
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert same_as(data.load("mnist", root=root), mnist_files)
    assert sorted(server.asked) == sorted(("good", f"{name}.gz") for name in sources.IDX)
    assert [path.name for path in root.iterdir()] == ["MNIST"]


def test_who_waits_is_told(tmp_path: Path, capsys: pytest.CaptureFixture):
    held, entered = threading.Event(), threading.Event()

    def hold() -> None:
        with mirrors.locked(tmp_path / "lock"):
            entered.set()
            held.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    threading.Timer(0.2, held.set).start()
    with mirrors.locked(tmp_path / "lock", "Another process is at it."):
        assert held.is_set()
    thread.join()
    assert "Another process is at it." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_on_a_drive_without_locks_each_process_is_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def none(*_, **__) -> None:
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with mirrors.locked(tmp_path / "lock"), mirrors.locked(tmp_path / "lock", refusal="is busy"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert not list(tmp_path.iterdir())


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


def test_an_archive_cannot_write_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "evil").write_text("evil")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "evil", "../../evil-2")

    def transfer(mirror: str, name: str, md5: str, folder: Path, most: int) -> None:
        shutil.copy(tmp_path / "evil.tar.gz", folder / name)

    monkeypatch.setattr(mirrors, "transfer", transfer)
    with pytest.raises(FileNotFoundError, match="download failed"):
        data.load("cifar10", root=tmp_path / "a/b", strict=True)
    assert not list(tmp_path.rglob("evil-2"))


def test_a_folder_in_place_of_a_file_is_another_archive(tmp_path: Path, monkeypatch):
    (tmp_path / "f").mkdir()
    with tarfile.open(tmp_path / "odd.tar.gz", "w:gz") as tar:
        for name in sources.KNOWN["cifar10"].hashes:
            tar.add(tmp_path / "f", f"cifar-10-batches-py/{name}")

    def transfer(mirror: str, name: str, md5: str, folder: Path, most: int) -> None:
        shutil.copy(tmp_path / "odd.tar.gz", folder / name)

    monkeypatch.setattr(mirrors, "transfer", transfer)
    with pytest.raises(FileNotFoundError, match="holds something else than the files of"):
        data.load("cifar10", root=tmp_path / "a", strict=True)


def test_who_holds_a_lock_may_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def held(lock, timeout: float) -> None:
        raise filelock.Timeout(lock.lock_file)

    monkeypatch.setattr(filelock.FileLock, "acquire", held)
    lock = mirrors.locked(tmp_path / "lock", refusal="is busy")
    with pytest.raises(ValueError, match="Another process is busy"), lock:
        pass


def test_a_data_folder_that_is_a_file(offer: Offer, tmp_path: Path):
    offer("good")
    (tmp_path / "file").write_text("not a folder")
    for root in (tmp_path / "file", tmp_path / "file/data"):
        with pytest.raises(FileNotFoundError, match=r"download failed: .*file") as caught:
            data.load("mnist", root=root, strict=True)
        assert f"{root} must be a folder that can be written to" in str(caught.value)
        assert "network" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    offer("good", "good")

    def full(*_) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "move", full)  # pooch's last step
    message = failure(tmp_path / "new")
    assert os.strerror(number) in message
    assert "The disk is full (" in message
    assert "network" not in message


# --------------------------------------------------------------------------------------- samples


sample_of = functools.cache(sources.read_sample)


@pytest.mark.parametrize("name", sources.KNOWN)
def test_a_sample_has_as_many_of_each_class(name: str):
    parts, known = sample_of(name), sources.KNOWN[name]
    train = 5000 if name == "cifar10" else 6000
    assert parts.train_images.shape == (train, *known.shape)
    assert parts.test_images.shape == (1000, *known.shape)
    assert parts.train_images.dtype == torch.uint8
    assert parts.train_labels.dtype == torch.int64
    assert parts.train_labels.bincount().tolist() == [train // 10] * 10
    assert parts.test_labels.bincount().tolist() == [100] * 10
    assert len(parts.train_labels[:50].unique()) == 10  # in no order
    assert parts.classes == known.classes
    both = torch.cat([parts.train_images, parts.test_images]).flatten(1)
    assert len(both.unique(dim=0)) > 0.999 * len(both)


MEANS = {"mnist": (0.1307,), "fashion_mnist": (0.286,), "cifar10": (0.4914, 0.4822, 0.4465)}


@pytest.mark.parametrize("name", sources.KNOWN)
def test_a_sample_has_the_statistics_of_the_whole_set(name: str):
    mean, _ = data.statistics(sample_of(name).train_images)
    assert mean == pytest.approx(MEANS[name], abs=0.004)


def test_samples_are_small_and_their_origin_is_told():
    files = list(sources.SAMPLES.glob("*.npz"))
    assert len(files) == len(sources.KNOWN)
    assert sum(path.stat().st_size for path in files) < 12e6
    readme = (sources.SAMPLES / "README.md").read_text(encoding="utf-8")
    for path in files:
        assert f"`{path.name}`" in readme
        assert f"{path.stat().st_size:,}" in readme


@pytest.mark.parametrize("name", sources.KNOWN)
def test_a_damaged_sample_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / f"{name}.npz"
    for file in (path.name, "sha256.json"):
        shutil.copy(sources.SAMPLES / file, tmp_path)
    monkeypatch.setattr(sources, "SAMPLES", tmp_path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=rf"{name}\.npz is truncated or altered"):
        sources.read_sample(name)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}\.npz is missing"):
        sources.read_sample(name)


REAL = Path(os.environ.get("CNN_DATA") or "no data")


@pytest.mark.skipif(not (REAL / "MNIST/raw").is_dir(), reason="no MNIST in CNN_DATA")
def test_a_sample_s_images_are_the_set_s():
    whole, sample = data.load("mnist", strict=True), sample_of("mnist")
    known = {image.tobytes(): n for n, image in enumerate(whole.test.images.numpy())}
    places = [known[image.tobytes()] for image in sample.test_images.numpy()]
    assert torch.equal(whole.test.labels[places], sample.test_labels)


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
