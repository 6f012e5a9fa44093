"""Images as the notebooks use them: sets, sources in order, statistics, split, batches."""

import dataclasses
import os
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_input import random_states
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision import transforms

from common import data, machine, sources
from common.data import Batches, Images, ImageSet
from common.sources import mirrors, pictures


def random_images(*shape: int) -> torch.Tensor:
    """uint8 images (N, C, H, W) of random pixels, the same for a shape."""
    rng = np.random.default_rng(shape)
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


def make_set(images: torch.Tensor, classes: int = 4) -> ImageSet:
    """A set of these training images, with labels 0, 1, 2 … in turn, and two test images."""
    train = Images(images, torch.arange(len(images)) % classes)
    test = Images(random_images(2, *images.shape[1:]), torch.tensor([0, classes - 1]))
    return ImageSet("made", "test", train, test, tuple(map(str, range(classes))))


def numbered(n: int, side: int = 4) -> ImageSet:
    """A set whose images are flat: image i has the value i in every pixel."""
    return make_set(torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(n, 1, side, side))


def draw(images: ImageSet, batch_size: int = 16, epoch: int = 0, **options) -> torch.Tensor:
    """All training images of an epoch, in its order, normalised, on the CPU."""
    batches = Batches(images, "train", batch_size, device="cpu", **options)
    return torch.cat([x for x, _ in batches.epoch(epoch)])


def by_label(
    images: ImageSet, batch_size: int, epoch: int, **options
) -> tuple[torch.Tensor, torch.Tensor]:
    """An epoch's normalised images and labels, sorted by label."""
    batches = Batches(images, "train", batch_size, device="cpu", **options)
    x, y = map(torch.cat, zip(*batches.epoch(epoch), strict=True))
    return x[y.argsort()], y.sort().values


def pixels(images: ImageSet, x: torch.Tensor) -> torch.Tensor:
    """Normalised images back on the scale 0 … 255."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in images.statistics)
    return (x * std + mean) * 255


def numbers(images: ImageSet, x: torch.Tensor) -> list[int]:
    """The numbers of `numbered` images."""
    return pixels(images, x)[:, 0, 0, 0].round().int().tolist()


# ----------------------------------------------------------------------------------- ImageSet


def test_an_image_set_knows_its_shape_and_length():
    images = make_set(random_images(5, 3, 6, 7))
    assert images.shape == (3, 6, 7)
    assert len(images.train) == 5
    assert not images.stand_in


def broken_set(part: str, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Make a set of three classes in which this part holds these images."""
    good = Images(random_images(3, 1, 4, 4), torch.arange(3))
    parts = {"train": good, "test": good, part: Images(images, labels)}
    ImageSet("mine", "test", parts["train"], parts["test"], ("a", "b", "c"))


def test_a_sample_is_random_and_the_same_again():
    digits = data.load("digits")
    few = digits.sample(100)
    assert (len(few.train), len(few.test), few.stand_in) == (100, 100, True)
    assert len(few.train.labels.unique()) == 10
    assert torch.equal(few.train.images, digits.sample(100).train.images)
    assert not torch.equal(few.train.images, digits.sample(100, seed=1).train.images)
    assert not torch.equal(few.train.labels, digits.train.labels[:100])
    place = (digits.train.images == few.train.images[0]).flatten(1).all(1).nonzero()[0]
    assert digits.train.labels[place] == few.train.labels[0]
    assert len(digits.sample(10**6).test) == len(digits.test)
    with pytest.raises(ValueError, match="n=0; expected 1 or more"):
        digits.sample(0)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((0, 1, 4, 4), [], "{} images: the set is empty"),
        ((2, 1, 0, 4), [0, 1], "{} images: the set is empty"),
        ((2, 1, 4, 5), [0, 1], "test images are .*training images .*expected the same"),
        ((2, 1, 4, 4), [0, 3], "{} labels run from 0 to 3, but 3 classes allow 0 to 2"),
        ((2, 1, 4, 4), [-1, 2], "{} labels run from -1 to 2, but 3 classes allow 0 to 2"),
        ((2, 1, 4, 4), [0, 1, 2], "2 {} images but 3 labels"),
        ((2, 1, 4, 4), [[0], [1]], "2 {} images but 2 labels of the shape \\(2, 1\\)"),
    ],
)
def test_an_image_set_refuses_bad_labels(
    part: str, shape: tuple[int, ...], labels: list[int], message: str
):
    with pytest.raises(ValueError, match=f"mine: .*{message.format(part)}"):
        broken_set(part, torch.zeros(shape, dtype=torch.uint8), torch.tensor(labels).long())


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)]
)
def test_an_image_set_refuses_other_tensors(images: torch.Tensor):
    with pytest.raises(
        TypeError, match=r"train images must be uint8 \(N, C, H, W\), as .*, got torch\."
    ):
        broken_set("train", images, torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"as a torch\.Tensor, got (float32|uint8) \(2, "):
        broken_set("train", images.numpy(), torch.tensor([0, 1]))


