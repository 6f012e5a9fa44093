"""A person's own pictures: folders and files as they come, and the cache of what was decoded."""

import os
import shutil
import sys
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import data, look, machine
from common.sources import pictures


def write_image(path: Path, array: np.ndarray, **options) -> None:
    """Write an image, (H, W) or (H, W, C), in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def flat(*colour: int, height: int = 7, width: int = 5) -> np.ndarray:
    """An image of one colour (H, W, 3), or of one grey (H, W)."""
    array = np.full((height, width, len(colour)), colour, np.uint8)
    return array if len(colour) > 1 else array[..., 0]


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


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said in notices."""
    said: list[str] = []
    monkeypatch.setattr(machine, "notice", said.append)
    return said


def refused(folder: Path, kind: type[Exception], *parts: str, **options) -> None:
    """Loading the folder fails with an error of this kind that names all of `parts`."""
    with pytest.raises(kind) as caught:
        data.load(str(folder), **options)
    for part in parts:
        assert part in str(caught.value)


# -------------------------------------------------------------------------------- class folders


def test_class_folders(pets: Path, notes: list[str]):
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
    assert not images.stand_in
    assert notes == []  # nothing was done that needs a word
    with Image.open(pets / "test/owl/0.png") as image:
        assert np.array_equal(images.test.images[1].permute(1, 2, 0), np.asarray(image))


def test_plain_class_folders_are_split_by_class(tmp_path: Path, notes: list[str]):
    for n in range(20):
        write_image(tmp_path / f"cat/{n}.png", flat(n, n, n))
    for n in range(7):
        write_image(tmp_path / f"dog/old/{n}.png", flat(100 + n, 0, 0))  # in a folder of its own
    images = data.load(tmp_path)
    assert images.classes == ("cat", "dog")
    assert images.train.labels.bincount().tolist() == [16, 6]
    assert images.test.labels.bincount().tolist() == [4, 1]
    values = [part.images[:, 0, 0, 0].tolist() for part in (images.train, images.test)]
    assert sorted(values[0] + values[1]) == [*range(20), *range(100, 107)]
    for part in (images.train, images.test):
        assert ((part.images[:, 0, 0, 0] >= 100).long() == part.labels).all()
    assert not images.stand_in
    (note,) = notes
    assert "There is no train/ and test/: a fifth of each class (5 of 27 pictures)" in note

    shutil.copytree(tmp_path, tmp_path.parent / "elsewhere/copy")
    again = data.load(tmp_path.parent / "elsewhere/copy")
    assert torch.equal(again.test.images, images.test.images)  # the same on every machine

    write_image(tmp_path / "cat/20.png", flat(20, 20, 20))  # one more picture moves few others
    more = set(data.load(tmp_path).test.images[:, 0, 0, 0].tolist())
    assert len(more & set(values[1])) >= 4


def letter_case_matters(folder: Path) -> bool:
    """Whether this file system has room for a name in small letters beside it in capitals."""
    (folder / "case").mkdir()
    matters = not (folder / "CASE").exists()
    (folder / "case").rmdir()
    return matters


def test_folders_of_one_part_side_by_side(pets: Path, notes: list[str]):
    train, test = ("TRAIN", "Test") if letter_case_matters(pets) else ("training", "testing")
    write_image(pets / train / "cat/9.png", flat(9, 9, 9))
    write_image(pets / train / "ape/8.png", flat(8, 8, 8))
    write_image(pets / test / "cat/7.png", flat(7, 7, 7))
    images = data.load(pets)
    assert images.classes == ("ape", "cat", "dog", "owl")
    assert images.train.labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 3]
    assert sorted(images.train.images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 4, 5, 8, 9]
    assert sorted(images.test.images[:, 0, 0, 0].tolist()) == [6, 7, 7]
    assert notes == []


def test_what_is_beside_the_parts_is_told_in_any_letter_case(pets: Path, notes: list[str]):
    if not letter_case_matters(pets):
        pytest.skip("Drafts and drafts are one folder here")
    for name in ("Drafts", "drafts"):
        write_image(pets / name / "0.png", flat(0, 0, 0))
    assert len(data.load(pets).train) == 6
    assert notes == ["pets: Left out, as no pictures of a class: 2 .png."]


