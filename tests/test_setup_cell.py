"""The setup cell, run as a notebook runs it: a fresh process that has nothing but the cell.

Most tests stand in for torch and pandas with a few lines, and start Python without its installed
packages: that takes milliseconds, hides the installed course, and shows what the cell installs.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from common import machine
from tools import notebooks

TORCH = """\
class device:
    def __init__(self, kind):
        self.type = kind

class cuda:
    is_available = staticmethod(lambda: {gpu})
    get_device_name = staticmethod(lambda: "Tesla T4")
    get_device_capability = staticmethod(lambda: (7, 5))

class backends:
    class mps:
        is_available = staticmethod(lambda: False)

cpu = None
get_num_threads = lambda: 2
set_num_threads = lambda n: None
ones = lambda *_, **__: 0
"""
PIP = """\
import pathlib, sys
with open(pathlib.Path(__file__).with_name("asked.txt"), "a") as log:
    print(*sys.argv[1:], file=log)
sys.exit({code})
"""
SMALL = ("torchinfo", "safetensors", "pooch")
REPORT = "\nimport json\nprint(json.dumps([sys.path[0], common.setup.__file__]))"
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def stubs(folder: Path, gpu: bool = False, missing: str = "", pip_fails: bool = False) -> Path:
    """A folder of stand-ins for installed packages; its pip writes down what it is asked."""
    folder.mkdir(parents=True)
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").write_text(TORCH.format(gpu=gpu))
    (folder / "torch/overrides.py").write_text("class TorchFunctionMode: pass")
    (folder / "pandas.py").write_text("")
    (folder / "pip.py").write_text(PIP.format(code=int(pip_fails)))
    for name in SMALL:
        if name != missing:
            (folder / f"{name}.py").write_text("")
    return folder


def copy_course(target: Path) -> Path:
    """The course as a student's copy of it has it."""
    for name in ("common", "notebooks"):
        shutil.copytree(
            machine.HOME / name, target / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(machine.HOME / "pyproject.toml", target)
    return target


def environment(**settings: str) -> dict[str, str]:
    """The environment without what could lead the cell elsewhere."""
    ours = ("GIT_", "COURSE_", "KAGGLE_", "CNN_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1", "KAGGLE_INPUT": "no such folder"} | settings


def start(cwd: Path, stand_ins: Path | None, **settings: str) -> subprocess.CompletedProcess:
    """Run the cell in `cwd`; without stand-ins, with the real torch and all that is installed."""
    python = [sys.executable]
    if stand_ins:
        python.append("-S")  # no installed packages
        settings["PYTHONPATH"] = str(stand_ins)
    return subprocess.run(
        [*python, "-c", notebooks.setup_cell() + REPORT],
        cwd=cwd,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=120,
    )


def said_by_course(done: subprocess.CompletedProcess, home: Path) -> str:
    """What the cell printed, after checking that it ran `home`'s code and no other."""
    assert done.returncode == 0, done.stderr
    *said, report = done.stdout.splitlines()
    assert json.loads(report) == [str(home), str(home / "common" / "setup.py")]
    return "\n".join(said)


def git(*arguments: str | Path) -> None:
    """Run git as somebody, whoever runs the tests."""
    somebody = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    subprocess.run(
        ["git", *somebody, *arguments], check=True, capture_output=True, env=environment()
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A bare git repository of the course."""
    folder = tmp_path_factory.mktemp("git")
    source = copy_course(folder / "source")
    git("init", "--quiet", source)
    git("-C", source, "add", ".")
    git("-C", source, "commit", "--quiet", "--no-verify", "--message", "Course")
    git("clone", "--quiet", "--bare", source, folder / "course.git")
    return folder / "course.git"


@pytest.fixture
def empty(tmp_path) -> Path:
    """An empty folder, as a notebook finds it on Colab."""
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


# ------------------------------------------------------------------------------------- its text


def test_is_short_and_holds_the_address_of_pyproject():
    lines = [line for line in notebooks.setup_cell().splitlines() if line]
    assert len(lines) <= 8
    assert max(map(len, lines)) <= 100
    project = tomllib.loads((machine.HOME / "pyproject.toml").read_text())["project"]
    addresses = [line for line in lines if f'"{project["urls"]["Repository"]}"' in line]
    assert len(addresses) == 1


def test_is_the_same_in_every_notebook():
    assert notebooks.paths()
    for path in notebooks.paths():
        found = [cell.source for cell in notebooks.read(path).cells if cell.id == "setup"]
        assert found == [notebooks.setup_cell()], f"{path.name}: run `python -m tools.notebooks`"


def test_is_as_the_formatter_leaves_it():
    """Formatting the notebooks must not make one cell differ from the others."""
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "cell.py", "-"]
    cell = notebooks.setup_cell() + "\n"
    done = subprocess.run(ruff, input=cell, capture_output=True, text=True, cwd=machine.HOME)
    assert done.returncode == 0, done.stderr
    assert done.stdout == cell


# ----------------------------------------------------------------------------- finding the course


@pytest.mark.parametrize("inside", [".", "notebooks", "common/exercises"])
def test_finds_the_checkout_from_any_of_its_folders(inside, tmp_path):
    done = start(machine.HOME / inside, stubs(tmp_path / "stubs"))
    said_by_course(done, machine.HOME)


@pytest.mark.parametrize("above", ["a", "a/b", "a/b/c"])
def test_finds_the_course_in_kaggles_input(above, tmp_path, empty):
    home = copy_course(tmp_path / "input" / above / "course")
    (tmp_path / "input" / "another-data-set" / "common").mkdir(parents=True)
    done = start(empty, stubs(tmp_path / "stubs"), KAGGLE_INPUT=str(tmp_path / "input"))
    said_by_course(done, home)
    assert not list(empty.iterdir())


@needs_git
def test_fetches_the_course_once(tmp_path, empty, bare):
    here = stubs(tmp_path / "stubs")
    said_by_course(start(empty, here, COURSE_URL=bare.as_uri()), empty / "course")
    assert (empty / "course" / "notebooks" / "01_lenet.ipynb").exists()

    hidden = bare.rename(bare.with_name("hidden.git"))
    try:
        again = start(empty, here, COURSE_URL=bare.as_uri())
    finally:
        hidden.rename(bare)
    said_by_course(again, empty / "course")


@needs_git
@pytest.mark.parametrize("address", ["file:///no/such/course.git", "http://127.0.0.1:9/course.git"])
def test_an_address_out_of_reach_is_named_and_leaves_nothing(address, tmp_path, empty):
    done = start(empty, stubs(tmp_path / "stubs"), COURSE_URL=address)
    assert done.returncode != 0
    assert address in done.stderr.splitlines()[-1]
    assert not list(empty.iterdir())


def test_without_git_the_address_is_named(tmp_path, empty, bare):
    bin_without_git = tmp_path / "bin"
    bin_without_git.mkdir()
    here = stubs(tmp_path / "stubs")
    done = start(empty, here, COURSE_URL=bare.as_uri(), PATH=str(bin_without_git))
    assert done.returncode != 0
    assert bare.as_uri() in done.stderr.splitlines()[-1]
    assert not list(empty.iterdir())


# ------------------------------------------------------------------------------ what it installs


def test_installs_nothing_where_all_is_there(tmp_path):
    here = stubs(tmp_path / "stubs")
    said_by_course(start(machine.HOME, here), machine.HOME)
    assert not (here / "asked.txt").exists()


@pytest.mark.parametrize("name", SMALL)
def test_installs_alone_what_is_missing(name, tmp_path):
    here = stubs(tmp_path / "stubs", missing=name)
    said_by_course(start(machine.HOME, here), machine.HOME)
    assert (here / "asked.txt").read_text() == f"install --quiet --no-deps {name}\n"


def test_says_what_to_do_where_torchinfo_cannot_be_installed(tmp_path):
    done = start(machine.HOME, stubs(tmp_path / "stubs", missing="torchinfo", pip_fails=True))
    assert done.returncode != 0
    message = done.stderr.splitlines()[-1]
    assert "torchinfo" in message
    assert "internet" in message


def imports_of(source: str) -> list[str]:
    """The import statements of a cell, wherever they stand in it."""
    nodes = ast.walk(ast.parse(source))
    return [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def test_the_notebooks_import_nothing_that_colab_lacks():
    """Neither Colab nor Kaggle brings these packages, and the setup cell does not install them."""
    lacks = ("tyro", "hypothesis", "captum", "playwright", "nbval", "ruff")
    project = tomllib.loads((machine.HOME / "pyproject.toml").read_text())["project"]
    ours = " ".join([*project["dependencies"], *project["optional-dependencies"]["test"]])
    assert all(name in ours for name in lacks)
    cells = [cell for path in notebooks.paths() for cell in notebooks.read(path).cells]
    lines = [f"import sys; sys.modules.update(dict.fromkeys({lacks}))"]
    lines += dict.fromkeys(
        line
        for cell in cells
        if cell.cell_type == "code" and cell.id != "setup"
        for line in imports_of(cell.source)
    )
    modules = (machine.HOME / "common").glob("[!_]*.py")
    lines += [f"import common.{path.stem}" for path in modules if path.stem != "setup"]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=machine.HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("gpu", "chosen", "expected"),
    [
        (False, "", ["device: CPU, 2 threads", "Runtime > Change", "fp32", "profile: laptop"]),
        (False, "smoke", ["smoke: a few images", "mean nothing", "device: CPU", "profile: smoke"]),
        (True, "", ["device: Tesla T4", "precision: fp16", "profile: full"]),
    ],
)
def test_names_device_precision_and_profile(gpu, chosen, expected, tmp_path):
    done = start(machine.HOME, stubs(tmp_path / "stubs", gpu=gpu), CNN_PROFILE=chosen)
    said = said_by_course(done, machine.HOME)
    assert [part for part in expected if part not in said] == []
    assert gpu or "Accelerator" in said  # how to switch one on
    assert not gpu or "Runtime" not in said
    assert (chosen == "smoke") == ("mean nothing" in said)


@needs_git
def test_with_the_real_packages(empty, bare):
    done = start(empty, None, COURSE_URL=bare.as_uri(), CNN_PROFILE="smoke")
    said = said_by_course(done, empty / "course")
    assert f"precision: {machine.precision()}   profile: smoke" in said
    first, second, *_ = said.splitlines()
    assert first == "smoke: a few images, to see that all cells run. Its accuracies mean nothing."
    assert second.startswith("device: CPU" if machine.device().type == "cpu" else "device: ")


def test_runs_are_written_where_it_is_allowed(tmp_path, monkeypatch):
    """Kaggle's input cannot be written to: a course found there keeps its runs elsewhere."""
    monkeypatch.delenv("CNN_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine.os, "access", lambda path, mode: path != machine.HOME)
    assert machine.runs_folder() == tmp_path / "runs"
    assert (tmp_path / "runs").is_dir()


def test_a_folder_may_be_named_from_one_s_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # on Windows
    monkeypatch.setenv("CNN_RUNS", "~/x")
    assert machine.folder("CNN_RUNS", "runs") == tmp_path / "x"
