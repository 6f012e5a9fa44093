"""The shape of the code: small modules, one definition of everything, imports one way."""

import ast
from collections import defaultdict

from common import machine, zoo

MODULES = sorted((machine.HOME / "common").rglob("*.py"))
LONGEST = 500  # lines; a module beyond that is asking to be thought about again


def trees() -> dict[str, ast.Module]:
    """The syntax tree of each module, and of each notebook's model cells, by file name."""
    sources = {
        str(path.relative_to(machine.HOME)): path.read_text(encoding="utf-8") for path in MODULES
    }
    for path in sorted(zoo.NOTEBOOKS.glob("*.ipynb")):
        sources[path.name] = zoo.NotebookLoader(path).get_data("").decode()
    return {name: ast.parse(source) for name, source in sources.items()}


def test_no_function_or_class_is_defined_twice():
    places = defaultdict(list)
    for name, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                places[node.name].append(name)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice


def test_modules_stay_small():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_no_module_reaches_into_another_s_private_names():
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("common"):
                private = [a.name for a in node.names if a.name.startswith("_")]
                assert not private, f"{name} imports {private} from {node.module}"


def test_the_lower_modules_do_not_import_the_upper_ones():
    allowed = {
        "machine": set(),
        "sources": {"machine"},
        "data": {"machine", "sources"},
        "fields": set(),
        "probe": {"fields"},
        "hooks": set(),
        "drawing": {"fields", "probe"},
        "look": {"data", "drawing", "fields", "hooks", "probe", "train"},
        "zoo": {"machine", "probe"},
    }
    for name, expected in allowed.items():
        tree = ast.parse((machine.HOME / "common" / f"{name}.py").read_text(encoding="utf-8"))
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "common":
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("common."):
                imported.add(node.module.split(".")[1])
        assert imported <= expected, f"{name} imports {imported - expected}"
