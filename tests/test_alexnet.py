"""AlexNet against torchvision's, and what its forms promise."""

import pytest
import torch
from torch import nn
from torchvision.models import alexnet

from common import advice, data, probe, train, zoo
from common.train import Config

FORMS = (
    "alexnet",
    "alexnet_paper",
    "alexnet_small",
    "alexnet_half",
    "alexnet_cifar_plain",
    "alexnet_cifar",
    "alexnet_cifar_dropout",
)
WITHOUT_NORM = tuple(n for n in FORMS if n not in ("alexnet_cifar", "alexnet_cifar_dropout"))
TORCHVISIONS = (64, 192, 384, 256, 256, 4096)  # its channels, after Krizhevsky 2014


def weighted(model: nn.Module) -> list[nn.Module]:
    """The layers with weights, in the order of the forward pass."""
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def logits_and_gradient(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model says of x, and the gradient of a loss with respect to x."""
    x = x.clone().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(logits.square().mean(), x)
    return logits.detach(), gradient


def share_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give both models, built on the meta device, one set of float64 tensors, layer by layer."""
    generator = torch.Generator().manual_seed(0)
    for mine, other in zip(weighted(ours), weighted(theirs), strict=True):
        assert type(mine) is type(other)
        assert mine.weight.shape == other.weight.shape
        spread = (2 / mine.weight[0].numel()) ** 0.5  # keeps the signal's size
        for key, scale in (("weight", spread), ("bias", 0.1)):
            values = torch.empty(getattr(mine, key).shape, dtype=torch.float64)
            values.uniform_(-(3**0.5) * scale, 3**0.5 * scale, generator=generator)
            tensor = nn.Parameter(values, requires_grad=False)
            setattr(mine, key, tensor)
            setattr(other, key, tensor)


# ------------------------------------------------------------------------------------- torchvision


@pytest.fixture(scope="module")
def pair():
    """alexnet_half's geometry with torchvision's channels, beside torchvision's own."""
    ours = zoo.build_on_meta("alexnet_half", channels=TORCHVISIONS)
    with torch.device("meta"):
        theirs = alexnet()
    share_weights(ours, theirs)
    return ours, theirs


def test_agrees_with_torchvision(pair):
    """At the paper's size: the documented difference, the number of channels, is an argument."""
    ours, theirs = (model.eval() for model in pair)
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (logits, gradient), (their_logits, their_gradient) = (
        logits_and_gradient(model, x) for model in (ours, theirs)
    )
    assert logits.shape == (2, 1000)
    assert logits.std() > 0.1  # not the agreement of two dead nets
    assert gradient.abs().max() > 1e-6
    torch.testing.assert_close(logits, their_logits, rtol=1e-5, atol=1e-5)
    scale = gradient.abs().max().item()
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-5, atol=1e-5 * scale)


def test_half_drops_where_torchvision_drops(pair):
    """In training mode with one seed, the same values are dropped in the same places."""
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for model in pair:
        torch.manual_seed(0)
        found.append(model.train()(x))
    still = pair[0].eval()(x)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], still)


def test_the_papers_counts_in_torchvisions_channels():
    """61,100,840: the count that torchvision states for its weights."""
    ours = zoo.build_on_meta("alexnet_half", channels=TORCHVISIONS)
    assert sum(p.numel() for p in ours.parameters()) == 61_100_840


# --------------------------------------------------------------------------------------- the forms


def dropouts(name: str) -> dict[str, float]:
    """The layer before each dropout that drops, with its probability."""
    found, before = {}, ""
    for child, layer in zoo.build_on_meta(name).named_children():
        if isinstance(layer, nn.Dropout):
            if layer.p:
                found[before] = layer.p
        else:
            before = child
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet", {"act6": 0.5, "act7": 0.5}),
        ("alexnet_paper", {"act6": 0.5, "act7": 0.5}),
        ("alexnet_small", {"act6": 0.5, "act7": 0.5}),
        ("alexnet_half", {"flatten": 0.5, "act6": 0.5}),
        ("alexnet_cifar_plain", {}),
        ("alexnet_cifar", {}),
        ("alexnet_cifar_dropout", {"act1": 0.5, "act2": 0.5}),
        ("alexnet_cifar_037", {}),
    ],
)
def test_where_each_form_drops(name, expected):
    assert dropouts(name) == expected


