"""``concurrent.futures.Executor`` on a cluster: ``submit`` feeds single calls into one job, ``map`` is a ``pmap``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future
from typing import Any, TypeVar

from . import pickling
from .api import IN_WORKER, Options, Where, _check_options, pmap, pstarmap
from .calls import Call, Initialized, run_call
from .client.feed import Feed, run_here
from .client.job import Job
from .client.serial import SerialJob
from .client.spec import JobSpec
from .cluster.handle import Cluster, default_cluster
from .errors import ResultDropped, ResultNotReady, UsageError
from .policies import RetryPolicy
from .settings import Settings
from .store.keys import new_id

__all__ = ["Executor", "Stream"]

R = TypeVar("R")


class Executor(futures.Executor):
    """Runs calls on a cluster; a ``concurrent.futures.Executor``, also for ``asyncio``'s ``run_in_executor``.

    Functions may be defined anywhere, lambdas and closures too; they are taken as they are when they are submitted.

    Args:
        max_workers: worker processes of an embedded cluster of its own, which ends with ``shutdown``; on a cluster
            that is there already (``session``, ``NBPARALLEL_URL``), the most calls that run at once. None: the
            cluster that ``pmap`` uses, without limit.
        initializer: called once in each worker process, before it runs anything of this executor.
        initargs: its arguments.
        session: a ``Cluster``, what ``connect`` returned, or ``"serial"``.
        retries: how often a failed call is tried again, or a ``RetryPolicy``.
        timeout: seconds that one call may run.
        queue: Celery queue; by default the setting's.
        name: what progress views call its jobs.
        progress: whether ``map`` shows progress.

    Raises:
        UsageError: an argument is wrong.

    >>> from nbparallel import Executor
    >>> with Executor(session="serial") as executor:
    ...     executor.submit(pow, 2, 5).result(), list(executor.map(abs, [-1, 2]))
    (32, [1, 2])
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        session: Where = None,
        retries: int | RetryPolicy = 0,
        timeout: float | None = None,
        queue: str | None = None,
        name: str | None = None,
        progress: bool | str = False,
    ) -> None:
        if max_workers is not None and (type(max_workers) is not int or max_workers < 1):
            raise UsageError(f"the number of workers must be at least 1, not {max_workers!r}")
        if initializer is not None and not callable(initializer):
            raise UsageError(f"initializer must be a function, not {initializer!r}")
        options = Options(
            session=session,
            max_running=max_workers or 0,
            retries=retries,
            timeout=timeout,
            queue=queue,
            name=name,
            progress=progress,
        )
        _check_options(options)
        self._initializer, self._initargs, self._pool_id = initializer, tuple(initargs), new_id()
        self._lock = threading.Lock()
        self._closed = False
        self._own: Cluster | None = None
        self._feed: Feed | None = None
        self._jobs: list[Job[Any]] = []
        self._blob = b""
        self._serial = session == "serial" or bool(os.environ.get(IN_WORKER))
        if not self._serial and session is None:
            if max_workers is not None and Settings.load().url is None:
                session = self._own = Cluster(max_workers)
                session.session  # noqa: B018  (starts it)
                options["max_running"] = 0
            else:
                session = default_cluster()
        self._options = Options(**{**options, "session": session})

    # -- single calls --------------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Have ``fn(*args, **kwargs)`` called on the cluster.

        A call that was not sent yet can be cancelled through its future.

        Raises:
            RuntimeError: after ``shutdown``.
            SerializationError: the function cannot be pickled. (Arguments that cannot fail the future.)
        """
        if not callable(fn):
            raise UsageError(f"the first argument must be a function, not {fn!r:.60}")
        blob = pickling.dump_function(self._initialized(fn))
        with self._lock:
            self._check_open()
            # The same object for the same bytes: within a chunk it is then pickled once.
            self._blob = blob = self._blob if blob == self._blob else blob
            if self._feed is None and not self._serial:
                self._feed = Feed(self._spec(), self._options["session"].session)  # type: ignore[union-attr]
        call = Call(blob, getattr(fn, "__name__", type(fn).__name__), args, kwargs)
        return run_here(run_call, call) if self._feed is None else self._feed.put(call)

    def _spec(self) -> JobSpec:
        retries = self._options["retries"]
        policy = retries if isinstance(retries, RetryPolicy) else RetryPolicy(retries)
        return JobSpec(
            name=self._options["name"] or type(self).__name__,
            function=pickling.dump_function(run_call),
            ordered=False,
            on_error="return",
            retry=policy if policy.retries else None,
            timeout=self._options["timeout"],
            queue=self._options["queue"] or "",
            keep=False,
            sized=False,
            max_running=self._options["max_running"],
        )

    def _initialized(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        if self._initializer is None:
            return fn
        return Initialized(fn, self._initializer, self._initargs, self._pool_id)

    # -- many ----------------------------------------------------------------------------------------------------------

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Like ``map``; results come in input order, and leaving the loop stops the rest.

        Args:
            fn: the function.
            *iterables: the items.
            timeout: seconds from now in which each result must be there.
            chunksize: items in a chunk; 1: chosen by how long they take.
            buffersize: when given, input is read only as results are taken.

        Raises:
            TimeoutError: from the iterator, when ``timeout`` passed.
        """
        if chunksize < 1:
            raise UsageError(f"chunksize must be at least 1, not {chunksize!r}")
        job = self.start(fn, *iterables, chunks=None if chunksize == 1 else chunksize, keep=buffersize is None)
        return _map_results(job, None if timeout is None else time.monotonic() + timeout)

    def start(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        chunks: int | None = None,
        star: bool = False,
        **more: Any,
    ) -> Job[R]:
        """The job of a ``map``; for ``Pool``."""
        with self._lock:
            self._check_open()
        run = pstarmap if star else pmap
        job: Job[R] = run(self._initialized(fn), *iterables, **{**self._options, "chunks": chunks or "auto", **more})
        with self._lock:
            self._jobs = [job, *(job for job in self._jobs if job.status in ("starting", "running"))]
        return job

    # -- the end -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def close(self) -> None:
        """Take no more calls."""
        with self._lock:
            self._closed = True
        if self._feed is not None:
            self._feed.close()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the cluster if it is this executor's own.

        Args:
            wait: return when everything has run; else that happens in the background.
            cancel_futures: cancel the calls that were not sent yet.
        """
        self.close()
        if cancel_futures and self._feed is not None:
            self._feed.cancel_waiting()
        if wait:
            self._finish()
        elif self._own is not None:
            threading.Thread(target=self._finish, name="nbparallel-shutdown").start()

    def _finish(self) -> None:
        if self._feed is not None:
            self._feed.wait()
        for job in self._jobs:
            if job._spec.keep:  # else it waits for its reader
                job.wait()
        self._stop_own()

    def cancel(self) -> None:
        """Stop everything at once; for ``Pool.terminate``."""
        self.close()
        if self._feed is not None:
            self._feed.cancel()
        for job in self._jobs:
            job.cancel()
        if self._feed is not None:
            self._feed.wait()
        self._stop_own()

    def _stop_own(self) -> None:
        if self._own is not None:
            self._own.stop()


class Stream(Iterator[R]):
    """Results of a job one by one, each with a time limit of its own."""

    def __init__(self, job: Job[R]) -> None:
        self.job = job
        self._rest = iter(job)
        self._count = 0

    def __next__(self) -> R:
        value = next(self._rest)
        self._count += 1
        return value

    def next(self, timeout: float | None = None) -> R:
        """The next result.

        Raises:
            ResultNotReady: it was not there within ``timeout`` seconds; ask again later.
        """
        if timeout is not None and not isinstance(self.job, SerialJob):
            self.job._wait(self._is_there, timeout)
        return next(self)

    def _is_there(self) -> bool:
        running = self.job._running
        find = running.results.ordered if running.spec.ordered else running.results.arrived
        try:
            return running.ended or find(self._count) is not None
        except ResultDropped:  # with those before it, which came in one piece
            return True


def _map_results(job: Job[R], deadline: float | None) -> Iterator[R]:
    stream = Stream(job)
    try:
        while True:
            try:
                yield stream.next(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except StopIteration:
                return
            except ResultNotReady as error:
                raise futures.TimeoutError(str(error)) from None
    finally:
        job.cancel()
