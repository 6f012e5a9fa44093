"""What random input does to the rest: the right result, or an error that the docstring names."""

import copy
import functools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_input import mostly, odd, only, rarely, robust, small
from torch import nn

from common import compare, config, look, records, zoo
from common.config import Config
from common.data import Images, ImageSet
from common.look import figures
from common.run import Run
from common.train import Evaluation, evaluate, fit
from tools import documents

# ---------------------------------------------------------------------------------- settings

CONFIGS = {
    "epochs": mostly(rarely(small, st.integers(1, 12))),
    "batch_size": rarely(
        odd,
        mostly(rarely(small, st.integers(1, 40)))
        | st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20)), min_size=1, max_size=3),
    ),
    "optimizer": rarely(odd, st.sampled_from(config.OPTIMIZERS)),
    "lr": mostly(rarely(st.floats(), st.floats(1e-6, 10))),
    "momentum": mostly(rarely(st.floats(-1, 2), st.floats(0, 0.99))),
    "nesterov": rarely(odd, st.booleans()),
    "weight_decay": mostly(rarely(st.floats(), st.floats(0, 1))),
    "schedule": rarely(odd, st.sampled_from(config.SCHEDULES)),
    "milestones": rarely(odd, st.lists(st.integers(-1, 9), max_size=3).map(sorted)),
    "patience": st.none() | mostly(small),
    "label_smoothing": mostly(rarely(st.floats(), st.floats(0, 0.99))),
    "augment": rarely(odd, st.lists(st.sampled_from(config.AUGMENTATIONS), max_size=3)),
    "precision": rarely(odd, st.sampled_from(["auto", "fp32"])),
    "image_size": st.none() | mostly(rarely(small, st.integers(1, 4096))),
    "train_images": st.none() | mostly(small),
    "validation": mostly(rarely(st.floats(), st.floats(0.01, 0.99))),
    "seed": mostly(rarely(small, st.integers(0, 2**40))),
}


@robust
@given(settings=st.fixed_dictionaries({}, optional=CONFIGS))
def test_config(settings: dict):
    with only(ValueError):
        made = Config(**settings)
        assert made == Config(**json.loads(json.dumps(records.as_json(made))))
        assert hash(made) == hash(Config(**settings))
        assert sum(n for n, _ in made.stages) == made.epochs
        assert all(made.batch_size_at(epoch) >= 1 for epoch in range(made.epochs))
        rates = [made.lr_at(made.epochs * share / 7) for share in range(7)]
        assert all(0 <= rate <= made.lr for rate in rates)


# ---------------------------------------------------------------------------------- training

IMAGES = torch.arange(14 * 2 * 8 * 6).remainder(251).byte().view(14, 2, 8, 6)
TINY = ImageSet("tiny", "test", *[Images(IMAGES, torch.arange(14) % 3)] * 2, classes=tuple("abc"))


class Pair(nn.Module):
    """A main output and an auxiliary one while it trains."""

    def __init__(self):
        super().__init__()
        self.main, self.other = (nn.Linear(96, 3) for _ in range(2))

    def forward(self, x):
        x = x.flatten(1)
        return (self.main(x), self.other(x)) if self.training else self.main(x)