@pytest.mark.parametrize("name", FORMS)
def test_an_activation_follows_each_layer_but_the_last(name):
    leaves = (m for m in zoo.build_on_meta(name).modules() if not any(m.children()))
    kinds = [type(m) for m in leaves]
    assert sum(kind in (nn.Conv2d, nn.Linear) for kind in kinds) == 8
    for i, kind in enumerate(kinds[:-1]):
        if kind in (nn.Conv2d, nn.Linear):
            after = kinds[i + 1 : i + 3]
            norm = [k for k in after[:1] if k in (nn.BatchNorm2d, nn.BatchNorm1d)]
            assert bool(norm) == (name not in WITHOUT_NORM)
            assert after[len(norm)] is nn.ReLU
    assert kinds[-1] is nn.Linear


def test_sigmoids_take_the_place_of_every_relu():
    model = zoo.build_on_meta("alexnet", activation=nn.Sigmoid)
    assert sum(isinstance(m, nn.Sigmoid) for m in model.modules()) == 7
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


def test_what_pool3_sees():
    """195 pixels in the paper's geometry; the small form's poolings do not overlap."""
    for name, field, stride in (("alexnet_paper", 195, 32), ("alexnet", 195, 32)):
        row = (
            probe.layers(zoo.build_on_meta(name), (1, 1, 224, 224)).set_index("layer").loc["pool3"]
        )
        assert (row["field"], row["stride"]) == (field, stride)
    pools = [
        m for m in zoo.build_on_meta("alexnet_small").children() if isinstance(m, nn.MaxPool2d)
    ]
    assert [(p.kernel_size, p.stride) for p in pools] == [(2, 2)] * 3


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [("alexnet", 224, 5), ("alexnet", 112, 2), ("alexnet", 96, 1), ("alexnet_paper", 224, 6),
     ("alexnet_paper", 227, 6), ("alexnet_small", 56, 7), ("alexnet_small", 28, 3)],
)  # fmt: skip
def test_the_classifier_follows_the_image(name, size, side):
    model = zoo.build_on_meta(name, image_size=size, width=0.25).eval()
    channels = model.conv5.out_channels
    assert model.fc1.in_features == channels * side**2
    assert model(torch.empty(2, 1, size, size, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("pool", [(2, 2), (3, 2), (3, 1)])
def test_the_classifier_follows_the_pooling(pool):
    model = zoo.build_on_meta("alexnet", pool=pool, width=0.1).eval()
    assert model(torch.empty(2, 1, 224, 224, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", FORMS)
def test_width_scales_every_hidden_layer(name):
    def sizes(width: float) -> list[int]:
        model = zoo.build_on_meta(name, width=width)
        return [getattr(m, "out_channels", None) or m.out_features for m in weighted(model)]

    full, quarter = sizes(1.0), sizes(0.25)
    assert quarter == [size // 4 for size in full[:-1]] + full[-1:]


@pytest.mark.parametrize("name", ["alexnet_small", "alexnet_cifar_plain", "alexnet_cifar"])
def test_every_layer_takes_part(name):
    """Nothing that the class defines is left out of the forward pass."""
    torch.manual_seed(0)
    model = zoo.build(name, width=0.125)
    model(torch.randn(4, *zoo.variant(name).input_shape)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.ndim > 1)


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", FORMS)
def test_a_width_that_leaves_nothing(name):
    with pytest.raises(ValueError, match=r"width=0\.001 leaves 0 of \d+ channels"):
        zoo.build_on_meta(name, width=0.001)


@pytest.mark.parametrize("size", [0, 10, 62])
def test_an_image_size_that_leaves_nothing(size):
    with pytest.raises(ValueError, match=f"image_size={size} leaves no pixels"):
        zoo.build_on_meta("alexnet", image_size=size)


@pytest.mark.parametrize("name", FORMS)
def test_images_that_do_not_fit(name):
    channels, height, _ = zoo.variant(name).input_shape
    model = zoo.build(name, width=0.05)
    for shape, words in (
        ((2, channels + 1, height, height), f"conv.*to have {channels} channels"),
        ((2, channels, 3, 3), "ran out of pixels"),
        ((2, channels, 2 * height, 2 * height), "'fc1'.*cannot be multiplied"),
    ):
        with pytest.raises(ValueError, match=words), advice.told_by_layer(model, shape):
            model(torch.zeros(shape))


def test_fit_refuses_images_that_do_not_fit():
    digits = data.load("digits")
    with pytest.raises(ValueError, match="do not fit this net"):
        train.fit(zoo.build("alexnet_small", width=0.05), digits, Config(epochs=1), show=False)
