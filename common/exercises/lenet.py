"""Exercises of 01_lenet."""

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from common import data
from common.config import Config
from common.exercises import Exercise
from common.exercises.answers.alike import Case
from common.train import fit
from common.zoo.lenet import LeNet5


def output_size(size, kernel, padding=0, stride=1, dilation=1):
    covered = dilation * (kernel - 1) + 1
    return (size + 2 * padding - covered) // stride + 1


def convolve(image, kernel):
    (h, w), (u, v) = image.shape, kernel.shape
    rows, columns = h - u + 1, w - v + 1
    places = [(i, j) for i in range(rows) for j in range(columns)]
    values = [(image[i : i + u, j : j + v] * kernel).sum() for i, j in places]
    return torch.stack(values).view(rows, columns)


def convolve_one_short(image, kernel):
    return convolve(image, kernel)[:-1, :-1]


def convolve_rows_for_columns(image, kernel):
    return convolve(image.T, kernel).T


def modern_lenet():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(256, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, 10),
    )


def lenet_of(activation, pool, last=()):
    """LeNet-5 of these parts, for the mistakes one makes with them."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), activation(), pool()),
        *(nn.Conv2d(6, 16, 5), activation(), pool()),
        *(nn.Flatten(), nn.Linear(256, 120), activation()),
        *(nn.Linear(120, 84), activation(), nn.Linear(84, 10), *last),
    )


def mean_pool():
    return nn.AvgPool2d(2)


def max_pool():
    return nn.MaxPool2d(2)


def convolutions_without_relu():
    net = modern_lenet()
    net[1] = net[4] = nn.Identity()
    return net


def accuracy_from_zeros():
    return 10


def train_from_zeros():
    torch.manual_seed(0)
    net = LeNet5()
    for p in net.parameters():
        nn.init.zeros_(p)
    x, y = torch.rand(50, 1, 28, 28), torch.arange(50) % 10  # ten classes, five images each
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _step in range(20):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    return 100 * (net(x).argmax(1) == y).float().mean().item()


def train_step(net, optimizer, x, y):
    loss = cross_entropy(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def train_step_stuck(net, optimizer, x, y):
    loss = cross_entropy(net(x), y)
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss


def step_before_backward(net, optimizer, x, y):
    loss = cross_entropy(net(x), y)
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    return loss


def step_without_zeroing(net, optimizer, x, y):
    loss = cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    return loss


def step_on_probabilities(net, optimizer, x, y):
    return train_step(nn.Sequential(net, nn.Softmax(1)), optimizer, x, y)


def three_steps(step):
    """What three steps with `step` leave of a small net's weights, and the losses."""
    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.5)
    x, y = torch.randn(3, 5, 6), torch.randint(3, (3, 5))
    losses = [step(net, optimizer, *batch) for batch in zip(x, y, strict=True)]
    losses = [loss if isinstance(loss, float) else loss.item() for loss in losses]
    return {
        "the weights after three steps": net.weight.detach().clone(),
        "the losses of three steps": losses,
        "the net is in training mode": net.training,
    }


def shifted_digits(images=4_000, epochs=2, seeds=(0, 1)):
    mnist, rows = data.load("mnist"), {}
    for seed in seeds:
        torch.manual_seed(seed)
        nets = {
            "LeNet": LeNet5(activation=nn.ReLU, image_size=32),
            "no convolution": nn.Sequential(
                nn.Flatten(), nn.Linear(1024, 59), nn.ReLU(), nn.Linear(59, 10)
            ),
        }
        _, held_out = data.split(len(mnist.train), seed=seed)  # as fit splits it
        batches = data.Batches(mnist, "train", 500, size=32, indices=held_out[:500])
        x, y = next(iter(batches))
        for name, net in nets.items():
            settings = Config(epochs=epochs, lr=1e-3, image_size=32, train_images=images, seed=seed)
            fit(net, mnist, settings, show=False)
            rows[name, seed] = {"parameters": sum(p.numel() for p in net.parameters())}
            for pixels in (0, 2, 4):
                with torch.no_grad():
                    answers = net(x.roll(pixels, dims=-1)).argmax(1)
                rows[name, seed][f"moved by {pixels}"] = (answers == y).float().mean().item()
    return pd.DataFrame(rows).T


