"""The probe: counts against independent counts, fields of view against gradients."""

import math
import threading
import time
from functools import partial

import pytest
import torch
import torchinfo
import torchvision
from random_input import CASES
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from common import probe, zoo
from common.probe.fields import POINTWISE, pair

# An even kernel with padding="same" makes torch warn that it pads one side more: as it should.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

# --------------------------------------------------------------------- nets of every awkward kind


class Inception(nn.Module):
    """Four branches with different kernels, concatenated."""

    def __init__(self, channels=2):
        super().__init__()
        self.one = nn.Conv2d(channels, 1, 1)
        self.three = nn.Conv2d(channels, 2, 3, padding=1)
        self.five = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Conv2d(1, 1, 5, padding=2))
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)

    def forward(self, x):
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class Residual(nn.Module):
    """Two convolutions and a projection shortcut, added in place."""

    def __init__(self, stride=2):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(2, 4, 1, stride=stride)

    def forward(self, x):
        out = self.conv2(self.relu(self.bn1(self.conv1(x))))
        out += self.shortcut(x)
        return self.relu(out)


class Identity(nn.Module):
    """A shortcut that is an empty Sequential, as many write it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.shortcut = nn.Sequential()

    def forward(self, x):
        return self.conv(x) + self.shortcut(x)


class Cropped(nn.Module):
    """A branch without padding beside one whose output is cropped to fit, off centre."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 2, 3, stride=2)
        self.valid = nn.Conv2d(2, 2, (3, 5))
        self.side = nn.Conv2d(2, 2, 3, padding=1)
        self.after = nn.Conv2d(4, 2, 2)

    def forward(self, x):
        x = self.first(x)
        side = self.side(x)[:, :, 2:, 1:-3]
        return self.after(torch.cat([self.valid(x), side], 1))


class Subsampled(nn.Module):
    """A shortcut without parameters: every second pixel, and channels of zeros."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.last = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return self.last(self.conv(x) + shortcut)


class Dense(nn.Module):
    """Each convolution sees everything before it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.transition = nn.Sequential(nn.Conv2d(9, 4, 1), nn.AvgPool2d(2))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.transition(x)


class Shared(nn.Module):
    """One convolution called twice, and its weights used a third time."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(self.conv(self.conv(x)))
        return self.pool(F.conv2d(x, self.conv.weight, stride=2))


class Functional(nn.Module):
    """Pooling without a layer, whose stride is the window's size unless given."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 3)
        self.conv2 = nn.Conv2d(2, 2, 3)

    def forward(self, x):
        x = F.avg_pool2d(self.conv1(x), 3)
        return self.conv2(F.avg_pool2d(x, (2, 3), stride=1))


NETS = {
    "stack": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 5, stride=2, padding=2), nn.Conv2d(4, 2, 3)
    ),
    "dilated": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, dilation=2, padding=2), nn.Conv2d(4, 2, 3, dilation=3, stride=2)
    ),
    "not square": lambda: nn.Sequential(
        nn.Conv2d(2, 4, (3, 5), stride=(2, 1), padding=(0, 2)),
        nn.Conv2d(4, 2, (1, 7), dilation=(1, 2)),
        nn.AvgPool2d((3, 1), stride=(1, 2)),
    ),
    "pools": lambda: nn.Sequential(
        nn.MaxPool2d(3, 2),
        nn.Conv2d(2, 2, 3),
        nn.AvgPool2d(2),
        nn.MaxPool2d(3, stride=1, dilation=2, padding=1),
        nn.AvgPool2d(3, stride=2, padding=1),
    ),
    "even kernel, padding by name": lambda: nn.Sequential(
        nn.Conv2d(2, 2, 4, padding="same"), nn.Conv2d(2, 2, 3, padding="same", dilation=2)
    ),
    "padded on one side": lambda: nn.Sequential(
        nn.ZeroPad2d((3, 0, 0, 1)),
        nn.Conv2d(2, 2, 3, stride=2),
        nn.ZeroPad2d(-1),
        nn.Conv2d(2, 2, 2),
    ),
    "grouped, depthwise, normalised": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1, bias=False),
        nn.Dropout2d(),
        nn.Conv2d(4, 6, 1),
        nn.ChannelShuffle(2),
        nn.Conv2d(6, 2, 3, groups=2),
    ),
    "inception": lambda: nn.Sequential(
        nn.Conv2d(2, 2, 3, stride=2), Inception(), nn.Conv2d(6, 2, 3)
    ),
    "residual": lambda: nn.Sequential(Residual(), nn.Conv2d(4, 2, 3), Residual(1)),
    "identity": lambda: nn.Sequential(Identity(), nn.MaxPool2d(2), Identity()),
    "cropped": Cropped,
    "subsampled": Subsampled,
    "dense": Dense,
    "shared": Shared,
    "functional": Functional,
    "classifier": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
        nn.BatchNorm1d(3),
        nn.ReLU(),
        nn.Linear(3, 10, bias=False),
    ),
}  # fmt: skip
SHAPE = (1, 2, 78, 94)
# From some layer on they hold what the probe does not follow: pixels added or left out, or channels
# exchanged, between layers.
NOT_FOLLOWED = {
    "even kernel, padding by name", "padded on one side", "grouped, depthwise, normalised",
    "cropped", "subsampled",
}  # fmt: skip


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]()


def rows(table, *columns):
    return list(table[list(columns)].itertuples(index=False, name=None))


# ---------------------------------------------------------------------------------------- counts


