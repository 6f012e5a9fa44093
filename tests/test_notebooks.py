"""The notebooks: rules for what is stored, runs of copies, and the functions that keep them so.

Each rule returns its offences as sentences. `test_rule` holds every notebook to every rule, and
`test_rule_sees` shows, on a small notebook, that the rule notices what it is there for.
"""

import ast
import copy
import os
import re
import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from common import machine, zoo
from common.exercises import catalogue
from tools import notebooks

MOST_BYTES = 300_000
LONGEST = 55  # lines of a cell or a class: GoogLeNet, written out module by module
MARKER = "# NBVAL_CHECK_OUTPUT"
PICTURES = ("image/png", "image/jpeg", "image/gif", "image/svg+xml")
BAR = re.compile(r"\d%\||[▏▎▍▌▋▊▉█]|\r|[\d?][kM]?(?:(?:it|batch|B)/s|s/(?:it|batch|B))\b")
FOLDER = re.compile(r"(?<![\w.<:/])/(?!kaggle/|content/)[A-Za-z_][\w.-]*/[\w.-]+|\b[A-Z]:\\\w")
ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|et al|etc|cf|vs|ca|approx|resp|Figs?|Eqs?|Sec|Chap|Proc|Nos?|Dr|Prof|St"
    r"|(?<!eport )[A-Z])\."  # "Y. LeCun", but "as in report A."
)
SECOND_SENTENCE = re.compile(r"[.?!…][)\"'”’*_]*\s+[(\"'“‘*_]*[A-Z]")

