"""Writes docs/glossary.md: every term with the sentence of the notebook that explains it.

A notebook sets a term in bold once, in the sentence that says what it means, and nothing else but
its claim and labels, which end in a full stop.
"""

import re
from pathlib import Path
from typing import NamedTuple

from common import machine
from tools import notebooks, start

PAGE = machine.HOME / "docs/glossary.md"
BOLD = re.compile(r"\*\*([^*]+)\*\*")
BULLET = re.compile(r"^(?:[-*]|\d+\.) ")
HEAD = """# Glossary

Each term with the sentence that explains it, and the notebook where that sentence stands.
`python -m tools.glossary` writes this page from the notebooks.

| term | what it means | notebook |
|---|---|---|
"""


class Term(NamedTuple):
    """A term, the sentence that explains it, and the notebook where it stands."""

    name: str
    sentence: str
    path: Path


def terms() -> list[Term]:
    """The terms in the order of the course."""
    found = []
    for path in notebooks.paths():
        for cell in notebooks.read(path).cells:
            if cell.cell_type != "markdown":
                continue
            for line in cell.source.splitlines():
                names = [name for name in BOLD.findall(line) if not name.endswith(".")]
                found += [Term(name, BULLET.sub("", line.strip()), path) for name in names]
    return found


def page() -> str:
    """The glossary in markdown, by the alphabet."""
    rows = []
    for name, sentence, path in sorted(terms(), key=lambda term: term.name.casefold()):
        told = BOLD.sub(r"\1", sentence).replace("|", r"\|")
        rows.append(f"| {name} | {told} | [{path.stem}](../notebooks/{path.name}) |\n")
    return HEAD + "".join(rows)


def main() -> int:
    """Write docs/glossary.md from the notebooks."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    start(main, "tools.glossary")
