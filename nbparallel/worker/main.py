"""Starts a worker: a Celery worker whose children take turns, and a supervisor in its parent process.

Receives a ``WorkerConfig`` (from the guard, the command line, or the environment under ``celery -A nbparallel``).
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import socket
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

import billiard
from celery import Celery, signals
from celery.exceptions import SecurityWarning

from .. import celery as application
from ..pickling import load_function, versions
from ..remote import capture
from ..settings import Settings
from ..store.depot import Depot
from ..store.directory import make_shelf, remove
from ..store.host import HostDepot
from ..store.parts import PartsDepot
from ..store.real import RedisStore
from ..wire import seal
from .config import MOST_CHILDREN, WorkerConfig
from .courier import Courier
from .hearing import Hearing
from .slot import Slots
from .supervise import Supervisor
from .turn import Child

__all__ = ["IN_WORKER", "app_from_environment", "prepare", "run_worker", "take_turn"]

log = logging.getLogger(__name__)

#: Set in the environment of worker processes; a ``pmap`` there runs serially.
IN_WORKER = "NBPARALLEL_IN_WORKER"
#: Longest name of a job, quoted, that goes with its tickets: lines to the supervisor must stay short.
MOST_NAME = 600


class _Worker:
    """What parent and children of this process tree share: made in the parent, inherited by fork."""

    def __init__(self, app: Celery, config: WorkerConfig) -> None:
        self.app, self.config = app, config
        self.slots = Slots(MOST_CHILDREN)
        self.id = os.urandom(8).hex()
        self.child: Child | None = None
        self.queue = ""  # that of the message whose turn it is
        self.processes = config.concurrency
        self.shelf = ""
        self._shelf_lock = self._shelf_owner = -1
        self.courier = Courier(self._publish, self._waiting)
        # Made before the pool forks: children inherit the slots and the pipe to the supervisor.
        self.store = self._store()
        self.supervisor = Supervisor(
            self.store, config.key, config.settings, self.slots, self.id, self._describe, self.courier.publish
        )

    # -- in the parent -------------------------------------------------------------------------------------------------

    def make_shelf(self, **_: Any) -> None:
        """The worker starts, its children do not exist yet: where they keep what all of them read."""
        if self.config.depot:
            self.supervisor.tidy = Depot(self.config.depot).tidy
            return
        try:
            shelf, self._shelf_lock = make_shelf()
        except OSError as error:  # then each process has a copy of its own
            log.warning("no place for what the processes of this worker share: %s", error)
            return
        self.shelf, self._shelf_owner = str(shelf), os.getpid()
        self.supervisor.tidy = self._depots(self.store)[1].tidy

    def _depots(self, store: RedisStore) -> tuple[PartsDepot, HostDepot]:
        settings = self.config.settings
        parts = PartsDepot(store, settings.part_bytes, settings.result_ttl)
        return parts, HostDepot(parts, self.shelf)

    def supervise(self, sender: Any, **_: Any) -> None:
        """Start the supervisor; the children exist by now."""
        pool = getattr(sender, "pool", None)
        # With --autoscale clients are told the most there may be: Celery adds processes for the messages that wait.
        most = getattr(getattr(sender, "controller", None), "max_concurrency", None)
        self.processes = most or getattr(pool, "num_processes", None) or self.processes or 1
        if getattr(sender, "hub", None) is not None:
            self.supervisor.tell_deaths(sender.hub, pool)
            self.supervisor.hearing = Hearing(
                self.supervisor.idle,
                self.courier.waiting,
                self.supervisor.rouse,
                lambda: sender.hub.call_soon(_lose_connection),
                self.config.settings.lease_seconds,
            )
        self.courier.start()
        self.supervisor.start()
        self._expect_quit()

    def _expect_quit(self) -> None:
        """On SIGQUIT Celery kills the children before it says that it shuts down: they are not to be blamed."""
        kill: Any = signal.getsignal(signal.SIGQUIT)

        def leave(*arguments: Any) -> None:
            self.supervisor.hand_back()
            kill(*arguments)

        if callable(kill):
            signal.signal(signal.SIGQUIT, leave)

    def shutting_down(self, **_: Any) -> None:
        """SIGTERM or SIGQUIT arrived."""
        self.supervisor.hand_back()

    def shut_down(self, **_: Any) -> None:
        """The worker ends; Celery does not say so after SIGQUIT, so this is also called at the end of the process."""
        atexit.unregister(self.shut_down)
        self.supervisor.stop()
        self.courier.stop()
        if self._shelf_owner == os.getpid():
            self._shelf_owner = -1
            remove(Path(self.shelf))
            os.close(self._shelf_lock)

    def heart_beats(self, sender: Any, **_: Any) -> None:
        """Celery told of a heartbeat, on the connection that it has for events."""
        _close_spare(sender.eventer.connection.default_channel)

    def _store(self) -> RedisStore:
        return RedisStore(self.config.store_url, self.config.namespace, self.config.settings.connect_seconds)

    def _describe(self) -> bytes:
        says = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "processes": self.processes,
            "queues": self._queues(),
            "versions": versions(),
            "round_trip": round(self.store.round_trip, 4),
            "running": {
                str(running.pid): f"{running.job} {running.index}"
                for slot in self.slots.owned()
                if (running := slot.running()) is not None
            },
        }
        return seal(self.config.key, ("worker", self.id), json.dumps(says).encode())

    def _waiting(self) -> int:
        """Messages in our queues.

        Asked for on a connection of its own, as a broker may end it when there is no such queue. Redis does not, and
        there every connection counts, so it is the one that publishes.
        """
        if self.config.url.startswith(("redis", "sentinel")):
            with self.app.producer_or_acquire() as producer:
                waiting = self._lengths(producer.connection)
                _close_spare(producer.channel)
                return waiting
        with self.app.connection_for_read() as connection:
            return self._lengths(connection)

    def _queues(self) -> list[str]:
        """The queues that this worker takes from: with Celery's command, those of its ``-Q``."""
        return list(self.app.amqp.queues.consume_from)

    def _lengths(self, connection: Any) -> int:
        return sum(self._length(connection, name) for name in self._queues())

    def _length(self, connection: Any, queue: str) -> int:
        try:
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:  # Redis knows no empty queues
            return 0

    def _publish(self, job: str, ticket: str, queue: str, name: str) -> None:
        id, _, epoch = job.rpartition(":")[2].partition(".")
        application.publish(self.app, queue or self._queues()[0], id, int(epoch), [ticket], name)
        with self.app.producer_or_acquire() as producer:
            _close_spare(producer.channel)

    # -- in a child ----------------------------------------------------------------------------------------------------

    def child_starts(self, **_: Any) -> None:
        """A pool process was forked."""
        os.setpgid(0, 0)  # so that programs which the user's function starts can be told from the worker's own
        os.environ[IN_WORKER] = "1"
        # Pool processes are daemonic, and daemonic processes may not have children; users' functions may need some.
        process: Any = billiard.current_process()
        process._config["daemon"] = False
        refusal = self._run_init()
        store = self._store()
        parts, host = self._depots(store)
        self.child = Child(
            store,
            self.config.key,
            self.config.namespace,
            self.config.settings,
            self.slots[process.index],
            refusal,
            Depot(self.config.depot) if self.config.depot else parts,
            lambda: self.supervisor.tell("wake"),
            host if self.shelf else None,
            self._publish_next,
        )
        self.child.catch_output()
        self.child.fetch_shared()
        self.supervisor.tell("wake")

    def _run_init(self) -> str:
        if self.config.init is None:
            return ""
        try:
            load_function(self.config.init)()
        except BaseException as error:  # users' code; its error is told to whoever sends work
            record = capture(error, "raised", "")
            return f"init failed on {socket.gethostname()}: {record.type_name}: {record.message}\n\n{record.traceback}"
        return ""

    def take_turn(self, job: str, epoch: int, ticket: str, queue: str) -> str:
        """One turn; the parent publishes the successor, so that children need no connection to the broker."""
        if self.child is None:
            raise RuntimeError("tickets need Celery's prefork pool; start the worker with --pool prefork")
        self.queue = queue
        successor = self.child.turn(job, epoch, ticket)
        if successor is not None:
            self._publish_next(*successor)
        return "next" if successor else "done"

    def _publish_next(self, job: str, ticket: str) -> None:
        name = quote(self.child.jobs.name_of(job) if self.child else "")[:MOST_NAME]
        self.supervisor.tell(f"publish {job} {ticket} {self.queue} {name}")


