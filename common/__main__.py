"""The command line: `python -m common list | train | experiment | run | predict`.

Exit codes: 0 done, 1 a notebook, a training or a picture failed, 2 a wrong argument or a folder
that cannot be written.
"""

import gc
import json as as_text
import math
import os
import sys
import time
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":
    gc.disable()  # torch's import makes no garbage: looking for it costs an eighth of `list`

import tyro
from tyro.conf import Positional, arg

from common import machine
from common.config import Config

TOGETHER = ("train",)  # the commands that several processes can share
app = tyro.extras.SubcommandApp()


@app.command(name="list")
def list_models(json: bool = False) -> int:
    """Print every network with its size.

    Args:
        json: a JSON list instead of a table.
    """
    from common import zoo

    found, problems = zoo.index()
    rows = []
    for name, notebook in found.items():
        try:
            row = zoo.variant(name)
        except ValueError as error:
            problems = (*problems, str(error))
            continue
        rows.append(
            {
                "name": name,
                "notebook": notebook.name,
                "input_shape": list(row.input_shape),
                "num_classes": row.num_classes,
                "params": row.params,
                "mult_adds": row.mult_adds,
                "source": row.source,
            }
        )
    if json:
        print(as_text.dumps(rows, indent=1))
    elif rows:
        for row in rows:
            shape = "x".join(map(str, row["input_shape"]))
            row |= {"input_shape": shape, **{k: f"{row[k]:,}" for k in ("params", "mult_adds")}}
        lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(map(str.rjust, line, widths)))
    for problem in dict.fromkeys(problems):
        print(problem, file=sys.stderr)
    return 0


@app.command(name="train")
def train_network(
    network: Positional[str],
    config: Annotated[Config, arg(name="")] = Config(),  # noqa: B008
    dataset: str = "fashion_mnist",
    weights: Path | None = None,
    strict: bool = False,
    json: bool = False,
) -> int:
    """Train one network, judge it on the test images, keep its weights, and record the run.

    Killed and started again with the same words, it goes on after the last whole epoch.

    Args:
        network: its name; `python -m common list` shows them all.
        config: how to train.
        dataset: a name or a folder of class folders.
        weights: begin with the weights of this .safetensors file.
        strict: fail rather than use a sample in place of a missing set.
        json: print the run's record as JSON.
    """
    from common import data, ddp, perform, records, zoo
    from common import weights as files

    # What costs nothing goes first: a wrong name or number must not wait for a download.
    row = zoo.variant(network)
    size = config.image_size or row.input_shape[-1]
    config = Config(**{**vars(config), "image_size": size})
    if weights:
        files.metadata(weights)
    machine.runs_folder()

    def build():
        model = zoo.build(network, images.shape[0], len(images.classes))
        if weights:
            files.load_into(model, weights)
        return model

    with ddp.joined():
        images = data.load(dataset, strict=strict)  # which one of several downloads
        run, record = perform.train_and_judge(build, images, config, "command line", show=not json)
        if ddp.rank() > 0:
            return 0
    if record is None:
        print(" ".join(run.notes) or "Stopped: the same words again go on.", file=sys.stderr)
        return 1
    if json:
        values = {name: records.plain(getattr(record, name)) for name in records.FIELDS}
        print(as_text.dumps(values))
    else:
        print(run.frame().to_string(float_format="{:.4f}".format))
        kept = records.weights_file(record)
        print(f"\ntest accuracy {record.test_accuracy:.2%}; recorded in {machine.runs_folder()}")
        print(f"weights: {kept}")
    return 0


@app.command(name="experiment")
def run_experiment(
    name: Positional[str],
    profile: str | None = None,
    seeds: Annotated[tuple[int, ...], arg(metavar="N [N …]")] = (),
    only: tuple[str, ...] = (),
    save: bool = False,
) -> int:
    """Run what is not yet recorded of an experiment: a report's, or the course's own.

    Args:
        name: an experiment, or `list`.
        profile: smoke, laptop or full (default: as elsewhere).
        seeds: default: the experiment's own.
        only: networks (default: all).
        save: also copy records to results/.
    """
    from common import compare, experiments, perform, records

    if profile:
        os.environ["CNN_PROFILE"] = profile
    if name == "list":
        for each in experiments.experiment_names():
            table = experiments.table_of(each)
            print(f"{each:18}{', '.join(dict.fromkeys(plan.name for plan in table))}")
        return 0
    experiments.plans(name, machine.profile(), list(seeds), list(only))
    machine.runs_folder()
    print(f"profile {machine.profile()}, device {machine.device().type}", flush=True)
    try:
        for _ in perform.perform(name, seeds=list(seeds), only=list(only)):
            if save:
                records.publish(experiment=name)
    finally:
        for reason in records.publish(experiment=name) if save else ():
            print(f"not saved: {reason}")
        runs, _ = records.read_all()
        runs = [run for run in runs if run.experiment == name]
        if runs:
            print("\n" + compare.text(compare.grouped(runs)))
    return 0


