"""A client over a store in memory: a real session and real jobs, with workers that a test plays, or threads."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from support import eventually
from unit.workbench import KEY, Here, new_slot, settings

from nbparallel import envelope, pickling, wire
from nbparallel.client import session as session_module
from nbparallel.client.job import Job
from nbparallel.client.reading import Input
from nbparallel.client.running import RunningJob
from nbparallel.client.session import Session
from nbparallel.client.spec import JobSpec
from nbparallel.errors import ConnectionFailed, NbparallelError
from nbparallel.model import Block, ErrorRecord
from nbparallel.settings import Settings
from nbparallel.store import keys
from nbparallel.store.fake import MemoryStore
from nbparallel.store.protocol import Claim
from nbparallel.worker.turn import Child

LEASE = 10_000_000


class Server(MemoryStore):
    """A store in memory with the little more that a session wants of it, and that can be away."""

    url = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.memory = 0.0
        self.calls: list[str] = []

    def check_server(self) -> None:
        """It is good enough."""

    def health(self) -> tuple[str, float]:
        """Its name and how full it is."""
        return self.run_id(), self.memory

    def beat_command(self, sid: str, says: bytes, ms: int) -> list[bytes]:
        """Of no use."""
        return []


class Client:
    """How the session reaches the server: each call fails while the server is away."""

    round_trip = 0.0

    def __init__(self, server: Server) -> None:
        self._server = server
        self.url = server.url
        self.place = {"url": server.url}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._server, name)

        def call(*args: Any, **options: Any) -> Any:
            self._server.calls.append(name)
            if self._server.away:
                raise ConnectionFailed("the server is away")
            if name == "read":  # so that tests, and outages, are noticed soon
                return method(args[0], min(args[1], 20), *args[2:])
            return method(*args, **options)

        return call


class Backend:
    """A cluster that exists only as far as a session looks."""

    def __init__(self, embedded: bool = True, processes: int = 2) -> None:
        self.embedded, self._processes = embedded, processes
        self.living, self.stopped, self.connects = True, False, 0
        self.error: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()

    def connect(self) -> Any:
        """Wait for the test; fail if it says so."""
        assert self.gate.wait(20)
        self.connects += 1
        if self.error is not None:
            raise self.error
        self.living = True
        return SimpleNamespace(store_url="memory", broker_url="memory://", key=KEY, depot="")

    def alive(self) -> bool:
        """Whether the cluster runs."""
        return self.living

    def processes(self) -> int:
        """Of how many worker processes it is known beforehand."""
        return self._processes

    def stop(self) -> None:
        """The session is over."""
        self.stopped = True


class Bench:
    """A session, its server, and the messages that its jobs publish.

    Args:
        monkeypatch: puts the server in the place of a real one.
        backend: the cluster.
        changes: of settings.
    """

    def __init__(self, monkeypatch: Any, backend: Backend | None = None, **changes: Any) -> None:
        self.server, self.backend = Server(), backend or Backend()
        self.messages: queue.Queue[tuple[str, int, str]] = queue.Queue()
        self.broker_error: Exception | None = None
        self.lose_messages = False
        monkeypatch.setattr(session_module, "RedisStore", lambda *_: Client(self.server))
        monkeypatch.setattr("nbparallel.celery.make_app", lambda *_: None)
        monkeypatch.setattr("nbparallel.celery.publish", self._publish)
        self.settings: Settings = settings(**changes)
        self.session = Session(self.backend, self.settings)
        self.workers: list[threading.Thread] = []
        self.over = threading.Event()
        self.claims: list[Claim] = []

    def _publish(self, app: Any, name: str, job: str, epoch: int, tickets: list[str], *_: Any) -> None:
        if self.broker_error is not None:
            raise self.broker_error
        if not self.lose_messages:
            for ticket in tickets:
                self.messages.put((job, epoch, ticket))

    def start(self) -> Bench:
        """Start the session and wait until it is connected."""
        self.session.start()
        self.session.wait_ready(10)
        return self

    def close(self) -> None:
        """End the session and the workers."""
        self.over.set()
        self.backend.gate.set()
        self.server.away = False
        self.session.close()
        for thread in self.workers:
            thread.join()

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def job(self, function: Callable[..., Any], *inputs: Iterable[Any], **options: Any) -> Job[Any]:
        """What ``pmap`` does; functions travel by name."""
        source = Input(inputs)
        given = {"name": "f", "chunks": 1, "sized": source.total is not None, "keep": source.total is not None}
        spec = JobSpec(function=pickling.dump_function(Here(function)), **{**given, **options})
        running = RunningJob(spec, source, self.session)
        job: Job[Any] = Job(running)
        running.start()
        return job

    def work(self, count: int = 2) -> None:
        """Have threads do what worker processes do, signals aside."""
        for number in range(count):
            thread = threading.Thread(target=self._work, name=f"worker{number}", daemon=True)
            self.workers.append(thread)
            thread.start()

    def _work(self) -> None:
        child = Child(self.server, KEY, "default", self.settings, new_slot())
        child._ready = True  # no signal handler, no flusher: this is not a process
        while not self.over.is_set():
            try:
                job, epoch, ticket = self.messages.get(timeout=0.02)
            except queue.Empty:
                continue
            try:
                successor = child.turn(job, epoch, ticket)
            except NbparallelError:  # such as a server that was wiped meanwhile
                logging.getLogger(__name__).debug("a turn failed", exc_info=True)
                continue
            if successor is not None:
                self.messages.put((job, epoch, successor[1]))

    # -- by hand -------------------------------------------------------------------------------------------------------

    def claim(self, job: Job[Any]) -> Claim:
        """Take the next message of the job and claim with it; waits for the message."""
        _, _, ticket = self.messages.get(timeout=10)
        token = keys.new_id()
        claim = self.server.claim(job._running.key, token, ticket, lease=LEASE, first=True, fresh=True)
        assert claim.state == "chunk", claim
        self.claims.append(claim)
        return claim._replace(id=token)

    def report(self, job: Job[Any], claim: Claim, errors: dict[int, ErrorRecord] | None = None, **known: Any) -> Block:
        """Report a chunk as done: the values are the indexes."""
        values = list(range(claim.lo, claim.hi))
        block = Block(claim.lo, len(values), pickling.dump(values), errors or {}, claim.attempt, "host:1", 0.0, [0.01])
        for name, value in known.items():
            setattr(block, name, value)
        self.send(job, claim, block)
        return block

    def send(self, job: Job[Any], claim: Claim, block: Block) -> None:
        """Report a block."""
        entry = envelope.seal_block(KEY, job._running.key, block)
        self.server.report(job._running.key, claim.id, block.lo, block.count, entry, finished=True)

    def announce(self, queues: tuple[str, ...] = ("nbparallel",), key: bytes = KEY, **known: Any) -> None:
        """A worker says that it lives."""
        says = {
            "host": "host", "pid": os.getpid(), "processes": 3, "queues": list(queues),
            "versions": pickling.versions(), "running": {}, **known,
        }  # fmt: skip
        self.server.beat("w1", wire.seal(key, ("worker", "w1"), json.dumps(says).encode()), LEASE)

    def state_of(self, job: Job[Any]) -> str | None:
        """What the store knows of the job."""
        return self.server.peek(job._running.key).state


def failure(kind: str = "raised", name: str = "ValueError", error: BaseException | None = None) -> ErrorRecord:
    """An item's failure, as a worker reports it."""
    return ErrorRecord(kind, name, "odd", "item", "", pickling.dump(error) if error is not None else b"")


def ended(job: Job[Any]) -> bool:
    """Whether the job ends soon."""
    eventually(lambda: job._running.ended, within=20, what=f"{job} ends")
    return True
