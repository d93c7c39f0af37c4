"""Every error that nbparallel raises, as one tree.

    NbparallelError
    ├── UsageError (ValueError)      a bad argument, found before any work was sent
    │   └── SerializationError       something cannot be pickled; says which object, at which path
    ├── ClusterError                 the machinery: server, broker, workers
    │   ├── ConnectionFailed         no answer, refused, wrong password, wrong kind of server
    │   ├── StartupFailed            the embedded server or workers did not come up
    │   ├── VersionMismatch          client and worker cannot exchange pickles
    │   ├── KeyMismatch              client and worker hold different keys
    │   └── StoreFull                the store is at its memory limit and takes no new work
    ├── WireError                    bytes that are not ours: bad MAC, version or length
    ├── JobError                     what became of a job
    │   ├── JobCancelled             a result was asked for that was cancelled
    │   ├── ResultDropped            a result was yielded before and not kept
    │   └── ResultNotReady           ``timeout`` passed
    └── ItemError                    what became of one item; has index, item repr, remote traceback
        ├── RemoteError              the function raised, and its exception could not be rebuilt
        ├── ItemTimeout              the item ran longer than ``timeout``
        ├── WorkerCrashed            the item killed its worker process each time it was tried
        └── WorkerLost               the machines that ran the item vanished each time

All of them survive pickling (they may cross process borders), which a test checks for every class.
"""

from __future__ import annotations

from typing import Any

from .tracebacks import render

__all__ = [
    "ClusterError",
    "ConnectionFailed",
    "ItemError",
    "ItemTimeout",
    "JobCancelled",
    "JobError",
    "KeyMismatch",
    "NbparallelError",
    "RemoteError",
    "ResultDropped",
    "ResultNotReady",
    "SerializationError",
    "StartupFailed",
    "StoreFull",
    "UsageError",
    "VersionMismatch",
    "WireError",
    "WorkerCrashed",
    "WorkerLost",
]


class NbparallelError(Exception):
    """Base of every error of this package."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows it so."""
        return render(self)


class UsageError(NbparallelError, ValueError):
    """An argument is wrong; nothing was sent."""


class SerializationError(UsageError):
    """An object cannot be pickled; the message names it and the path that leads to it."""


class ClusterError(NbparallelError):
    """The server, the broker or the workers are not as they should be."""


class ConnectionFailed(ClusterError):
    """The store or the broker does not answer as it should; the message names the URL and what to do."""


class StartupFailed(ClusterError):
    """The embedded cluster did not start; the message says which part and why."""


class VersionMismatch(ClusterError):
    """Client and worker run versions that cannot exchange pickles; the message names both."""


class KeyMismatch(ClusterError):
    """Client and worker hold different keys, so neither trusts what the other sends."""


class StoreFull(ClusterError):
    """The store is at its ``maxmemory``: it takes no new work until results are consumed."""


class WireError(NbparallelError):
    """Bytes were refused before unpickling: wrong MAC, wrong place, wrong version or wrong length."""


class JobError(NbparallelError):
    """A job did not give what was asked of it."""


class JobCancelled(JobError):
    """The job was cancelled before this result was there."""


class ResultDropped(JobError):
    """The result was handed out before and not kept; pass ``keep=True`` to keep results."""


class ResultNotReady(JobError, TimeoutError):
    """The result did not arrive within the given timeout."""


class ItemError(NbparallelError):
    """One item failed; stands in its place with ``on_error="return"``.

    Args:
        message: what happened, in one line.
        index: position of the item in the input, from 0.
        item: a short repr of the item.
        type_name: qualified name of the exception that the function raised, or of this class.
        traceback: the remote traceback as text, with source lines; empty when there is none.
        worker: ``host:pid`` of the worker process, or ``""`` when unknown.
        attempts: how many times the item was tried.
        history: how it failed before, when it was tried more than once.

    The original exception, when it could be rebuilt, is ``error.exception`` (and ``__cause__``).

    >>> from nbparallel.errors import RemoteError
    >>> print(RemoteError("ValueError: odd", index=3, item="7"))
    item 3 (7): ValueError: odd
    """

    def __init__(
        self,
        message: str,
        index: int = -1,
        item: str = "",
        type_name: str = "",
        traceback: str = "",
        worker: str = "",
        attempts: int = 1,
        exception: BaseException | None = None,
        history: tuple[ItemError, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.index = index
        self.item = item
        self.type_name = type_name or type(self).__name__
        self.traceback = traceback
        self.worker = worker
        self.attempts = attempts
        self.exception = exception
        self.history = history
        if exception is not None:
            self.__cause__ = exception

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException.__reduce__ would call cls(*args) and lose everything but the message.
        fields = (
            self.message,
            self.index,
            self.item,
            self.type_name,
            self.traceback,
            self.worker,
            self.attempts,
            self.exception,
            self.history,
        )
        return type(self), fields

    def __str__(self) -> str:
        where = f"item {self.index}" if self.index >= 0 else "item"
        if self.item:
            where += f" ({self.item})"
        return f"{where}: {self.message}"


class RemoteError(ItemError):
    """The function raised an exception whose type could not be rebuilt here."""


class ItemTimeout(ItemError, TimeoutError):
    """The item ran longer than its ``timeout``."""


class WorkerCrashed(ItemError):
    """The item killed its worker process each time it was tried."""


class WorkerLost(ItemError):
    """The machines that ran the item vanished each time; which item is to blame cannot be known."""