def test_what_systems_leave_behind_is_skipped(pets: Path, notes: list[str]):
    for name in (
        "__MACOSX/train/cat/._0.png",
        ".DS_Store",
        "desktop.ini",
        "~$cat.png",
        "train/.ipynb_checkpoints/0.png",
        "train/__MACOSX/._x.png",
        "train/@eaDir/x.png",
        "train/Thumbs.db",
        "train/cat/._0.png",
        "train/cat/Thumbs.db",
        "train/cat/Desktop.ini",
        "train/cat/.DS_Store",
        "test/owl/@eaDir/0.png",
        "test/owl/.hidden.png",
        "lost+found/0.png",
        "System Volume Information/0.png",
        "train/FOUND.000/0.png",
        "test/found.017/0.png",
        "train/#recycle/0.png",
        "train/@Recycle/0.png",
    ):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(b"\0\5\x16\7")
    images = data.load(str(pets))
    assert images.classes == ("cat", "dog", "owl")
    assert (len(images.train), len(images.test)) == (6, 2)
    assert notes == []


def test_what_is_left_out_is_said(pets: Path, notes: list[str]):
    (pets / "readme.txt").write_text("mine")
    (pets / "train/notes.txt").write_text("mine")
    (pets / "train/cat/list.csv").write_text("mine")
    (pets / "train/cat/film.mov").write_bytes(b"\0\0\0\x14ftypqt  ")
    (pets / "train/cat/what").write_bytes(b"?")
    write_image(pets / "drafts/cat/0.png", flat(0, 0, 0))
    data.load(str(pets))
    (note,) = notes
    assert (
        note
        == "pets: Left out, as no pictures of a class: 1 .csv, 1 .mov, 1 .png, 2 .txt, 1 no ending."
    )


@pytest.mark.parametrize(("train", "test"), [("training", "testing"), ("Train", "TEST")])
def test_divided_sets_by_other_names(pets: Path, train: str, test: str, notes: list[str]):
    (pets / "train").rename(pets / train)
    (pets / "test").rename(pets / test)
    images = data.load(str(pets))
    assert (len(images.train), len(images.test)) == (6, 2)
    assert images.classes == ("cat", "dog", "owl")
    assert notes == []


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_pictures_for_validation_train(pets: Path, name: str, notes: list[str]):
    write_image(pets / name / "dog/0.png", flat(8, 8, 8))
    images = data.load(str(pets))
    assert images.train.labels.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert images.train.images[:, 0, 0, 0].tolist() == [2, 1, 0, 8, 3, 4, 5]
    assert len(images.test) == 2
    assert notes == [f"pets: {name}/ trains too: fit holds out pictures of its own for validation."]


def test_pictures_for_validation_test_where_nothing_else_does(pets: Path, notes: list[str]):
    (pets / "test").rename(pets / "valid")
    images = data.load(str(pets))
    assert images.test.images[:, 0, 0, 0].tolist() == [7, 6]
    assert notes == ["pets: There is no test/: valid/ takes its place."]


def test_a_folder_that_is_a_link_is_named(pets: Path, notes: list[str]):
    (pets / "train/cat/more").symlink_to(pets / "train/dog")
    assert len(data.load(str(pets)).train) == 6
    assert notes == ["pets: Left out, as no pictures of a class: 1 no ending."]


def test_a_picture_is_known_by_its_content(pets: Path):
    write_image(pets / "train/cat/1.PNG", flat(1, 1, 1))
    (pets / "train/cat/1.PNG").rename(pets / "train/cat/IMG_0001")
    write_image(pets / "train/cat/2.png", flat(2, 2, 2))
    (pets / "train/cat/2.png").rename(pets / "train/cat/2.jpg")  # as servers often have it
    images = data.load(str(pets))
    assert images.train.images[images.train.labels == 0][:, 0, 0, 0].tolist() == [2, 2, 1]


def test_a_class_may_be_called_train(tmp_path: Path):
    for name in ("car", "train"):
        for n in range(5):
            write_image(tmp_path / f"{name}/{n}.png", flat(n, n, n))
    assert data.load(tmp_path).classes == ("car", "train")