Rule = Callable[[NotebookNode, str], Iterator[str]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def load(path: Path) -> NotebookNode:
    """The notebook as it is stored: nothing added, nothing repaired."""
    return nbformat.v4.reads(path.read_text(encoding="utf-8"))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parse(cell: NotebookNode) -> ast.Module:
    """The cell's syntax tree, after IPython's own commands have become Python."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def texts(cell: NotebookNode) -> Iterator[str]:
    """All that a code cell's outputs say, without the pictures' bytes."""
    for output in cell.outputs:
        for value in (output.get("text"), *output.get("data", {}).values()):
            if isinstance(value, str):
                yield re.sub(r"data:image/[^\"' )]+", "", value)


# --------------------------------------------------------------------------------------- the file


@rule
def size(notebook: NotebookNode, name: str) -> Iterator[str]:
    count = len(nbformat.v4.writes(notebook).encode())
    if count > MOST_BYTES:
        yield f"{count:,} bytes, more than {MOST_BYTES:,}"


@rule
def ids(notebook: NotebookNode, name: str) -> Iterator[str]:
    found = [cell.get("id") for cell in notebook.cells]
    if None in found:
        yield f"cell {found.index(None)} has no id"
    for twice in {i for i in found if i and found.count(i) > 1}:
        yield f"the id {twice} is given twice"


@rule
def metadata(notebook: NotebookNode, name: str) -> Iterator[str]:
    if notebook.metadata != notebooks.METADATA:
        yield f"the metadata is {notebook.metadata}"
    for cell in notebook.cells:
        if cell.metadata or any(o.get("metadata") for o in cell.get("outputs", [])):
            yield f"{cell.id} or an output of it has metadata"


@rule
def counts(notebook: NotebookNode, name: str) -> Iterator[str]:
    found = [cell.execution_count for cell in code_cells(notebook)]
    if found != list(range(1, len(found) + 1)):
        yield f"execution counts are {found}"
    for cell in code_cells(notebook):
        inside = {o.execution_count for o in cell.outputs if "execution_count" in o}
        if inside - {cell.execution_count}:
            yield f"{cell.id} has the count {cell.execution_count}, its output {inside}"


# ------------------------------------------------------------------------------------- the outputs


@rule
def outputs(notebook: NotebookNode, name: str) -> Iterator[str]:
    if not any(cell.outputs for cell in code_cells(notebook)):
        yield "no outputs are stored"
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"{cell.id} stores the error {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"{cell.id} stores standard error: {output.text[:60]!r}"
            if any("widget" in kind for kind in output.get("data", {})):
                yield f"{cell.id} stores a widget"
        for text in texts(cell):
            if bar := BAR.search(text):
                yield f"{cell.id} stores a progress bar: {text[max(bar.start() - 30, 0) :][:60]!r}"


@rule
def untried(notebook: NotebookNode, name: str) -> Iterator[str]:
    for cell in code_cells(notebook):
        if cell.id.startswith("try-"):
            exercise = cell.id[4:].replace("--", ".")
            if not any(f"{exercise}: not tried yet" in text for text in texts(cell)):
                yield f"{cell.id} does not end in 'not tried yet'"


class Pictures(HTMLParser):
    """Collects the pictures of a piece of HTML that have no alternative text."""

    def __init__(self, html: str):
        super().__init__()
        self.mute: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text = {"img": "alt", "svg": "aria-label"}.get(tag)
        if text and not (dict(attrs).get(text) or "").strip():
            self.mute.append(tag)


@rule
def alternative_texts(notebook: NotebookNode, name: str) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            if re.search(r"!\[\s*\]", cell.source) or Pictures(cell.source).mute:
                yield f"{cell.id} has a picture without alternative text"
            continue
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if bare := [kind for kind in PICTURES if kind in data]:
                yield f"{cell.id} stores a bare {bare[0]}: use look.show"
            for tag in Pictures(data.get("text/html", "")).mute:
                yield f"{cell.id} has an <{tag}> without alternative text"


@rule
def markers(notebook: NotebookNode, name: str) -> Iterator[str]:
    for cell in code_cells(notebook):
        lines = [line for line in cell.source.splitlines() if "NBVAL" in line]
        for line in lines:
            if line != MARKER:
                yield f"{cell.id}: nbval does not see {line!r}; write {MARKER!r} alone"
        if lines and not (cell.outputs and cell.execution_count):
            yield f"{cell.id} is to be compared, but stores nothing to compare with"


@rule
def folders(notebook: NotebookNode, name: str) -> Iterator[str]:
    for cell in notebook.cells:
        source = "" if cell.id == "setup" else cell.source
        for text in (source, *(texts(cell) if cell.cell_type == "code" else ())):
            if found := FOLDER.search(text):
                yield f"{cell.id} names a folder of one machine: {found[0]}"


# --------------------------------------------------------------------------------------- the code


@rule
def lengths(notebook: NotebookNode, name: str) -> Iterator[str]:
    lines = {cell.id: len(cell.source.splitlines()) for cell in code_cells(notebook)}
    for cell, count in lines.items():
        if count > LONGEST:
            yield f"{cell} has {count} lines, more than {LONGEST}"
    if statistics.median(lines.values()) > 8:
        yield f"the median cell has {statistics.median(lines.values())} lines, more than 8"


@rule
def classes(notebook: NotebookNode, name: str) -> Iterator[str]:
    for cell in code_cells(notebook):
        for node in ast.walk(parse(cell)):
            if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno + 1 > LONGEST:
                yield f"class {node.name} in {cell.id} is longer than {LONGEST} lines"


@rule
def setup_first(notebook: NotebookNode, name: str) -> Iterator[str]:
    first = code_cells(notebook)[0]
    if (first.id, first.source) != ("setup", notebooks.setup_cell()):
        yield "the first code cell is not the setup cell: run `python -m tools.notebooks`"


@rule
def model_cells(notebook: NotebookNode, name: str) -> Iterator[str]:
    bodies = []
    for cell in code_cells(notebook):
        marked = cell.source.splitlines()[:1] == [zoo.MARK]
        if not marked and re.search(r"^\s*#\s*\|", cell.source, re.MULTILINE):
            yield f"{cell.id}: {zoo.MARK!r} belongs on the first line, alone"
        if marked:
            bodies += parse(cell).body
            for node in parse(cell).body:
                targets = getattr(node, "targets", [getattr(node, "target", None)])
                constant = isinstance(node, (ast.Assign, ast.AnnAssign)) and all(
                    isinstance(t, ast.Name) and t.id.isupper() for t in targets
                )
                defines = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
                if not constant and not isinstance(node, defines):
                    yield f"{cell.id} does more than define: {ast.unparse(node)[:60]}"
    ends = [ast.unparse(body).split()[0] for body in bodies[-2:]]
    if bodies and ends != ["VARIANTS", "ARCHITECTURE"]:
        yield "the model cells do not end in VARIANTS and ARCHITECTURE"
    if not bodies and is_architecture(name):
        yield "no model cells"


def is_architecture(name: str) -> bool:
    return 1 <= int(name[:2]) <= 8


# --------------------------------------------------------------------------------------- the prose


@rule
def exercises(notebook: NotebookNode, name: str) -> Iterator[str]:
    expected = [exercise for exercise in catalogue() if exercise.split(".")[0] == name[3:]]
    if not 3 <= len(expected) <= 6:
        yield f"{len(expected)} exercises; expected 3 to 6"
    cells = [cell.id for cell in notebook.cells if cell.id.startswith(("ask-", "try-"))]
    asked = [cell[4:].replace("--", ".") for cell in cells[::2]]
    pairs = [f"{kind}-{name.replace('.', '--')}" for name in asked for kind in ("ask", "try")]
    if cells != pairs or sorted(asked) != sorted(expected):
        yield f"the exercises' cells are {cells}; expected ask- and try- for each of {expected}"
        return
    synced = copy.deepcopy(notebook)
    notebooks.sync(synced)
    for cell, right in zip(notebook.cells, synced.cells, strict=True):
        if cell.source != right.source:
            yield f"{cell.id} is not what `python -m tools.notebooks` writes"


def prose(source: str) -> Iterator[tuple[str, bool]]:
    """(line, whether it goes on a paragraph) for each line of prose, its code and formulas as X."""
    source = re.sub(r"```.*?```|\$\$.*?\$\$|<!--.*?-->", "\n", source, flags=re.DOTALL)
    goes_on = False
    for line in source.splitlines():
        line = re.sub(r"`[^`]+`|\$[^$]+\$", "X", line)
        line = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", line)
        text = re.sub(r"^\s*(?:>\s*)*(?:[-*+]\s+|\d+\.\s+)?", "", line)
        if not text or text.startswith(("|", "#", "<")):
            goes_on = False
            continue
        starts_item = re.match(r"\s*(?:[-*+]|\d+\.)\s", line)
        yield text, goes_on and not starts_item
        goes_on = True


@rule
def one_sentence_a_line(notebook: NotebookNode, name: str) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        before = ""
        for text, goes_on in prose(cell.source):
            plain = ABBREVIATION.sub("", re.sub(r"^\*\*[^*]+\*\*\s+", "", text))  # run-in heading
            if SECOND_SENTENCE.search(plain):
                yield f"{cell.id}: more than one sentence in {text!r}"
            if goes_on and text[0].islower() and not re.search(r"[.?!:…][)\"'”’*_]*$", before):
                yield f"{cell.id}: a sentence goes on in {text!r}"
            before = text


@rule
def links(notebook: NotebookNode, name: str) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#\s]+)", cell.source):
                if ":" not in target and not (zoo.NOTEBOOKS / target).exists():
                    yield f"{cell.id} leads to {target}, which is not there"


@rule
def words(notebook: NotebookNode, name: str) -> Iterator[str]:
    low, high = (1_200, 1_800) if is_architecture(name) else (500, 10_000)
    if not low <= notebooks.words(notebook) <= high:
        yield f"{notebooks.words(notebook):,} words; expected {low:,} to {high:,}"


# ----------------------------------------------------------------------------- every notebook

every_notebook = pytest.mark.parametrize("path", notebooks.paths(), ids=lambda path: path.stem)
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


@every_rule
@every_notebook
def test_rule(path: Path, rule: Rule):
    assert list(rule(load(path), path.stem)) == []


@every_notebook
def test_is_stored_as_write_stores_it(path: Path, tmp_path: Path):
    """So that saving an unchanged notebook changes no line of it."""
    notebooks.write(notebooks.read(path), tmp_path / "again.ipynb")
    assert path.read_bytes() == (tmp_path / "again.ipynb").read_bytes()


# ------------------------------------------------------------------------------------------- runs


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The smallest profile on a machine without data and network: the notebooks use the digits."""
    monkeypatch.setenv("CNN_PROFILE", "smoke")
    monkeypatch.setenv("CNN_DATA", str(tmp_path / "no data"))
    for proxy in ("http_proxy", "https_proxy"):  # nobody answers there: nothing is downloaded
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)


