"""A cluster as it runs elsewhere: a real server, and workers that are started with the commands that a user types."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import Server, eventually, running_server

import nbparallel
from nbparallel import connect
from nbparallel.cluster.handle import RemoteCluster
from nbparallel.store.real import RedisStore

#: Where the tested package lies, for programs that run in other directories.
ROOT = str(Path(nbparallel.__file__ or "").parents[1])
#: The two ways to start a worker.
NBPARALLEL = ("-m", "nbparallel", "worker", "--concurrency", "2")
CELERY = ("-m", "celery", "-A", "nbparallel", "worker", "--concurrency", "2")


class Worker:
    """A worker process with what it writes."""

    def __init__(self, arguments: tuple[str, ...], environ: dict[str, str], directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environ,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out = self.err = ""
        # Its pipes must not fill up.
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("out", self.process.stdout), ("err", self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: Any) -> None:
        with stream:
            for line in stream:
                setattr(self, name, getattr(self, name) + line)

    def end(self, number: int = signal.SIGTERM, within: float = 20.0) -> int:
        """Send a signal and wait for the end; the exit status. Kills it when it does not end in time."""
        self.process.send_signal(number)
        try:
            return self.process.wait(within)
        finally:
            self.process.kill()
            self.process.wait()
            for reader in self._readers:
                reader.join()


class Elsewhere:
    """A server, the cluster's key in a file, and its workers."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server, self.directory = server, directory
        self.key = secrets.token_hex(16)
        self.key_file = directory / "cluster.key"
        self.key_file.write_text(self.key + "\n")
        self.workers: list[Worker] = []

    def environ(self, **more: str) -> dict[str, str]:
        """The environment of a machine of the cluster."""
        named = {"NBPARALLEL_URL": self.server.url, "NBPARALLEL_KEY_FILE": str(self.key_file), "PYTHONPATH": ROOT}
        return {**os.environ, **named, **more}

    def connect(self, **settings: Any) -> RemoteCluster:
        """What a client gets."""
        return connect(self.server.url, key=self.key, **settings)

    def start(self, *arguments: str, **environ: str) -> Worker:
        """Start a worker."""
        self.workers.append(Worker(arguments or NBPARALLEL, self.environ(**environ), self.directory))
        return self.workers[-1]

    def wait_for(self, count: int, namespace: str = "default", within: float = 20.0) -> None:
        """Wait until just so many workers say that they live."""
        store = RedisStore(self.server.url, namespace)
        try:
            eventually(
                lambda: len(store.workers()) == count, within, f"{count} workers; {[w.err for w in self.workers]}"
            )
        finally:
            store.close_connections()

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments to its end; gives what it wrote."""
        return subprocess.run(
            [sys.executable, *arguments],
            env=self.environ(**environ),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
        )


@contextmanager
def elsewhere(directory: Path) -> Iterator[Elsewhere]:
    """A cluster without workers on a server that listens on TCP and on a unix socket, and wants a password."""
    with running_server(tcp=True) as server:
        cluster = Elsewhere(server, directory)
        try:
            yield cluster
        finally:
            for worker in cluster.workers:
                if worker.process.poll() is None:
                    worker.end()