@pytest.mark.skipif(sys.platform != "linux", reason="such names exist on Linux")
def test_names_in_any_script_or_none(tmp_path: Path):
    for folder in (os.fsdecode(b"\xff\xfe"), "ünï 🐱", "a\nb"):
        for n in range(3):
            (tmp_path / "x.png").parent.joinpath(folder).mkdir(exist_ok=True)
            write_image(tmp_path / "x.png", flat(n, n, n))
            (tmp_path / "x.png").rename(tmp_path / folder / f"{folder}{n}.png")
    for _ in range(2):
        images = data.load(tmp_path)
        assert images.classes == ("a\nb", "ünï 🐱", r"\xff\xfe")
        assert (len(images.train), len(images.test)) == (6, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="such names exist on Linux")
def test_names_of_another_encoding_can_be_drawn(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    shown = []
    monkeypatch.setattr(look, "show", lambda fig, alt: shown.append(fig.canvas.draw()))
    folder = tmp_path / os.fsdecode(b"M\xfcll")
    for name in (b"J\xfcrgen", b"J\xe4rgen"):
        for n in range(3):
            write_image(tmp_path / "x.png", flat(n, n, n))
            (folder / os.fsdecode(name)).mkdir(parents=True, exist_ok=True)
            (tmp_path / "x.png").rename(folder / os.fsdecode(name) / f"{n}.png")
    (folder / os.fsdecode(name) / os.fsdecode(b"\xff.png")).write_bytes(b"")
    images = data.load(folder, skip_bad=True)
    assert images.classes == (r"J\xe4rgen", r"J\xfcrgen")
    assert images.name == r"M\xfcll"
    look.confusion(torch.tensor([[3, 1], [0, 2]]), images.classes, images.name)
    assert len(shown) == 1
    notes[0].encode()  # nor does a notice hold what no page can show


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_class_in_two_spellings_of_one_name(pets: Path, forms: tuple[str, str]):
    for part, form in zip(("train", "test"), forms, strict=True):
        write_image(pets / part / unicodedata.normalize(form, "Café") / "0.png", flat(9, 9, 9))
    images = data.load(pets)
    assert images.classes == (unicodedata.normalize("NFC", "Café"), "cat", "dog", "owl")
    assert images.test.labels.tolist() == [0, 1, 3]


@pytest.mark.parametrize("turn", [0, 9, 77])
def test_a_turn_that_does_not_exist_is_none(tmp_path: Path, turn: int):
    exif = Image.Exif()
    exif[0x0112] = turn
    save(tmp_path, "x.jpg", as_mode("RGB", RED), exif=exif)
    assert data.load(tmp_path).shape == (3, 7, 5)


def test_class_folder_layout_errors(pets: Path):
    layout = f"Expected pictures in {pets}/<class>/, or in {pets}/{{train,test}}/<class>/."
    (pets / "train/yak").mkdir()
    refused(pets, FileNotFoundError, f"{pets}/train/yak has no pictures", "remove the folder")
    (pets / "train/yak").rmdir()

    (pets / "test").rename(pets / "exam")
    refused(pets, FileNotFoundError, f"{pets}/test is missing", layout)
    (pets / "test").mkdir()
    refused(pets, FileNotFoundError, f"{pets}/test has no class folders", layout)
    refused(pets / "test", FileNotFoundError, f"{pets}/test has no class folders")


def test_test_pictures_without_training_pictures_are_refused(pets: Path):
    shutil.rmtree(pets / "train")
    refused(pets, FileNotFoundError, f"{pets}/train is missing", "{train,test}/<class>/")


def test_pictures_for_validation_and_testing_do_not_make_two_classes(pets: Path):
    (pets / "train").rename(pets / "valid")
    refused(pets, FileNotFoundError, f"{pets}/train is missing", "{train,test}/<class>/")


def test_pictures_that_lie_loose(tmp_path: Path):
    write_image(tmp_path / "0.png", flat(0, 0, 0))
    refused(tmp_path, FileNotFoundError, f"{tmp_path} has no class folders", "<class>/")


def test_one_class_is_refused(tmp_path: Path):
    for n in range(4):
        write_image(tmp_path / f"plain/cats/{n}.png", flat(n, n, n))
        write_image(tmp_path / f"parts/{('train', 'test')[n % 2]}/cats/{n}.png", flat(n, n, n))
    for name in ("plain", "parts"):
        refused(tmp_path / name, ValueError, "has one class only, 'cats'; expected two or more")


def test_a_class_with_one_picture_cannot_be_split(pets: Path):
    write_image(pets / "train/yak/0.png", flat(0, 0, 0))
    refused(pets / "train", ValueError, "cat has one picture only; expected two or more")


def test_a_class_in_test_but_not_in_train(pets: Path):
    write_image(pets / "test/yak/0.png", flat(0, 0, 0))
    expected = f"{pets}/test/yak: the class 'yak' is in test but not in train (cat, dog, owl)"
    refused(pets, ValueError, expected, "remove the folder")


# ------------------------------------------------------------------------------ sizes and colours


def test_unlike_sizes_are_reduced_and_cut_to_the_middle(pets: Path, notes: list[str]):
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = (10, 200, 30)  # the middle, which alone is seen
    write_image(pets / "train/cat/0.png", wide)
    write_image(pets / "train/owl/b.png", wide.transpose(1, 0, 2))
    images = data.load(str(pets))
    assert images.shape == (3, 64, 64)
    for picture in (images.train.images[0], images.train.images[4]):
        assert (picture.float().mean(dim=(1, 2)) - torch.tensor([10, 200, 30])).abs().max() < 3
    (note,) = notes
    assert "The pictures have 3 sizes: the shorter side is now 64 pixels" in note
    assert "the middle is cut out; load(..., size=) takes another size" in note

    assert data.load(str(pets), size=20).shape == (3, 20, 20)
    assert data.load(str(pets), size=np.int64(9)).shape == (3, 9, 9)
    assert data.load(str(pets)).shape == (3, 64, 64)
    refused(pets, ValueError, "size=0; expected 1 or more", size=0)


def test_the_note_counts_the_sizes_from_two_up(pets: Path, notes: list[str]):
    data.load(str(pets), size=20)
    write_image(pets / "train/cat/0.png", np.zeros((30, 40, 3), np.uint8))
    data.load(str(pets), size=20)
    one, two = notes
    assert "The pictures were made 20 x 20 pixels, cut out of the middle." in one
    assert "The pictures have 2 sizes: the shorter side is now 20 pixels" in two


@pytest.mark.parametrize(("width", "shape"), [(512, (3, 512, 512)), (513, (3, 64, 64))])
def test_large_pictures_of_one_size_are_reduced(tmp_path: Path, width: int, shape: tuple):
    for n in range(4):
        write_image(tmp_path / f"{'ab'[n % 2]}/{n}.jpg", flat(9, 9, 9, height=512, width=width))
    assert data.load(tmp_path).shape == shape


def test_a_reduced_picture_is_as_by_pillow(tmp_path: Path):
    rng = np.random.default_rng(0)
    big = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).resize((500, 640))
    big.save(tmp_path / "big.jpg", quality=95)
    found = (
        pictures.read_picture(tmp_path / "big.jpg", False, (32, 32)).transpose(1, 2, 0).astype(int)
    )
    with Image.open(tmp_path / "big.jpg") as image:
        expected = image.crop((0, 70, 500, 570)).resize((32, 32), Image.Resampling.BOX)
    assert np.abs(found - np.asarray(expected)).max() < 12


