"""Is told by the Job which jobs the running notebook cell waits for; cancels them when ■ hits that cell elsewhere.

In our own waits the Job sees the interrupt itself; in the body of a loop only IPython does.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..tracebacks import attach

if TYPE_CHECKING:
    from .running import RunningJob

__all__ = ["live_jobs", "started", "waits_for"]


#: Longest time, in seconds, for which an event loop sleeps while a cell awaits a job.
HEARTBEAT = 0.05
#: ■ pressed again within this time, in seconds, is the same wish. It would only hit the kernel while that ends the
#: cell: then the front end never hears of the end.
SAME_PRESS = 0.5


class _Cell:
    """The jobs that the running cell iterates or awaits."""

    def __init__(self, shell: Any) -> None:
        self.shell = weakref.ref(shell)
        self.jobs: weakref.WeakSet[RunningJob] = weakref.WeakSet()
        self._shown_before: Any = getattr(sys, "last_value", None)
        self._beating: asyncio.TimerHandle | None = None
        self._deaf_until = 0.0
        self._told: Any = None
        shell.events.register("pre_run_cell", self.begins)
        shell.events.register("post_run_cell", self.ended)

    def begins(self, info: Any = None) -> None:
        """A cell starts."""
        self.jobs.clear()
        self._deaf_until = 0.0  # it was the last cell that was meant
        self._shown_before = getattr(sys, "last_value", None)

    def ended(self, result: Any) -> None:
        """A cell ended."""
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        error = getattr(result, "error_in_exec", None)
        shown = getattr(sys, "last_value", None)  # %%time and the like show errors by themselves
        if error is None and shown is not self._shown_before:
            error = shown
        if isinstance(error, (KeyboardInterrupt, asyncio.CancelledError)):
            self._cancel()
        self.jobs.clear()

    def beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the event loop now and then until the cell ends: one that sleeps does not notice ■."""
        self._beating = loop.call_later(HEARTBEAT, self.beat, loop)

    def shield(self) -> None:
        """Have ■ heard once; the kernel sets its own handler again after, and before, each cell."""
        if hasattr(self.shell(), "kernel") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if now >= self._deaf_until:
            self._deaf_until = now + SAME_PRESS
            stop = KeyboardInterrupt()
            attach(stop, self._cancel)  # earlier than ``ended``, before IPython has formatted it
            raise stop

    def _cancel(self) -> None:
        for job in list(self.jobs):
            if job.spec.interrupt == "cancel":
                job.cancel()

    def awaits(self, loop: asyncio.AbstractEventLoop) -> None:
        """The cell awaits a job: it is cancelled as soon as the loop hears ■, which ends the cell in its own way."""
        if self._beating is None:
            self.beat(loop)
        kernels = signal.getsignal(signal.SIGINT)
        ours = (self._told, self._interrupt, signal.default_int_handler)
        if not hasattr(self.shell(), "kernel") or not callable(kernels) or kernels in ours:
            return

        def told(number: int, frame: Any) -> None:
            loop.call_soon_threadsafe(self._cancel)  # not here: what was interrupted may hold a lock
            kernels(number, frame)

        self._told = told
        signal.signal(signal.SIGINT, told)  # until the cell ends, when the kernel sets what was there before


_started: weakref.WeakSet[RunningJob] = weakref.WeakSet()


def started(job: RunningJob) -> None:
    """A job of this process was started."""
    _started.add(job)


def live_jobs() -> list[RunningJob]:
    """The jobs of this process that have not ended."""
    return [job for job in list(_started) if not job.ended]


_cell: _Cell | None = None


def waits_for(job: RunningJob, loop: asyncio.AbstractEventLoop | None = None) -> None:
    """The caller's cell iterates or, in an event loop, awaits this job; nothing happens outside of IPython."""
    ipython = sys.modules.get("IPython")
    get: Callable[[], Any] | None = getattr(ipython, "get_ipython", None)
    shell = get() if get is not None else None
    if shell is None or threading.current_thread() is not threading.main_thread():
        return
    global _cell
    if _cell is None or _cell.shell() is not shell:
        _cell = _Cell(shell)
    _cell.jobs.add(job)
    _cell.shield()
    if loop is not None:
        _cell.awaits(loop)
