"""Turns calls that come one by one into items of a job: hands each caller a Future. Used by executors and fork-joins.

Calls wait in a ``_Waiting``, which the job's feeder reads like any input: as many as there are, in chunks sized as for
any other job. When no call came for a while the job ends, so that an idle executor costs nothing; the next call
starts another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from ..errors import ItemError, JobCancelled
from ..remote import to_raise
from .job import Job
from .reading import Input
from .running import RunningJob
from .session import Session
from .spec import JobSpec

__all__ = ["Feed", "run_here"]

#: Seconds without a call after which the job ends.
IDLE_SECONDS = 0.5


class _Waiting(Input):
    """The input of a job to which calls are added while it runs; reading it waits for one call, never for a second."""

    def __init__(self) -> None:
        super().__init__([iter(())])
        self.taken: dict[int, Future[Any]] = {}  # by index of the item
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Any]] = deque()
        self._over = False
        self._count = 0

    def put(self, future: Future[Any], item: Any) -> bool:
        """Add a call; False when the job ends and takes no more."""
        with self._changed:
            if not self._over:
                self._calls.append((future, item))
                self._changed.notify_all()
            return not self._over

    @property
    def exhausted(self) -> bool:
        """Whether there is no more to take."""
        with self._changed:
            return self._over and not self._calls

    def take(self, count: int) -> list[Sequence[Any]]:
        """A column of the next calls that nobody cancelled; an empty one at the end."""
        items: list[Any] = []
        with self._changed:
            while True:
                while self._calls and len(items) < count:
                    future, item = self._calls.popleft()
                    if future.set_running_or_notify_cancel():
                        self.taken[self._count] = future
                        self._count += 1
                        items.append(item)
                if items or self._over:
                    return [items]
                self._over = not self._changed.wait(IDLE_SECONDS) and not self._calls

    def read_ahead(self) -> None:
        """Not needed: a call that is there never waits for another."""

    def close(self) -> None:
        """Take no more calls."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def drop(self) -> list[Future[Any]]:
        """Take no more calls, and give up those that wait: their futures."""
        with self._changed:
            self._over = True
            dropped = [future for future, _ in self._calls]
            self._calls.clear()
            self._changed.notify_all()
        return dropped


class Feed:
    """Runs calls of one function as they come. Every method may be called from any thread.

    Args:
        spec: of the jobs; results are handed to the futures, so nothing is kept.
        session: runs them.
    """

    def __init__(self, spec: JobSpec, session: Session) -> None:
        self._spec, self._session = spec, session
        self._lock = threading.Lock()
        self._waiting: _Waiting | None = None
        self._active: dict[threading.Thread, tuple[Job[Any], _Waiting]] = {}

    def put(self, item: Any) -> Future[Any]:
        """Have the function called with the item."""
        future: Future[Any] = Future()
        with self._lock:
            if self._waiting is None or not self._waiting.put(future, item):
                self._waiting = _Waiting()
                self._waiting.put(future, item)
                self._start(self._waiting)
        return future

    def _start(self, waiting: _Waiting) -> None:
        running = RunningJob(self._spec, waiting, self._session)
        job: Job[Any] = Job(running)
        running.start()
        reader = threading.Thread(target=self._read, args=(job, waiting), name="nbparallel-futures", daemon=True)
        self._active[reader] = job, waiting
        reader.start()

    def _read(self, job: Job[Any], waiting: _Waiting) -> None:
        """The reader's thread: outcomes into futures, until the job has ended."""
        failure: BaseException = JobCancelled(f"job {job.name!r} ended before this call")
        try:
            for index, value in job.as_completed():
                future = waiting.taken.pop(index)
                if isinstance(value, ItemError):
                    future.set_exception(to_raise(value))
                else:
                    future.set_result(value)
                del future, value  # nothing is kept while waiting for the next
        except BaseException as error:
            failure = error
        for future in waiting.drop():
            if future.set_running_or_notify_cancel():
                future.set_exception(failure)
        for future in waiting.taken.values():
            future.set_exception(failure)
        with self._lock:
            del self._active[threading.current_thread()]

    def close(self) -> None:
        """No more calls will come; those that wait are run."""
        with self._lock:
            if self._waiting is not None:
                self._waiting.close()

    def cancel_waiting(self) -> None:
        """Cancel the calls that were not sent yet."""
        with self._lock:
            dropped = [future for _, waiting in self._active.values() for future in waiting.drop()]
        for future in dropped:  # outside of the lock: callbacks run here
            future.cancel()
            future.set_running_or_notify_cancel()

    def cancel(self) -> None:
        """Stop everything; futures that are not done raise JobCancelled."""
        self.cancel_waiting()
        with self._lock:
            jobs = [job for job, _ in self._active.values()]
        for job in jobs:
            job.cancel()

    def wait(self) -> None:
        """Wait until every call has its outcome; call ``close`` before."""
        with self._lock:
            readers = list(self._active)
        for reader in readers:
            if reader is not threading.current_thread():  # a callback may shut its executor down
                reader.join()


def run_here(function: Callable[[Any], Any], item: Any) -> Future[Any]:
    """Call the function now, for ``session="serial"`` and inside of workers; its outcome as a future."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    try:
        future.set_result(function(item))
    except Exception as error:
        future.set_exception(error)
    return future
