"""The reports' experiments, and the course's own: tables of runs. `perform` performs them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import nn

from common import digests, records, zoo
from common.config import Config
from common.machine import unknown
from common.records import Record


@dataclass(frozen=True)
class Plan:
    """One training of an experiment: a network of the zoo, how it is built, on what and how.

    `label` tells it from other runs of the same network. `laptop` replaces settings in that
    profile, where the experiment's own would take too long on a CPU, and `narrow` the builder's
    options there and in `smoke`. Without `test` it is judged by validation images alone.
    """

    network: str
    config: Config
    dataset: str = "mnist"
    options: dict = field(default_factory=dict)  # of the network's builder
    label: str = ""
    laptop: dict = field(default_factory=dict)
    narrow: dict = field(default_factory=dict)
    test: bool = True

    @property
    def name(self) -> str:
        return f"{self.network} ({self.label})" if self.label else self.network

    def at(self, profile: str, seed: int | None) -> "Plan":
        """The run as a profile's budget allows, with this seed or its own."""
        budget = {"full": {}, "laptop": self.laptop, "smoke": {}}[profile]
        if profile == "smoke":
            budget = {"epochs": 1, "train_images": 128, "batch_size": 32}
            budget |= {"milestones": (1,)} if self.config.milestones else {}
        config = replace(self.config, **budget)
        config = config if seed is None else replace(config, seed=seed)
        options = self.options if profile == "full" else self.options | self.narrow
        return replace(self, config=config, options=options)

    def build(self, channels: int, classes: int) -> nn.Module:
        """The network for images of so many channels and classes."""
        return zoo.build(self.network, channels, classes, **self.options)


# ----------------------------------------------------------------------------------- report A
A = Config(epochs=5, batch_size=64, lr=1e-4, weight_decay=1e-3, patience=3, image_size=224)
A_LENET = replace(A, image_size=32, precision="fp32")  # too small to gain from bf16
SHORT = {"epochs": 2, "train_images": 6_000}
SHORT_96 = SHORT | {"image_size": 96}  # for nets that take any size

# ----------------------------------------------------------------------------------- report B
B = Config(epochs=5, batch_size=128, lr=1e-3, image_size=224)
B_LENET = replace(B, image_size=28, precision="fp32")

# ----------------------------------------------------------------------------------- report C
# The report does not state its batch size outside of the stages: 64 is ours, as is momentum 0.9.
C = Config(epochs=50, batch_size=64, optimizer="sgd", lr=1e-3, image_size=32)
C_FLIPS = replace(C, augment=("flip",))
C_STAGES = replace(C_FLIPS, batch_size=((20, 32), (20, 128), (10, 256)))
C_RATES = replace(C_STAGES, lr=0.05, schedule="multistep", milestones=(20, 40))
C_LAPTOP = {"epochs": 3, "train_images": 4_000, "lr": 1e-2}  # at 1e-3 the plain net only guesses
C_SHORT = C_LAPTOP | {"batch_size": ((1, 32), (1, 128), (1, 256))}
Cifar = functools.partial(Plan, dataset="cifar10", laptop=C_LAPTOP)

# Ours: report C's questions asked of a net a third as wide, with epochs that two cores can bear.
THIRD = {"width": 1 / 3}
C_THIRD = Config(epochs=12, batch_size=64, optimizer="sgd", lr=1e-2, image_size=32, validation=0.1)
C_THIRD_STAGES = replace(C_THIRD, augment=("flip",), batch_size=((5, 32), (5, 128), (2, 256)))
Third = functools.partial(Plan, dataset="cifar10", options=THIRD)

# ----------------------------------------------------------------------------------- report D
# AdamW with PyTorch's own weight decay, 0.01: the report names no other.
D = Config(
    epochs=5, batch_size=128, optimizer="adamw", lr=1e-3, weight_decay=1e-2, image_size=56, seed=42
)
D_LENET = replace(D, image_size=28, precision="fp32")
D_WARM = replace(D, schedule="warmup")

