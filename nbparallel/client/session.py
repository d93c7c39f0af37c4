"""The client's connection to a cluster, with the two threads that serve all of its jobs.

The collector reads the jobs' streams and hands blocks to ``running.py``; the keeper starts the cluster, stops and
closes jobs, finds lost tickets, watches that the cluster lives, and draws progress.
"""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import os
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..envelope import Verdict, open_entry
from ..errors import ClusterError, ConnectionFailed, JobError, NbparallelError, StoreFull, WireError
from ..model import WorkerInfo
from ..settings import Settings
from ..store import keys
from ..store.depot import Depot
from ..store.parts import PartsDepot
from ..store.real import RedisStore
from ..wire import seal
from .backend import Backend, View, connected, failure_of, read_workers, refusal
from .beat import Beat
from .sharing import Shares
from .streams import Streams

if TYPE_CHECKING:
    from .feeding import Feeding
    from .running import RunningJob

__all__ = ["Session"]

log = logging.getLogger(__name__)

#: Intervals, in seconds: progress views, the look at running jobs, the wait of one read of the streams, and our own
#: word that the session lives, in case that the store forgot it.
VIEW_SECONDS, LOOK_SECONDS, READ_SECONDS, ALIVE_SECONDS = 0.1, 0.5, 2.0, 2.0
#: Shares of the store's memory: results that were received are given up from the first on; at the second it is full.
TIGHT, FULL = 0.8, 0.99
#: Jobs that ended lately: a server that comes back with older data is told so again.
ENDED_KEPT = 256


