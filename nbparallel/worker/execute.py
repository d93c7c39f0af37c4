"""Runs the items of one chunk: receives a claimed chunk from ``turn.py``, gathers outcomes that its reporter takes.

Two speeds. Items are run one by one when each takes longer than the bookkeeping around it, when one of the chunk
killed a process before, or when they have a time limit; then the slot names the running item exactly. Very short items
run as a batch inside C code (``list.extend`` over ``map``) with no overhead an item; after an exception the length of
the list tells which item failed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count as count_from
from itertools import islice, starmap
from typing import Any

from ..errors import SerializationError
from ..model import Block, ErrorRecord
from ..pickling import dump, dump_parts, load
from ..remote import capture, short_repr
from ..seeding import Seeded
from ..wire import Buffer
from . import slot as slots
from .capture import LIMIT, Entry, merged
from .slot import Slot

__all__ = ["ChunkRun", "ItemInterrupted", "ItemUnreadable", "arguments_of"]

#: Items shorter than this, in seconds, run in batches.
BATCH_BELOW = 30e-6
#: Duration, in seconds, that a batch aims at; bounds how late a flush, a stop or a hand-back is noticed.
BATCH_SECONDS = 0.004
#: Most items in a batch.
BATCH_ITEMS = 20_000
#: The first outcomes of a chunk are reported at once if the rest is expected to take longer than this, in seconds.
FIRST_FLUSH_ABOVE = 0.002


class ItemInterrupted(BaseException):
    """Raised inside the user's function when its item is cancelled or timed out; ``finally`` blocks run."""


class ItemUnreadable(Exception):
    """The item could not be unpickled here; the cause says why."""


def arguments_of(columns: Sequence[Sequence[Any]], position: int) -> str:
    """Short repr of the item at a position, as the user wrote it: bare for one argument, else a tuple."""
    values = tuple(column[position] for column in columns)
    return short_repr(values[0] if len(values) == 1 else values)


