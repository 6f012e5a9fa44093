"""What random input does to the data: the right result, or an error that the docstring names."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from random_input import mostly, odd, only, random_states, rarely, robust, small

from common import data
from common.data import Batches, Images, ImageSet


@robust
@given(
    n=mostly(rarely(small, st.integers(3, 200))),
    validation=mostly(rarely(st.floats(-0.2, 1.2), st.floats(0.1, 0.9))),
    seed=mostly(st.integers(0, 2**40)),
)
def test_split(n: object, validation: object, seed: object):
    with only(ValueError):
        parts = data.split(n, validation, seed)
        assert sorted(torch.cat(parts).tolist()) == list(range(int(n)))
        assert min(map(len, parts)) > 0


IMAGES = torch.arange(12 * 2 * 8 * 6).remainder(256).byte().view(12, 2, 8, 6)
BEFORE = IMAGES.clone()
MADE = ImageSet(
    "made", "test", *[Images(IMAGES, torch.arange(12) % 3)] * 2, classes=("a", "b", "c")
)
numbers = st.lists(st.integers(0, 11), min_size=1, max_size=14)
masks = st.lists(st.booleans(), min_size=12, max_size=12)
choices = rarely(
    st.one_of(odd, st.lists(st.integers(-1, 12)), st.lists(st.booleans(), min_size=11)),
    st.one_of(
        *(usual.map(kind) for usual in (numbers, masks) for kind in (list, np.array, torch.tensor)),
        st.none(),
        st.builds(range, st.integers(0, 5), st.integers(6, 12), st.sampled_from([1, 3])),
    ),
)
kinds = rarely(
    st.one_of(st.just("flop"), odd),
    st.lists(st.sampled_from(data.AUGMENTATIONS), max_size=3).map(tuple) | st.just("crop"),
)


@robust
@given(
    part=rarely(odd, st.sampled_from(["train", "test"])),
    batch_size=mostly(rarely(small, st.integers(1, 14))),
    indices=choices,
    size=st.one_of(st.none(), mostly(st.integers(1, 12))),
    seed=st.one_of(st.none(), mostly(st.integers(0, 99))),
    augment=kinds,
    share=rarely(odd, st.sampled_from([(0, 1), (0, 1), (0, 2), (1, 2), (2, 3), (2, 2)])),
    epoch=mostly(st.integers(0, 99)),
)
def test_batches(part: object, batch_size: object, epoch: object, **options: object):
    with only(ValueError):
        batches = Batches(MADE, part, batch_size, device="cpu", **options)
        found = list(batches.epoch(epoch))
        assert len(found) == len(batches)
        size = batches.size
        for x, y in found:
            assert x.shape == (len(y), 2, *((size, size) if size else (8, 6)))
            assert x.dtype == torch.float32
            assert x.isfinite().all()
        if batches.ranks == 1:
            labels = torch.cat([y for _, y in found])
            expected = MADE.train.labels[batches.indices]
            assert torch.equal(labels.sort().values, expected.sort().values)
    assert torch.equal(IMAGES, BEFORE)


shapes = rarely(
    st.lists(st.integers(0, 5), max_size=5).map(tuple),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.just(4)),
)
dtypes = rarely(st.sampled_from([torch.int64, torch.float32, torch.bool]), st.just(torch.uint8))
tensors = rarely(odd, st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), shapes, dtypes))


@st.composite
def parts(draw: st.DrawFn, tensors: st.SearchStrategy = tensors) -> Images:
    """Images with labels, which mostly fit."""
    images = draw(tensors)
    n = len(images) if isinstance(images, torch.Tensor) and images.ndim else 3
    n += draw(rarely(st.integers(-1, 1), st.just(0)))
    low, high = draw(rarely(st.just((-1, 4)), st.just((0, 1))))
    values = draw(st.lists(st.integers(low, high), min_size=max(n, 0), max_size=max(n, 0)))
    labels = torch.tensor(values)
    return Images(images, draw(rarely(st.one_of(odd, st.just(labels)), st.just(labels.long()))))


@robust
@given(
    train=parts(),
    test=parts(),
    same=rarely(st.just(False), st.just(True)),
    classes=rarely(st.integers(0, 1), st.integers(2, 4)).map(lambda n: tuple("abcd"[:n])),
)
def test_image_set(train: Images, test: Images, same: bool, classes: tuple[str, ...]):
    with only(ValueError, TypeError):
        images = ImageSet("mine", "test", train, train if same else test, classes)
        assert images.shape == tuple(images.test.images.shape[1:])
        assert min(len(images.train), *images.shape) > 0
        assert len(images.mean) == images.shape[0]
        assert all(0 <= value <= 1 for value in images.mean + images.std)
        list(Batches(images, "test", 2, device="cpu"))


@robust
@given(
    x=tensors,
    draws=rarely(
        st.lists(st.lists(st.floats(), min_size=6, max_size=6), max_size=4).map(torch.tensor),
        st.integers(0, 99).map(lambda seed: torch.rand(4, 6, generator=data.generator(seed))),
    ),
    fits=rarely(st.just(False), st.just(True)),
    kinds=kinds,
)
def test_augment(x: object, draws: torch.Tensor, fits: bool, kinds: object):
    if fits and isinstance(x, torch.Tensor) and x.ndim:
        draws = draws[: len(x)]
    with only(ValueError, TypeError):
        before = x.clone() if isinstance(x, torch.Tensor) else x
        found = data.augment(x, draws, kinds)
        assert found.shape == x.shape
        assert torch.equal(x, before)
        if found.is_floating_point() and draws.isfinite().all():
            assert found.min() >= 0
            assert found.max() <= 255


PLAIN = [f"{folder}{n}.png" for folder in ("a/", "b/", "b/in/", "c/") for n in range(4)]
PARTS = [
    f"{part}/{folder}/{n}.png" for part in ("train", "test") for folder in "ab" for n in (0, 1)
]
ODD = [
    *("x.png", "x.txt", "train/x", "val/a/x.png", "test/c/x.png", "a/._0.png", "a/Thumbs.db"),
    *("train/a/x.txt", "train/a/y.heic", "test/b/z.gif", "b/y.heic", "b/x", "__MACOSX/a/._0.png"),
]


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, str]:
    """Files and what they hold: class folders with or without train/ and test/, and odd files."""
    good = draw(st.sampled_from([PLAIN, PARTS]))
    chosen = draw(st.lists(st.sampled_from(good), min_size=5, unique=True))
    chosen += draw(st.lists(rarely(st.sampled_from(PLAIN), st.sampled_from(ODD)), max_size=2))
    return {name: draw(rarely(contents, st.sampled_from(["grey", "colour"]))) for name in chosen}


contents = st.sampled_from(["grey", "grey", "colour", "wide", "empty", "text", "cut"])


def pictures() -> dict[str, bytes]:
    """What a file may hold, by name."""
    from io import BytesIO

    made = {"empty": b"", "text": b"no image"}
    for name, mode, size in (
        ("grey", "L", (4, 3)),
        ("colour", "RGB", (4, 3)),
        ("wide", "RGB", (9, 3)),
    ):
        file = BytesIO()
        Image.new(mode, size, 99).save(file, "PNG")
        made[name] = file.getvalue()
    return made | {"cut": made["grey"][:45]}


PICTURES = pictures()


@robust
@given(
    found=layouts(),
    size=st.one_of(st.none(), mostly(st.integers(1, 9))),
    skip_bad=st.booleans(),
)
def test_load(
    tmp_path_factory: pytest.TempPathFactory, runs: Path, found: dict, size: object, skip_bad: bool
):
    root = tmp_path_factory.mktemp("set")
    for name, content in found.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PICTURES[content])
    before = sorted(root.rglob("*"))
    with only(ValueError, FileNotFoundError):
        images = data.load(root, size=size, skip_bad=skip_bad)
        assert len(images.classes) > 1
        assert len(images.train) + len(images.test) <= len(found)
        assert {99} >= set(images.train.images.unique().tolist()) - {0}
    assert sorted(root.rglob("*")) == before
    kept = sorted(path.suffix for path in runs.glob("cache/*"))
    assert kept in ([], [".json", ".npy"])
    shutil.rmtree(runs / "cache", ignore_errors=True)


@robust
@given(
    name=st.one_of(st.text(), st.text("~/.\0abc"), st.text("ab", min_size=300, max_size=400), odd),
    strict=st.booleans(),
)
def test_load_by_name(tmp_path_factory: pytest.TempPathFactory, name: object, strict: bool):
    if isinstance(name, str) and "\0" not in name:
        assume(name not in data.set_names() and not os.path.exists(os.path.expanduser(name)))
    before = random_states()
    with pytest.raises(ValueError, match=r"(?s).{20}"):
        data.load(name, root=tmp_path_factory.getbasetemp() / "nothing", strict=strict)
    assert random_states() == before