@pytest.mark.parametrize("labels", [torch.tensor([0.0, 1]), torch.tensor([0, 1]).byte(), [0, 1]])
def test_an_image_set_refuses_labels_that_are_not_int64(labels: object):
    with pytest.raises(TypeError, match=r"test labels must be an int64 tensor, got (torch|list)"):
        broken_set("test", random_images(2, 1, 4, 4), labels)


# --------------------------------------------------------------------------------- statistics


def test_statistics_are_those_of_numpy_over_several_blocks():
    images = random_images(9000, 2, 16, 16)
    images[:, 1] //= 3  # another mean and spread in the second channel
    images[6000:] //= 2  # and in the last block
    mean, std = data.statistics(images)
    scaled = images.numpy() / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-5)


def test_statistics_are_of_the_training_images_only():
    images = make_set(torch.full((4, 1, 3, 3), 51, dtype=torch.uint8))
    assert images.mean == pytest.approx((0.2,))
    assert images.std == pytest.approx((0,), abs=1e-6)


# --------------------------------------------------------------------------------------- load


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No mirror answers; returns the list of addresses that were tried."""
    tried: list[str] = []

    def transfer(mirror: str, name: str, *_) -> None:
        tried.append(mirror + name)
        raise ConnectionError("<b>: Temporary failure in name resolution")

    monkeypatch.setattr(mirrors, "transfer", transfer)
    return tried


def write_class_folders(folder: Path, shape: tuple[int, ...], value: int) -> None:
    """One flat image for training and one for testing, of each of two classes."""
    for part in ("train", "test"):
        for name in ("this", "that"):
            (folder / part / name).mkdir(parents=True)
            image = Image.fromarray(np.full(shape, value, np.uint8))
            image.save(folder / part / name / "0.png")


def test_sources_come_in_order(
    mnist_files: Path,
    no_network: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    root = mnist_files
    write_class_folders(root / "mnist", (28, 28), 77)
    known = dataclasses.replace(sources.KNOWN["mnist"], mirrors=("http://127.0.0.1/",))
    monkeypatch.setitem(sources.KNOWN, "mnist", known)

    assert data.load("mnist").source == "MNIST files"

    (root / "MNIST").rename(root / "away")
    images = data.load("mnist")
    assert images.source == "class folders, PNG"
    assert images.train.images.unique().tolist() == [77]
    assert not images.stand_in
    assert not no_network  # nothing was asked of the network so far
    assert "***" not in capsys.readouterr().err

    (root / "mnist").rename(root / "gone")
    images = data.load("mnist")
    assert no_network == ["http://127.0.0.1/train-images-idx3-ubyte.gz"]
    assert images.source == "sample of MNIST"
    assert images.stand_in
    assert "***" in capsys.readouterr().err

    with pytest.raises(FileNotFoundError):
        data.load("mnist", strict=True)


@pytest.mark.parametrize("name", sources.KNOWN)
def test_a_sample_stands_in_for_any_set_and_says_so(
    name: str, no_network: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    images = data.load(name, root=tmp_path)
    known = sources.KNOWN[name]
    assert images.name == name
    assert images.stand_in
    assert images.source == f"sample of {known.title}"
    assert images.shape == known.shape
    assert images.classes == known.classes
    assert len(no_network) == len(known.mirrors)  # every mirror, once

    notice = capsys.readouterr().err
    assert notice.count("***") == 1
    for part in (
        f"A SAMPLE OF {known.title}",
        f"{len(images.train):,} training and 1,000 test images, real ones",
        f"{name} is not in {tmp_path} ({known.folder}/ or {name}/)",  # why
        "its download failed",
        *known.mirrors,
        "Temporary failure in name resolution",
        "To get all of it, connect to the network and run this again",  # how to get it
        "CNN_DATA names another one",
    ):
        assert part in notice
    assert not list(tmp_path.iterdir())


def test_strict_says_the_same_as_an_error(no_network: list[str], tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"cifar10 is not in .* its download failed") as e:
        data.load("cifar10", root=tmp_path, strict=True)
    assert "To get all of it, connect to the network" in str(e.value)
    assert isinstance(e.value.__cause__, OSError)


def test_the_notice_shows_its_reason_in_a_notebook(
    no_network: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shown = []
    monkeypatch.setattr(machine, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle))
    monkeypatch.setattr(
        sources,
        "read_sample",
        lambda name: sources.read_digits()._replace(classes=tuple("0123456789")),
    )
    monkeypatch.setitem(
        sources.KNOWN, "mnist", dataclasses.replace(sources.KNOWN["mnist"], mirrors=("<i>/",))
    )
    data.load("mnist", root=tmp_path)
    (bundle,) = shown
    assert "A SAMPLE OF MNIST" in bundle["text/html"]
    assert "&lt;i&gt;" in bundle["text/html"]  # as text: a browser hides unknown tags
    assert "<i>" in bundle["text/plain"]


def test_the_data_folder_is_cnn_data_unless_root_says_otherwise(
    mnist_files: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
):
    assert len(data.load("mnist").train) == 120
    assert data.load("mnist", root=tmp_path / "other").stand_in
    monkeypatch.setenv("CNN_DATA", str(tmp_path / "other"))
    assert data.load("mnist").stand_in
    assert len(data.load("mnist", root=str(mnist_files)).train) == 120


def test_a_folder_of_ones_own_by_path_or_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
):
    write_class_folders(tmp_path / "data/pets", (5, 6, 3), 10)
    write_class_folders(tmp_path / "here/pets", (5, 6, 3), 20)
    for name in (str(tmp_path / "here/pets"), tmp_path / "here/pets"):
        by_path = data.load(name)
        assert by_path.name == "pets"
        assert by_path.train.images.unique().tolist() == [20]
    by_name = data.load("pets", root=tmp_path / "data")
    assert by_name.train.images.unique().tolist() == [10]
    monkeypatch.chdir(tmp_path / "here")
    assert data.load("pets", root=tmp_path).train.images.unique().tolist() == [20]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.load("~/data/pets").train.images.unique().tolist() == [10]
    root = tmp_path / "data"
    for name in ("./pets", "../here/pets", str(tmp_path / "here/pets")):  # meant from here
        assert data.load(name, root=root).train.images.unique().tolist() == [20]
    monkeypatch.chdir(tmp_path / "here/pets")
    for name in (".", "../pets", Path(".")):
        found = data.load(name, root=root / "pets")
        assert found.train.images.unique().tolist() == [20]
        assert found.name == "pets"
    assert not no_network


@pytest.mark.parametrize("name", ["~nobody/x", "x" * 5000, "/nowhere"])
def test_a_name_of_nothing(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match="Unknown data set"):
        data.load(name, root=tmp_path)


@pytest.mark.parametrize("name", ["", "a\0b", None, 3, ["mnist"]])
def test_what_is_no_name(name: object):
    with pytest.raises(ValueError, match="expected a name or a folder's path, such as 'mnist'"):
        data.load(name)


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"pets\.zip is a file; expected a folder\. Unpack it"):
        data.load(str(tmp_path / "pets.zip"))


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_the_size_of_a_known_set_is_its_own(name: str, mnist_files: Path):
    with pytest.raises(ValueError, match=r"size=32 is for folders .*use Batches\(size=\)"):
        data.load(name, size=32)


@pytest.mark.parametrize(
    ("name", "near"),
    [("minst", "mnist"), ("MNIST", "mnist"), ("CIFAR-10", "cifar10"), ("fashion", "fashion_mnist")],
)
def test_an_unknown_name_gets_the_nearest_match(name: str, near: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"Unknown data set '{name}'") as caught:
        data.load(name, root=tmp_path)
    assert f"Did you mean '{near}'?" in str(caught.value)
    assert "Valid names: mnist, fashion_mnist, cifar10, digits." in str(caught.value)
    assert "A folder's path works as well" in str(caught.value)


def test_a_name_like_no_other_gets_no_match(tmp_path: Path):
    with pytest.raises(ValueError, match=r"Unknown data set 'zzz'\. Valid names"):
        data.load("zzz", root=tmp_path)


# -------------------------------------------------------------------------------------- split


def test_split_is_a_partition_of_the_share_asked_for():
    train, validation = data.split(1000)
    assert (len(train), len(validation)) == (800, 200)
    assert sorted(torch.cat([train, validation]).tolist()) == list(range(1000))
    assert len(data.split(10, 0.3)[1]) == 3
    for part in (train, validation):  # drawn from everywhere, not cut off one end
        assert 450 < part.double().mean() < 550


def test_split_depends_on_its_seed_alone():
    first = data.split(100, seed=1)
    torch.manual_seed(99)
    again = data.split(100, seed=1)
    other = data.split(100, seed=2)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[1].sort().values, other[1].sort().values)


@pytest.mark.parametrize(
    ("n", "share"),
    [
        (100, 0),
        (100, 1),
        (100, -0.2),
        (100, 1.5),
        (1, 0.5),
        (2, 0.2),
        (0, 0.2),
        (3, 0.9),
        (9, float("nan")),
    ],
)
def test_split_refuses_to_leave_a_part_empty(n: int, share: float):
    with pytest.raises(ValueError, match=f"validation={share} of {n} images leaves") as caught:
        data.split(n, share)
    if n < 2:
        assert "use more images" in str(caught.value)
    else:  # what it advises works
        advice = float(re.search(r"such as (0\.\d)", str(caught.value))[1])
        assert advice != share
        assert len(data.split(n, advice)[1]) > 0


@pytest.mark.parametrize("n", [-1, 2.5, float("nan"), "10", None])
def test_split_refuses_what_is_no_number_of_images(n: object):
    with pytest.raises(ValueError, match=f"n={n!r}; expected 0 or more, as a whole number"):
        data.split(n)


@pytest.mark.parametrize("share", ["0.2x", None, (0.2,)])
def test_split_refuses_what_is_no_share(share: object):
    with pytest.raises(ValueError, match="expected a share between 0 and 1"):
        data.split(10, share)


def test_numbers_of_numpy_and_torch_are_numbers():
    plain = data.split(50, 0.25, 3)
    for array in (np.array, torch.tensor):
        again = data.split(array(50), array(0.25), array(3))
        assert all(map(torch.equal, again, plain))
    images, options = numbered(20), {"size": 8, "seed": 1}
    expected = draw(images, 7, 2, **options)
    for array in (np.int32, torch.tensor):
        converted = {name: array(value) for name, value in options.items()}
        assert torch.equal(draw(images, array(7), array(2), **converted), expected)
    assert data.batch_sizes(np.int64(10), torch.tensor(4)) == [4, 4, 2]


# ---------------------------------------------------------------------------------- generator


def test_every_tuple_of_numbers_has_a_generator_of_its_own():
    keys = [(0,), (0, 0), (0, 0, 0), (1,), (1, 0), (0, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    streams = {key: torch.rand(3, generator=data.generator(*key)).tolist() for key in keys}
    assert len({tuple(stream) for stream in streams.values()}) == len(keys)
    assert torch.rand(3, generator=data.generator(0, 1)).tolist() == streams[0, 1]


# ----------------------------------------------------------------------------- Batches, values


def test_batches_are_normalised_as_by_hand():
    images = make_set(random_images(10, 3, 5, 6))
    by_hand = images.train.images.numpy() / 255
    mean, std = (f(by_hand, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    found = draw(images, batch_size=4)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, (by_hand - mean) / std, atol=1e-5)


def test_what_was_changed_in_place_moves_to_a_device_again():
    elsewhere = torch.device("meta")
    labels = torch.arange(4)
    there = data.on_device(labels, elsewhere)
    assert data.on_device(labels, elsewhere) is there
    labels += 1
    assert data.on_device(labels, elsewhere) is not there
    with torch.inference_mode():
        assert data.on_device(torch.arange(4), elsewhere).device == elsewhere


def test_test_images_are_normalised_with_the_training_statistics():
    images = make_set(random_images(10, 1, 4, 4) // 2)  # darker than the two test images
    x, y = next(iter(Batches(images, "test", 2, device="cpu")))
    mean, std = images.mean[0], images.std[0]
    np.testing.assert_allclose(x, (images.test.images.numpy() / 255 - mean) / std, atol=1e-5)
    assert y.tolist() == [0, 3]


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_equal_torchvisions_transforms(channels: int):
    images = make_set(random_images(12, channels, 9, 9))
    conventional = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(images.mean, images.std)]
    )
    arrays = images.train.images.permute(0, 2, 3, 1).numpy()
    expected = torch.stack([conventional(Image.fromarray(a.squeeze())) for a in arrays])
    assert (draw(images, batch_size=5) - expected).abs().max() < 1e-5


def test_a_flat_set_stays_finite():
    images = make_set(torch.full((4, 1, 3, 3), 255, dtype=torch.uint8))
    assert draw(images).isfinite().all()


@pytest.mark.parametrize("size", [8, 13, 28, 5, 3])
def test_resize_is_bilinear(size: int):
    images = make_set(random_images(6, 3, 8, 8))
    found = draw(images, size=size)
    # Resizing before or after normalising is the same: both are linear, and weights sum to 1.
    normal = draw(images)
    expected = interpolate(normal, (size, size), mode="bilinear", antialias=size < 8)
    assert found.shape == (6, 3, size, size)
    assert (found - expected).abs().max() < 1e-5

    # Pillow's own code, which rounds to whole levels after each of two passes
    levels = pixels(images, found).permute(0, 2, 3, 1)
    for array, level in zip(images.train.images.permute(0, 2, 3, 1).numpy(), levels, strict=True):
        by_pillow = Image.fromarray(array).resize((size, size), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(by_pillow) - level.numpy()).max() < 1.01


def test_images_that_are_not_square_are_smoothed_where_they_shrink():
    stripes = torch.zeros(2, 1, 16, 4, dtype=torch.uint8)
    stripes[:, :, ::4] = 200  # one row in four: a mean of 50, which sampling would miss
    images = make_set(stripes)
    levels = pixels(images, draw(images, size=6))
    assert levels.shape == (2, 1, 6, 6)
    assert levels.min() > 10
    assert levels.max() < 110


# ------------------------------------------------------------------------------ Batches, order


def test_without_a_seed_images_come_in_order():
    images = numbered(10)
    batches = Batches(images, "train", 4, device="cpu")
    found = list(batches)
    assert [len(y) for _, y in found] == [4, 4, 2]
    assert len(batches) == 3
    assert numbers(images, torch.cat([x for x, _ in found])) == list(range(10))
    assert torch.cat([y for _, y in found]).tolist() == [i % 4 for i in range(10)]


def test_every_image_comes_once_an_epoch_in_an_order_of_its_own():
    images = numbered(60)
    orders = [numbers(images, draw(images, epoch=e, seed=s)) for s in (0, 1) for e in (0, 1, 2)]
    assert all(sorted(order) == list(range(60)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    assert all(order != list(range(60)) for order in orders)


def test_labels_go_with_their_images():
    images = numbered(60)
    for x, y in Batches(images, "train", 7, seed=3, device="cpu").epoch(2):
        assert y.dtype == torch.int64
        assert y.tolist() == [number % 4 for number in numbers(images, x)]


def test_order_depends_on_seed_and_epoch_alone():
    images = numbered(60)
    expected = draw(images, batch_size=16, epoch=1, seed=5)
    torch.manual_seed(123)  # not on the global generator
    np.random.seed(123)
    assert torch.equal(draw(images, batch_size=16, epoch=1, seed=5), expected)
    for batch_size in (1, 7, 60, 100):  # not on the batch size
        assert torch.equal(draw(images, batch_size, epoch=1, seed=5), expected)
    batches = Batches(images, "train", 16, seed=5, device="cpu")
    for epoch in (0, 2):  # not on what ran before
        list(batches.epoch(epoch))
    assert torch.equal(torch.cat([x for x, _ in batches.epoch(1)]), expected)
    # nor on the augmentation
    flipped = draw(images, batch_size=16, epoch=1, seed=5, augment=("flip",))
    assert numbers(images, flipped) == numbers(images, expected)


def test_indices_choose_the_images():
    images = numbered(60)
    chosen = torch.tensor([50, 3, 17, 8])
    assert numbers(images, draw(images, indices=chosen)) == [50, 3, 17, 8]
    shuffled = numbers(images, draw(images, indices=chosen, seed=0, batch_size=2))
    assert sorted(shuffled) == [3, 8, 17, 50]
    assert len(Batches(images, "train", 2, indices=chosen, device="cpu")) == 2


def test_indices_come_in_many_forms():
    images = numbered(60)
    labels = images.train.labels
    for indices, expected in (
        ([50, 3, 17], [50, 3, 17]),
        ((50, 3), [50, 3]),
        (np.array([50, 3, 3]), [50, 3, 3]),
        (np.array([5, 6], np.uint8), [5, 6]),
        (torch.tensor([5, 6], dtype=torch.int32), [5, 6]),
        (range(10, 0, -3), [10, 7, 4, 1]),
        (np.arange(10)[::-4], [9, 5, 1]),
        (labels == 3, list(range(3, 60, 4))),
        ((labels == 3).numpy(), list(range(3, 60, 4))),
        ((labels == 3).tolist(), list(range(3, 60, 4))),
    ):
        assert numbers(images, draw(images, indices=indices)) == expected


def test_a_pass_goes_on_to_the_next_epoch():
    images = make_set(random_images(40, 3, 16, 16))
    for options in ({"seed": 3}, {"augment": ("crop",)}, {"seed": 3, "augment": ("flip",)}):
        batches = Batches(images, "train", 16, device="cpu", **options)
        passes = [torch.cat([x for x, _ in batches]) for _ in range(3)]
        for epoch, found in enumerate(passes):
            assert torch.equal(found, draw(images, epoch=epoch, **options))
        assert not torch.equal(passes[0], passes[1])
        first = torch.cat([x for x, _ in batches.epoch(0)])  # whatever was drawn before
        assert torch.equal(first, passes[0])
    batches = Batches(images, "train", 16, device="cpu")  # nothing is drawn: nothing differs
    assert torch.equal(*(torch.cat([x for x, _ in batches]) for _ in range(2)))


def test_the_global_generators_are_untouched():
    before = random_states()
    data.split(100)
    draw(numbered(30), seed=1, augment=data.AUGMENTATIONS, size=6)
    assert random_states() == before


def test_a_device_holds_one_copy_of_the_images_as_long_as_somebody_uses_them():
    images = make_set(random_images(50, 3, 16, 16))
    there = torch.device("meta")
    first, second = (Batches(images, "train", 16, device=there) for _ in range(2))
    assert first.images is second.images
    assert first.labels is second.labels
    assert Batches(images, "test", 16, device=there).images is not first.images
    assert Batches(images, "train", 16, device="cpu").images is images.train.images
    gone = weakref.ref(first.images)
    del first, second
    assert gone() is None


def test_a_set_lives_as_long_as_its_copy_so_that_no_other_takes_its_place():
    original = torch.zeros(3)
    copy, alive = data.on_device(original, torch.device("meta")), weakref.ref(original)
    del original
    assert alive() is not None
    del copy
    assert alive() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_batches():
    images = make_set(random_images(50, 3, 16, 16))
    options = {"seed": 1, "augment": data.AUGMENTATIONS, "size": 24}
    batches = Batches(images, "train", 16, device="cuda", **options)
    found = torch.cat([x.cpu() for x, _ in batches.epoch(2)])
    assert (found - draw(images, epoch=2, **options)).abs().max() < 1e-3


# ----------------------------------------------------------------------- Batches, augmentation


@pytest.mark.parametrize("kinds", [("crop",), ("flip",), ("colour",), data.AUGMENTATIONS])
def test_augmentation_of_an_image_depends_on_seed_epoch_and_image(kinds: tuple[str, ...]):
    images = make_set(random_images(40, 3, 16, 16), classes=40)
    expected, _ = by_label(images, 8, epoch=3, seed=2, augment=kinds)
    for batch_size in (1, 7, 40):
        found, _ = by_label(images, batch_size, epoch=3, seed=2, augment=kinds)
        assert torch.equal(found, expected)
    few = torch.tensor([30, 11, 5])  # nor does it matter which images come with it
    found, labels = by_label(images, 2, epoch=3, seed=2, augment=kinds, indices=few)
    assert labels.tolist() == [5, 11, 30]
    assert torch.equal(found, expected[labels])


@pytest.mark.parametrize("kind", data.AUGMENTATIONS)
def test_augmentation_is_drawn_anew_for_each_image_epoch_and_seed(kind: str):
    images = make_set(random_images(1, 3, 16, 16).expand(64, -1, -1, -1), classes=64)
    plain = draw(images)
    runs = [
        by_label(images, 16, epoch=epoch, seed=seed, augment=(kind,))[0]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for run in runs:
        assert len(run.unique(dim=0)) >= 2  # 64 times the same image, not the same result
        assert ((run - plain).abs().amax(dim=(1, 2, 3)) > 1e-5).sum() > 16
    assert not torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_flip_mirrors_about_half_of_the_images():
    images = make_set(random_images(1000, 3, 4, 6))
    found = draw(images, augment=("flip",))
    plain = draw(images)
    mirrored = (found == plain.flip(-1)).flatten(1).all(dim=1)
    unchanged = (found == plain).flatten(1).all(dim=1)
    assert (mirrored ^ unchanged).all()  # left to right, or not at all
    assert 450 < mirrored.sum() < 550


@pytest.mark.parametrize(
    ("kinds", "height", "width", "edge"),
    [
        (("crop",), 16, 16, 2),
        (("crop",), 10, 17, 2),
        (("crop",), 6, 7, 0),
        (("shift",), 32, 20, 2),  # a sixteenth
        (("shift",), 10, 17, 1),
        (("crop", "shift"), 16, 16, 2),  # the larger of the two
    ],
)
def test_crop_moves_by_at_most_an_eighth_and_shift_by_a_sixteenth(kinds, height, width, edge):
    image = torch.arange(1, height * width + 1).view(height, width).remainder(256).byte()
    images = make_set(torch.stack([image, image.flip(0)]).expand(800, 2, height, width))
    found = pixels(images, draw(images, augment=kinds)).round().byte()
    padded = torch.nn.functional.pad(images.train.images[0], (edge,) * 4)
    shifts = {
        (top, left): padded[:, top : top + height, left : left + width]
        for top in range(2 * edge + 1)
        for left in range(2 * edge + 1)
    }
    crops = torch.stack([*shifts.values()])
    hits = (found[:, None] == crops).flatten(2).all(2)  # an image, a shift
    assert (hits.sum(1) == 1).all()
    even, counts = 800 / len(shifts), hits.sum(0)
    assert (counts > even / 3).all()
    assert (counts < even * 2).all()


def draws(**columns: float) -> torch.Tensor:
    """Numbers that leave brightness, contrast and saturation alone, but for these columns."""
    names = ("top", "left", "flip", "brightness", "contrast", "saturation")
    return torch.tensor([[columns.get(name, 0.5) for name in names]])


def test_colour_does_what_its_three_numbers_say():
    x = random_images(1, 3, 6, 6) // 4 + 80  # far from black and white, so that nothing is cut
    plain = x.float()
    mean, grey = plain.mean(), plain.mean(dim=1, keepdim=True)
    for changes, expected in (
        ({}, plain),
        ({"brightness": 0.0}, plain * 0.8),
        ({"brightness": 1.0}, plain * 1.2),
        ({"contrast": 0.0}, mean + (plain - mean) * 0.8),
        ({"contrast": 1.0}, mean + (plain - mean) * 1.2),
        ({"saturation": 0.0}, grey + (plain - grey) * 0.8),
        ({"saturation": 1.0}, grey + (plain - grey) * 1.2),
    ):
        found = data.augment(x, draws(**changes), ("colour",))
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 1e-3, changes


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_stays_in_range(channels: int):
    images = make_set(random_images(200, channels, 6, 6))
    levels = pixels(images, draw(images, augment=("colour",)))
    assert levels.min() > -1e-3
    assert levels.max() < 255 + 1e-3
    assert (levels > 254.9).sum() > 100  # where the limit was needed

    flat = make_set(torch.full((300, channels, 4, 4), 100, dtype=torch.uint8))
    numbers = torch.rand(300, 6, generator=data.generator(0))
    levels = data.augment(flat.train.images, numbers, ("colour",))
    assert levels.min() > 79.9
    assert levels.min() < 83
    assert levels.max() > 117
    assert levels.max() < 120.1


def test_augmentation_leaves_the_set_alone():
    images = make_set(random_images(20, 3, 16, 16))
    before = images.train.images.clone()
    draw(images, augment=data.AUGMENTATIONS, size=20)
    assert torch.equal(images.train.images, before)


# ------------------------------------------------------------------------------------- memory


class LargestFloat(TorchDispatchMode):
    """Remembers the bytes of the largest float tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.nbytes = max(self.nbytes, leaf.untyped_storage().nbytes())
        return result


