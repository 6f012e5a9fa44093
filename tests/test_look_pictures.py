"""Pictures: their text, their size, their place."""

import base64
import io
import re
import sys

import pytest
import torch
from PIL import Image

from common import look
from common.config import Config
from common.run import Run


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, in order."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def history(epochs: int, best: float = 0.9) -> Run:
    rows = [
        {
            "epoch": e + 1, "train_loss": 2 / (e + 1), "train_accuracy": 0.1 + 0.8 * e / epochs,
            "val_loss": 2.1 / (e + 1), "val_accuracy": best - 0.1 / (e + 1), "lr": 1e-3,
            "seconds": 1.0, "images_per_s": 100.0,
        }
        for e in range(epochs)
    ]  # fmt: skip
    return Run(None, None, Config(), epochs=rows, best_epoch=epochs)


def picture(bundle: dict[str, str]) -> tuple[Image.Image, int]:
    """The image in a bundle, decoded, and its size in bytes."""
    (encoded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', bundle["text/html"])
    png = base64.b64decode(encoded)
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image, len(png)


def test_a_figure_carries_its_text():
    fig, ax = look.figure()
    ax.plot([1, 2], [3, 4])
    bundle = look.bundle(fig, 'loss < 2 & "falling"')
    assert set(bundle) == {"text/html", "text/plain"}
    assert 'alt="loss &lt; 2 &amp; &quot;falling&quot;"' in bundle["text/html"]
    assert bundle["text/html"].startswith("<figure")
    assert bundle["text/plain"] == '[figure: loss < 2 & "falling"]'


def test_a_curve_is_small():
    fig, alt = look.curves_with_alt(history(30), "A run")
    image, size = picture(look.bundle(fig, alt))
    assert size < 60_000
    assert image.mode == "P"
    assert 10 < len(image.getcolors()) <= 128
    assert image.size == (630, 288)  # 7 x 3.2 inches at 90 dots an inch


def test_a_curve_says_what_it_shows():
    fig, alt = look.curves_with_alt(history(4), "A run")
    assert alt.startswith("A run. Two curves by epoch. After epoch 4: training loss 0.500")
    assert "validation loss 0.525" in alt
    assert "training accuracy 70.0%, validation accuracy 87.5%" in alt
    loss, accuracy = fig.axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    assert list(loss.lines[1].get_ydata()) == pytest.approx([2.1, 1.05, 0.7, 0.525])
    assert list(accuracy.lines[1].get_ydata()) == pytest.approx([80, 85, 86.66667, 87.5])
    assert list(accuracy.lines[0].get_xdata()) == [1, 2, 3, 4]


def test_a_live_curve_is_one_display(monkeypatch):
    calls = []

    class Handle:
        def update(self, bundle, raw):
            calls.append(("update", bundle, raw))

    def display(bundle, raw, display_id):
        assert display_id is True
        calls.append(("display", bundle, raw))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    curve = look.LiveCurve()
    for epochs in (1, 2, 3):
        curve.update(history(epochs))
    assert [kind for kind, _, _ in calls] == ["display", "update", "update", "update"]
    assert all(raw for _, _, raw in calls)
    assert calls[0][1] == {"text/plain": "The curves appear after the first epoch."}
    assert "After epoch 3" in calls[-1][1]["text/plain"]
    assert picture(calls[-1][1])[1] < 60_000


def test_figures_do_not_pile_up(shown):
    """pyplot keeps every figure it makes until it is closed; the course does not use it."""

    def kept():
        pyplot = sys.modules.get("matplotlib.pyplot")
        return pyplot.get_fignums() if pyplot else []

    before = kept()
    fig, _ = look.figure()
    look.show(fig, "nothing")
    assert len(shown) == 1
    assert kept() == before


def test_the_confusion_matrix_names_the_worst_mistake(shown):
    matrix = torch.tensor([[50, 3, 0], [1, 40, 0], [2, 7, 30]])  # row: truth
    look.confusion(matrix, ("shirt", "coat", "bag"), "Test images")
    assert shown[0]["text/plain"] == (
        "[figure: Test images. Most frequent mistake: bag taken for coat, 7 times.]"
    )
    assert picture(shown[0])[1] < 60_000


def test_a_confusion_matrix_without_mistakes(shown):
    look.confusion(torch.diag(torch.tensor([5, 4])), ("a", "b"), "Perfect")
    assert len(shown) == 1


def test_compared_curves_name_each_run(shown):
    look.compare_curves({"a": history(2, 0.9), "b": history(3, 0.8)}, "Two")
    assert "Last values of the validation accuracy: a 85, b 76.7." in shown[0]["text/plain"]
    look.compare_curves({"a": history(2)}, "Loss", "train_loss")
    assert "training loss: a 1." in shown[1]["text/plain"]


def test_bars_tell_every_value(shown):
    look.bars({"lenet": 97.5, "vgg": 99.25}, "Accuracy", "%", {"vgg": 99.1})
    assert shown[0]["text/plain"] == "[figure: Accuracy: lenet 97.5, vgg 99.25.]"


def test_a_grid_of_images(shown):
    images = [torch.rand(1, 8, 8) for _ in range(10)]
    look.grid(images, [str(i) for i in range(10)], "Digits", "Ten digits.", columns=4)
    look.grid([torch.zeros(3, 8, 8)], None, "One", "One image.")
    assert [b["text/plain"] for b in shown] == ["[figure: Ten digits.]", "[figure: One image.]"]


def test_images_are_stretched_to_their_range():
    grey = look.to_picture(torch.tensor([[[2.0, 4.0], [3.0, 2.0]]]))
    assert grey.tolist() == [[0, 1], [0.5, 0]]
    assert look.to_picture(torch.rand(3, 4, 5)).shape == (4, 5, 3)
    assert look.to_picture(torch.full((1, 2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]


# ----------------------------------------------------------------------------------- Grad-CAM


def tiny(inplace: bool) -> torch.nn.Sequential:
    """One convolution, ReLU, mean, linear: small enough to compute Grad-CAM by hand."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 1, bias=False), torch.nn.ReLU(inplace), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        net[4].weight.copy_(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    return net


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_by_hand(inplace, frozen):
    net = tiny(inplace).train().requires_grad_(not frozen)
    x = torch.tensor([[4.0, -1.0], [2.0, 0.0]])[None, None]
    with torch.no_grad():
        heat = look.grad_cam(net, net[0], x, torch.tensor([0]))
    assert heat.tolist() == [[[0, 1], [0, 0]]]
    assert net.training
    assert not any(m._forward_hooks for m in net.modules())


def test_grad_cam_agrees_with_captum():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 6, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(6, 4),
    ).eval()  # fmt: skip
    x, classes = torch.randn(5, 3, 12, 12), torch.tensor([0, 1, 2, 3, 0])
    for layer in (net[0], net[2], net[3]):
        theirs = attr.LayerGradCam(net, layer).attribute(x, classes).relu()[:, 0].detach()
        theirs = theirs / theirs.amax(dim=(1, 2), keepdim=True).clamp(min=1e-8)
        torch.testing.assert_close(look.grad_cam(net, layer, x, classes), theirs)


def test_a_failing_forward_leaves_no_hook():
    net = tiny(False)
    with pytest.raises(RuntimeError):
        look.grad_cam(net, net[0], torch.zeros(1, 5, 2, 2), torch.tensor([0]))
    with pytest.raises(RuntimeError):
        look.outputs_of(net[1], net, torch.zeros(1, 5, 2, 2))
    assert not any(m._forward_hooks for m in net.modules())


def test_the_confusion_matrix_has_the_truth_in_its_rows(monkeypatch):
    figures = []
    monkeypatch.setattr(look, "show", lambda fig, alt: figures.append((fig, alt)))
    counts = torch.tensor([[5, 2, 0], [0, 4, 0], [1, 0, 3]])
    look.confusion(counts, ["a", "b", "c"], "A test")
    ((fig, alt),) = figures
    (ax,) = fig.axes
    placed = {t.get_text(): t.get_position() for t in ax.texts}
    assert placed["2"] == (1, 0)  # x: predicted, y: true
    assert placed["1"] == (0, 2)
    shades = ax.images[0].get_array()
    assert shades[0, 1] == shades.max() > shades[2, 0] > shades[0, 0] == 0
    assert "a taken for b, 2 times" in alt


def test_bars_are_as_long_as_their_values(monkeypatch):
    figures = []
    monkeypatch.setattr(look, "show", lambda fig, alt: figures.append(fig))
    look.bars({"x": 3.0, "y": 1.5}, "A test", "units", {"y": 2.0})
    (ax,) = figures[0].axes
    assert [patch.get_width() for patch in ax.patches] == [3.0, 1.5]
    assert ax.lines[0].get_xydata().tolist() == [[2.0, 1.0]]


def test_filters_and_maps_are_the_net_s_own(monkeypatch):
    shown = []
    monkeypatch.setattr(look, "show", lambda fig, alt: shown.append(fig))
    net = tiny(False)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([0.5, -2.0]).view(2, 1, 1, 1))
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    look.feature_maps(net, net[0], x, "maps")
    pictures = [ax.images[0].get_array() for ax in shown[0].axes if ax.images]
    assert len(pictures) == 2
    assert pictures[0].argmax() == 3  # 0.5 x: the largest pixel stays so
    assert pictures[1].argmax() == 0  # -2 x turns the order round
