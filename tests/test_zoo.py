"""The zoo: the notebooks' own models by name, and the reports' counts of them."""

import inspect
import json
import multiprocessing
import pickle
import sys
import traceback

import pytest
import torch
from torch import nn

from common import compare, probe, zoo

STATED = compare.reports()["stated"]
CLASS_ACCURACY = compare.reports()["class_accuracy"]
PAPER_PARAMS = compare.reports()["paper_params"]
LAYER_PARAMS = compare.reports()["layer_params"]
LAYER_SHAPES = compare.reports()["layer_shapes"]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------------- interface


def test_names_are_in_the_order_of_the_course():
    names = zoo.names()
    assert len(set(names)) == len(names)
    assert names[: names.index("lenet5_bn") + 1] == ("lenet5", "lenet5_bn")
    notebooks = [zoo.notebook_of(name).name for name in names]
    assert notebooks == sorted(notebooks)
    assert notebooks[0] == "01_lenet.ipynb"


def test_the_text_of_the_cells_names_what_they_define():
    for notebook in dict.fromkeys(zoo.index()[0].values()):
        rows = [row.name for row in zoo.module_of(notebook).VARIANTS]
        assert rows == [name for name in zoo.names() if zoo.notebook_of(name) == notebook]


YEARS = {
    "lenet": 1998, "alexnet": 2012, "vgg": 2014, "nin": 2013, "googlenet": 2014, "resnet": 2015,
    "mobilenet": 2017, "densenet": 2016,
}  # fmt: skip


def test_every_notebook_with_networks_says_what_is_true_of_them():
    assert {name: about.year for name, about in zoo.architectures().items()} == YEARS
    for name, about in zoo.architectures().items():
        for network in (about.photo, about.course["network"], about.bench["network"]):
            assert zoo.notebook_of(network).stem[3:] == name


@pytest.mark.parametrize("name", zoo.names())
def test_each_variant_is_what_its_row_says(name):
    row = zoo.variant(name)
    net = zoo.build_on_meta(name)
    assert (row.name, count(net)) == (name, row.params)
    assert probe.mult_adds(net, (1, *row.input_shape)) == row.mult_adds
    assert row.source


@pytest.mark.parametrize("name", zoo.names())
def test_each_variant_takes_other_channels_and_classes(name):
    C, H, W = zoo.variant(name).input_shape
    model = zoo.build_on_meta(name, in_channels=C + 1, num_classes=7).eval()
    with torch.no_grad():
        assert model(torch.empty(2, C + 1, H, W, device="meta")).shape == (2, 7)


def test_options_reach_the_builder():
    model = zoo.build("lenet5", activation=nn.Tanh)
    assert sum(isinstance(m, nn.Tanh) for m in model.modules()) == 4
    assert not any(isinstance(m, nn.Sigmoid) for m in model.modules())


@pytest.mark.parametrize("ask", [zoo.build, zoo.variant, zoo.build_on_meta])
def test_an_unknown_name_gets_the_nearest(ask):
    with pytest.raises(ValueError, match=r"'LeNet-5'.*Did you mean 'lenet5'\?.*lenet5_bn"):
        ask("LeNet-5")
    with pytest.raises(ValueError, match="'zzz'") as error:
        ask("zzz")
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels=0"),
        ({"in_channels": -1}, "in_channels=-1"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_classes": 1}, "num_classes=1; expected 2 or more"),
    ],
)
def test_bad_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.build("lenet5", **options)


def test_an_option_that_a_network_does_not_have():
    with pytest.raises(ValueError, match=r"lenet5 cannot be built with \{'wdth': 2\}.*wdth"):
        zoo.build("lenet5", wdth=2)


def test_the_name_of_a_model():
    from common.zoo.resnet import ResNet

    assert zoo.name_of(zoo.build("resnet18_cifar")) == "resnet18_cifar"
    assert zoo.name_of(ResNet()) == "resnet18"  # the first row of its class
    assert zoo.name_of(nn.Linear(1, 1)) == "Linear"


