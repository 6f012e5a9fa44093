"""ResNet against torchvision, its report variants against what they claim, and bad input."""

import copy

import pytest
import torch
import torchvision
from common.zoo.resnet import PlainBlock, ResidualBlock, SharedBlock
from torch import nn

from common import advice, probe, zoo
from common.zoo import resnet

NAMES = [variant.name for variant in resnet.VARIANTS]
every_resnet = pytest.mark.parametrize("name", NAMES)


def awakened(net: nn.Module) -> nn.Module:
    """In float64, for evaluation, with random statistics and scales: fresh ones hide mistakes."""
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
    return net.double().eval()


def gradient_at(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The gradient of a loss with respect to the images x, labels 0, 1, 2, …"""
    x = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(net(x), torch.arange(len(x)))
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_resnet_agrees_with_torchvision(name: str):
    ours = awakened(zoo.build(name, in_channels=3, num_classes=1000))
    theirs = getattr(torchvision.models, name)(weights=None).double().eval()
    pairs = zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True)
    for their_tensor, our_tensor in pairs:
        assert their_tensor.shape == our_tensor.shape
        their_tensor.copy_(our_tensor)
    x = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(gradient_at(ours, x), gradient_at(theirs, x), rtol=1e-5, atol=1e-10)


def test_resnet_starts_with_kaiming_weights():
    """As torchvision's: standard deviation sqrt(2 / fan-out)."""
    torch.manual_seed(0)
    net = zoo.build("resnet18")
    for conv in (net.conv1, net.stage1[0].conv1, net.stage4[0].conv2):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


@pytest.mark.parametrize("stride", [1, 2])
def test_plain_block_is_a_residual_block_without_its_shortcut(stride: int):
    residual = awakened(ResidualBlock(4, 4, stride))
    plain = awakened(PlainBlock(4, 4, stride))
    plain.load_state_dict(residual.state_dict(), strict=False)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    way = plain.norm2(plain.conv2(plain.norm1(plain.conv1(x)).relu()))
    torch.testing.assert_close(residual(x), (way + residual.shortcut(x)).relu())
    torch.testing.assert_close(plain(x), way.relu())
    assert not torch.allclose(residual(x), plain(x))


def test_shared_shortcut_is_the_first_convolution():
    """The sum written out with a copy of the weights, and twice the use in their gradient."""
    block = awakened(SharedBlock(3, 5, stride=2))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    shortcut = copy.deepcopy(block.conv1)
    expected = (block.norm2(block.conv2(block.norm1(block.conv1(x)).relu())) + shortcut(x)).relu()
    torch.testing.assert_close(block(x), expected)
    assert sum(p.numel() for p in block.parameters()) == 9 * (3 * 5 + 5 * 5) + 4 * 5

    block(x).sum().backward()
    shared = block.conv1.weight.grad.clone()
    block.zero_grad()
    expected.sum().backward()
    torch.testing.assert_close(shared, block.conv1.weight.grad + shortcut.weight.grad)


def test_shared_block_of_one_shape_adds_its_input():
    block = awakened(SharedBlock(4, 4))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    way = block.norm2(block.conv2(block.norm1(block.conv1(x)).relu()))
    torch.testing.assert_close(block(x), (way + x).relu())


def test_biased_resnet_has_a_bias_in_every_convolution_and_bare_projections():
    convolutions = {
        name: [m for m in zoo.build_on_meta(name).modules() if isinstance(m, nn.Conv2d)]
        for name in ("resnet18_bias", "resnet18")
    }
    assert all(conv.bias is not None for conv in convolutions["resnet18_bias"])
    assert all(conv.bias is None for conv in convolutions["resnet18"])
    net = zoo.build_on_meta("resnet18_bias")
    shortcuts = [
        block.shortcut for stage in (net.stage2, net.stage3, net.stage4) for block in stage
    ]
    assert [type(s).__name__ for s in shortcuts] == ["Conv2d", "Sequential"] * 3


@every_resnet
def test_resnet_has_a_shortcut_in_every_block_or_in_none(name: str):
    """With each block's last scale at 0, an image reaches the classifier by shortcuts alone."""
    net = zoo.build(name, width=0.0625).eval()
    for block in net.modules():
        if isinstance(block, PlainBlock | ResidualBlock):
            nn.init.zeros_(block.norm2.weight)
    x = torch.randn(2, net.conv1.in_channels, 32, 32)
    same = torch.equal(*net(x).split(1))
    assert same == name.startswith("plain")


def test_cifar_resnet_keeps_the_size_in_its_stem():
    table = probe.layers(zoo.build_on_meta("resnet18_cifar"), (1, 3, 32, 32)).set_index("layer")
    assert table.output["conv1"] == (1, 64, 32, 32)
    assert table.output["stage4.1.act2"] == (1, 512, 4, 4)


def test_dropout_is_report_d_s_alone():
    rates = {name: zoo.build_on_meta(name).drop.p for name in NAMES}
    assert rates == {name: 0.5 * (name == "resnet18_shared") for name in NAMES}


def test_width_scales_every_stage_of_resnet():
    net = zoo.build("resnet34", width=0.25)
    stages = (net.stage1, net.stage2, net.stage3, net.stage4)
    assert [stage[-1].conv2.out_channels for stage in stages] == [16, 32, 64, 128]
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@every_resnet
def test_a_width_that_leaves_nothing(name: str):
    with pytest.raises(ValueError, match=r"width=0\.005 leaves 0 of 64"):
        zoo.build(name, width=0.005)


def test_resnet_refuses_images_of_other_channels():
    net, x = zoo.build("resnet18", width=0.0625), torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"'conv1'.* to have 1 channels"):  # noqa: SIM117
        with advice.told_by_layer(net, x.shape):
            net(x)
