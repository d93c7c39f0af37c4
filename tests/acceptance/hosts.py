"""A remote cluster on one machine: a real server, and worker parents that stand for hosts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import Server, eventually, our_processes, running_server

import nbparallel
from nbparallel import connect
from nbparallel.cluster.handle import RemoteCluster
from nbparallel.store.real import RedisStore

KEY = "0123456789abcdef" * 2
ROOT = str(Path(nbparallel.__file__ or "").parents[1])
#: Short times, so that a test sees in seconds what takes a minute in earnest.
QUICK = {"lease_seconds": 2.0, "renew_seconds": 0.4, "cancel_grace": 0.3, "session_grace": 2.0}


@dataclass
class Rig:
    """A server and its hosts."""

    server: Server
    directory: Path
    settings: dict[str, Any]
    hosts: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environ(self) -> dict[str, str]:
        """The environment of hosts, and of clients in processes of their own."""
        named = {f"NBPARALLEL_{name.upper()}": str(value) for name, value in self.settings.items()}
        key = {"NBPARALLEL_URL": self.server.url, "NBPARALLEL_KEY_FILE": str(self.directory / "key")}
        # What a killed host leaves in its temporary directory goes with the rig's.
        return {**os.environ, **named, **key, "PYTHONPATH": ROOT, "TMPDIR": str(self.directory)}

    def add_host(self, processes: int = 1, command: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start a worker parent with so many children, in a session of its own; or by another command."""
        log = (self.directory / f"host{len(self.hosts)}.log").open("wb")
        with log:
            host = subprocess.Popen(
                command or (sys.executable, "-m", "nbparallel", "worker", "--concurrency", str(processes)),
                env=self.environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.hosts.append(host)
        return host

    def wait_hosts(self, count: int, within: float = 20.0) -> None:
        """Wait until so many hosts say that they live."""
        store = RedisStore(self.server.url)
        try:
            eventually(lambda: len(store.workers()) >= count, within, f"{count} hosts; {self.logs()}")
        finally:
            store.close_connections()

    def logs(self) -> str:
        """What the hosts wrote."""
        return "\n".join(path.read_text() for path in sorted(self.directory.glob("host*.log")))[-4000:]

    def client(self, code: str) -> subprocess.Popen[str]:
        """A client in a process of its own that runs the code; its output is a pipe."""
        return subprocess.Popen(
            [sys.executable, "-u", "-W", "error", "-c", code],
            env=self.environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def kill(self, host: subprocess.Popen[bytes]) -> None:
        """A host is gone: it and its children, at once."""
        family = [pid for pid, process in our_processes().items() if process.parent == host.pid]
        for pid in (host.pid, *family):
            kill(pid)
        host.wait()

    def stop(self) -> None:
        """End the hosts."""
        for host in self.hosts:
            if host.poll() is None:
                self.kill(host)


def kill(pid: int) -> None:
    """SIGKILL to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def remote(
    hosts: int = 2, processes: int = 1, *, config: tuple[str, ...] = (), **settings: Any
) -> Iterator[tuple[Rig, RemoteCluster]]:
    """A server, hosts and a connection to them."""
    with ExitStack() as stack:
        server = stack.enter_context(running_server(config=config))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="h")))
        (directory / "key").write_text(KEY)
        rig = Rig(server, directory, {**QUICK, **settings})
        stack.callback(rig.stop)
        for _ in range(hosts):
            rig.add_host(processes)
        rig.wait_hosts(hosts)
        cluster = connect(server.url, key=KEY, **rig.settings)
        stack.callback(cluster.stop)
        yield rig, cluster
