"""``multiprocessing.Pool``'s interface over ``executor.py``, so that changing one import moves a program."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from multiprocessing import TimeoutError as PoolTimeout
from types import TracebackType
from typing import Any, Generic, TypeVar

from .api import Where
from .client.job import Job
from .errors import ItemError, JobCancelled, ResultNotReady
from .executor import Executor, Stream
from .policies import RetryPolicy
from .remote import to_raise

__all__ = ["AsyncResult", "Pool"]

R = TypeVar("R")

Callback = Callable[[Any], object]


class AsyncResult(Generic[R]):
    """The result of a call that runs in the background; ``multiprocessing.pool.AsyncResult``."""

    def __init__(self, future: Future[R], callback: Callback | None, error_callback: Callback | None) -> None:
        self._future = future
        self._callbacks = callback, error_callback
        self._ready = threading.Event()
        future.add_done_callback(self._done)

    def _done(self, future: Future[R]) -> None:
        callback, error_callback = self._callbacks
        try:
            if future.cancelled() or future.exception() is not None:
                if error_callback is not None:
                    error_callback(JobCancelled("terminated") if future.cancelled() else future.exception())
            elif callback is not None:
                callback(future.result())
        finally:
            self._ready.set()  # after the callback, as programs expect

    def ready(self) -> bool:
        """Whether the call has ended."""
        return self._ready.is_set()

    def successful(self) -> bool:
        """Whether it ended without an exception; ValueError when it has not ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return not self._future.cancelled() and self._future.exception() is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, at most ``timeout`` seconds."""
        self._ready.wait(timeout)

    def get(self, timeout: float | None = None) -> R:
        """The result, or what the function raised; ``multiprocessing.TimeoutError`` after ``timeout`` seconds."""
        self.wait(timeout)
        if not self.ready():
            raise PoolTimeout(f"no result within {timeout} s")
        if self._future.cancelled():
            raise JobCancelled("the pool was terminated before this call")
        return self._future.result()


class _Results(Iterator[R]):
    """What ``imap`` returns: an item that failed raises in its place, and the next follows."""

    def __init__(self, job: Job[R]) -> None:
        self.job = job
        self._stream = Stream(job)
        self._drained: deque[R] | None = None

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        return self.next()

    def next(self, timeout: float | None = None) -> R:
        """The next result; ``multiprocessing.TimeoutError`` after ``timeout`` seconds."""
        if self._drained is not None:
            if not self._drained:
                raise StopIteration
            value = self._drained.popleft()
        else:
            try:
                value = self._stream.next(timeout)
            except ResultNotReady as error:
                raise PoolTimeout(str(error)) from None
        if isinstance(value, ItemError):
            raise to_raise(value)
        return value

    def drain(self) -> None:
        """Have everything run, though nobody reads: input without length is read as results are taken."""
        if self.job._spec.keep:
            self.job.wait()
        else:
            self._drained = deque(self._stream)


class Pool:
    """A pool of worker processes with ``multiprocessing.Pool``'s interface, on this machine or on many.

    ``from nbparallel import Pool`` in place of ``from multiprocessing import Pool`` moves a program: without
    ``NBPARALLEL_URL`` in the environment its calls run in processes of this machine, with it on that cluster.

    Functions may also be lambdas and closures. Input without length is read as results are taken, so that ``imap``
    over an endless generator is fine. After a failed item ``map`` stops the rest.

    Args:
        processes: number of worker processes; on a cluster that is there already, the most that work for this pool.
            None: all there are.
        initializer: called once in each worker process, before it runs anything of this pool.
        initargs: its arguments.
        maxtasksperchild: accepted, without effect.
        context: accepted, without effect.
        session: a ``Cluster``, what ``connect`` returned, or ``"serial"``.
        retries: how often a failed item is tried again, or a ``RetryPolicy``.
        timeout: seconds that one item may run.
        queue: Celery queue; by default the setting's.
        progress: True: show progress.

    >>> from nbparallel import Pool
    >>> with Pool(session="serial") as pool:
    ...     pool.map(abs, [-1, 2]), pool.starmap(pow, [(2, 3)]), pool.apply(max, (1, 7))
    ([1, 2], [8], 7)
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        session: Where = None,
        retries: int | RetryPolicy = 0,
        timeout: float | None = None,
        queue: str | None = None,
        progress: bool | str = False,
    ) -> None:
        self._executor = Executor(
            processes,
            initializer=initializer,
            initargs=initargs,
            session=session,
            retries=retries,
            timeout=timeout,
            queue=queue,
            progress=progress,
        )
        self._lock = threading.Lock()
        self._running = True
        self._streams: list[_Results[Any]] = []
        self._calls: list[AsyncResult[Any]] = []

    # -- all at once ---------------------------------------------------------------------------------------------------

    def map(self, func: Callable[[Any], R], iterable: Iterable[Any], chunksize: int | None = None) -> list[R]:
        """``[func(item) for item in iterable]``."""
        return self._start(func, iterable, chunksize).result()

    def starmap(
        self, func: Callable[..., R], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[R]:
        """``[func(*item) for item in iterable]``."""
        return self._start(func, iterable, chunksize, star=True).result()

    def map_async(
        self,
        func: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult[list[R]]:
        """``map`` in the background."""
        return self._later(self._start(func, iterable, chunksize), callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult[list[R]]:
        """``starmap`` in the background."""
        return self._later(self._start(func, iterable, chunksize, star=True), callback, error_callback)

    def _start(self, func: Callable[..., R], iterable: Iterable[Any], chunksize: int | None, **more: Any) -> Job[R]:
        self._check_running()
        return self._executor.start(func, iterable, chunks=chunksize, **{"keep": True, **more})

    def _later(self, job: Job[R], callback: Callback | None, error_callback: Callback | None) -> AsyncResult[list[R]]:
        future: Future[list[R]] = Future()

        def wait() -> None:
            try:
                future.set_result(job.result())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=wait, name="nbparallel-pool", daemon=True).start()
        result = AsyncResult(future, callback, error_callback)
        with self._lock:
            self._calls = [result, *(call for call in self._calls if not call.ready())]
        return result

    # -- one by one ----------------------------------------------------------------------------------------------------

    def imap(self, func: Callable[[Any], R], iterable: Iterable[Any], chunksize: int = 1) -> _Results[R]:
        """An iterator over the results, in input order; ``next(timeout)`` waits no longer than that."""
        return self._stream(func, iterable, chunksize, True)

    def imap_unordered(self, func: Callable[[Any], R], iterable: Iterable[Any], chunksize: int = 1) -> _Results[R]:
        """An iterator over the results, as they come."""
        return self._stream(func, iterable, chunksize, False)

    def _stream(self, func: Callable[[Any], R], iterable: Iterable[Any], chunksize: int, ordered: bool) -> _Results[R]:
        chunks = None if chunksize == 1 else chunksize
        more = {"ordered": ordered, "on_error": "return", "keep": "auto"}
        results = _Results(self._start(func, iterable, chunks, **more))
        with self._lock:
            self._streams = [results, *(s for s in self._streams if s.job.status in ("starting", "running"))]
        return results

    # -- single calls --------------------------------------------------------------------------------------------------

    def apply(self, func: Callable[..., R], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None) -> R:
        """``func(*args, **kwds)`` on a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult[R]:
        """``apply`` in the background."""
        self._check_running()
        return AsyncResult(self._executor.submit(func, *args, **(kwds or {})), callback, error_callback)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if not self._running:
            raise ValueError("Pool not running")

    def close(self) -> None:
        """Take no more work; what was given runs to its end."""
        self._running = False
        self._executor.close()

    def terminate(self) -> None:
        """Stop everything at once."""
        self._running = False
        self._executor.cancel()

    def join(self) -> None:
        """Wait until all work has run; call ``close`` or ``terminate`` before."""
        if self._running:
            raise ValueError("Pool is still running")
        for results in self._streams:
            if results.job.status in ("starting", "running"):
                results.drain()
        for call in self._calls:
            call.wait()
        self._executor.shutdown()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def __repr__(self) -> str:
        return f"<Pool {'running' if self._running else 'closed'}>"
