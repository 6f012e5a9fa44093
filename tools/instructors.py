"""Writes the parts of docs/instructors.md that come from the course itself."""

import re

from common import machine
from common.exercises import catalogue
from tools import notebooks, start

PAGE = machine.HOME / "docs" / "instructors.md"


def times() -> str:
    """What each notebook takes, as its own title says."""
    rows = ["| notebook | laptop profile | full profile |", "|---|---|---|"]
    for path in notebooks.paths():
        title = notebooks.read(path).cells[0].source
        took = {
            line.split("|")[1].strip(" `"): line.split("|")[-2].strip()
            for line in title.splitlines()
            if line.startswith(("| `laptop`", "| `full`"))
        }
        trains = "This notebook trains nothing" not in title
        cells = [
            took.get(profile, "not stated" if trains else "seconds: it trains nothing")
            for profile in ("laptop", "full")
        ]
        rows.append(f"| {path.stem} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def mistakes() -> str:
    """Each exercise with the sentences that its typical mistakes are told."""
    parts, notebook = [], ""
    for name, exercise in catalogue().items():
        if not exercise.mistakes:
            continue
        if name.split(".")[0] != notebook:
            notebook = name.split(".")[0]
            parts.append(f"\n### {notebook}\n")
        parts.append(f"- `{exercise.name}`")
        parts += [f"  - {sentence}" for _, sentence in exercise.mistakes]
    return "\n".join(parts).strip()


def written(page: str) -> str:
    """The page with its marked parts written anew. Raises ValueError where a mark is missing."""
    for name, write in (("times", times), ("mistakes", mistakes)):
        mark = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not mark.search(page):
            raise ValueError(f"{PAGE.name} has no marks for {name!r}.")
        text = write()
        page = mark.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)
    return page


def main() -> None:
    """Rewrite those parts of docs/instructors.md."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    start(main, "tools.instructors")
