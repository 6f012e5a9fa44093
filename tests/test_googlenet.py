"""GoogLeNet: torchvision's with the documented differences undone, and what its variants promise.

torchvision has 3 x 3 kernels where the paper has 5 x 5, a 2 x 2 pooling before module 5a, and
batch normalisation with an epsilon of 0.001 after every convolution. `theirs` puts the paper's
parts back; what remains is compared weight by weight.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import GoogLeNet as TorchvisionGoogLeNet

from common import advice, data, probe, zoo
from common.train import Config, fit, loss_of, main_output

SIZE = 96  # pixels; the smallest maps are 3 x 3
build = partial(zoo.build, in_channels=3, num_classes=7, dropout=0.0)


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def theirs(auxiliary: bool) -> TorchvisionGoogLeNet:
    """torchvision's net with the paper's kernels and poolings."""
    net = TorchvisionGoogLeNet(
        num_classes=7, aux_logits=auxiliary, init_weights=False, dropout=0.0, dropout_aux=0.0
    )
    for name, module in net.named_children():
        if name.startswith("inception"):
            small = module.branch3[1].conv
            module.branch3[1].conv = nn.Conv2d(
                small.in_channels, small.out_channels, 5, padding=2, bias=False
            )
    net.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return net.double().eval()


def randomise(model: nn.Module) -> nn.Module:
    """Weights that let the signal through all 22 layers, biases and statistics that are not 0."""
    torch.manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model.double().eval()


def in_their_order(net: nn.Module) -> list[nn.Module]:
    """Our modules in torchvision's order, where the auxiliary classifiers come last but one."""
    children = dict(net.named_children())
    aside = [children.pop(name) for name in list(children) if name.startswith("aux")]
    last = children.pop("fc")
    return [*children.values(), *aside, last]


def copy_weights(ours: nn.Module, target: TorchvisionGoogLeNet) -> None:
    """Copy by order and shape; a bias of ours becomes the shift of their normalisation."""
    ordered = nn.ModuleList(in_their_order(ours))
    for source, copy, norm in zip(
        convolutions(ordered), convolutions(target), norms(target), strict=True
    ):
        copy.load_state_dict({"weight": source.weight})
        if source.bias is not None:  # then the normalisation is to do nothing else
            norm.eps = 1e-12
            nn.init.ones_(norm.weight)
            norm.load_state_dict(norm.state_dict() | {"bias": source.bias})
    for source, copy in zip(norms(ordered), norms(target) if norms(ordered) else [], strict=True):
        copy.eps = source.eps
        copy.load_state_dict(source.state_dict())
    linear = [[m for m in net.modules() if isinstance(m, nn.Linear)] for net in (ordered, target)]
    for source, copy in zip(*linear, strict=True):
        copy.load_state_dict(source.state_dict())


