"""Amazon's services on this machine: moto's server, a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import eventually, free_port, needed


@dataclass(frozen=True)
class Moto:
    """The server's address, and the file in which it notes every request."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        """URL of all its services."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def moto_server() -> Iterator[Moto]:
    """A server without anything in it."""
    needed("moto", "flask")
    with tempfile.TemporaryDirectory(prefix="aws") as directory:
        moto = Moto(free_port(), Path(directory) / "log")
        with moto.log.open("wb") as out:
            server = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-p", str(moto.port)], stdout=out, stderr=out
            )
        try:
            eventually(lambda: _answers(moto.url), 60, "moto's server answers")
            yield moto
        finally:
            server.kill()
            server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False
