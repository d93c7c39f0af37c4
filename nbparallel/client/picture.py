"""Is told by the Meter which blocks arrived; hands it the Details of a job: map, lanes, durations, failures, output."""

from __future__ import annotations

import heapq
import math
import re
from collections import deque
from collections.abc import Collection, Iterable
from itertools import islice

from ..model import Block, Details, ErrorRecord, FailureGroup, Lane
from ..tracebacks import cell_name, with_cells
from .output import CUT

__all__ = ["Picture"]

#: The map has at most so many cells; with more items, a cell stands for several.
CELLS = 2000
#: Bits of a cell beside the four that say how much of it is done.
SUBMITTED, RUNNING, FAILED, MOSTLY_FAILED = 16, 32, 64, 128
#: Lanes that are kept, pieces of time in a lane, and the shortest such piece, in seconds.
LANES, LANE_PIECES, LANE_SECONDS = 64, 120, 0.1
#: Durations are counted in four bins a decade, from 1 µs to 10^6 s.
BINS_A_DECADE, DECADES, LOWEST = 4, 12, -6
#: Of a block with more items than this, a sample is counted.
SAMPLE_ITEMS = 32
SLOWEST_ITEMS = 5
FAILURE_GROUPS, FAILURE_EXAMPLES, TRACEBACK_CHARACTERS = 50, 20, 16_000
OUTPUT_ENTRIES, OUTPUT_CHARACTERS = 200, 2000

_FRAME = re.compile(r'^\s*(?:File "([^"]+)", line (\d+)(?:, in (\S+))?)', re.MULTILINE)


#: What becomes of a cell's state when all of it was submitted, or has its outcome.
_SUBMIT = bytes(state | SUBMITTED for state in range(256))
_FINISH = bytes((state & ~15) | 15 for state in range(256))


