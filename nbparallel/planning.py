"""How large chunks are: dispatch asks before it reads the input, and tells what ran how long. Pure, clock-free."""

from __future__ import annotations

import math
import runpy
from collections import deque
from statistics import median
from typing import Any, Literal

from .errors import UsageError

__all__ = ["Planner"]

#: First chunk of a sized input: its N / (4 × slots) items, at most this many, as nothing is known of them yet.
FIRST_ITEMS = 20_000

#: By how much a chunk may outgrow the longest run of items that was measured.
GROWTH = 16

#: Toward the end a chunk takes its slot's share of what is left, divided by this (guided self-scheduling).
TAIL = 1.5

#: A chunk is not made shorter than this (in seconds) for the sake of an even end: 25 × what a chunk costs.
SHORTEST = 0.004

#: A slot's equal share of what is left is not divided further below this (in seconds).
SHORTEST_SHARE = 0.0025

#: Seconds that the smallest item and its result take to be encoded, sent and decoded.
ON_THE_WAY = 2e-7

#: Bytes of items in a chunk.
CHUNK_BYTES = 1 << 20

#: Chunks per second that all slots together may take; a server answers some 20,000 calls a second.
CHUNK_RATE = 4000.0

#: Chunks per second that a client submits; slots that ask for more would wait for it.
SUBMIT_RATE = 10_000.0

#: Seconds of work that wait in the store beyond what runs, at least and at most.
WAITING_LEAST, WAITING_MOST = 0.1, 0.5

#: Far from the store a chunk lasts at least so many round trips, of which it costs one; so much work waits there, too.
TRIPS = 4

#: Chunks that wait in the store when they are many and short.
WAITING_CHUNKS = 1000

#: Bytes that wait in the store, beyond a chunk a slot.
WAITING_BYTES = 64 << 20

#: Reports that the estimate looks back on.
MEMORY = 16

#: Seconds that a report must span to be believed: the first call of a function, and the clock, cost microseconds.
BELIEVED = 1e-4

#: Seconds, the least an item is taken to run.
_TINY = 1e-9


