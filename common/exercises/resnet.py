"""Exercises of 06_resnet."""

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy

from common import data
from common.config import Config
from common.exercises import Exercise
from common.exercises.answers.alike import Case
from common.train import fit
from common.zoo.resnet import PlainBlock, ResidualBlock, ResNet


def padded_shortcut(x, channels):
    x = x[:, :, ::2, ::2]
    zeros = x.new_zeros(len(x), channels - x.shape[1], *x.shape[2:])
    return torch.cat([x, zeros], dim=1)


def zeros_in_front(x, channels):
    y = padded_shortcut(x, channels)
    return y.roll(channels - x.shape[1], dims=1)


def average_shortcut(x, channels):
    x = avg_pool2d(x, 2, ceil_mode=True)
    zeros = x.new_zeros(len(x), channels - x.shape[1], *x.shape[2:])
    return torch.cat([x, zeros], dim=1)


def not_halved(x, channels):
    zeros = x.new_zeros(len(x), channels - x.shape[1], *x.shape[2:])
    return torch.cat([x, zeros], dim=1)


def second_pixels(x, channels):
    return padded_shortcut(x.roll((-1, -1), dims=(2, 3)), channels)


def repeated_channels(x, channels):
    x = x[:, :, ::2, ::2]
    return x.repeat(1, channels, 1, 1)[:, :channels]


def preactivation(x, norm1, conv1, norm2, conv2):
    y = conv1(norm1(x).relu())
    y = conv2(norm2(y).relu())
    return x + y


def relu_at_the_end(x, norm1, conv1, norm2, conv2):
    return preactivation(x, norm1, conv1, norm2, conv2).relu()


def shortcut_after_norm(x, norm1, conv1, norm2, conv2):
    x = norm1(x).relu()
    return x + conv2(norm2(conv1(x)).relu())


def without_inner_relus(x, norm1, conv1, norm2, conv2):
    return x + conv2(norm2(conv1(norm1(x))))


def without_shortcut(x, norm1, conv1, norm2, conv2):
    return conv2(norm2(conv1(norm1(x).relu())).relu())


def relu_before_norm(x, norm1, conv1, norm2, conv2):
    return x + conv2(norm2(conv1(norm1(x.relu())).relu()))


def shortcut_detached(x, norm1, conv1, norm2, conv2):
    return preactivation(x, norm1, conv1, norm2, conv2) - x + x.detach()


def input_minus_block(x, norm1, conv1, norm2, conv2):
    return x - conv2(norm2(conv1(norm1(x).relu())).relu())


