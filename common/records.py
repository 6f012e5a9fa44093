"""One JSON record a run: written by `judge` and the command line, read by 99_compare."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from common import ddp, digests, machine, probe, sources, weights, zoo
from common.config import Config
from common.data import Batches, ImageSet
from common.run import Run
from common.train import Evaluation, evaluate

RESULTS = machine.HOME / "results"
PACKAGES = ("torch", "torchvision", "numpy")


@dataclass
class Record:
    """What is written down of one run.

    Accuracies are 0 to 1, sizes in pixels, times in seconds; `mult_adds` is for one image,
    `images_per_s` counts training only. `digest` stands for the structure of the net (empty in the
    oldest records), and `begun_with` for the file of weights that it began with, if any;
    `test_accuracy` is None for a run that chose by validation alone.
    """

    network: str  # a variant, or the class of a net of one's own
    options: dict  # of its builder
    digest: str
    label: str  # what tells it from other runs of this network in its experiment
    experiment: str
    profile: str
    dataset: str
    source: str
    stand_in: bool
    image_size: int | list
    train_images: int
    config: dict
    params: int
    mult_adds: int | None
    history: dict
    test_accuracy: float | None
    class_accuracy: dict
    train_seconds: float
    images_per_s: float
    peak_memory_bytes: int | None
    device: str
    precision: str
    versions: dict
    commit: str
    errors: dict | None = None  # number of the test image -> class it was taken for
    begun_with: str = ""
    images: str = ""  # a digest of a set of one's own, which a name does not tell from others
    test_images: int | None = None  # None in older records: 1,000 of a sample, else 10,000
    origin: str = field(default="recorded", compare=False)  # or "yours"; not written

    # What makes two records the same run: they may differ in time and machine only.
    IDENTITY = ("network", "options", "digest", "label", "dataset", "source", "experiment")
    IDENTITY += ("profile", "train_images", "params", "config")

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def judged_on(self) -> int:
        """Test images."""
        return self.test_images or (1_000 if self.stand_in else 10_000)

    @property
    def whole(self) -> bool:
        """Whether its images are a known set's, and all of them, as far as the record tells."""
        known = self.dataset in sources.KNOWN and not self.stand_in and self.judged_on == 10_000
        least = 50_000 * (1 - self.config.get("validation", 0.2))  # of 50,000 or 60,000
        return known and (self.limited or self.train_images >= 0.99 * least)

    @property
    def limited(self) -> bool:
        """Whether it was told to use some of the training images only."""
        return bool(self.config.get("train_images"))

    @property
    def epochs(self) -> int:
        return len(self.history["epochs"])

    @property
    def name(self) -> str:
        """The network, its label and what it began with, for people."""
        label = ", ".join(filter(None, (self.label, self.begun_with and f"from {self.begun_with}")))
        return f"{self.network} ({label})" if label else self.network

    @property
    def val_accuracy(self) -> float:
        """Validation accuracy (0 to 1) of the best epoch, by which runs are chosen."""
        rows, best = self.history["epochs"], self.history["best_epoch"]
        value = rows[best - 1]["val_accuracy"] if best else None
        return math.nan if value is None else value

    def has_image(self, number: str, answer: int) -> bool:
        """Whether there can be an error of this test image, taken for the class `answer`."""
        known = number.isdecimal() and int(number) < self.judged_on
        return known and fits(answer, int) and 0 <= answer < len(self.class_accuracy)

    def identity(self) -> str:
        """A hash of what was run, the same for a repetition on another day or machine."""
        what = {name: getattr(self, name) for name in self.IDENTITY}
        # Older records have none of these.
        what |= {n: getattr(self, n) for n in ("begun_with", "images") if getattr(self, n)}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def file_name(self) -> str:
        parts = (self.experiment, self.name, self.dataset, self.profile, self.seed)
        return machine.file_name("-".join(map(str, parts)), f"-{self.identity()[:8]}.json")


FIELDS = {f.name: f.type for f in dataclasses.fields(Record) if f.name != "origin"}


# ------------------------------------------------------------------------------- making a record


