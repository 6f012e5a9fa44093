"""Pictures: what is in them, their text, their size, their place."""

import base64
import copy
import dataclasses
import io
import re
import sys
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.models import vgg

from common import data, look, machine, probe, zoo
from common.config import Config
from common.look import drawing as drawing_module
from common.run import Run
from common.train import Evaluation


@pytest.fixture
def figures(monkeypatch):
    """The figures that were shown, with their texts, in order."""
    made = []
    monkeypatch.setattr(look, "show", lambda fig, alt: made.append((fig, alt)))
    return made


def words(ax):
    """What is written in the axes, by place (x, y)."""
    return {text.get_position(): text.get_text() for text in ax.texts}


def pictures(fig):
    """The arrays of all images in a figure, in order."""
    return [np.asarray(image.get_array()) for ax in fig.axes for image in ax.images]


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, in order."""
    bundles = []

    def display(bundle, raw=False):
        assert raw, "Jupyter would print the dictionary"
        bundles.append(bundle)

    monkeypatch.setattr("IPython.display.display", display)
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
    return Run(nn.Flatten(), data.load("digits"), Config(), epochs=rows, best_epoch=epochs)


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


def test_a_dollar_sign_is_a_dollar_sign_and_a_power_of_ten_a_power():
    fig, ax = look.figure()
    ax.semilogy([1, 2, 3], [1, 10, 1e5], label="$5 to $10")
    ax.set_title("$5 to $10")
    ax.legend()
    look.bundle(fig, "prices")
    assert not ax.title.get_parse_math()
    assert not ax.get_legend().get_texts()[0].get_parse_math()
    labels = [label for label in ax.get_yticklabels(which="both") if "mathdefault" in str(label)]
    assert labels
    assert all(label.get_parse_math() for label in labels)


def test_a_curve_is_small():
    fig, alt = look.curves(history(30))
    image, size = picture(look.bundle(fig, alt))
    assert size < 60_000
    assert image.mode == "P"
    assert 10 < len(image.getcolors()) <= 128
    assert image.size == (630, 288)  # 7 x 3.2 inches at 90 dots an inch


def test_a_curve_says_what_it_shows():
    fig, alt = look.curves(history(4))
    assert alt.startswith(
        "Flatten on digits: training and validation by epoch. Two curves by epoch."
    )
    assert "After epoch 4: training loss 0.500" in alt
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
    monkeypatch.setattr(machine, "in_notebook", lambda: True)
    training = SimpleNamespace(show=True, run=history(0))
    look.watch("start", training)
    for epochs in (1, 2, 3):
        training.run = history(epochs)
        look.watch("epoch", training)
    look.watch("epoch", SimpleNamespace(show=False, run=history(4)))  # which nobody watches
    assert [kind for kind, _, _ in calls] == ["display", "update", "update", "update"]
    assert all(raw for _, _, raw in calls)
    assert calls[0][1] == {"text/plain": "The curves appear after the first epoch."}
    said = calls[-1][1]["text/plain"]
    assert "Flatten on digits: training and validation by epoch" in said
    assert "After epoch 3" in said
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


# ----------------------------------------------------------------------------- charts and images


def test_a_confusion_matrix_has_truth_by_row(figures):
    matrix = torch.tensor([[5000, 3, 0], [1, 40, 0], [2, 7, 30]])
    look.confusion(matrix, ("shirt", "coat", "bag"), "Test images")
    ((fig, alt),) = figures
    assert alt == "Test images. Most frequent mistake: bag taken for coat, 7 times."
    (ax,) = fig.axes
    expected = np.log1p([[0, 3, 0], [1, 0, 0], [2, 7, 0]])
    assert np.allclose(ax.images[0].get_array(), expected)
    assert words(ax) == {  # by column, row
        (0, 0): "5,000", (1, 0): "3", (0, 1): "1", (1, 1): "40", (0, 2): "2", (1, 2): "7",
        (2, 2): "30",
    }  # fmt: skip
    assert [label.get_text() for label in ax.get_yticklabels()] == ["shirt", "coat", "bag"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["shirt", "coat", "bag"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class (count of images)", "true class")


def test_a_confusion_matrix_without_mistakes_says_so(figures):
    look.confusion(torch.diag(torch.tensor([5, 4])), ("a", "b"), "Perfect")
    ((fig, alt),) = figures
    assert alt == "Perfect. No mistakes."
    assert not fig.axes[0].images[0].get_array().any()


def test_compared_curves_are_the_runs(figures):
    look.compare_curves({"a": history(2, 0.9), "b": history(3, 0.8)}, "Two")
    look.compare_curves({"a": history(2)}, "Loss", "train_loss")
    (first, alt), (second, loss_alt) = figures
    assert "Last values of the validation accuracy: a 85, b 76.7." in alt
    assert "training loss: a 1." in loss_alt
    a, b = first.axes[0].lines
    assert list(a.get_ydata()) == pytest.approx([80, 85])
    assert list(b.get_xdata()) == [1, 2, 3]
    assert (a.get_label(), b.get_label()) == ("a", "b")
    assert a.get_marker() != b.get_marker()  # told apart without colour
    assert first.axes[0].get_ylabel() == "validation accuracy (%)"
    assert second.axes[0].get_ylabel() == "training loss (nats)"
    assert list(second.axes[0].lines[0].get_ydata()) == [2, 1]


def test_a_network_has_its_own_mark_and_others_have_one_too():
    course = [each.photo for each in zoo.architectures().values()]
    marks = look.marks([*course, "resnet18_cifar"])
    assert len(set(marks.values())) == 9
    assert look.marks(course[2:3]) == {course[2]: marks[course[2]]}


def test_bytes_are_shown_as_they_are_and_other_values_stretched():
    dark = torch.full((3, 2, 2), 51, dtype=torch.uint8)
    dark[0, 0, 0] = 102
    assert look.to_picture(dark).max() == pytest.approx(0.4)
    assert look.to_picture(dark).min() == pytest.approx(0.2)
    stretched = look.to_picture(dark.float())
    assert (stretched.min(), stretched.max()) == (0, 1)


def test_a_run_keeps_its_colour_where_others_are_left_out(figures):
    runs = {"a": history(2, 0.9), "b": history(3, 0.8)}
    look.compare_curves(runs, "Two")
    look.compare_curves(runs, "The second", only=["b"])
    (both, _), (one, alt) = figures
    (b,) = one.axes[0].lines
    same = both.axes[0].lines[1]
    assert (b.get_label(), b.get_color()) == ("b", same.get_color())
    assert b.get_marker() == same.get_marker()
    assert "a 85" not in alt
    with pytest.raises(ValueError, match=r"Unknown run 'c'.*: a, b"):
        look.compare_curves(runs, "None", only=["c"])


def test_a_run_without_an_epoch_has_no_curve(figures):
    look.compare_curves({"a": history(2, 0.9), "stopped": history(0)}, "One")
    ((fig, alt),) = figures
    assert [line.get_label() for line in fig.axes[0].lines] == ["a"]
    assert alt.endswith("accuracy: a 85.")


def test_bars_are_as_long_as_their_values(figures):
    look.bars({"lenet": 40.0, "vgg": 99.25}, "Accuracy", "%")
    ((fig, alt),) = figures
    assert alt == "Accuracy: lenet 40, vgg 99.25."
    (ax,) = fig.axes
    assert [bar.get_width() for bar in ax.patches] == [40, 99.25]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["lenet 40", "vgg 99.25"]
    assert ax.get_xlabel() == "%"
    assert ax.get_xlim()[0] == 0


def test_bars_that_hardly_differ_have_a_cut_axis_that_says_so(figures):
    look.bars({"a": 98.0, "b": 99.0}, "Accuracy", "%")
    ax = figures[0][0].axes[0]
    assert ax.get_xlabel() == "%, axis cut"
    assert 97 < ax.get_xlim()[0] < 98
    assert 99 < ax.get_xlim()[1] < 100


def test_epochs_are_whole_also_when_there_is_one(figures):
    look.compare_curves({"a": history(1)}, "One")
    (ax,) = figures[0][0].axes
    figures[0][0].draw_without_rendering()
    left, right = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if left <= tick <= right] == [1]


def test_a_grid_shows_the_images_in_order(figures):
    images = [torch.rand(1, 8, 8) for _ in range(10)]
    look.grid(images, [str(i) for i in range(10)], "Digits", "Ten digits.", columns=4)
    ((fig, alt),) = figures
    assert alt == "Ten digits."
    shown = pictures(fig)
    assert len(shown) == 10
    for image, array in zip(images, shown, strict=True):
        assert np.allclose(array, look.to_picture(image))
    assert [ax.get_title() for ax in fig.axes][:11] == [*map(str, range(10)), ""]
    assert not any(ax.axison for ax in fig.axes)


def test_images_are_stretched_to_their_range():
    grey = look.to_picture(torch.tensor([[[2.0, 4.0], [3.0, 2.0]]]))
    assert grey.tolist() == [[0, 1], [0.5, 0]]
    assert look.to_picture(torch.rand(3, 4, 5)).shape == (4, 5, 3)
    assert look.to_picture(torch.full((1, 2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]


# ------------------------------------------------------------------------------------ inside a net


def small_net(inplace: bool) -> nn.Sequential:
    """A net whose Grad-CAM can be done by hand."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=inplace), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(2, 2, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1]).view(2, 1, 1, 1))
        net[4].weight.copy_(torch.tensor([[1.0, 3], [0, 0]]))
    return net