@pytest.mark.slow  # each was executed already, with data
@pytest.mark.parametrize("number", ["00", "01", "02", "05", "06", "07"])
def test_runs_to_the_end_without_data_and_network(number: str, offline: None):
    (path,) = notebooks.paths([number])
    notebook = notebooks.read(path)
    notebooks.execute(notebook, path.name)
    assert all(cell.execution_count for cell in code_cells(notebook))


@every_notebook
def test_the_solutions_are_right(path: Path, capsys: pytest.CaptureFixture):
    """Of each notebook, the cells that an exercise may build on: imports, models, other answers."""
    notebook = notebooks.read(path)
    notebooks.solve(notebook)
    asked, names = [], {"__name__": "notebook"}
    for cell in code_cells(notebook):
        if cell.id == "imports" or cell.id.startswith("try-") or cell.source.startswith(zoo.MARK):
            exec(compile(cell.source, f"{path.name}, {cell.id}", "exec"), names)
        if cell.id.startswith("try-"):
            asked.append(cell.id[4:].replace("--", "."))
    said = capsys.readouterr().out
    assert asked
    done = {True: "open", False: "right"}  # by whether only the reader can judge it
    states = {name: done[bool(catalogue()[name].rubric)] for name in asked}
    assert [name for name, state in states.items() if f"{name}: {state}." not in said] == []


