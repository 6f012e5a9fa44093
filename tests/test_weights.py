"""Trained weights: what ships, what comes back, what is refused; and what is on a picture."""

import hashlib
import json
import math
import os
import sys

import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn

from common import data, look, machine, predict, weights, zoo
from common.__main__ import main
from common.train import evaluate

SHIPPED = weights.shipped()
ABOUT = {
    "network": "lenet5_cifar", "options": {}, "digest": "x", "accuracy": 0.5, "dataset": "cifar10",
    "source": "a test", "classes": [f"class {i}" for i in range(10)], "channels": 3,
    "mean": [0.5] * 3, "std": [0.25] * 3, "image_size": 32, "seed": 0,
}  # fmt: skip


@pytest.fixture
def kept(tmp_path):
    """(file, model) of an untrained net that was kept."""
    torch.manual_seed(0)
    model = zoo.build("lenet5_cifar").eval()
    path = tmp_path / "net.safetensors"
    weights.write(model, path, ABOUT)
    return path, model


# ------------------------------------------------------------------------------- what ships


def test_what_ships_is_small_and_summed():
    files = sorted(weights.WEIGHTS.glob("*"))
    assert sum(file.stat().st_size for file in files) < 20e6
    sums = dict(reversed(line.split()) for line in weights.SUMS.read_text().splitlines())
    assert set(sums) == {f"{name}.safetensors" for name in SHIPPED}
    for name, expected in sums.items():
        assert hashlib.sha256((weights.WEIGHTS / name).read_bytes()).hexdigest() == expected


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The sample of CIFAR-10 that ships, as who has neither the set nor a network gets it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNN_DATA", str(tmp_path_factory.mktemp("nothing")))
        patch.setenv("CNN_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr("common.sources.download", lambda *_: (_ for _ in ()).throw(OSError("no")))
        return data.load("cifar10")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_net_is_as_accurate_as_recorded(name, images):
    """On the 1,000 test images that ship as well, one of which another CPU may judge otherwise."""
    model = weights.trained(name)
    assert images.classes == tuple(model.about["classes"])
    batches = data.Batches(images, "test", 250, size=model.about["image_size"], device="cpu")
    mean, std = (torch.tensor(model.about[key]).view(-1, 1, 1) for key in ("mean", "std"))
    batches.shift, batches.scale = 255 * mean, 255 * std
    found = evaluate(model, batches, "fp32")
    assert abs(round(1000 * (found.accuracy - model.about["sample_accuracy"]))) <= 1
    logits = torch.tensor(model.about["first_logits"])
    x, _ = next(iter(batches))
    with torch.no_grad():
        torch.testing.assert_close(model(x[:10]), logits, atol=1e-3, rtol=0)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="Unknown trained network 'lenet5_cifr'"):
        weights.trained("lenet5_cifr")


def test_a_damaged_file_of_the_course_is_named(monkeypatch, tmp_path, kept):
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path)
    monkeypatch.setattr(weights, "SUMS", tmp_path / "SHA256SUMS")
    path, _ = kept
    path.rename(tmp_path / "lenet5_cifar.safetensors")
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  lenet5_cifar.safetensors\n")
    with pytest.raises(ValueError, match=r"lenet5_cifar\.safetensors is damaged"):
        weights.trained("lenet5_cifar")


# ------------------------------------------------------------------------- writing and reading


def test_round_trip(kept):
    path, model = kept
    again = weights.from_file(path)
    assert again.about == ABOUT
    assert not again.training
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))


def test_half_precision_is_half_the_size(kept, tmp_path):
    path, model = kept
    small = tmp_path / "small.safetensors"
    weights.write(model, small, ABOUT, half=True)
    assert small.stat().st_size < 0.55 * path.stat().st_size
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(weights.from_file(small)(x), model(x), atol=1e-2, rtol=1e-2)


