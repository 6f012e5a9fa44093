"""The shape of the code: small modules, one definition of everything, imports one way."""

import ast
from collections import defaultdict

from common import machine, zoo

MODULES = sorted((machine.HOME / "common").rglob("*.py"))
LONGEST = 480  # lines; a module beyond that is asking to be thought about again


def trees() -> dict[str, ast.Module]:
    """The syntax tree of each module, and of each notebook's model cells, by file name."""
    sources = {
        str(path.relative_to(machine.HOME)): path.read_text(encoding="utf-8") for path in MODULES
    }
    for path in zoo.notebooks():
        sources[path.name] = zoo.NotebookLoader(path).get_data("").decode()
    return {name: ast.parse(source) for name, source in sources.items()}


def test_no_function_or_class_is_defined_twice():
    places = defaultdict(list)
    for name, tree in trees().items():
        # An exercise may ask for what the course has: split, pareto.
        if "exercises" in name and "answers" not in name:
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "main":
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


# From the ground up: a module imports only what stands before it.
ORDER = (
    "machine", "config", "ddp", "graphs", "advice", "probe", "sources", "data", "digests",
    "checkpoints", "run", "train", "zoo", "weights", "look", "predict", "records", "experiments",
    "perform", "compare", "exercises", "check", "setup", "__main__",
)  # fmt: skip


def imports_of(place) -> set[str]:
    """What a module or a folder of modules imports of `common`, itself and types apart."""
    found = set()
    for path in place.rglob("*.py") if place.is_dir() else (place,):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [n for n in tree.body if ast.unparse(getattr(n, "test", n)) != "TYPE_CHECKING"]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "common":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("common."):
                found.add(node.module.split(".")[1])
    return found - {place.stem}


def test_imports_go_one_way():
    places = {p.stem: p for p in (machine.HOME / "common").iterdir() if p.suffix == ".py"}
    places |= {p.parent.name: p.parent for p in (machine.HOME / "common").glob("*/__init__.py")}
    assert set(places) - {"__init__"} == set(ORDER)
    for i, name in enumerate(ORDER):
        assert imports_of(places[name]) <= set(ORDER[:i]), name


def test_the_loop_knows_little():
    """What `fit` stands on; and it fits on a screen."""
    train = machine.HOME / "common/train.py"
    assert imports_of(train) == {"ddp", "machine", "advice", "config", "data", "run"}
    tree = ast.parse(train.read_text(encoding="utf-8"))
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    assert lengths["fit"] + lengths["train_epoch"] + lengths["evaluate"] <= 105
    most = max(len(n.args.args) for n in tree.body if isinstance(n, ast.FunctionDef))
    assert most <= 3
