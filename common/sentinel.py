"""Says in words when a net is not learning, why, and what to try."""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

STUCK = 0.02  # a loss this close to ln(classes), as a share of it, is the loss of guessing
DEAD = 0.9  # share of units without any signal that counts as dead
SATURATED = 0.9  # share of a sigmoid's or tanh's values at its ends that counts as saturated
VANISHED = 1e-3  # gradient of the first layer over that of the last, per weight

RECTIFIERS = (nn.ReLU, nn.ReLU6)


def diagnose(
    model: nn.Module,
    losses: list[float],
    batch: tuple[torch.Tensor, torch.Tensor],
    n_classes: int,
) -> list[str]:
    """What is wrong after an epoch, as sentences; an empty list when the net is learning.

    `losses` are the epoch's, batch by batch; `batch` is one (x, y) to look at the net with.
    """
    if not all(map(math.isfinite, losses)):
        first = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
        return [
            f"The loss became {losses[first]} in batch {first + 1}: the weights have blown up. "
            "Try a learning rate ten times smaller, and check that the images are normalised."
        ]
    guessing = math.log(n_classes)
    recent = losses[-max(len(losses) // 10, 1) :]
    loss = sum(recent) / len(recent)
    if loss < guessing * (1 - STUCK):
        return []
    stuck = (
        f"The loss is {loss:.3f}, and guessing among {n_classes} classes gives ln({n_classes}) = "
        f"{guessing:.3f}: the net is not learning yet. "
    )
    reasons = [*dead_layers(model, batch[0]), *vanishing_gradient(model, batch)]
    advice = (
        "Try a learning rate ten times smaller and one ten times larger, more epochs, ReLU for "
        "sigmoid, batch normalisation, or check that labels and images still belong together."
    )
    return [stuck + (" ".join(reasons) or advice)]


def dead_layers(model: nn.Module, x: torch.Tensor) -> list[str]:
    """A sentence for each activation layer whose units are nearly all dead or saturated on `x`."""
    found = []

    def look(name: str, layer: nn.Module, output: torch.Tensor) -> None:
        if isinstance(layer, RECTIFIERS):
            units = output.transpose(0, 1).flatten(1)  # channel x everything else
            share = (units == 0).all(1).float().mean().item()
            if share > DEAD:
                found.append(
                    f"{share:.0%} of the units of {name} are dead: ReLU gives 0 for every image. "
                    "Try a smaller learning rate or Kaiming initialisation."
                )
        else:
            low = 0.0 if isinstance(layer, nn.Sigmoid) else -1.0
            share = ((output < low + 0.01) | (output > 0.99)).float().mean().item()
            if share > SATURATED:
                found.append(
                    f"{share:.0%} of the values of {name} are saturated: its gradient is near 0. "
                    "Try a smaller learning rate, smaller initial weights or ReLU."
                )

    handles = [
        layer.register_forward_hook(lambda layer, _, output, name=name: look(name, layer, output))
        for name, layer in model.named_modules()
        if isinstance(layer, (*RECTIFIERS, nn.Sigmoid, nn.Tanh))
    ]
    training = model.training
    with torch.no_grad():
        model.eval()(x)
    model.train(training)
    for handle in handles:
        handle.remove()
    return found


def vanishing_gradient(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> list[str]:
    """A sentence when the first layer's gradient is a tiny fraction of the last layer's."""
    weights = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1]
    if len(weights) < 2:
        return []
    x, y = batch
    training = model.training
    loss = cross_entropy(model.eval()(x), y)
    gradients = torch.autograd.grad(loss, [weights[0][1], weights[-1][1]], allow_unused=True)
    model.train(training)
    sizes = [0.0 if g is None else g.float().square().mean().sqrt().item() for g in gradients]
    if sizes[1] == 0 or sizes[0] >= VANISHED * sizes[1]:
        return []
    return [
        f"The gradient vanishes: {sizes[0]:.1e} at {weights[0][0]} against {sizes[1]:.1e} at "
        f"{weights[-1][0]} (root mean square). Try ReLU, batch normalisation or shortcuts."
    ]