def test_grey_class_folders_have_one_channel(tmp_path: Path):
    for part, value in (("train", 40), ("test", 90)):
        for name in "ab":
            write_image(tmp_path / part / name / "0.png", flat(value, height=4, width=6))
    images = data.load(str(tmp_path))
    assert images.shape == (1, 4, 6)
    assert images.train.images.unique().tolist() == [40]
    assert images.test.images.unique().tolist() == [90]


def test_grey_and_colour_mixed_are_colour(pets: Path, notes: list[str]):
    write_image(pets / "train/owl/9.png", flat(77))
    images = data.load(str(pets))
    assert images.shape == (3, 7, 5)
    assert (images.train.images[4] == 77).all()
    assert "Some are grey, some in colour: all are used in colour." in notes[0]


def as_mode(mode: str, colour: tuple[int, int, int], **options) -> Image.Image:
    return Image.new("RGB", (5, 7), colour).convert(mode, **options)


def save(folder: Path, name: str, image: Image.Image, **options) -> None:
    """One picture a part and class, so that the folder can be loaded."""
    for part in ("train", "test"):
        for of in "ab":
            (folder / part / of).mkdir(parents=True, exist_ok=True)
            image.save(folder / part / of / name, **options)


RED, GREY, WHITE = (250, 10, 20), (90, 90, 90), (255, 255, 255)
SIXTEEN = np.full((7, 5), 90 * 257, np.uint16)
CLEAR = Image.fromarray(np.full((7, 5, 4), (1, 2, 3, 0), np.uint8))  # hidden colour, transparent
HALF = Image.fromarray(np.full((7, 5, 4), (0, 0, 0, 51), np.uint8))  # a fifth of black on white