def judge(run: Run, experiment: str, label: str = "") -> Evaluation:
    """Judge a finished run on the test images, once, and write its record; return the evaluation.

    `experiment` and `label` name the run. Raises ValueError for a training that was stopped.
    """
    return judged(run, experiment, label)[0]


def judged(
    run: Run, experiment: str, label: str = "", *, keep: bool = False
) -> tuple[Evaluation, Record]:
    """What `judge` does, for those who need the record as well, and the weights kept on request."""
    for name, value in (("experiment", experiment), ("label", label)):
        if not isinstance(value, str):
            raise TypeError(f"{name}={value!r}; expected words, such as 'our recipe'.")
    if run.ended not in ("done", "early"):
        why = " ".join(run.notes) or "it was stopped before its last epoch"
        raise ValueError(f"Only a finished training is judged: {why}. Train it to its end.")
    if not run.best_epoch:
        raise ValueError(f"In no epoch was the validation loss a number. {' '.join(run.notes)}")
    if run.replaced:
        raise ValueError(
            "This net was trained again after this run, and has other weights now. Judge a run "
            "before the next fit, or build a new net for each."
        )
    config = run.config
    batches = Batches(run.data, "test", config.evaluation_batch, size=config.image_size)
    test = evaluate(run.model, batches, run.precision)
    record = of(run, test, experiment, label)
    if keep:  # before the record, which says that the run need not be repeated
        keep_weights(run, record)
    save(record)
    if run.checkpoint is not None:
        run.checkpoint.remove()
    return test, record


def of(run: Run, test: Evaluation | None, experiment: str, label: str = "") -> Record:
    """The record of a run, judged by `test` or by validation alone."""
    config, data = run.config, run.data
    train_images = round(run.epochs[0]["images_per_s"] * run.epochs[0]["seconds"])
    size = run.image_size
    H, W = (size, size) if isinstance(size, int) else size
    return Record(
        network=zoo.name_of(run.model),
        options=options_of(run.model),
        digest=run.digest,
        begun_with=getattr(run.model, "begun_with", ""),
        images="" if data.name in sources.KNOWN else digests.of_images(data.train),
        label=label,
        experiment=experiment,
        profile=machine.profile(),
        dataset=data.name,
        source=data.source,
        stand_in=data.stand_in,
        image_size=size if isinstance(size, int) else [H, W],
        train_images=train_images,
        config=as_json(config),
        params=sum(p.numel() for p in run.model.parameters()),
        mult_adds=mult_adds_of(run.model, (1, data.shape[0], H, W)),
        history={
            "epochs": run.epochs,
            "batch_losses": [round(loss, 4) for loss in run.batch_losses],
            "best_epoch": run.best_epoch,
            "notes": run.notes,
        },
        test_accuracy=test and test.accuracy,
        class_accuracy=dict(zip(data.classes, test.class_accuracy, strict=True)) if test else {},
        errors=errors(test, data) if test else None,
        test_images=len(test.predictions) if test else None,
        train_seconds=run.train_seconds,
        images_per_s=train_images * len(run.epochs) / run.train_seconds,
        peak_memory_bytes=run.peak_memory_bytes,
        device=device_name(),
        precision=run.precision,
        versions=versions(),
        commit=run.commit,
    )


def options_of(model: torch.nn.Module) -> dict:
    """What the net's builder was told, where that is known."""
    options = getattr(model, "options", {})
    return plain(options) if isinstance(options, dict) else {}


def mult_adds_of(model: torch.nn.Module, shape: tuple[int, int, int, int]) -> int | None:
    """Mult-adds of one image, or None for a net that cannot be copied or counted."""
    try:
        return probe.mult_adds(model, shape)
    except Exception:  # whatever an attribute makes of being copied: no reason to lose a training
        return None


def errors(test: Evaluation, data: ImageSet) -> dict[str, int]:
    """The test images classified wrongly: number of the image -> class it was taken for."""
    wrong = (test.predictions != data.test.labels).nonzero().flatten()
    return {str(int(image)): int(test.predictions[image]) for image in wrong}