def four_layers(training):
    """A pre-activation block's layers in a mode, with weights and statistics of their own."""
    layers = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
    layers = [*layers, nn.Conv2d(4, 3, 3, padding=1)]
    for layer in layers:
        layer.train(training)
        for p in layer.parameters():
            nn.init.normal_(p, std=2)  # large: ReLU6 is not ReLU
    for norm in (layers[0], layers[2]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return layers


def bottleneck():
    class Bottleneck(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(256, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
                *(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
                *(nn.Conv2d(64, 256, 1, bias=False), nn.BatchNorm2d(256)),
            )

        def forward(self, x):
            return (x + self.body(x)).relu()

    return Bottleneck()


def bottleneck_of(join, bias=False, act=nn.ReLU, last=()):
    """The block with one thing changed; `join(x, F(x))` is its end."""

    class Changed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Conv2d(256, 64, 1, bias=bias), nn.BatchNorm2d(64), act()),
                *(nn.Conv2d(64, 64, 3, padding=1, bias=bias), nn.BatchNorm2d(64), act()),
                *(nn.Conv2d(64, 256, 1, bias=bias), nn.BatchNorm2d(256), *last),
            )

        def forward(self, x):
            return join(x, self.body(x))

    return lambda: Changed()


def variance_after_twenty():
    return 21


def measure_variance():
    torch.manual_seed(0)
    x = torch.randn(32, 32, 8, 8)
    with torch.no_grad():
        for _block in range(20):
            conv = nn.Conv2d(32, 32, 3, padding=1, bias=False)
            x = x + nn.BatchNorm2d(32)(conv(x.relu()))
    return x.var().item()


def add_up_gradients(net, parts):
    images = sum(len(y) for _, y in parts)
    for x, y in parts:
        loss = cross_entropy(net(x), y) * len(y) / images
        loss.backward()


def add_up_exploding(net, parts):
    for x, y in parts:
        loss = cross_entropy(net(x), y)
        loss.backward()


def divide_by_parts(net, parts):
    for x, y in parts:
        (cross_entropy(net(x), y) / len(parts)).backward()


def divide_by_images(net, parts):
    for x, y in parts:
        (cross_entropy(net(x), y) / sum(len(y) for _, y in parts)).backward()


def last_part_only(net, parts):
    images = sum(len(y) for _, y in parts)
    for x, y in parts:
        net.zero_grad()
        (cross_entropy(net(x), y) * len(y) / images).backward()


def sum_over_images(net, parts):
    for x, y in parts:
        cross_entropy(net(x), y, reduction="sum").backward()


def gradient_facts(answer, sizes):
    """The gradient that an answer leaves in a small net for a batch in parts of these sizes."""
    net = nn.Linear(5, 4)
    parts = [(torch.randn(n, 5), torch.randint(4, (n,))) for n in sizes]
    before = net.weight.detach().clone()
    answer(net, parts)
    none = torch.zeros_like(before)
    return {
        "the weights' gradient": none if net.weight.grad is None else net.weight.grad.clone(),
        "the weights stay as they were": torch.equal(before, net.weight),
        "the net is in training mode": net.training,
        "the parts are still there": len(parts),
    }


def blocks_deleted(images=4_000, epochs=3, seeds=(0, 1)):
    clothes, table = data.load("fashion_mnist"), {}

    def accuracy(net, x, y):
        with torch.no_grad():
            return (net(x).argmax(1) == y).float().mean().item()

    for kind in (ResidualBlock, PlainBlock):
        for seed in seeds:
            torch.manual_seed(seed)
            net = ResNet(block=kind, width=0.125, small_images=True)
            settings = Config(epochs=epochs, lr=2e-3, train_images=images, seed=seed)
            fit(net, clothes, settings, show=False)
            _, held_out = data.split(len(clothes.train), seed=seed)  # as fit splits it
            x, y = next(iter(data.Batches(clothes, "train", 500, indices=held_out[:500])))
            column = table[kind.__name__, seed] = {"the whole net": accuracy(net, x, y)}
            for name, block in net.named_modules():
                changes = name in ("stage2.0", "stage3.0", "stage4.0")
                if not isinstance(block, kind) or (changes and kind is PlainBlock):
                    continue  # a plain block that changes the shape has nothing to leave
                shortcut = block.shortcut if kind is ResidualBlock else nn.Identity()
                hook = block.register_forward_hook(lambda _, x, __, s=shortcut: s(x[0]).relu())
                name += ", which changes the shape" if changes else ""
                column[f"without {name}"] = accuracy(net, x, y)
                hook.remove()
    return pd.DataFrame(table)


EXERCISES = [
    Exercise(
        solution=padded_shortcut,
        statement="""\
The paper's option A has no projection.
Where the image is halved and the channels grow, the shortcut takes every second pixel, beginning \
with the first, and fills the missing channels with zeros at the end.
`x` is a tensor (N, C, H, W); H and W may be odd.
Return a tensor with `channels` channels, in the number format of `x`.""",
        hints=(
            "x[:, :, ::2, ::2] takes every second pixel.",
            "Make a tensor of zeros with the missing channels, and torch.cat both along dimension "
            "1; x.new_zeros(...) has x's number format.",
        ),
        cases=lambda: (
            Case((torch.randn(2, 3, 4, 6), 6)),
            Case((torch.randn(1, 4, 7, 4), 8)),
            Case((torch.randn(3, 2, 5, 9, dtype=torch.float64), 5)),
        ),
        gradient=True,
        mistakes=(
            (average_shortcut, "You average four pixels; option A takes every second one."),
            (zeros_in_front, "The zeros stand in front; the old channels come first."),
            (not_halved, "The image is not halved: take every second pixel."),
            (second_pixels, "You begin with the second pixel; begin with the first."),
            (repeated_channels, "The new channels are copies; they must be zeros."),
            (
                lambda x, channels: padded_shortcut(x.relu(), channels),
                "A ReLU is not part of the shortcut.",
            ),
        ),
    ),
    Exercise(
        solution=preactivation,
        statement="""\
In our block the last ReLU stands in the way of the shortcut.
Three months later the same authors moved normalisation and ReLU *before* each convolution, so \
that nothing does: norm1, ReLU, conv1, norm2, ReLU, conv2, then the addition.
Given the input `x` and the four layers, return the block's output, a tensor like `x`.""",
        hints=(
            "y = conv1(norm1(x).relu()) is the first half.",
            "The second half is the same with norm2 and conv2; "
            "add the untouched x, with no ReLU after it.",
        ),
        cases=lambda: (
            Case((torch.randn(2, 3, 5, 6), *four_layers(training=False))),
            Case((torch.randn(4, 3, 4, 3), *four_layers(training=True))),
            Case((torch.randn(3, 3, 7, 5).double(), *(f.double() for f in four_layers(False)))),
        ),
        gradient=True,
        mistakes=(
            (relu_at_the_end, "There is a ReLU after the addition; that is what was taken away."),
            (
                shortcut_after_norm,
                "The shortcut begins after norm1; it must be the untouched input.",
            ),
            (without_inner_relus, "The two ReLUs are missing."),
            (without_shortcut, "The input is not added."),
            (relu_before_norm, "Normalisation comes first, then the ReLU."),
            (shortcut_detached, "The shortcut is detached: no gradient goes round the block."),
            (input_minus_block, "The block is subtracted; it is added."),
        ),
    ),
    Exercise(
        solution=bottleneck,
        statement="""\
From 50 layers on the paper saves time with a bottleneck: 1 × 1 down to a quarter of the \
channels, 3 × 3 there, 1 × 1 back up.
Build the block for 256 channels with an identity shortcut and without biases: three \
convolutions, a batch normalisation after each, ReLU after the first two and after the addition.
Return it as an `nn.Module`; it has 70,400 parameters.""",
        hints=(
            "An nn.Sequential of eight layers is F; the addition needs a forward method of your "
            "own.",
            "The convolutions are 256 to 64 with kernel 1, 64 to 64 with kernel 3 and padding 1, "
            "64 to 256 with kernel 1, all with bias=False; "
            "forward returns (x + self.body(x)).relu().",
        ),
        cases=lambda: (Case((), inputs=((2, 256, 6, 5), (3, 256, 3, 4), (1, 256, 2, 3))),),
        mistakes=(
            (bottleneck_of(lambda x, y: y.relu()), "There is no shortcut: the input is not added."),
            (
                bottleneck_of(lambda x, y: (x + y).relu(), bias=True),
                "The convolutions have biases; the normalisation takes them away again.",
            ),
            (
                bottleneck_of(lambda x, y: x + y),
                "The ReLU after the addition is missing.",
            ),
            (
                bottleneck_of(lambda x, y: x + y.relu()),
                "The last ReLU comes before the addition; it comes after.",
            ),
            (
                bottleneck_of(lambda x, y: (x + y).relu(), act=nn.Identity),
                "The inner ReLUs are missing.",
            ),
            (
                bottleneck_of(lambda x, y: (x + y).sigmoid()),
                "The block ends in a sigmoid; it ends in a ReLU.",
            ),
            (
                bottleneck_of(lambda x, y: (x - y).relu()),
                "F(x) is subtracted; it is added.",
            ),
            (
                bottleneck_of(lambda x, y: (x.detach() + y).relu()),
                "The shortcut is detached: no gradient goes round the block.",
            ),
        ),
    ),
    Exercise(
        solution=variance_after_twenty,
        statement="""\
**Predict before you run.**
The input has variance 1 and goes through 20 blocks, each x + norm(conv(relu(x))), untrained, in \
training mode.
What is the variance at the end?
Return a number; the check then measures it.""",
        hints=(
            "What is the variance of what norm gives, whatever comes in?",
            "Each block adds something of variance 1 that has little to do with x.",
        ),
        experiment=measure_variance,
        cases=lambda: (Case(tolerance=0.5),),
        because="Each block adds a signal of variance 1 that is nearly independent of x: the "
        "variance grows by one a block, and each block is a smaller part of the whole. Without the "
        "normalisation it would be multiplied in each block.",
        mistakes=(
            (lambda: 1, "norm keeps each block's own part at 1, but the sum grows."),
            (lambda: 20, "That is what the blocks add; the input has variance 1 too."),
            (lambda: 21**0.5, "That is the spread; the variance is its square."),
            (lambda: 2**20, "It would double if each block added as much as there is already."),
            (lambda: 400, "Variances add up, not spreads: the parts are nearly independent."),
        ),
    ),
    Exercise(
        solution=add_up_gradients,
        statement="""\
**Find the fault.**
A batch of 256 images does not fit into memory, so it is sent through in parts, and their \
gradients add up before one step of the optimizer.
With whole batches the ResNet trained well; with parts its loss explodes.
Mend the function: afterwards the gradients in the net must be those of the mean loss over all \
images of `parts`, a list of (images, labels).
The parts need not be equally large; the function returns nothing.""",
        hints=(
            "How much larger is the gradient with 4 parts than with one?",
            "Each part's loss is a mean over its own images. "
            "Weigh it with len(y) divided by the number of all images.",
        ),
        broken=add_up_exploding,
        facts=gradient_facts,
        returns=False,
        cases=lambda: (Case(((6, 6, 2),)), Case(((4, 4),)), Case(((3, 1, 2, 5),))),
        mistakes=(
            (
                divide_by_parts,
                "Each part counts alike; a smaller part has fewer images and must count less.",
            ),
            (
                divide_by_images,
                "You divide a mean by the number of images: it has been divided once already.",
            ),
            (last_part_only, "Only the last part's gradient is left; they must add up."),
            (sum_over_images, "That is the sum over all images; the mean was asked for."),
        ),
    ),
    Exercise(
        solution=blocks_deleted,
        statement="""\
**An open question.**
What happens to a trained ResNet when one block is deleted, so that only its shortcut is left?
And what to a plain net?
Write the experiment as a function and run it; the check shows what to judge it by.""",
        hints=(
            "A forward hook that returns m.shortcut(x[0]).relu() deletes a ResidualBlock.",
            "Take the blocks one by one, and look at those that change the shape separately.",
        ),
        rubric=(
            "Did you write down a prediction first?",
            "Do you compare with the whole net, and with a plain net where a layer is skipped?",
            "Do you tell blocks that change the shape from those that do not?",
            "Is there more than one seed, and did you leave the test images alone?",
            "Does your conclusion say what this tells about depth, and what it does not?",
        ),
    ),
]
