"""Fixtures that several test files use."""

import copy
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from random_input import outcomes
from torch.nn.modules import module

from common import sources


@pytest.fixture(autouse=True, scope="session")
def digits_read_once() -> Iterator[None]:
    """scikit-learn unpacks a table each time that it is asked for its digits."""
    digits = sklearn.datasets.load_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", lambda: copy.deepcopy(digits))
        yield


@pytest.fixture(autouse=True)
def runs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and caches of a test go to a folder of its own."""
    folder = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("CNN_RUNS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_hook_stays() -> Iterator[None]:
    """`fit` and its advice look at layers by hooks for all modules, and must take them away."""
    yield
    assert not module._global_forward_hooks
    assert not module._global_forward_pre_hooks


@pytest.fixture(autouse=True)
def some_input_is_accepted(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test of random input shows little where everything is refused."""
    outcomes.clear()
    yield
    if request.node.get_closest_marker("random") and outcomes["tried"] > 20:
        assert outcomes["accepted"] > outcomes["tried"] / 20


@pytest.fixture
def mnist_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with MNIST's four files, small: 120 training and 40 test images.

    "mnist" expects these very files and has no mirrors; `CNN_DATA` names the folder. A bright bar
    in noise tells the class, so that a net can learn them.
    """
    root = tmp_path / "data"
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n, (images_name, labels_name) in ((120, sources.IDX[:2]), (40, sources.IDX[2:])):
        labels = (np.arange(n) * 7 % 10).astype(np.uint8)
        images = rng.integers(0, 100, (n, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6] = 255
        write_idx(folder / images_name, images)
        write_idx(folder / labels_name, labels)
    hashes = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sources.IDX
    }
    small = dataclasses.replace(sources.KNOWN["mnist"], hashes=hashes, mirrors=())
    monkeypatch.setitem(sources.KNOWN, "mnist", small)
    monkeypatch.setenv("CNN_DATA", str(root))
    return root


def write_idx(path: Path, array: np.ndarray) -> None:
    """Two zero bytes, 8 for uint8, the number of dimensions; each dimension; the values."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())