def code(*sources: str) -> NotebookNode:
    """A notebook with an empty cell, then these."""
    return new_notebook(cells=[new_code_cell(""), *map(new_code_cell, sources)])


def test_a_failing_cell_is_named():
    notebook = code("import math", "math.sqrt(-1)", "print('never')")
    notebook.cells.insert(0, new_markdown_cell("# Title"))
    with pytest.raises(notebooks.CellFailed) as failed:
        notebooks.execute(notebook, "09_broken.ipynb")
    message = str(failed.value)
    assert message == "09_broken.ipynb, code cell 3 of 4: ValueError: math domain error"
    assert notebook.cells[-2].outputs[0].ename == "ValueError"
    assert notebook.cells[-1].outputs == []


def test_ctrl_c_is_no_fault_of_the_notebook():
    def tick(done: int, total: int) -> None:
        if done == total - 1:  # while the last cell sleeps; once, or it stops the next test
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(notebooks.CellFailed, match="code cell 3 of 3: stopped"):
        notebooks.execute(code("import time", "time.sleep(60)"), "a.ipynb", tick)


def test_a_cell_that_ends_the_kernel_is_named():
    with pytest.raises(notebooks.CellFailed, match=r"09_dead\.ipynb, code cell 3 of 4: Dead"):
        notebooks.execute(code("1", "import os; os._exit(1)", "2"), "09_dead.ipynb")


def test_only_a_table_that_styles_nothing_loses_its_classes():
    look = "Styler(pandas.DataFrame({'a': [1], 'b': [2]}), cell_ids=False).hide(axis='index')"
    notebook = code(
        f"import pandas\nfrom pandas.io.formats.style import Styler\n{look}",
        f"{look}.set_table_styles([{{'selector': '.col1', 'props': 'color: red'}}])",
    )
    notebooks.execute(notebook, "09_styled.ipynb")
    notebooks.clean(notebook)
    plain, red = (cell.outputs[0].data["text/html"] for cell in notebook.cells[-2:])
    assert "<th>a</th><th>b</th>" in plain
    assert "<td>1</td><td>2</td>" in plain
    assert ".col1 {" in red
    assert 'class="data row0 col1"' in red


