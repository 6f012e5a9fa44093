"""The command line: `python -m common list | train | experiment | bench | run | …`.

Exit codes: 0 done, 1 a notebook or a training failed, 2 a wrong argument.
"""

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # torch's import makes no garbage: looking for it costs an eighth of `list`

from common import machine

TOGETHER = ("train", "scaling")  # the commands that several processes can share


def list_models(options: argparse.Namespace) -> int:
    """Print every network with its size."""
    from common import probe, zoo

    rows = []
    for name, (variant, notebook) in zoo.variants().items():
        model = zoo.build_on_meta(name)
        rows.append(
            {
                "name": name,
                "notebook": notebook,
                "input_shape": list(variant.input_shape),
                "num_classes": variant.num_classes,
                "params": sum(p.numel() for p in model.parameters()),
                "mult_adds": probe.mult_adds(model, (1, *variant.input_shape)),
                "source": variant.source,
            }
        )
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            shape = "x".join(map(str, row["input_shape"]))
            row |= {"input_shape": shape, **{k: f"{row[k]:,}" for k in ("params", "mult_adds")}}
        lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(map(str.rjust, line, widths)))
    return 0


def train_network(options: argparse.Namespace) -> int:
    """Train one network, judge it on the test images, and record the run.

    Killed and started again with the same words, it goes on after the last whole epoch.
    """
    from common import data, ddp, experiments, zoo
    from common.config import Config

    # What costs nothing goes first: a wrong name or number must not wait for a download.
    size = zoo.variant(options.name).input_shape[-1]
    config = Config(
        epochs=options.epochs,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        lr=options.lr,
        weight_decay=options.weight_decay,
        schedule=options.schedule,
        patience=options.patience,
        precision=options.precision,
        train_images=options.train_images,
        image_size=size if options.image_size is None else options.image_size,
        seed=options.seed,
    )
    with ddp.joined():
        with ddp.first_alone():  # the others find what it downloads
            images = data.load(options.dataset, strict=options.strict)
        history, test, record = experiments.train_and_judge(
            options.name,
            lambda: zoo.build(options.name, images.shape[0], len(images.classes)),
            images,
            config,
            experiment="command line",
            show=not options.json,
        )
        if ddp.rank() > 0:
            return 0
    if options.json:
        print(json.dumps(record))
    else:
        print(history.frame().to_string(float_format="{:.4f}".format))
        print(f"\ntest accuracy {test.accuracy:.2%}; recorded in {machine.runs_folder()}")
    return 0


def run_experiment(options: argparse.Namespace) -> int:
    """Run what is not yet recorded of an experiment: a report's, or the course's own."""
    from common import compare, experiments, records

    if options.profile:
        os.environ["CNN_PROFILE"] = options.profile
    if options.name == "list":
        for name, table in experiments.EXPERIMENTS.items():
            print(f"{name:14}{', '.join(dict.fromkeys(run.name for run in table))}")
        return 0
    experiments.runs_of(options.name, machine.profile(), options.seeds, options.only)
    print(f"profile {machine.profile()}, device {machine.device().type}", flush=True)
    try:
        for _ in experiments.perform(options.name, seeds=options.seeds, only=options.only):
            pass
    finally:
        if options.save:
            records.publish(experiment=options.name)
        table, _ = compare.table()
        if len(table):
            print("\n" + compare.text(table[table["experiment"] == options.name]))
    return 0


def measure(options: argparse.Namespace) -> int:
    """Measure our training and loading against conventional ones, and against the machine."""
    from tools import bench

    if options.save and options.quick:
        raise ValueError("--save is for full rounds: leave out --quick.")
    short = {"seconds": 0.5, "rounds": 2} if options.quick else {}
    small = {"most": 32} if options.quick else {}
    rows = bench.networks(options.only, precision=options.precision, **short, **small)
    if not options.only:
        rows += bench.loaders(**short)
    if not (options.only or options.quick):
        rows += bench.starting()
    if options.save:
        bench.save_rows(rows, "speed")
    print(json.dumps(rows, indent=1) if options.json else bench.as_text(rows))
    return 0


def measure_processes(options: argparse.Namespace) -> int:
    """Measure what several processes compute and send (start it with torchrun)."""
    from common import ddp
    from tools import bench, scaling

    with ddp.joined():
        rows = scaling.measure_scaling()
        if ddp.rank() > 0:
            return 0
    if options.save:
        bench.save_rows(rows, "scaling")
    print(json.dumps(rows, indent=1) if options.json else bench.as_text(rows))
    return 0


def run_class(options: argparse.Namespace) -> int:
    """Run notebooks in many kernels at once, as a class on one server does."""
    from tools import classroom

    found = classroom.run_together(options.notebooks, options.kernels)
    print(found.drop(columns="error").round(1).to_string())
    for error in filter(None, found["error"]):
        print(error)
    print(
        f"{(found['error'] == '').sum()} of {len(found)} kernels ran to the end; "
        f"at most {found['private_MB'].max():,.0f} MB private, {found['seconds'].max():.0f} s"
    )
    return int((found["error"] != "").any())


