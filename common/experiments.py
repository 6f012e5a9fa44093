"""The reports' experiments, and the course's own: tables of runs, and what performs them."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from common import ddp, machine, probe, records, zoo
from common.checkpoints import checkpoint_file
from common.config import Config
from common.data import ImageSet, load
from common.machine import unknown
from common.train import Evaluation, History, fit


@dataclass(frozen=True)
class Run:
    """One training: a network of the zoo, how it is built, on what and how it is trained.

    `label` tells it from other runs of the same network in its experiment. `laptop` replaces
    settings in that profile, where the report's own would take too long on a CPU, and `narrow`
    the builder's options there and in `smoke`.
    """

    model: str
    config: Config
    dataset: str = "mnist"
    options: dict = field(default_factory=dict)  # of the network's builder
    label: str = ""
    laptop: dict = field(default_factory=dict)
    narrow: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model} ({self.label})" if self.label else self.model

    def at(self, profile: str, seed: int | None) -> "Run":
        """The run as a profile's budget allows, with this seed or its own."""
        budget = {"full": {}, "laptop": self.laptop, "smoke": {}}[profile]
        if profile == "smoke":
            budget = {"epochs": 1, "train_images": 128, "batch_size": 32, "milestones": (1,)}
        config = replace(self.config, **budget)
        config = config if seed is None else replace(config, seed=seed)
        options = self.options if profile == "full" else self.options | self.narrow
        return replace(self, config=config, options=options)


# ----------------------------------------------------------------------------------- report A
A = Config(epochs=5, batch_size=64, lr=1e-4, weight_decay=1e-3, patience=3, image_size=224)
A_LENET = replace(A, image_size=32, precision="fp32")  # too small to gain from bf16
SHORT = {"epochs": 2, "train_images": 6_000}
SHORT_96 = SHORT | {"image_size": 96}  # for nets that take any size

# ----------------------------------------------------------------------------------- report B
B = Config(epochs=5, batch_size=128, lr=1e-3, image_size=224)
B_LENET = replace(B, image_size=28, precision="fp32")

# ----------------------------------------------------------------------------------- report C
C = Config(epochs=50, batch_size=64, optimizer="sgd", lr=1e-3, image_size=32)
C_FLIPS = replace(C, augment=("flip",))
C_STAGES = replace(C_FLIPS, batch_size=((20, 32), (20, 128), (10, 256)))
C_RATES = replace(C_STAGES, lr=0.05, schedule="multistep", milestones=(20, 40))
C_LAPTOP = {"epochs": 3, "train_images": 4_000, "lr": 1e-2}  # at 1e-3 the plain net only guesses
C_SHORT = C_LAPTOP | {"batch_size": ((1, 32), (1, 128), (1, 256))}
Cifar = functools.partial(Run, dataset="cifar10", laptop=C_LAPTOP)

# ----------------------------------------------------------------------------------- report D
D = Config(epochs=5, batch_size=128, optimizer="adamw", lr=1e-3, image_size=56, seed=42)
D_LENET = replace(D, image_size=28, precision="fp32")
D_WARM = replace(D, schedule="warmup")

# ----------------------------------------------------------------------------------- report E
E = Config(
    epochs=30, batch_size=128, optimizer="sgd", lr=0.1, weight_decay=5e-4, schedule="warmup",
    augment=("crop", "flip"), image_size=32,
)  # fmt: skip
E_LAPTOP = {"epochs": 3, "train_images": 4_000, "batch_size": 64, "lr": 0.05}

# ----------------------------------------------------------------------------------- the course
COURSE = Config(
    epochs=20, batch_size=128, optimizer="adamw", lr=2e-3, weight_decay=1e-2, schedule="warmup",
    label_smoothing=0.1,
)  # fmt: skip
AUGMENT = {"fashion_mnist": ("flip",), "mnist": ("crop",)}  # a mirrored 2 is no 2


def course(dataset: str) -> tuple[Run, ...]:
    """All eight architectures by one recipe; sizes and images as two cores can bear."""
    laptop = {"epochs": 3, "batch_size": 64, "augment": ()}  # it slows a short training down
    small = laptop | {"train_images": 12_000, "image_size": 32}

    def run(
        model: str, size: int, budget: dict, width: float = 1.0, precision: str = "auto", **options
    ) -> Run:
        narrow = {"width": width} if width < 1 else {}
        config = replace(COURSE, image_size=size, precision=precision, augment=AUGMENT[dataset])
        return Run(model, config, dataset, options, laptop=budget, narrow=narrow)

    return (
        run("lenet5_bn", 32, laptop | {"epochs": 5}, precision="fp32", dropout=0.1),
        run("alexnet_small", 56, laptop | {"train_images": 12_000}, width=0.25),
        run("vgg11", 32, small, width=0.5, image_size=32),
        run("nin_bn", 32, small, width=0.5, small=True),
        run("googlenet_bn", 96, small | {"image_size": 64}, width=0.5),
        run("resnet18_cifar", 32, small, width=0.5),
        run("mobilenet", 96, small | {"image_size": 64}, width=0.5),
        run("densenet_cifar", 32, small | {"image_size": 16}),
    )


