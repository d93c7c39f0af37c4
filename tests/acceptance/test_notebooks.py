"""The notebooks: each runs from top to bottom, here and as Binder builds it, and was saved with outputs to read."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from acceptance.conftest import ROOT
from support import eventually, imported

nbclient = imported("nbclient")

HERE = Path(__file__).parents[2]
NOTEBOOKS = HERE / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))

#: What a run must show, and what the saved notebook shows.
SHOWN = {
    "01-quickstart": [
        r"estimate_pi: done, 60 items",
        r"3\.14117666",
        r"after 40 items: 3\.1414",
        r"RemoteError\('ZeroDivisionError: division by zero'\)",
        r"item 2 \(0\): ZeroDivisionError",
        r"cancelled, \d+ results kept; item 3 gave 3\.1378",
        r"eht kciuq nworb",
        r"the same again",
    ],
    "02-parameter-sweep": [r"outbreak: done, 3,600 items", r"<3,600 points of r0, coverage, run>", r"attempts"],
    "03-fork-join": [
        r"Counter\(\{'the': 3, 'cat': 1",
        r"WordCount: done, [\d,]+ items",
        r"[\d,]{3,} files, [\d,]{7,} words",
        r"shortest: must be of integer type",
        r"folder: required field",
    ],
    "04-moving-a-pool": [
        r"(?m)^AAPL +\d+ +\(\d+ to \d+\)$",
        r"the same output",
        r"nbparallel +\d\.\d\d s",
        r"sleep\(60\)\): ran for 0\.\d+ s, longer than its timeout",
        r"the other one is done: True",
        r"100 naps of a minute, stopped after \d\.\d s",
    ],
    "05-research-files": [
        r"sunshine: done, 46 items in .*, 3 retried",
        r"3 tries met an overloaded archive, 1 download for 46 days",
        r"done again: \[145, 153\]",
        r"cannot fetch http://127\.0\.0\.1:\d+/matterhorn\.npz: FileNotFoundError",
    ],
    "06-queues-and-flower": [
        r"1,000,000 numbers in \d+\.\d s",
        r"grew by \d\d? MB, and the store never held more than \d\d? MB",
        r"worker on cpu, io +worker on cpu, net",
        r"thread [0369] on cpu \(nbparallel\.turn\) +\d+ +\d+",
        r"thread [147] on io \(nbparallel\.turn\) +\d+ +0",
        r"thread [258] on net \(nbparallel\.turn\) +0 +\d+",
    ],
    "07-messaging-benchmark": [
        r"raw Redis +2000 +\d+\.\d+ +1 +73",
        r"Celery \+ Redis +500 +\d+\.\d+ +\d+ +122",
        r"Celery \+ RabbitMQ +500 +\d+\.\d+ +\d+ +254|RabbitMQ is not installed here",
        r"pmap +100000 +\d\.\d+ +[5-9]",
    ],
}
#: How many pictures it has.
PICTURES = {
    "01-quickstart": 0,
    "02-parameter-sweep": 2,
    "03-fork-join": 1,
    "04-moving-a-pool": 0,
    "05-research-files": 1,
    "06-queues-and-flower": 1,
    "07-messaging-benchmark": 1,
}
#: What Binder cannot show whole, as it has no RabbitMQ; the others run in a usual run as Binder runs them, and only so.
BROKERS = {"07-messaging-benchmark"}
STATIC = {"text/plain", "text/html", "image/png"}


def read(path: Path) -> Any:
    """A notebook."""
    import nbformat

    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def outputs(notebook: Any) -> list[Any]:
    """All outputs of a notebook."""
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def check(name: str, notebook: Any) -> None:
    """The outputs are those that the notebook is about, and need neither a kernel nor scripts."""
    texts, kinds = [], []
    for output in outputs(notebook):
        assert output.output_type in ("stream", "display_data", "execute_result"), output
        data = output.get("data", {})
        assert set(data) <= STATIC
        assert output.get("name") != "stderr", output
        kinds += list(data)
        texts.append(output.get("text") or data.get("text/plain", ""))
    shown = "\n".join(texts)
    for pattern in SHOWN[name]:
        assert re.search(pattern, shown), f"{pattern} is not in:\n{shown}"
    assert kinds.count("image/png") == PICTURES[name]
    assert "widgets" not in notebook.metadata


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in BROKERS else pytest.mark.soak) for name in NAMES]
)
def test_runs(name: str, tmp_path: Path) -> None:
    """The notebook runs in a real kernel, in less than half a minute of its cells' time, and shows what it promises."""
    folder = shutil.copytree(NOTEBOOKS, tmp_path / "notebooks")
    notebook = read(folder / f"{name}.ipynb")
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    client = nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PYTHONPATH": ROOT, "NBPARALLEL_WORKERS": "2"})
    check(name, notebook)


