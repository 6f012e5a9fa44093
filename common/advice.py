"""In words: that a net is not learning and why, what it cannot take, that memory ran out."""

import copy
import math
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STUCK = 0.02  # a loss this close to that of guessing, as a share of it, is the loss of guessing
LEARNED = 0.9  # share of the loss of guessing below which something has been learned
ENOUGH = 40  # batches before which nothing is said of a loss
SURE = 2.5  # standard errors by which a loss must have fallen, or be below that of guessing
DEAD = 0.9  # share of units without any signal that counts as dead
SATURATED = 0.9  # share of a sigmoid's or tanh's values at its ends that counts as saturated
VANISHED = 1e-3  # gradient of the first layer over that of the last, per weight

aten = torch.ops.aten
# What is a ReLU, perhaps with a limit, where its lower end is 0.
RECTIFIERS = {aten.hardtanh, aten.hardtanh_, aten.clamp_min, aten.clamp_min_, aten.clamp}
RECTIFIERS |= {aten.threshold, aten.threshold_}
ENDS = {aten.sigmoid: 0.0, aten.sigmoid_: 0.0, aten.tanh: -1.0, aten.tanh_: -1.0}  # lower end

# How the allocators of PyTorch and C++ say that there was not enough memory.
PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
PHRASES += ("could not create a memory", "cannot allocate memory", "status_alloc_failed")
# How torch says that a kernel or a pool is larger than what is left of the image.
NO_PIXELS = (
    "Kernel size can't be greater than actual input size|Output size is too small|"
    "non-zero size for (the )?(non-batch )?(input|dimensions)|Padding size should be less than"
)
# What a forward pass raises where shapes do not fit; a misspelt name stays an AttributeError.
TOLD = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def main_output(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The classifier's logits (N, K), without those of auxiliary classifiers."""
    return outputs[0] if isinstance(outputs, tuple) and outputs else outputs


# -------------------------------------------------------------------------------- before training


def can_it_learn(model: nn.Module, x: torch.Tensor, y: torch.Tensor, lr: float = 3e-3) -> None:
    """Two checks of a net before it is trained: it guesses, and it can learn one batch by heart.

    A copy of the net gets steps of Adam on the batch `x` (N, C, H, W), `y` (N,) until its loss is
    below 0.1, at most 500; both losses are printed. Raises AssertionError where the first is not
    within 1 of ln K, the loss of guessing among K classes, or the last one not below 0.1.
    """
    net = copy.deepcopy(model).to(x.device).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    with torch.enable_grad():
        logits = main_output(net(x))
        K = logits.shape[1]
        first = cross_entropy(logits, y).item()
        print(f"loss before training {first:.2f}, ln {K} = {math.log(K):.2f}")
        assert abs(first - math.log(K)) < 1, (
            "An untrained net should guess: is each image's output a row of logits, and does the "
            "start of the weights keep them near 0?"
        )
        # It ends where it has learned, for a few steps later the loss may jump up again.
        for step in range(501):
            loss = cross_entropy(main_output(net(x)), y)
            if loss < 0.1 or step == 500:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"after {step} steps on the same {len(x)} images: loss {loss:.3f}")
    assert loss < 0.1, (
        f"A net that works learns {len(x)} images by heart: does the gradient reach every layer, "
        "is dropout off, and is there a learning rate that does it?"
    )


# ------------------------------------------------------------------------------------ not learning


