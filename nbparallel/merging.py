"""Joins a job's results while they come, on the workers: neighbours first, in whatever order they arrive.

Receives results from a Job, hands groups of them to a Feed that calls the user's ``join``, and takes back its results
as neighbours of the others, until nothing runs any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .client.feed import Feed
from .client.job import Job
from .client.job import _item_error as item_error
from .client.results import Failure, Piece

__all__ = ["GROUP", "Merger", "Neighbours"]

#: Results that are joined in one call, at least; small ones that came in one report stay together, ...
GROUP = 16
#: ... up to this many bytes.
GROUP_BYTES = 1 << 20
#: Groups that may be on their way for each worker process; then no more results are read.
AHEAD = 2


class Neighbours:
    """Values of consecutive indexes, found by either end. Pure."""

    def __init__(self) -> None:
        self._from: dict[int, tuple[int, list[Any]]] = {}  # lo → (hi, values)
        self._to: dict[int, int] = {}  # hi → lo

    def add(self, lo: int, hi: int, values: list[Any]) -> tuple[int, int, list[Any]] | None:
        """Put in what stands for [lo, hi); a group to be joined when there are enough values side by side."""
        if (before := self._to.pop(lo, None)) is not None:
            values = self._from.pop(before)[1] + values
            lo = before
        if (after := self._from.pop(hi, None)) is not None:
            del self._to[after[0]]
            hi, values = after[0], values + after[1]
        if len(values) >= GROUP:
            return lo, hi, values
        self._from[lo] = hi, values
        self._to[hi] = lo
        return None

    def values(self) -> list[Any]:
        """All of them, by index."""
        return [value for lo in sorted(self._from) for value in self._from[lo][1]]


class Merger:
    """The reduction of one job; two threads put values in, nobody needs to read.

    Args:
        job: whose results are joined; its ``keep`` is False.
        feed: calls ``join`` on the workers.
        slots: number of worker processes.
        on_error: what stands in the place of a failed item, as for ``pmap``.
    """

    def __init__(self, job: Job[Any], feed: Feed, slots: Callable[[], int], on_error: str) -> None:
        self.done: Future[list[Any]] = Future()
        self._job, self._feed, self._slots, self._on_error = job, feed, slots, on_error
        self._neighbours = Neighbours()
        self._changed = threading.Condition()
        self._flying = 0
        self._read_all = False
        threading.Thread(target=self._read, name="nbparallel-merger", daemon=True).start()

    def _read(self) -> None:
        try:
            for piece in self._job._arrivals():
                if piece.errors:
                    for index, value in enumerate(piece.values, piece.lo):
                        self._add_one(index, value, piece.errors.get(index))
                        self._wait_for_room()
                else:
                    self._add_all(piece)
            self._job._raise_failure()
        except BaseException as error:
            self._fail(error)
        with self._changed:
            self._read_all = True
        self._check_end()

    def _add_all(self, piece: Piece) -> None:
        """The values of a piece, in groups that are not too large to be sent."""
        body, values = piece._body, piece.values
        step = max(GROUP, GROUP_BYTES * body.count // (body.size + 1))
        for lo in range(piece.lo, piece.hi, step):
            hi = min(piece.hi, lo + step)
            self._add(lo, hi, values[lo - piece.lo : hi - piece.lo])
            self._wait_for_room()

    def _add_one(self, index: int, value: Any, failure: Failure | None) -> None:
        if failure is None:
            self._add(index, index + 1, [value])
        elif self._on_error != "raise":  # else the job fails
            self._add(index, index + 1, [] if self._on_error == "skip" else [item_error(index, failure)])

    def _wait_for_room(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._flying < AHEAD * self._slots() or self.done.done())

    def _add(self, lo: int, hi: int, values: list[Any]) -> None:
        with self._changed:
            group = self._neighbours.add(lo, hi, values)
            self._flying += group is not None
        if group is not None:
            lo, hi, values = group
            self._feed.put(values).add_done_callback(lambda future: self._joined(lo, hi, future))

    def _joined(self, lo: int, hi: int, future: Future[Any]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._fail(error)
        elif not future.cancelled():
            self._add(lo, hi, [future.result()])
        with self._changed:
            self._flying -= 1
            self._changed.notify_all()
        self._check_end()

    def _check_end(self) -> None:
        with self._changed:
            if self._read_all and not self._flying and not self.done.done():
                self.done.set_result(self._neighbours.values())
        if self.done.done():
            self._feed.close()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if not self.done.done():
                self.done.set_exception(error)
            self._changed.notify_all()
        self._job.cancel()
        self._feed.cancel()

    def cancel(self) -> None:
        """Join no more."""
        self._feed.cancel()
