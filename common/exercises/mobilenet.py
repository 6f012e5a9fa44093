"""Exercises of 07_mobilenet."""

import copy

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import conv2d

from common import data, probe
from common.config import Config
from common.exercises import Exercise
from common.exercises.answers.alike import Case
from common.train import fit
from common.zoo.mobilenet import MobileNet, OrdinaryConvolution


def width_that_fits(depthwise, pointwise, budget):
    root = (depthwise**2 + 4 * pointwise * budget) ** 0.5
    return (root - depthwise) / (2 * pointwise)


def depthwise(x, kernels):
    conv = torch.nn.functional.conv2d
    maps = [conv(x[:, c : c + 1], k[None, None], padding=1) for c, k in enumerate(kernels)]
    return torch.cat(maps, dim=1)


def all_channels_mixed(x, kernels):
    return conv2d(x, kernels[None].expand(len(kernels), -1, -1, -1), padding=1)


def first_kernel_for_all(x, kernels):
    return depthwise(x, kernels[:1].expand_as(kernels))


def kernels_turned(x, kernels):
    return depthwise(x, kernels.flip(1, 2))


def kernels_on_their_side(x, kernels):
    return depthwise(x, kernels.transpose(1, 2))


def without_padding(x, kernels):
    return depthwise(x, kernels)[:, :, 1:-1, 1:-1]


def channels_backwards(x, kernels):
    return depthwise(x, kernels).flip(1)


def fold(conv, norm):
    import copy

    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
    folded.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
    return folded


def fold_with(conv, norm, eps=True, mean=True, scaled_mean=True, shift=True, affine=True):
    """The folded convolution with one thing left out, for the mistakes one makes."""
    spread = (norm.running_var + (norm.eps if eps else 0)).sqrt()
    scale = (norm.weight if affine else 1) / spread
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
    moved = norm.running_mean * (scale if scaled_mean else 1) * mean
    folded.bias = nn.Parameter((norm.bias if shift else 0) - moved)
    return folded


def fold_by_variance(conv, norm):
    other = copy.deepcopy(norm)
    other.running_var = (norm.running_var + norm.eps) ** 2 - norm.eps
    return fold(conv, other)


def fold_in_place(conv, norm):
    folded = fold(conv, norm)
    conv.weight, conv.bias = folded.weight, folded.bias
    return conv


def conv_and_norm(kernel, stride=1, padding=0, groups=1, dilation=1):
    """A convolution without bias from 4 to 8 channels, and a normalisation that has seen images."""
    settings = {"stride": stride, "padding": padding, "groups": groups, "dilation": dilation}
    conv, norm = nn.Conv2d(4, 8, kernel, bias=False, **settings), nn.BatchNorm2d(8, eps=0.1)
    for values in (norm.weight.data, norm.bias.data, norm.running_mean):
        values.normal_()
    norm.running_var.uniform_(0.5, 2)
    return conv.eval(), norm.eval()


def share_at_160():
    return 0.51


def measure_at_160():
    with torch.device("meta"):
        net = MobileNet()
    large, small = (probe.mult_adds(net, (1, 1, pixels, pixels)) for pixels in (224, 160))
    return small / large


def recalibrate(net, batches):
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    net.train()
    with torch.no_grad():
        for x in batches:
            net(x)
    return net.eval()


def recalibrate_nothing(net, batches):
    net.eval()
    with torch.no_grad():
        for x in batches:
            net(x)
    return net


def recalibrate_on_top(net, batches):
    net.train()
    with torch.no_grad():
        for x in batches:
            net(x)
    return net.eval()


def recalibrate_by_the_last(net, batches):
    return recalibrate(net, batches[-1:])


def recalibrate_by_the_first(net, batches):
    return recalibrate(net, batches[:1])


def recalibrate_and_stay(net, batches):
    return recalibrate(net, batches).train()


def recalibrate_by_momentum(net, batches):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return recalibrate_on_top(net, batches)


def statistics_facts(answer, momentum, channels):
    """What a recalibration leaves in a small net with stale statistics."""
    convs = nn.Conv2d(2, channels, 1), nn.Conv2d(channels, channels, 1)
    norms = [nn.BatchNorm2d(channels, momentum=momentum) for _ in convs]
    for norm in norms:
        norm.running_mean += 5
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        norm.num_batches_tracked += 7
    inner = nn.Sequential(norms[0], nn.ReLU())
    net = nn.Sequential(convs[0], inner, convs[1], norms[1]).eval()
    before = [p.detach().clone() for p in net.parameters()]
    batches = [n + n * torch.randn(images, 2, 3, 5) for n, images in ((1, 2), (2, 5), (4, 3))]
    result = answer(net, batches)
    return {
        "the first normalisation's mean": result[1][0].running_mean.clone(),
        "its variance": result[1][0].running_var.clone(),
        "the second one's mean": result[3].running_mean.clone(),
        "its variance, too": result[3].running_var.clone(),
        "the net is in training mode": result.training,
        "layers in training mode": sum(layer.training for layer in result.modules()),
        "the weights stay as they were": all(map(torch.equal, before, result.parameters())),
        "weights that can learn": sum(p.requires_grad for p in result.parameters()),
        "the batches are still there": len(batches),
    }


