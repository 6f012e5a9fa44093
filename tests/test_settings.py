"""The reports' settings as notebooks write them out: the same as in the experiments' tables."""

import ast
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common import zoo
from common.config import Config
from common.experiments import plans
from common.machine import PROFILES
from tools import notebooks


def trained_with(notebook: str, cell: str, profile: str) -> Config:
    """What a cell of a notebook gives to `fit`, where `profile` chooses the budget."""
    (path,) = notebooks.paths([notebook])
    sources = {c.id: c.source for c in notebooks.read(path).cells}
    names = {
        "Config": Config,
        "machine": SimpleNamespace(choose=lambda **budgets: budgets[profile]),
        "torch": torch,
        "mnist": None,
        "fit": lambda net, data, config, **how: config,
        **dict.fromkeys(classes(notebook), nn.Identity),
    }
    exec("from dataclasses import replace", names)
    for source in (sources["budget"], sources[cell]):
        exec(source, names)
    given = [value for name, value in names.items() if name.endswith("run")]
    assert len(given) == 1, f"{cell} trains {len(given)} nets"
    return given[0]


def classes(notebook: str) -> list[str]:
    """The classes that a notebook's model cells define."""
    (path,) = notebooks.paths([notebook])
    source = zoo.NotebookLoader(path).get_data("").decode()
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("cell", "experiment", "network"),
    [("train-classic", "report-d", "lenet5"), ("train-modern", "report-a", "lenet5_bn")],
)
def test_a_report_s_settings_are_those_of_its_experiment(cell, experiment, network, profile):
    plan = plans(experiment, profile, only=[network])[0]
    assert not plan.options
    assert trained_with("01", cell, profile) == plan.config
