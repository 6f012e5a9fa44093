"""Performs what is not yet recorded of an experiment, one run after the other."""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn

from common import ddp, machine, records
from common.config import Config
from common.data import ImageSet, load
from common.experiments import is_of, plans
from common.records import Record
from common.run import Run
from common.train import fit


def train_and_judge(
    build: Callable[[], nn.Module],
    data: ImageSet,
    config: Config,
    experiment: str,
    label: str = "",
    *,
    test: bool = True,
    show: bool = True,
) -> tuple[Run, Record | None]:
    """Train a network from its seed, judge it on the test images, keep record and weights.

    Stopped and called again, it goes on after the last whole epoch. `build` makes the network.
    Returns the run, and its record where it was judged.
    """
    torch.manual_seed(config.seed)
    run = fit(build(), data, config, show=show, checkpoint=True)
    if ddp.rank() > 0 or run.ended not in ("done", "early"):
        return run, None
    if not test:
        records.save(records.of(run, None, experiment, label))
        run.checkpoint.remove()
        return run, None
    _, record = records.judged(run, experiment, label, keep=True)
    return run, record


def perform(
    experiment: str,
    *,
    seeds: list[int] | None = None,
    only: list[str] | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[Run]:
    """Run what is not yet recorded of an experiment, and give each new run.

    A run that fails is named and left out; after the last one, RuntimeError lists the failures.
    """
    left, failed, profile = [], [], machine.profile()
    known, _ = records.read_all()
    images: dict[str, ImageSet] = {}
    for plan in plans(experiment, profile, seeds, only):
        if plan.dataset not in images:
            images[plan.dataset] = load(plan.dataset)
        data = images[plan.dataset]
        done = [r for r in known if r.source == data.source]
        if any(is_of(record, plan, experiment, profile) for record in done):
            say(f"recorded already: {plan.name}, seed {plan.config.seed}")
        else:
            left.append((plan, data))
    for i, (plan, data) in enumerate(left, 1):
        title = f"{plan.name}, seed {plan.config.seed}"
        say(f"[{i}/{len(left)}] {title}")
        try:
            run, record = train_and_judge(
                functools.partial(plan.build, data.shape[0], len(data.classes)),
                data,
                plan.config,
                experiment,
                plan.label,
                test=plan.test,
            )
            if run.ended == "not finite":
                raise ArithmeticError(run.notes[-1])
        except Exception as error:  # the other runs shall not suffer from it
            failed.append(f"{title}: {type(error).__name__}: {error}")
            say(f"failed: {failed[-1]}")
            continue
        if not run.ended:
            raise KeyboardInterrupt
        what = (
            f"test accuracy {record.test_accuracy:.2%}" if record else "judged by validation alone"
        )
        say(f"{what} after {len(run.epochs)} epochs in {run.train_seconds:.0f} s of training")
        yield run
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(left)} runs failed:\n" + "\n".join(failed))