def keep_weights(run: Run, record: Record) -> Path:
    """Write a run's best weights as safetensors to the runs folder, and return the file."""
    about = {
        "network": record.network,
        "options": record.options,
        "digest": run.digest,
        "accuracy": record.test_accuracy,
        "dataset": run.data.name,
        "source": run.data.source,
        "classes": list(run.data.classes),
        "channels": run.data.shape[0],
        "mean": list(run.data.mean),
        "std": list(run.data.std),
        "image_size": run.image_size,
        "seed": run.config.seed,
    }
    path = weights_file(record)
    weights.write(run.model, path, about)
    return path


def weights_file(record: Record) -> Path:
    """Where `keep_weights` writes: in the runs folder, a file for each run, unless repeated."""
    parts = (record.network, record.dataset, record.seed, record.identity()[:8])
    name = machine.file_name("-".join(map(str, parts[:-1])), f"-{parts[-1]}.safetensors")
    return machine.runs_folder() / "weights" / name


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    packages = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version()} | packages


def device_name() -> str:
    """The GPU's name, or the CPU's with its threads, once for each process of the training."""
    on_cpu = machine.device().type == "cpu"
    name = f"{cpu_name()}, {machine.threads()}" if on_cpu else machine.gpu_name()
    return name if ddp.ranks() == 1 else f"{ddp.ranks()} x {name}"


def cpu_name() -> str:
    """The processor as the operating system calls it."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return str(capabilities.get("cpu_name") or platform.processor() or platform.machine())


# ----------------------------------------------------------------------------- writing, reading


def save(record: Record, folder: Path | None = None) -> Path:
    """Write a record, by default to the runs folder; the same run again replaces its file."""
    folder = folder or machine.runs_folder() / "records"
    path = folder / record.file_name()
    values = {name: plain(getattr(record, name)) for name in FIELDS}
    lines = ",\n".join(
        f" {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()
    )
    with machine.written_whole(path) as fresh:
        fresh.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    return path


def as_json(config: Config) -> dict:
    """A configuration as a record holds it: with lists for tuples."""
    return plain(asdict(config))


def plain(value):
    """A value as JSON has it: lists for tuples, None for NaN and infinity, names for objects."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__name__", repr(value))


def read(path: Path) -> Record:
    """Read one record. Raises ValueError, naming the file and what is wrong, for anything else."""
    try:
        numbers = {"parse_int": bounded, "parse_float": finite, "parse_constant": finite}
        found = json.loads(path.read_text(encoding="utf-8"), **numbers)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not readable JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not a record: expected a JSON object.")
    try:
        check_plain(found)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    defaults = {f.name: f.default for f in dataclasses.fields(Record)}
    for name, kind in FIELDS.items():
        if name not in found and defaults[name] is dataclasses.MISSING:
            raise ValueError(f"{path.name} has no {name!r}: not a record, or of another version.")
        value = found.setdefault(name, defaults[name])
        if not fits(value, kind):
            raise ValueError(f"{path.name}: {name} is {str(value)[:40]!r}, expected {kind}.")
    record = Record(**{name: found[name] for name in FIELDS})
    try:
        check_values(record)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path.name} has no whole history or settings ({error!r}).") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return record


def check_plain(value, levels: int = 12) -> None:
    """Raise ValueError for what is nested too deeply, or for words that cannot be written."""
    if levels == 0:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str) and not value.isascii():
        value.encode()  # raises UnicodeEncodeError, a ValueError, for half a character
    for item in value.values() if isinstance(value, dict) else value if type(value) is list else ():
        check_plain(item, levels - 1)


def finite(word: str) -> float:
    """A number of JSON that is one: not NaN, Infinity or 1e999, for which `plain` writes None."""
    if not math.isfinite(number := float(word)):
        raise ValueError(f"{word} is no finite number")
    return number


def bounded(digits: str) -> int:
    """A whole number of JSON, unless it has more digits than any count here."""
    if len(digits) > 18:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def fits(value, kind) -> bool:
    """Whether a value is of a field's type; a whole number is a float, True is no number."""
    kinds = getattr(kind, "__args__", (kind,))
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int) and float in kinds:
        return True
    return isinstance(value, kinds)