class Nothing(nn.Module):
    """A net that returns no tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return None


def frozen(net: nn.Module) -> nn.Module:
    return net.requires_grad_(False)


def nan_net() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    net[1].bias.data[1] = math.nan
    return net


NETS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(96, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(4, 3),
    ),
    "pair": Pair,
    "not finite": nan_net,
    "frozen": lambda: frozen(nn.Sequential(nn.Flatten(), nn.Linear(96, 3))),
    "another size": lambda: nn.Sequential(nn.Flatten(), nn.Linear(95, 3)),
    "other classes": lambda: nn.Sequential(nn.Flatten(), nn.Linear(96, 4)),
    "other channels": lambda: nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "a map": lambda: nn.Conv2d(2, 3, 1),
    "nothing": Nothing,
}  # fmt: skip
BROKEN = ("frozen", "another size", "other classes", "other channels", "a map", "nothing")
TRAINING = {
    "epochs": st.integers(1, 2),
    "batch_size": rarely(st.just(1), st.integers(2, 16)),
    "optimizer": st.sampled_from(config.OPTIMIZERS),
    "lr": rarely(st.floats(1e-6, 1e6), st.floats(1e-4, 0.1)),
    "schedule": st.sampled_from(("constant", "cosine", "warmup")),
    "weight_decay": st.floats(0, 0.1),
    "label_smoothing": st.floats(0, 0.9),
    "augment": st.lists(st.sampled_from(config.AUGMENTATIONS), max_size=3).map(tuple),
    "image_size": rarely(st.integers(1, 9), st.none()),
    "patience": st.none() | st.integers(1, 2),
    "train_images": st.none() | st.integers(1, 20),
    "validation": st.floats(0.01, 0.99),
    "seed": st.integers(0, 2**40),
    "precision": st.just("fp32"),
}


@pytest.mark.slow
@robust
@given(
    kind=rarely(st.sampled_from(BROKEN), st.sampled_from([k for k in NETS if k not in BROKEN])),
    settings=st.fixed_dictionaries({}, optional=TRAINING),
    gradients=st.booleans(),
)
def test_fit(kind: str, settings: dict, gradients: bool):
    net, threads = NETS[kind](), torch.get_num_threads()
    # What a net itself raises is shown as torch states it.
    kinds = (ValueError, RuntimeError) if kind in BROKEN else (ValueError,)
    with only(*kinds), torch.set_grad_enabled(gradients):
        run = fit(net, TINY, Config(**settings), show=False)
        assert torch.is_grad_enabled() == gradients
        assert kind not in BROKEN
        assert run.ended in ("done", "early", "not finite")
        rows = [row["val_loss"] for row in run.epochs]
        assert len(run.frame()) == len(rows) <= run.config.epochs
        finite = [loss for loss in rows if math.isfinite(loss)]
        assert run.best_loss == min(finite, default=math.inf)
        assert bool(run.best_epoch) == bool(finite)
        assert not net.training
    assert torch.get_num_threads() == threads


@robust
@given(
    sizes=st.lists(st.integers(0, 4), max_size=3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    out=st.integers(0, 4),
    labels=rarely(st.integers(-1, 5), st.just(0)),
    fewer=rarely(st.just(1), st.just(0)),
    learns=st.booleans(),
    precision=rarely(odd, st.sampled_from(["auto", "fp32"])),
)
def test_evaluate(sizes, shape, out, labels, fewer, learns, precision):
    flat = math.prod(shape)
    net = nn.Sequential(nn.Flatten(), nn.Linear(flat, max(out, 1)) if learns else nn.Identity())
    K = max(out, 1) if learns else flat
    batches = [
        (torch.rand(n, 1, *shape), torch.arange(max(n - fewer, 0)) % K + labels) for n in sizes
    ]
    with only(ValueError):
        test = evaluate(net, batches, precision)
        truth = torch.cat([y for _, y in batches])
        assert test.confusion.sum() == len(test.losses) == sum(sizes) > 0
        assert test.accuracy == pytest.approx((test.predictions == truth).double().mean().item())
        assert test.loss == pytest.approx(test.losses.mean().item(), rel=1e-4)


# ---------------------------------------------------------------------- records and comparison

values = st.one_of(
    odd.filter(lambda value: not callable(value)), st.integers(-(10**19), 10**19),
    st.sampled_from(["Infinity", math.inf, [], {}, [[]], 0, 1, 1e300, "cifar10", None]),
)  # fmt: skip


@functools.cache
def recorded() -> list[str]:
    """Every record that ships, as JSON, without its many batch losses."""
    texts = []
    for path in sorted(records.RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        if "history" in found:
            found["history"]["batch_losses"] = found["history"]["batch_losses"][:3]
            texts.append(json.dumps(found))
    return texts


def places(node, path=()):
    """The way to every value in a JSON document."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(pairs)[:12]:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