@pytest.mark.parametrize(
    ("name", "image", "options", "channels", "value"),
    [
        ("x.webp", as_mode("RGB", RED), {"lossless": True}, 3, RED),
        ("x.gif", as_mode("RGB", RED), {}, 3, RED),
        ("x.gif", as_mode("L", GREY), {}, 1, GREY),
        ("x.bmp", as_mode("RGB", RED), {}, 3, RED),
        ("x.tif", as_mode("RGB", RED), {}, 3, RED),
        ("x.tiff", as_mode("CMYK", RED), {}, 3, RED),
        ("x.jpg", as_mode("CMYK", RED), {"quality": 100, "subsampling": 0}, 3, RED),
        ("x.jpeg", as_mode("L", GREY), {"quality": 100}, 1, GREY),
        ("x.png", as_mode("P", RED, palette=Image.Palette.ADAPTIVE, colors=4), {}, 3, RED),
        ("x.png", as_mode("L", GREY).convert("P"), {}, 1, GREY),
        ("x.png", as_mode("1", WHITE), {}, 1, WHITE),
        ("x.png", as_mode("LA", GREY), {}, 1, GREY),
        ("x.png", as_mode("RGBA", RED), {}, 3, RED),
        ("x.png", CLEAR, {}, 3, WHITE),
        ("x.webp", CLEAR, {"lossless": True, "exact": True}, 3, WHITE),
        ("x.png", HALF, {}, 3, (204, 204, 204)),
        ("x.png", CLEAR.convert("LA"), {}, 1, WHITE),
        ("x.png", as_mode("L", GREY), {"transparency": 90}, 1, WHITE),
        ("x.png", as_mode("RGB", RED), {"transparency": RED}, 3, WHITE),
        ("x.gif", CLEAR, {}, 3, WHITE),
        ("x.png", Image.fromarray(SIXTEEN), {}, 1, GREY),
        ("x.png", Image.fromarray(np.full((7, 5), 65_535, np.uint16)), {}, 1, WHITE),
        ("x.tif", Image.fromarray(SIXTEEN), {}, 1, GREY),
        ("x.pgm", Image.fromarray(SIXTEEN), {}, 1, GREY),
        ("x.ppm", as_mode("RGB", RED), {}, 3, RED),
        ("x.tga", as_mode("RGB", RED), {}, 3, RED),
        ("x.ico", as_mode("RGB", RED).resize((16, 16)), {}, 3, RED),
        ("x.jp2", as_mode("RGB", RED), {}, 3, RED),
    ],
)
def test_every_kind_of_picture(
    tmp_path: Path, name: str, image: Image.Image, options: dict, channels: int, value: tuple
):
    path = tmp_path / name
    image.save(path, **options)
    found = pictures.read_picture(path, pictures.read_header(path).grey, None)
    assert len(found) == channels
    assert np.abs(found.mean(axis=(1, 2)) - np.array(value[:channels])).max() < 3


def test_a_grey_of_16_bits_that_stands_for_transparent_is_white(tmp_path: Path):
    """Pillow does not write such a PNG: its chunk, after the header's 33 bytes, is put in."""
    values = np.full((6, 6), 90 * 257, np.uint16)
    values[:, 3:] += 1  # the same in 8 bits, but not transparent
    for name in ("a/0", "a/1", "b/0", "b/1"):
        write_image(tmp_path / f"{name}.png", values)
        raw = (tmp_path / f"{name}.png").read_bytes()
        chunk = b"tRNS" + (90 * 257).to_bytes(2, "big")
        chunk = b"\0\0\0\2" + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        (tmp_path / f"{name}.png").write_bytes(raw[:33] + chunk + raw[33:])
    images = data.load(tmp_path).train.images
    assert images.shape[1:] == (1, 6, 6)
    assert images[0, 0, 0].tolist() == [255] * 3 + [90] * 3