def test_width():
    assert [zoo.scaled(64, w) for w in (1.0, 0.5, 0.01)] == [64, 32, 1]
    with pytest.raises(ValueError, match=r"width=0\.001 leaves 0 of 64 channels"):
        zoo.scaled(64, 0.001)


# --------------------------------------------------------------------- models out of a notebook


def test_source_can_be_read():
    source = inspect.getsource(zoo.variant("lenet5").build)
    assert source.startswith("class LeNet5(nn.Sequential):")
    assert source.rstrip().endswith(")")
    cells = json.loads((zoo.NOTEBOOKS / "01_lenet.ipynb").read_text(encoding="utf-8"))["cells"]
    assert source.rstrip() in "\n".join("".join(cell["source"]) for cell in cells)


def test_a_traceback_shows_the_notebooks_line():
    with pytest.raises(RuntimeError) as error:
        zoo.variant("lenet5").build(in_channels=-1)
    text = "".join(traceback.format_exception(error.value))
    assert '"01_lenet.ipynb[model]", line ' in text
    assert "conv1=nn.Conv2d(in_channels, 6, kernel_size=5)," in text


def in_another_process(pickled: bytes) -> tuple[str, int, int, bool]:
    """What a fresh process makes of a pickled model, and of a name."""
    model = pickle.loads(pickled)
    fits = model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    return type(model).__module__, count(model), count(zoo.build("lenet5_bn")), fits


def test_pickle_and_a_spawned_process():
    model = zoo.build("lenet5")
    pickled = pickle.dumps(model)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(pickle.loads(pickled)(x), model(x))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(in_another_process, (pickled,)).get(timeout=120)
    assert found == ("common.zoo.lenet", 44_426, 61_750, True)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A function that writes a notebook of one's own and shows the zoo nothing else."""

    def forget():
        zoo.index.cache_clear()
        sys.modules.pop("common.zoo.toy", None)

    def write(*cells, name="03_toy.ipynb"):
        made = [{"cell_type": kind, "source": source} for kind, source in cells]
        (tmp_path / name).write_text(json.dumps({"cells": made}), encoding="utf-8")
        forget()

    monkeypatch.setattr(zoo, "NOTEBOOKS", tmp_path)
    yield write
    forget()


MODEL = """\
#| model
from torch import nn
from common.zoo import Variant

def toy(in_channels, num_classes):
    return nn.Sequential(nn.Conv2d(in_channels, {filters}, 1), nn.Flatten(), nn.LazyLinear(num_classes))

VARIANTS = [Variant("toy", toy, (1, 2, 2), 0, 0, "this test")]
"""  # noqa: E501


def test_only_marked_code_cells_count(toy, tmp_path):
    toy(
        ("markdown", "#| model\nraise RuntimeError('prose was run')"),
        ("code", ["raise RuntimeError(", "'an unmarked cell was run')"]),
        ("code", "x = 1\n#| model\nraise RuntimeError('a late mark was heeded')"),
        ("code", MODEL.format(filters=3).splitlines(keepends=True)),  # as notebooks store it
    )
    toy_free = {"cells": [{"cell_type": "code", "source": "print(1)"}]}
    (tmp_path / "04_plain.ipynb").write_text(json.dumps(toy_free))  # no models: passed over
    zoo.index.cache_clear()
    assert zoo.names() == ("toy",)
    assert zoo.build("toy")[0].out_channels == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["03_toy.ipynb", "04_plain.ipynb"]


def test_an_edited_notebook_is_read_anew(toy):
    for filters in (3, 4):
        toy(("code", MODEL.format(filters=filters)))
        assert zoo.build("toy")[0].out_channels == filters