def diagnose(
    model: nn.Module,
    losses: list[float],
    batch: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
) -> list[str]:
    """What is wrong, as sentences; an empty list where the net learns or nothing is sure.

    `losses` are those of all batches so far; `batch` is one (x, y) to look at the net with, and
    `labels` (N,) are all training labels, which tell what guessing would cost. The net is left as
    it was.
    """
    x, y = batch
    with evaluating(model):
        return findings(model, losses, x, y, labels)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each module is in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def findings(
    net: nn.Module, losses: list[float], x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor
) -> list[str]:
    """What `diagnose` says, for a net in evaluation mode."""
    with torch.no_grad():
        outputs = main_output(net(x)).float()
    # With outputs from 0 to 1 the loss cannot be lower: a net that does it trains on others.
    floor = math.log(math.e + outputs.shape[1] - 1) - 1
    bounded = not losses or recent(losses) > 0.99 * floor
    if bounded and looks_like_softmax(outputs):
        return [
            "The net ends in a softmax, and the loss applies one itself: two of them keep the loss "
            "high and the gradients small. Let the net return logits, without softmax."
        ]
    if bounded and looks_like_sigmoid(outputs):
        return [
            "The net ends in a sigmoid or in a ReLU with a limit: what it returns lies between 0 "
            "and 1, and the softmax in the loss makes little of so small differences. Let the net "
            "return logits."
        ]
    guessing = entropy(labels)
    if len(losses) < ENOUGH or guessing == 0 or not is_stuck(losses, guessing):
        return []  # 0: labels of one class
    n = int(labels.max()) + 1
    stuck = (
        f"The loss is {recent(losses):.3f}, and guessing among {n} classes by their frequency "
        f"gives {guessing:.3f}: the net is not learning yet."
    )
    if all_frozen(net):
        return [
            f"{stuck} All its weights are frozen (requires_grad is False): call requires_grad_() "
            "on what shall learn."
        ]
    reasons = [*unnormalised(x), *silent_layers(net, x)] or vanishing_gradient(net, x, y)
    if not reasons:
        if len(outputs.argmax(1).unique()) == 1 and len(y.unique()) > 1:
            reasons = [f"It answers class {int(outputs[0].argmax())} for every image."]
        reasons.append(
            "Try a learning rate ten times smaller and one ten times larger, more epochs, ReLU for "
            "sigmoid, batch normalisation, or check that labels and images still belong together."
        )
    return [" ".join([stuck, *reasons])]


def entropy(labels: torch.Tensor) -> float:
    """The cross entropy (nats) of guessing each class by its share of the labels."""
    shares = labels.cpu().bincount().double() / len(labels)  # MPS has no doubles
    return -torch.special.xlogy(shares, shares).sum().item()


def has_learned(loss: float, labels: torch.Tensor) -> bool:
    """Whether a mean loss (nats) is clearly below that of guessing by the labels' shares."""
    return loss < LEARNED * entropy(labels)