def test_the_set_never_exists_as_floats():
    # One image stored once, seen 600 times: 90 MB as bytes, 361 MB as floats, if anybody made them.
    image = random_images(1, 3, 224, 224)
    images = make_set(image.expand(600, -1, -1, -1))
    with LargestFloat() as largest:
        images.statistics  # noqa: B018
        assert 0 < largest.nbytes <= 2**24
    with LargestFloat() as largest:
        batches = Batches(images, "train", 4, seed=0, augment=("colour",), size=32, device="cpu")
        next(batches.epoch(0))
        assert 0 < largest.nbytes <= 4 * 4 * image.numel()  # a batch of 4, in 4 bytes a value


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"classes": "abc"}, TypeError, "classes='abc'; expected a row of names"),
        ({"classes": ("a", "b", "a", "c")}, ValueError, "two of the classes .* have the same name"),
        ({"train": torch.zeros(2)}, TypeError, r"train is a Tensor; expected Images\("),
        ({"test": None}, TypeError, r"test is a NoneType; expected Images\("),
    ],
)
def test_a_set_of_odd_parts_is_refused(changes: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        dataclasses.replace(numbered(8), **changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0; expected 1 or more"),
        ({"batch_size": -3}, "batch_size=-3; expected 1 or more"),
        ({"batch_size": 2.5}, "batch_size=2.5; expected 1 or more, as a whole number"),
        ({"batch_size": float("nan")}, "batch_size=nan; expected 1 or more, as a whole number"),
        ({"batch_size": "2"}, "batch_size='2'; expected 1 or more, as a whole number"),
        ({"batch_size": None}, "batch_size=None; expected 1 or more, as a whole number"),
        ({"size": 0}, "size=0; expected 1 or more"),
        ({"size": 2.0}, "size=2.0; expected 1 or more, as a whole number"),
        ({"size": 4097}, "size=4097; expected 1 to 4,096 pixels"),
        ({"size": (2, 2)}, "expected 1 or more, as a whole number"),
        ({"seed": -1}, "seed=-1; expected 0 or more"),
        ({"seed": 0.5}, "seed=0.5; expected 0 or more"),
        ({"part": "validation"}, "part='validation'; expected 'train' or 'test'"),
        ({"indices": torch.tensor([], dtype=torch.int64)}, "indices is empty"),
        ({"indices": []}, "indices is empty"),
        ({"indices": torch.zeros(4, dtype=torch.bool)}, "a mask without a True"),
        (
            {"indices": torch.ones(3, dtype=torch.bool)},
            r"bool \(3,\); .* a mask of 4",
        ),
        ({"indices": [0, 4]}, "indices run from 0 to 4; expected 0 to 3: 4 images"),
        ({"indices": [-1, 2]}, "indices run from -1 to 2; expected 0 to 3"),
        ({"indices": [0.0, 1.0]}, "float64 .*expected a row of whole numbers, or a mask"),
        ({"indices": [[0, 1]]}, r"\(1, 2\); expected a row of whole numbers"),
        ({"indices": [[0, 1], [2]]}, "expected a row of whole numbers, or a mask of 4"),
        ({"indices": 3}, "expected a row of whole numbers"),
        ({"indices": {0, 1}}, "expected a row of whole numbers"),
        ({"indices": "01"}, "expected a row of whole numbers"),
        ({"augment": ("flop",)}, "Unknown augmentation 'flop'. Did you mean 'flip'?"),
        (
            {"augment": ("flip", "rotate")},
            "Unknown augmentation 'rotate'.*: crop, shift, flip, colour",
        ),
        ({"augment": "flop"}, "Unknown augmentation 'flop'. Did you mean 'flip'?"),
        ({"augment": (3,)}, "Unknown augmentation 3"),
        ({"augment": True}, "Unknown augmentation True"),
        ({"share": (2, 2)}, r"share=\(2, 2\): .* expected \(rank, ranks\)"),
        ({"share": (-1, 2)}, "rank or ranks=-1; expected 0 or more"),
        ({"share": 2}, r"share=2; expected \(rank, ranks\)"),
        ({"batch_size": 1, "share": (0, 2)}, "1 images a batch cannot be shared by 2 processes"),
    ],
)
def test_batches_refuse_what_makes_no_sense(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Batches(**{"data": numbered(4), "part": "train", "batch_size": 2, **options})


@pytest.mark.parametrize("epoch", [-1, 0.5, "0", None])
def test_an_epoch_is_a_number_from_0(epoch: object):
    with pytest.raises(ValueError, match=f"epoch={epoch!r}; expected 0 or more"):
        Batches(numbered(4), "train", 2, device="cpu").epoch(epoch)


@pytest.mark.parametrize("numbers", [(-1,), (0, 0.5), ("0",), (None,)])
def test_a_generator_needs_whole_numbers(numbers: tuple):
    with pytest.raises(ValueError, match="expected 0 or more, as a whole number"):
        data.generator(*numbers)


@pytest.mark.parametrize(
    ("x", "draws", "kinds", "kind"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 6), ("flip",), TypeError),
        (random_images(2, 3, 4, 4)[0], torch.zeros(2, 6), ("flip",), TypeError),
        (random_images(2, 3, 4, 4), torch.zeros(3, 6), ("flip",), ValueError),
        (random_images(2, 3, 4, 4), torch.zeros(2, 5), ("flip",), ValueError),
        (random_images(2, 3, 4, 4), None, ("flip",), ValueError),
        (random_images(2, 3, 4, 4), torch.zeros(2, 6), ("flop",), ValueError),
        (random_images(2, 3, 0, 4), torch.zeros(2, 6), ("crop",), ValueError),
    ],
)
def test_augment_refuses_other_shapes(x: object, draws: object, kinds: tuple, kind: type):
    with pytest.raises(kind):
        data.augment(x, draws, kinds)


