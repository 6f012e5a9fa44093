"""Performs what is not yet recorded of an experiment, one run after the other."""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn

from common import ddp, machine, records, zoo
from common.config import Config
from common.data import ImageSet, load
from common.experiments import Plan, is_of, plans
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
    _, record = records.judged(run, experiment, label)
    records.keep_weights(run, record)
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
    done, seconds = 0, 0.0
    for i, (plan, data) in enumerate(left):
        outlook = forecast([work_of(*pair) for pair in left[i:]], done, seconds)
        say(f"[{i + 1}/{len(left)}] {plan.name}, seed {plan.config.seed}; {outlook}")
        try:
            run, record = train_and_judge(
                functools.partial(plan.build, data.shape[0], len(data.classes)),
                data,
                plan.config,
                experiment,
                plan.label,
                test=plan.test,
            )
        except Exception as error:  # the other runs shall not suffer from it
            failed.append(f"{plan.name}, seed {plan.config.seed}: {type(error).__name__}: {error}")
            say(f"failed: {failed[-1]}")
            continue
        if not run.ended:
            raise KeyboardInterrupt
        done, seconds = done + work_of(plan, data), seconds + run.train_seconds
        what = (
            f"test accuracy {record.test_accuracy:.2%}" if record else "judged by validation alone"
        )
        say(f"{what} after {len(run.epochs)} epochs in {run.train_seconds:.0f} s of training")
        yield run
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(left)} runs failed:\n" + "\n".join(failed))


def forecast(works: list[int], done: int, seconds: float) -> str:
    """How long runs of so much work will take, when the work `done` took so many seconds."""
    if not done:
        return f"{len(works)} left, the time is known after the first"
    minutes = sum(works) * seconds / done / 60
    return f"{len(works)} left, about {max(minutes, 1):.0f} min at the speed so far"


# What an image takes besides, in mult-adds: for LeNet it is nearly all (58 µs on two cores).
BESIDES = 4_000_000


def work_of(plan: Plan, data: ImageSet) -> int:
    """About the mult-adds of a whole training, forward passes only, and what they leave out.

    From the count in the variant's row, in proportion to the pixels: good enough for a forecast.
    """
    row = zoo.variant(plan.network)
    pixels = (plan.config.image_size or data.shape[-1]) ** 2
    mult_adds = row.mult_adds * pixels // (row.input_shape[1] * row.input_shape[2])
    images = min(plan.config.train_images or len(data.train), len(data.train))
    return (mult_adds + BESIDES) * images * plan.config.epochs