def test_a_weight_that_is_no_number_is_not_written(tmp_path, kept):
    _, model = kept
    with torch.no_grad():
        model.fc3.weight[0, 0] = 1e6  # too large for fp16
    with pytest.raises(ValueError, match="no finite number in fp16"):
        weights.write(model, tmp_path / "new.safetensors", ABOUT, half=True)
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("cut", ValueError), ("text", ValueError), ("empty", ValueError),
        ("folder", FileNotFoundError), ("no metadata", ValueError),
    ],
)  # fmt: skip
def test_what_is_no_weights_file_is_named(kept, tmp_path, damage, kind):
    path, _ = kept
    content = path.read_bytes()
    bad = tmp_path / "bad.safetensors"
    if damage == "folder":
        bad.mkdir()
    elif damage == "no metadata":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, bad)
    else:
        bad.write_bytes({"cut": content[:500], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(kind, match=r"bad\.safetensors"):
        weights.from_file(bad)


@pytest.mark.parametrize(
    "odd",
    [
        None, [], "about", 3, {}, {"options": None}, {"options": []}, {"classes": None},
        {"std": [0.0]}, {"mean": [0.5, 0.5]}, {"image_size": 0}, {"image_size": 10**7},
        {"image_size": [28]}, {"image_size": "28"}, {"channels": 1}, {"network": 5},
    ],
    ids=str,
)  # fmt: skip
def test_odd_metadata_is_named(kept, tmp_path, odd):
    about = ABOUT | odd if odd and isinstance(odd, dict) else odd
    weights.write(kept[1], tmp_path / "odd.safetensors", about)
    for ask in (weights.metadata, weights.from_file):
        with pytest.raises(ValueError, match=r"odd\.safetensors is no weights file"):
            ask(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("size", [(4, 9), (9, 4), (1, 50)])
def test_a_picture_may_be_four_pixels_small(kept, tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "small.png")
    net = weights.from_file(kept[0])
    if min(size) >= 4:
        assert len(predict.classes(net, tmp_path / "small.png")) == 3
    else:
        with pytest.raises(ValueError, match=r"1 x 50 pixels; expected 4 or more each way"):
            predict.classes(net, tmp_path / "small.png")


def test_a_net_for_images_that_are_not_square(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.about = ABOUT | {"image_size": [24, 48]}
    Image.new("RGB", (100, 70)).save(tmp_path / "black.png")
    assert predict.prepared(net, tmp_path / "black.png").shape == (1, 3, 24, 48)


def test_a_file_of_another_network_says_what_differs(kept):
    path, _ = kept
    with pytest.raises(ValueError, match=r"of another network: conv1\.weight is \(6, 3, 5, 5\)"):
        weights.load_into(zoo.build("lenet5_bn"), path)


# ---------------------------------------------------------------------------------- ImageNet's


@pytest.mark.parametrize("name", weights.IMAGENET)
def test_imagenet_s_forms_are_ours(name):
    theirs, options = weights.IMAGENET[name]
    ours = zoo.build_on_meta(name, in_channels=3, num_classes=1000, **options)
    with torch.device("meta"):
        other = torchvision.models.get_model(theirs, weights=None)
    shapes = [[v.shape for v in net.state_dict().values()] for net in (ours, other)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18", "densenet121"])
def test_imagenet_weights_go_into_our_own_class(name, monkeypatch):
    """Torchvision's own model, randomly initialised, stands for the download."""
    theirs, _ = weights.IMAGENET[name]
    torch.manual_seed(0)
    other = torchvision.models.get_model(theirs, weights=None).eval()
    kind = type(torchvision.models.get_model_weights(theirs).DEFAULT)
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: other.state_dict())
    ours = weights.pretrained(name)
    assert ours.begun_with == "ImageNet"  # or a run that goes on from it would pass for another
    assert len(ours.about["classes"]) == 1000
    assert ours.about["mean"] == (0.485, 0.456, 0.406)
    assert ours.about["std"] == (0.229, 0.224, 0.225)
    assert ours.about["image_size"] == 224
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other(x), rtol=1e-5, atol=1e-5)


def test_without_a_network_the_file_and_its_place_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(OSError, match=r"resnet18-\w+\.pth elsewhere and put it at .*checkpoints"):
        weights.pretrained("resnet18")


def test_another_file_in_imagenet_s_place_is_not_opened(monkeypatch, tmp_path):
    class Runs:
        def __reduce__(self):
            return pytest.fail, ("the file's code ran",)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    path = tmp_path / "checkpoints" / url.rsplit("/", 1)[-1]
    path.parent.mkdir()
    torch.save({"x": Runs()}, path)
    with pytest.raises(OSError, match=r"has the hash \w{8}, not f37072fd: delete it"):
        weights.pretrained("resnet18")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"in_channels": 3}}, "options name in_channels"),
        ({"mean": [float("nan")] * 3}, "do not belong together"),
    ],
)
def test_odd_metadata_is_refused(tmp_path, change, words):
    net = weights.trained("lenet5_cifar")
    weights.write(net, tmp_path / "odd.safetensors", net.about | change)
    with pytest.raises(ValueError, match=words):
        weights.from_file(tmp_path / "odd.safetensors")


