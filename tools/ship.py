"""Makes weights/: of each network of one experiment the run with the best validation accuracy.

The weights are taken from the runs folder, halved to fp16, and say how accurate they then are on
the sample of test images that ships as well.
"""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from common import data, experiments, records, weights
from common.data import Batches, ImageSet
from common.records import Record
from common.train import evaluate
from tools import start


def ship(path: Path, name: str, run: Record, sample: ImageSet) -> Path:
    """Write the weights in `path` to weights/`name`.safetensors, with what there is to say."""
    target = weights.WEIGHTS / f"{name}.safetensors"
    about = weights.metadata(path) | {"record": run.file_name(), "digest": run.digest}
    weights.write(weights.from_file(path), target, about, half=True)
    model = weights.from_file(target)  # rounded to fp16 from here on
    batches = Batches(sample, "test", 250, size=about["image_size"], device="cpu")
    mean, std = (torch.tensor(about[key]).view(-1, 1, 1) for key in ("mean", "std"))
    batches.shift, batches.scale = 255 * mean, 255 * std
    about["sample_accuracy"] = evaluate(model, batches, "fp32").accuracy
    x, _ = next(iter(batches))
    with torch.no_grad():
        about["first_logits"] = [[round(v, 4) for v in row] for row in model(x[:10]).tolist()]
    weights.write(model, target, about, half=True)
    return target


def write_sums() -> None:
    """The checksum of every file in weights/."""
    files = sorted(weights.WEIGHTS.glob("*.safetensors"))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]
    weights.SUMS.write_text("".join(f"{line}\n" for line in lines))


def main(experiment: str = "cifar10") -> int:
    """Ship the best run of each network of an experiment, as far as its weights are at hand."""
    experiments.table_of(experiment)  # raises for an unknown one
    runs = [r for r in records.read_all(yours=False)[0] if r.experiment == experiment]
    best = {run.network: run for run in sorted(runs, key=lambda run: run.val_accuracy)}
    sample = None
    for name, run in best.items():
        file = records.weights_file(run)
        if not file.exists():
            print(f"{name}: no {file}")
            continue
        if sample is None:
            with TemporaryDirectory() as nothing:  # where no whole set is
                sample = data.load(run.dataset, root=nothing)
        target = ship(file, name, run, sample)
        print(f"{target.name}: {target.stat().st_size / 1e3:,.0f} kB")
    write_sums()
    return 0


if __name__ == "__main__":
    start(main, "tools.ship")
