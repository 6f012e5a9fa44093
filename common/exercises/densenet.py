"""Exercises of 08_densenet."""

import copy
import itertools

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import conv2d

from common import data
from common.config import Config
from common.exercises import Exercise
from common.exercises.answers.alike import Case
from common.train import fit
from common.zoo.densenet import DenseNet


def maps_kept(channels, growth_rate, layers):
    piles = [channels + i * growth_rate for i in range(layers)]
    squeezed = layers * 4 * growth_rate
    return 2 * (sum(piles) + squeezed)


def piles_of(growth_rate, counts):
    """What `maps_kept` counts, for piles of these sizes."""
    return 2 * (sum(counts) + len(counts) * 4 * growth_rate)


def kept_of_the_last_pile(channels, growth_rate, layers):
    return piles_of(growth_rate, layers * [channels + layers * growth_rate])


def kept_of_the_input(channels, growth_rate, layers):
    return piles_of(growth_rate, layers * [channels])


def kept_after_each_layer(channels, growth_rate, layers):
    return piles_of(growth_rate, [channels + i * growth_rate for i in range(1, layers + 1)])


def kept_with_the_end(channels, growth_rate, layers):
    return maps_kept(channels, growth_rate, layers) + 2 * (channels + layers * growth_rate)


def kept_piles_alone(channels, growth_rate, layers):
    return maps_kept(channels, growth_rate, layers) - 8 * growth_rate * layers


def kept_squeezed_to_k(channels, growth_rate, layers):
    return maps_kept(channels, growth_rate, layers) - 6 * growth_rate * layers


def grow(x, layers):
    for layer in layers:
        x = torch.cat([x, layer(x)], dim=1)
    return x


def grow_side_by_side(x, layers):
    return torch.cat([x, *(layer(x) for layer in layers)], dim=1)


def grow_at_the_front(x, layers):
    for layer in layers:
        x = torch.cat([layer(x), x], dim=1)
    return x


def grow_without_a_pile(x, layers):
    for layer in layers:
        x = layer(x)
    return x


def grow_by_the_newest(x, layers):
    pile = [x]
    for layer in layers:
        pile.append(layer(pile[-1]))
    return torch.cat(pile, dim=1)


def grow_without_input(x, layers):
    return grow(x, layers)[:, x.shape[1] :]


def grow_detached(x, layers):
    for layer in layers:
        x = torch.cat([x, layer(x.detach())], dim=1)
    return x


def three_layers():
    """Dense layers that are no modules: each reads any pile and returns 2, 1 and 3 maps."""
    return [
        lambda pile: pile[:, :2] * 2,
        lambda pile: pile.sum(1, keepdim=True),
        lambda pile: pile[:, -3:].sin(),
    ]


def without_source(x, weight, entry, growth_rate, source):
    start = 0 if source == 0 else entry + (source - 1) * growth_rate
    end = entry + source * growth_rate
    kept = torch.ones(x.shape[1], dtype=x.dtype)
    kept[start:end] = 0
    return torch.nn.functional.conv2d(x * kept[:, None, None], weight)


def only_the_source(x, weight, entry, growth_rate, source):
    return conv2d(x, weight) - without_source(x, weight, entry, growth_rate, source)


def without_the_next(x, weight, entry, growth_rate, source):
    return without_source(x, weight, entry, growth_rate, source + 1)


def without_it_or_later(x, weight, entry, growth_rate, source):
    for later in range(source, (x.shape[1] - entry) // growth_rate + 1):
        x = x.clone()
        start = 0 if later == 0 else entry + (later - 1) * growth_rate
        x[:, start : entry + later * growth_rate] = 0
    return conv2d(x, weight)


def silence_in_place(x, weight, entry, growth_rate, source):
    start = 0 if source == 0 else entry + (source - 1) * growth_rate
    x[:, start : entry + source * growth_rate] = 0
    return conv2d(x, weight)


def piles_written():
    return 8.4


def measure_piles():
    pile, written = torch.zeros(1, 24, 4, 4), 0
    for _layer in range(16):
        written += pile.numel()  # normalised and stored anew for this layer to read
        pile = torch.cat([pile, torch.zeros(1, 12, 4, 4)], dim=1)
    return written / pile.numel()


def split_pairs(n, share):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    cut = round(n * share)
    val, train = order[:cut], order[cut:]
    return torch.cat([train, train + n]), torch.cat([val, val + n])


def split_pairs_leaking(n, share):
    order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(0))
    cut = round(2 * n * share)
    return order[cut:], order[:cut]


