"""Looking inside a trained net: filters, feature maps, Grad-CAM, its worst mistakes."""

import torch
from torch import nn

from common import plot
from common.data import Batches, ImageSet
from common.train import Evaluation, main_output


def first_convolution(model: nn.Module) -> nn.Conv2d:
    """The convolution that sees the image. Raises ValueError in a net without one."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            return layer
    raise ValueError(f"{type(model).__name__} has no nn.Conv2d layer.")


def last_convolution(model: nn.Module) -> nn.Conv2d:
    """The convolution nearest to the classifier. Raises ValueError in a net without one."""
    found = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return found[-1] if found else first_convolution(model)


def filters(model: nn.Module, title: str, most: int = 32) -> None:
    """Show the first layer's kernels, each stretched to its own range."""
    kernels = first_convolution(model).weight.detach().float()[:most]
    channels = kernels.shape[1]
    images = list(kernels) if channels in (1, 3) else list(kernels[:, :1])
    size = " x ".join(map(str, kernels.shape[-2:]))
    plot.grid(images, None, title, f"{title}: {len(images)} kernels of {size} pixels.")


def outputs_of(layer: nn.Module, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What `layer` puts out when `model` sees the batch x (N, C, H, W); gradients are kept."""
    kept = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    model.eval()(x)
    handle.remove()
    return kept[0]


def feature_maps(
    model: nn.Module, layer: nn.Module, x: torch.Tensor, title: str, most: int = 16
) -> None:
    """Show the channels that `layer` puts out for one image x (1, C, H, W)."""
    with torch.no_grad():
        maps = outputs_of(layer, model, x)[0].float().cpu()
    size = f"{maps.shape[1]} x {maps.shape[2]} pixels"
    alt = f"{title}: {min(len(maps), most)} of {len(maps)} channels of {size}."
    plot.grid(list(maps[:most, None]), None, title, alt, colour_map="viridis")


def grad_cam(
    model: nn.Module, layer: nn.Module, x: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """Heat maps (N, h, w), 0 to 1: where `layer` speaks for class `classes[i]` in image x[i].

    Channels are weighted by the mean gradient of the class's logit, summed, and cut at 0.
    Source: Selvaraju et al. 2017, Grad-CAM, equations 1 and 2.
    """
    kept = []
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    with torch.enable_grad():
        logits = main_output(model.eval()(x))
    handle.remove()
    chosen = logits.gather(1, classes[:, None].to(logits.device)).sum()
    (gradient,) = torch.autograd.grad(chosen, kept[0])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = (weights * kept[0]).sum(1).relu().detach().float().cpu()
    return heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-8)


def show_grad_cam(
    model: nn.Module,
    data: ImageSet,
    indices: torch.Tensor,
    size: int | None,
    title: str,
    layer: nn.Module | None = None,
) -> None:
    """Grad-CAM of the predicted class over test images `indices`, from the last convolution.

    Where branches are joined, the last convolution is only one of them: give the joining `layer`.
    """
    batches = Batches(data, "test", len(indices), indices=indices, size=size)
    x, truth = next(iter(batches))
    x = x.to(next(model.parameters()).device)
    with torch.no_grad():
        predicted = main_output(model.eval()(x)).argmax(1).cpu()
    heat = grad_cam(model, layer or last_convolution(model), x, predicted)
    heat = nn.functional.interpolate(heat[:, None], x.shape[-2:], mode="bilinear")[:, 0]
    columns = min(len(indices), 6)
    rows = -(-len(indices) // columns)
    fig, axes = plot.figure(rows, columns, (1.25 * columns, 1.5 * rows + 0.4))
    for i, ax in enumerate(axes.ravel()):
        ax.set_axis_off()
        if i < len(indices):
            ax.imshow(plot.to_picture(x[i]), cmap="gray")
            ax.imshow(heat[i], cmap="inferno", alpha=0.5, vmin=0, vmax=1)
            mark = "" if predicted[i] == truth[i] else f"\nnot {data.classes[truth[i]]}"
            ax.set_title(data.classes[predicted[i]] + mark, fontsize=8, pad=2)
    fig.suptitle(title)
    wrong = int((predicted != truth.cpu()).sum())
    plot.show(fig, f"{title}: {len(indices)} test images, {wrong} of them classified wrongly.")


def worst(test: Evaluation, data: ImageSet, most: int = 16) -> torch.Tensor:
    """Indices of the wrongly classified test images with the highest loss, worst first."""
    wrong = (test.predictions != data.test.labels).nonzero().flatten()
    return wrong[test.losses[wrong].argsort(descending=True)][:most]


def right_and_wrong(test: Evaluation, data: ImageSet, most: int = 6) -> torch.Tensor:
    """Indices of test images to show: the first `most` right answers, then the worst mistakes."""
    right = (test.predictions == data.test.labels).nonzero().flatten()[:most]
    return torch.cat([right, worst(test, data, most)])


def worst_mistakes(test: Evaluation, data: ImageSet, title: str, most: int = 16) -> None:
    """Show the test images that the net got most confidently wrong: truth, then prediction."""
    chosen = worst(test, data, most)
    if len(chosen) == 0:
        print("No mistakes on the test images.")
        return
    labels = data.test.labels
    titles = [
        f"{data.classes[labels[i]]}\nseen as {data.classes[test.predictions[i]]}" for i in chosen
    ]
    alt = f"{title}: " + "; ".join(t.replace("\n", " ") for t in titles) + "."
    plot.grid(list(data.test.images[chosen]), titles, title, alt, inches=1.05)