def _close_spare(channel: Any) -> None:
    """Kombu looks on a connection of its own whether a Redis is there, and keeps it, though only consumers use it.

    A thousand workers have a thousand of each kind, and the server's limit is one for all.
    """
    pool = getattr(channel, "_async_pool", None)
    if pool is not None:
        pool.disconnect()


def _lose_connection() -> None:
    """Called by Celery's event loop: makes its consumer connect anew."""
    raise ConnectionResetError("the consumer takes no messages though some wait")


_worker: _Worker | None = None


def take_turn(job: str, epoch: int, ticket: str, queue: str) -> str:
    """What the generic task does."""
    if _worker is None:
        raise RuntimeError("this process is no nbparallel worker")
    return _worker.take_turn(job, epoch, ticket, queue)


def prepare(app: Celery, config: WorkerConfig) -> None:
    """Make the Celery worker that will run in this process one of ours."""
    global _worker
    _worker = _Worker(app, config)
    # It asks whether root should run a worker, in containers and on notebook servers where there is nobody else.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signals.worker_init.connect(_worker.make_shelf, weak=False)
    signals.worker_process_init.connect(_worker.child_starts, weak=False)
    signals.worker_ready.connect(_worker.supervise, weak=False)
    signals.heartbeat_sent.connect(_worker.heart_beats, weak=False)
    signals.worker_shutting_down.connect(_worker.shutting_down, weak=False)
    signals.worker_shutdown.connect(_worker.shut_down, weak=False)
    atexit.register(_worker.shut_down)


def run_worker(config: WorkerConfig) -> int:
    """Run a worker until it is told to stop; its exit code."""
    app = application.make_app(config.url, config.settings, take_turn)
    queues = config.queues or (config.settings.queue,)
    prepare(app, config)
    worker = app.Worker(
        concurrency=config.concurrency or None,
        autoscale=config.autoscale and config.autoscale[::-1],
        pool="prefork",
        queues=list(queues),
        hostname=f"nbparallel-{os.getpid()}@{socket.gethostname()}",
        loglevel="WARNING",
        optimization="fair",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=False,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def app_from_environment() -> Celery:
    """The application for ``celery -A nbparallel worker``: ``NBPARALLEL_URL``, ``NBPARALLEL_KEY_FILE`` and the others.

    Raises:
        UsageError: a variable is missing or wrong.
    """
    config = WorkerConfig.from_settings(Settings.load())
    app = application.make_app(config.url, config.settings, take_turn)
    prepare(app, config)
    return app