# ----------------------------------------------------------------------------------- report E
# The report states no settings: this recipe is ours.
E = Config(
    epochs=30, batch_size=128, optimizer="sgd", lr=0.1, nesterov=True, weight_decay=5e-4,
    schedule="warmup", augment=("crop", "flip"), image_size=32,
)  # fmt: skip
E_LAPTOP = {"epochs": 3, "train_images": 4_000, "batch_size": 64, "lr": 0.05}
E_QUARTER = replace(E, epochs=20, validation=0.1)

# ---------------------------------------------------------------- one recipe for all, CIFAR-10
PHOTO = Config(
    epochs=30, batch_size=128, optimizer="sgd", lr=0.1, nesterov=True, weight_decay=2.5e-4,
    schedule="warmup", label_smoothing=0.1, augment=("shift", "flip"), image_size=32,
    validation=0.02,
)  # fmt: skip
RATES = (0.1, 0.2, 0.4)  # tried for each network, on a short training
TRIAL = replace(PHOTO, epochs=10, validation=0.1)  # enough images to tell rates apart
# The recipe as it was at first, by which the wide nets were trained.
FIRST = replace(PHOTO, weight_decay=5e-4, augment=("crop", "flip"), validation=0.1)

# ----------------------------------------------------------------------------------- the course
COURSE = Config(
    epochs=20, batch_size=128, optimizer="adamw", lr=2e-3, weight_decay=1e-2, schedule="warmup",
    label_smoothing=0.1,
)  # fmt: skip
AUGMENT = {"fashion_mnist": ("flip",), "mnist": ("crop",)}  # a mirrored 2 is no 2


def photos() -> tuple[Plan, ...]:
    """Each architecture in its form for 32 x 32 photographs, all by one recipe."""
    return tuple(
        Plan(each.photo, replace(PHOTO, lr=each.rate), "cifar10")
        for each in zoo.architectures().values()
    )


def formats() -> tuple[Plan, ...]:
    """Two of `photos` in each number format that a GPU has."""
    return tuple(
        replace(plan, config=replace(plan.config, precision=precision), label=precision)
        for plan in photos()
        if plan.network in ("lenet5_cifar", "resnet18_cifar_025")
        for precision in ("fp32", "fp16", "bf16")
    )


def rates() -> tuple[Plan, ...]:
    """The short trainings by which `photos` chose its learning rates, on validation images."""
    laptop = {"epochs": 2, "train_images": 12_000}
    return tuple(
        Plan(
            each.photo,
            replace(TRIAL, lr=lr),
            "cifar10",
            label=f"lr {lr:g}",
            laptop=laptop,
            test=False,
        )
        for each in zoo.architectures().values()
        for lr in RATES
    )


def course(dataset: str) -> tuple[Plan, ...]:
    """Each architecture by the course's recipe; sizes and images as two cores can bear."""
    laptop = {"epochs": 3, "batch_size": 64, "augment": ()}  # it slows a short training down
    found = []
    for each in zoo.architectures().values():
        if not each.course:
            continue
        row = {"laptop": {}, "options": {}, "narrow": {}, "precision": "auto"} | each.course
        config = replace(
            COURSE,
            image_size=row["image_size"],
            precision=row["precision"],
            augment=AUGMENT[dataset],
        )
        budget = laptop | row["laptop"]
        options, narrow = row["options"], row["narrow"]
        found.append(Plan(row["network"], config, dataset, options, laptop=budget, narrow=narrow))
    return tuple(found)


def ours(network: str, size: int, lr: float = COURSE.lr, **options) -> Plan:
    """A network of report A by the course's recipe: its five epochs, a size two cores can bear."""
    config = replace(COURSE, epochs=A.epochs, lr=lr, image_size=size, augment=AUGMENT["mnist"])
    return Plan(
        network, config, options=options, label=f"our recipe at {size} x {size}", laptop=SHORT
    )


