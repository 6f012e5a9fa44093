"""What the five lab reports state: the one table of their figures, for tests and for 99_compare.

`accuracy` is test accuracy in per cent, `seconds` the training time on the report's machine,
`mult_adds` the count for a whole batch, by torchinfo.
"""

from typing import NamedTuple


class Reported(NamedTuple):
    """One result of one report."""

    report: str
    model: str  # a run of the report's experiment, by its name there
    dataset: str
    params: int
    accuracy: float | None
    seconds: float | None
    epochs: int | None  # None where the report does not say
    machine: str | None
    mult_adds: float | None = None
    batch_size: int | tuple = 64  # or stages, as in common.config

    @property
    def experiment(self) -> str:
        """The experiment that runs it, as in common.experiments."""
        return f"report-{self.report.lower()}"


A, C, D = "NVIDIA A100 40 GB", "GeForce 940MX", "GeForce MX250"
DROPOUT = "alexnet_cifar_dropout"
STAGES = ((20, 32), (20, 128), (10, 256))  # epochs, images a batch

REPORTED = (
    Reported("A", "lenet5_bn", "mnist", 61_750, 97.48, 40.72, 5, A, 27.08e6),
    Reported("A", "alexnet", "mnist", 46_764_746, 99.22, 64.39, 5, A, 60.08e9),
    Reported("A", "vgg11", "mnist", 128_806_154, 99.23, 321.26, 5, A, 483.50e9),
    Reported("A", "vgg19", "mnist", 139_610_058, 99.14, 661.17, 5, A, 1.25e12),
    Reported("A", "resnet18_bias", "mnist", 11_178_378, 99.37, 139.10, 5, A, 111.19e9),
    Reported("A", "mobilenet", "mnist", 3_216_650, 98.81, 176.96, 5, A, 35.87e9),
    Reported("A", "googlenet", "mnist", 5_977_530, 99.07, 193.44, 5, A, 96.40e9),
    Reported("C", "alexnet_cifar_plain", "cifar10", 2_089_162, 75.56, None, 50, C),
    Reported("C", "alexnet_cifar", "cifar10", 2_091_274, 80.30, None, 50, C),
    Reported("C", DROPOUT, "cifar10", 2_091_274, 82.95, None, 50, C),
    Reported("C", f"{DROPOUT} (with flips)", "cifar10", 2_091_274, 86.01, None, 50, C),
    Reported("C", f"{DROPOUT} (batch size in stages)", "cifar10", 2_091_274, 88.63, None, 50, C,
             batch_size=STAGES),
    Reported("C", f"{DROPOUT} (stages, lr 0.05, 0.005, 0.0005)", "cifar10", 2_091_274, 89.49, None,
             50, C, batch_size=STAGES),
    Reported("D", "lenet5", "mnist", 44_426, 97.44, 40.02, 5, D, batch_size=128),
    Reported("D", "alexnet_small", "mnist", 43_446_122, 99.13, 708.38, 5, D, batch_size=128),
    Reported("D", "resnet18_shared", "mnist", 11_001_546, 99.30, 1012.85, 5, D, batch_size=128),
    Reported("D", "mobilenet", "mnist", 3_216_650, 98.36, 666.95, 5, D, batch_size=128),
    Reported("D", "googlenet", "mnist", 5_977_530, 98.80, 693.56, 5, D, batch_size=128),
    Reported("D", "resnet18_shared (at 28 x 28)", "mnist", 11_001_546, 97.5, None, 5, D,
             batch_size=128),
    Reported("E", "resnet18_cifar", "cifar10", 11_173_962, 90.0, None, None, None),
    Reported("E", "densenet_cifar", "cifar10", 1_000_618, 92.0, None, None, None),
)  # fmt: skip

# Report E's test accuracy by class of CIFAR-10 (per cent), in the data set's order of classes.
CLASS_ACCURACY = {
    "resnet18_cifar": (93, 100, 78, 74, 95, 90, 98, 100, 93, 96),
    "densenet_cifar": (96, 96, 89, 80, 94, 91, 92, 93, 98, 96),
}

# Parameters at the papers' own setting, 3 channels and 1,000 classes.
PAPER_PARAMS = {
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "densenet121": 7_978_856,
    "mobilenet": 4_231_976,
    "alexnet_half": 16_630_440,
}