def test_the_first_frame_of_a_film_is_used(tmp_path: Path):
    second = as_mode("RGB", (0, 0, 255))
    for name in ("x.gif", "x.webp", "x.tif", "x.png"):
        save(tmp_path / name, name, as_mode("RGB", RED), save_all=True, append_images=[second])
        found = data.load(tmp_path / name).train.images[0].float().mean(dim=(1, 2))
        assert (found - torch.tensor(RED)).abs().max() < 12


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_photographs_are_held_upright(tmp_path: Path, name: str, turn: int):
    """The camera's turn is undone: the upright picture is dark but for its upper left corner."""
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:16, :16] = 250
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(turn)
    stored = Image.fromarray(upright)
    stored = stored if method is None else stored.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / name
    stored.save(path, exif=exif)
    assert pictures.read_header(path)[:2] == (32, 48)
    for size, shape, corner in ((None, (3, 48, 32), 16), (16, (3, 16, 16), 4)):
        picture = pictures.read_picture(path, False, size and (size, size))
        assert picture.shape == shape
        assert picture[:, :corner, : 2 * corner - 2 if size else corner].mean() > 200
        assert picture[:, -corner:, -corner:].mean() < 30


# --------------------------------------------------------------------------------- bad pictures


def test_a_format_for_which_pillow_calls_another_program_is_no_picture(tmp_path: Path):
    as_mode("RGB", RED).save(tmp_path / "x.eps")
    with pytest.raises(ValueError, match="Pillow finds no image in it"):
        pictures.read_picture(tmp_path / "x.eps", False, None)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_a_broken_image_is_named_wherever_it_breaks(pets: Path, ending: str):
    whole = pets.parent / f"whole.{ending}"
    write_image(whole, np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8))
    path = pets / f"train/dog/3.{ending}"
    raw = whole.read_bytes()
    assert pictures.read_picture(whole, False, None).shape == (3, 7, 5)
    for length in range(0, len(raw) - 40, max(9, len(raw) // 40)):  # the last bytes hold no pixels
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r".{8}"):  # in Pillow's words
            pictures.read_picture(path, False, None)
    for content in (b"", b"not an image at all", raw[: len(raw) // 2]):
        path.write_bytes(content)
        refused(pets, ValueError, f"train/dog/3.{ending}: ", "Replace or remove")


def test_all_bad_pictures_are_named_at_once(pets: Path, notes: list[str]):
    (pets / "train/cat/empty.png").touch()
    (pets / "train/dog/text.jpg").write_text("no image")
    (pets / "test/owl/photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (pets / "train/cat/raw.nef").write_bytes(b"?")
    (pets / "test/owl/link.png").symlink_to("nowhere.png")
    raw = (pets / "train/owl/1.png").read_bytes()
    (pets / "train/owl/1.png").write_bytes(raw[:60])
    bad = (
        "train/cat/empty.png: it is empty",
        "train/dog/text.jpg: Pillow finds no image in it",
        "test/owl/photo.HEIC: Pillow does not read HEIC; export it as JPEG, or install pillow-heif",
        "train/cat/raw.nef: Pillow does not read NEF; export it as JPEG",
        "test/owl/link.png: it is no file, or a link to none",
        "train/owl/1.png: ",
    )
    for _ in range(2):
        refused(pets, ValueError, "6 of 13 files cannot be read as an image", *bad, "skip_bad=True")
    assert notes == []

    images = data.load(str(pets), skip_bad=True)
    assert images.train.images[:, 0, 0, 0].tolist() == [2, 1, 0, 4, 5]
    assert images.train.labels.tolist() == [0, 1, 1, 2, 2]
    assert images.test.labels.tolist() == [0, 2]
    (note,) = notes
    assert "Left out, since they cannot be read" in note
    assert all(line in note for line in bad)


@pytest.mark.parametrize(("n", "rest"), [(50, []), (51, ["  … and 1 more"])])
def test_of_many_bad_pictures_fifty_are_named(n: int, rest: list[str]):
    lines = pictures.reasons({f"{i}.png": "it is empty" for i in range(n)}).splitlines()
    assert lines == [f"  {i}.png: it is empty" for i in range(50)] + rest


def test_a_bad_picture_decides_nothing_of_the_others(tmp_path: Path, notes: list[str]):
    for n in range(4):
        write_image(tmp_path / f"{'ab'[n % 2]}/{n}.png", np.full((9, 9), n, np.uint8))
    assert data.load(str(tmp_path)).shape == (1, 9, 9)
    write_image(tmp_path / "a/bad.png", flat(1, 2, 3, height=40, width=50))
    raw = (tmp_path / "a/bad.png").read_bytes()
    (tmp_path / "a/bad.png").write_bytes(raw[:60])  # its header is whole
    images = data.load(str(tmp_path), skip_bad=True)
    assert images.shape == (1, 9, 9)
    assert "sizes" not in notes[-1]
    assert "a/bad.png" in notes[-1]


def test_a_class_of_bad_pictures_only(pets: Path):
    (pets / "train/cat/0.png").write_bytes(b"")
    refused(pets, ValueError, "train/cat/0.png: it is empty")
    refused(pets, FileNotFoundError, "train/cat has no pictures", skip_bad=True)


def test_nothing_but_bad_pictures(tmp_path: Path):
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    refused(tmp_path, ValueError, "3 of 3 files cannot be read")
    refused(tmp_path, FileNotFoundError, "a has no pictures", skip_bad=True)


@pytest.mark.parametrize("bits", [np.int32, np.float32])
def test_values_without_a_known_white_are_refused(pets: Path, bits: type):
    write_image(pets / "train/owl/9.tif", np.full((7, 5), 20_000, bits))
    refused(pets, ValueError, "train/owl/9.tif: ", "save it with 8 or 16")


def test_decompression_bombs_are_refused_by_name(pets: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    for name, side in (("9", 1500), ("99", 2100)):  # a warning of Pillow's, and its error
        Image.new("1", (side, side)).save(pets / f"train/owl/{name}.png")
    refused(
        pets,
        ValueError,
        "2 of 10 files",
        "train/owl/9.png: it has more than 2 megapixels; make it smaller",
        "train/owl/99.png: it has more than 2 megapixels",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux")
def test_large_photographs_need_little_memory(tmp_path: Path):
    """12 megapixels as JPEG, 50 as PNG: decoded one at a time, at about the size needed."""
    photo = Image.new("RGB", (4000, 3000), RED)
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        path = tmp_path / f"{name}.jpg"
        shutil.copy(tmp_path / "a/0.jpg", path) if name != "a/0" else photo.save(path)
    Image.new("RGB", (8660, 5774), RED).save(tmp_path / "a/2.png", compress_level=1)
    machine.reset_peak_memory()
    before = machine.peak_memory_bytes()
    images = data.load(tmp_path)
    for _ in data.Batches(images, "train", 128, seed=0, augment=("crop", "flip"), device="cpu"):
        pass
    assert images.shape == (3, 64, 64)
    assert machine.peak_memory_bytes() - before < 400e6  # the PNG's own pixels are 150 MB


def test_logs_are_not_flooded(pets: Path, capsys: pytest.CaptureFixture):
    data.load(str(pets))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpeg_source_tells_the_quality(tmp_path: Path, quality: int):
    array = flat(200, 30, 90, height=16, width=16)
    save(tmp_path, "0.jpg", Image.fromarray(array), quality=quality)
    images = data.load(str(tmp_path))
    assert images.source == f"class folders, JPEG quality {quality} (lossy)"
    gap = images.train.images[0].permute(1, 2, 0).numpy().astype(int) - array
    assert np.abs(gap).max() < 25


def test_the_source_names_every_format(pets: Path):
    write_image(pets / "train/cat/9.jpg", flat(1, 2, 3), quality=80)
    write_image(pets / "train/cat/9.bmp", flat(1, 2, 3))
    assert data.load(pets).source == "class folders, BMP, JPEG quality 80 (lossy), PNG"


# ---------------------------------------------------------------------------------------- cache


def test_class_folders_are_decoded_once(pets: Path, monkeypatch: pytest.MonkeyPatch):
    first = data.load(str(pets))
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "read_picture", lambda *_: pytest.fail("decoded again"))
        again = data.load(str(pets))
    assert torch.equal(again.train.images, first.train.images)
    assert torch.equal(again.test.labels, first.test.labels)

    write_image(pets / "train/cat/0.png", flat(99, 99, 99))  # a changed file
    assert (data.load(str(pets)).train.images[0] == 99).all()
    write_image(pets / "train/cat/0.png", flat(97, 97, 97))  # of the same size
    os.utime(pets / "train/cat/0.png", (0, 0))  # surely another time, however coarse the clock
    assert (data.load(str(pets)).train.images[0] == 97).all()
    write_image(pets / "train/cat/1.png", flat(98, 98, 98))  # one more
    assert len(data.load(str(pets)).train) == 7
    (pets / "train/dog").rename(pets / "train/ape")  # another name, another order
    assert data.load(str(pets)).train.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_what_was_bad_is_tried_again(pets: Path, monkeypatch: pytest.MonkeyPatch):
    """After new rights, or where a reader was installed, the file itself is as it was."""
    bad, read = pets / "train/cat/0.png", pictures.read_picture

    def denied(path: Path, *how) -> np.ndarray:
        if path == bad:
            raise ValueError("Permission denied")
        return read(path, *how)

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "read_picture", denied)
        refused(pets, ValueError, "train/cat/0.png: Permission denied")
        write_image(pets / "train/cat/1.png", flat(1, 1, 1))
        assert len(data.load(pets, skip_bad=True).train) == 6
    assert len(data.load(pets).train) == 7


def test_a_new_reader_reads_what_was_no_picture(pets: Path, monkeypatch: pytest.MonkeyPatch):
    write_image(pets / "train/cat/1.webp", flat(1, 1, 1))
    (pets / "train/cat/1.webp").rename(pets / "train/cat/IMG_0001")
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "FORMATS", ["PNG"])
        assert len(data.load(pets).train) == 6
    assert len(data.load(pets).train) == 7


def test_a_cache_grows_no_leftovers(pets: Path, runs: Path):
    for n in range(3):
        write_image(pets / "train/cat/0.png", flat(n, n, n))
        os.utime(pets / "train/cat/0.png", (n, n))
        data.load(str(pets))
    assert sorted(path.suffix for path in (runs / "cache").iterdir()) == [".json", ".npy"]


def damages(raw: bytes) -> list[bytes | None]:
    """Ways in which a file is damaged: gone, empty, cut off, longer, one bit flipped."""
    flipped = [bytearray(raw) for _ in range(5)]
    for n, copy in enumerate(flipped):
        copy[(len(raw) - 1) * n // 4] ^= 1 << n
    return [None, b"", raw[: len(raw) // 2], raw[:-1], raw + b"\0", *map(bytes, flipped)]


@pytest.mark.parametrize("ending", [".npy", ".json"])
def test_a_damaged_cache_is_decoded_anew(pets: Path, runs: Path, ending: str, notes: list[str]):
    (pets / "train/cat/what").write_bytes(b"?")
    first = data.load(str(pets))
    expected = first.train.images.clone()
    (path,) = (runs / "cache").glob(f"*{ending}")
    raw = path.read_bytes()
    for damaged in damages(raw):
        path.unlink()  # the first set's mapping stays as it is
        if damaged is not None:
            path.write_bytes(damaged)
        found = data.load(str(pets))
        assert torch.equal(found.train.images, expected)
        assert torch.equal(found.train.labels, first.train.labels)
        assert path.read_bytes() == raw  # and whole again
    assert len(set(notes)) == 1


def test_without_a_cache_the_images_are_used_and_it_is_said(
    pets: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    expected = data.load(str(pets)).train.images
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CNN_RUNS", str(tmp_path / "file"))
    assert torch.equal(data.load(str(pets)).train.images, expected)
    (note,) = notes
    assert "The decoded images cannot be kept for the next time" in note
    assert str(tmp_path / "file") in note


def test_a_full_disk_is_not_fatal(
    pets: Path, runs: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    def disk_full(file, array: np.ndarray) -> None:
        file.write(b"some")
        raise OSError(28, "No space left on device")

    decoded = []
    decode = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda *a: decoded.append(1) or decode(*a))
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", disk_full)
        images = data.load(str(pets))
    assert images.train.images[:, 0, 0, 0].tolist() == [2, 1, 0, 3, 4, 5]
    assert decoded == [1]  # once is enough
    assert "No space left on device" in notes[0]
    assert not list((runs / "cache").iterdir())
    assert len(data.load(str(pets)).train) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the mappings on Linux")
def test_decoded_images_are_mapped(pets: Path, runs: Path):
    images = data.load(str(pets)).train.images
    (path,) = runs.glob("cache/pets-*.npy")
    assert str(path) in Path("/proc/self/maps").read_text()
    images[0] = 255 - images[0]  # in memory alone
    assert not torch.equal(data.load(str(pets)).train.images[0], images[0])