def check_values(record: Record) -> None:
    """Raise ValueError where a record's values cannot be those of a run."""
    rows, sizes = record.history["epochs"], record.image_size
    sizes = sizes if isinstance(sizes, list) else [sizes]
    if missing := {"epochs", "seed"} - record.config.keys():
        raise ValueError(f"its config has no {', '.join(sorted(missing))}")
    settings = Config(**record.config)  # raises for what cannot be trained with
    for name, good in (
        ("test_accuracy", record.test_accuracy is None or 0 <= record.test_accuracy <= 1),
        ("image_size", all(fits(size, int) and size >= 1 for size in sizes)),
        ("params", record.params >= 1),
        ("mult_adds", (record.mult_adds or 0) >= 0),
        ("train_images", record.train_images >= 1),
        ("train_seconds", 0 < record.train_seconds < math.inf),
        ("images_per_s", 0 < record.images_per_s < math.inf),
        ("peak_memory_bytes", (record.peak_memory_bytes or 0) >= 0),
        ("history", 1 <= len(rows) <= settings.epochs),
        ("history", [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))),
        ("history", fits(record.history["best_epoch"], int)),
        ("history", 0 <= record.history["best_epoch"] <= len(rows)),
        ("history", all(map(possible, rows))),
        ("image_size", len(sizes) in (1, 2)),
        ("test_images", record.test_images is None or record.test_images >= 1),
        ("precision", record.precision in machine.PRECISIONS),
        ("errors", all(record.has_image(*error) for error in (record.errors or {}).items())),
        ("class_accuracy", all(map(is_share, record.class_accuracy.values()))),
    ):
        if not good:
            raise ValueError(f"{name} is {str(getattr(record, name))[:60]}, which cannot be.")


def possible(row: dict) -> bool:
    """Whether an epoch's numbers can be those of a training; losses may be no numbers any more."""
    losses = [row[name] for name in ("train_loss", "val_loss", "lr")]
    shares = [row[name] for name in ("train_accuracy", "val_accuracy")]
    times = [row[name] for name in ("seconds", "images_per_s")]
    return (
        all(loss is None or fits(loss, float) for loss in losses)
        and all(map(is_share, shares))
        and all(fits(time, float) and 0 < time < math.inf for time in times)
    )


def is_share(value: object) -> bool:
    """Whether a value is a number from 0 to 1, or None, as JSON has it for NaN."""
    return value is None or (fits(value, float) and 0 <= value <= 1)


def read_all(*, yours: bool = True) -> tuple[list[Record], list[str]]:
    """Every record at hand, and a reason for each file left out.

    A record's `origin` is "yours" where it lies in the runs folder, "recorded" in results/. A run
    that is in both stands there twice: yours never changes what is recorded.
    """
    found, problems = [], []
    folders = [("recorded", RESULTS)]
    if yours:
        folders.insert(0, ("yours", machine.runs_folder() / "records"))
    for origin, folder in folders:
        seen = set()
        for path in sorted(folder.glob("*.json")):
            if path.name == "reports.json":  # what the reports state, see common.compare
                continue
            try:
                record = read(path)
            except ValueError as error:
                problems.append(str(error))
                continue
            if record.identity() not in seen:
                seen.add(record.identity())
                record.origin = origin
                found.append(record)
    return found, problems


def read_rows(kind: str) -> list[dict]:
    """All rows of this kind that `tools.bench` wrote to results/bench/, on whatever machine."""
    files = sorted((RESULTS / "bench").glob(f"{kind}-*.json"))
    return [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]


def publish(*, since: float = 0.0, experiment: str | None = None) -> list[str]:
    """Copy your records to results/: those written after `since` (seconds since 1970), or those of
    one experiment. Returns a reason for each that is not copied.

    What was trained on the command line, in the smoke profile, or on other images than the whole
    set stays yours.
    """
    left = []
    for path in sorted((machine.runs_folder() / "records").glob("*.json")):
        if path.stat().st_mtime < since:
            continue
        try:
            record = read(path)
        except ValueError as error:
            left.append(str(error))
            continue
        if experiment not in (None, record.experiment) or record.experiment == "command line":
            continue
        if record.profile == "smoke" or not record.whole:
            what = "smoke run" if record.profile == "smoke" else f"run on {record.source}"
            left.append(f"{path.name} is a {what}: it is not a result")
            continue
        save(record, RESULTS)
    return left