def test_counts_of_every_net(net):
    shape = (3, *SHAPE[1:])
    table = probe.layers(net, shape)
    assert table["params"].sum() == sum(p.numel() for p in net.parameters())
    summary = torchinfo.summary(net, input_size=shape, device="cpu", verbose=0)
    of_layers = table[table["kind"] != "convolution"]["mult_adds"].sum()  # torchinfo sees no others
    assert of_layers == summary.total_mult_adds
    assert probe.mult_adds(net, shape) == table["mult_adds"].sum()
    assert table.attrs["unseen_params"] == 0


@pytest.mark.parametrize(
    "build",
    [torchvision.models.mobilenet_v2, torchvision.models.resnext50_32x4d],
)
def test_counts_of_large_nets(build):
    """mult-adds of convolutions and products by torch's own counter of operations."""
    with torch.device("meta"):
        model = build().eval()
    shape = (1, 3, 224, 224)
    table = probe.layers(model, shape)
    assert table["params"].sum() == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(shape, device="meta"))
    convolutions = table[table["kind"].isin(["Conv2d", "Linear"])]
    biases = 1000  # torchinfo counts the bias of the last layer, the only one
    assert convolutions["mult_adds"].sum() - biases == counter.get_total_flops() / 2


def test_rows_follow_the_forward_pass():
    table = probe.layers(zoo.build("lenet5_bn"), (2, 1, 32, 32))
    assert rows(table, "layer", "kind", "output", "params", "mult_adds", "field", "stride")[:6] == [
        ("conv1", "Conv2d", (2, 6, 28, 28), 156, 2 * 156 * 28 * 28, 5, 1),
        ("norm1", "BatchNorm2d", (2, 6, 28, 28), 12, 2 * 12, 5, 1),
        ("act1", "ReLU", (2, 6, 28, 28), 0, 0, 5, 1),
        ("pool1", "MaxPool2d", (2, 6, 14, 14), 0, 0, 6, 2),
        ("conv2", "Conv2d", (2, 16, 10, 10), 2416, 2 * 2416 * 10 * 10, 14, 2),
        ("norm2", "BatchNorm2d", (2, 16, 10, 10), 32, 2 * 32, 14, 2),
    ]
    assert rows(table, "layer", "output", "field", "stride")[-1] == ("fc3", (2, 10), "all", "all")
    assert table["activation_bytes"][0] == 2 * 6 * 28 * 28 * 4
    assert table.attrs["receptive_field"] == 16


def test_a_module_called_twice():
    table = probe.layers(Shared(), SHAPE)
    assert rows(table, "layer", "params", "field")[:2] == [("conv", 38, 3), ("conv", 0, 5)]
    assert table["mult_adds"][0] == 38 * 76 * 92
    assert table["mult_adds"][1] == 38 * 74 * 90


def test_weights_that_two_modules_share_count_once():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    model[1].weight = model[0].weight
    table = probe.layers(model, SHAPE)
    assert list(table["params"]) == [38, 2]
    assert table["params"].sum() == sum(p.numel() for p in model.parameters())