def test_a_weight_that_is_no_number_is_refused(tmp_path):
    net = weights.trained("lenet5_cifar")
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    state["fc3.bias"] = state["fc3.bias"] * math.nan
    safetensors.torch.save_file(
        state, tmp_path / "odd.safetensors", {"about": json.dumps(net.about)}
    )
    with pytest.raises(ValueError, match=r"fc3\.bias holds a value that is no finite number"):
        weights.from_file(tmp_path / "odd.safetensors")


def test_no_imagenet_weights_for_others():
    with pytest.raises(ValueError, match="Unknown network with ImageNet weights 'lenet5'"):
        weights.pretrained("lenet5")


# ------------------------------------------------------------------------------ what is on it


class Brightest(nn.Module):
    """Answers the brightest channel: what a picture looks like is then what it says."""

    def __init__(self):
        super().__init__()
        self.about = ABOUT | {"classes": ["red", "green", "blue"], "mean": [0] * 3, "std": [1] * 3}
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        return self.scale * x.mean(dim=(2, 3))


def test_a_picture_is_seen_upright_and_in_its_middle(tmp_path):
    """Blue above red, stored on its side with a note to turn it; the ends are cropped away."""
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (0, 0, 45, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    x = predict.prepared(Brightest(), tmp_path / "turned.jpg")
    assert x.shape == (1, 3, 32, 32)
    top, bottom = x[0, :, :14].mean((1, 2)), x[0, :, 18:].mean((1, 2))
    assert {int(top.argmax()), int(bottom.argmax())} == {0, 2}
    assert int(top.argmax()) == 2


@pytest.mark.parametrize("form", ["png", "palette", "cmyk", "alpha"])
def test_every_form_of_a_picture(tmp_path, form):
    image = Image.new("RGB", (50, 40), "green")
    path = tmp_path / f"p.{form}"
    if form == "palette":
        image.convert("P").save(path := tmp_path / "p.png")
    elif form == "cmyk":
        image.convert("CMYK").save(path := tmp_path / "p.jpg")
    elif form == "alpha":
        image.putalpha(255)
        image.save(path := tmp_path / "p.png")
    else:
        image.save(path)
    name, share = predict.classes(Brightest(), path, 1)[0]
    assert name == "green"
    assert 0.5 < share <= 1


def test_an_animated_gif_and_a_large_picture(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert predict.classes(Brightest(), tmp_path / "a.gif", 1)[0][0] == "red"
    Image.new("RGB", (8000, 6250), "blue").save(tmp_path / "large.jpg")  # 50 megapixels
    assert predict.classes(Brightest(), tmp_path / "large.jpg", 1)[0][0] == "blue"


def test_the_command_line(kept, tmp_path, capsys):
    """Bad files are named, the others are still answered."""
    path, _ = kept
    folder = tmp_path / "pictures"
    (folder / "inside").mkdir(parents=True)
    Image.new("RGB", (40, 50), "red").save(folder / "inside/good.png")
    (folder / "bad.jpg").write_text("hello")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    assert main(["predict", str(path), str(folder), str(tmp_path / "missing.jpg")]) == 1
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.startswith(f"{folder / 'inside/good.png'}: class ")
    assert line.count("%") == 3
    assert "bad.jpg: Pillow finds no image in it" in err
    assert "dot.png: it has 1 x 1 pixels" in err
    assert "missing.jpg: " in err
    assert main(["predict", str(path), str(folder / "inside"), "--top", "1"]) == 0
    assert main(["predict", "resnt18", str(folder)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_holds_no_picture_keeps_no_other_from_its_answer(kept, tmp_path, capsys):
    path, _ = kept
    for name in ("empty", "phone", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty/notes.txt").write_text("mine")
    (tmp_path / "phone/a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "phone/b.nef").write_bytes(b"?")
    Image.new("RGB", (40, 50), "red").save(tmp_path / "good/c.png")
    given = [str(tmp_path / name) for name in ("empty", "phone", "x" * 300, "good")]
    assert main(["predict", str(path), *given]) == 1
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.startswith(f"{tmp_path / 'good/c.png'}: class ")
    empty, heic, nef, long = err.splitlines()
    assert empty.startswith(f"{given[0]}: it is a folder without pictures; name a picture")
    assert heic.startswith(f"{tmp_path / 'phone/a.HEIC'}: Pillow ")
    assert nef == f"{tmp_path / 'phone/b.nef'}: Pillow does not read NEF; export it as JPEG"
    assert long.startswith(given[2])


def test_a_folder_that_cannot_be_read_is_one_error_line(kept, tmp_path, capsys, monkeypatch):
    path, _ = kept
    (tmp_path / "locked").mkdir()
    Image.new("RGB", (40, 50), "red").save(tmp_path / "a.png")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("common.sources.pictures.files_at", denied)
    assert main(["predict", str(path), str(tmp_path / "locked"), str(tmp_path / "a.png")]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'a.png'}: class ")
    assert err == f"{tmp_path / 'locked'}: [Errno 13] Permission denied\n"


@pytest.mark.skipif(sys.platform != "linux", reason="such file names exist on Linux")
def test_names_that_cannot_be_printed_are_answered(tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    names = [f"J\udcfcrgen \ud83d {i}" for i in range(10)]
    weights.write(zoo.build("lenet5_cifar").eval(), path, ABOUT | {"classes": names})
    Image.new("RGB", (40, 50), "red").save(tmp_path / "a.png")
    odd = tmp_path / os.fsdecode(b"\xff.png")
    (tmp_path / "a.png").rename(odd)
    (tmp_path / os.fsdecode(b"\xfe.png")).write_bytes(b"")
    assert main(["predict", str(path), str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(rf"{tmp_path}/\xff.png: J\udcfcrgen \ud83d ")
    assert err == rf"{tmp_path}/\xfe.png: it is empty" + "\n"


def test_what_the_command_line_trains_can_predict(tmp_path, capsys):
    words = ["train", "lenet5", "--dataset", "digits", "--epochs", "1", "--train-images", "100"]
    assert main(words) == 0
    (kept,) = (machine.runs_folder() / "weights").glob("*")
    Image.new("L", (40, 30), 200).save(tmp_path / "grey.png")
    assert main(["predict", str(kept), str(tmp_path / "grey.png")]) == 0
    assert json.loads(json.dumps(weights.metadata(kept)))["classes"] == list("0123456789")


def test_the_notebook_function_shows_picture_heat_and_probabilities(monkeypatch, kept, tmp_path):
    shown, asked, heat_maps = [], [], look.heat_maps
    monkeypatch.setattr(look, "show", lambda fig, alt: shown.append((fig, alt)))
    monkeypatch.setattr(
        look, "heat_maps", lambda *args: asked.append(args[2].tolist()) or heat_maps(*args)
    )
    path, _ = kept
    Image.new("RGB", (40, 50), "red").save(tmp_path / "a.png")
    net = predict.network(str(path))
    predict.show_prediction(net, tmp_path / "a.png", top=2)
    ((fig, alt),) = shown
    best = predict.classes(net, tmp_path / "a.png", 2)
    assert all(f"{name} {share:.0%}" in alt for name, share in best)
    assert "a.png" in alt
    assert fig.get_suptitle() == f"{net.about['network']} sees {best[0][0]}"
    picture, heat, bars = fig.axes
    assert len(picture.images) == 1
    assert len(heat.images) == 2  # the picture, and what lies over it
    assert [net.about["classes"][i] for i in asked[0]] == [best[0][0]]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(
        [100 * s for _, s in best], abs=0.05
    )
