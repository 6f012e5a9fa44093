"""figures/ and the README's table are what the models and the records give, to the byte."""

import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from common import machine, probe, zoo
from common.__main__ import main
from tools import documents, figures

FOLDER = machine.HOME / "figures"


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return figures.everything()


CHARTS = ("timeline", "predict", "speed", "accuracy_params", "accuracy_mult_adds")


def told(drawing: str) -> str:
    """A picture's text alternative, which names all that is drawn."""
    return re.findall(r"<title>(.*?)</title>", drawing, re.DOTALL)[0]


def test_every_picture_in_the_folder_is_drawn_from_the_models(drawn: dict[str, str]):
    stored = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.svg")}
    assert sorted(stored) == sorted(drawn), "run `make figures`; remove what no model draws"
    # Another matplotlib may draw a chart with other bytes: its text holds every number in it.
    key = {name: told if name in CHARTS else str for name in drawn}
    stale = [name for name in drawn if key[name](stored[name]) != key[name](drawn[name])]
    assert not stale, "run `make figures`"


def test_charts_are_the_same_bytes_each_time(drawn: dict[str, str]):
    assert figures.timeline() == drawn["timeline"]
    for name in CHARTS:
        root = ElementTree.fromstring(drawn[name])
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert "date" not in drawn[name].lower().split("<defs>")[0]
        assert "Matplotlib" not in drawn[name]


def written(drawing: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", drawing)


def test_the_timeline_names_every_architecture(drawn: dict[str, str]):
    words = set(written(drawn["timeline"]))
    for about in zoo.architectures().values():
        assert {about.name, about.added, str(about.year)} <= words
    assert told(drawn["timeline"]).startswith("1998 LeNet-5: shared kernels, pooling, 44,426")


def test_a_scatter_has_a_point_for_each_row():
    frame = pd.DataFrame(
        {"network": ["a", "b"], "accuracy": [90.0, 91.5], "params": [10_000, 2_000_000]}
    )
    drawing = figures.scatter(frame, "params", "parameters", "Accuracy")
    assert told(drawing) == "Accuracy: b 91.5 % at 2,000,000; a 90.0 % at 10,000."
    assert {"90.0  a", "91.5  b", "test accuracy (%)"} <= set(written(drawing))


def test_a_speed_chart_has_bars_as_long_as_the_ratios():
    row = {"name": "lenet5", "image_size": 28, "device": "a chip"}
    rows = [row | {"work": "training", "ratio": 10.0}, row | {"work": "evaluation", "ratio": 100.0}]
    drawing = figures.speed(rows)
    bars = re.findall(r'd="M (\S+) \S+\s+L (\S+) [^"]*" clip-path="[^"]*" style="fill: #', drawing)
    short, long = (float(end) - float(begin) for begin, end in bars)
    assert long == pytest.approx(2 * short, rel=1e-3)  # logarithmic, from 1
    assert {"10.0", "100.0", "lenet5 at 28, training"} <= set(written(drawing))


@pytest.mark.parametrize("name", figures.BLOCKS)
def test_a_block_s_counts_are_the_table_s(name: str, drawn: dict[str, str]):
    part, shape, title = figures.BLOCKS[name]
    table = probe.layers(zoo.build_on_meta(name).get_submodule(part), shape)
    words = written(drawn[f"block_{name}"])
    params, mult_adds = table["params"].sum(), table["mult_adds"].sum()
    assert words[:1] == [title.replace("'", "&#x27;")]
    assert f"{params:,} parameters, {mult_adds:,} mult-adds" in words
    counts = [int(w.split()[0].replace(",", "")) for w in words if w.endswith(" parameters")]
    assert sum(counts) == params


def test_every_network_has_its_diagram(drawn: dict[str, str]):
    for name in zoo.names():
        assert f"{zoo.variant(name).params:,} parameters" in drawn[name]
        assert 'role="img"' in drawn[name]
        assert told(drawn[name]).startswith(f"{name}: image to ")


def test_a_diagram_is_legible_at_notebook_width(drawn: dict[str, str]):
    for name in zoo.names():
        width = int(drawn[name].split('viewBox="0 0 ')[1].split()[0])
        assert width <= 580, f"{name}: {width} units shrink 13-point text below 8 pixels on a phone"


def test_the_tables_show_the_records_at_hand():
    for path, text in documents.documents().items():
        assert (machine.HOME / path).read_text(encoding="utf-8") == text, "run `make figures`"


def test_the_readme_s_example_is_what_the_command_prints(capsys):
    """To a point of a per cent: processors round differently."""
    readme = (machine.HOME / "README.md").read_text(encoding="utf-8")
    line = next(line for line in readme.splitlines() if line.startswith("samples/photos/cat.jpg: "))
    assert main(["predict", figures.SEER, str(figures.CAT)]) == 0
    found = re.findall(r"(\w+) ([\d.]+)%", capsys.readouterr().out)
    for (name, share), (expected, stated) in zip(
        found, re.findall(r"(\w+) ([\d.]+)%", line), strict=True
    ):
        assert name == expected
        assert float(share) == pytest.approx(float(stated), abs=1)


@pytest.mark.parametrize(
    "path", ["README.md", "docs/scaling.md", "results/README.md", "docs/glossary.md"]
)
def test_no_link_to_a_missing_file(path: str):
    page = machine.HOME / path
    links = [part.split(")")[0] for part in page.read_text(encoding="utf-8").split("](")[1:]]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
