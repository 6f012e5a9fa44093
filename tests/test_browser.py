"""01_lenet in a real JupyterLab, in a real browser: what a student sees.

A copy of the course is opened, so that nothing of the checkout is touched. The server and the
browser get folders of their own, and both are ended whatever happens.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest

from common import machine
from tools import notebooks

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NOTEBOOK = "01_lenet.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_S, RUN_S = 90, 300

# Notes what appears on the page, however briefly: a progress bar, and the picture of live curves.
WATCH = """
window.seen = {bar: false, curve: false};
new MutationObserver(() => {
    const bar = document.querySelector('.jp-OutputArea .widget-hprogress');
    const curve = document.querySelector('.jp-OutputArea img[alt*="training and validation"]');
    window.seen.bar ||= bar !== null && bar.getBoundingClientRect().width > 0;
    window.seen.curve ||= curve !== null && curve.naturalWidth > 0;
}).observe(document.body, {childList: true, subtree: true, attributes: true});
"""
RUN = """
window.finished = null;
window.jupyterapp.commands.execute('notebook:run-all-cells').then(
    result => { window.finished = result !== false },
    error => { window.finished = String(error) });
"""
CELLS = """() => {
    const model = window.jupyterapp.shell.currentWidget.content.model;
    return Array.from(model.cells, cell => ({
        id: cell.id,
        type: cell.type,
        source: cell.sharedModel.getSource(),
        count: cell.type === 'code' ? cell.executionCount : null,
        outputs: cell.type === 'code' ? cell.outputs.toJSON() : [],
    }));
}"""


def chromium() -> str | None:
    """The browser's program, or None where playwright is to use its own."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        with playwright.sync_playwright() as p:
            if not Path(p.chromium.executable_path).exists():
                pytest.skip(f"no browser: none of {', '.join(BROWSERS)}, nor playwright's own")
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def copy_course(target: Path) -> Path:
    """The course as a student gets it, the notebook as if it had never been run."""
    unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("common", "notebooks", "results", "samples", "tools", "weights"):
        shutil.copytree(machine.HOME / name, target / name, ignore=unwanted)
    shutil.copy(machine.HOME / "pyproject.toml", target)
    path = target / "notebooks" / NOTEBOOK
    notebook = notebooks.read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)
    return target


@contextmanager
def jupyterlab(course: Path, folder: Path) -> Iterator[str]:
    """JupyterLab on the course; yields its address. Settings, state and runs stay in `folder`."""
    port = free_port()
    environment = os.environ | {
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
        "CNN_PROFILE": "smoke",
        "CNN_RUNS": str(folder / "runs"),
    }
    if not os.environ.get("CNN_DATA"):  # then the digits, and no download
        environment |= {"CNN_DATA": str(folder / "no data"), "no_proxy": ""}
        environment |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += ["--expose-app-in-browser", f"--ServerApp.root_dir={course}"]
    command += [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
    ]
    command += ["--IdentityProvider.token=", "--ServerApp.password="]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += ["--LabApp.news_url=None"]
    log = folder / "server.log"
    with open(log, "w") as file:
        server = subprocess.Popen(
            command, cwd=course, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/api", server, log)
        yield address
    finally:
        server.terminate()  # it ends its kernels first
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    """Return when the server answers."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            direct.open(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def run_all_cells(page: playwright.Page, address: str, path: str) -> tuple[list[dict], dict]:
    """Open a notebook and run all its cells; return the cells and what was seen meanwhile."""
    page.goto(f"{address}/lab/tree/{path}?reset")
    page.wait_for_function(
        """() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel
                 ?.connectionStatus === 'connected'""",
        timeout=START_S * 1000,
    )
    page.evaluate(WATCH)
    page.evaluate(RUN)
    page.wait_for_function("() => window.finished !== null", timeout=RUN_S * 1000)
    return page.evaluate(CELLS), page.evaluate("() => ({...window.seen, end: window.finished})")


@pytest.mark.slow  # it executes a notebook once more
def test_lenet_runs_to_the_end_in_jupyterlab(tmp_path: Path):
    program = chromium()
    course = copy_course(tmp_path / "course")
    folder = tmp_path / "server"
    folder.mkdir()
    with jupyterlab(course, folder) as address, playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        print("Look at", tmp_path / "page.png", "and", folder / "server.log")
        try:
            cells, seen = run_all_cells(page, address, f"notebooks/{NOTEBOOK}")
        finally:
            with suppress(playwright.Error):
                page.screenshot(path=tmp_path / "page.png")
            browser.close()

    code = [cell for cell in cells if cell["type"] == "code"]
    errors = [
        (cell["id"], output["ename"], output["evalue"])
        for cell in code
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]
    assert errors == []
    assert [cell["id"] for cell in code if cell["source"].strip() and cell["count"] is None] == []
    stored = notebooks.read(machine.HOME / "notebooks" / NOTEBOOK).cells
    assert [cell["id"] for cell in cells] == [cell.id for cell in stored]
    assert "not tried yet" in json.dumps(code)
    assert seen == {"bar": True, "curve": True, "end": True}