def split_originals_only(n, share):
    train, val = split_pairs(n, share)
    return train[: len(train) // 2], val[: len(val) // 2]


def split_by_kind(n, share):
    return torch.arange(n), torch.arange(n, 2 * n)


def split_unshuffled(n, share):
    cut = round(n * share)
    val, train = torch.arange(cut), torch.arange(cut, n)
    return torch.cat([train, train + n]), torch.cat([val, val + n])


def split_exchanged(n, share):
    return split_pairs(n, share)[::-1]


def split_anew(n, share):
    order = torch.randperm(n)
    cut = round(n * share)
    val, train = order[:cut], order[cut:]
    return torch.cat([train, train + n]), torch.cat([val, val + n])


def pairs_facts(answer, n, share):
    """What can be said of such a split without knowing its random numbers."""
    parts = [torch.as_tensor(part) for part in answer(n, share)]
    train, val = (part.flatten().tolist() for part in parts)
    again = torch.as_tensor(answer(n, share)[1]).flatten().tolist()
    originals = sorted(i for i in val if i < n)
    gaps = {b - a for a, b in itertools.pairwise(originals)}
    return {
        "dimensions of the two rows": [part.ndim for part in parts],
        "photographs with one of their two forms in each part": len(
            {i % n for i in train} & {i % n for i in val}
        ),
        "images for validation": len(val),
        "images in both parts together, each once": len(set(train) | set(val)),
        "images in all": len(train) + len(val),
        "mirrored images for validation": sum(i >= n for i in val),
        "the choice looks random": len(gaps) > 5,
        "a second call gives the same": sorted(again) == sorted(val),
    }


def which_old_maps(images=4_000, epochs=3, seeds=(0, 1)):
    fashion, rows = data.load("fashion_mnist"), {}
    for seed in seeds:
        torch.manual_seed(seed)
        net = DenseNet(growth_rate=8, small_images=True)
        settings = Config(epochs=epochs, lr=2e-3, image_size=16, train_images=images, seed=seed)
        fit(net, fashion, settings, show=False)
        _, held_out = data.split(len(fashion.train), seed=seed)  # as fit splits it
        x, y = next(iter(data.Batches(fashion, "train", 500, size=16, indices=held_out[:500])))
        pile = torch.arange(net.norm_end.num_features)
        half = len(pile) // 2
        mixed = pile[torch.randperm(len(pile))]
        silenced = {"nothing": pile[:0], "older half": pile[:half], "newer half": pile[half:]}
        for name, maps in (silenced | {"a random half": mixed[:half]}).items():
            quiet = copy.deepcopy(net)
            quiet.norm_end.weight.data[maps] = 0
            with torch.no_grad():
                logits = quiet(x)
            row = rows.setdefault(name, {})
            row[f"loss, seed {seed}"] = nn.functional.cross_entropy(logits, y).item()
            row[f"accuracy, seed {seed}"] = (logits.argmax(1) == y).float().mean().item()
    return pd.DataFrame(rows).T


EXERCISES = [
    Exercise(
        solution=maps_kept,
        statement="""\
How many maps wait for the gradient in a dense block of `layers` layers?
`channels` maps enter it, and each layer adds `growth_rate`.
For each layer, training keeps the pile that it read, once as it was and once after ReLU, and \
its squeezed maps, twice as well.
Return a whole number; times 32 · 32 pixels and 4 bytes it is the table above.""",
        hints=(
            "The first layer reads `channels` maps, the second growth_rate more, and so on. "
            "How many are the squeezed maps of a layer?",
            "Add up channels + i * growth_rate for i in range(layers), and 4 * growth_rate a "
            "layer; then twice all of it.",
        ),
        cases=lambda: (
            Case((24, 12, 6)),
            Case((64, 32, 24)),
            Case((10, 3, 1)),
            Case((7, 5, 2)),
        ),
        mistakes=(
            (
                lambda *args: maps_kept(*args) // 2,
                "Everything is kept twice: before and after ReLU.",
            ),
            (
                kept_of_the_last_pile,
                "You take the final pile for every layer; each read what was there before it.",
            ),
            (kept_of_the_input, "The pile grows: each layer reads growth_rate maps more."),
            (
                kept_after_each_layer,
                "You count the piles that the layers leave; they keep those that they read.",
            ),
            (
                kept_with_the_end,
                "The pile at the end is read by what follows, not by a layer of the block.",
            ),
            (kept_piles_alone, "The squeezed maps are missing."),
            (kept_squeezed_to_k, "The bottleneck has 4 · growth_rate maps."),
        ),
    ),
    Exercise(
        solution=grow,
        statement="""\
Run a dense block by hand.
`x` is a tensor (N, C, H, W), and `layers` is a list of functions, which may be empty: each takes \
the pile so far and returns its new maps, without the pile.
Return the pile after the last layer, a tensor.""",
        hints=(
            "The second layer must see what the first one made.",
            "torch.cat([x, layer(x)], dim=1) is the pile after one layer.",
        ),
        cases=lambda: (
            Case((torch.randn(2, 3, 4, 5), three_layers())),
            Case((torch.randn(1, 4, 3, 7), three_layers()[::-1])),
            Case((torch.randn(2, 3, 5, 4), three_layers()[:1])),
            Case((torch.randn(3, 2, 3, 3).double(), [])),
        ),
        gradient=True,
        mistakes=(
            (grow_side_by_side, "Every layer reads only `x`; each must read the pile so far."),
            (grow_at_the_front, "New maps are laid in front; they go to the end."),
            (grow_without_a_pile, "The pile is lost: each layer's maps replace it."),
            (grow_by_the_newest, "Each layer reads only the newest maps; it must read all."),
            (grow_without_input, "The block's own input is missing from the pile."),
            (grow_detached, "The layers read a detached pile, so their gradient is cut."),
        ),
    ),
    Exercise(
        solution=without_source,
        statement="""\
Is an old map needed, or only kept?
Silence it, and look.
A 1 × 1 convolution with `weight` (K, C, 1, 1) and no bias reads a pile `x` (N, C, H, W): first \
the `entry` maps that came into the block, which are source 0, then `growth_rate` maps from each \
layer, sources 1, 2 and so on.
Return what the convolution gives when all maps of `source` are 0, a tensor (N, K, H, W).
`x` and `weight` stay as they are.""",
        hints=(
            "Where do the maps of source 1 begin, and where do those of source 2?",
            "Source s > 0 begins at entry + (s - 1) * growth_rate. Set these maps of a clone to 0, "
            "then use torch.nn.functional.conv2d.",
        ),
        cases=lambda: (
            Case((torch.randn(2, 10, 4, 5), torch.randn(3, 10, 1, 1), 4, 2, 2)),
            Case((torch.randn(2, 10, 3, 5), torch.randn(6, 10, 1, 1), 4, 2, 0)),
            Case((torch.randn(1, 8, 6, 3), torch.randn(5, 8, 1, 1), 3, 5, 1)),
            Case((torch.randn(2, 9, 3, 4).double(), torch.randn(2, 9, 1, 1).double(), 3, 2, 3)),
        ),
        gradient=True,
        mistakes=(
            (only_the_source, "You keep the source and silence the rest."),
            (without_the_next, "You silence the next source: source 0 is the block's input."),
            (without_it_or_later, "You silence all later sources too."),
            (silence_in_place, "You change `x` itself; work on a clone."),
            (
                lambda x, weight, entry, growth_rate, source: conv2d(x, weight),
                "Nothing is silenced.",
            ),
        ),
    ),
    Exercise(
        solution=piles_written,
        statement="""\
**Predict before you run.**
A dense block has 16 layers; 24 maps enter, and each layer adds 12, so that 216 leave.
Each layer stores a normalised copy of the pile it reads, for the way back.
How many final piles do these 16 copies fill together?
Return a number; the check then adds them up.""",
        hints=(
            "The first layer reads 24 maps, the last one 204. What is their mean?",
            "16 layers read 114 maps each on average, and the final pile has 216.",
        ),
        experiment=measure_piles,
        cases=lambda: (Case(tolerance=0.3),),
        because="16 layers read 114 maps each on average, 1,824 in all. The memory of a dense "
        "block grows with the square of its depth, which is why DenseNets are often trained with "
        "checkpointing.",
        mistakes=(
            (lambda: 1, "The pile that leaves is one, but each layer stores its own copy."),
            (lambda: 16, "Not every layer reads the whole pile: the first reads 24 maps."),
            (lambda: 8, "Half of each is nearly it; but the block does not begin with 0 maps."),
        ),
    ),
    Exercise(
        solution=split_pairs,
        statement="""\
**Find the fault.**
A DenseNet reaches 99 % on its validation images and 88 % on the test images, which come from the \
same source.
The training set had been doubled: image i of `n` photographs has its mirrored form at i + n.
Then the function below split all 2 n at random.
Mend it, so that round(n · share) of the photographs go to validation.
Return (training, validation), two rows of indices; every image is in one of them, the split is \
random, and the same call gives the same split.""",
        hints=(
            "Where is the mirrored form of a validation image?",
            "Split the n photographs first, then add the mirrored form of each to its own part.",
        ),
        broken=split_pairs_leaking,
        facts=pairs_facts,
        cases=lambda: (Case((400, 0.25)), Case((303, 0.25)), Case((301, 0.25)), Case((40, 0.01))),
        mistakes=(
            (split_originals_only, "The mirrored images are lost; every image is in one part."),
            (split_by_kind, "All mirrored forms are in one part, and all originals in the other."),
            (split_unshuffled, "These are simply the first photographs: shuffle before you cut."),
            (split_exchanged, "Training and validation have changed places."),
            (split_anew, "A second call gives another split: fix the seed of a generator."),
        ),
    ),
    Exercise(
        solution=which_old_maps,
        statement="""\
**An open question.**
Which maps does a trained DenseNet need at its end, the old or the new?
The page silences one layer at a time; silence one half of the last pile, then the other half.
Write the experiment as a function and run it; the check shows what to judge it by.""",
        hints=(
            "As on the page: in a copy of the net, set the scale of norm_end to 0 for some of its "
            "maps.",
            "Silence random halves as well: how much does any half cost?",
        ),
        rubric=(
            "Did you write down a prediction first?",
            "Do you compare with the whole net, and with a random half?",
            "Do you use the loss as well as the accuracy?",
            "Is there more than one seed, and did you leave the test images alone?",
            "Does your conclusion agree with what the weights say?",
        ),
    ),
]