IMAGE = torch.tensor([[[[4.0, -1], [2, 0]]]])


@pytest.mark.parametrize("inplace", [False, True])
def test_grad_cam_by_hand(inplace):
    """Weights 1/8 and 3/16 for the maps x and -x: -x / 16, above 0 where x is -1."""
    net = small_net(inplace)
    heat = look.grad_cam(net, net[0], IMAGE, torch.tensor([0]))
    assert torch.allclose(heat, torch.tensor([[[0.0, 1], [0, 0]]]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_of_a_frozen_net_and_without_gradients(mode, frozen):
    net = small_net(True).requires_grad_(not frozen)
    with mode():
        heat = look.grad_cam(net, net[0], IMAGE.clone(), torch.tensor([0]))
    assert torch.allclose(heat, torch.tensor([[[0.0, 1], [0, 0]]]))
    assert all(p.grad is None for p in net.parameters())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, x):
        once = self.conv(x)
        return self.fc(self.conv(once.relu()).mean((2, 3))), once


def test_grad_cam_of_a_layer_used_twice_adds_its_uses():
    torch.manual_seed(0)
    net, x, classes = Twice(), torch.rand(2, 2, 5, 6), torch.tensor([2, 0])
    heat = look.grad_cam(net, net.conv, x, classes)
    once = net.conv(x)
    twice = net.conv(once.relu())
    logits = net.fc(twice.mean((2, 3)))[range(2), classes].sum()
    first, second = torch.autograd.grad(logits, [once, twice])
    expected = sum(
        (gradient.mean((2, 3), keepdim=True) * maps).sum(1)
        for gradient, maps in ((first, once), (second, twice))
    ).relu()
    expected = expected / expected.amax((1, 2), keepdim=True).clamp(min=1e-8)
    assert expected.any()
    assert torch.allclose(heat, expected, atol=1e-6)


@pytest.mark.parametrize("number", [0, 3, 10, 18, 19, 20])
def test_grad_cam_of_vgg_is_captum_s(number):
    """Ours on the net with its activations in place, captum on a copy without."""
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    features = vgg.make_layers(vgg.cfgs["A"])
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)
    net = nn.Sequential(features, *head).eval()
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    plain = copy.deepcopy(net)
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    x, classes = torch.rand(2, 3, 64, 64), torch.tensor([3, 7])
    heat = look.grad_cam(net, net[0][number], x, classes)
    theirs = captum.LayerGradCam(plain, plain[0][number])
    theirs = theirs.attribute(x, classes, relu_attributions=True)[:, 0].detach()
    theirs = theirs / theirs.amax((1, 2), keepdim=True).clamp(min=1e-8)
    assert theirs.any()
    assert torch.allclose(heat, theirs, atol=1e-4)


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


