"""VGG against torchvision's, and what its options promise."""

import pytest
import torch
import torchvision
from torch import nn

from common import advice, probe, zoo

NAMES = ("vgg11", "vgg13", "vgg16", "vgg19")


def weighted(model: nn.Module) -> list[nn.Module]:
    """The layers with weights, in the order of the forward pass."""
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_torchvision(name):
    """Same weights, same logits, same gradient of the input; the largest share one set of tensors.

    VGG-11 whole, in the paper's setting. The others differ from it in their convolutions alone, so
    theirs are compared on a smaller image, and of their classifiers the shapes.
    """
    ours = zoo.build_on_meta(name, in_channels=3, num_classes=1000)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    generator = torch.Generator().manual_seed(0)
    for mine, other in zip(weighted(ours), weighted(theirs), strict=True):
        assert type(mine) is type(other)
        assert mine.weight.shape == other.weight.shape
    if name != "vgg11":
        ours = nn.Sequential(*(ours.get_submodule(f"block{n}") for n in range(1, 6)))
        theirs = theirs.features
    for mine, other in zip(weighted(ours), weighted(theirs), strict=True):
        spread = (2 / mine.weight[0].numel()) ** 0.5  # keeps the signal's size
        for key, scale in (("weight", spread), ("bias", 0.1)):
            values = torch.empty(getattr(mine, key).shape)
            values.uniform_(-(3**0.5) * scale, 3**0.5 * scale, generator=generator)
            tensor = nn.Parameter(values, requires_grad=False)
            setattr(mine, key, tensor)
            setattr(other, key, tensor)
    side = 224 if name == "vgg11" else 64
    x = torch.randn(1, 3, side, side, generator=generator)
    found = []
    for model in (ours.eval(), theirs.eval()):
        image = x.clone().requires_grad_()
        logits = model(image)
        (gradient,) = torch.autograd.grad(logits.square().mean(), image)
        found.append((logits.detach(), gradient))
    (logits, gradient), (their_logits, their_gradient) = found
    assert logits.std() > 0.1  # not the agreement of two dead nets
    assert gradient.abs().max() > 1e-6
    torch.testing.assert_close(logits, their_logits, rtol=1e-5, atol=1e-5)
    close = {"rtol": 1e-5, "atol": 1e-5 * gradient.abs().max().item()}
    torch.testing.assert_close(gradient, their_gradient, **close)


@pytest.mark.parametrize(("size", "side"), [(32, 1), (63, 1), (64, 2), (96, 3), (224, 7)])
def test_the_classifier_follows_the_image(size, side):
    model = zoo.build_on_meta("vgg11", image_size=size, width=0.25)
    assert model.fc1.in_features == 128 * side * side
    assert model.eval()(torch.empty(2, 1, size, size, device="meta")).shape == (2, 10)


def test_the_convolutions_do_not_depend_on_the_image():
    small, large = (zoo.build_on_meta("vgg19", image_size=size) for size in (32, 224))
    shapes = [[p.shape for n, p in m.named_parameters() if "block" in n] for m in (small, large)]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 32


def test_width_scales_every_hidden_layer():
    model = zoo.build_on_meta("vgg16", width=0.25)
    outputs = [getattr(m, "out_channels", None) or m.out_features for m in weighted(model)]
    assert outputs == [16] * 2 + [32] * 2 + [64] * 3 + [128] * 6 + [1024] * 2 + [10]


def test_one_5x5_sees_what_two_3x3_see():
    pairs = zoo.build_on_meta("vgg13")
    single = zoo.build_on_meta("vgg13", convolutions=(1,) * 5, kernel_size=5)
    shape = (1, 1, 224, 224)
    assert probe.receptive_field(pairs, shape) == probe.receptive_field(single, shape)
    weights = [sum(m.weight.numel() for m in weighted(net.block2)) for net in (pairs, single)]
    assert weights == [9 * 64 * 128 + 9 * 128 * 128, 25 * 64 * 128]


@pytest.mark.parametrize("name", ["vgg11", "vgg19"])
def test_kaimings_start_keeps_the_signal(name):
    """The answers of an untrained net differ between images, whatever the depth."""
    x = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    spread = {}
    for kaiming in (True, False):
        torch.manual_seed(0)
        model = zoo.build(name, width=0.25, image_size=32, kaiming=kaiming).eval()
        with torch.no_grad():
            features = nn.Sequential(*list(model)[:5])(x)
        spread[kaiming] = features.std(dim=0).mean().item()
    assert 0.01 < spread[True] < 10
    assert spread[False] < 0.01 * spread[True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 31}, "image_size=31; five poolings need at least 32 pixels"),
        ({"width": 0.001}, r"width=0\.001 leaves 0 of 64 channels"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.build_on_meta(name, **options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 32, 32), r"'block1\.conv1'.*to have 1 channels"),
        ((1, 1, 64, 64), r"'fc1'.*cannot be multiplied"),
        ((1, 1, 28, 28), r"'block5\.pool'.*ran out of pixels"),
    ],
)
def test_images_that_do_not_fit(shape, message):
    model = zoo.build("vgg11", width=1 / 64, image_size=32)
    with pytest.raises(ValueError, match=message), advice.told_by_layer(model, shape):
        model(torch.zeros(shape))