@pytest.mark.parametrize("name", NAMES)
def test_saved(name: str) -> None:
    """The saved notebook shows the same, was run from top to bottom, and tells nothing of the machine it ran on."""
    notebook = read(NOTEBOOKS / f"{name}.ipynb")
    check(name, notebook)
    ran = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert ran == list(range(1, len(ran) + 1))
    texts = [output.get("text", "") + output.get("data", {}).get("text/html", "") for output in outputs(notebook)]
    places = rf"(?<![\w.])/(?:tmp/(?!ipykernel_)|(?:home|root|usr|var|Users)/).*|{re.escape(socket.gethostname())}.*"
    assert re.findall(places, "\n".join(texts)) == []


def test_every_notebook_is_known() -> None:
    """No notebook escapes the tests above, and the quickstart leads to each other one."""
    assert set(NAMES) == set(SHOWN) == set(PICTURES)
    quickstart = (NOTEBOOKS / "01-quickstart.ipynb").read_text(encoding="utf-8")
    for name in NAMES[1:]:
        assert f"({name}.ipynb)" in quickstart


# -- Binder ------------------------------------------------------------------------------------------------------------


def checkout() -> Path:
    """The sources: beside the tests, or where the tested package was installed from."""
    if (HERE / "nbparallel").is_dir():
        return HERE
    origin = json.loads(distribution("nbparallel").read_text("direct_url.json") or "{}")
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(origin["url"]).path))


def opened_by(folder: Path, environ: dict[str, str]) -> str:
    """The path at which somebody arrives who opens JupyterLab's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["binder/start", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=binder"]
    with (
        (folder / "jupyter.log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log) as server,
    ):

        def arrived() -> str:
            assert server.poll() is None, (folder / "jupyter.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/?token=binder", timeout=30) as page:
                    return urllib.parse.urlsplit(page.url).path
            except urllib.error.URLError:  # not yet
                return ""

        try:
            return eventually(arrived, within=60, what="JupyterLab answers")
        finally:
            server.terminate()


def run(folder: Path, environ: dict[str, str], *command: str) -> None:
    """Run one step of Binder's."""
    done = subprocess.run(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.timeout(600)
def test_binder(tmp_path: Path) -> None:
    """What Binder does with a clone gives an environment that opens on the quickstart and runs every notebook."""
    home = tmp_path / "home"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist")
    clone = shutil.copytree(checkout(), tmp_path / "clone", ignore=ignored)
    terminals = clone / "notebooks" / "terminals.py"  # Binder has no RabbitMQ
    terminals.write_text(re.sub(r"(?m)^RABBITMQ = .*", "RABBITMQ = None", terminals.read_text()))
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "COV_"))}
    environ |= {"PATH": f"{venv}/bin:{os.environ['PATH']}", "HOME": str(home), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    run(clone, environ, "pip", "install", "--no-cache-dir", "--quiet", "-r", "binder/requirements.txt")
    run(clone, environ, "binder/postBuild")
    assert opened_by(clone, environ) == "/lab/tree/notebooks/01-quickstart.ipynb"
    for name in NAMES:
        path = f"notebooks/{name}.ipynb"
        run(clone, environ, "binder/start", "jupyter", "execute", "--inplace", "--timeout=200", path)
        check(name, read(clone / path))