@pytest.mark.slow
@robust
@given(pick=st.integers(0, 10**6), changes=st.lists(st.tuples(st.integers(0, 10**6), values)))
def test_records(tmp_path_factory, pick, changes):
    texts = recorded()
    first, second = (json.loads(texts[(pick + i) % len(texts)]) for i in range(2))
    for at, value in changes:
        *way, last = list(places(first))[at % len(list(places(first)))]
        node = first
        for key in way:
            node = node[key]
        node[last] = copy.deepcopy(value)  # a later change may go into it
    folder = tmp_path_factory.getbasetemp() / "records"
    folder.mkdir(exist_ok=True)
    for name, content in (("a", first), ("b", second)):
        (folder / f"{name}.json").write_text(json.dumps(content, default=str))
    with only(ValueError):
        runs = [records.read(folder / f"{name}.json") for name in ("a", "b")]
        frame = compare.grouped(runs)
        assert 1 <= len(frame) <= 2
        assert frame["n"].sum() <= 2
        assert len(compare.text(frame).splitlines()) == len(frame) + 1
        assert len(documents.groups(frame).splitlines()) == len(frame) + 2
        board = compare.leaderboard(runs, runs[0].experiment)
        assert len(documents.board(board).splitlines()) == len(board) + 2
        assert compare.pareto(board, "params").sum() >= min(len(board), 1)
        compare.hardest(runs)
        assert records.read(records.save(runs[0], folder)) == runs[0]
        if None not in (runs[0].errors, runs[1].errors):
            assert 0 <= compare.mcnemar(*runs) <= 1


# -------------------------------------------------------------------------------- the networks

OPTIONS = {
    "width": mostly(rarely(st.floats(-1, 3), st.sampled_from([0.25, 0.5, 1.0]))),
    "dropout": mostly(rarely(st.floats(-1, 2), st.floats(0, 0.9))),
    "small_images": rarely(odd, st.booleans()),
    "image_size": mostly(rarely(small, st.sampled_from([28, 32, 64, 224]))),
    "growth_rate": mostly(rarely(small, st.integers(1, 40))),
    "activation": rarely(odd, st.sampled_from([nn.ReLU, nn.Sigmoid])),
    "batch_norm": rarely(odd, st.booleans()),
    "colour": odd,
}


@robust
@given(
    name=rarely(odd, st.sampled_from(zoo.names())),
    in_channels=rarely(odd, st.sampled_from([None, 1, 3, 4]) | mostly(small)),
    num_classes=rarely(odd, st.sampled_from([None, 2, 10]) | mostly(small)),
    options=rarely(
        st.dictionaries(st.sampled_from(list(OPTIONS)), odd, max_size=2),
        st.sampled_from(list(OPTIONS)).flatmap(
            lambda key: st.fixed_dictionaries({}, optional={key: OPTIONS[key]})
        ),
    ),
)
def test_build(name, in_channels, num_classes, options):
    with only(ValueError):
        net = zoo.build_on_meta(name, in_channels=in_channels, num_classes=num_classes, **options)
        assert zoo.name_of(net) == name
        row = zoo.variant(name)
        C = row.input_shape[0] if in_channels is None else int(in_channels)
        assert look.first_convolution(net).in_channels == C


# -------------------------------------------------------------------------------- the pictures

numbers = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, 0.0, -0.0, 1e-30, 1e30])
names = st.text("abcdefgh äßλ$_^{}\\%<&>\"'\n", min_size=1, max_size=12)