def recent(losses: list[float]) -> float:
    """The mean of the last tenth, of ten losses at least."""
    last = losses[-max(len(losses) // 10, 10) :]
    return sum(last) / len(last)


def is_stuck(losses: list[float], guessing: float) -> bool:
    """Whether the loss neither falls nor lies below that of guessing, by more than chance."""
    if not all(map(math.isfinite, losses)) or recent(losses) < guessing * (1 - STUCK):
        return False
    half = len(losses) // 2
    first, second = torch.tensor(losses[-2 * half :]).double().split(half)
    errors = [part.std().item() / math.sqrt(half) for part in (first, second)]  # of the means
    falls = (first.mean() - second.mean()).item() > SURE * math.hypot(*errors)
    return not falls and guessing - second.mean().item() <= SURE * errors[1]


def looks_like_softmax(outputs: torch.Tensor) -> bool:
    """Whether every row (N, K) is a probability distribution, as logits never are by chance."""
    sums = outputs.sum(1)
    return bool((outputs >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))


def looks_like_sigmoid(outputs: torch.Tensor) -> bool:
    """Whether all of many values (N, K) lie from 0 to 1, and not in the middle, as at the start."""
    inside = bool((outputs >= 0).all() and (outputs <= 1).all())
    return inside and outputs.numel() >= 100 and outputs.std().item() > 0.1


def all_frozen(net: nn.Module) -> bool:
    """Whether no weight of a net is trained."""
    return not any(p.requires_grad for p in net.parameters())


def unnormalised(x: torch.Tensor) -> list[str]:
    """A sentence where the images' values are far from mean 0 and spread 1."""
    mean, std = x.float().mean().item(), x.float().std().item()
    if abs(mean) < 3 and 0.05 < std < 10:
        return []
    return [f"The images have mean {mean:.3g} and spread {std:.3g}: normalise them to 0 and 1."]


def is_relu(kind, args: tuple) -> bool:
    """Whether an operation is a ReLU, by whatever name: nothing below 0, and 0 there."""
    if kind in (aten.relu, aten.relu_):
        return True
    ends = [isinstance(end, int | float) and end == 0 for end in args[1:3]]
    both = kind in (aten.threshold, aten.threshold_)  # from where on, and what stands below
    return kind in RECTIFIERS and (ends == [True, True] if both else ends[:1] == [True])


class Listener(TorchDispatchMode):
    """Notes the share of dead or saturated values of every activation, module or function."""

    def __init__(self, names: list[str]):
        super().__init__()
        self.names, self.found = names, []  # names: the modules entered so far

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        kind = function.overloadpacket
        where = self.names[-1] if self.names else "forward"
        if is_relu(kind, args) and result.ndim > 1:
            units = result.transpose(0, 1).flatten(1)  # channel x everything else
            share = (units <= 0).all(1).float().mean().item()
            if share > DEAD:
                self.found.append(
                    f"{share:.0%} of the units of {where} are dead: ReLU gives 0 for every image. "
                    "Try a smaller learning rate or Kaiming initialisation."
                )
        elif kind in ENDS:
            ends = (result < ENDS[kind] + 0.01) | (result > 0.99)
            share = ends.float().mean().item()
            if share > SATURATED:
                self.found.append(
                    f"{share:.0%} of the values of {where} are saturated: its gradient is near 0. "
                    "Try a smaller learning rate, smaller initial weights or ReLU."
                )
        return result


def silent_layers(model: nn.Module, x: torch.Tensor) -> list[str]:
    """A sentence for each activation whose units are nearly all dead or saturated on `x`."""
    known, entered = leaves(model), []

    def note(module: nn.Module, _) -> None:
        if module in known:
            entered.append(known[module])

    with register_module_forward_pre_hook(note), torch.no_grad(), Listener(entered) as listener:
        model(x)
    return listener.found


def vanishing_gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[str]:
    """A sentence when the first layer's gradient is a tiny fraction of the last layer's.

    First and last are by the way of the images through the net, not by registration.
    """
    order: list[nn.Parameter] = []

    def note(module: nn.Module, _) -> None:
        weights = module.parameters(recurse=False)
        order.extend(p for p in weights if p.ndim > 1 and p.requires_grad)

    with register_module_forward_pre_hook(note), torch.enable_grad():
        loss = cross_entropy(main_output(model(x)).float(), y)
    if len(order) < 2 or not loss.requires_grad:  # a net may do without gradients in evaluation
        return []
    names = {id(p): name for name, p in model.named_parameters()}
    gradients = torch.autograd.grad(loss, [order[0], order[-1]], allow_unused=True)
    sizes = [0.0 if g is None else g.float().square().mean().sqrt().item() for g in gradients]
    if sizes[1] == 0 or sizes[0] >= VANISHED * sizes[1]:
        return []
    return [
        f"The gradient vanishes: {sizes[0]:.1e} at {names[id(order[0])]} against {sizes[1]:.1e} at "
        f"{names[id(order[-1])]} (root mean square). Try ReLU, batch normalisation or shortcuts."
    ]


# ---------------------------------------------------------------------------------- what goes wrong


def leaves(model: nn.Module) -> dict[nn.Module, str]:
    """The modules without children, with their names."""
    return {m: name or "forward" for name, m in model.named_modules() if not any(m.children())}


class Witness(TorchFunctionMode):
    """Remembers in which function an error arose, and the shapes that met there."""

    error: Exception | None = None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        try:
            return function(*args, **(kwargs or {}))
        except Exception as error:
            if self.error is not error:  # not those that only pass it on
                self.error, self.shapes = error, shapes_in([args, kwargs])
                self.function = function.__name__.strip("_")
            raise


def tensors_in(values) -> list[torch.Tensor]:
    """The tensors among `values`, and in the lists, tuples and dicts among them."""
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def shapes_in(values: object) -> list[tuple[int, ...]]:
    """Their shapes."""
    return [tuple(tensor.shape) for tensor in tensors_in(values)]


@contextmanager
def told_by_layer(model: nn.Module, shape: tuple[int, ...]) -> Iterator[None]:
    """Turns an error of a forward pass into ValueError: torch's own words, the layer, what met."""
    witness = Witness()
    try:
        with witness:
            yield
    except TOLD as error:
        if ran_out(error):
            raise
        names = {module: name for name, module in model.named_modules()}
        calls = [  # of modules, that had not ended
            frame.f_locals
            for frame, _ in traceback.walk_tb(error.__traceback__)
            if frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals["self"] in names
        ]
        call = calls[-1] if calls else {"self": model, "args": [torch.empty(shape, device="meta")]}
        module, shapes = call["self"], shapes_in(call["args"])
        name = names[module]
        layer = f"the layer {name!r} ({type(module).__name__})" if name else type(module).__name__
        if any(module.children()) and witness.error is error:
            layer, shapes = f"{witness.function}, called by {layer},", witness.shapes
        said = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        met = " and ".join(map(str, shapes)) or "none"
        raise ValueError(
            f"Images of shape {shape} (N, C, H, W) do not fit this net: {layer} got {met}. "
            f"{said}.{remedy(module, shape, shapes, said)}"
        ) from error


def remedy(module: nn.Module, images: tuple[int, ...], shapes: list, said: str) -> str:
    """What to try where `module` does not take these shapes, as far as that is known."""
    came = shapes[0] if shapes else ()
    channels, features = (
        None if any(module.children()) else getattr(module, name, None)
        for name in ("in_channels", "in_features")
    )
    if channels is not None and len(came) == 4 and came[1] != channels:
        build = f": build the net with in_channels={came[1]}" if came == images else ""
        return f" It takes {channels} channels{build}."
    if features is not None and came and came[-1] != features:
        return f" It takes {features} values an image: use the image size the net was made for."
    if "more than 1 value per channel" in said:
        return " Batch normalisation needs two images a batch, or two places a map."
    if re.search(NO_PIXELS, said, re.IGNORECASE):
        return " It ran out of pixels: use larger images (image_size)."
    return ""


@torch.no_grad()
def first_not_finite(model: nn.Module, x: torch.Tensor) -> str:
    """Where on the way of `x` the first value appears that is no finite number, in words."""
    known, found = leaves(model), []

    def look(module: nn.Module, _, output) -> None:
        odd = isinstance(output, torch.Tensor) and not output.isfinite().all()
        if odd and module in known:
            found.append(known[module])

    with register_module_forward_hook(look):
        model(x)
    return f"it first appears in {found[0]!r}" if found else "no layer shows it any more"


def ran_out(error: BaseException) -> bool:
    """Whether an error means that there was not enough memory."""
    return isinstance(error, MemoryError) or any(p in str(error).lower() for p in PHRASES)


@contextmanager
def memory_explained(batch_size: int, device: str) -> Iterator[None]:
    """Inside, too little memory is an error that says what to try."""
    try:
        yield
    except Exception as error:
        if ran_out(error):
            raise out_of_memory(error, batch_size, device, None) from None
        raise


def out_of_memory(
    error: BaseException, batch_size: int, device: str, peak: int | None
) -> MemoryError:
    """The error that says how much was used, and what to try."""
    used = f", of {peak / 1e9:.1f} GB used at most" if peak else ""
    said = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
    return MemoryError(
        f"Out of memory with batch_size={batch_size} on the {device}{used} ({said}); halve the "
        "batch size, or use smaller images or a narrower net."
    )