def test_a_draw_of_one_is_still_inside_the_image():
    x = random_images(2, 3, 16, 16)
    assert data.augment(x, torch.ones(2, 6), ("crop",)).shape == x.shape


# ------------------------------------------------------------------------- the real data, if any

REAL = Path(os.environ.get("CNN_DATA") or "no data")


def real(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (REAL / folder).is_dir(), reason=f"no {folder} in CNN_DATA")


@pytest.mark.parametrize(
    ("name", "mean", "std", "first"),
    [
        pytest.param("mnist", 0.1307, 0.3081, (5, 7), marks=real("MNIST/raw")),
        pytest.param("fashion_mnist", 0.2860, 0.3530, (9, 9), marks=real("FashionMNIST/raw")),
    ],
)
def test_real_files(name: str, mean: float, std: float, first: tuple[int, int]):
    images = data.load(name, strict=True)
    assert (len(images.train), len(images.test)) == (60_000, 10_000)
    assert images.shape == (1, 28, 28)
    assert images.mean[0] == pytest.approx(mean, abs=5e-5)
    assert images.std[0] == pytest.approx(std, abs=5e-5)
    assert (images.train.labels[0], images.test.labels[0]) == first


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class folders are read as if they held only their first 20 images."""
    whole = pictures.files_at
    monkeypatch.setattr(pictures, "files_at", lambda *place: whole(*place)[:20])


@real("cifar10")
@pytest.mark.usefixtures("few")
def test_real_cifar10_class_folders():
    images = data.load("cifar10", strict=True)
    assert images.classes == sources.KNOWN["cifar10"].classes  # alphabetical, as the original
    assert images.shape == (3, 32, 32)
    assert images.train.labels.tolist() == [c for c in range(10) for _ in range(20)]
    assert images.mean == pytest.approx((0.491, 0.482, 0.447), abs=0.04)
    assert images.std == pytest.approx((0.247, 0.243, 0.262), abs=0.04)