def ours(model: str, size: int, lr: float = COURSE.lr, **options) -> Run:
    """A network of report A by the course's recipe: its five epochs, a size two cores can bear."""
    config = replace(COURSE, epochs=A.epochs, lr=lr, image_size=size, augment=AUGMENT["mnist"])
    return Run(model, config, options=options, label=f"our recipe at {size} x {size}", laptop=SHORT)


EXPERIMENTS: dict[str, tuple[Run, ...]] = {
    "report-a": (
        Run("lenet5_bn", A_LENET),
        Run("alexnet", A, laptop={"epochs": 2, "train_images": 3_000}),
        Run("vgg11", A, laptop={"epochs": 1, "train_images": 1_000}),
        Run("vgg19", A, laptop={"epochs": 1, "train_images": 500}),
        Run("resnet18_bias", A, laptop=SHORT_96),
        Run("mobilenet", A, laptop=SHORT_96),
        Run("googlenet", A, laptop=SHORT_96),
        # Without batch normalisation a smaller rate: at 2e-3 nine tenths of VGG-19's units die.
        ours("alexnet", 112, 5e-4, image_size=112),
        ours("vgg11", 32, 5e-4, image_size=32),
        ours("vgg19", 32, 5e-4, image_size=32),
        ours("resnet18_bias", 56),
        ours("mobilenet", 56),
        ours("googlenet", 56, 5e-4),
    ),
    "report-a-lr": tuple(
        Run(model, replace(A_LENET, epochs=10, patience=None, lr=lr, image_size=size),
            label=f"lr {lr:g}", laptop={"epochs": 3, "train_images": 12_000})
        for model, size in (("lenet5_bn", 32), ("lenet5", 28))
        for lr in (1e-2, 1e-3, 1e-4)
    ),
    "report-b": (
        Run("lenet5", B_LENET, "fashion_mnist"),
        Run("alexnet", B, "fashion_mnist", laptop={"epochs": 2, "train_images": 3_000}),
    ),
    "report-c": (
        Cifar("alexnet_cifar_plain", C),
        Cifar("alexnet_cifar", C),
        Cifar("alexnet_cifar_dropout", C),
        Cifar("alexnet_cifar_dropout", C_FLIPS, label="with flips"),
        Cifar("alexnet_cifar_dropout", C_STAGES, label="batch size in stages", laptop=C_SHORT),
        Cifar("alexnet_cifar_dropout", C_RATES, label="stages, lr 0.05, 0.005, 0.0005",
              laptop=C_SHORT | {"lr": C_RATES.lr, "milestones": (1, 2)}),
        Cifar("alexnet_cifar_plain", C, options={"activation": nn.Sigmoid}, label="sigmoid"),
        Cifar("alexnet_cifar", C, options={"activation": nn.Sigmoid}, label="sigmoid with BN"),
        Cifar("alexnet_cifar", replace(C, optimizer="adam"), label="Adam",
              laptop=C_LAPTOP | {"lr": C.lr}),
    ),
    "report-d": (
        Run("lenet5", D_LENET),
        Run("alexnet_small", D),
        Run("resnet18_shared", D),
        Run("mobilenet", D),
        Run("googlenet", D),
        Run("lenet5", replace(D_LENET, image_size=54), options={"image_size": 54},
            label="at 54 x 54"),
        Run("resnet18_shared", replace(D, image_size=28), label="at 28 x 28"),
        Run("googlenet", D, options={"dropout": 0.5}, label="dropout 0.5"),
        # Ours: one change, the learning rate rises at first and then falls to 0.
        Run("resnet18_shared", replace(D_WARM, image_size=28), label="at 28 x 28, warm-up"),
        Run("mobilenet", D_WARM, label="warm-up"),
        Run("googlenet", D_WARM, label="warm-up"),
    ),
    "report-e": tuple(
        Run(model, E, "cifar10", options, label, laptop=E_LAPTOP)
        for model, options, label in (
            ("resnet18_cifar", {}, ""),
            ("densenet_cifar", {}, ""),
            ("plain18", {"small_images": True}, "for small images"),
            ("resnet34", {"small_images": True}, "for small images"),
            ("plain34", {"small_images": True}, "for small images"),
        )
    ),
    "course": course("fashion_mnist"),
    "course-mnist": course("mnist"),
}  # fmt: skip