class Session:
    """One client's connection to one cluster; usable from any thread of the process that made it.

    Args:
        backend: the cluster.
        settings: in force for all of its jobs.
    """

    store: RedisStore
    key: bytes
    depot: Depot | PartsDepot | None = None

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.backend, self.settings, self.namespace = backend, settings, settings.namespace
        self.sid = keys.new_id()
        self.pid = os.getpid()
        self.shares = Shares(self)
        self._app: Any = None
        self._ready = threading.Event()
        self._broken: NbparallelError | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._jobs: dict[str, RunningJob] = {}  # by key prefix
        self.streams = Streams(self.namespace, self.sid)
        self._views: dict[str, tuple[RunningJob, View]] = {}
        self._todo: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._workers: list[WorkerInfo] = []
        self._trouble_since: float | None = None
        self._trouble: Exception | None = None
        self._broker_trouble = ""
        self._beater: Beat | None = None
        self._alive_at = 0.0
        self._run_id = ""
        self._memory = 0.0
        self._ended: deque[tuple[str, str, bool]] = deque(maxlen=ENDED_KEPT)
        self._threads: list[threading.Thread] = []

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the cluster, or the connection to it, in the background. Calling it again does nothing."""
        with self._lock:
            if self._threads:
                return
            keeper = threading.Thread(target=self._keep, name="nbparallel-keeper", daemon=True)
            self._threads.append(keeper)
        keeper.start()

    def is_ready(self) -> bool:
        """Whether jobs can be submitted right now."""
        return self._ready.is_set() and self._broken is None

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until jobs can be submitted; raises why they never can."""
        if not self._ready.wait(timeout):
            raise ConnectionFailed("the cluster is still starting")
        if self._broken is not None:
            raise self._broken

    def close(self) -> None:
        """Cancel what runs, and end the cluster if it is ours. Calling it again does nothing."""
        if os.getpid() != self.pid:
            return  # a forked child: the threads and the cluster belong to the parent
        for job in list(self._jobs.values()):
            if not job.spec.detach:
                job.cancel()
        self._stopping.set()
        self._wake.set()
        with self._lock:
            threads, self._threads = self._threads, []
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5.0)
        if self.is_ready():
            self.store.close_connections()
        self.backend.stop()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._stopping.is_set()

    def check_usable(self) -> None:
        """Raise JobError when the session was closed, or belongs to the process that forked this one."""
        if self.closed:
            raise JobError("this cluster was stopped; make a new one")
        if os.getpid() != self.pid:
            raise JobError("this cluster belongs to the parent process, from which this one was forked")

    def _connect(self) -> None:
        connection = self.backend.connect()
        self.key = connection.key
        store = RedisStore(connection.store_url, self.namespace, self.settings.connect_seconds)
        store.check_server()
        self.store = store
        self.say_alive()
        self._run_id = store.run_id()
        self._workers, _ = read_workers(store, self.key)  # so that the first job has tickets for all of them
        if not self.backend.embedded and self._beater is None:
            grace = self.settings.session_grace
            command = store.beat_command(self.sid, self._beat(), int(grace * 1000))
            self._beater = Beat(store.place, command, grace / 4)
            self._beater.keep_up()
        parts = PartsDepot(store, self.settings.part_bytes, self.settings.result_ttl, remember=True)
        self.depot = Depot(connection.depot) if connection.depot else parts
        from .. import celery

        self._app = celery.make_app(connection.broker_url, self.settings)

    def say_alive(self) -> None:
        """Tell the store that this session lives; workers take nothing for one that does not."""
        grace = None if self.backend.embedded else int(self.settings.session_grace * 1000)
        self.store.session_beat(self.sid, self._beat(), grace)
        self._alive_at = time.monotonic()

    def _beat(self) -> bytes:
        return seal(self.key, ("session", self.sid), json.dumps({"pid": os.getpid()}).encode())

    def drop_file(self, name: str) -> None:
        """Remove a blob from the depot."""
        depot = self.depot
        if depot is not None and depot.local:
            depot.drop(name)
        elif depot is not None:
            self.soon(lambda: depot.drop(name))

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def collect(self, job: RunningJob) -> None:
        """Read the stream of a job's present epoch from now on."""
        with self._lock:
            rests = not self._jobs and not self._todo
            self._jobs[job.key] = job
        self.streams.add(job.key)
        if rests:
            self._wake.set()

    def reads(self, key: str) -> RunningJob | None:
        """The job whose stream is read here, if it is."""
        return self._jobs.get(key)

    def forget(self, key: str) -> None:
        """Read a stream no more."""
        with self._lock:
            self._jobs.pop(key, None)
        self.streams.forget(key)

    def watch(self, job: RunningJob, view: View) -> None:
        """Draw a job until it ends."""
        with self._lock:
            self._views[job.id] = job, view
        self._wake.set()

    def publish(self, job: Feeding, tickets: list[str]) -> None:
        """Send a message for each ticket; when the broker is away, the nudge sends new ones later."""
        if not tickets:
            return
        from .. import celery

        queue = job.spec.queue or self.settings.queue
        try:
            celery.publish(self._app, queue, job.id, job.epoch, tickets, job.spec.name)
            self._broker_trouble = ""
        except Exception as error:  # kombu's transports raise what their libraries raise
            self._broker_trouble = f"the broker does not take messages, retrying: {error}"
            log.info("%s", self._broker_trouble)
            self._wake.set()

    def stop_job(self, job: RunningJob, at: int) -> None:
        """Items at or above ``at`` need not run; done in the background."""
        key = job.key  # now: a retry begins a new epoch
        self.soon(lambda: self._stop_job(key, at))

    def _stop_job(self, key: str, at: int) -> None:
        if self.is_ready():
            self.store.stop(key, at)

    def job_ended(self, job: RunningJob) -> None:
        """Clean the store up behind a job; in the background."""
        key, state = job.key, job.state  # as they are now: a retry begins a new epoch
        if state == "cancelled":
            # What workers finished before they heard of it is still on its way.
            deadline = time.monotonic() + 2 * self.settings.cancel_grace + 1.0
            self.soon(lambda: self._close_cancelled(key, deadline))
        else:
            keep = job.spec.sized and not self.backend.embedded
            # The keeper looks within LOOK_SECONDS, so that whoever calls next need not wait for it; but it goes to
            # sleep when there is neither a job nor something to do.
            self._todo.append(lambda: self._close_job(key, state, keep))
            self.forget(key)

    def _close_cancelled(self, key: str, deadline: float) -> None:
        if self.is_ready() and self.store.stop(key, 0) > 0 and time.monotonic() < deadline:
            self.later(0.05, lambda: self._close_cancelled(key, deadline))
        else:
            self.later(0.02, lambda: self._close_job(key, "cancelled", False))

    def _close_job(self, key: str, state: str, keep: bool) -> None:
        if state == "cancelled":  # until now late results were read; else somebody may have attached meanwhile
            self.forget(key)
        if self.is_ready():
            self._ended.append((key, state, keep))
            self.store.close(key, state, keep, int(self.settings.result_ttl * 1000))

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Have the keeper call something after a pause, in seconds."""
        with self._lock:
            heapq.heappush(self._timers, (time.monotonic() + delay, next(self._count), call))
        self._wake.set()

    def soon(self, call: Callable[[], None]) -> None:
        """Have the keeper call something, again and again while the store is away."""
        self._todo.append(call)
        self._wake.set()

    # -- what a job asks -----------------------------------------------------------------------------------------------

    def slots(self, queue: str) -> int:
        """Worker processes that may run a job of this queue; at least 1."""
        queue = queue or self.settings.queue
        known = sum(worker.processes for worker in self._workers if queue in worker.queues)
        return known or self.backend.processes() or 1

    def workers(self) -> list[WorkerInfo]:
        """The workers that were seen last."""
        return list(self._workers)

    def trouble(self, error: Exception) -> None:
        """Something of the cluster is away; those who wait are told."""
        with self._lock:
            if self._trouble_since is None:
                self._trouble_since = time.monotonic()
                log.info("trouble: %s", error)
            self._trouble = error
        self._wake.set()

    def reason(self, queue: str) -> str:
        """Why a job of this queue waits, in words, or ``""``."""
        since = self._trouble_since
        if isinstance(self._trouble, StoreFull) and (since is not None or self._memory >= FULL):
            return "the store is full (maxmemory reached), waiting for room"
        if since is not None:
            return f"the cluster is unreachable for {time.monotonic() - since:.0f} s, retrying"
        if self._broker_trouble:
            return self._broker_trouble
        if not self._ready.is_set():
            return "starting the cluster"
        queue = queue or self.settings.queue
        if not any(queue in worker.queues for worker in self._workers):
            if self.backend.embedded and not self._workers:
                return "the workers are starting"
            option = "" if queue == Settings.queue else f" --queues {shlex.quote(queue)}"
            return f"no worker is listening on queue {queue!r}; start one with: nbparallel worker{option}"
        return ""

    # -- the collector -------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        trims: dict[str, str] = {}
        while not self._stopping.is_set():
            try:
                answer = self.store.read(self.streams.to_read(), int(READ_SECONDS * 1000), trims)
            except ClusterError as error:
                self.trouble(error)
                self._stopping.wait(0.1)
                continue
            self._well()
            trims.clear()
            for name, entries in answer:
                self.streams.taken(name, entries[-1][0])
                self._take(name, entries, trims)

    def _take(self, key: str, entries: list[tuple[str, bytes]], trims: dict[str, str]) -> None:
        """Take in what a stream had; what of it may go there is noted in ``trims``."""
        with self._lock:
            job = self._jobs.get(key)
        if job is None:  # the stream that wakes us, or one that was forgotten
            return
        for _, sealed in entries:
            try:
                entry = open_entry(self.key, key, sealed, self.depot)
                if isinstance(entry, Verdict):
                    job.fail(failure_of(entry, job.spec.name))
                else:
                    job.receive(entry)
            except WireError as error:
                log.warning("refused an outcome that was not sealed with our key: %s", error)
            except Exception as error:  # must never end the thread that all jobs depend on
                log.exception("an outcome could not be taken in")
                job.fail(error)
        given_up = not job.ended and (not job.spec.keep or self.backend.embedded or self._memory >= TIGHT)
        try:
            if not job.ended and (done := job.take_done_blobs()):
                self.store.drop_blobs(key, done)
            if (last := job.took(entries, given_up)) and not job.spec.detach:
                trims[key] = last
        except ClusterError as error:
            self.trouble(error)

    def _well(self) -> None:
        self._trouble_since = None

    # -- the keeper ----------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        self._broken = connected(self._connect, self._try_again)
        self._ready.set()
        if self._broken is not None:
            self._stopping.wait()
            self._stop_beating()
            return
        collector = threading.Thread(target=self._collect, name="nbparallel-collector", daemon=True)
        with self._lock:
            self._threads.append(collector)
        collector.start()
        look_at = 0.0
        while not self._stopping.is_set():
            self._wake.wait(self._pause())
            self._wake.clear()
            self._run_due()
            self._draw()
            if self._jobs and time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_SECONDS
                self._safely(self._look, again=False)  # it comes again anyway
        self._run_due()
        self._draw()
        self._safely(self._goodbye)
        collector.join(timeout=READ_SECONDS + 1)

    def _try_again(self, error: ConnectionFailed) -> bool:
        """A server that answered when the user connected may be away for a moment; an embedded one never came up."""
        self.trouble(error)
        return not (self.backend.embedded or self._stopping.wait(LOOK_SECONDS))

    def _stop_beating(self) -> None:
        if self._beater is not None:
            self._beater.stop()

    def _goodbye(self) -> None:
        self._stop_beating()
        self.store.wake(self.sid)
        detached = [job for job in self._jobs.values() if job.spec.detach and not job.ended]
        self.shares.close(set().union(*(job.uses.ids for job in detached)))
        self.store.end_session(self.sid)

    def _pause(self) -> float | None:
        now = time.monotonic()
        with self._lock:
            pauses = [timer[0] - now for timer in self._timers[:1]]
            if self._views:
                pauses.append(VIEW_SECONDS)
            if self._jobs or self._todo:
                pauses.append(LOOK_SECONDS)
        return max(0.0, min(pauses)) if pauses else None

    def _run_due(self) -> None:
        while self._todo:
            self._safely(self._todo.popleft())
        while True:
            with self._lock:
                if not self._timers or self._timers[0][0] > time.monotonic():
                    return
                call = heapq.heappop(self._timers)[2]
            self._safely(call)

    def _safely(self, call: Callable[[], None], again: bool = True) -> None:
        try:
            call()
        except ClusterError as error:
            self.trouble(error)
            if again and not self._stopping.is_set() and not self._cluster_died():
                self.later(0.3, call)  # a cancel during an outage takes effect when the store is back
        except Exception:
            log.exception("the keeper failed at a step")

    def _draw(self) -> None:
        with self._lock:
            views = list(self._views.values())
        for job, view in views:
            snapshot = job.snapshot()
            try:
                if not snapshot.finished:
                    view.update(snapshot)
                    continue
                view.close(snapshot)
            except Exception:  # a display that fails must not end the thread that all jobs depend on
                log.exception("the progress of job %s cannot be drawn any more", job.id)
            with self._lock:
                self._views.pop(job.id, None)

    def _look(self) -> None:
        """About twice a second while jobs run: does the cluster live, who works for us, were tickets lost?"""
        if self._cluster_died():
            self._restart()
            return
        if self._beater is not None:
            self._beater.keep_up()
        if time.monotonic() - self._alive_at >= ALIVE_SECONDS:
            self.say_alive()
            self.shares.tend()
        self._check_server()
        self._workers, strangers = read_workers(self.store, self.key)
        self._well()
        error = refusal(self._workers, strangers)
        if error is not None:
            for job in list(self._jobs.values()):
                job.fail(error)
        for job in list(self._jobs.values()):
            if not job.ended:
                job.nudge()

    def _check_server(self) -> None:
        """A server that was restarted may have older data than we think; one that fills up needs room."""
        run_id, self._memory = self.store.health()
        if run_id != self._run_id:
            log.info("the store was restarted")
            self.say_alive()
            for key, state, keep in self._ended:
                self.store.close(key, state, keep, int(self.settings.result_ttl * 1000))
            for job in list(self._jobs.values()):
                job.audit()
            self._run_id = run_id
        if self._memory >= TIGHT:
            with self._lock:
                detached = {key for key, job in self._jobs.items() if job.spec.detach}
            for key, last in self.streams.read_so_far().items():
                if key not in detached:
                    self.store.trim(key, last)

    def _cluster_died(self) -> bool:
        return self.backend.embedded and not self.backend.alive()

    def _restart(self) -> None:
        """The embedded cluster was killed: start it anew, and submit what is unfinished again."""
        self._ready.clear()
        self._workers = []
        try:
            self._connect()
        except NbparallelError as error:
            self._broken = error
            for job in list(self._jobs.values()):
                job.fail(error)
        finally:
            self._ready.set()
        for job in list(self._jobs.values()):
            job.lost(job.epoch)
