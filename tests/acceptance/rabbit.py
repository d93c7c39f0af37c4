"""RabbitMQ from Debian's package: a node of its own, in a directory of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from acceptance.hosts import KEY, Rig, kill
from support import eventually, free_port, our_processes, running_server, unavailable

#: The program itself: what lies on PATH changes to a user of its own first.
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class Rabbit:
    """A RabbitMQ in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        own = {
            "HOME": directory, "RABBITMQ_MNESIA_BASE": directory / "data", "RABBITMQ_LOG_BASE": directory / "log",
            "RABBITMQ_ENABLED_PLUGINS_FILE": directory / "plugins", "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_NODENAME": f"test{self.port}@localhost", "RABBITMQ_DIST_PORT": free_port(),
            "ERL_EPMD_PORT": free_port(), "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONFIG_FILE": directory / "none",
            "RABBITMQ_PID_FILE": directory / "pid",
        }  # fmt: skip
        self.environ = {**os.environ, **{name: str(value) for name, value in own.items()}}
        (directory / "plugins").write_text("[].\n")

    @property
    def url(self) -> str:
        """URL of the broker."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        with (self.directory / "out").open("ab") as out:
            self.process = subprocess.Popen(
                [str(RABBITMQ)], env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        eventually(self._answers, 60, f"RabbitMQ answers: {(self.directory / 'out').read_text()[-2000:]}")

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as line:
            line.settimeout(2)
            line.sendall(b"AMQP\0\0\x09\x01")
            return bool(line.recv(1))
        return False

    def stop(self) -> None:
        """Kill it, and all that it started: Erlang's port mapper is a daemon."""
        if self.process is not None:
            for pid, process in our_processes().items():
                if "epmd" in process.command or "erl" in process.command or "beam" in process.command:
                    kill(pid)
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def over_rabbitmq(**settings: Any) -> Iterator[tuple[Rabbit, Rig]]:
    """A broker, a store, and two hosts with a process each."""
    if not RABBITMQ.exists():
        unavailable("rabbitmq-server")
    with ExitStack() as stack:
        broker = Rabbit(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="q"))))
        stack.callback(broker.stop)
        broker.start()
        server = stack.enter_context(running_server())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="h")))
        (directory / "key").write_text(KEY)
        rig = Rig(server, directory, {**settings, "broker_url": broker.url})
        stack.callback(rig.stop)
        for _ in range(2):
            rig.add_host()
        rig.wait_hosts(2)
        yield broker, rig
