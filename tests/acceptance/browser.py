"""Drives a real notebook in a real browser: a private Jupyter server, headless Chromium, cells run by commands."""

from __future__ import annotations

import ast
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import eventually, unavailable

__all__ = ["Page", "Server", "artefact", "browser", "notebook_file", "older_kernel", "server"]

#: Where Debian puts it; None when this machine has none.
_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
_QUIET = {
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
}
#: Folder for screenshots and measurements that somebody wants to look at.
_ARTEFACTS = os.environ.get("TESTS_ARTEFACTS", "")
_BUSY = "() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status"


class Server:
    """A Jupyter server of its own, with directories of its own.

    Args:
        home: an empty directory for everything it writes.
        front_end: ``lab`` or ``notebook``.
        environ: added to the environment of server and kernels.
        python: the interpreter that has Jupyter.
    """

    def __init__(
        self, home: Path, front_end: str = "lab", environ: dict[str, str] | None = None, python: str = sys.executable
    ) -> None:
        self.root = home / "notebooks"
        self.front_end = front_end
        self.token = secrets.token_hex(8)
        self.root.mkdir(parents=True)
        names = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "run"}
        names |= {"IPYTHONDIR": "ipython", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "spaces"}
        private = {name: str(home / folder) for name, folder in names.items()}
        for name, value in _QUIET.items():
            file = home / "settings" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = home / "server.log"
        module = "jupyterlab" if front_end == "lab" else front_end
        command = [
            python, "-m", module, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.root}", "--expose-app-in-browser",
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.root, env=os.environ | private | (environ or {}), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        eventually(self._answers, 40, f"the Jupyter server answers; see {self.log}")

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail(f"the Jupyter server ended:\n{self.log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(f"{self.url}/api?token={self.token}", timeout=2).close()
        except OSError:
            return False
        return True

    def address(self, notebook: str) -> str:
        """The URL that opens a notebook."""
        tree = "lab/tree" if self.front_end == "lab" else "notebooks"
        return f"{self.url}/{tree}/{notebook}?token={self.token}&reset"

    def close(self) -> None:
        """End the server and its kernels."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Page:
    """One notebook, open in a page of the browser.

    Args:
        page: the page, as Playwright has it.
    """

    def __init__(self, page: Any, server: Server, notebook: str) -> None:
        self.page = page
        self.requests: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(server.address(notebook))
        page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length", timeout=60_000
        )
        page.wait_for_selector(".jp-Cell", timeout=30_000)

    def idle(self, seconds: float = 60) -> None:
        """Wait until the kernel is idle; right after ``run`` it may still look so."""
        self.page.wait_for_function(f"() => ({_BUSY})() === 'idle'", timeout=seconds * 1000)

    def run(self, cell: int) -> None:
        """Start a cell, and return as soon as it is on its way."""
        self.page.evaluate(
            """cell => { jupyterapp.shell.currentWidget.content.activeCellIndex = cell;
                         void jupyterapp.commands.execute("notebook:run-cell"); }""",
            cell,
        )

    def wait(self, cell: int, seconds: float = 60) -> None:
        """Wait until a cell that was started has ended."""
        self.page.wait_for_function(
            """cell => /\\[\\d+\\]/.test(document.querySelectorAll(".jp-Cell")[cell]
                              .querySelector(".jp-InputPrompt").textContent)""",
            arg=cell,
            timeout=seconds * 1000,
        )
        self.idle(seconds)

    def add(self, code: str) -> int:
        """Append a cell; its index."""
        cell: int = self.page.evaluate(
            """code => { const { cells } = jupyterapp.shell.currentWidget.content.model.sharedModel;
                         jupyterapp.shell.currentWidget.content.model.sharedModel.insertCell(cells.length,
                           { cell_type: "code", source: code, metadata: {} });
                         return jupyterapp.shell.currentWidget.content.model.cells.length - 1; }""",
            code,
        )
        self.page.locator(".jp-Cell").nth(cell).wait_for(timeout=10_000)
        return cell

    def start(self, code: str) -> int:
        """Append a cell and start it."""
        cell = self.add(code)
        self.run(cell)
        return cell

    def value(self, code: str) -> Any:
        """The value of an expression, which must have a literal as its repr, by a new cell."""
        cell = self.start(code)
        self.wait(cell)
        output = self.outputs()[cell][-1]
        assert output["output_type"] == "execute_result", output
        return ast.literal_eval(output["data"]["text/plain"])

    def outputs(self) -> list[list[dict[str, Any]]]:
        """The outputs of every cell."""
        found: list[list[dict[str, Any]]] = self.page.evaluate(
            "() => Array.from(jupyterapp.shell.currentWidget.content.model.cells, cell => cell.outputs?.toJSON() ?? [])"
        )
        return found

    def command(self, name: str, **arguments: Any) -> None:
        """Execute a command of the front end and wait for its end."""
        self.page.evaluate("([name, args]) => jupyterapp.commands.execute(name, args)", [name, arguments])

    def interrupt(self) -> None:
        """Press ■."""
        self.page.locator("[data-jp-item-name='interrupt'] jp-button").click()

    def save(self) -> None:
        """Save the notebook."""
        self.command("docmanager:save")

    def output(self, cell: int) -> Any:
        """The output area of a cell, as a locator."""
        return self.page.locator(".jp-Cell").nth(cell).locator(".jp-Cell-outputArea")

    def strangers(self) -> list[str]:
        """Requests that went anywhere else than to the server."""
        local = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")
        return [url for url in self.requests if not url.startswith(local)]


@contextmanager
def server(
    home: Path, front_end: str = "lab", environ: dict[str, str] | None = None, python: str = sys.executable
) -> Iterator[Server]:
    """A server that is ended in the end."""
    running = Server(home, front_end, environ, python)
    try:
        yield running
    finally:
        running.close()


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; skips the test when there is none (in CI: fails it)."""
    if _CHROMIUM is None:
        unavailable("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright")

    with tempfile.TemporaryDirectory(dir="/tmp") as home, sync_playwright() as playwright:
        environ: dict[str, Any] = os.environ | dict.fromkeys(
            ("HOME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"), home
        )
        chromium = playwright.chromium.launch(executable_path=_CHROMIUM, headless=True, args=_FLAGS, env=environ)
        try:
            yield chromium
        finally:
            chromium.close()


def notebook_file(path: Path, *cells: str) -> Path:
    """Write a notebook with these code cells."""
    from nbformat import v4, write

    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])  # type: ignore[no-untyped-call]
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    write(notebook, path)  # type: ignore[no-untyped-call]
    return path


def older_kernel(folder: Path) -> dict[str, str]:
    """The environment in which a server finds ipykernel 6; skips the test when it cannot be had (in CI: fails it)."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, "ipykernel<7", "nest-asyncio"], capture_output=True, text=True, timeout=100)
    if done.returncode:
        unavailable(f"ipykernel 6 ({done.stderr.strip()[-300:]})")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def artefact(name: str) -> Path | None:
    """Where to leave something for somebody to look at; None when nobody asked."""
    if not _ARTEFACTS:
        return None
    Path(_ARTEFACTS).mkdir(parents=True, exist_ok=True)
    return Path(_ARTEFACTS, name)
