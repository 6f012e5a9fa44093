"""DenseNet against torchvision's, what its blocks keep, and what does not fit it."""

import math

import pytest
import torch
import torchvision
from torch import nn

from common import zoo
from common.advice import told_by_layer


def torchvisions(name: str) -> nn.Module:
    """torchvision's DenseNet at the same setting, for 3 channels."""
    if name == "densenet121":
        return torchvision.models.densenet121()
    model = torchvision.models.DenseNet(12, (6, 12, 24, 16), num_init_features=24, num_classes=10)
    model.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    for layer in ("norm0", "relu0", "pool0"):
        setattr(model.features, layer, nn.Identity())
    return model


def copy_by_order(source: nn.Module, target: nn.Module) -> None:
    """Give every tensor of `target` the values of its counterpart in `source`."""
    values, places = source.state_dict().values(), target.state_dict()
    assert [v.shape for v in values] == [p.shape for p in places.values()]
    target.load_state_dict(dict(zip(places, values, strict=True)))


@pytest.mark.parametrize(("name", "num_classes"), [("densenet121", 1000), ("densenet_cifar", 10)])
def test_outputs_and_gradients_are_torchvisions(name, num_classes):
    torch.manual_seed(0)
    ours = zoo.build(name, in_channels=3, num_classes=num_classes).double()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):  # normalisations that do something
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
            module.bias.data.normal_()
    theirs = torchvisions(name).double()
    copy_by_order(ours, theirs)
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64, requires_grad=True)
    outputs = [model.eval()(x) for model in (ours, theirs)]
    assert outputs[1].std() > 1e-3  # there is something to compare
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    loss = torch.randn(num_classes, dtype=torch.float64)
    gradients = [torch.autograd.grad((out @ loss).sum(), x)[0] for out in outputs]
    scale = gradients[1].abs().max()
    assert scale > 0
    torch.testing.assert_close(*(g / scale for g in gradients), atol=1e-5, rtol=1e-5)


def test_a_block_keeps_what_came_in():
    block = zoo.build("densenet_cifar").eval().block1
    x = torch.randn(2, 24, 4, 4)
    out = block(x)
    assert out.shape == (2, 24 + 6 * 12, 4, 4)
    assert torch.equal(out[:, :24], x)
    again = block[0](x)
    assert torch.equal(out[:, :36], again)  # and what each layer added


def test_growth_rate_is_an_option():
    model = zoo.build_on_meta("densenet_cifar", growth_rate=4, blocks=(2, 3))
    assert model.fc.in_features == (8 + 2 * 4) // 2 + 3 * 4


def test_convolutions_begin_as_kaiming_says():
    torch.manual_seed(0)
    for name, layer in zoo.build("densenet_cifar").named_modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 2000:
            fan_in = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1), name


def test_a_growth_rate_of_nothing():
    with pytest.raises(ValueError, match=r"growth_rate=0.*at least 1"):
        zoo.build("densenet_cifar", growth_rate=0)


def test_an_image_too_small():
    net, x = zoo.build("densenet121").eval(), torch.zeros(1, 1, 16, 16)
    words = r"transition3.*ran out of pixels"
    with pytest.raises(ValueError, match=words), told_by_layer(net, x.shape):
        net(x)


def test_images_with_other_channels():
    net, x = zoo.build("densenet_cifar"), torch.zeros(1, 1, 32, 32)
    with (
        pytest.raises(ValueError, match=r"'conv1'.*to have 3 channels"),
        told_by_layer(net, x.shape),
    ):
        net(x)