def test_the_probe_leaves_the_model_alone():
    torch.manual_seed(0)
    model = zoo.build("lenet5_bn").train()
    called = []
    model.conv1.register_forward_hook(lambda *_: called.append("after conv1"))
    model.conv1.register_forward_pre_hook(lambda *_: called.append("before conv1"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    probe.layers(model, (2, 1, 32, 32))
    assert called == []
    assert all(m.training for m in model.modules())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class RealBytes(TorchDispatchMode):
    """Adds up the bytes of all tensors made that are not on the meta device."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.total += tensor.nbytes
        return result


def test_vgg19_takes_no_memory_and_no_time():
    with torch.device("meta"):
        model = torchvision.models.vgg19()
    with RealBytes() as real:
        start = time.process_time()
        table = probe.layers(model, (64, 3, 224, 224))
        seconds = time.process_time() - start
    assert table["params"].sum() == 143_667_240
    assert table["activation_bytes"].max() == 64 * 64 * 224 * 224 * 4
    assert real.total < 1e6
    assert seconds < 0.8


def test_a_net_with_weights_is_not_copied():
    with RealBytes() as real:
        model = nn.Sequential(nn.Flatten(), nn.Linear(1000, 1000))
        made, real.total = real.total, 0
        probe.layers(model, (1, 1, 10, 100))
    assert made >= 4e6  # the counter counts
    assert real.total < 1e4


# -------------------------------------------------------------------------------- fields of view


class MeanPool(nn.Module):
    """The mean over a max pool's windows: every pixel in view gets a gradient."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        p, sides = self.pool, []
        settings = map(pair, (p.kernel_size, p.stride, p.padding, p.dilation))
        ways = zip(x.shape[2:], p(x).shape[2:], *settings, strict=True)
        for size, windows, kernel, stride, padding, dilation in ways:  # the last may hang over
            sides = [padding, (windows - 1) * stride + dilation * (kernel - 1) + 1 - padding - size]
            x = F.pad(x.transpose(2, 3), sides)
        ones = torch.ones(x.shape[1], 1, *pair(p.kernel_size), dtype=x.dtype)
        return F.conv2d(x, ones, None, p.stride, 0, p.dilation, len(ones))


def positive(net):
    """The net with max pools replaced and all weights above 0, so that no gradient cancels."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d) and not isinstance(module, MeanPool):
                setattr(module, name, MeanPool(child))
    for weight in net.parameters():
        nn.init.uniform_(weight, 0.1, 1)
    return net.double().eval()


def outputs(net, x):
    """What each call of a layer puts out, in order."""
    kept = []
    leaves = [m for m in net.modules() if isinstance(m, MeanPool) or not list(m.children())]
    leaves = [m for m in leaves if not isinstance(m, nn.MaxPool2d)]
    for leaf in leaves:
        leaf.register_forward_hook(lambda _, __, output: kept.append(output.clone()))
    net(x)
    return kept


def in_view(output, x):
    """Which pixels (H, W) of x get a gradient from `output`, one value or the sum of several."""
    (gradient,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
    return (gradient != 0).any(1)[0]


def span(line):
    """(first, last) index that is set along one axis."""
    places = line.nonzero().flatten()
    return places[0].item(), places[-1].item()


def described(vertical, horizontal):
    return vertical if vertical == horizontal else f"{vertical} x {horizontal}"


def compare_with_gradients(net, shape):
    """Hold each layer's field and stride against the pixels that get a gradient.

    Returns how many layers see a part of the image that is known, and of how many it is not.
    """
    table = probe.layers(net, shape)
    table = table[table["kind"] != "convolution"]  # a function: there is no module to listen to
    x = torch.rand(shape, dtype=torch.double, requires_grad=True)
    kept = outputs(positive(net), x)
    assert len(kept) == len(table)
    local = unknown = 0
    for row, output in zip(table.itertuples(), kept, strict=True):
        if row.field == "not known":
            unknown += 1
            continue
        if row.field == "all":
            assert in_view(output, x).all(), row.layer
            continue
        i, j = output.shape[2] // 2 - 1, output.shape[3] // 2 - 1
        seen = in_view(output[:, :, i, j], x)
        further = in_view(output[:, :, i + 1, j + 1], x)
        (top, bottom), (left, right) = span(seen.any(1)), span(seen.any(0))
        assert top > 0, "the image is too small for this test"
        assert left > 0
        assert max(span(further.any(1))[1], 0) < shape[2] - 1
        assert row.field == described(bottom - top + 1, right - left + 1), row.layer
        shifts = span(further.any(1))[0] - top, span(further.any(0))[0] - left
        assert row.stride == described(*shifts), row.layer
        local += 1
    return local, unknown


@pytest.mark.parametrize("name", NETS)
def test_fields_are_what_the_gradients_say(name):
    local, unknown = compare_with_gradients(NETS[name](), SHAPE)
    assert local > 0 or name in NOT_FOLLOWED
    assert (unknown > 0) == (name in NOT_FOLLOWED)


@pytest.mark.parametrize("seed", range(12))
def test_fields_of_random_nets(seed):
    """Stacks of random convolutions and pools, with kernels, strides and paddings by axis."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[torch.randint(len(options), (), generator=generator)]

    layers = []
    for _ in range(4):
        kernel = pick(1, 2, 3, 5), pick(1, 2, 3, 5)
        padding = pick(0, kernel[0] // 2), pick(0, kernel[1] // 2)
        stride = (pick(1, 2), pick(1, 2)) if len(layers) < 2 else 1
        if pick(True, True, False):
            layers.append(nn.Conv2d(2, 2, kernel, stride, padding, (pick(1, 2), pick(1, 3))))
        else:
            layers.append(pick(nn.MaxPool2d, nn.AvgPool2d)(kernel, stride, padding))
    assert compare_with_gradients(nn.Sequential(*layers), (1, 2, 90, 110)) == (4, 0)


def check_pixels(net, x):
    """Hold the very rows and columns that the positions of the last map, or a vector, see.

    True where they are known.
    """
    recorder, output = probe.trace(net, tuple(x.shape))
    seen = recorder.tracker.fields[id(output)]
    if seen is None:
        return False
    y = positive(net)(x)
    y = y if y.ndim == 4 else y.flatten(1)[:, :, None, None]
    for i in {0, 1, y.shape[2] // 2, y.shape[2] - 1} & set(range(y.shape[2])):
        for j in {0, 1, y.shape[3] // 2, y.shape[3] - 1} & set(range(y.shape[3])):
            pixels = in_view(y[:, :, i, j], x)
            lines = [pixels.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0)]
            assert [seen[0].sees[i], seen[1].sees[j]] == [sum(1 << p for p in n) for n in lines]
    return True


@pytest.mark.parametrize("name", sorted(NETS.keys() - NOT_FOLLOWED))
def test_the_place_of_a_field(name):
    """Not only how large it is: paddings move it, and edges cut it."""
    assert check_pixels(NETS[name](), torch.rand(SHAPE, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize(
    ("build", "field"), [(torchvision.models.vgg16, 212), (torchvision.models.resnet18, 435)]
)
def test_published_fields(build, field):
    """Araujo et al. 2019, Computing receptive fields of convolutional neural networks, table 1."""
    with torch.device("meta"):
        model = build()
    assert probe.receptive_field(model, (1, 3, 224, 224)) == field


def test_max_pooling_as_a_function():
    class Pooled(nn.Conv2d):
        def forward(self, x):
            return super().forward(F.max_pool2d(x, (2, 3)))

    table = probe.layers(Pooled(1, 1, 3), (1, 1, 20, 30))
    assert rows(table, "field", "stride") == [("6 x 9", "2 x 3")]


def test_a_net_that_sees_all_at_once():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert probe.receptive_field(model, (1, 3, 2, 2)) == "all"


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("ask", [probe.layers, probe.depth])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 8, 8), r"'conv2'.*\(1, 6, 2, 2\).*ran out of pixels"),
        ((1, 1, 40, 40), r"'fc1'.*takes 256 values"),
        ((1, 3, 28, 28), r"'conv1'.*takes 1 channels.*in_channels=3"),
    ],
)
def test_an_input_that_does_not_fit_names_the_layer(ask, shape, message):
    with pytest.raises(ValueError, match=message):
        ask(zoo.build("lenet5"), shape)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lenet5", 5), ("alexnet", 8), ("vgg11", 11), ("vgg19", 19), ("nin", 12),
        ("googlenet", 22), ("googlenet_aux", 22), ("resnet18", 18), ("resnet34", 34),
        ("plain34", 34), ("mobilenet", 28), ("densenet121", 121),
    ],
)  # fmt: skip
def test_depth_is_what_the_papers_state(name, expected):
    net = zoo.build_on_meta(name)
    assert probe.depth(net, (1, *zoo.variant(name).input_shape)) == expected


