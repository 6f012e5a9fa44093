"""Settings as notebooks write them out: the same as in the experiments' tables."""

import ast
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from common import zoo
from common.config import Config
from common.experiments import plans
from common.machine import PROFILES, choose
from tools import notebooks


def sources_of(notebook: str) -> dict[str, str]:
    """A notebook's cells by their id."""
    (path,) = notebooks.paths([notebook])
    return {cell.id: cell.source for cell in notebooks.read(path).cells}


def trained_with(notebook: str, cell: str, profile: str) -> list[Config]:
    """What a cell of a notebook gives to `fit`, in order, where `profile` chooses the budget."""
    sources, given = sources_of(notebook), []
    machine = SimpleNamespace(
        choose=lambda **budgets: budgets[profile], profile=lambda: profile, device=lambda: "cpu"
    )
    names = {
        "Config": Config,
        "fit": lambda net, images, config, **how: given.append(config) or MagicMock(),
        "machine": machine,
        "torch": torch,
        **{name: MagicMock() for name in ("mnist", "data", "zoo", "trained", "look", "Batches")},
        "judge": lambda *_: SimpleNamespace(accuracy=0.5),
        "evaluate": lambda *_: SimpleNamespace(accuracy=0.5),
        **dict.fromkeys(classes(notebook), nn.Identity),
    }
    names["data"].load.return_value = SimpleNamespace(
        source="", test=SimpleNamespace(labels=torch.arange(10))
    )
    exec("from dataclasses import replace", names)
    for source in (sources["budget"], sources[cell]):
        exec(source, names)
    return given


def classes(notebook: str) -> list[str]:
    """The classes that a notebook's model cells define."""
    (path,) = notebooks.paths([notebook])
    source = zoo.NotebookLoader(path).get_data("").decode()
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_reports_settings_are_those_of_their_experiments(profile):
    expected = [
        plans(experiment, profile, only=[network])[0]
        for experiment, network in (("report-d", "lenet5"), ("report-a", "lenet5_bn"))
    ]
    assert not any(plan.options for plan in expected)
    assert trained_with("01", "train-reports", profile) == [plan.config for plan in expected]


@pytest.mark.parametrize("names", [PROFILES[:1], PROFILES[1:], (*PROFILES, "night")])
def test_settings_are_given_for_all_three_profiles_and_no_other(names):
    with pytest.raises(ValueError, match="needs the profiles"):
        choose(**{name: {"epochs": 1} for name in names})


PHOTOS = [key for key in zoo.architectures() if "photos-net" in sources_of(key)]


@pytest.mark.parametrize("notebook", PHOTOS)
def test_photographs_are_trained_on_by_the_recipe_of_cifar10(notebook):
    """`full` trains the net itself; elsewhere its weights are at hand."""
    net = zoo.architectures()[notebook].photo
    (plan,) = plans("cifar10", "full", only=[net])
    assert trained_with(notebook, "photos-net", "full") == [plan.config]
    assert trained_with(notebook, "photos-net", "laptop") == []
    source = sources_of(notebook)["photos-net"]
    assert source.count(f'"{net}"') == 2


def test_some_notebooks_show_photographs():
    assert "resnet" in PHOTOS
