"""What happens inside a net that sees images: a layer's outputs, and Grad-CAM."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from common.advice import evaluating


def first_convolution(model: nn.Module) -> nn.Conv2d:
    """The first convolution, as the layers were made. Raises ValueError in a net without one."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            return layer
    raise ValueError(f"{type(model).__name__} has no nn.Conv2d layer.")


def last_maps(model: nn.Module, x: torch.Tensor, least: int = 4) -> nn.Module:
    """The last layer or block, in the order of computing, with maps of `least` pixels each way.

    What follows in a net, such as an activation or a joining of branches, comes later than the
    convolution: Grad-CAM is taken there. Raises ValueError for the batch x (N, C, H, W) of a net
    that has no such maps.
    """
    found = []

    def keep(layer: nn.Module, _, output) -> None:
        shape = getattr(output, "shape", ())
        if layer is not model and len(shape) == 4 and min(shape[-2:]) >= least:
            found.append(layer)

    with register_module_forward_hook(keep), torch.no_grad():
        outputs_of(model, model, x)
    if not found:
        raise ValueError(f"{type(model).__name__} has no maps of {least} x {least} for this image.")
    return found[-1]


def first_of(output, layer: nn.Module) -> torch.Tensor:
    """The tensor that a layer puts out, or the first of several."""
    output = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"{type(layer).__name__} puts out {type(output).__name__}, no tensor.")
    return output


def outputs_of(layer: nn.Module, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What `layer`, any module of `model`, puts out for the batch x (N, C, H, W).

    Gradients are kept; of several uses the first counts. The model is left as it was. Raises
    ValueError where the forward pass does not reach the layer.
    """
    kept = []

    def keep(_, __, output) -> torch.Tensor | None:
        kept.append(first_of(output, layer))
        # Handing on a copy leaves what is kept alone, whatever happens to the copy in place.
        return kept[-1].clone() if output is kept[-1] else None

    with evaluating(model), layer.register_forward_hook(keep):
        model(x)
    if not kept:
        raise ValueError(f"The forward pass does not reach this {type(layer).__name__}.")
    return kept[0]


def grad_cam(
    model: nn.Module, layer: nn.Module, x: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """Heat maps (N, h, w), 0 to 1: where `layer` speaks for class `classes[i]` in image x[i].

    Channels are weighted by the mean gradient of the class's logit, summed, and cut at 0. The maps
    of a layer that is used several times are added before the cut. The model may be frozen, and
    is left as it was. Raises ValueError for a layer without maps, or of no weight for the logits.
    Source: Selvaraju et al. 2017, Grad-CAM, equations 1 and 2.
    """
    kept = []

    def keep(_, __, output) -> torch.Tensor:
        maps = first_of(output, layer)
        if maps.ndim != 4:
            raise ValueError(f"{type(layer).__name__} puts out {tuple(maps.shape)}, no maps.")
        kept.append(maps if maps.requires_grad else maps.detach().requires_grad_())
        copy = kept[-1].clone()  # an activation in place changes the copy alone
        if isinstance(output, torch.Tensor):
            return copy
        # A named tuple takes its parts one by one.
        parts = [copy, *output[1:]]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)

    listening = layer.register_forward_hook(keep)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), listening:
        logits = first_of(model(x.clone()), model)
        classes = torch.as_tensor(classes).clone().to(logits.device)
        if len(classes) != len(x) or not 0 <= classes.min() <= classes.max() < logits.shape[1]:
            raise ValueError(
                f"classes={classes.tolist()}; expected one from 0 to {logits.shape[1] - 1} for "
                f"each of the {len(x)} images."
            )
        chosen = logits.gather(1, classes[:, None]).sum()
        if not kept or not chosen.requires_grad:
            raise ValueError(f"The logits do not depend on this {type(layer).__name__}.")
        gradients = torch.autograd.grad(chosen, kept, allow_unused=True)
    heat = torch.zeros(())
    for maps, gradient in zip(kept, gradients, strict=True):
        if gradient is None:
            raise ValueError(f"The logits do not depend on this {type(layer).__name__}.")
        heat = heat + (gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(1).detach().float().cpu()
    heat = heat.relu()
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-8)


def heat_maps(
    model: nn.Module, x: torch.Tensor, classes: torch.Tensor, layer: nn.Module | None = None
) -> torch.Tensor:
    """Grad-CAM (N, H, W) as large as the images x (N, C, H, W), from `layer` or `last_maps`."""
    heat = grad_cam(model, layer or last_maps(model, x), x, classes)
    return F.interpolate(heat[:, None], x.shape[-2:], mode="bilinear")[:, 0]