def logits_and_gradient(net: Callable, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    outputs = net(x)
    y = torch.arange(len(x)) % 7
    (gradient,) = torch.autograd.grad(loss_of(outputs, y), x)
    together = torch.cat(outputs, dim=1) if isinstance(outputs, tuple) else outputs
    return together.detach(), gradient


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest value, which must be one."""
    size = expected.abs().max()
    assert size > 1e-6
    assert (found - expected).abs().max() < 1e-5 * size


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_agrees_with_torchvision(name: str):
    ours, target = randomise(build(name)), theirs(auxiliary=False)
    copy_weights(ours, target)
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    for found, expected in zip(
        logits_and_gradient(ours, x), logits_and_gradient(target, x), strict=True
    ):
        assert_close(found, expected)


def test_auxiliary_classifiers_agree_with_torchvision():
    """All three outputs, and the gradient of the three losses with respect to the images."""
    ours, target = randomise(build("googlenet_aux")), theirs(auxiliary=True)
    copy_weights(ours, target)
    ours.training = target.training = True  # of the whole net only, so that all three answer
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    found, gradient = logits_and_gradient(ours, x)
    assert found.shape == (2, 21)
    expected, expected_gradient = logits_and_gradient(lambda x: in_our_order(target(x)), x)
    assert_close(found, expected)
    assert_close(gradient, expected_gradient)


def in_our_order(outputs) -> tuple[torch.Tensor, ...]:
    """torchvision returns the second auxiliary classifier before the first."""
    return outputs.logits, outputs.aux_logits1, outputs.aux_logits2


def test_auxiliary_classifiers_answer_in_training_only():
    net = zoo.build("googlenet_aux", width=0.125)
    x = torch.randn(2, 1, 64, 64)
    outputs = net.train()(x)
    assert [tuple(o.shape) for o in outputs] == [(2, 10)] * 3
    assert main_output(outputs) is outputs[0]
    assert net.eval()(x).shape == (2, 10)
    assert zoo.build("googlenet", width=0.125).train()(x).shape == (2, 10)


def test_auxiliary_loss_goes_past_the_upper_modules():
    """Each classifier's gradient reaches the modules below it, and none above."""
    net = zoo.build("googlenet_aux", width=0.125)
    _, first, second = net.train()(torch.randn(2, 1, 64, 64))
    for output, reached, not_reached in ((first, "4a", "4b"), (second, "4d", "4e")):
        net.zero_grad()
        cross_entropy(output, torch.tensor([0, 1])).backward(retain_graph=True)
        below = net.get_submodule(f"inception{reached}.branch5")
        above = net.get_submodule(f"inception{not_reached}.branch5")
        assert all(p.grad is not None and p.grad.any() for p in below.parameters())
        assert all(p.grad is None or not p.grad.any() for p in above.parameters())


def test_auxiliary_losses_strengthen_the_gradient_of_the_stem():
    """The notebook's claim, for the untrained net without batch normalisation."""
    torch.manual_seed(0)
    net = zoo.build("googlenet_aux", width=0.25).train()
    x, y = torch.randn(16, 1, 64, 64), torch.arange(16) % 10
    weight = net.stem.conv1.conv.weight
    (alone,) = torch.autograd.grad(loss_of(main_output(net(x)), y), weight)
    (together,) = torch.autograd.grad(loss_of(net(x), y), weight)
    assert together.norm() > 10 * alone.norm()


def test_history_keeps_the_main_loss_only():
    """With the auxiliary ones it would be 1.6 ln 10 at the start, and nothing could be compared."""
    config = Config(epochs=1, batch_size=16, train_images=32, image_size=40, lr=1e-6)
    net = zoo.build("googlenet_aux", width=0.125)
    history = fit(net, data.load("digits"), config, show=False)
    assert history.batch_losses == pytest.approx([math.log(10)] * 2, abs=0.3)


def test_only_the_plain_nets_have_biases():
    for name, biases in (("googlenet", True), ("googlenet_aux", True), ("googlenet_bn", False)):
        net = zoo.build_on_meta(name)
        assert {c.bias is not None for c in convolutions(net)} == {biases}
        assert len(norms(net)) == (0 if biases else 57)


def test_the_paper_s_setting():
    """Three channels, 1,000 classes: the fidelity card's figures, and 22 layers with weights."""
    net = zoo.build_on_meta("googlenet", in_channels=3, num_classes=1000)
    layers = probe.layers(net, (1, 3, 224, 224)).set_index("layer")
    assert layers.params.sum() == 6_998_552
    assert layers.mult_adds.sum() == pytest.approx(1.586e9, rel=1e-3)
    assert layers.attrs["receptive_field"] == 715


def test_width_scales_every_channel():
    half = zoo.build_on_meta("googlenet", width=0.5)
    full = zoo.build_on_meta("googlenet")
    for small, large in zip(convolutions(half), convolutions(full), strict=True):
        assert 2 * small.out_channels == large.out_channels


@pytest.mark.parametrize("size", [33, 56, 64, 96])
def test_smaller_images_pass(size: int):
    net = zoo.build("googlenet_aux", width=0.125)
    assert all(o.shape == (2, 10) for o in net.train()(torch.randn(2, 1, size, size)))


@pytest.mark.parametrize("name", ["googlenet", "googlenet_aux", "googlenet_bn"])
def test_bad_input(name: str):
    net = zoo.build(name, width=0.125).eval()
    for shape, words in (
        ((1, 3, 64, 64), "'stem.conv1.conv'.*to have 1 channels"),
        ((1, 1, 28, 28), "ran out of pixels"),
    ):
        with pytest.raises(ValueError, match=words), advice.told_by_layer(net, shape):
            net(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"width=0\.01"):
        zoo.build(name, width=0.01)
