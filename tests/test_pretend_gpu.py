"""The pretended GPU refuses what a real one does, and nothing else."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.pretend_gpu import GPU, PretendedGpu


@pytest.fixture(autouse=True)
def pretended():
    with PretendedGpu():
        yield


def test_two_devices_in_one_operation():
    here, there = torch.ones(2, 3), torch.ones(2, 3).to(GPU)
    for mixed in (lambda: here + there, lambda: torch.cat([there, here]), lambda: here[there > 0]):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    assert (there + torch.tensor(1.0)).sum().item() == 12  # a scalar may lie anywhere
    assert here.copy_(there).device == torch.device("cpu")
    assert (here.to(there) + there).cpu().numpy().sum() == 12


def test_arrays_are_made_of_what_lies_on_the_cpu():
    there = torch.ones(3, device=GPU)
    for array in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="can't convert cuda"):
            array()
    assert there.tolist() == [1, 1, 1]


def test_a_net_and_its_images_must_lie_together():
    net, x = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.ones(4, 3)
    with pytest.raises(RuntimeError, match="same device"):
        net(x.to(GPU))
    net.to(GPU)
    with pytest.raises(RuntimeError, match="same device"):
        net(x)
    optimizer = torch.optim.AdamW(net.parameters())
    net(x.to(GPU)).sum().backward()
    optimizer.step()
    held = [*net.state_dict().values(), *copy.deepcopy(net).parameters(), net[0].weight.grad]
    held += [state["exp_avg"] for state in optimizer.state.values()]
    assert {tensor.device for tensor in held} == {GPU}
    assert net.cpu()(x).device == torch.device("cpu")
