"""figures/ and the README's table are what the models and the records give, to the byte."""

import pytest

from common import machine, zoo
from tools import figures

FOLDER = machine.HOME / "figures"


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return figures.everything()


def test_every_picture_in_the_folder_is_drawn_from_the_models(drawn: dict[str, str]):
    stored = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.svg")}
    assert sorted(stored) == sorted(drawn), "run `make figures`; remove what no model draws"
    stale = [name for name in drawn if stored[name] != drawn[name]]
    assert not stale, "run `make figures`"


def test_every_network_has_its_diagram(drawn: dict[str, str]):
    for name in zoo.names():
        assert f"{zoo.variant(name).params:,} parameters" in drawn[name]
        assert 'role="img"' in drawn[name]
        assert "<title>" in drawn[name]


def test_a_diagram_is_legible_at_notebook_width(drawn: dict[str, str]):
    for name in zoo.names():
        width = int(drawn[name].split('viewBox="0 0 ')[1].split()[0])
        assert width <= 900, f"{name}: {width} units shrink 12-point text below 12 pixels"


def test_the_tables_show_the_records_at_hand():
    for path, text in figures.documents().items():
        assert (machine.HOME / path).read_text(encoding="utf-8") == text, "run `make figures`"


@pytest.mark.parametrize(
    "path", ["README.md", "docs/scaling.md", "results/README.md", "CONTRIBUTING.md"]
)
def test_no_link_to_a_missing_file(path: str):
    page = machine.HOME / path
    links = [part.split(")")[0] for part in page.read_text(encoding="utf-8").split("](")[1:]]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