class ChunkRun:
    """One chunk on its way through a worker process.

    The main thread runs the items; the flusher thread may ``take`` outcomes and lower ``hi`` meanwhile. Python's
    global lock makes each single list or attribute operation atomic; their order makes the rest safe: an error is
    noted before its place in ``values`` is filled, ``position`` is set before ``hi`` is looked at.

    Args:
        function: the user's function.
        columns: arguments by column for items [base, ...).
        star: each item is a tuple of arguments (``pstarmap``).
        each: the columns hold one list of separately pickled argument tuples.
        lo, hi: the items to run.
        precise: one by one, for the reasons above.
        budget: seconds after which the unstarted tail is given back; None: never.
        seeded: the function for a job with a seed: each item then draws from a stream of its own.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        columns: Sequence[Sequence[Any]],
        *,
        base: int,
        lo: int,
        hi: int,
        attempt: int,
        star: bool,
        each: bool,
        precise: bool,
        budget: float | None,
        slot: Slot,
        worker: str,
        seeded: Seeded | None = None,
    ) -> None:
        self.lo = lo
        self.hi = hi
        self.attempt = attempt
        self.position = lo
        self.values: list[Any] = []
        self.errors: dict[int, ErrorRecord] = {}
        self.seconds: list[float] = []
        self._output: deque[Entry] = deque()
        self._output_size = self._output_cut = 0
        self.taken = 0
        self.value_bytes = 0.0  # of the outcomes that were taken last, each
        self.fenced = False
        self.interrupted = False
        self.budget = budget
        self.started = time.time()
        self.claimed = self.flushed = time.monotonic()
        self.worker = worker
        self._base = base
        self._columns = columns
        self._each = each
        self._precise = precise or seeded is not None
        self._slot = slot
        self._batched = False
        self._calls = self._make_calls(function, star, each, seeded)

    def _make_calls(self, function: Callable[..., Any], star: bool, each: bool, seeded: Seeded | None) -> Iterator[Any]:
        columns = [column[self.lo - self._base :] if self.lo > self._base else column for column in self._columns]
        if seeded is not None:
            # The index is one more column, so that it stays with its item whatever interrupts a call.
            columns, function = [count_from(self.lo), *columns], seeded.star if star else seeded  # type: ignore[list-item]
            if not each:
                return map(function, *columns)
        if each:

            def call(*given: Any) -> Any:
                try:
                    arguments = load(given[-1])
                except Exception as error:
                    raise ItemUnreadable from error
                if star and seeded is None:
                    return function(*arguments[0])
                return function(*given[:-1], *arguments)

            return map(call, *columns)
        return starmap(function, columns[0]) if star else map(function, *columns)

    def run(
        self,
        flush_first: Callable[[], None] | None = None,
        item_seconds: float = 1.0,
        *,
        flush: Callable[[], None] | None = None,
        flush_bytes: int = 1 << 20,
    ) -> float:
        """Run the items up to ``hi``, which may shrink meanwhile.

        Args:
            flush_first: reports the first outcome early, for a job that has none yet.
            item_seconds: how long items of this job took lately.
            flush: reports outcomes that have gathered, whenever they are more than ``flush_bytes``, as far as the
                size of those before tells.

        Returns:
            How long they take now.
        """
        while not (self.fenced or self._told_to_end()):
            index = self.lo + len(self.values)
            count = 1
            if item_seconds < BATCH_BELOW and not self._precise:
                # The first batch tells what the first call, which did what is done once, could not.
                seconds = BATCH_SECONDS if flush_first is None else FIRST_FLUSH_ABOVE
                count = max(1, min(int(seconds / (item_seconds + 1e-9)), BATCH_ITEMS, self.hi - index))
                if self.value_bytes:
                    count = max(1, min(count, int(flush_bytes / self.value_bytes)))
            self.position = index + count - 1
            if self.position >= self.hi:
                if index >= self.hi:
                    break
                continue  # hi shrank between the two looks: a smaller batch
            started = time.perf_counter()
            self._step(index, count)
            item_seconds = (time.perf_counter() - started) / count
            if flush_first is not None and (item_seconds >= BATCH_BELOW or index > self.lo or self._precise):
                if item_seconds * (self.hi - index - count) > FIRST_FLUSH_ABOVE:
                    flush_first()
                flush_first = None
            elif flush is not None and (len(self.values) - self.taken) * self.value_bytes >= flush_bytes:
                flush()
        return item_seconds

    def shrink(self, hi: int) -> bool:
        """End at ``hi`` instead; False when that is no less, or when the main thread is there already."""
        if hi >= self.hi:
            return False
        before, self.hi = self.hi, hi
        if self.position >= hi:
            self.hi = before
            return False
        return True

    def _told_to_end(self) -> bool:
        """Whether the parent wants this chunk to end, found between two items."""
        words = self._slot.words
        if words[slots.ASK_SERIAL] == words[slots.SERIAL] and words[slots.ASK_INDEX] == slots.ANY_ITEM:
            self.interrupted = True
        return self.interrupted or self._slot.asked_to_hand_back()

    def _step(self, index: int, count: int) -> None:
        """Run items [index, index + count); an exception ends a batch early, after its item."""
        values, words, before = self.values, self._slot.words, len(self.values)
        words[slots.COUNT] = count
        self._slot.times[slots.STARTED] = time.monotonic()
        words[slots.INDEX] = index
        started = time.perf_counter()
        failure: BaseException | None = None
        try:
            try:
                words[slots.ARMED] = 1
                if count > 1:
                    values.extend(islice(self._calls, count))
                else:
                    value = next(self._calls)
            finally:
                words[slots.ARMED] = 0
        except BaseException as error:  # whatever the user's code raises is an outcome
            failure = error
        seconds = time.perf_counter() - started
        words[slots.INDEX] = -1
        if count > 1:
            self._batched = True
            if failure is None and len(values) < before + count:
                failure = StopIteration()  # raised by an item; extend() takes it for the end
        self.seconds.append(seconds)
        if words[slots.RAISED] == words[slots.SERIAL]:
            self._interruption(self.lo + len(values), seconds)
        elif failure is not None:
            self._fail(self.lo + len(values), failure)
        elif count == 1:
            values.append(value)

    def _interruption(self, index: int, seconds: float) -> None:
        """The parent interrupted the running item; what the item made of it does not matter."""
        words = self._slot.words
        words[slots.RAISED] = 0
        why = words[slots.ASK_WHY]
        if why == slots.TIMED_OUT:
            message = f"ran for {seconds:.3g} s, longer than its timeout"
            self._note(index, ErrorRecord("timeout", "nbparallel.errors.ItemTimeout", message, self._item(index), ""))
        else:
            self.interrupted = True

    def _fail(self, index: int, failure: BaseException) -> None:
        kind = "raised"
        if isinstance(failure, ItemUnreadable) and failure.__cause__ is not None:
            failure, kind = failure.__cause__, "item"
        self._note(index, capture(failure, kind, self._item(index)))

    def _note(self, index: int, record: ErrorRecord) -> None:
        self.errors[index] = record
        self.values.append(None)

    def _item(self, index: int) -> str:
        try:
            if self._each:
                return arguments_of([[argument] for argument in load(self._columns[0][index - self._base])], 0)
            return arguments_of(self._columns, index - self._base)
        except Exception:  # a lazy column of the user's may fail in any way; the error itself matters more
            return "?"

    def take(self) -> Block | None:
        """The outcomes that nobody took yet, encoded, and what items wrote; None when there is neither.

        One thread at a time.
        """
        start, end = self.taken, len(self.values)
        if start == end:
            output = self._take_output()
            return Block(self.lo + start, 0, b"", {}, self.attempt, self.worker, output=output) if output else None
        values = self.values[start:end]
        lo = self.lo + start
        errors = {index: self.errors[index] for index in sorted(self.errors) if lo <= index < self.lo + end}
        body = self._encode(values, lo, errors)
        self.value_bytes = sum(memoryview(part).nbytes for part in body) / len(values)
        seconds, self.seconds = self.seconds, []
        if self._batched or len(seconds) != len(values):
            seconds = [sum(seconds)]
        output = self._take_output()
        block = Block(lo, end - start, body, errors, self.attempt, self.worker, self.started, seconds, output)
        self.started = time.time()
        self.values[start:end] = [None] * (end - start)  # free what was taken
        self.taken = end
        return block

    def write(self, entry: Entry) -> None:
        """Take in what an item wrote, within bounds; may be called by any thread."""
        size = len(entry[2])
        room = max(0, LIMIT - self._output_size)
        if size > room:
            self._output_cut += size - room
            entry, size = (*entry[:2], entry[2][:room]), room
        if size:
            self._output_size += size
            self._output.append(entry)

    def _take_output(self) -> list[Entry]:
        if not self._output_size:
            return []
        # One by one: the main thread may be writing.
        entries = [self._output.popleft() for _ in range(len(self._output))]
        cut, self._output_cut, self._output_size = self._output_cut, 0, 0
        return merged(entries, cut)

    def _encode(self, values: list[Any], lo: int, errors: dict[int, ErrorRecord]) -> list[Buffer]:
        """The pickled values; those that cannot be pickled become errors, one by one."""
        try:
            return dump_parts(values, "the results", local_by_value=False)
        except SerializationError:
            for offset, value in enumerate(values):
                try:
                    dump(value, f"the result of item {lo + offset}", local_by_value=False)
                except SerializationError as error:
                    errors[lo + offset] = capture(error, "result", self._item(lo + offset))
                    values[offset] = None
            return dump_parts(values, "the results", local_by_value=False)