def run_course(options: argparse.Namespace) -> int:
    """Execute notebooks in order into build/, then print the comparison table."""
    from common import compare, records
    from tools import notebooks

    began = time.time()
    chosen = notebooks.paths(options.notebooks)
    print(f"profile {machine.profile()}, device {machine.device().type}", flush=True)
    for i, path in enumerate(chosen, 1):
        start = time.perf_counter()
        label = f"[{i}/{len(chosen)}] {path.stem}"

        def tick(done: int, total: int, label: str = label) -> None:
            print(f"\r{label}: cell {done}/{total}", end="", flush=True)

        notebook = notebooks.read(path)
        try:
            notebooks.execute(notebook, path.name, tick if sys.stdout.isatty() else None)
        except notebooks.CellFailed as error:
            notebooks.write(notebook, Path(options.out) / path.name)
            print(f"\n{error}\nThe notebook as far as it ran: {options.out}/{path.name}")
            return 1
        notebooks.clean(notebook)
        notebooks.write(notebook, Path(options.out) / path.name)
        if options.save:
            notebooks.write(notebook, path)
        seconds = time.perf_counter() - start
        print(f"\r{label}: done in {seconds:.0f} s" + " " * 20, flush=True)
    if options.save:
        records.publish(since=began)
    table, problems = compare.table()
    print()
    print(compare.text(table) if len(table) else "No runs recorded.")
    for problem in problems:
        print(f"left out: {problem}")
    return 0


def draw_figures(options: argparse.Namespace) -> int:
    """Redraw figures/ from the models and records, and the tables of README and docs/."""
    from tools import figures

    drawings = figures.everything()
    for name, drawing in drawings.items():
        (machine.HOME / "figures" / f"{name}.svg").write_text(drawing, encoding="utf-8")
    for path, text in figures.documents().items():
        (machine.HOME / path).write_text(text, encoding="utf-8")
    print(f"{len(drawings)} pictures drawn in figures/, the tables of README and docs/ written")
    return 0


def sync_cells(options: argparse.Namespace) -> int:
    """Rewrite the notebooks' setup and exercise cells from their one definition."""
    from tools import notebooks

    for path in notebooks.paths():
        notebook = notebooks.read(path)
        notebooks.sync(notebook)
        notebooks.write(notebook, path)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m common", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function, name: str) -> argparse.ArgumentParser:
        words = function.__doc__.splitlines()[0]
        made = commands.add_parser(name, help=words, description=words)
        made.set_defaults(run=function)
        return made

    listing = command(list_models, "list")
    listing.add_argument("--json", action="store_true", help="print a JSON list instead of a table")

    training = command(train_network, "train")
    training.add_argument("name", help="a network; `python -m common list` shows them all")
    training.add_argument(
        "--dataset",
        default="fashion_mnist",
        help="a name or a folder of class folders (default: %(default)s)",
    )
    training.add_argument(
        "--epochs",
        type=int,
        default=5,
        help="passes over the training images (default: %(default)s)",
    )
    training.add_argument(
        "--batch-size", type=int, default=128, help="images a step (default: %(default)s)"
    )
    training.add_argument(
        "--lr", type=float, default=1e-3, help="learning rate (default: %(default)s)"
    )
    training.add_argument(
        "--optimizer", default="adam", help="adam, adamw or sgd (default: %(default)s)"
    )
    training.add_argument("--weight-decay", type=float, default=0.0, help="default: %(default)s")
    training.add_argument(
        "--schedule", default="constant", help="constant, cosine or warmup (default: %(default)s)"
    )
    training.add_argument(
        "--patience", type=int, help="stop after so many epochs without progress (default: never)"
    )
    training.add_argument(
        "--precision", default="auto", help="auto, fp32, bf16 or fp16 (default: %(default)s)"
    )
    training.add_argument("--image-size", type=int, help="pixels (default: the network's own)")
    training.add_argument("--train-images", type=int, help="use only so many (default: all)")
    training.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    training.add_argument(
        "--strict",
        action="store_true",
        help="fail rather than use the digits in place of a missing set",
    )
    training.add_argument("--json", action="store_true", help="print the run's record as JSON")

    experiment = command(run_experiment, "experiment")
    experiment.add_argument("name", help="an experiment, or `list`")
    experiment.add_argument("--profile", help="smoke, laptop or full (default: as elsewhere)")
    experiment.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", help="default: the experiment's own"
    )
    experiment.add_argument("--only", nargs="+", metavar="NAME", help="networks (default: all)")
    experiment.add_argument("--save", action="store_true", help="also copy records to results/")

    benchmark = command(measure, "bench")
    benchmark.add_argument(
        "--only", nargs="+", metavar="NAME", help="networks to measure (default: one a notebook)"
    )
    benchmark.add_argument(
        "--quick",
        action="store_true",
        help="under two minutes: smaller batches, fewer and shorter rounds",
    )
    benchmark.add_argument(
        "--precision", default="auto", help="ours: auto, fp32, bf16 or fp16 (default: %(default)s)"
    )
    benchmark.add_argument("--save", action="store_true", help="also write results/bench/")
    benchmark.add_argument(
        "--json", action="store_true", help="print a JSON list instead of a table"
    )

    scaling = command(measure_processes, "scaling")
    scaling.add_argument("--save", action="store_true", help="also write results/bench/")
    scaling.add_argument("--json", action="store_true", help="print a JSON list instead of a table")

    together = command(run_class, "classroom")
    together.add_argument("notebooks", nargs="+", help="numbers or names, such as 01 or lenet")
    together.add_argument("--kernels", type=int, default=8, help="default: %(default)s")

    running = command(run_course, "run")
    running.add_argument(
        "notebooks", nargs="*", help="numbers or names, such as 01 or lenet (default: all)"
    )
    running.add_argument(
        "--out",
        default=str(machine.HOME / "build"),
        help="folder for the executed copies (default: build/)",
    )
    running.add_argument(
        "--save",
        action="store_true",
        help="also store the outputs in notebooks/ and the records in results/",
    )

    command(draw_figures, "figures")
    command(sync_cells, "sync")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and options.command not in TOGETHER:
            raise ValueError(f"torchrun works with {' and '.join(TOGETHER)}; start this one alone.")
        return options.run(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"python -m common {options.command}: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        print(f"python -m common {options.command} failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    gc.freeze()  # nor is what it made looked through again: another eighth
    gc.enable()
    sys.exit(main())