@pytest.fixture(scope="module")
def drawn():
    """(figure, alternative text) of what was shown."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 15)
        patch.setattr(look, "show", lambda *shown: made.append(shown))
        yield made


def judged(draw, K: int) -> tuple[Evaluation, ImageSet]:
    """Random answers to the tiny images, in K classes."""
    n = draw(st.integers(1, 14))
    labels = torch.tensor(draw(st.lists(st.integers(0, K - 1), min_size=n, max_size=n)))
    given = torch.tensor(draw(st.lists(st.integers(0, K - 1), min_size=n, max_size=n)))
    losses = torch.tensor(draw(st.lists(numbers, min_size=n, max_size=n)))
    part = Images(IMAGES[:n, : draw(st.integers(1, 2))], labels)
    part = Images(part.images[:, [0] * draw(st.sampled_from([1, 3]))], labels)
    classes = tuple(f"{i} {draw(names)}" for i in range(K))
    confusion = torch.bincount(labels * K + given, minlength=K * K).view(K, K)
    share = (labels == given).double().mean().item()
    return (
        Evaluation(losses.mean().item(), share, confusion, given, losses),
        ImageSet("tiny", "test", part, part, classes=classes),
    )


@pytest.mark.slow
@robust
@given(st.data())
def test_pictures(drawn: list[tuple], data: st.DataObject):
    draw, before = data.draw, len(drawn)
    title = draw(names)
    picture = draw(st.sampled_from(PICTURES))
    with only(ValueError):
        with torch.random.fork_rng(devices=[]):  # for the nets that it looks into
            picture(draw, title)
        told = drawn[before:]
        assert len(told) <= 1
        assert all(alt.startswith(title) for _, alt in told)
        if draw(st.integers(0, 3)) == 0:  # to lay it out takes most of the time
            assert all(alt in look.bundle(fig, alt)["text/plain"] for fig, alt in told)


def a_comparison(draw, title: str) -> None:
    runs = {}
    for name in draw(st.lists(names, min_size=1, max_size=10, unique=True)):
        n = draw(st.integers(1, 4))
        rows = [dict.fromkeys(("val_accuracy", "train_loss"), draw(numbers)) for _ in range(n)]
        runs[name] = Run(
            None, None, Config(), epochs=[r | {"epoch": i} for i, r in enumerate(rows)]
        )
    look.compare_curves(runs, title, draw(st.sampled_from(["val_accuracy", "train_loss"])))


def a_bar_chart(draw, title: str) -> None:
    values = draw(st.dictionaries(names, numbers, min_size=1, max_size=8))
    look.bars(values, title, "unit")


def a_confusion(draw, title: str) -> None:
    test, images = judged(draw, draw(st.integers(1, 12)))
    look.confusion(test.confusion, images.classes, title)


def mistakes(draw, title: str) -> None:
    test, images = judged(draw, draw(st.integers(2, 5)))
    look.worst_mistakes(test, images, title, draw(st.integers(1, 16)))


def a_grid(draw, title: str) -> None:
    shape = (draw(st.sampled_from([1, 3])), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    images = [torch.full(shape, draw(numbers)) for _ in range(draw(st.integers(1, 9)))]
    names_of = draw(st.none() | st.lists(names, min_size=len(images), max_size=len(images)))
    look.grid(images, names_of, title, title, columns=draw(st.integers(1, 9)))


def inside(draw, title: str) -> None:
    channels, size = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    net = nn.Sequential(
        nn.Conv2d(channels, draw(st.integers(1, 9)), draw(st.integers(1, 3)), padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(draw(st.integers(1, 2))), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip
    x = torch.rand(1, channels, size, size)
    with torch.no_grad():
        net(x)
    most = draw(st.integers(1, 5))  # a column each: many take seconds
    draw(
        st.sampled_from(
            [
                lambda: look.filters(net, title, most),
                lambda: look.feature_maps(net, net[0], x, title, most),
                lambda: look.growing_field(net, x, title, most),
                lambda: look.from_pixels_to_class(net, x, ["a", "b", "c"], title, most),
            ]
        )
    )()


def a_sum_of_products(draw, title: str) -> None:
    C, size, k = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    at = draw(st.tuples(st.integers(-1, 4), st.integers(-1, 4)))
    image, kernel = torch.full((C, size, size), draw(numbers)), torch.ones(C, k, k)
    stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    look.convolution(image, kernel, title, at, stride, padding)


def heat(draw, title: str) -> None:
    _, images = judged(draw, 3)
    channels = images.shape[0]
    net = nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    chosen = torch.tensor(draw(st.lists(st.integers(0, len(images.test) - 1), min_size=1)))
    size = draw(st.none() | st.integers(1, 20))
    look.show_grad_cam(net, images, chosen, size, title, draw(st.sampled_from([None, net[0]])))


PICTURES = (a_comparison, a_bar_chart, a_confusion, mistakes)
PICTURES += (a_grid, inside, a_sum_of_products, heat)