# ----------------------------------------------------------------------- what is not in a layer


class Held(nn.Module):
    """Weights beside the layers, and a convolution without one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.kernel = nn.Parameter(torch.rand(4, 4, 3, 3))
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.spare = nn.Linear(2, 3)

    def forward(self, x):
        return F.conv2d(self.conv(x), self.kernel) * self.scale


class IntoAView(nn.Module):
    """What its layers compute is written into a part of another tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x):
        y = torch.zeros(len(x), 2, *x.shape[2:], device=x.device)
        y[:, :, :4] = self.second(self.first(x))[:, :, :4]
        return y


class Cosine(nn.Module):
    """A linear layer whose weights are normalised as it runs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(10, 64))

    def forward(self, x):
        return F.linear(x.flatten(1), self.weight / self.weight.norm(dim=1, keepdim=True))


class OnPixels(nn.Module):
    """A linear layer at each pixel: its input is not contiguous, and torch adds the bias apart."""

    def __init__(self, contiguous: bool):
        super().__init__()
        self.layer, self.contiguous = nn.Linear(5, 10), contiguous

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        return self.layer(x.contiguous() if self.contiguous else x).mean((1, 2))


def test_depth_goes_through_views_and_weights_made_ready():
    assert probe.depth(IntoAView(), (1, 1, 8, 8)) == 2
    assert probe.depth(Cosine(), (1, 1, 8, 8)) == 1


def test_a_linear_layer_costs_the_same_however_torch_computes_it():
    for contiguous in (True, False):
        assert probe.mult_adds(OnPixels(contiguous), (1, 5, 8, 10)) == 80 * 10 * (5 + 1)


@pytest.mark.parametrize("normalise", [weight_norm, spectral_norm, nn.utils.weight_norm])
def test_reparametrised_weights_are_counted(normalise):
    """Their layer borrows them from another module, or from its own hook."""
    net = nn.Sequential(normalise(nn.Conv2d(3, 8, 3)), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))
    table = probe.layers(net, (1, 3, 16, 16))
    assert table["params"].sum() == sum(p.numel() for p in net.parameters())
    assert table.attrs["unseen_params"] == 0
    assert (table["field"] == 3).sum() == 1
    assert probe.mult_adds(net, (1, 3, 16, 16)) == (27 * 8 + 8) * 14**2 + (8 * 14**2 + 1) * 10


def test_what_no_layer_holds_has_rows_of_its_own():
    table = probe.layers(Held(), (1, 1, 12, 12))
    assert rows(table, "layer", "kind", "output", "params", "mult_adds", "field") == [
        ("conv", "Conv2d", (1, 4, 10, 10), 36, 36 * 100, 3),
        ("Held", "convolution", (1, 4, 8, 8), 144, 144 * 64, 5),
        ("Held", "mul", (1, 4, 8, 8), 4, 0, 5),
        ("(not run)", "parameters", (), 9, 0, "not known"),
    ]
    assert table.attrs == {"receptive_field": 5, "unseen_params": 9}
    assert probe.mult_adds(Held(), (1, 1, 12, 12)) == 36 * 100 + 144 * 64


def test_a_broadcast_sum_costs_what_its_layers_cost():
    model = nn.Sequential(Branches("sum", nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1)))
    model[0].parts[1] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 8, 1, bias=False))
    expected = 224 * 32 * 32 + 24
    assert probe.mult_adds(model, (1, 3, 32, 32)) == expected
    assert probe.layers(model, (1, 3, 32, 32))["mult_adds"].sum() == expected


@pytest.mark.parametrize(("bias", "expected"), [(False, 1024), (True, 1280)])
def test_a_transposed_convolution_counts_its_inputs(bias, expected):
    layer = nn.ConvTranspose2d(4, 4, 2, stride=2, bias=bias)
    assert probe.mult_adds(layer, (1, 4, 4, 4)) == expected
    assert list(probe.layers(layer, (1, 4, 4, 4))["mult_adds"]) == [expected]


def test_images_that_are_not_square():
    model = nn.Sequential(nn.Conv2d(1, 4, (3, 5)), nn.Flatten(), nn.Linear(4 * 22 * 44, 2))
    table = probe.layers(model, (1, 1, 24, 48))
    assert list(table["mult_adds"]) == [64 * 22 * 44, 0, 2 * 4 * 22 * 44 + 2]
    assert list(table["field"]) == ["3 x 5", "all", "all"]
    assert probe.depth(model, (2, 1, 24, 48)) == 2


FIELDS = {
    "batch normalised": (lambda: nn.BatchNorm2d(1), 1),
    "over channels": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softmax(1), nn.Conv2d(4, 2, 1)), 3,
    ),
    "as many means as places": (lambda: nn.AdaptiveAvgPool2d(16), 1),
    "the mean": (lambda: Apply(lambda x: x.mean((-1, 2))), "all"),
    "a vector as a map": (lambda: Apply(lambda x: x.flatten(1)[:, :, None, None]), "all"),
    "pixels that nobody reads": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 1, 2), nn.Flatten(), nn.Linear(64, 2)), 15,
    ),
    "rows that nobody reads": (
        lambda: nn.Sequential(nn.MaxPool2d((1, 2), (5, 2)), nn.AdaptiveAvgPool2d(1)), 16,
    ),
    "columns at the edge that nobody reads": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, (1, 3), (1, 3)), nn.Flatten()), "16 x 15",
    ),
    "the last window hangs over": (
        lambda: nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2)), 5,
    ),
    "a row added to all rows": (
        lambda: Branches("sum", nn.Sequential(), nn.Conv2d(1, 1, (16, 1))), "16 x 1",
    ),
    "larger than the image": (lambda: nn.Conv2d(1, 1, 31, padding=15), 31),
    "flat but for the channels": (lambda: Apply(lambda x: x.flatten(2)), "all"),
    "weights of the net's own, in place": (lambda: Apply(lambda x, w: (1 * x).mul_(w), 1), 1),
}  # fmt: skip
NOT_KNOWN = {
    "a mirror image": lambda: Mirrored(),
    "transposed": lambda: nn.ConvTranspose2d(1, 1, 4, padding=1),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "rolled": lambda: Apply(lambda x: x.roll(1, 3)),
    "rows for columns": lambda: Apply(lambda x: x.transpose(2, 3)),
    "unfolded again": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 16, 16))),
    "rows as channels": lambda: Apply(lambda x: x.view(-1, 16, 1, 16)),
    "written into": lambda: Written(),
    "changed with its view": lambda: Apply(lambda x: changed(x)[0]),
    "changed after a view": lambda: Apply(lambda x: changed(x)[1]),
    "filled by another name": lambda: Apply(lambda x: filled(x) + x),
    "written into by name": lambda: Apply(
        lambda x: torch.add(F.max_pool2d(x, 3, 1, 1), x, out=torch.empty_like(x)),
    ),
    "layer normalised": lambda: nn.LayerNorm((1, 16, 16)),
    "group normalised": lambda: nn.GroupNorm(1, 1),
    "by the batch in evaluation too": lambda: nn.BatchNorm2d(1, track_running_stats=False),
    "over places": lambda: nn.Softmax(3),
    "neighbouring channels": lambda: nn.LocalResponseNorm(3),
    "some of the channels": lambda: Apply(lambda x: torch.cat([x, x], 1)[:, 1:]),
    "channels exchanged": lambda: nn.ChannelShuffle(1),
    "a table of channels": lambda: Apply(lambda x: shuffled(torch.cat([x, x], 1), 2)),
    "some of the rows": lambda: Apply(lambda x: x[:, :, 2:].mean((2, 3))),
    "the mean of columns": lambda: Apply(lambda x: x.mean(2, keepdim=True)),
    "the mean of the batch": lambda: Apply(lambda x: x + x.mean()),
    "means by place": lambda: nn.AdaptiveAvgPool2d(4),
    "means of unlike windows": lambda: nn.AdaptiveAvgPool2d(5),
    "nothing but padding": lambda: nn.Conv2d(1, 1, 1, padding=1),
    "steps of unlike length": lambda: Branches("sum", nn.Conv2d(1, 1, 15), nn.AvgPool2d(8)),
    "a mean of a part added": lambda: Branches(
        "sum", nn.Sequential(), nn.Sequential(nn.Conv2d(1, 1, 3, 3), nn.AdaptiveAvgPool2d(1))
    ),
    "attention": lambda: Apply(lambda x: F.scaled_dot_product_attention(x, x, x)),
    "the image as weights": lambda: Apply(lambda x, w: F.conv2d(w, x), 1, 1, 20, 20),
    "the image as weights of itself": lambda: Apply(lambda x: F.conv2d(x, x)),
    "the image in a bias": lambda: Apply(
        lambda x, w: torch.addmm(x.mean((2, 3)), F.avg_pool2d(x, 1, 2).flatten(1), w), 64, 1
    ),
    "the image in both factors": lambda: Apply(
        lambda x: F.avg_pool2d(x, 1, 16).flatten(1) @ x.flatten(1)
    ),
    "channels as images": lambda: Apply(lambda x: torch.cat([x, x], 1).mean((2, 3)).view(-1, 1)),
}  # fmt: skip


def changed(x):
    """(view, map): every second pixel, and to the map their neighbours are added afterwards."""
    y = F.avg_pool2d(x, 1, 2)
    view = y.flatten(1)
    y += F.avg_pool2d(x, 2)
    return view, y


def filled(x):
    """Zeros, into a part of which pixels are written."""
    y = torch.zeros(x.shape, device=x.device)
    y[:, :, :4].copy_(x[:, :, 4:8])
    return y


def shuffled(x, groups):
    """ShuffleNet's way to mix groups: channels as a table, its rows for its columns."""
    N, C, H, W = x.shape
    return x.view(N, groups, C // groups, H, W).transpose(1, 2).reshape(N, C, H, W)


class Mirrored(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.last = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.last(x + x.flip(-1))


class Written(nn.Module):
    """A sum in place into a part of a map: the view and the map hold the same values."""

    def forward(self, x):
        whole = torch.zeros_like(x)
        whole[:, :, :-3] += x[:, :, 3:]
        return whole + x


@pytest.mark.parametrize("case", FIELDS)
def test_fields_that_are_easily_wrong(case):
    build, expected = FIELDS[case]
    net = nn.Sequential(build(), nn.Identity())
    assert probe.layers(net, (1, 1, 16, 16))["field"].iloc[-1] == expected
    assert check_pixels(net, torch.rand(1, 1, 16, 16, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize("case", NOT_KNOWN)
def test_fields_that_are_not_known(case):
    net = nn.Sequential(NOT_KNOWN[case](), nn.Identity())
    assert probe.layers(net, (1, 1, 16, 16))["field"].iloc[-1] == "not known"


IMAGES_MIXED = {
    "as one": lambda x: x.view(1, -1),
    "one after the other": lambda x: torch.cat([x, x]).mean((2, 3)),
    "by weights": lambda x: torch.ones(4, 4, device=x.device, dtype=x.dtype) @ x.flatten(1),
    "means of them": lambda x: x.mean((0, 3)),
    "broadcast along places": lambda x: x + x.mean((2, 3)),
    "exchanged": lambda x: x.transpose(0, 1),
    "softmax": lambda x: x.softmax(0),
}


@pytest.mark.parametrize("case", IMAGES_MIXED)
def test_images_of_a_batch_are_kept_apart(case):
    net = nn.Sequential(Apply(IMAGES_MIXED[case]), nn.Identity())
    assert probe.layers(net, (4, 4, 4, 4))["field"].iloc[-1] == "not known"


# ------------------------------------------------------------------------------- wrong and unusual


class Wrong(nn.Module):
    """A block that adds or concatenates what does not fit."""

    def __init__(self, join):
        super().__init__()
        self.conv, self.join = nn.Conv2d(1, 4, 3, stride=2), join

    def forward(self, x):
        return self.join(self.conv(x), x)


@pytest.mark.parametrize(
    ("join", "words"),
    [
        (lambda y, x: y + x, r"got \(1, 4, 7, 7\) and \(1, 1, 16, 16\)\. The size of tensor a"),
        (
            lambda y, x: torch.cat([y, x], 1),
            r"got \(1, 4, 7, 7\) and .*\. Sizes of tensors must",
        ),
        (
            lambda y, x: y.view(1, 5),
            r"got \(1, 4, 7, 7\)\. shape '\[1, 5\]' is invalid for input of size 196",
        ),
    ],
)
def test_a_wrong_join_is_told_in_torch_s_words(join, words):
    net = nn.Sequential(nn.ReLU(), Wrong(join))
    for ask in (probe.depth, probe.layers, probe.mult_adds):
        with pytest.raises(ValueError, match=rf"layer '1' \(Wrong\), {words}") as error:
            ask(net, (1, 1, 16, 16))
        assert "pixels" not in str(error.value)


def test_a_mistake_in_the_code_stays_what_it_is():
    with pytest.raises(AttributeError, match="no attribute 'covv'"):
        probe.depth(nn.Sequential(Wrong(lambda y, x: y.covv)), (1, 1, 16, 16))


class Depends(nn.Module):
    """A forward pass that looks at values, which the meta device does not have."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.shift = torch.ones(1)  # neither a parameter nor a buffer

    def forward(self, x):
        y = self.conv(x + self.shift)
        return y if y.mean() > 1e9 else torch.relu(y) + torch.ones(2, 1, 1)


def test_what_only_the_meta_device_cannot_do_is_no_fault():
    net = Depends()
    assert probe.depth(net, (1, 1, 8, 8)) == 1
    assert probe.mult_adds(net, (2, 1, 8, 8)) == 2 * 20 * 36
    assert list(probe.layers(net, (2, 1, 8, 8))["output"]) == [(2, 2, 6, 6)]


@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.half, nn.Module.bfloat16])
def test_nets_of_other_numbers(change):
    net = change(zoo.build("lenet5_bn"))
    assert probe.depth(net, (1, 1, 32, 32)) == 5
    assert probe.layers(net, (1, 1, 32, 32))["params"].sum() == 61_750
    with pytest.raises(ValueError, match="ran out of pixels"):
        probe.depth(net, (1, 1, 8, 8))


def test_frozen_and_lazy_nets():
    frozen = zoo.build("lenet5").requires_grad_(False)
    assert probe.mult_adds(frozen, (1, 1, 28, 28)) == probe.mult_adds(
        zoo.build("lenet5"), (1, 1, 28, 28)
    )
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="Lazy layers have no weights yet"):
        probe.depth(lazy, (1, 1, 8, 8))
    lazy(torch.rand(1, 1, 8, 8))
    assert probe.mult_adds(lazy, (1, 1, 8, 8)) == 40 * 36 + 4 * 36 * 2 + 2


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 1, 28, 0), (1, 1, -2, 8), ()])
def test_a_shape_that_is_none(shape):
    with pytest.raises(ValueError, match="Expected images of four dimensions"):
        probe.depth(zoo.build("lenet5"), shape)


def test_a_failing_pass_leaves_no_trace():
    net = zoo.build("lenet5_bn").train()
    net.kept = net.conv1(torch.rand(1, 1, 32, 32))  # has a history: cannot be copied as it is
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    with pytest.raises(ValueError, match="ran out of pixels"):
        probe.layers(net, (1, 1, 8, 8))
    assert probe.depth(net, (1, 1, 32, 32)) == 5
    assert all(m.training for m in net.modules())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_net_that_draws_leaves_the_random_numbers_as_they_were():
    state = torch.get_rng_state()
    probe.layers(nn.Sequential(Apply(lambda x: x + torch.rand(()))), (1, 1, 4, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_field_that_is_not_known_is_no_growing_one():
    table = probe.layers(
        nn.Sequential(nn.Conv2d(1, 1, 3), nn.Upsample(scale_factor=2)), (1, 1, 9, 9)
    )
    assert list(table.field) == [3, "not known"]
    assert probe.fields_of(table) == [("0", (3, 3))]


# ------------------------------------------------------------------------------------ random nets


class Squeeze(nn.Module):
    """Squeeze and excitation: every position is scaled by what the whole image says."""

    def __init__(self, channels, functional):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 2), nn.Linear(2, channels)
        self.functional = functional

    def forward(self, x):
        z = x.mean((2, 3)) if self.functional else F.adaptive_avg_pool2d(x, 1).flatten(1)
        z = F.softplus(self.fc2(F.leaky_relu(self.fc1(z))))
        return x * (z[:, :, None, None] if self.functional else z.unflatten(1, (-1, 1, 1)))


class Branches(nn.Module):
    """What two or three parts make of the same map, joined by `how`."""

    def __init__(self, how, *parts):
        super().__init__()
        self.how, self.parts = how, nn.ModuleList(parts)

    def forward(self, x):
        made = [part(x) for part in self.parts]
        if self.how == "cat":
            return torch.cat(made, 1)
        if self.how == "in place":
            made[0] += made[1]
            return made[0]
        return sum(made[1:], made[0])


class Apply(nn.Module):
    """A function as it stands in a forward pass, with a weight of the net's own if it takes one.

    The empty child makes it no layer: its operations lie between layers.
    """

    def __init__(self, function, *weight):
        super().__init__()
        self.function, self.child = function, nn.Module()
        self.weight = nn.Parameter(torch.rand(weight)) if weight else None

    def forward(self, x):
        return self.function(x) if self.weight is None else self.function(x, self.weight)


def draw_step(pick, C):
    """One random step for a map of C channels, seldom one that the probe does not follow."""
    k, s = pick(1, 2, 3), pick(1, 2)
    same = nn.Conv2d(C, C, 3, padding=1)
    followed = (
        lambda: nn.Conv2d(
            C, pick(2, 3, 4), (k, pick(1, 3)), (pick(1, 2), pick(1, 2)), (k // 2, pick(0, 1, 2)),
            (pick(1, 2), pick(1, 3)), bias=pick(True, False),
        ),
        lambda: nn.Conv2d(C, 2 * C, k, pick(1, 3), groups=C, padding=pick(0, k // 2)),
        lambda: Apply(lambda x, w: F.conv2d(x, w, stride=s, padding=1), 3, C, 3, 3),
        lambda: nn.MaxPool2d(pick(2, 3), s, 1, ceil_mode=pick(True, False)),
        lambda: nn.AvgPool2d(pick(2, 3), s, pick(0, 1), ceil_mode=pick(True, False)),
        lambda: nn.Sequential(nn.BatchNorm2d(C), nn.LeakyReLU(0.3)),
        lambda: nn.Sequential(same, nn.LeakyReLU(0.3, inplace=True), same),  # one layer twice
        lambda: Squeeze(C, pick(True, False)),
        lambda: Branches(pick("cat", "sum", "in place"), same, nn.Conv2d(C, C, 1)),
        lambda: Branches(pick("cat", "sum"), same, nn.Sequential()),
        lambda: Branches("cat", nn.MaxPool2d(3, 1, 1), same, nn.Conv2d(C, 1, 5, padding=2)),
        lambda: Branches(pick("cat", "sum"), *(nn.Conv2d(C, C, 3, 2, p, p) for p in (1, 2))),
        lambda: Branches("cat", nn.Conv2d(C, 1, 4, padding=1), nn.AvgPool2d(2, 1)),
        lambda: Branches("sum", same, nn.Conv2d(C, 1, 1)),  # broadcast over channels
        lambda: Branches("sum", same, nn.AdaptiveAvgPool2d(1)),
        lambda: Apply(lambda x, scale: x * scale, C, 1, 1),
        lambda: Apply(lambda x: x + x.softmax(1)),
        lambda: pick(nn.PReLU(C), nn.Hardswish(), nn.Dropout2d()),
    )  # fmt: skip
    others = (
        lambda: nn.ConvTranspose2d(
            C, 2, k, pick(1, 1, 2), pick(0, k // 2), dilation=pick(1, 2), bias=pick(True, False)
        ),
        lambda: nn.Conv2d(C, 2, k, padding=k),
        lambda: Apply(lambda x, w: torch.einsum("nchw,dc->ndhw", x, w), 3, C),
        lambda: nn.Sequential(pick(nn.InstanceNorm2d(C), nn.GroupNorm(1, C)), nn.LeakyReLU(0.3)),
        lambda: nn.AdaptiveAvgPool2d(pick(5, 6)),
        lambda: Branches("sum", same, Apply(lambda x: x.mean(3, keepdim=True))),
        lambda: Branches("sum", same, Apply(lambda x: x.logsumexp((2, 3), keepdim=True))),
        lambda: nn.Upsample(scale_factor=2, mode=pick("nearest", "bilinear")),
        lambda: Apply(lambda x: x + x.flip(-1)),
        lambda: Apply(lambda x: x.roll(2, 2)),
        lambda: Apply(lambda x: x[:, :, 1:-2, ::2]),
        lambda: Apply(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
        lambda: Apply(lambda x: F.pad(x, (2, 0, -1, 1))),
        lambda: Apply(lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")),
        lambda: Apply(lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)),
        lambda: nn.LocalResponseNorm(3),
    )
    return pick(*pick(followed, followed, followed, followed, followed, followed, others))()


def draw_net(seed):
    """A random net for images of 2 x 26 x 31, and what each of its steps is."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[torch.randint(len(options), (), generator=generator)]

    steps, x = [], torch.rand(1, 2, 26, 31)
    with torch.no_grad():
        for _ in range(pick(2, 3, 4)):
            step = draw_step(pick, x.shape[1]).eval()
            try:
                made = step(x)
            except RuntimeError:  # too few pixels for this one
                continue
            if min(made.shape[2:]) >= 3 and max(made.shape[2:]) < 70:
                steps.append(step)
                x = made
        steps.append(nn.Conv2d(x.shape[1], 2, 1))
        if pick(False, False, True):
            head = pick(nn.AdaptiveAvgPool2d(1), nn.Sequential())
            features = 2 if isinstance(head, nn.AdaptiveAvgPool2d) else 2 * x[0, 0].numel()
            steps += [head, nn.Flatten(), nn.Linear(features, 3)]
    return nn.Sequential(*steps)


def counted_apart(net, x):
    """Mult-adds of a net by torch's own counter, and biases and normalisations by hand."""
    extra = []

    def add(module, _, output):
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            extra.append(output.numel() if module.bias is not None else 0)
        elif not list(module.children()) and not isinstance(module, Apply):
            extra.append(len(output) * own)

    handles = [module.register_forward_hook(add) for module in net.modules()]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x.detach())
    for handle in handles:
        handle.remove()
    return counter.get_total_flops() // 2 + sum(extra)


def check_field(row, net, x):
    """Hold the field of the last row against gradients. True where it is known."""
    if row.field == "not known":
        return False
    y = positive(net)(x)
    middle = y[:, 0] if y.ndim == 2 else y[:, :, y.shape[2] // 2, y.shape[3] // 2]
    seen = in_view(middle, x)
    sizes = [str(row.field)] * 2 if " x " not in str(row.field) else row.field.split(" x ")
    for line, size, pixels in zip((seen.any(1), seen.any(0)), sizes, x.shape[2:], strict=True):
        first, last = span(line)
        if size == "all" or row.stride == "all":
            assert last - first + 1 == (pixels if size == "all" else int(size))
        elif first > 6 and last < pixels - 7:  # no edge of the image, or of a map, cuts it
            assert last - first + 1 == int(size)
        else:
            assert last - first + 1 <= int(size)
    return True


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "kind",
    [nn.CELU, nn.ELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.Mish, nn.ReLU,
     nn.ReLU6, nn.SELU, nn.SiLU, partial(nn.Threshold, 0.1, 0)],
)  # fmt: skip
def test_an_activation_keeps_the_field(kind, inplace):
    net = nn.Sequential(nn.Conv2d(1, 2, 5, 2), kind(inplace=inplace), nn.Conv2d(2, 2, 3))
    assert list(probe.layers(net, (1, 1, 20, 20)).field)[-1] == 9


@pytest.mark.parametrize(
    "kind", [nn.GELU, nn.LogSigmoid, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink]
)
def test_an_activation_that_makes_a_new_map_keeps_the_field(kind):
    net = nn.Sequential(nn.Conv2d(1, 2, 5, 2), kind(), nn.Conv2d(2, 2, 3))
    assert list(probe.layers(net, (1, 1, 20, 20)).field)[-1] == 9


def test_what_older_versions_of_torch_do_not_mark_is_pointwise():
    """Read off the tables of torch 2.6 and 2.11: MobileNet's ReLU6 in place was not known there."""
    aten = torch.ops.aten
    unmarked = {aten.celu_, aten.elu_, aten.hardsigmoid_, aten.hardtanh_, aten.leaky_relu}
    unmarked |= {aten.leaky_relu_, aten.selu_}
    assert unmarked <= POINTWISE


@pytest.mark.random
@pytest.mark.parametrize("start", range(0, 2 * CASES, 100))
def test_random_nets(start):
    """Costs against torch's counter and fields against gradients, for twice `CASES` nets."""
    known = 0
    for seed in range(start, start + 100):
        torch.manual_seed(seed)
        net = draw_net(seed)
        x = torch.rand(1, 2, 26, 31, dtype=torch.double, requires_grad=True)
        table = probe.layers(net, tuple(x.shape))
        assert table["params"].sum() == sum(p.numel() for p in net.parameters()), seed
        assert table["mult_adds"].sum() == counted_apart(net.eval().double(), x), seed
        followed = check_pixels(net, x)
        assert check_field(list(table.itertuples())[-1], net, x) == followed
        known += followed
    assert known > 50  # of a hundred nets; the others hold a step that is not followed


def test_weights_that_are_made_on_the_way_count_as_layers():
    class Masked(nn.Conv2d):
        def __init__(self, *sizes):
            super().__init__(*sizes, bias=False)
            self.register_buffer("mask", torch.ones(3, 3).tril())

        def forward(self, x):
            return F.conv2d(x, self.weight * self.mask)

    pruned = [nn.Conv2d(a, 4, 3, bias=False) for a in (1, 4)]
    for conv in pruned:
        prune.random_unstructured(conv, "weight", 0.5)
    spectral = [spectral_norm(nn.Conv2d(a, 4, 3, bias=False)) for a in (1, 4)]
    shape = (1, 1, 8, 8)
    for convs in (pruned, spectral, [Masked(1, 4, 3), Masked(4, 4, 3)]):
        assert probe.depth(nn.Sequential(*convs), shape) == 2
    assert probe.depth(nn.Identity(), shape) == probe.depth(nn.Dropout(), shape) == 0


def test_what_cannot_be_copied_is_shared():
    net = nn.Sequential(nn.Conv2d(1, 4, 3))
    net[0].lock, net.library = threading.Lock(), math
    assert probe.mult_adds(net, (1, 1, 8, 8)) == 36 * (36 + 4)