def test_a_run_is_followed_and_cleaned():
    """What clean() leaves of a real run keeps the rules, and a second clean() changes nothing."""
    notebook = code(
        "import sys; print('a warning', file=sys.stderr)",
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(3), desc='training'):\n    pass",
        "from common import machine\nmachine.in_notebook()",
        "import pandas\npandas.DataFrame({'a': [1, 2], 'b': [3, 4]})",
        "import os; os.getcwd() == os.path.abspath('../notebooks')",
    )
    notebook.cells[1].metadata = {"collapsed": True}
    names = [cell.id for cell in notebook.cells]
    ticks = []
    notebooks.execute(notebook, "09_run.ipynb", lambda done, total: ticks.append((done, total)))
    assert ticks == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    dirty = [r for r in (metadata, counts, outputs) if list(r(notebook, "09_run"))]
    assert dirty == [metadata, counts, outputs]

    notebooks.clean(notebook)
    assert [r for r in (metadata, counts, outputs) if list(r(notebook, "09_run"))] == []
    assert [cell.id for cell in notebook.cells] == names
    assert notebook.cells[-1].outputs[0].data["text/plain"] == "True"
    assert notebook.cells[-3].outputs[0].data["text/plain"] == "True"
    assert not machine.in_notebook()
    table = notebook.cells[-2].outputs[0].data["text/html"]
    assert "<th>0</th><td>1</td><td>3</td>\n" in table, "a row a line"
    once = copy.deepcopy(notebook)
    notebooks.clean(notebook)
    assert notebook == once


# ------------------------------------------------------------------------------------ keeping them


def test_sync_rewrites_the_shared_cells_and_no_other():
    expected = small()
    stale = small()
    for name in ("setup", "ask-lenet--convolve", "try-lenet--convolve"):
        cell(stale, name).source = "stale"
    notebooks.sync(stale)
    assert stale == expected
    notebooks.sync(stale)
    assert stale == expected


def test_solve_fills_in_the_solutions_and_sync_takes_them_out():
    notebook = small()
    notebooks.solve(notebook)
    changed = [a.id for a, b in zip(notebook.cells, small().cells, strict=True) if a != b]
    assert changed == [c.id for c in notebook.cells if c.id.startswith("try-")]
    solution = catalogue()["lenet.convolve"].source
    assert solution in cell(notebook, "try-lenet--convolve").source
    notebooks.sync(notebook)
    assert notebook == small()