def test_a_broken_notebook_breaks_itself_alone(toy):
    toy(("code", MODEL.format(filters=3)))
    toy(("code", "#| model\ndef broken(:\n    pass"), name="04_broken.ipynb")
    raises = MODEL.format(filters=9).replace("toy", "raises") + "\n1 / 0"
    toy(("code", raises), name="05_raises.ipynb")
    (zoo.NOTEBOOKS / "06_odd.ipynb").write_text("{")
    zoo.index.cache_clear()
    assert zoo.build("toy")[0].out_channels == 3
    ends = raises.replace("raises", "ends").replace("1 / 0", "import sys; sys.exit(3)")
    toy(("code", ends), name="07_ends.ipynb")
    with pytest.raises(ValueError, match=r"07_ends\.ipynb do not run: SystemExit: 3"):
        zoo.build("ends")
    assert zoo.names() == ("toy", "raises", "ends")
    with pytest.raises(ValueError, match=r"05_raises\.ipynb do not run: ZeroDivisionError"):
        zoo.build("raises")
    problems = zoo.index()[1]
    assert len(problems) == 2
    assert problems[0].startswith("04_broken.ipynb is left out: invalid syntax in 'def broken(:'")
    assert problems[1].startswith("06_odd.ipynb is left out")
    assert zoo.architectures() == {}


@pytest.mark.parametrize("copy", ["03_toy_mine.ipynb", "03_toy-Copy1.ipynb", "07_later.ipynb"])
def test_a_copy_does_not_take_over(toy, copy):
    toy(("code", MODEL.format(filters=3)))
    toy(("code", MODEL.format(filters=5)), name=copy)
    assert zoo.build("toy")[0].out_channels == 3
    (problem,) = zoo.index()[1]
    assert problem == f"{copy} defines toy too: that of 03_toy.ipynb counts"


# --------------------------------------------------------------------------- the reports' figures


def as_printed(value: float) -> str:
    """A count as torchinfo prints it: two decimals of the fitting unit."""
    unit, letter = next((u, n) for u, n in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if value >= u)
    return f"{value / unit:.2f} {letter}"


@pytest.mark.parametrize("row", STATED, ids=lambda row: f"{row.report}-{row.name}")
def test_reported_totals(row):
    name = row.network
    model = zoo.build_on_meta(name)
    assert count(model) == row.params == zoo.variant(name).params
    if row.mult_adds is not None:
        table = probe.layers(model, (row.batch_size, *zoo.variant(name).input_shape))
        assert as_printed(table["mult_adds"].sum()) == as_printed(row.mult_adds)


@pytest.mark.parametrize("name", PAPER_PARAMS)
def test_papers_totals(name):
    assert count(zoo.build_on_meta(name, in_channels=3, num_classes=1000)) == PAPER_PARAMS[name]


def by_part(name: str, parts: list[str]) -> list[tuple[str, tuple[int, ...], int]]:
    """(part, output shape, parameters) of named layers or blocks of a model."""
    table = probe.layers(zoo.build_on_meta(name), (1, *zoo.variant(name).input_shape))
    found = []
    for part in parts:
        inside_part = [layer == part or layer.startswith(f"{part}.") for layer in table["layer"]]
        rows = table[inside_part]
        assert len(rows), f"{name} has no {part}"
        found.append((part, rows["output"].iloc[-1][1:], int(rows["params"].sum())))
    return found


@pytest.mark.parametrize("name", LAYER_PARAMS)
def test_reported_parameters_by_layer(name):
    reported = LAYER_PARAMS[name]
    found = by_part(name, [part for part, _ in reported])
    assert [[part, params] for part, _, params in found] == reported


@pytest.mark.parametrize("name", LAYER_SHAPES)
def test_reported_shapes_by_layer(name):
    reported = LAYER_SHAPES[name]
    found = by_part(name, [part for part, _ in reported])
    assert [[part, list(shape)] for part, shape, _ in found] == reported


def test_lenets_layers_are_all_reported():
    """Nothing with parameters is missing from the table: its rows add up to the total."""
    assert sum(params for _, params in LAYER_PARAMS["lenet5_bn"]) == 61_750
    assert {"lenet5", "lenet5_bn"} <= LAYER_SHAPES.keys() & {r.network for r in STATED}


def test_counts_are_printed_as_torchinfo_does():
    printed = [as_printed(x) for x in (27_083_456, 60.08e9, 483.499e9, 1.25e12)]
    assert printed == ["27.08 M", "60.08 G", "483.50 G", "1.25 T"]


@pytest.mark.real_device
def test_a_network_can_be_compiled_whole():
    net = zoo.build("lenet5").eval()
    x = torch.randn(2, 1, 28, 28)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), net(x))