def equal_work(images=12_000, epochs=5, seeds=(0, 1, 2)):
    fashion, rows = data.load("fashion_mnist"), {}
    nets = {
        "separable": {"width": 0.25},
        "ordinary": {"width": 0.087, "block": OrdinaryConvolution},
    }
    for name, options in nets.items():
        row = rows[name] = {}
        for seed in seeds:
            torch.manual_seed(seed)
            net = MobileNet(**options, small_images=True)
            settings = Config(epochs=epochs, lr=3e-3, train_images=images, seed=seed)
            run = fit(net, fashion, settings, show=False)
            row[f"accuracy, seed {seed}"] = run.frame().val_accuracy.iloc[-1]
        row["mult-adds"] = probe.mult_adds(net, (1, 1, 28, 28))
        row["parameters"] = sum(p.numel() for p in net.parameters())
        row["seconds"] = run.train_seconds
    return pd.DataFrame(rows).T


EXERCISES = [
    Exercise(
        solution=width_that_fits,
        statement="""\
A MobileNet of width 1 has `depthwise` mult-adds in its depthwise convolutions and `pointwise` in \
its 1 × 1 convolutions; leave the first and the last layer out.
A phone allows `budget` mult-adds.
How does each of the two grow with the width multiplier α?
Return the α, a float, that uses the budget up exactly; it may be above 1.""",
        hints=(
            "A depthwise convolution has one kernel a channel. "
            "A pointwise one has a weight for each pair of channels.",
            "Solve depthwise · α + pointwise · α² = budget for the positive α.",
        ),
        cases=lambda: (
            Case((17e6, 540e6, 150e6)),
            Case((1.0, 2.0, 3.0)),
            Case((5.0, 1.0, 24.0)),
            Case((2, 7, 1)),
        ),
        mistakes=(
            (
                lambda depthwise, pointwise, budget: budget / (depthwise + pointwise),
                "That would hold if both grew with α; the pointwise part grows with α².",
            ),
            (
                lambda depthwise, pointwise, budget: (budget / (depthwise + pointwise)) ** 0.5,
                "That would hold if both grew with α²; the depthwise part grows with α.",
            ),
            (
                lambda depthwise, pointwise, budget: (budget / pointwise) ** 0.5,
                "The depthwise part is left out.",
            ),
            (
                lambda depthwise, pointwise, budget: (
                    (-depthwise - (depthwise**2 + 4 * pointwise * budget) ** 0.5) / (2 * pointwise)
                ),
                "That is the negative root; a width is positive.",
            ),
            (
                lambda depthwise, pointwise, budget: width_that_fits(pointwise, depthwise, budget),
                "The two have changed places: the pointwise part grows with α².",
            ),
        ),
    ),
    Exercise(
        solution=depthwise,
        statement="""\
Compute a depthwise convolution without the argument `groups`.
`x` is a tensor (N, C, H, W), and `kernels` (C, 3, 3) has one kernel for each channel.
Pad by 1; return a tensor with the shape and the number format of `x`.""",
        hints=(
            "Channel c of the output depends on channel c of x and on kernels[c] alone. "
            "How do you put channels back together?",
            "torch.nn.functional.conv2d(x[:, c : c + 1], kernels[None, None, c], padding=1) is "
            "channel c; torch.cat along dimension 1 joins them.",
        ),
        cases=lambda: (
            Case((torch.randn(2, 3, 5, 6), torch.randn(3, 3, 3))),
            Case((torch.randn(1, 4, 7, 4), torch.randn(4, 3, 3))),
            Case((torch.randn(3, 2, 4, 5).double(), torch.randn(2, 3, 3).double())),
        ),
        gradient=True,
        without=("groups",),
        mistakes=(
            (
                all_channels_mixed,
                "Every output sees all channels: that is an ordinary convolution.",
            ),
            (without_padding, "There is no padding, so the maps shrink."),
            (first_kernel_for_all, "All channels use the first kernel; each has its own."),
            (kernels_turned, "The kernels are turned round; PyTorch's convolution does not."),
            (kernels_on_their_side, "Rows and columns of the kernels are exchanged."),
            (channels_backwards, "The channels come out in the opposite order."),
        ),
    ),
    Exercise(
        solution=fold,
        statement="""\
On a phone no batch normalisation is left: it is folded into the convolution before it.
In evaluation mode `norm` computes (y - mean) / sqrt(var + eps) * weight + bias, channel by channel.
Return a new `nn.Conv2d` with a bias that does what `conv` (which has none) and `norm` do together.
`conv` may have any kernel, stride, padding, dilation and groups, and both stay as they are.""",
        hints=(
            "The scale of channel i multiplies all weights of filter i. "
            "What is left of the formula is that filter's bias.",
            "scale = norm.weight / (norm.running_var + norm.eps).sqrt(); "
            "the new weights are conv.weight * scale[:, None, None, None].",
            "Begin with copy.deepcopy(conv), which keeps stride, padding and groups, and set its "
            "weight and bias to nn.Parameter(...).",
        ),
        cases=lambda: (
            Case(conv_and_norm(3, padding=1), inputs=((2, 4, 6, 7),), keep=True),
            Case(conv_and_norm(3, 2, 1, groups=4), inputs=((2, 4, 7, 6),), keep=True),
            Case(conv_and_norm(1), inputs=((2, 4, 5, 3),), keep=True),
            Case(conv_and_norm((3, 5), 1, 2, dilation=2), inputs=((1, 4, 9, 11),), keep=True),
            Case(conv_and_norm((3, 1), (2, 1), (1, 0)), inputs=((2, 4, 7, 6),), keep=True),
            Case(conv_and_norm(3, 1, (2, 1), dilation=(2, 1)), inputs=((2, 4, 7, 6),), keep=True),
        ),
        mistakes=(
            (
                lambda conv, norm: fold_with(conv, norm, eps=False),
                "norm.eps is left out, or is another.",
            ),
            (
                lambda conv, norm: fold_with(conv, norm, scaled_mean=False),
                "The mean must be scaled like the weights before it is subtracted.",
            ),
            (lambda conv, norm: fold_with(conv, norm, mean=False), "The mean is not subtracted."),
            (lambda conv, norm: fold_with(conv, norm, shift=False), "norm.bias is left out."),
            (
                lambda conv, norm: fold_with(conv, norm, affine=False),
                "norm.weight is left out of the scale.",
            ),
            (
                lambda conv, norm: nn.Sequential(conv, norm),
                "Those are still two layers; one convolution must do it all.",
            ),
            (fold_by_variance, "You divide by the variance; it is its square root."),
            (fold_in_place, "You change the old convolution; make a new one."),
        ),
    ),
    Exercise(
        solution=share_at_160,
        statement="""\
**Predict before you run.**
The paper's second dial is the resolution: the same net, on smaller images.
MobileNet reads images of 160 × 160 pixels in place of 224 × 224.
Which share of the mult-adds is left, and which of the parameters?
Return the first as a number such as 0.9; the check then counts.""",
        hints=(
            "Every convolution works once a pixel of its maps.",
            "Height and width both shrink to 160/224 = 0.714.",
        ),
        experiment=measure_at_160,
        cases=lambda: (Case(tolerance=0.015),),
        because="Height and width both shrink to 5/7, so half of the work is left: about as much "
        "as with a width of 0.7. But all the parameters stay.",
        mistakes=(
            (lambda: 0.714, "That is the share of the height; the width shrinks too."),
            (lambda: 1, "The parameters stay, but each is used at fewer places."),
            (lambda: 0.36, "That is the third power; there are two dimensions."),
        ),
    ),
    Exercise(
        solution=recalibrate,
        statement="""\
**Find the fault.**
A MobileNet is right on 95 % of the images in training mode, and on 10 % in evaluation mode.
Its training was short, and the averages that its normalisations keep lag behind its weights.
They shall be taken anew, from `batches`, a list of image tensors; the function below does nothing \
of the kind.
Mend it: each `nn.BatchNorm2d` shall hold the plain mean, over the batches, of the mean and the \
variance that it notes itself in training mode.
Return the net, in evaluation mode and with the same weights.""",
        hints=(
            "In which mode does a normalisation watch what goes through it? "
            "And what does it do with what it knew before?",
            "norm.reset_running_stats() forgets; norm.momentum = None makes it take a plain mean.",
        ),
        broken=recalibrate_nothing,
        facts=statistics_facts,
        cases=lambda: (Case((0.1, 3)), Case((0.01, 4))),
        mistakes=(
            (
                recalibrate_on_top,
                "The stale statistics are still mixed in: reset them first.",
            ),
            (
                recalibrate_by_momentum,
                "The momentum weighs the batches unequally; None takes a plain mean.",
            ),
            (recalibrate_by_the_last, "Only the last batch counts."),
            (recalibrate_by_the_first, "Only the first batch counts."),
            (recalibrate_and_stay, "The net is left in training mode."),
        ),
    ),
    Exercise(
        solution=equal_work,
        statement="""\
**An open question.**
For the same mult-adds, which learns more: separable blocks, or ordinary ones in a narrower net?
The page's training was too short to tell, so both get more images, epochs and seeds here.
Write the experiment as a function and run it; the check shows what to judge it by.""",
        hints=(
            "MobileNet(width=..., block=OrdinaryConvolution) is the ordinary one; "
            "probe.mult_adds(net, (1, 1, 28, 28)) counts.",
            "Find the width by trial, or from the exercise on budgets.",
        ),
        rubric=(
            "Did you write down a prediction first?",
            "Are the mult-adds equal to a few per cent, and did you print them?",
            "Do you give the parameters and the measured time too?",
            "Is there more than one seed, and is the difference larger than theirs?",
            "Did you leave the test images alone?",
        ),
    ),
]
