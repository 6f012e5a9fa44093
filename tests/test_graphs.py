"""Recorded passes: the same training as without them, and only for nets that repeat themselves."""

import gc
import itertools
import random
import weakref
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from common import data, graphs, machine, zoo
from common.config import Config
from common.train import fit

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Plain(nn.Module):
    def __init__(self, forward=None):
        super().__init__()
        self.calls, self.seen = 0, []
        self.last, self.kept = deque([0], maxlen=1), SimpleNamespace(calls=0)
        self.count, self.steps = itertools.count(), torch.zeros(())
        self.dice, self.numpy, self.torch = (
            random.Random(0), np.random.default_rng(0), torch.Generator(),
        )  # fmt: skip
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(0.1), nn.Linear(8, 10),
        )  # fmt: skip
        self.change = forward

    def forward(self, x):
        return self.body(self.change(self, x) if self.change else x)


def without_dropout(net):
    """Each device draws dropout by its own generator; a CPU's is among those looked at."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


def counts(net, x):
    net.calls += 1
    return x * net.calls


def remembers(net, x):
    net.seen.append(len(x))
    return x


def draws_in_python(net, x):
    return x * random.choice([0.5, 1.0])


def draws_on_the_cpu(net, x):
    return x * torch.rand(()).to(x.device)


def counts_in_a_tensor(net, x):
    net.steps += 1
    return x


def counts_in_an_object(net, x):
    net.kept.calls += 1
    return x


def counts_by_an_iterator(net, x):
    next(net.count)
    return x


def remembers_the_last(net, x):
    net.last.append(net.last[-1] + 1)
    return x


def draws_by_its_own_python(net, x):
    return x * net.dice.choice([0.5, 1.0])


def draws_by_its_own_numpy(net, x):
    return x * float(net.numpy.random())


def draws_by_its_own_torch(net, x):
    return x * torch.rand((), generator=net.torch).to(x.device)


def reads_a_value(net, x):
    return x if x.mean().item() > 0 else -x


ALIVE = [
    counts, counts_in_a_tensor, counts_in_an_object, counts_by_an_iterator, remembers,
    remembers_the_last, draws_in_python, draws_on_the_cpu, draws_by_its_own_python,
    draws_by_its_own_numpy, draws_by_its_own_torch,
]  # fmt: skip


@pytest.fixture
def no_gpu_needed(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)


@pytest.mark.parametrize("change", ALIVE)
def test_a_forward_pass_in_which_python_does_something_is_not_repeated(no_gpu_needed, change):
    assert not graphs.repeats(without_dropout(Plain(change)), torch.rand(2, 1, 8, 8))


def test_what_cannot_be_looked_at_is_not_repeated(no_gpu_needed, tmp_path):
    net = without_dropout(Plain())
    assert graphs.repeats(net, torch.rand(2, 1, 8, 8))
    with (tmp_path / "log").open("w") as net.log:
        assert not graphs.repeats(net, torch.rand(2, 1, 8, 8))


def begins_to_iterate(net, x):
    net.log = iter(n for n in ())
    return x


def test_what_can_no_longer_be_looked_at_is_not_repeated(no_gpu_needed):
    net = without_dropout(Plain(begins_to_iterate))
    assert not graphs.repeats(net, torch.rand(2, 1, 8, 8))


def test_a_net_of_layers_repeats_itself_unless_it_has_hooks(no_gpu_needed):
    net, x = without_dropout(Plain()), torch.rand(2, 1, 8, 8)
    assert graphs.repeats(net, x)
    hook = net.body[0].register_forward_hook(lambda *_: None)
    assert not graphs.repeats(net, x)
    hook.remove()
    assert graphs.repeats(net, x)
    hook = net.body[0].register_full_backward_pre_hook(lambda *_: None)
    assert not graphs.repeats(net, x)
    hook.remove()
    weight = net.body[0].weight
    for listen in (weight.register_hook, weight.register_post_accumulate_grad_hook):
        hook = listen(lambda _: None)
        assert not graphs.repeats(net, x)
        hook.remove()
        assert graphs.repeats(net, x)


@pytest.mark.parametrize("name", ["lenet5", "googlenet", "densenet121"])
def test_the_course_s_nets_repeat_themselves(no_gpu_needed, name):
    net = without_dropout(zoo.build(name, 1, 10))
    assert graphs.repeats(net, torch.rand(2, 1, *zoo.variant(name).input_shape[1:]))


def test_a_trial_changes_nothing(no_gpu_needed):
    net = Plain()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with graphs.as_before(net):
        net(torch.rand(4, 1, 8, 8))
        assert net.body[1].num_batches_tracked == 1
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("change", ALIVE)
def test_a_trial_goes_unnoticed(no_gpu_needed, change):
    """Or a training that goes on in a new process would not be the unbroken one."""
    net, x = without_dropout(Plain(change)), torch.rand(2, 1, 8, 8)
    before = graphs.state_of_python(net)
    assert graphs.record(net, x) is net
    assert graphs.state_of_python(net) == before


def test_recordings_are_gone_when_the_net_is():
    """At once, though they refer to each other: no forked process must be the one to find them."""

    class Recording:
        def __init__(self):
            self.other = self

    net = graphs.Replayed(Plain())
    net.recorded[torch.Size([1])] = Recording()
    alive = weakref.ref(net.recorded[torch.Size([1])])
    gc.disable()
    try:
        del net
        assert alive() is None
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------ on a GPU


@pytest.fixture
def digits():
    return data.load("digits")


def losses(digits, net, **settings):
    config = Config(
        **({"epochs": 2, "batch_size": 100, "lr": 1e-3, "precision": "fp32"} | settings)
    )
    return torch.tensor(fit(net, digits, config, show=False).batch_losses)


def seeded(build, *args):
    torch.manual_seed(0)
    return build(*args)


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_recorded_training_is_the_same_as_one_step_by_step(digits, monkeypatch, precision):
    recorded = losses(digits, seeded(Plain), precision=precision, augment=("crop",))
    monkeypatch.setattr(graphs, "record", lambda model, x: model)
    assert torch.allclose(
        recorded, losses(digits, seeded(Plain), precision=precision, augment=("crop",)), atol=1e-3
    )


@needs_gpu
def test_a_training_leaves_no_recordings_behind(digits):
    gc.collect()
    losses(digits, Plain())
    assert not any(isinstance(found, torch.cuda.CUDAGraph) for found in gc.get_objects())


@needs_gpu
@pytest.mark.parametrize("change", [*ALIVE, reads_a_value])
def test_what_cannot_be_recorded_is_trained_step_by_step(digits, change):
    net = seeded(Plain, change)
    found = losses(digits, net, batch_size=((1, 100), (1, 200)))
    assert found.isfinite().all()
    assert net.calls > 20 or change is not counts
    assert found[-3:].mean() < found[:3].mean()


@needs_gpu
def test_each_shape_of_a_batch_is_recorded_once(digits, monkeypatch):
    shapes, record = [], graphs.record

    def noted(model, x):
        shapes.append(len(x))
        found = record(model, x)
        assert found is not model
        return found

    monkeypatch.setattr(graphs, "record", noted)
    losses(digits, Plain(), epochs=3, batch_size=((2, 100), (1, 50)))
    assert len(shapes) == len(set(shapes)) <= 4


@needs_gpu
@pytest.mark.parametrize("name", ["lenet5_bn", "resnet18_cifar", "densenet_cifar"])
def test_the_same_seed_agrees_on_cpu_and_gpu(digits, monkeypatch, name):
    """In fp32, without TF32: a few steps; later ones drift, as sums in another order do."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    settings = {
        "epochs": 1, "train_images": 160, "batch_size": 32, "image_size": 32, "lr": 1e-4,
        "augment": ("crop", "flip"),
    }  # fmt: skip
    nets = [without_dropout(seeded(zoo.build, name, 1, 10)) for _ in range(2)]
    on_gpu = losses(digits, nets[0], **settings)
    monkeypatch.setattr(machine, "gpu_works", lambda: False)
    on_cpu = losses(digits, nets[1], **settings)
    assert next(nets[0].parameters()).device != next(nets[1].parameters()).device
    assert torch.allclose(on_gpu, on_cpu, rtol=2e-3)


@needs_gpu
def test_too_large_a_batch_is_explained(digits):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01)  # of 80 GB: 800 MB
    try:
        with pytest.raises(MemoryError, match="batch"):
            losses(digits, zoo.build("vgg11", 1, 10), image_size=224, batch_size=256)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert losses(digits, Plain(), epochs=1).isfinite().all()
