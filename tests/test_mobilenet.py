"""MobileNet against a second implementation, its width multiplier, and what does not fit it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from common import probe, zoo
from common.advice import told_by_layer

STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # of the 13 blocks


def unlike_new(model: nn.Module) -> nn.Module:
    """In evaluation mode and float64, with normalisations that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 2)
            for values in (module.bias.data, module.running_mean):
                values.normal_()
    return model.double().eval()


def shifted(x: torch.Tensor, stride: int) -> torch.Tensor:
    """(3, 3, N, C, h, w): what each of the nine taps of a padded 3x3 kernel sees."""
    H, W = x.shape[-2:]
    x = pad(x, (1, 1, 1, 1))
    rows = [[x[..., i : i + H, j : j + W] for j in range(3)] for i in range(3)]
    return torch.stack([torch.stack(row) for row in rows])[..., ::stride, ::stride]


def by_the_equations(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """MobileNet v1 as sums over taps and channels; the weights come in the order of its layers."""
    values = iter(model.state_dict().values())

    def normalised(x: torch.Tensor) -> torch.Tensor:
        scale, shift, mean, var, _ = (next(values) for _ in range(5))
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return (x * scale[:, None, None] + shift[:, None, None]).clamp(0, 6)

    x = normalised(torch.einsum("ijnchw,fcij->nfhw", shifted(x, 2), next(values)))
    for stride in STRIDES:
        x = normalised(torch.einsum("ijnchw,cij->nchw", shifted(x, stride), next(values)[:, 0]))
        x = normalised(torch.einsum("nchw,fc->nfhw", x, next(values)[:, :, 0, 0]))
    weight, bias = next(values), next(values)
    assert next(values, None) is None
    return x.mean(dim=(2, 3)) @ weight.T + bias


@pytest.mark.parametrize(("channels", "width", "size"), [(1, 0.25, 64), (3, 0.5, 45)])
def test_outputs_and_gradients_are_those_of_the_equations(channels, width, size):
    torch.manual_seed(0)
    model = unlike_new(zoo.build("mobilenet", channels, 7, width=width))
    x = torch.randn(2, channels, size, size, dtype=torch.float64, requires_grad=True)
    found, expected = model(x), by_the_equations(model, x)
    assert expected.std() > 1e-3  # the images get different answers: there is something to compare
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    loss = torch.randn(7, dtype=torch.float64)
    gradients = [torch.autograd.grad((out @ loss).sum(), x)[0] for out in (found, expected)]
    assert gradients[1].abs().max() > 0
    scale = gradients[1].abs().max()
    torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "params", "mult_adds"),  # millions, as in the paper's tables 4 and 6
    [
        ("mobilenet", 4.2, 569),
        ("mobilenet_075", 2.6, 325),
        ("mobilenet_050", 1.3, 149),
        ("mobilenet_025", 0.5, 41),
        ("mobilenet_full", 29.3, 4866),
    ],
)
def test_costs_are_the_papers(name, params, mult_adds):
    table = probe.layers(zoo.build_on_meta(name, in_channels=3, num_classes=1000), (1, 3, 224, 224))
    assert table.params.sum() / 1e6 == pytest.approx(params, abs=0.05)
    assert table.mult_adds.sum() / 1e6 == pytest.approx(mult_adds, abs=1.5)


def test_ordinary_blocks_stand_where_the_separable_ones_did():
    """Same maps after every block, and a ninth of the mult-adds, or a little more."""
    tables = [
        probe.layers(zoo.build_on_meta(name), (1, 1, 224, 224))
        for name in ("mobilenet", "mobilenet_full")
    ]
    for number in range(1, 14):
        parts = [t[t["layer"].str.startswith(f"block{number}.")] for t in tables]
        assert parts[0].output.iloc[-1] == parts[1].output.iloc[-1]
        costs = [part[part["kind"] == "Conv2d"].mult_adds.sum() for part in parts]
        filters = parts[0].output.iloc[-1][1]
        assert costs[0] / costs[1] == pytest.approx(1 / filters + 1 / 9)


@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_full"])
def test_no_convolution_has_a_bias_and_every_activation_is_cut_off_at_6(name):
    modules = list(zoo.build_on_meta(name).modules())
    assert [m for m in modules if isinstance(m, nn.Conv2d) and m.bias is not None] == []
    kinds = {type(m).__name__ for m in modules if not any(m.children())}
    pieces = {"Conv2d", "BatchNorm2d", "ReLU6", "AdaptiveAvgPool2d", "Flatten", "Linear"}
    assert kinds == pieces


def test_any_image_size_passes():
    model = zoo.build("mobilenet_025").eval()
    for size in (1, 28, 61):
        assert model(torch.zeros(1, 1, size, size)).shape == (1, 10)


def test_a_width_that_leaves_no_channels():
    with pytest.raises(ValueError, match=r"width=0\.01 leaves 0 of 32 channels"):
        zoo.build("mobilenet", width=0.01)


def test_images_with_other_channels():
    net, x = zoo.build("mobilenet_025"), torch.zeros(1, 3, 32, 32)
    with (
        pytest.raises(ValueError, match=r"'conv1'.*to have 1 channels"),
        told_by_layer(net, x.shape),
    ):
        net(x)
