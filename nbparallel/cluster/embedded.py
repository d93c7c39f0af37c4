"""Receives settings from ``api``, starts a guard that runs a server and a worker, and hands out their URLs and key.

    EmbeddedCluster ──► guard process ──► server (Valkey or Redis, on a unix socket in a private directory)
                                      └─► worker (``python -m nbparallel.worker``) ──► its pool processes

Everything runs in sessions of its own, so a SIGINT for the client's process group does not hit it, and ends with the
client, however that ends (see ``guard``). Linux and macOS only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast
from urllib.parse import quote

from ..errors import StartupFailed, UsageError
from ..settings import Settings
from ..store.directory import SOCKET_NAME, make_depot, make_directory, remove
from . import guard
from .cpus import usable_cores
from .server import find_server, server_config

__all__ = ["EmbeddedCluster"]

#: What Python runs as the guard: isolated from the user's environment, and without site-packages for a fast start.
GUARD_COMMAND = ("-I", "-S", guard.__file__)
#: Seconds that the guard gets to end everything before it is killed itself.
STOP_SECONDS = guard.GRACE_SECONDS + guard.KILL_SECONDS + 2.0
#: Seconds between attempts to reach a server that is starting.
POLL_SECONDS = 0.005
#: Variables that set how many threads a numeric library starts in a worker process.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class EmbeddedCluster:
    """A server and workers as child processes of a guard, which end with this process.

    Args:
        workers: number of worker processes; 0: the setting, else one per usable core.
        init: pickled function for each worker process to run once; passed through untouched.
        environ: variables that the workers get on top of this process's own.
        settings: the settings in force; the workers get the same.
        worker_command: what to run in place of ``python -m nbparallel.worker``, for tests.

    After ``start``: ``url`` for Celery, ``store_url`` for redis-py, ``directory`` and ``depot``. Thread-safe.
    In a forked child of this process the cluster is not alive, and stopping it does nothing.
    """

    url: str
    store_url: str
    directory: Path
    depot: Path

    def __init__(
        self,
        workers: int = 0,
        *,
        init: bytes | None = None,
        environ: Mapping[str, str] | None = None,
        settings: Settings,
        worker_command: Sequence[str] | None = None,
    ) -> None:
        if type(workers) is not int or workers < 0:
            raise UsageError(f"workers must be a whole number, 0 (one per usable core) or more, not {workers!r}")
        self.workers = workers or settings.workers or usable_cores()
        self.key = secrets.token_bytes(32)
        self._password = secrets.token_hex(16)
        self._init = init
        self._environ = _worker_environ(environ or {}, settings)
        self._settings = settings
        self._command = list(worker_command or (sys.executable, "-m", "nbparallel.worker"))
        self._handle: _GuardHandle | None = None
        self._depot_lock = -1

    def start(self) -> None:
        """Start everything and return at once, while server and workers come up.

        Raises:
            StartupFailed: no server program, no place for the socket, or the guard cannot run.
        """
        assert self._handle is None, "start() was called twice"
        if not sys.executable:
            raise StartupFailed("the embedded cluster needs a Python program to run, but sys.executable is empty")
        server = find_server()
        self.directory, lock = make_directory(os.environ)
        self.depot, self._depot_lock = make_depot(self.directory)
        path = self.directory / SOCKET_NAME
        self.url = f"redis+socket://:{self._password}@{quote(str(path))}?virtual_host=0"
        self.store_url = f"unix://:{self._password}@{quote(str(path))}?db=0"
        commands = [
            {"name": "server", "argv": [server, "-"], "stdin": server_config(path, self._password)},
            {"name": "worker", "argv": self._command, "stdin": json.dumps(self._worker_config()) + "\n"},
        ]
        try:
            self._handle = handle = _GuardHandle(self.directory, lock, self._environ)
        except (OSError, ValueError) as error:  # ValueError: a variable's name or value that no system takes
            remove(self.directory)
            raise StartupFailed(f"the embedded cluster's guard ({sys.executable}) does not run: {error}") from error
        finally:
            os.close(lock)  # the guard holds it from now on
        self._finalizer = weakref.finalize(self, handle.end)  # at interpreter exit, too
        handle.send(json.dumps(commands).encode() + b"\n")

    def wait_server(self, timeout: float) -> None:
        """Wait until the server answers.

        Raises:
            StartupFailed: it ended, or did not answer in ``timeout`` seconds; shows the end of its log.
        """
        deadline = time.monotonic() + timeout
        while not self._answers():
            if not self.alive():
                raise StartupFailed(self.failure() or "the embedded cluster is stopped")
            if time.monotonic() > deadline:
                log = _tail(self.directory / "server.log")
                raise StartupFailed(f"the embedded server did not answer within {timeout:g} s{log}")
            time.sleep(POLL_SECONDS)

    def alive(self) -> bool:
        """Whether the guard runs; it ends everything as soon as the server or the worker ends."""
        return self._handle is not None and self._handle.alive()

    def failure(self) -> str:
        """Why everything ended without being asked to, with the end of the log; empty while it runs."""
        return self._handle.last_words() if self._handle else ""

    def stop(self) -> None:
        """End every process and remove the directory; returns when that is done. May be called again."""
        if self._handle:
            self._handle.end()
        lock, self._depot_lock = self._depot_lock, -1
        if lock >= 0:
            os.close(lock)

    def _worker_config(self) -> dict[str, object]:
        return {
            "url": self.url,
            "store_url": self.store_url,
            "key": self.key.hex(),
            "concurrency": self.workers,
            "queues": [self._settings.queue],
            "namespace": self._settings.namespace,
            "depot": str(self.depot),
            "init": self._init.hex() if self._init is not None else None,
            "settings": dataclasses.asdict(self._settings),
            "pool": "prefork",
        }

    def _answers(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(self.directory / SOCKET_NAME))
            connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
            answer = b""
            while data := connection.recv(100):
                answer += data
                if answer.endswith(b"+PONG\r\n"):
                    return True
        return False


class _GuardHandle:
    """The guard process, seen from the client. Does not refer to the cluster, whose finalizer it is."""

    def __init__(self, directory: Path, lock: int, environ: Mapping[str, str]) -> None:
        self._owner = os.getpid()
        self._directory = directory
        self._lock = threading.Lock()
        self._words = ""
        self._process = subprocess.Popen(
            [sys.executable, *GUARD_COMMAND, str(self._owner), str(directory), str(lock)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,  # nothing buffered that a forked child could flush a second time
            env=environ,
            pass_fds=(lock,),
            start_new_session=True,
        )
        self._stdin = cast(IO[bytes], self._process.stdin)
        self._stdout = cast(IO[bytes], self._process.stdout)
        # Never to wait for its end, which a child forked by another thread just now may hold back.
        os.set_blocking(self._stdout.fileno(), False)

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        with suppress(BrokenPipeError):  # the guard is gone: alive() and last_words() will tell
            while rest:
                rest = rest[self._stdin.write(rest) :]

    def alive(self) -> bool:
        return os.getpid() == self._owner and self._process.poll() is None

    def last_words(self) -> str:
        """What the guard said when it ended by itself, or began to."""
        if os.getpid() != self._owner:
            return ""
        with self._lock:
            self._listen()
            return self._words

    def end(self) -> None:
        if os.getpid() != self._owner:
            self._process.returncode = 0  # the parent's to wait for; silences Popen's ResourceWarning here
            return
        with self._lock:
            self._listen()
            if self._stdout.closed:
                return
            # A byte, since a forked child of ours may hold the pipe open and so keep its end from being seen.
            self.send(b"\n")
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()  # takes its children along, except on macOS
                self._process.wait()
            self._stdin.close()
            self._stdout.close()
            remove(self._directory)  # left over only if the guard was killed

    def _listen(self) -> None:
        if not self._stdout.closed:
            ended = self._process.poll()
            self._words += (self._stdout.read() or b"").decode(errors="replace")
            if ended is not None and not self._words:
                self._words = f"the embedded cluster's guard {guard.describe(ended)}"


def _worker_environ(extra: Mapping[str, str], settings: Settings) -> dict[str, str]:
    environ = {**os.environ, **extra}
    if settings.threads_per_worker:
        for name in THREAD_VARIABLES:
            environ.setdefault(name, str(settings.threads_per_worker))
    # A package that runs from a clone is found by this process through its sys.path, which workers do not get.
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (environ.get("PYTHONPATH"), str(root))))
    return environ


def _tail(log: Path) -> str:
    with suppress(OSError):
        text = log.read_bytes()[-guard.TAIL_BYTES :].decode(errors="replace").strip()
        return f". The end of its log:\n{text}" if text else ""
    return ""