def test_write_replaces_a_notebook_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "01_lenet.ipynb"
    notebooks.write(small(), path)
    assert notebooks.read(path) == small()
    before = path.read_bytes()

    monkeypatch.setattr(machine.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        notebooks.write(new_notebook(), path)
    assert path.read_bytes() == before


def test_paths_come_in_the_order_of_the_course_and_by_part_of_their_name():
    names = [path.name for path in notebooks.paths()]
    assert names == sorted(names)
    assert [path.stem for path in notebooks.paths(["lenet", "99"])] == ["01_lenet", "99_compare"]
    with pytest.raises(ValueError, match=r"transformer.*01_lenet"):
        notebooks.paths(["transformer"])


def test_words_are_prose_only():
    table, picture = "| a | table |\n|---|---|", "![a picture](x.svg)"
    prose_cell = new_markdown_cell(f"Three words here.\n\n{table}\n\n{picture}")
    assert notebooks.words(new_notebook(cells=[prose_cell, new_code_cell("not = these")])) == 3


# ----------------------------------------------------------------------------- the rules themselves


def small() -> NotebookNode:
    """A notebook that keeps every rule: 01_lenet in little."""
    figure = '<figure><img alt="A bar." src="data:image/png;base64,/tmp/x"></figure>'
    cells = [
        new_markdown_cell("# Title\n\nLeCun et al. 1998, e.g. `fit`.\n", id="title"),
        new_code_cell(notebooks.setup_cell(), id="setup"),
        new_code_cell(f"{MARKER}\nprint(1 + 1)", id="sum", outputs=[stream("2\n")]),
        new_code_cell(
            "look.bars({})", id="bars", outputs=[new_output("display_data", {"text/html": figure})]
        ),
        new_code_cell(
            f"{zoo.MARK}\nfrom torch import nn\nWIDTH = 6\n\n\nclass A(nn.Module):\n    pass",
            id="model-a",
        ),
        new_code_cell(f"{zoo.MARK}\nVARIANTS = [A]\nARCHITECTURE = A", id="model-variants"),
        new_markdown_cell("A word is a word.\n" * 250, id="text"),
    ]
    for name, exercise in catalogue().items():
        if name.startswith("lenet."):
            place = name.replace(".", "--")
            cells += [
                new_markdown_cell(notebooks.statement_cell(name, exercise), id=f"ask-{place}"),
                new_code_cell(
                    notebooks.answer_cell(name, exercise.skeleton, exercise.answer),
                    id=f"try-{place}",
                    outputs=[stream(f"{name}: not tried yet. Replace the dots.\n")],
                ),
            ]
    notebook = new_notebook(cells=cells)
    notebooks.clean(notebook)
    return notebook


def stream(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", text=text, name=name)


def cell(notebook: NotebookNode, id: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == id)


def test_a_new_exercise_gets_its_cells_in_place_and_an_old_one_goes():
    notebook = small()
    notebook.cells.append(new_markdown_cell("## Summary", id="summary"))
    notebooks.lay_out(notebook)
    whole = [one.id for one in notebook.cells]
    asked = [id for id in whole if id.startswith("ask-")]
    assert asked == [f"ask-{n.replace('.', '--')}" for n in catalogue() if n.startswith("lenet.")]
    assert whole[-2:] == ["progress", "summary"]
    notebook.cells = [one for one in notebook.cells if not one.id.endswith("lenet--convolve")]
    notebook.cells.insert(-2, new_code_cell("...", id="try-lenet--gone"))
    notebooks.lay_out(notebook)
    assert [one.id for one in notebook.cells] == whole
    told = cell(notebook, "try-lenet--convolve").outputs[0].data
    assert told["text/plain"].startswith("lenet.convolve: not tried yet.")
    counts = [one.execution_count for one in notebook.cells if one.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def says(id: str, source: str) -> Callable[[NotebookNode], None]:
    """A change that gives a cell another source."""
    return lambda notebook: cell(notebook, id).update(source=source)


def stores(id: str, output: NotebookNode) -> Callable[[NotebookNode], None]:
    """A change that adds an output to a cell."""
    return lambda notebook: cell(notebook, id).outputs.append(output)


def prints(id: str, text: str) -> Callable[[NotebookNode], None]:
    """A change that leaves a cell with this one output."""
    return lambda notebook: cell(notebook, id).update(outputs=[stream(text)])


def shows(data: dict[str, str]) -> NotebookNode:
    return new_output("display_data", data)


CLASS = "class A:\n" + "    a = 1\n" * LONGEST
OFFENCES: list[tuple[Rule, Callable[[NotebookNode], object]]] = [
    (size, says("text", "x" * 300_000)),
    (ids, lambda n: n.cells[3].pop("id")),
    (ids, lambda n: n.cells[3].update(id="setup")),
    (metadata, lambda n: n.metadata.update(widgets={})),
    (metadata, lambda n: cell(n, "sum").metadata.update(tags=["x"])),
    (counts, lambda n: cell(n, "bars").update(execution_count=None)),
    (counts, stores("sum", new_output("execute_result", {}, execution_count=9))),
    (outputs, lambda n: [c.update(outputs=[]) for c in code_cells(n)]),
    (outputs, stores("sum", new_output("error", ename="E", evalue="", traceback=[]))),
    (outputs, stores("sum", stream("a warning", name="stderr"))),
    (outputs, stores("sum", shows({"application/vnd.jupyter.widget-view+json": "x"}))),
    (outputs, stores("sum", shows({"text/plain": "training:  40%|####      | 4/10"}))),
    (outputs, stores("sum", stream("4/10 [00:01<00:02,  3.1it/s, accuracy 10%]"))),
    (untried, lambda n: cell(n, "try-lenet--convolve").update(outputs=[])),
    (untried, prints("try-lenet--convolve", "lenet.convolve: right.")),
    (alternative_texts, stores("sum", shows({"image/png": "AAAA"}))),
    (alternative_texts, stores("sum", shows({"text/html": "<img src='x'>"}))),
    (alternative_texts, stores("sum", shows({"text/html": "<img alt=' ' src='x'>"}))),
    (alternative_texts, stores("sum", shows({"text/html": "<svg viewBox='0 0 1 1'></svg>"}))),
    (alternative_texts, says("text", "![](../figures/lenet5.svg)")),
    (alternative_texts, says("text", "<img src='../figures/lenet5.svg'>")),
    (markers, says("sum", f"{MARKER} because it is a sum\nprint(1 + 1)")),
    (markers, says("sum", f"print(1 + 1)  {MARKER}")),
    (markers, lambda n: cell(n, "sum").update(outputs=[])),
    (markers, lambda n: cell(n, "sum").update(execution_count=None)),
    (folders, stores("sum", stream("saved in /home/somebody/runs/1.json"))),
    (folders, stores("sum", shows({"text/html": "<td>/builds/course/data</td>"}))),
    (folders, says("text", "Look into /opt/course/common.")),
    (lengths, says("sum", "x = 1\n" * (LONGEST + 1))),
    (lengths, lambda n: [c.update(source="x = 1\n" * 9) for c in code_cells(n)]),
    (classes, says("sum", CLASS)),
    (setup_first, lambda n: n.cells.insert(0, new_code_cell("import torch"))),
    (setup_first, says("setup", "import common.setup")),
    (model_cells, says("model-a", f"{zoo.MARK}\nprint(1)")),
    (model_cells, says("model-a", f"{zoo.MARK}\nnet = A()")),
    (model_cells, says("model-a", f"\n{zoo.MARK}\nWIDTH = 6")),
    (model_cells, says("model-a", "#|model\nWIDTH = 6")),
    (model_cells, says("model-variants", f"{zoo.MARK}\nVARIANT = []")),
    (model_cells, lambda n: [c.update(source="") for c in n.cells if "model" in c.id]),
    (exercises, says("ask-lenet--convolve", "Convolve.")),
    (exercises, says("try-lenet--convolve", "convolve = None")),
    (exercises, lambda n: n.cells.remove(cell(n, "try-lenet--convolve"))),
    (exercises, lambda n: n.cells.pop() and n.cells.pop()),
    (one_sentence_a_line, says("text", "One sentence. Another one.")),
    (one_sentence_a_line, says("text", "- One sentence, as in report A. Another one.")),
    (one_sentence_a_line, says("text", "Is it (*really*)? `fit` says so.")),
    (one_sentence_a_line, says("text", "One sentence that is\nbroken over two lines.")),
    (links, says("text", "See [the next notebook](98_nothing.ipynb).")),
    (words, says("text", "Too few.")),
    (words, says("text", "Far too many words.\n" * 600)),
]


def test_a_good_notebook_breaks_no_rule():
    notebook = small()
    assert [offence for rule in RULES for offence in rule(notebook, "01_lenet")] == []
    assert {rule for rule, _ in OFFENCES} == set(RULES)


@pytest.mark.parametrize(
    ("rule", "change"),
    OFFENCES,
    ids=[f"{rule.__name__}-{i}" for i, (rule, _) in enumerate(OFFENCES)],
)
def test_rule_sees(rule: Rule, change: Callable[[NotebookNode], object]):
    notebook = small()
    change(notebook)
    assert list(rule(notebook, "01_lenet"))


@every_notebook
def test_the_stored_table_of_budgets_is_that_of_its_cell(path, monkeypatch):
    """A budget that was changed without running the cell again is one that nobody has."""
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setenv("CNN_PROFILE", "laptop")
    cells = [
        c for c in load(path).cells if c.cell_type == "code" and "= machine.choose(" in c.source
    ]
    assert len(cells) == (path.stem != "99_compare")
    for cell in cells:
        code = ast.parse(cell.source).body
        last = [i for i, line in enumerate(code) if "machine.choose(" in ast.unparse(line)][-1]
        exec(compile(ast.Module(code[: last + 1], []), "", "exec"), {"machine": machine})
        stored = [output.data["text/plain"] for output in cell.outputs if "data" in output]
        assert repr(shown.pop()) in stored, "run the cell again"
    assert not shown