class Planner:
    """How many items the next chunk takes, and how many items may be outstanding.

    Args:
        chunks: items in each chunk, or ``"auto"``: a duration is aimed at, and items are counted by what was
            measured of those before.
        total: number of items, or None when it is not known.
        target: seconds that a chunk is to last.

    Call ``observe_bytes`` with the first item or two before the first chunk, so that it is not too big to send.
    """

    def __init__(self, chunks: int | Literal["auto"] = "auto", total: int | None = None, target: float = 0.05) -> None:
        self._fixed = None if chunks == "auto" else _checked(chunks)
        self._total = total
        self._target = target
        self._samples: deque[float] = deque(maxlen=MEMORY)  # seconds an item, by report
        self._rough = True  # no report was long enough to be believed
        self._longest = 0  # most items that were measured at a time
        self._running = 0.0  # items of the largest chunks lately; forgotten as slots take others
        self._item_seconds: float | None = None
        self._item_bytes = 0.0
        self._round_trip = 0.0

    def observe(self, count: int, seconds: float) -> None:
        """``count`` items, reported together, ran ``seconds`` in all."""
        if count < 1:
            return
        if self._rough and seconds >= BELIEVED:
            self._rough = False
            self._samples.clear()
        self._samples.append(max(seconds / count, _TINY))
        self._longest = max(self._longest, count)
        self._item_seconds = median(self._samples)  # robust to outliers; old reports fall out

    def observe_bytes(self, items: int, size: int) -> None:
        """``items`` items took ``size`` bytes; rises at once, falls slowly, as too big is worse than too small."""
        if items:
            self._item_bytes = max(size / items, (self._item_bytes + size / items) / 2)

    def observe_round_trip(self, seconds: float) -> None:
        """A call of the store takes so long, for the client or for the worker that is farthest from it."""
        self._round_trip = seconds

    @property
    def item_seconds(self) -> float | None:
        """Running time of an item, estimated; None until one was measured."""
        return self._item_seconds

    def chunk_seconds(self, slots: int) -> float:
        """Duration that chunks aim at: longer far from the store, and with so many slots that it had too many calls."""
        return max(self._target, slots / CHUNK_RATE, TRIPS * self._round_trip)

    def budget(self, slots: int) -> float:
        """Seconds after which a worker process hands the unstarted items of a chunk back."""
        return max(2 * self._target, self.chunk_seconds(slots))

    def next_size(self, slots: int, left: int | None) -> int:
        """Items of the next chunk.

        Args:
            slots: worker processes that may run the job.
            left: items not read yet; None when unknown.
        """
        slots = max(slots, 1)
        size = self._fixed or self._automatic(slots, left)
        size = max(1, size if left is None else min(size, left))
        self._running = max(size, self._running * (1 - 1 / (2 * slots)))
        return size

    def window(self, slots: int) -> int:
        """Most items that may be submitted and not received."""
        slots = max(slots, 1)
        size = self._fixed or self._automatic(slots, None)
        # What runs may be chunks that were sized before anything was known, and larger than those of now.
        return int(slots * max(size, self._running)) + size * self._waiting(slots, size)

    def refill(self, slots: int) -> int:
        """Items for which there should be room before more are read: as many as leave a chunk a slot in the store.

        So one call of the store sends several.
        """
        slots = max(slots, 1)
        size = self._fixed or self._automatic(slots, None)
        return max(1, size * (self._waiting(slots, size) - slots))

    def _waiting(self, slots: int, size: int) -> int:
        """Chunks in the store, beyond the one that each slot runs."""
        waiting = slots
        if self._item_seconds is not None:
            seconds, way = size * self._item_seconds, TRIPS * self._round_trip
            # Little, so that a cancel or another job finds little; enough to bridge the way to the client and back,
            # but not for chunks that will be far longer in a moment.
            waiting = min(slots, math.ceil(slots * max(WAITING_MOST, way) / seconds))
            if self._fixed or size < self._most_grown(slots):
                waiting = max(waiting, min(math.ceil(slots * max(WAITING_LEAST, way) / seconds), WAITING_CHUNKS))
            if self._item_bytes:
                waiting = min(waiting, max(slots, int(WAITING_BYTES / (size * self._item_bytes))))
        return waiting

    def _automatic(self, slots: int, left: int | None) -> int:
        size = self._first(slots)
        if self._item_seconds is not None:
            size = int(self.chunk_seconds(slots) / self._item_seconds)
            if left is not None:
                size = min(size, max(int(left / (TAIL * slots)), self._shortest(slots, left)))
            size = min(size, self._most_grown(slots))
        if self._item_bytes:
            size = min(size, int(CHUNK_BYTES / self._item_bytes))
        return max(size, 1)

    def _shortest(self, slots: int, left: int) -> int:
        # Very short items cost more on their way than where they run: each slot takes its share of these, too.
        assert self._item_seconds is not None
        least, item = max(slots / SUBMIT_RATE, self._round_trip), max(self._item_seconds, ON_THE_WAY)
        long, short = (int(max(seconds, least) / item) for seconds in (SHORTEST, SHORTEST_SHARE))
        size = max(1, min(long, max(short, math.ceil(left / slots))))
        return math.ceil(left / math.ceil(left / size)) if left else 1

    def _first(self, slots: int) -> int:
        # Unsized input starts with one item, as it may be slow to read.
        return 1 if self._total is None else min(max(self._total // (4 * slots), 1), FIRST_ITEMS)

    def _most_grown(self, slots: int) -> int:
        return GROWTH * max(self._first(slots), self._longest)


def _checked(chunks: Any) -> int:
    if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1:
        raise UsageError(f'chunks must be "auto" or a number of items per chunk of at least 1, not {chunks!r}')
    return chunks


if __name__ == "__main__":
    runpy.run_module("nbparallel.simulation", run_name="__main__")  # not imported: it imports this module
