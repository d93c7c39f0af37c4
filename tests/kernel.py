"""A real IPython kernel in a process of its own, driven as a notebook drives it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

with warnings.catch_warnings():  # not ours to mend
    warnings.simplefilter("ignore")
    from jupyter_client.manager import KernelManager

__all__ = ["Cell", "Kernel", "running_kernel"]

#: Seconds that a cell may take.
PATIENCE = 25.0


@dataclass
class Cell:
    """What a cell did.

    Attributes:
        stdout: what it printed.
        stderr: the same for the error stream.
        value: ``text/plain`` of its last expression.
        shown: the MIME bundles that it displayed.
        error: ``(type, message, traceback)``, when it raised.
    """

    stdout: str = ""
    stderr: str = ""
    value: str = ""
    shown: list[dict[str, Any]] = field(default_factory=list)
    error: tuple[str, str, str] | None = None


class Kernel:
    """One kernel; cells run one after the other."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.client = manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)

    def start(self, code: str) -> str:
        """Start a cell; its id."""
        return str(self.client.execute(code))

    def finish(self, id: str) -> Cell:
        """Wait until a cell has ended; what it did."""
        cell = Cell()
        for message in self._messages(id):
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                setattr(cell, content["name"], getattr(cell, content["name"]) + content["text"])
            elif kind == "execute_result":
                cell.value = content["data"]["text/plain"]
            elif kind in ("display_data", "update_display_data"):
                cell.shown.append(content["data"])
            elif kind == "error":
                cell.error = content["ename"], content["evalue"], "\n".join(content["traceback"])
            elif kind == "status" and content["execution_state"] == "idle":
                self._reply(id)
                return cell
        raise AssertionError("unreachable")

    def wait_for(self, id: str, text: str) -> None:
        """Wait until a running cell has printed a text."""
        for message in self._messages(id):
            if message["msg_type"] == "stream" and text in message["content"]["text"]:
                return

    def run(self, code: str) -> Cell:
        """Run a cell to its end."""
        return self.finish(self.start(code))

    def value(self, code: str) -> Any:
        """The value of an expression, which must have a literal as its repr; the cell must not fail."""
        cell = self.run(code)
        assert cell.error is None, cell.error
        return eval(cell.value)

    def interrupt(self) -> None:
        """Press ■."""
        self.manager.interrupt_kernel()

    def restart(self) -> None:
        """Restart the kernel, as the button does."""
        self.manager.restart_kernel()
        self.client.wait_for_ready(timeout=PATIENCE)

    def completions(self, code: str) -> list[str]:
        """What Tab offers at the end of a line."""
        return list(self._reply(self.client.complete(code, len(code)))["matches"])

    def _reply(self, id: str) -> dict[str, Any]:
        while True:  # replies to what was asked while the kernel started may still come
            message = self.client.get_shell_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") == id:
                return dict(message["content"])

    def _messages(self, id: str) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + PATIENCE
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            if message["parent_header"].get("msg_id") == id:
                yield message


@contextlib.contextmanager
def running_kernel(**environ: str) -> Iterator[Kernel]:
    """A kernel that works in a directory of its own; it is shut down at the end, with all that it started."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="k") as name:
        directory = Path(name)
        warnings.simplefilter("ignore")
        manager = KernelManager(kernel_name="python3")
        home = {"IPYTHONDIR": f"{name}/ipython", "JUPYTER_RUNTIME_DIR": name, "XDG_RUNTIME_DIR": name, "TMPDIR": name}
        home["XDG_CACHE_HOME"] = f"{name}/cache"  # a kernel that is ended while Tab fills a cache leaves half a file
        manager.connection_file = str(directory / "connection.json")
        manager.start_kernel(cwd=str(directory), env={**os.environ, **home, **environ})
        kernel = Kernel(manager)
        try:
            yield kernel
        finally:
            kernel.client.stop_channels()
            manager.shutdown_kernel()
            manager.context.destroy()
