"""Is told by the Job what was submitted and received; hands Snapshots to the progress views."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from ..model import Block, JobState, Snapshot
from .picture import Picture

__all__ = ["Meter"]

#: The rate is that of the last so many seconds ...
WINDOW_SECONDS = 10.0
#: ... or reaches as far back as so many items took, when they are slower than that.
WINDOW_ITEMS = 8
#: Samples closer together than this, in seconds, are merged, which bounds the memory.
SAMPLE_SECONDS = 0.1
#: Before so many items and seconds were seen, a rate is a guess and none is given.
SEEN_ITEMS = 3
SEEN_SECONDS = 0.5


class Meter:
    """The accounts of one job.

    Not thread-safe: the Job's lock guards it. It costs something per block, nothing per item.

    Args:
        clock: seconds, monotonic.
        total: number of items, or None when the input has no length.

    >>> meter = Meter(clock=iter([0.0, 0.0, 2.0, 2.0]).__next__)
    >>> meter.submitted(10)
    >>> meter.received(4, failed=1, busy_seconds=3.5)
    >>> shot = meter.snapshot(id="1", name="f", state="running", total=10, slots=2)
    >>> shot.done, shot.failed, shot.running, shot.waiting, shot.rate, shot.eta
    (4, 1, 2, 4, 2.0, 3.0)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, total: int | None = None) -> None:
        self._clock = clock
        self._picture = Picture(total)
        self._started = clock()
        self._ended: float | None = None
        self._submitted = self._done = self._failed = self._retried = self._chunks = 0
        self._busy = 0.0
        #: (time, items done until then), oldest first; empty until something was submitted.
        self._samples: deque[tuple[float, int]] = deque()

    @property
    def done(self) -> int:
        """Items with a final outcome, failed ones included."""
        return self._done

    @property
    def failed(self) -> int:
        """Items whose final outcome is an error."""
        return self._failed

    def submitted(self, items: int, lo: int | None = None) -> None:
        """A chunk with so many items, from index ``lo`` on, went to the store for the first time."""
        if not self._samples:  # the time that a cluster takes to start says nothing about the speed of items
            self._samples.append((self._clock(), self._done))
        self._submitted += items
        self._chunks += 1
        if lo is not None:
            self._picture.submitted(lo, lo + items)

    def received(
        self,
        count: int,
        failed: int = 0,
        busy_seconds: float = 0.0,
        block: Block | None = None,
        again: Collection[int] = (),
    ) -> None:
        """So many items got their final outcome, ``failed`` of them an error.

        Args:
            busy_seconds: running time of all items of the block.
            block: where they came in; the map, the lanes and the rest of the details are drawn from blocks.
            again: indexes in the block that will be tried again, so that this was not their final outcome.
        """
        now = self._clock()
        self._done += count
        self._failed += failed
        self._busy += busy_seconds
        self._retried += len(again)
        if block is not None:
            self._picture.received(block, again, now - self._started)
        self._sample(now)

    def wrote(self, entries: Iterable[tuple[int, str, str]]) -> None:
        """Items wrote something: (index, stream name, text)."""
        self._picture.wrote(entries)

    def retried(self, count: int, busy_seconds: float = 0.0) -> None:
        """So many items are tried again that no block told of; none of them had a final outcome yet."""
        self._retried += count
        self._busy += busy_seconds

    def reopened(self, indexes: Collection[int]) -> None:
        """All failed items of an ended job are tried again: they have no outcome any more."""
        count = len(indexes)
        self._done -= count
        self._failed -= count
        self._retried += count
        self._picture.reopened(indexes)
        self._samples.clear()
        self._samples.append((self._clock(), self._done))

    def snapshot(
        self,
        *,
        id: str,
        name: str,
        state: JobState,
        total: int | None,
        slots: int,
        reason: str = "",
        errors: Sequence[tuple[int, str, str]] = (),
    ) -> Snapshot:
        """The picture of this moment.

        Args:
            slots: worker processes that may run items of this job.
        """
        now = self._clock()
        finished = state in ("done", "failed", "cancelled")
        if finished and self._ended is None:
            self._ended = now
        elif not finished and self._ended is not None:  # a retry goes on: the pause between is nobody's running time
            self._started += now - self._ended
            self._ended = None
        elapsed = (now if self._ended is None else self._ended) - self._started
        left = 0 if finished else max(self._submitted - self._done, 0)
        running = min(left, slots) if state == "running" else 0
        rate = (self._done / elapsed if elapsed > 0 and self._done else None) if finished else self._rate(now)
        eta = None
        if total is not None and rate and not reason and not finished:
            eta = (total - self._done) / rate
        return Snapshot(
            id=id,
            name=name,
            state=state,
            total=total,
            done=self._done,
            failed=self._failed,
            running=running,
            waiting=left - running,
            retried=self._retried,
            rate=rate,
            eta=eta,
            elapsed=elapsed,
            busy=self._busy,
            chunks=self._chunks,
            reason=reason,
            errors=tuple(errors),
            details=self._picture.details(running, total),
        )

    def _sample(self, now: float) -> None:
        samples = self._samples
        if len(samples) > 1 and now - samples[-2][0] < SAMPLE_SECONDS:
            samples[-1] = (now, self._done)
        else:
            samples.append((now, self._done))
        # The oldest sample may go when the next one reaches back far enough in both senses.
        while len(samples) > 2 and now - samples[1][0] >= WINDOW_SECONDS and self._done - samples[1][1] >= WINDOW_ITEMS:
            samples.popleft()

    def _rate(self, now: float) -> float | None:
        if not self._samples:
            return None
        since, before = self._samples[0]
        seconds, items = now - since, self._done - before
        # Time without outcomes counts too, so the rate of a job that stalls goes down, and its ETA up.
        return items / seconds if seconds >= SEEN_SECONDS and items >= SEEN_ITEMS else None