EXERCISES = [
    Exercise(
        solution=output_size,
        statement="""\
The formula above leaves one thing out, the dilation.
A kernel with a **dilation** of 2 looks at every second pixel, with a dilation of 3 at every third.
How many pixels high is the output of such a convolution?
Return a whole number.""",
        hints=(
            "How many pixels is it from the first to the last that the kernel sees, both counted?",
            "A kernel of 3 with dilation 2 covers 5 pixels: dilation * (kernel - 1) + 1. "
            "The rest is the formula of this page, with that in place of the kernel.",
        ),
        cases=lambda: (
            Case((28, 5)),
            Case((28, 5, 2)),
            Case((24, 2, 0, 2)),
            Case((224, 11, 1, 4)),
            Case((7, 3, 1, 2)),
            Case((28, 3, 0, 1, 2)),
            Case((33, 4, 3, 2, 3)),
            Case((40, 3, 2, 3, 5)),
        ),
        mistakes=(
            (
                lambda size, kernel, padding=0, stride=1, dilation=1: (
                    (size + 2 * padding - kernel) // stride + 1
                ),
                "You left the dilation out: a dilated kernel covers more pixels than it has.",
            ),
            (
                lambda size, kernel, padding=0, stride=1, dilation=1: (
                    (size + padding - dilation * (kernel - 1) - 1) // stride + 1
                ),
                "You added the padding once; it is on both sides.",
            ),
            (
                lambda size, kernel, padding=0, stride=1, dilation=1: (
                    (size + 2 * padding - dilation * (kernel - 1) - 1) // stride
                ),
                "You counted the steps of the kernel; the place where it starts counts too.",
            ),
            (
                lambda size, kernel, padding=0, stride=1, dilation=1: (
                    (size + 2 * padding - dilation * kernel) // stride + 1
                ),
                "A kernel has one gap less than it has pixels, so it covers less than "
                "dilation * kernel.",
            ),
            (
                lambda size, kernel, padding=0, stride=1, dilation=1: (
                    (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1
                ),
                "You divided with /; places are counted, and // rounds down.",
            ),
        ),
    ),
    Exercise(
        solution=convolve,
        statement="""\
Compute a convolution by hand.
Lay the kernel over each place where it fits, multiply and add.
`image` (H, W) and `kernel` (h, w) are tensors, and neither need be square.
Return a tensor with one value a place; like PyTorch, do not flip the kernel.""",
        hints=(
            "How many rows and columns does the output have? Your first exercise knows.",
            "The value at row i, column j is (image[i : i + h, j : j + w] * kernel).sum().",
        ),
        cases=lambda: (
            Case((torch.randn(5, 8), torch.randn(3, 2))),
            Case((torch.randn(7, 4), torch.randn(2, 3))),
            Case((torch.randn(6, 6, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64))),
            Case((torch.randn(4, 3), torch.randn(4, 3))),
        ),
        gradient=True,
        mistakes=(
            (
                lambda image, kernel: convolve(image, kernel.flip(0, 1)),
                "You turned the kernel round, as mathematicians do; PyTorch does not.",
            ),
            (
                convolve_one_short,
                "The last row and the last column are missing: there are H - h + 1 rows.",
            ),
            (
                lambda image, kernel: convolve(image, kernel) / kernel.numel(),
                "You took the mean of the products; a convolution is their sum.",
            ),
            (
                lambda image, kernel: convolve(pad(image, (1, 1, 1, 1)), kernel),
                "You padded the image; here the kernel stays inside it.",
            ),
            (
                convolve_rows_for_columns,
                "Rows and columns are exchanged: the kernel lies on its side.",
            ),
        ),
    ),
    Exercise(
        solution=modern_lenet,
        statement="""\
Change two things in `LeNet5`, for images of 1 × 28 × 28 pixels.
Keep its layers and its 44,426 parameters, but take ReLU for the sigmoid, and mean pooling for \
max pooling.
Return the network, which ends in logits; `nn.Sequential` will do.""",
        hints=(
            "Two rounds of Conv2d, ReLU, AvgPool2d(2), then Flatten, then three Linear layers.",
            "The convolutions have 1 to 6 and 6 to 16 channels and kernels of 5. "
            "Flatten leaves 16 * 4 * 4 = 256 values; then come 120, 84 and 10.",
        ),
        cases=lambda: (Case((), inputs=((2, 1, 28, 28), (3, 1, 28, 28), (1, 1, 28, 28))),),
        mistakes=(
            (
                lambda: lenet_of(nn.Sigmoid, mean_pool),
                "The activations are still sigmoids.",
            ),
            (lambda: lenet_of(nn.ReLU, max_pool), "The poolings still take the largest value."),
            (
                lambda: lenet_of(nn.ReLU, mean_pool, [nn.Softmax(1)]),
                "You end in a softmax; the loss expects logits and does that itself.",
            ),
            (
                lambda: lenet_of(nn.ReLU, mean_pool, [nn.ReLU()]),
                "You end in a ReLU; a logit may be negative.",
            ),
            (
                lambda: lenet_of(nn.Identity, mean_pool),
                "There are no activations: without them, five layers are one linear map.",
            ),
            (
                convolutions_without_relu,
                "A ReLU follows each convolution too, not only the linear layers.",
            ),
            (lambda: lenet_of(nn.Tanh, mean_pool), "The activations are tanh, not ReLU."),
        ),
    ),
    Exercise(
        solution=accuracy_from_zeros,
        statement="""\
**Predict before you run.**
Every weight and bias of a `LeNet5` starts at 0, and it trains for 20 steps on one batch: 50 \
images, five of each class.
What is its accuracy on that batch afterwards, in per cent?
Return a number; the check then trains the net.""",
        hints=(
            "At the start all logits are 0. Which images does conv1 tell apart?",
            "fc3 sees the same values for every image, and conv1's gradient passes through "
            "weights that are 0. Can any image be treated unlike another?",
        ),
        experiment=train_from_zeros,
        cases=lambda: (Case(tolerance=0.5),),
        because="Behind weights of 0 there is no gradient, and all units of a layer get the "
        "same one: no image is told from another, so the net guesses. Random weights break the "
        "symmetry.",
        mistakes=(
            (
                lambda: 100,
                "A net can learn one batch by heart, but only if its units differ at the start.",
            ),
            (lambda: 0, "A net that gives every image the same answer is right for one class."),
            (lambda: 11.35, "That is MNIST's commonest digit; here each has five images."),
        ),
    ),
    Exercise(
        solution=train_step,
        statement="""\
**Find the fault.**
A net stays at 10 %, and its loss is the same in every epoch, to the last digit.
`fit` names no dead layer, and the gradients are not small.
Its training step is below; mend it.
It takes one step of `optimizer` for the images `x` and labels `y`, and returns the loss, as a \
tensor or a number.""",
        hints=(
            "Print the sum of all weights before and after a step. What does that tell you?",
            "Read the lines in order: what does `step` find in .grad when its turn comes?",
        ),
        broken=train_step_stuck,
        facts=three_steps,
        mistakes=(
            (
                step_before_backward,
                "The step comes before the gradient: it finds the last batch's.",
            ),
            (
                step_without_zeroing,
                "The gradients of all steps add up: clear them before each backward pass.",
            ),
            (step_on_probabilities, "cross_entropy takes logits; the softmax is in it already."),
        ),
    ),
    Exercise(
        solution=shifted_digits,
        statement="""\
**An open question.**
What does sharing weights buy?
Train `LeNet5` with ReLU at 32 pixels, and a net without convolutions of about as many \
parameters, and move the validation digits by 0, 2 and 4 pixels.
Write the experiment as a function and run it; the check shows what to judge it by.""",
        hints=(
            "x.roll(2, dims=-1) moves images by 2 pixels. A net of flatten, 59 hidden units and "
            "10 outputs has about as many parameters as LeNet5(image_size=32).",
            "Predict the table before you run it. Two seeds tell you how far to trust it.",
        ),
        rubric=(
            "Did you write down a prediction first?",
            "Do both nets have the same data, epochs and about as many parameters?",
            "Is there more than one seed, and is the difference larger than theirs?",
            "Did you leave the test images alone?",
            "Does your conclusion say what pooling, and what sharing, has to do with it?",
        ),
    ),
]