def runs_of(
    experiment: str, profile: str, seeds: list[int] | None = None, only: list[str] | None = None
) -> list[Run]:
    """The runs of an experiment, in a profile's budget, seed by seed.

    Raises ValueError for an unknown experiment or network.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(unknown("experiment", experiment, tuple(EXPERIMENTS)))
    table = EXPERIMENTS[experiment]
    models = tuple(dict.fromkeys(run.model for run in table))
    for name in only or ():
        if name not in models:
            raise ValueError(unknown(f"network in {experiment}", name, models))
    return [
        run.at(profile, seed)
        for seed in seeds or [None]
        for run in table
        if not only or run.model in only
    ]


def settings(experiment: str, name: str) -> Config:
    """The settings of one run, by its name, in the session's profile.

    Raises ValueError for an unknown experiment or run.
    """
    runs = {run.name: run for run in runs_of(experiment, machine.profile())}
    if name not in runs:
        raise ValueError(unknown(f"run in {experiment}", name, tuple(runs)))
    return runs[name].config


def recorded(
    experiment: str, run: Run, profile: str, known: list[dict], source: str | None = None
) -> bool:
    """Whether one of the `known` records is of this very run, on images from this source or any."""
    wanted = {
        "experiment": experiment,
        "model": run.name,
        "dataset": run.dataset,
        "profile": profile,
        "config": records.as_json(run.config),
    } | ({"source": source} if source else {})
    found = [record for record in known if all(record[k] == v for k, v in wanted.items())]
    if not found:
        return False
    channels = 3 if run.dataset == "cifar10" else 1
    model = zoo.build_on_meta(run.model, in_channels=channels, num_classes=10, **run.options)
    params = sum(p.numel() for p in model.parameters())
    return any(record["params"] == params for record in found)


def train_and_judge(
    name: str,
    build: Callable[[], nn.Module],
    data: ImageSet,
    config: Config,
    *,
    experiment: str,
    show: bool = True,
) -> tuple[History, Evaluation | None, dict | None]:
    """Train a network from its seed, judge it on the test images, and record the run.

    Stopped and called again, it goes on after the last whole epoch. `build` makes the network.
    Returns the history, the evaluation and the record, which only the first process has.
    """
    torch.manual_seed(config.seed)
    model = build()
    file = checkpoint_file(f"{experiment}-{name}-{data.name}", config)
    history = fit(model, data, config, show=show, checkpoint=file)
    if ddp.rank() > 0:
        return history, None, None
    test, record = records.judge(name, model, data, config, history, experiment=experiment)
    file.unlink(missing_ok=True)
    return history, test, record


def perform(
    experiment: str,
    *,
    seeds: list[int] | None = None,
    only: list[str] | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[dict]:
    """Run what is not yet recorded of an experiment, and give each new record.

    A run that fails is named and left out; after the last one, RuntimeError lists the failures.
    """
    left, failed = [], []
    known = records.read_all()[0].to_dict("records")
    images = {}
    for run in runs_of(experiment, machine.profile(), seeds, only):
        if run.dataset not in images:
            images[run.dataset] = load(run.dataset)
        data = images[run.dataset]
        if recorded(experiment, run, machine.profile(), known, data.source):
            say(f"recorded already: {run.name}, seed {run.config.seed}")
        else:
            left.append((run, data))
    done, seconds = 0, 0.0
    for i, (run, data) in enumerate(left):
        say(
            f"[{i + 1}/{len(left)}] {run.name}, seed {run.config.seed}; "
            f"{outlook(left[i:], done, seconds)}"
        )

        def build(run: Run = run, data: ImageSet = data) -> nn.Module:
            return zoo.build(run.model, data.shape[0], len(data.classes), **run.options)

        try:
            history, test, record = train_and_judge(
                run.name, build, data, run.config, experiment=experiment
            )
        except Exception as error:  # the other runs shall not suffer from it
            failed.append(f"{run.name}, seed {run.config.seed}: {type(error).__name__}: {error}")
            say(f"failed: {failed[-1]}")
            continue
        done, seconds = done + work_of(run, data), seconds + history.train_seconds
        say(
            f"test accuracy {test.accuracy:.2%} after {record['epochs']} epochs "
            f"in {history.train_seconds:.0f} s of training"
        )
        yield record
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(left)} runs failed:\n" + "\n".join(failed))


def outlook(left: list[tuple[Run, ImageSet]], done: int, seconds: float) -> str:
    """How long the runs `left` will take, in words, when the work `done` took so many seconds."""
    if not done:
        return f"{len(left)} left, the time is known after the first"
    minutes = sum(work_of(*pair) for pair in left) * seconds / done / 60
    return f"{len(left)} left, about {max(minutes, 1):.0f} min at the speed so far"


def work_of(run: Run, data: ImageSet) -> int:
    """The mult-adds of a whole training, forward passes only, and what they leave out."""
    images = min(run.config.train_images or len(data.train), len(data.train))
    size = run.config.image_size
    shape = (1, data.shape[0], size, size)
    options = tuple(sorted(run.options.items()))
    mult_adds = mult_adds_of(run.model, len(data.classes), shape, options)
    return (mult_adds + BESIDES) * images * run.config.epochs


# What an image takes besides, in mult-adds: for LeNet it is nearly all (58 µs on two cores).
BESIDES = 4_000_000


@functools.cache
def mult_adds_of(model: str, num_classes: int, shape: tuple[int, ...], options: tuple) -> int:
    """The mult-adds of one image: counted once, for seeds and outlooks ask again and again."""
    net = zoo.build_on_meta(model, in_channels=shape[1], num_classes=num_classes, **dict(options))
    return probe.mult_adds(net, shape)
