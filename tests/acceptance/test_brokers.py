"""Another broker beside the store: RabbitMQ carries the tickets, and goes away in the midst of a job."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from acceptance.hosts import KEY, QUICK, Rig, kill
from support import eventually, free_port, our_processes, running_server, unavailable

from nbparallel import connect, pmap

#: The program itself: what lies on PATH changes to a user of its own first.
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]


def logged(index: int, log: str) -> int:
    """Leaves a line at its start."""
    with open(log, "a") as file:
        file.write(f"{index}\n")
    time.sleep(0.05)
    return index


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


@pytest.fixture
def rabbit() -> Iterator[tuple[Rabbit, Rig]]:
    """A broker, a store, and two hosts."""
    if not RABBITMQ.exists():
        unavailable("rabbitmq-server")
    with ExitStack() as stack:
        broker = Rabbit(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="q"))))
        stack.callback(broker.stop)
        broker.start()
        server = stack.enter_context(running_server())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="h")))
        (directory / "key").write_text(KEY)
        rig = Rig(server, directory, {**QUICK, "broker_url": broker.url})
        stack.callback(rig.stop)
        for _ in range(2):
            rig.add_host()
        rig.wait_hosts(2)
        yield broker, rig


def test_tickets_through_rabbitmq(rabbit: tuple[Rabbit, Rig], tmp_path: Path) -> None:
    """With RabbitMQ as the broker jobs run as ever; when it is killed and comes back, every item still runs once."""
    broker, rig = rabbit
    log = tmp_path / "log"
    with connect(rig.server.url, key=KEY, **rig.settings) as cluster:
        assert pmap(abs, range(-100, 0), session=cluster).result(30) == list(range(100, 0, -1))
        job = pmap(logged, range(200), [str(log)] * 200, chunks=2, progress=False, session=cluster)
        eventually(lambda: log.exists() and len(log.read_text().split()) > 30, 20, f"the job runs {rig.logs()}")
        broker.stop()
        broker.start()
        back = time.monotonic()
        assert job.result(60) == list(range(200))
        print(f"{time.monotonic() - back:.1f} s after the broker was back")
        assert Counter(log.read_text().split()) == Counter(map(str, range(200)))
        # The workers hear of new work from the new broker.
        assert pmap(abs, range(-100, 0), session=cluster).result(30) == list(range(100, 0, -1))