@pytest.mark.parametrize("ask", ["grad_cam", "outputs_of"])
def test_a_failing_pass_leaves_no_hook_and_no_mode(ask):
    net = small_net(False).train()
    net[1].eval()
    modes = [m.training for m in net.modules()]
    bad = torch.rand(1, 3, 2, 2)
    for x in (bad, IMAGE):
        try:
            if ask == "grad_cam":
                look.grad_cam(net, net[0], x, torch.tensor([1]))
            else:
                look.outputs_of(net[0], net, x)
        except RuntimeError:
            assert x is bad
        assert hooks(net) == 0
        assert [m.training for m in net.modules()] == modes


def test_grad_cam_says_what_is_wrong():
    net = small_net(False)
    for layer, message in (
        (net[4], "no maps"), (nn.Conv2d(1, 1, 1), "do not depend"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            look.grad_cam(net, layer, IMAGE, torch.tensor([0]))
        assert hooks(net) + hooks(layer) == 0
    with pytest.raises(ValueError, match="does not reach this Conv2d"):
        look.outputs_of(nn.Conv2d(1, 1, 1), net, IMAGE)
    K = net(IMAGE).shape[1]
    for classes in (torch.tensor([K]), [-1], torch.tensor([0, 0])):
        with pytest.raises(ValueError, match=f"expected one from 0 to {K - 1} for each of the 1"):
            look.grad_cam(net, net[0], IMAGE, classes)


class Named(nn.Module):
    """Gives a named tuple, as some of torchvision's do."""

    Both = namedtuple("Both", "maps more")

    def __init__(self, plain):
        super().__init__()
        self.plain = plain

    def forward(self, x):
        return self.Both(self.plain(x), x)


class First(nn.Module):
    def forward(self, both):
        return both.maps


def test_grad_cam_of_a_layer_with_a_named_tuple_and_a_list_of_classes():
    net = small_net(False)
    expected = look.grad_cam(net, net[0], IMAGE, torch.tensor([0]))
    named = Named(net[0])
    wrapped = nn.Sequential(named, First(), *net[1:])
    assert torch.equal(look.grad_cam(wrapped, named, IMAGE, [0]), expected)


def test_outputs_are_those_of_any_module():
    """Of a layer before an activation in place, of a whole block, and with their gradients."""
    net = small_net(True)
    assert torch.equal(look.outputs_of(net[0], net, IMAGE)[0, 1], -IMAGE[0, 0])
    assert torch.equal(look.outputs_of(net[1], net, IMAGE)[0, 1], (-IMAGE[0, 0]).relu())
    google = zoo.build("googlenet", width=0.125)
    x = torch.rand(1, 1, 64, 64)
    joined = look.outputs_of(google.inception3a, google, x)
    block = google.inception3a
    branches = [look.outputs_of(part, google, x) for part in block.children()]
    assert torch.equal(joined, torch.cat(branches, 1))
    assert joined.requires_grad
    assert google.training


def test_feature_maps_show_what_the_layer_puts_out(figures):
    torch.manual_seed(0)
    net, x = zoo.build("lenet5_bn"), torch.rand(1, 1, 32, 32)
    look.feature_maps(net, net.conv2, x, "Maps", most=5)
    ((fig, alt),) = figures
    assert alt == "Maps: 5 of 16 channels of 10 x 10 pixels."
    maps = look.outputs_of(net.conv2, net, x)[0, :5, None]
    assert len(pictures(fig)) == 5
    for array, values in zip(pictures(fig), maps, strict=True):
        assert np.allclose(array, look.to_picture(values))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_filters_are_the_first_kernels(figures, channels):
    net = nn.Sequential(nn.Conv2d(channels, 6, 5), nn.Conv2d(6, 3, 3))
    look.filters(net, "Kernels", most=4)
    ((fig, alt),) = figures
    assert alt == "Kernels: 4 kernels of 5 x 5 pixels."
    for array, kernel in zip(pictures(fig), net[0].weight[:4], strict=True):
        kernel = kernel if channels != 2 else kernel[:1]
        assert np.allclose(array, look.to_picture(kernel), atol=1e-6)
    assert look.first_convolution(net) is net[0]
    with pytest.raises(ValueError, match=r"no nn\.Conv2d"):
        look.first_convolution(nn.Linear(2, 2))


class Branches(nn.Module):
    """Two branches are joined by an addition, and pooled until nothing is left to see."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.join = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3), nn.ReLU()
        self.pool, self.end, self.fc = nn.AvgPool2d(4), nn.AdaptiveAvgPool2d(1), nn.Linear(2, 3)

    def forward(self, x):
        maps = self.pool(self.join(self.left(x) + self.right(x)))
        return self.fc(self.end(maps).flatten(1))


def test_last_maps_are_those_after_the_activation_where_branches_are_joined():
    net = Branches()
    assert look.last_maps(net, torch.rand(2, 1, 12, 14)) is net.join
    assert look.last_maps(net, torch.rand(1, 1, 20, 22)) is net.pool  # 4 x 5 places
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(ValueError, match="no maps of 11 x 11"):
        look.last_maps(net, torch.rand(1, 1, 12, 14), least=11)


def judged(digits, wrong):
    """An evaluation of the test images with mistakes on `wrong`, by index, and their losses."""
    labels = digits.test.labels
    predictions, losses = labels.clone(), torch.full((len(labels),), 0.1)
    for index, loss in wrong.items():
        predictions[index] = (labels[index] + 1) % 10
        losses[index] = loss
    losses[0] = 99.0  # right, though barely: no mistake
    return Evaluation(0.1, 0.9, torch.eye(10), predictions, losses)


def test_the_worst_mistakes_come_first(figures):
    digits = data.load("digits")
    test = judged(digits, {5: 1.0, 9: 3.0, 7: 2.0})
    assert look.worst(test, digits, most=2).tolist() == [9, 7]
    look.worst_mistakes(test, digits, "Mistakes")
    ((fig, alt),) = figures
    names = [digits.classes[digits.test.labels[i]] for i in (9, 7, 5)]
    taken = [digits.classes[test.predictions[i]] for i in (9, 7, 5)]
    expected = [f"{a}\nseen as {b}" for a, b in zip(names, taken, strict=True)]
    assert [ax.get_title() for ax in fig.axes][:3] == expected
    assert np.allclose(pictures(fig)[0], look.to_picture(digits.test.images[9]))
    assert alt.startswith(f"Mistakes: {names[0]} seen as {taken[0]};")


def test_where_nothing_is_wrong_only_right_answers_are_shown():
    digits = data.load("digits").sample(2)
    right = Evaluation(0.1, 1.0, torch.eye(10), digits.test.labels, torch.tensor([0.1, 0.2]))
    assert sorted(look.right_and_wrong(right, digits).tolist()) == [0, 1]
    wrong = dataclasses.replace(right, predictions=(digits.test.labels + 1) % 10)
    assert look.right_and_wrong(wrong, digits).tolist() == [1, 0]


def test_heat_comes_from_the_layer_that_is_asked_for():
    torch.manual_seed(0)
    net, x = zoo.build("lenet5").eval(), torch.randn(1, 1, 28, 28)
    classes = torch.tensor([3])
    last, first = look.heat_maps(net, x, classes), look.heat_maps(net, x, classes, net.act1)
    assert last.shape == first.shape == (1, 28, 28)
    assert not torch.allclose(last, first, atol=0.05)


def test_numbers_can_be_read_on_dark_and_on_light():
    _, ax = look.figure()
    look.numbers(ax, torch.tensor([[0.0, 1.0]]), "black and white")
    assert [text.get_color() for text in ax.texts] == ["white", "black"]


def test_counts_can_be_read_on_dark_and_on_light(figures):
    look.confusion(torch.tensor([[50, 1], [9, 50]]), ["a", "b"], "mistakes")
    ((fig, _),) = figures
    colours = {text.get_text(): text.get_color() for text in fig.axes[0].texts}
    assert colours == {"50": "black", "1": "black", "9": "white"}


def test_right_answers_of_different_classes_then_the_worst_mistakes():
    digits = data.load("digits")
    order = digits.test.labels.argsort(stable=True)
    test = data.Images(digits.test.images[order], digits.test.labels[order])
    sorted_set = dataclasses.replace(digits, test=test)
    wrong = {0: 1, 3: 2}
    test = judged(sorted_set, wrong)
    chosen = look.right_and_wrong(test, sorted_set, most=4).tolist()
    right, worst = chosen[:4], chosen[4:]
    assert sorted_set.test.labels[right].tolist() == [0, 1, 2, 3]
    assert right[0] == 1  # the first image of class 0 is a mistake
    assert set(worst) == set(wrong)


def test_no_mistakes_are_said_to_be_none(figures, capsys):
    digits = data.load("digits")
    look.worst_mistakes(judged(digits, {}), digits, "Mistakes")
    assert figures == []
    assert capsys.readouterr().out == "Mistakes: no mistakes on the test images.\n"


@pytest.mark.parametrize("n", [1, 7])
def test_grad_cam_lies_over_its_image(figures, n):
    digits, net = data.load("digits"), zoo.build("lenet5_bn").train()
    indices = torch.arange(n)
    look.show_grad_cam(net, digits, indices, 32, "Heat")
    ((fig, alt),) = figures
    shown = [ax.images for ax in fig.axes if ax.images]
    assert len(shown) == n
    batches = data.Batches(digits, "test", n, indices=indices, size=32, device="cpu")
    x, truth = next(iter(batches))
    predicted = net.eval()(x).argmax(1)
    heat = look.grad_cam(net, net.pool2, x, predicted)  # 5 x 5 places
    heat = F.interpolate(heat[:, None], (32, 32), mode="bilinear")[:, 0]
    for i, (below, above) in enumerate(shown):
        assert np.allclose(below.get_array(), look.to_picture(x[i]), atol=1e-6)
        assert np.allclose(above.get_array(), heat[i], atol=1e-5)
        alpha = above.get_alpha()  # where it is cold, the image alone; never the heat alone
        assert 0 < alpha.max() < 0.8
        assert np.allclose(alpha / alpha.max(), heat[i] / heat[i].max(), atol=1e-4)
        assert fig.axes[i].get_title().startswith(digits.classes[predicted[i]])
    wrong = int((predicted != truth).sum())
    assert alt == f"Heat: {n} test images, {wrong} of them classified wrongly."
    assert f"not {digits.classes[truth[0]]}" in fig.axes[0].get_title() or predicted[0] == truth[0]


# ------------------------------------------------------------------------------------- explanations


def test_a_convolution_is_a_sum_of_products_over_all_channels(figures):
    image, kernel = torch.arange(32.0).view(2, 4, 4), torch.tensor([[[0.0, 1], [2, 0]]] * 2)
    output = look.convolution(image, kernel, "How", at=(1, 0), stride=2, padding=1)
    assert torch.equal(output, F.conv2d(image[None], kernel[None], stride=2, padding=1)[0, 0])
    ((fig, alt),) = figures
    window = F.pad(image, (1,) * 4)[:, 2:4, 0:2] * kernel
    sums = window.sum((1, 2)).tolist()
    assert alt == (
        f"How. Output at row 1, column 0: {sums[0]:.4g} + {sums[1]:.4g} = {sum(sums):.4g}."
    )
    axes = np.reshape(fig.axes, (2, 4))
    frame = axes[0, 0].patches[0]
    assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((-0.5, 1.5), 2, 2)
    value = axes[0, 3].patches[0]
    assert (value.get_xy(), value.get_width(), value.get_height()) == ((-0.5, 0.5), 1, 1)
    assert words(axes[1, 1]) == {(0, 0): "0", (1, 0): "1", (0, 1): "2", (1, 1): "0"}
    assert words(axes[0, 3])[0, 1] == f"{sum(sums):.4g}"
    assert axes[1, 0].get_title() == "channel 2, padded by 1"


def test_fields_grow_as_the_table_says(figures):
    net = nn.Sequential(
        nn.Conv2d(1, 2, (3, 5)), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3),
        nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip
    x = torch.rand(1, 1, 28, 30)
    look.growing_field(net, x, "Fields")
    ((fig, alt),) = figures
    frames = fig.axes[0].patches
    fields = [(3, 5), (4, 6), (8, 10)]
    assert [(f.get_height(), f.get_width()) for f in frames] == fields
    assert {f.get_xy()[0] + f.get_width() / 2 for f in frames} == {14.5}  # the middle of 30
    assert probe.layers(net, (1, 1, 28, 30))["field"].tolist()[:1] == ["3 x 5"]
    assert alt == "Fields. Receptive fields in pixels: 0 3 × 5, 2 4 × 6, 3 8 × 10."
    assert np.allclose(pictures(fig)[0], look.to_picture(x[0]))


def test_from_pixels_to_class_shows_every_step(figures):
    torch.manual_seed(0)
    net, x = zoo.build("lenet5"), torch.rand(1, 1, 28, 28)
    look.from_pixels_to_class(net, x, [str(i) for i in range(10)], "Steps", most=6)
    ((fig, alt),) = figures
    shown = pictures(fig)
    assert len(shown) == 1 + 4 * 6
    assert np.allclose(shown[0], look.to_picture(x[0]))
    pooled = look.outputs_of(net.pool2, net, x)[0, 5:6]
    assert np.allclose(shown[-1], look.to_picture(pooled), atol=1e-6)
    answer = net(x)[0].softmax(0).detach()
    heights = [bar.get_height() for bar in fig.axes[-1].patches]
    assert heights == pytest.approx((100 * answer).tolist(), rel=1e-4)
    assert f"Answer: {answer.argmax()}, with a probability of {answer.max():.0%}" in alt
    told = [ax.get_title(loc="left") for ax in fig.axes]
    assert "conv1, 24 × 24" in told  # all six of its maps
    assert "conv2, 8 × 8, 6 of 16 maps" in told


# ----------------------------------------------------------------------------------------- diagrams


def boxes(svg):
    """The words of each box of a drawing, in order, as one text each."""
    parts = re.split(r"<rect ", svg)[2:]
    return [" | ".join(re.findall(r"<text[^>]*>([^<]*)</text>", part)) for part in parts]


def test_a_chain_has_a_box_for_each_child():
    drawing = look.svg(zoo.build_on_meta("lenet5"), (1, 1, 28, 28), "LeNet-5")
    assert ">LeNet-5: 44,426 parameters<" in drawing
    assert boxes(drawing) == [
        "image | input | 1×28×28", "5×5 conv | conv1 | 6×24×24 | 156",
        "2×2 max pool | stride 2 | pool1 | 6×12×12", "5×5 conv | conv2 | 16×8×8 | 2,416",
        "2×2 max pool | stride 2 | pool2 | 16×4×4", "linear | fc1 | 120 | 30,840",
        "linear | fc2 | 84 | 10,164", "linear | fc3 | 10 | 850",
    ]  # fmt: skip
    assert 'role="img"' in drawing
    assert drawing == look.svg(zoo.build_on_meta("lenet5"), (1, 1, 28, 28), "LeNet-5")


def test_a_joining_block_puts_out_what_it_joins():
    drawn = boxes(look.svg(zoo.build_on_meta("googlenet"), (1, 1, 224, 224), "GoogLeNet"))
    assert "6 conv | inception3a | 256×28×28 | 163,696" in drawn


def test_a_block_of_pooling_is_no_linear_layer():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert boxes(look.svg(net, (1, 1, 8, 8), "x"))[2] == "global mean | 1 | 4"


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.LPPool2d(2, 2), "2×2 LP pool | stride 2"),
        (nn.LPPool2d(2, 3, stride=1), "3×3 LP pool"),
        (nn.FractionalMaxPool2d(2, output_size=3), "2×2 max pool"),
        (nn.AvgPool2d(2), "2×2 mean pool | stride 2"),
        (nn.AdaptiveMaxPool2d(1), "global max |"),
        (nn.AdaptiveMaxPool2d(2), "max |"),
        (nn.AdaptiveAvgPool2d(2), "mean |"),
        (nn.ConvTranspose2d(4, 4, 2, stride=2), "2×2 transposed conv | stride 2"),
        (nn.Conv2d(4, 4, 3, groups=2), "3×3 conv in 2 groups"),
    ],
)
def test_every_layer_is_drawn(layer, words):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten())
    assert boxes(look.svg(net, (1, 1, 8, 8), "x"))[2].startswith(words)


def test_one_convolution_under_two_parents_is_one_in_each():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(2, 2, 3)), nn.Sequential(nn.ReLU()))
    net[1].append(net[0][0])
    drawn = boxes(look.svg(net, (1, 2, 9, 9), "x"))
    assert drawn[1:] == ["3×3 conv | 0 | 2×7×7 | 38", "3×3 conv | 1 | 2×5×5"]


def arcs(svg):
    """How many arrows go past boxes at the side: their curve starts at once."""
    return len(re.findall(r'<path d="M[-\d.]+ [-\d.]+C', svg))


def block(name, part):
    return zoo.build_on_meta(name).get_submodule(part)


def test_inception_has_four_labelled_branches():
    module = block("googlenet", "inception3a")
    drawing = look.block_svg(module, (1, 192, 28, 28), "Inception 3a")
    table = probe.layers(module, (1, 192, 28, 28))
    heading = f"{table['params'].sum():,} parameters, {table['mult_adds'].sum():,} mult-adds"
    assert f">{heading}<" in drawing
    start, *branches, join = boxes(drawing)
    assert start == "input | 192×28×28"
    assert branches[0] == (
        "branch1.conv | 1×1 conv | 192 → 64 channels | ReLU | 64×28×28 | 12,352 parameters"
    )
    heads = [words.split(" | ")[0] for words in branches]
    assert heads == [
        "branch1.conv", "branch3.0.conv", "branch3.1.conv", "branch5.0.conv", "branch5.1.conv",
        "pool.0", "pool.1.conv",
    ]  # fmt: skip
    assert join.startswith("concatenate | 256×28×28")
    assert arcs(drawing) == 0


def test_a_shortcut_is_an_arc_and_a_projection_a_branch():
    plain = look.block_svg(block("resnet34", "stage1.0"), (1, 64, 56, 56), "Block")
    assert arcs(plain) == 1
    assert ">shortcut<" in plain
    assert boxes(plain)[-1].startswith("add | ReLU | 64×56×56")
    strided = look.block_svg(block("resnet18", "stage2.0"), (1, 64, 56, 56), "Block")
    assert arcs(strided) == 0
    assert "shortcut.0 | 1×1 conv, stride 2 | 64 → 128 channels | BN | 128×28×28" in (
        " ".join(boxes(strided))
    )


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda x, gate: x * gate, "multiply | 4×8×8 |"),
        (lambda x, gate: x - gate, "subtract | 4×8×8 |"),
        (lambda x, gate: gate.mean((2, 3)), "mean | 4 |"),
    ],
    ids=["multiply", "subtract", "mean"],
)
def test_what_a_block_does_without_a_layer_is_drawn(how, words):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return how(x, self.gate(x))

    _, gate, last = boxes(look.block_svg(Gated(), (1, 4, 8, 8), "x"))
    assert gate.startswith("gate | 1×1 conv")
    assert last.startswith(words)


def test_every_dense_layer_has_all_earlier_ones_among_its_sources():
    model = zoo.build_on_meta("densenet_cifar", growth_rate=12, blocks=(3,))
    drawing = look.block_svg(model.block1, (1, 24, 32, 32), "Dense block")
    assert arcs(drawing) == 1 + 2 + 3  # to layers 2 and 3 and to the end, past what lies between
    assert boxes(drawing)[-1].startswith("concatenate | 60×32×32")
    calls = probe.trace(model.block1, (1, 24, 32, 32))[0].calls
    sources = [box.sources for box in drawing_module.boxes_of(calls)]
    assert sources == [[-1], [0], [-1, 1], [2], [-1, 1, 3], [4], [-1, 1, 3, 5]]


def test_mobilenet_and_nin_tell_their_channels():
    drawn = boxes(look.block_svg(block("mobilenet", "block1"), (1, 32, 112, 112), "Separable"))
    assert drawn[1].startswith("depthwise | 3×3 depthwise | 32 channels, one by one | BN, ReLU6")
    assert drawn[2].startswith("pointwise | 1×1 conv | 32 → 64 channels")
    drawn = boxes(look.block_svg(block("nin", "block1"), (1, 1, 224, 224), "mlpconv"))
    assert [words.split(" | ")[1] for words in drawn[1:]] == [
        "11×11 conv, stride 4", "1×1 conv", "1×1 conv",
    ]  # fmt: skip


@pytest.mark.parametrize("draw", [look.draw, look.draw_block])
def test_a_drawing_is_displayed_with_its_title(shown, draw):
    draw(block("mobilenet", "block1"), (1, 32, 112, 112), "A block")
    (bundle,) = shown
    assert bundle["text/plain"] == "[diagram: A block]"
    assert bundle["text/html"].startswith("<svg")
    assert "<title>A block" in bundle["text/html"]


def test_no_two_of_many_networks_share_colour_and_mark(monkeypatch):
    """A ninth architecture is told from the first."""
    many = {str(i): SimpleNamespace(photo=f"net{i}") for i in range(40)}
    monkeypatch.setattr(look.zoo, "architectures", lambda: many)
    assert len(set(look.marks([f"net{i}" for i in range(40)]).values())) == 40
    assert look.marks(["mine"]) == {"mine": ("#777777", "h")}
