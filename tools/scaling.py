"""What a step of several processes computes and sends, and when the network is the limit.

The model, for n processes that share a batch of B images, and a net of P parameters and M
mult-adds an image:

    compute = 3 M (B / n) / rate              forward once, backward twice
    send    = 2 (n - 1) / n * 4 P / link      a ring adds up all gradients, then hands them round

With `rate` in mult-adds a second and `link` in bytes a second. DistributedDataParallel sends while
backward still computes, so that a step takes between max(compute, send) and compute + send.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import distributed
from torch.nn.functional import cross_entropy

from common import ddp, machine, probe, records, zoo
from common.config import Config
from common.machine import autocast
from common.run import make_optimizer
from tools import bench, start

STEPS = 5


def send_bytes(params: int, processes: int) -> float:
    """Bytes that each process sends in a step: the gradients, in four bytes each, by a ring."""
    return 2 * (processes - 1) / processes * 4 * params


def break_even(params: int, mult_adds: int, processes: int, rate: float, link: float) -> float:
    """The images a process needs in a step for computing to take as long as sending.

    `mult_adds` are those of a forward pass on one image, `rate` is in mult-adds a second and `link`
    in bytes a second. With fewer images the network is the limit.
    """
    return send_bytes(params, processes) / link / (3 * mult_adds / rate)


def measure_scaling() -> list[dict]:
    """A row for each network of the benchmark, in a process that torchrun started.

    Measures what the model needs (computing alone, sending alone) and what it predicts (the step).
    Raises ValueError outside of torchrun.
    """
    if ddp.ranks() == 1:
        raise ValueError(
            "scaling is measured between processes: "
            "start it with torchrun --nproc-per-node=2 -m tools.scaling."
        )
    rows = []
    for row in bench.measured(None, 128):
        name, size, batch_size = row["network"], row["image_size"], row["batch_size"]
        model = zoo.build(name, 1, 10, **row["options"]).train()
        model.to(machine.device(), memory_format=machine.memory_format(model))
        optimizer = make_optimizer(model, Config())
        share = batch_size // ddp.ranks()
        x = torch.randn(share, 1, size, size, device=machine.device())
        y = torch.randint(0, 10, (share,), device=machine.device())
        gradients = torch.zeros(sum(p.numel() for p in model.parameters()), device=x.device)

        def step(net, x=x, y=y, optimizer=optimizer) -> None:
            with autocast(x.device, machine.precision()):
                loss = cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        alone = seconds_of(lambda step=step, model=model: step(model))
        sending = seconds_of(lambda gradients=gradients: distributed.all_reduce(gradients))
        net = ddp.averaging(model)
        together = seconds_of(lambda step=step, net=net: step(net))
        mult_adds = probe.mult_adds(model, (1, 1, size, size))
        rows.append(
            {
                "name": name,
                "processes": ddp.ranks(),
                "device": records.device_name(),
                "image_size": size,
                "batch_size": batch_size,
                "params": len(gradients),
                "mult_adds": mult_adds,
                "compute_s": alone,
                "send_s": sending,
                "step_s": together,
                "rate": 3 * mult_adds * share / alone,
                "link": send_bytes(len(gradients), ddp.ranks()) / sending,
            }
        )
    return rows


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that `work` takes in the slower of the processes: the median of some repetitions."""
    work()
    spent = []
    for _ in range(STEPS):
        distributed.barrier()
        start = time.perf_counter()
        work()
        machine.synchronize()
        spent.append(time.perf_counter() - start)
    slowest = torch.tensor(statistics.median(spent), device=machine.device())
    distributed.all_reduce(slowest, distributed.ReduceOp.MAX)
    return slowest.item()


def scaling_markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table, with the model's prediction beside the measured step."""
    lines = [
        "| network | parameters | mult-adds an image | images a process | compute (s) | send (s) | "
        "step predicted (s) | step measured (s) | above the range (%) | "
        "break-even (images a process) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low = max(row["compute_s"], row["send_s"])
        high = row["compute_s"] + row["send_s"]
        even = break_even(
            row["params"], row["mult_adds"], row["processes"], row["rate"], row["link"]
        )
        lines.append(
            f"| {row['name']} at {row['image_size']} | {row['params']:,} | "
            f"{row['mult_adds'] / 1e6:,.1f} M | {row['batch_size'] // row['processes']} | "
            f"{row['compute_s']:.3f} | {row['send_s']:.3f} | {low:.3f} to {high:.3f} | "
            f"{row['step_s']:.3f} | {100 * max(row['step_s'] / high - 1, 0):.0f} | {even:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(save: bool = False, json: bool = False) -> int:
    """Measure what several processes compute and send (start it with torchrun).

    Args:
        save: also write results/bench/.
        json: a JSON list instead of a table.
    """
    with ddp.joined():
        rows = measure_scaling()
        if ddp.rank() > 0:
            return 0
    if save:
        bench.save_rows(rows, "scaling")
    print(bench.as_json(rows) if json else bench.as_text(rows))
    return 0


if __name__ == "__main__":
    start(main, "tools.scaling")