REPORTS: dict[str, tuple[Plan, ...]] = {
    "report-a": (
        Plan("lenet5_bn", A_LENET),
        Plan("alexnet", A, laptop={"epochs": 2, "train_images": 3_000}),
        Plan("vgg11", A, laptop={"epochs": 1, "train_images": 1_000}),
        Plan("vgg19", A, laptop={"epochs": 1, "train_images": 500}),
        Plan("resnet18_bias", A, laptop=SHORT_96),
        Plan("mobilenet", A, laptop=SHORT_96),
        Plan("googlenet", A, laptop=SHORT_96),
        # Without batch normalisation a smaller rate: at 2e-3 nine tenths of VGG-19's units die.
        ours("alexnet", 112, 5e-4, image_size=112),
        ours("vgg11", 32, 5e-4, image_size=32),
        ours("vgg19", 32, 5e-4, image_size=32),
        ours("resnet18_bias", 56),
        ours("mobilenet", 56),
        ours("googlenet", 56, 5e-4),
    ),
    "report-a-lr": tuple(
        Plan(network, replace(A_LENET, epochs=10, patience=None, lr=lr, image_size=size),
             label=f"lr {lr:g}", laptop={"epochs": 3, "train_images": 12_000}, test=False)
        for network, size in (("lenet5_bn", 32), ("lenet5", 28))
        for lr in (1e-2, 1e-3, 1e-4)
    ),
    "report-b": (
        Plan("lenet5", B_LENET, "fashion_mnist"),
        Plan("alexnet", B, "fashion_mnist", laptop={"epochs": 2, "train_images": 3_000}),
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
    "report-c-third": (
        Third("alexnet_cifar_plain", C_THIRD),
        Third("alexnet_cifar", C_THIRD),
        Third("alexnet_cifar_dropout", C_THIRD),
        Third("alexnet_cifar_dropout", replace(C_THIRD, augment=("flip",)), label="with flips"),
        Third("alexnet_cifar_dropout", C_THIRD_STAGES, label="batch size in stages"),
        Third("alexnet_cifar_dropout",
              replace(C_THIRD_STAGES, lr=0.05, schedule="multistep", milestones=(5, 10)),
              label="stages, MultiStep"),
        Third("alexnet_cifar_plain", C_THIRD, options=THIRD | {"activation": nn.Sigmoid},
              label="sigmoid"),
        Third("alexnet_cifar", C_THIRD, options=THIRD | {"activation": nn.Sigmoid},
              label="sigmoid with BN"),
        Third("alexnet_cifar", replace(C_THIRD, optimizer="adam", lr=1e-3), label="Adam"),
        Third("alexnet_cifar", C_THIRD, label="pools that do not overlap",
              options=THIRD | {"pools": ((2, 2), (2, 2), (1, 1))}),
        Third("alexnet_cifar", replace(C_THIRD, schedule="multistep", milestones=(6, 10)),
              label="MultiStep"),
        *(Third("alexnet_cifar", replace(C_THIRD, batch_size=n), label=f"batches of {n}")
          for n in (32, 128, 256)),
    ),
    "report-d": (
        Plan("lenet5", D_LENET),
        Plan("alexnet_small", D),
        Plan("resnet18_shared", D),
        Plan("mobilenet", D),
        Plan("googlenet", D),
        Plan("lenet5", replace(D_LENET, image_size=54), options={"image_size": 54},
             label="at 54 x 54"),
        Plan("resnet18_shared", replace(D, image_size=28), label="at 28 x 28"),
        Plan("googlenet", D, options={"dropout": 0.5}, label="dropout 0.5"),
        # Ours: one change, the learning rate rises at first and then falls to 0.
        Plan("resnet18_shared", replace(D_WARM, image_size=28), label="at 28 x 28, warm-up"),
        Plan("mobilenet", D_WARM, label="warm-up"),
        Plan("googlenet", D_WARM, label="warm-up"),
    ),
    "report-e": tuple(
        Plan(network, E, "cifar10", options, label, laptop=E_LAPTOP)
        for network, options, label in (
            ("resnet18_cifar", {}, "our recipe"),
            ("densenet_cifar", {}, "our recipe"),
            ("plain18", {"small_images": True}, "for small images"),
            ("resnet34", {"small_images": True}, "for small images"),
            ("plain34", {"small_images": True}, "for small images"),
        )
    ),
    "report-e-quarter": tuple(
        Plan(network, E_QUARTER, "cifar10", {"small_images": True, "width": 0.25})
        for network in ("resnet18", "plain18", "resnet34", "plain34")
    ),
    "cifar10-wide": tuple(
        Plan(network, replace(FIRST, lr=lr, epochs=epochs), "cifar10", options, label)
        for network, lr, epochs, options, label in (
            ("alexnet_cifar", 0.1, 30, {}, ""),
            ("vgg11_cifar_050", 0.1, 30, {"width": 1.0}, "full width"),
            ("nin_cifar", 0.2, 30, {"norm": True, "dropout": 0.1}, "with BN"),
            ("googlenet_cifar_028", 0.1, 30, {"width": 1.0}, "full width"),
            ("resnet18_cifar", 0.1, 30, {}, ""),
            ("mobilenet_cifar_050", 0.1, 30, {"width": 1.0}, "full width"),
            ("densenet_cifar", 0.2, 30, {}, ""),
            ("alexnet_cifar", 0.1, 60, {}, "60 epochs"),
            ("resnet18_cifar", 0.1, 60, {}, "60 epochs"),
            ("densenet_cifar", 0.2, 60, {}, "60 epochs"),
        )
    ),
}  # fmt: skip
COURSES: dict[str, Callable[[], tuple[Plan, ...]]] = {  # made of what the notebooks say
    "cifar10": photos,
    "cifar10-formats": formats,
    "cifar10-rates": rates,
    "course": functools.partial(course, "fashion_mnist"),
    "course-mnist": functools.partial(course, "mnist"),
}


def experiment_names() -> tuple[str, ...]:
    """The experiments that there are."""
    return (*REPORTS, *COURSES)


def table_of(experiment: str) -> tuple[Plan, ...]:
    """The runs of an experiment. Raises ValueError for an unknown one."""
    if experiment in COURSES:
        return COURSES[experiment]()
    if experiment not in REPORTS:
        raise ValueError(unknown("experiment", experiment, experiment_names()))
    return REPORTS[experiment]


def plans(
    experiment: str, profile: str, seeds: list[int] | None = None, only: list[str] | None = None
) -> list[Plan]:
    """The runs of an experiment, in a profile's budget, seed by seed.

    Raises ValueError for an unknown experiment or network.
    """
    table = table_of(experiment)
    networks = tuple(dict.fromkeys(plan.network for plan in table))
    for name in only or ():
        if name not in networks:
            raise ValueError(unknown(f"network in {experiment}", name, networks))
    return [
        plan.at(profile, seed)
        for seed in dict.fromkeys(seeds or [None])
        for plan in table
        if not only or plan.network in only
    ]


def is_of(record: Record, plan: Plan, experiment: str, profile: str) -> bool:
    """Whether a record is of this very run: network, options, structure, settings and budget."""
    same = (record.experiment, record.network, record.label, record.dataset, record.profile)
    if record.begun_with or same != (experiment, plan.network, plan.label, plan.dataset, profile):
        return False
    if record.config != records.as_json(plan.config):
        return False
    if record.options != records.plain(plan.options):
        return False
    return record.digest in ("", structure_of(plan))


def structure_of(plan: Plan) -> str:
    """The digest of a run's network."""
    return digest_at(plan.network, plan.dataset, tuple(sorted(plan.options.items(), key=str)))


@functools.cache
def digest_at(network: str, dataset: str, options: tuple) -> str:
    channels = 3 if dataset == "cifar10" else 1
    net = zoo.build_on_meta(network, in_channels=channels, num_classes=10, **dict(options))
    return digests.of_net(net)