# Parameters layer by layer, where a report prints them: model -> [(layer, parameters), …].
LAYER_PARAMS = {
    "lenet5_bn": [
        ("conv1", 156),
        ("norm1", 12),
        ("conv2", 2_416),
        ("norm2", 32),
        ("fc1", 48_120),
        ("fc2", 10_164),
        ("fc3", 850),
    ],
    "alexnet": [
        ("conv1", 11_712),
        ("conv2", 614_656),
        ("conv3", 885_120),
        ("conv4", 1_327_488),
        ("conv5", 884_992),
        ("fc1", 26_218_496),
        ("fc2", 16_781_312),
        ("fc3", 40_970),
    ],
    "alexnet_cifar": [
        ("conv1", 2_688),
        ("norm1", 192),
        ("conv2", 307_328),
        ("norm2", 256),
        ("conv3", 295_168),
        ("norm3", 512),
        ("conv4", 590_080),
        ("norm4", 512),
        ("conv5", 295_040),
        ("norm5", 256),
        ("fc1", 589_952),
        ("norm6", 256),
        ("fc2", 8_256),
        ("norm7", 128),
        ("fc3", 650),
    ],
    "vgg11": [
        ("block1", 640),
        ("block2", 73_856),
        ("block3", 885_248),
        ("block4", 3_539_968),
        ("block5", 4_719_616),
        ("fc1", 102_764_544),
        ("fc2", 16_781_312),
        ("fc3", 40_970),
    ],
    "vgg19": [
        ("block1", 37_568),
        ("block2", 221_440),
        ("block3", 2_065_408),
        ("block4", 8_259_584),
        ("block5", 9_439_232),
    ],
    "googlenet": [
        ("stem.conv1.conv", 3_200),
        ("stem.reduce2.conv", 4_160),
        ("stem.conv2.conv", 110_784),
        ("inception3a.branch1.conv", 12_352),
        ("inception3a.branch3.0.conv", 18_528),
        ("inception3a.branch3.1.conv", 110_720),
    ],
    "resnet18_bias": [
        ("stage1.0", 74_112),
        ("stage1.1", 74_112),
        ("stage2.0", 230_272),
        ("stage2.1", 295_680),
        ("stage3.0", 919_296),
        ("stage3.1", 1_181_184),
        ("stage4.0", 3_673_600),
        ("stage4.1", 4_721_664),
        ("fc", 5_130),
    ],
    "mobilenet": [
        ("block1", 2_528),
        ("block2", 9_152),
        ("block3", 18_048),
        ("block4", 34_688),
        ("block5", 68_864),
        ("block6", 134_912),
        *((f"block{number}", 268_800) for number in range(7, 12)),
        ("block12", 531_968),
        ("block13", 1_061_888),
        ("fc", 10_250),
    ],
}

# Output shapes (C, H, W) layer by layer, where a report prints them.
LAYER_SHAPES = {
    "lenet5": [
        ("conv1", (6, 24, 24)),
        ("pool1", (6, 12, 12)),
        ("conv2", (16, 8, 8)),
        ("pool2", (16, 4, 4)),
        ("fc1", (120,)),
        ("fc2", (84,)),
        ("fc3", (10,)),
    ],
    "lenet5_bn": [
        ("conv1", (6, 28, 28)),
        ("pool1", (6, 14, 14)),
        ("conv2", (16, 10, 10)),
        ("pool2", (16, 5, 5)),
        ("fc1", (120,)),
        ("fc2", (84,)),
        ("fc3", (10,)),
    ],
    "alexnet": [
        ("conv1", (96, 54, 54)),
        ("pool1", (96, 26, 26)),
        ("conv2", (256, 26, 26)),
        ("pool2", (256, 12, 12)),
        ("conv3", (384, 12, 12)),
        ("conv4", (384, 12, 12)),
        ("conv5", (256, 12, 12)),
        ("pool3", (256, 5, 5)),
        ("fc1", (4096,)),
        ("fc2", (4096,)),
        ("fc3", (10,)),
    ],
    "alexnet_paper": [("pool3", (256, 6, 6))],
    "alexnet_small": [("conv1", (48, 56, 56)), ("pool3", (128, 7, 7)), ("flatten", (6272,))],
    "alexnet_half": [("pool3", (128, 6, 6)), ("fc1", (2048,)), ("fc3", (1000,))],
    "alexnet_cifar": [
        ("pool1", (96, 16, 16)),
        ("pool2", (128, 15, 15)),
        ("conv3", (256, 13, 13)),
        ("conv4", (256, 13, 13)),
        ("conv5", (128, 13, 13)),
        ("pool5", (128, 6, 6)),
        ("fc1", (128,)),
        ("fc2", (64,)),
        ("fc3", (10,)),
    ],
    "vgg11": [
        ("flatten", (25_088,)),
        ("fc1", (4_096,)),
        ("fc2", (4_096,)),
        ("fc3", (10,)),
    ],
    "resnet18_bias": [("conv1", (64, 112, 112)), ("pool1", (64, 56, 56))],
    "resnet18_cifar": [("conv1", (64, 32, 32)), ("stage4", (512, 4, 4)), ("pool2", (512, 1, 1))],
}


def of(model: str, dataset: str) -> tuple[Reported, ...]:
    """The reports' results for a model on a data set."""
    return tuple(r for r in REPORTED if r.model == model and r.dataset == dataset)