@app.command(name="run")
def run_course(
    notebooks: Positional[tuple[str, ...]] = (),
    out: Path = machine.HOME / "build",
    save: bool = False,
    cell_minutes: float = 30.0,
) -> int:
    """Execute notebooks in order into build/, then print the comparison.

    One that fails does not keep the others from running.

    Args:
        notebooks: numbers or names, such as 01 or lenet (default: all).
        out: folder for the executed copies.
        save: also store the outputs in notebooks/ and the records in results/.
        cell_minutes: give a cell up after so long.
    """
    from common import compare, records
    from tools import notebooks as files

    began = time.time()
    chosen = files.paths(list(notebooks))
    if not 0 < cell_minutes <= 24 * 60:
        raise ValueError(
            f"--cell-minutes {cell_minutes:g}; expected a number above 0, 1440 (a day) at most."
        )
    cell_seconds = math.ceil(60 * cell_minutes)  # nbclient takes whole ones
    out.mkdir(parents=True, exist_ok=True)  # raises for a file, before hours of work
    print(f"profile {machine.profile()}, device {machine.device().type}", flush=True)
    done, failed = [], []
    for i, path in enumerate(chosen, 1):
        start = time.perf_counter()
        label = f"[{i}/{len(chosen)}] {path.stem}"

        def tick(cell: int, total: int, label: str = label) -> None:
            print(f"\r{label}: cell {cell}/{total}", end="", flush=True)

        notebook = files.read(path)
        try:
            files.execute(notebook, path.name, tick if sys.stdout.isatty() else None, cell_seconds)
        except files.CellFailed as error:
            files.write(notebook, out / path.name)
            print(f"\n{error}\nThe notebook as far as it ran: {out}/{path.name}", flush=True)
            if isinstance(error, files.Stopped):
                return 1
            failed.append(str(error))
            continue
        files.clean(notebook)
        files.write(notebook, out / path.name)
        done.append((notebook, path))
        seconds = time.perf_counter() - start
        print(f"\r{label}: done in {seconds:.0f} s" + " " * 20, flush=True)
    if save:  # after the last one, so that no run sees a checkout that another has changed
        for notebook, path in done:
            files.write(notebook, path)
        for reason in records.publish(since=began):
            print(f"not saved: {reason}")
    runs, problems = records.read_all()
    print()
    print(compare.text(compare.grouped(runs)) if runs else "No runs recorded.")
    for problem in problems:
        print(f"left out: {problem}")
    for error in failed:
        print(f"failed: {error}")
    return 1 if failed else 0


@app.command(name="predict")
def predict_pictures(
    model: Positional[str],
    pictures: Positional[tuple[Path, ...]],
    top: int = 3,
) -> int:
    """Say what is on pictures: the most likely classes with their probabilities.

    Args:
        model: a network with trained weights, or a .safetensors file that `train` wrote.
        pictures: image files, or folders of them.
        top: how many classes to name.
    """
    from common import predict

    if not pictures:
        raise ValueError("No picture is named: python -m common predict NET photo.jpg …")
    net = predict.network(model)
    if hasattr(sys.stdout, "reconfigure"):  # a name may hold what cannot be printed
        sys.stdout.reconfigure(errors="backslashreplace")
    wrong = 0
    for given in pictures:
        try:
            files = predict.files_in(given)
        except (ValueError, OSError) as error:
            print(f"{machine.printable(given)}: {error}", file=sys.stderr)
            wrong += 1
            continue
        for path in files:
            name = machine.printable(path)
            try:
                found = predict.classes(net, path, top)
            except ValueError as error:
                print(f"{name}: {error}", file=sys.stderr)
                wrong += 1
                continue
            print(f"{name}: " + ", ".join(f"{name} {share:.1%}" for name, share in found))
    return int(wrong > 0)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else ""

    def run() -> int:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and command not in TOGETHER:
            raise ValueError(f"torchrun works with {' and '.join(TOGETHER)}; start this one alone.")
        return app.cli(prog="python -m common", description=__doc__.splitlines()[0], args=arguments)

    return machine.exit_code(run, f"common {command}".strip())


if __name__ == "__main__":
    gc.freeze()  # nor is what it made looked through again: another eighth
    gc.enable()
    sys.exit(main())