class Picture:
    """What became of each part of a job, in bounded memory; adding a block costs the same for 10 and 10,000 items.

    Not thread-safe: the Meter's owner guards it.

    Args:
        total: number of items, or None when the input has no length.
    """

    def __init__(self, total: int | None = None) -> None:
        self._cell_items = max(1, -(-total // CELLS)) if total else 1
        self._total = total
        count = -(-total // self._cell_items) if total else 0
        self._done = [0] * count
        self._bad = [0] * count
        self._cells = bytearray(count)
        #: Ends of the chunks that are not done: what a worker runs after a block that ends there is unknown.
        self._ends: set[int] = set()
        #: First indexes of the chunks of which nothing was reported, in the order in which they will be claimed.
        self._untouched: dict[int, None] = {}
        self._lanes: dict[str, _Lane] = {}
        self._more_lanes: set[str] = set()
        self._lane_seconds = LANE_SECONDS
        self._durations = [0] * (BINS_A_DECADE * DECADES)
        self._slowest: list[tuple[float, int, str]] = []
        self._failures: dict[tuple[str, str], _Failures] = {}
        self._more_failures = 0
        self._output: deque[tuple[int, str, str]] = deque()
        self._output_cut = 0
        # Rebuilt only after a change, so that a view can tell by identity that there is nothing new.
        self._shown_failures: tuple[FailureGroup, ...] | None = ()
        self._shown_output: tuple[tuple[int, str, str], ...] | None = ()

    def submitted(self, lo: int, hi: int) -> None:
        """The items [lo, hi) went to the store."""
        self._ends.add(hi)
        self._untouched[lo] = None
        cells = self._span(lo, hi)
        inside = slice(cells.start, cells.stop)
        self._cells[inside] = self._cells[inside].translate(_SUBMIT)

    def received(self, block: Block, again: Collection[int], now: float) -> None:
        """A block arrived; the items ``again`` of it will be tried once more.

        Args:
            now: seconds since the job started.
        """
        cells, items = self._span(block.lo, block.hi), self._cell_items
        # All at once for those that lie wholly in the block: with a million items in a second, there are many.
        first = min(-(-block.lo // items), cells.stop)
        whole = slice(first, max(first, block.hi // items))
        self._done[whole] = [items] * (whole.stop - whole.start)
        self._cells[whole] = self._cells[whole].translate(_FINISH)
        for cell in (*range(cells.start, whole.start), *range(whole.stop, cells.stop)):
            self._add(cell, min(block.hi, (cell + 1) * items) - max(block.lo, cell * items))
        for index in again:
            self._add(index // self._cell_items, -1)
        for index, error in block.errors.items():
            if index not in again:
                self._add(index // self._cell_items, 0, failed=1)
                self._fail(index, error)
        self._untouched.pop(block.lo, None)
        goes_on = block.hi not in self._ends
        self._ends.discard(block.hi)
        self._work(block, block.hi if goes_on else None, now)
        self._time(block)
        self.wrote(block.output)

    def wrote(self, entries: Iterable[tuple[int, str, str]]) -> None:
        """Items wrote something: (index, stream name, text)."""
        for index, stream, text in entries:
            if stream == CUT:
                self._output_cut += int(text)
            else:
                self._write(index, stream, text)

    def reopened(self, indexes: Collection[int]) -> None:
        """These items had failed and are tried again; they are all the failures that there were."""
        for index in indexes:
            for cell in self._span(index, index + 1):
                self._add(cell, -1, failed=-1)
        self._failures.clear()
        self._more_failures, self._shown_failures = 0, None

    def details(self, running: int, total: int | None) -> Details:
        """The picture of this moment.

        Args:
            running: items that run now.
            total: number of items, as soon as it is known.
        """
        if self._total is None and total is not None:
            self._total = total
            if self._cells:  # how full the last cell is was not known before
                self._add(len(self._cells) - 1, 0)
        cells = bytearray(self._cells)
        lanes = []
        for name in sorted(self._lanes):
            lane = self._lanes[name]
            index = lane.index if running else None
            lanes.append(Lane(name, index, lane.heard, lane.items, bytes(lane.levels)))
        known = [lane.item for lane in lanes if lane.item is not None]
        # Of the others nothing is known but that chunks are claimed in order.
        guessed = islice(self._untouched, max(0, running - len(known)))
        for index in (*known, *guessed):
            if index // self._cell_items < len(cells):
                cells[index // self._cell_items] |= RUNNING
        if self._shown_failures is None:
            groups = sorted(self._failures.values(), key=lambda group: -group.count)
            self._shown_failures = tuple(group.shown() for group in groups)
        if self._shown_output is None:
            self._shown_output = tuple(self._output)
        return Details(
            cells=bytes(cells),
            cell_items=self._cell_items,
            lanes=tuple(lanes),
            lane_seconds=self._lane_seconds,
            more_lanes=len(self._more_lanes),
            durations=tuple(self._durations),
            slowest=tuple((index, seconds, worker) for seconds, index, worker in sorted(self._slowest, reverse=True)),
            failures=self._shown_failures,
            more_failures=self._more_failures,
            output=self._shown_output,
            output_cut=self._output_cut,
        )

    def _span(self, lo: int, hi: int) -> range:
        """The cells that hold [lo, hi); the map grows, and each cell with it, while the input's length is unknown."""
        while (hi - 1) // self._cell_items >= max(CELLS, len(self._cells)):
            self._coarsen()
        cells = range(lo // self._cell_items, (hi - 1) // self._cell_items + 1)
        missing = cells.stop - len(self._cells)
        if missing > 0:
            self._cells.extend(bytes(missing))
            self._done.extend([0] * missing)
            self._bad.extend([0] * missing)
        return cells

    def _coarsen(self) -> None:
        self._cell_items *= 2
        if len(self._cells) % 2:
            self._cells.append(0)
            self._done.append(0)
            self._bad.append(0)
        flags = self._cells
        self._done = [first + second for first, second in zip(self._done[::2], self._done[1::2], strict=True)]
        self._bad = [first + second for first, second in zip(self._bad[::2], self._bad[1::2], strict=True)]
        self._cells = bytearray(first | second for first, second in zip(flags[::2], flags[1::2], strict=True))
        for cell in range(len(self._cells)):
            self._add(cell, 0)

    def _add(self, cell: int, items: int, failed: int = 0) -> None:
        """So many more items of a cell are done, and so many of it failed."""
        self._done[cell] = done = max(0, self._done[cell] + items)
        self._bad[cell] = bad = max(0, self._bad[cell] + failed)
        size = self._cell_items
        if self._total is not None:
            size = min(size, self._total - cell * size)
        level = 15 if done >= size else min(14, 1 + 13 * done // size) if done else 0
        flags = (FAILED if bad else 0) | (MOSTLY_FAILED if 2 * bad > size else 0)
        self._cells[cell] = (self._cells[cell] & SUBMITTED) | flags | level

    def _work(self, block: Block, index: int | None, now: float) -> None:
        lane = self._lanes.get(block.worker)
        if lane is None:
            if not block.worker or len(self._lanes) >= LANES:
                self._more_lanes.update({block.worker} - {""})
                return
            lane = self._lanes[block.worker] = _Lane()
        lane.index, lane.heard, lane.items = index, now, lane.items + block.count
        seconds = sum(block.seconds)
        end = block.started + seconds
        # Clocks of machines differ, and reports take their time: the quickest report tells by how much.
        lane.ahead = min(lane.ahead, now - end)
        end = max(0.0, end + lane.ahead)
        while end >= LANE_PIECES * self._lane_seconds:
            self._lane_seconds *= 2
            for other in self._lanes.values():
                other.coarsen(self._lane_seconds)
        lane.work(max(0.0, end - seconds), end, self._lane_seconds)

    def _time(self, block: Block) -> None:
        seconds = block.seconds
        if not seconds:
            return
        if len(seconds) == 1:
            seconds = [seconds[0] / block.count]
            self._durations[_bin(seconds[0])] += block.count
        else:
            step = -(-len(seconds) // SAMPLE_ITEMS)
            sample = seconds[::step]
            for one in sample:
                self._durations[_bin(one)] += 1
            # The sample stands for all: the rest goes where its middle is.
            self._durations[_bin(sorted(sample)[len(sample) // 2])] += len(seconds) - len(sample)
        slowest = self._slowest
        if len(slowest) < SLOWEST_ITEMS or max(seconds) > slowest[0][0]:
            ranked = heapq.nlargest(SLOWEST_ITEMS, zip(seconds, range(block.lo, block.hi), strict=False))
            slowest = heapq.nlargest(SLOWEST_ITEMS, [*slowest, *((one, index, block.worker) for one, index in ranked)])
            self._slowest = slowest[::-1]

    def _fail(self, index: int, error: ErrorRecord) -> None:
        frames = _FRAME.findall(error.traceback[-4000:])
        file, line, function = frames[-1] if frames else ("", "", "")
        cell = cell_name(file)
        place = f"{cell}, line {line}" if cell else f"{file.rsplit('/', 1)[-1]}:{line}" if file else ""
        place += f" in {function}" if function else ""
        group = self._failures.get((error.type_name, place))
        self._shown_failures = None
        if group is None:
            if len(self._failures) >= FAILURE_GROUPS:
                self._more_failures += 1
                return
            group = self._failures[error.type_name, place] = _Failures(error, place)
        group.count += 1
        if len(group.examples) < FAILURE_EXAMPLES:
            group.examples.append((index, error.item, error.message))

    def _write(self, index: int, stream: str, text: str) -> None:
        self._shown_output = None
        self._output_cut += max(0, len(text) - OUTPUT_CHARACTERS)
        self._output.append((index, stream, text[:OUTPUT_CHARACTERS]))
        if len(self._output) > OUTPUT_ENTRIES:
            self._output_cut += len(self._output.popleft()[2])


class _Lane:
    """One worker process; time is in seconds since the job started."""

    __slots__ = ("ahead", "busy", "heard", "index", "items", "levels")

    def __init__(self) -> None:
        self.index: int | None = None
        self.heard = 0.0
        self.items = 0
        #: What to add to the worker's clock.
        self.ahead = math.inf
        #: Running time in each piece of time, and the same as bytes.
        self.busy: list[float] = []
        self.levels = bytearray()

    def work(self, start: float, end: float, piece: float) -> None:
        first, last = int(start / piece), int(end / piece)
        missing = last + 1 - len(self.busy)
        if missing > 0:
            self.busy.extend([0.0] * missing)
            self.levels.extend(bytes(missing))
        for place in range(first, last + 1):
            self.busy[place] += min(end, (place + 1) * piece) - max(start, place * piece)
            self.levels[place] = min(255, round(255 * self.busy[place] / piece))

    def coarsen(self, piece: float) -> None:
        busy = [*self.busy, 0.0]  # a single last one finds its pair
        self.busy = [first + second for first, second in zip(busy[::2], busy[1::2], strict=False)]
        self.levels = bytearray(min(255, round(255 * one / piece)) for one in self.busy)


class _Failures:
    """One group of failures, as it grows."""

    __slots__ = ("count", "examples", "place", "traceback", "type_name")

    def __init__(self, first: ErrorRecord, place: str) -> None:
        self.type_name, self.place, self.count = first.type_name, place, 0
        self.examples: list[tuple[int, str, str]] = []
        text = with_cells(first.traceback)
        if len(text) > TRACEBACK_CHARACTERS:  # both its ends say more than its middle
            half = TRACEBACK_CHARACTERS // 2
            text = f"{text[:half]}\n…\n{text[-half:]}"
        self.traceback = text

    def shown(self) -> FailureGroup:
        return FailureGroup(self.type_name, self.place, self.count, tuple(self.examples), self.traceback)


def _bin(seconds: float) -> int:
    if seconds <= 0:
        return 0
    return min(max(int(BINS_A_DECADE * (math.log10(seconds) - LOWEST)), 0), BINS_A_DECADE * DECADES - 1)
