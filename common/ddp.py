"""Several processes, one training: each computes its share of every batch.

`torchrun --nproc-per-node=2 -m common train …` starts the processes, which is all that a user does.
In a process that torchrun did not start, everything here does nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn

from common import machine


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that torchrun started, and leaves them at the end.

    They talk through NCCL where each has a GPU, else through Gloo.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    gpus = torch.cuda.device_count() if machine.gpu_works() else 0
    if "LOCAL_RANK" not in os.environ:
        raise ValueError("WORLD_SIZE is set, but not LOCAL_RANK: start the processes by torchrun.")
    local = int(os.environ["LOCAL_RANK"])
    if gpus and local >= gpus:
        raise ValueError(
            f"process {local + 1} of this machine has no GPU: there are {gpus}. "
            f"Start torchrun with --nproc-per-node={gpus}."
        )
    distributed.init_process_group("nccl" if gpus else "gloo")
    yield
    # Not in a `finally`: a process that fails must end at once, so that torchrun stops the others.
    distributed.destroy_process_group()


def running() -> bool:
    """Whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if running() else 0


def ranks() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if running() else 1


def averaging(model: nn.Module) -> nn.Module:
    """The model, which now averages its gradients over all processes during backward."""
    if not running():
        return model
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def same_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers: batch normalisation's running statistics."""
    if running():
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all processes."""
    if not running():
        return values
    values = values.to(machine.device())  # where processes with GPUs can exchange it
    distributed.all_reduce(values)
    return values


def from_first(value):
    """The first process's `value`, in every process."""
    if not running():
        return value
    box = [value]
    distributed.broadcast_object_list(box, 0)
    return box[0]
