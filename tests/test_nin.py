"""NiN: a second computation of its answer, and what its options promise."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common import advice, zoo

CHANNELS = (96, 256, 384, 10)


def randomised(name: str, **options) -> nn.Module:
    """A model in float64 whose every number, running statistics included, is its own."""
    model = zoo.build(name, **options).double().eval()
    generator = torch.Generator().manual_seed(0)

    def fill(tensor: torch.Tensor, low: float, high: float) -> None:
        values = torch.empty(tensor.shape, dtype=tensor.dtype)
        tensor.data.copy_(values.uniform_(low, high, generator=generator))

    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.3, 0.3),
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.5, 1.5),
            ):
                fill(tensor, low, high)
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            fill(layer.bias, -0.3, 0.3)
    return model


def by_hand(weights: dict[str, torch.Tensor], x: torch.Tensor, small: bool) -> torch.Tensor:
    """The logits by the paper's words: plain functions and the weights in their order."""
    left = list(weights.values())
    stem = {"padding": 2} if small else {"stride": 4}
    for block, first in enumerate((stem, {"padding": 2}, {"padding": 1}, {"padding": 1})):
        for options in (first, {}, {}):
            weight = left.pop(0)
            if left and left[0].shape == weight.shape[:1] and len(weights) == 24:
                x = F.conv2d(x, weight, left.pop(0), **options)
            else:  # batch normalisation in the place of a bias
                scale, shift, mean, variance, _count = (left.pop(0) for _ in range(5))
                x = F.conv2d(x, weight, **options)
                x = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()
                x = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
            x = x.clamp(min=0) if left else x  # no ReLU on the class maps
        if block < (2 if small else 3):
            x = F.max_pool2d(x, 3, 2)
    assert not left
    return x.flatten(2).mean(dim=2)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", ["nin", "nin_bn"])
def test_agrees_with_a_computation_by_hand(name, small):
    """Logits and the gradient of the input, in evaluation mode: dropout must do nothing."""
    model = randomised(name, width=0.25, small_images=small)
    size = 28 if small else 99
    image = torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for run in (model, lambda x: by_hand(model.state_dict(), x, small)):
        x = image.clone().requires_grad_()
        logits = run(x)
        found.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), x)))
    assert found[0][0].std(dim=0).max() > 1e-3  # the images get different answers
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["nin", "nin_bn"])
def test_no_linear_layer_and_any_size(name):
    model = zoo.build_on_meta(name).eval()
    assert not any(isinstance(m, nn.Linear) for m in model.modules())
    for size in (99, 224, 320):
        assert model(torch.empty(2, 1, size, size, device="meta")).shape == (2, 10)


def class_maps(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.Sequential(*list(model.children())[:-2])(x)


def test_the_small_form_is_for_small_images():
    model = zoo.build_on_meta("nin", small_images=True).eval()
    assert class_maps(model, torch.empty(1, 1, 28, 28, device="meta")).shape == (1, 10, 6, 6)


def test_batch_normalisation_takes_the_place_of_biases():
    plain, normed = (zoo.build_on_meta(name) for name in ("nin", "nin_bn"))
    norms = [m for m in normed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == [c for c in CHANNELS for _ in range(3)]
    sizes = [sum(p.numel() for p in m.parameters()) for m in (plain, normed)]
    assert sizes[1] - sizes[0] == 3 * sum(CHANNELS)  # scale and shift for one bias
    assert all(m.bias is None for m in normed.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("mixing", [0, 1, 2])
def test_mixing_is_the_number_of_1x1_layers(mixing):
    model = zoo.build_on_meta("nin", mixing=mixing)
    kernels = [m.kernel_size[0] for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [k for first in (11, 5, 3, 3) for k in (first, *[1] * mixing)]


def test_width_leaves_the_class_maps_alone():
    model = zoo.build_on_meta("nin", width=0.25, num_classes=7)
    outputs = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert outputs == [24] * 3 + [64] * 3 + [96] * 3 + [7] * 3


def test_class_maps_speak_for_and_against():
    """Their means are the answer, and no ReLU keeps a class from changing its mind."""
    model = randomised("nin", width=0.25, small_images=True)
    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1)).double()
    maps = class_maps(model, x)
    assert (maps < 0).any()
    assert (maps > 0).any()
    torch.testing.assert_close(maps.mean(dim=(2, 3)), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.001}, r"width=0\.001 leaves 0 of 96 channels"),
    ],
)
@pytest.mark.parametrize("name", ["nin", "nin_bn"])
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.build_on_meta(name, **options)


@pytest.mark.parametrize(
    ("small", "shape", "message"),
    [
        (False, (1, 3, 224, 224), r"'block1\.conv1'.*to have 1 channels"),
        (False, (1, 1, 28, 28), r"'pool2'.*ran out of pixels"),
        (True, (1, 1, 6, 6), r"'pool2'.*ran out of pixels"),
    ],
)
def test_images_that_do_not_fit(small, shape, message):
    model = zoo.build("nin", width=1 / 32, small_images=small)
    with pytest.raises(ValueError, match=message), advice.told_by_layer(model, shape):
        model(torch.zeros(shape))
