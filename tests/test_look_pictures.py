"""Pictures: their text, their size, their place."""

import base64
import io
import re
import sys

import pytest
import torch
from PIL import Image

from common import look
from common.train import History


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, in order."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def history(epochs: int, best: float = 0.9) -> History:
    rows = [
        {
            "epoch": e + 1, "train_loss": 2 / (e + 1), "train_accuracy": 0.1 + 0.8 * e / epochs,
            "val_loss": 2.1 / (e + 1), "val_accuracy": best - 0.1 / (e + 1), "lr": 1e-3,
            "seconds": 1.0, "images_per_s": 100.0,
        }
        for e in range(epochs)
    ]  # fmt: skip
    return History(epochs=rows)


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
