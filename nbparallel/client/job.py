"""The handle that the user holds: hands out results as they come, and cancels. Reads from ``running.py``."""

from __future__ import annotations

import asyncio
import operator
import os
import time
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from .. import frames
from ..errors import ItemError, JobCancelled, JobError, ResultDropped, ResultNotReady
from ..model import JobState, Snapshot
from ..remote import rebuild, to_raise
from ..tracebacks import attach
from .awaiting import wait_async
from .cell import waits_for
from .results import Failure, Piece
from .running import RunningJob
from .spec import JobSpec

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

__all__ = ["Job"]

R = TypeVar("R")

#: Where the next piece starts, after one of them.
BY_INDEX, BY_ARRIVAL = operator.attrgetter("hi"), operator.attrgetter("next_position")
#: Longest single wait, in seconds: so often an interrupt of the kernel is noticed.
HEARTBEAT = 0.1


class Job(Generic[R]):
    """One call of ``pmap``: iterate it, index it, await it, cancel it.

    Iterating gives the results in input order, each as soon as it can be given (in order of completion with
    ``ordered=False``). A job over input that has a length runs to its end whether anyone reads or not, and keeps its
    results; one over a generator reads it as results are taken, and stops when its loop is left.

    Every method may be called from any thread of the process that made the job.

    >>> from nbparallel import pmap
    >>> job = pmap(abs, [-1, 2, -3], session="serial")
    >>> list(job), job[2], len(job), job.status
    ([1, 2, 3], 3, 3, 'done')
    """

    def __init__(self, running: RunningJob) -> None:
        self._running = running
        self._pid = os.getpid()
        self._rest: Iterator[R] | None = None
        if not running.spec.keep:
            # Nobody can read on when the handle is gone.
            weakref.finalize(self, running.cancel).atexit = False

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """32 hexadecimal digits; what ``attach`` takes."""
        return self._running.id

    @property
    def name(self) -> str:
        """What progress views call it."""
        return self._running.spec.name

    @property
    def status(self) -> JobState:
        """``starting``, ``running``, ``done``, ``failed`` or ``cancelled``."""
        return self._running.state

    @property
    def errors(self) -> list[ItemError]:
        """The items that failed so far, by index."""
        with self._running.changed:
            failures = sorted(self._running.results.errors.items())
        return [self._error(index, failure) for index, failure in failures]

    @property
    def history(self) -> dict[int, list[ItemError]]:
        """Index → how the item failed before, first attempt first, of all items that were tried again."""
        with self._running.changed:
            failures = {index: list(past) for index, past in sorted(self._running.tries.history.items())}
        return {index: [_item_error(index, failure) for failure in past] for index, past in failures.items()}

    @property
    def seed(self) -> int | None:
        """The seed from which each item's random stream is spawned by its index; None: they differ from run to run."""
        return self._spec.seed

    @property
    def output(self) -> list[tuple[int, str, str]]:
        """(index, stream, text) of what the items printed, logged and warned so far; the last million characters."""
        with self._running.changed:
            return list(self._running.output.entries)

    def snapshot(self) -> Snapshot:
        """Counts, rates and state at this moment."""
        return self._running.snapshot()

    @property
    def _total(self) -> int | None:
        return self._running.total

    def __len__(self) -> int:
        total = self._total
        if total is None:
            raise TypeError("the input of this job has no length, so the job has none until it was read to its end")
        return total

    def __repr__(self) -> str:
        shot = self.snapshot()
        total = "?" if shot.total is None else f"{shot.total:,}"
        failed = f", {shot.failed:,} failed" if shot.failed else ""
        reason = f", {shot.reason}" if shot.reason else ""
        return f"<Job {shot.name!r} {shot.state}: {shot.done:,} of {total} done{failed}{reason}>"

    # -- results -------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[R]:
        self._check_process()
        if self._running.spec.keep:
            return self._results()
        if self._rest is None:
            self._rest = self._results()
        return self._consume(self._rest)

    def _consume(self, rest: Iterator[R]) -> Iterator[R]:
        """Results that are handed out once; leaving the loop stops the job."""
        finished = False
        try:
            yield from rest  # a chain, which cannot be closed: the next loop goes on with it
            finished = True
        finally:
            if not finished:
                self.cancel()

    def _results(self) -> Iterator[R]:
        return chain.from_iterable(self._handfuls())  # no step of ours for an item

    def _handfuls(self) -> Iterator[Iterable[R]]:
        __tracebackhide__ = True
        running, ordered = self._running, self._running.spec.ordered
        over = running.state == "cancelled"  # then what there is is given; a cancel in mid-loop ends the loop
        with running.handing() as hand:  # emptied by a cancel
            for piece in self._pieces(running.results.ordered, BY_INDEX) if ordered else self._arrivals():
                if piece.errors:
                    for value in self._values(piece, stop_at_error=ordered):
                        yield (value,)
                        if running.state == "cancelled" and not over:
                            break
                elif over:
                    yield piece.values
                else:
                    hand[0] = piece.values
                    yield hand[0]
                if running.state == "cancelled" and not over:
                    self._raise_failure()
        self._raise_failure()

    def _arrivals(self) -> Iterator[Piece]:
        return self._pieces(self._running.results.arrived, BY_ARRIVAL)

    def as_completed(self) -> Iterator[tuple[int, R]]:
        """(index, result) in order of completion; failed items as ``on_error`` says."""
        self._check_process()
        for piece in self._arrivals():
            values = piece.values
            for index in range(piece.lo, piece.hi):
                failure = piece.errors.get(index)
                if failure is None:
                    yield index, values[index - piece.lo]
                elif self._running.spec.on_error == "return":
                    yield index, self._error(index, failure)  # type: ignore[misc]
        self._raise_failure()

    def result(self, timeout: float | None = None) -> list[R]:
        """All results in input order; waits for the end.

        Args:
            timeout: seconds to wait at most.

        Raises:
            ResultNotReady: ``timeout`` passed.
            JobCancelled: the job was cancelled.
            Exception: what the first failing item raised, with ``on_error="raise"``.
            ResultDropped: results were handed out before and not kept.
        """
        __tracebackhide__ = True
        self._check_process()
        if not self._running.spec.keep:
            if self._rest is not None:
                raise ResultDropped(f"results of job {self.name!r} were handed out before; pass keep=True to keep them")
            return list(self)
        results: list[R] = []
        # Decoded as they come, while the workers go on.
        for piece in self._pieces(self._running.results.ordered, BY_INDEX, timeout):
            results.extend(self._values(piece, stop_at_error=False))
        self._raise_failure()
        return results

    def results_so_far(self) -> dict[int, R]:
        """Index → result of the items that succeeded until now, in input order; never waits."""
        found: dict[int, R] = {}
        with self._running.changed:
            pieces = self._running.results.pieces()
        for piece in pieces:
            values = piece.values
            for index in range(piece.lo, piece.hi):
                if index not in piece.errors:
                    found[index] = values[index - piece.lo]
        return found

    @overload
    def __getitem__(self, index: int) -> R: ...

    @overload
    def __getitem__(self, index: slice) -> list[R]: ...

    def __getitem__(self, index: int | slice) -> R | list[R]:
        __tracebackhide__ = True
        self._check_process()
        if isinstance(index, slice):
            return self._slice(index)
        index = operator.index(index)
        if index < 0:
            index += len(self)
        total = self._running.total
        if index < 0 or (total is not None and index >= total):
            raise IndexError(f"item {index} of a job with {total} items")
        running = self._running
        self._wait(lambda: running.ended or index in running.results.received or running.full, None)
        with self._running.changed:
            if index not in self._running.results.received:
                if not self._running.ended:
                    raise ResultNotReady(
                        f"item {index} is read from the input once results before it were taken; pass keep=True to "
                        "have results kept, and read by index in any order"
                    )
                total = self._running.total
                if self._running.state == "done" and total is not None and index >= total:
                    raise IndexError(f"item {index} of a job with {total} items")
                self._raise_failure()
                raise JobCancelled(f"item {index} was not run: job {self.name!r} {self._running.state}")
            piece = self._running.results.get(index)
        failure = piece.errors.get(index)
        if failure is None:
            value: R = piece.value(index)
            return value
        if self._running.spec.on_error == "return":
            return self._error(index, failure)  # type: ignore[return-value]
        raise to_raise(self._error(index, failure))

    def _slice(self, index: slice) -> list[R]:
        total = self._total
        if total is None:
            if index.stop is None or min(index.start or 0, index.stop, index.step or 1) < 0:
                raise TypeError("the input of this job has no length: a slice of it needs a stop, and nothing negative")
            total = index.stop
        values = []
        for i in range(*index.indices(total)):
            try:
                values.append(self[i])
            except IndexError:
                if self._total is None or i < self._total:
                    raise  # what the function raised
                break  # the input ended before the slice did
        return values

    def to_frame(self) -> pandas.DataFrame:
        """A row for each item that has an outcome by now: its parameters, the fields of its result, and how it ran.

        The columns after those are ``duration`` (seconds), ``worker``, ``attempts`` and ``error``. Never waits.

        Raises:
            UsageError: pandas is missing.
        """
        return frames.to_frame(self._records(), self._spec.inputs)

    def plot(self, kind: str = "auto", *, x: str = "", y: str = "", value: str = "") -> Figure:
        """Draw what is there by now: the results of a sweep, or how the work was done.

        Args:
            kind: ``"work"``: what each worker process did over time, and durations; ``"lines"`` or ``"heatmap"``:
                results over parameters, as means over all others; ``"auto"``: what fits.
            x, y: parameters; by default those that vary.
            value: field of the results; by default the first that is a number.

        Raises:
            UsageError: matplotlib is missing, or there is nothing to draw so.
        """
        from ..plots import plot

        return plot(self._records(), self._spec.inputs, self.name, kind, x, y, value)

    @property
    def _spec(self) -> JobSpec:
        return self._running.spec

    def _records(self) -> Iterator[frames.Record]:
        """What became of each item so far."""
        with self._running.changed:
            pieces = self._running.results.pieces()
        for piece in pieces:
            rows = zip(range(piece.lo, piece.hi), piece.values, piece.times(), strict=True)
            for index, value, (start, seconds) in rows:
                failure = piece.errors.get(index)
                error = None if failure is None else self._error(index, failure)
                yield frames.Record(index, value, error, start, seconds, piece.worker, piece.attempt)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job has ended, at most ``timeout`` seconds; whether it has."""
        try:
            self._wait(lambda: self._running.ended, timeout)
        except ResultNotReady:
            return False
        return True

    # -- async ---------------------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._result_async().__await__()

    async def _result_async(self) -> list[R]:
        __tracebackhide__ = True
        if not self._running.spec.keep:
            return [value async for value in self]
        await self._wait_async(lambda: self._running.ended)
        return self.result()

    async def __aiter__(self) -> AsyncIterator[R]:
        self._check_process()
        at, finished = 0, False
        try:
            if self._running.spec.ordered:
                while (piece := await self._piece_async(self._running.results.ordered, at)) is not None:
                    at = piece.hi
                    for value in self._values(piece, stop_at_error=True):
                        yield value
            else:
                while (piece := await self._piece_async(self._running.results.arrived, at)) is not None:
                    at = piece.position + len(piece)
                    for value in self._values(piece, stop_at_error=False):
                        yield value
            self._raise_failure()
            finished = True
        finally:
            if not finished and not self._running.spec.keep:
                self.cancel()

    async def _piece_async(self, find: Callable[[int], Piece | None], at: int) -> Piece | None:
        await self._wait_async(lambda: self._available(find, at))
        with self._running.changed:
            piece = find(at)
        if piece is not None:
            self._running.delivered(piece)
        return piece

    async def _wait_async(self, reached: Callable[[], bool]) -> None:
        try:
            await wait_async(self._running, reached, HEARTBEAT)
        except asyncio.CancelledError as stop:
            self._interrupted(stop)
            raise stop.with_traceback(None)  # noqa: B904  (the same one, without the frames of the wait)

    # -- control -------------------------------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Stop the job: nothing more starts, what runs is interrupted, finished results stay readable.

        Never blocks; may be called any number of times, from any thread.

        Returns:
            False when the job had ended already.
        """
        if os.getpid() != self._pid:
            return False  # a forked child must not stop what its parent runs
        return self._running.cancel()

    def retry(self) -> int:
        """Run the items again that failed, or were not run, once the job has ended; into the same results.

        Returns at once: iterate or wait as before. What succeeded stays; ``history`` tells how items failed before.

        Returns:
            How many of the items that were read so far run again.

        Raises:
            JobError: the job still runs, or keeps no results.
        """
        self._check_process()
        count = self._running.retry()
        if not self._running.ended and self._running.reopened is not None:
            self._running.reopened()
        return count

    # -- inside --------------------------------------------------------------------------------------------------------

    def _interrupted(self, stop: BaseException) -> None:
        """■ or Ctrl-C hit whoever waits for this job."""
        attach(stop)
        if self._spec.interrupt == "cancel":
            self.cancel()

    def _error(self, index: int, failure: Failure) -> ItemError:
        error = _item_error(index, failure)
        error.history = tuple(_item_error(index, past) for past in self._running.tries.history.get(index, ()))
        return error

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise JobError("this job belongs to the parent process, from which this one was forked")

    def _available(self, find: Callable[[int], Piece | None], at: int) -> bool:
        return find(at) is not None or self._running.ended

    def _pieces(
        self, find: Callable[[int], Piece | None], after: Callable[[Piece], int], timeout: float | None = None
    ) -> Iterator[Piece]:
        """Pieces as they come, until the job has ended; ``timeout`` (seconds) is for all of them together."""
        deadline = None if timeout is None else time.monotonic() + timeout
        at = 0
        while True:
            waits_for(self._running)
            with self._running.changed:
                piece = find(at)
            if piece is None:
                rest = None if deadline is None else deadline - time.monotonic()
                self._wait(lambda at=at: self._available(find, at), rest)  # type: ignore[misc]
                with self._running.changed:
                    piece = find(at)
                if piece is None:
                    return
            at = after(piece)
            self._running.delivered(piece)
            yield piece

    def _values(self, piece: Piece, stop_at_error: bool) -> Iterable[R]:
        return self._values_and_errors(piece, stop_at_error) if piece.errors else piece.values

    def _values_and_errors(self, piece: Piece, stop_at_error: bool) -> Iterator[R]:
        __tracebackhide__ = True  # IPython leaves the frame out
        values = piece.values
        on_error = self._running.spec.on_error
        for index in range(piece.lo, piece.hi):
            failure = piece.errors.get(index)
            if failure is None:
                yield values[index - piece.lo]
            elif on_error == "return":
                yield self._error(index, failure)  # type: ignore[misc]
            elif on_error == "raise" and stop_at_error:
                raise to_raise(self._error(index, failure))

    def _raise_failure(self) -> None:
        """Raise why the job did not give all results, if so."""
        __tracebackhide__ = True
        running = self._running
        with running.changed:
            state, failure = running.state, running.failure
            first = min(running.results.errors, default=None)
            record = None if first is None else running.results.errors[first]
        if state == "cancelled":
            done = len(running.results.received)
            raise JobCancelled(f"job {self.name!r} was cancelled; {done:,} results are in job.results_so_far()")
        if running.spec.on_error == "raise" and first is not None and record is not None:
            raise to_raise(self._error(first, record))
        if failure is not None:
            raise failure

    def _wait(self, reached: Callable[[], bool], timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        waits_for(self._running)
        try:
            with self._running.changed:
                while not reached():
                    pause = HEARTBEAT
                    if deadline is not None:
                        pause = min(pause, deadline - time.monotonic())
                        if pause <= 0:
                            raise ResultNotReady(f"job {self.name!r} did not get so far in the time given: {self!r}")
                    self._running.changed.wait(pause)
        except KeyboardInterrupt as stop:
            self._interrupted(stop)
            raise stop.with_traceback(None)  # noqa: B904  (the same one, without the frames of the wait)


def _item_error(index: int, failure: Failure) -> ItemError:
    return rebuild(failure.record, index, failure.worker, failure.attempt)
