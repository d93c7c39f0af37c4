"""What became of a job's items: the collector hands in Blocks, the Job's readers take Pieces out.

Outcomes stay encoded, block by block, until somebody reads them, so that an item costs its bytes and no object.
Above a limit the bytes move to a file that has no name, and so is gone with the process, however it ends. Arrays that
are mapped, and so shared with whoever was handed them, stay as long as there is room where they lie.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from ..errors import NbparallelError, ResultDropped, SerializationError, WireError
from ..model import Block, ErrorRecord
from ..ordering import Ranges, runs_of
from .spill import SpillFile

__all__ = ["Failure", "Piece", "Results"]

#: Decodes a block's body into the list of its values.
Decode = Callable[["bytes | memoryview"], "list[Any]"]

#: Bytes that bodies like this one may take where they lie; 0 for one that is in our own memory.
Room = Callable[["bytes | memoryview"], int]

#: Bodies that are kept decoded for random access.
_CACHED_BODIES = 8

#: Larger bodies, in bytes, are decoded anew at each random access rather than kept twice in memory.
_CACHED_BYTES = 4 << 20

#: Bytes after which spilled bodies go to a new file. A file is closed with the last body in it, so that an
#: endless input does not fill the disk.
_SPILL_FILE_BYTES = 64 << 20

#: Failures that are still listed after their places were handed out and dropped; an endless input may have more.
_DROPPED_ERRORS_KEPT = 1000

_by_lo = attrgetter("lo")
_by_position = attrgetter("position")


class Failure(NamedTuple):
    """Why an item failed, where, and at which attempt."""

    record: ErrorRecord
    worker: str
    attempt: int


_NO_ERRORS: Mapping[int, Failure] = MappingProxyType({})


class _Body:
    """The encoded values of one block, in memory or in a spill file, and where and when they were made."""

    __slots__ = ("attempt", "count", "data", "file", "mapped", "offset", "seconds", "size", "started", "used", "worker")

    def __init__(self, block: Block) -> None:
        data = block.body
        assert not isinstance(data, list)  # in parts it is in the worker only
        self.data: bytes | memoryview | None = data
        self.count = block.count
        self.worker, self.started, self.attempt = block.worker, block.started, block.attempt
        #: As in the block: of each item, or of all of them together.
        self.seconds = array("d", block.seconds)
        self.size = memoryview(data).nbytes
        self.used = 0  # items of it that pieces of Results still refer to
        self.file: SpillFile | None = None
        self.offset = 0
        self.mapped = False

    def spill(self, file: SpillFile) -> None:
        assert self.data is not None
        self.offset = file.append(self.data)
        self.file = file
        self.data = None  # last: a reader looks at it first

    def encoded(self) -> bytes | memoryview:
        data = self.data
        if data is not None:
            return data
        assert self.file is not None
        return self.file.read(self.offset, self.size)


class _Decoder:
    """Decodes bodies; keeps the last few for random access. Thread-safe."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._lock = threading.Lock()
        self._cache: OrderedDict[_Body, list[Any]] = OrderedDict()

    def values(self, body: _Body) -> list[Any]:
        values = self._decode(body.encoded())
        if len(values) != body.count:
            raise WireError(f"a block of {body.count} outcomes holds {len(values)} values")
        return values

    def cached(self, body: _Body) -> list[Any]:
        with self._lock:
            values = self._cache.get(body)
            if values is not None:
                self._cache.move_to_end(body)
                return values
        values = self.values(body)
        if body.size <= _CACHED_BYTES:
            with self._lock:
                # Two readers may have decoded it at a time; both then get the same objects.
                values = self._cache.setdefault(body, values)
                while len(self._cache) > _CACHED_BODIES:
                    self._cache.popitem(last=False)
        return values

    def clear(self) -> None:
        with self._lock:
            self._cache.clear()


class Piece:
    """A run of consecutive items [lo, hi) that arrived together.

    Immutable and self-contained: it is read outside of the job's lock, in the reader's thread, and stays readable
    when Results has dropped it meanwhile.

    Attributes:
        lo: index of the first item.
        hi: index after the last item.
        position: place of the first item in the order of arrival.
        errors: index → failure, of the failed items in [lo, hi) only.
    """

    __slots__ = ("_body", "_decoder", "_offset", "errors", "hi", "lo", "position")

    def __init__(
        self,
        lo: int,
        hi: int,
        position: int,
        errors: Mapping[int, Failure],
        body: _Body,
        offset: int,
        decoder: _Decoder,
    ) -> None:
        self.lo = lo
        self.hi = hi
        self.position = position
        self.errors = errors
        self._body = body
        self._offset = offset  # of item lo in the body
        self._decoder = decoder

    @property
    def values(self) -> list[Any]:
        """The values of the items, None at failed places; decoded anew at each access."""
        offset = self._offset
        values = self._decoded(self._decoder.values)
        return values if len(values) == len(self) else values[offset : offset + len(self)]

    def value(self, index: int) -> Any:
        """The value of one item, for random access: the last few decoded bodies are kept."""
        if not self.lo <= index < self.hi:
            raise KeyError(index)
        return self._decoded(self._decoder.cached)[self._offset + index - self.lo]

    def _decoded(self, decode: Callable[[_Body], list[Any]]) -> list[Any]:
        try:
            return decode(self._body)
        except NbparallelError:
            raise
        except Exception as error:  # unpickling runs code of the user's classes
            first, count = self.lo - self._offset, self._body.count
            which = f"result of item {first}" if count == 1 else f"results of items {first} to {first + count - 1}"
            said = f"the {which} cannot be unpickled in this process: {type(error).__name__}: {error}"
            raise SerializationError(said) from error

    @property
    def next_position(self) -> int:
        """Place of the outcome that came after these, in the order of arrival."""
        return self.position + len(self)

    def part(self, lo: int, hi: int) -> Piece:
        """The piece of items [lo, hi) of this one."""
        if (lo, hi) == (self.lo, self.hi):
            return self
        skip = lo - self.lo
        errors: Mapping[int, Failure] = _NO_ERRORS
        if self.errors:
            errors = {index: failure for index, failure in self.errors.items() if lo <= index < hi} or _NO_ERRORS
        return Piece(lo, hi, self.position + skip, errors, self._body, self._offset + skip, self._decoder)

    @property
    def worker(self) -> str:
        """``host:pid`` of the worker process."""
        return self._body.worker

    @property
    def attempt(self) -> int:
        """Which attempt this was, from 1."""
        return self._body.attempt

    def times(self) -> list[tuple[float, float]]:
        """(start, duration) of each item in seconds, by the worker's clock; means where items ran in batches."""
        body = self._body
        each = body.seconds
        if len(each) != body.count:
            each = array("d", [sum(each) / body.count]) * body.count
        start = body.started + sum(each[: self._offset])
        times = []
        for seconds in each[self._offset : self._offset + len(self)]:
            times.append((start, seconds))
            start += seconds
        return times

    def __len__(self) -> int:
        return self.hi - self.lo

    def __repr__(self) -> str:
        return f"<Piece of items {self.lo} to {self.hi - 1}, {len(self.errors)} failed>"


class Results:
    """The outcomes that a client has received of one job.

    Each index is reported once, however often it was run: what was received already is ignored. Not thread-safe:
    the Job's lock guards every call; only the pieces that it returns are used without.

    Args:
        keep: whether outcomes stay after they were handed out; else ``drop`` forgets them.
        limit_bytes: encoded bodies above it, all together, go to disk.
        decode: makes a list of values of a body, as ``pickling.load`` does. A body may be decoded more than once.
        room: for bodies whose values share their memory: to copy them to disk would free nothing that is in use.

    Attributes:
        received: indexes that have an outcome, dropped ones included.
        dropped: indexes whose outcome was forgotten.
        errors: index → failure, of every failed item (of the dropped ones only some).
        memory_bytes: size of the bodies in memory.
        mapped_bytes: size of those that are mapped.
        spilled_bytes: size of the bodies on disk.
    """

    def __init__(self, keep: bool, limit_bytes: int, decode: Decode, room: Room = lambda body: 0) -> None:
        self.received = Ranges()
        self.dropped = Ranges()
        self.errors: dict[int, Failure] = {}
        self.memory_bytes = self.mapped_bytes = self.spilled_bytes = 0
        self._keep = keep
        self._limit, self._room = limit_bytes, room
        self._decoder = _Decoder(decode)
        self._pieces: list[Piece] = []  # by index; they never overlap
        self._arrivals: list[Piece] = []  # the same ones by position
        self._arrived = 0  # position of the next outcome to come
        self._dropped_positions = Ranges()
        self._why = _DROPPED
        self._attempts: dict[int, int] = {}  # of reset items: the lowest attempt that counts
        self._closed = False
        self._file: SpillFile | None = None
        self._files: weakref.WeakSet[SpillFile] = weakref.WeakSet()

    def add(self, block: Block, skip: Collection[int] = ()) -> list[tuple[int, int]]:
        """Take in a block; returns the runs [lo, hi) of items that had no outcome before.

        Items in ``skip`` are left out: they run again, and what this block says of them is not the last word.
        """
        if self._closed:  # a late report
            return []
        body = _Body(block)
        added = []
        for start, stop in self._current(block, skip):
            for lo, hi in self.received.add(start, stop):
                added.append((lo, hi))
                self._insert(Piece(lo, hi, self._arrived, _failures(block, lo, hi), body, lo - block.lo, self._decoder))
                self._arrived += hi - lo
        if added:
            self._store(body)
        return added

    def reset(self, indexes: Iterable[int]) -> None:
        """Forget what became of these items, as they run again: a later attempt's outcome is received anew.

        Items without an outcome, and dropped ones, are left as they are.
        """
        for start, stop in runs_of(indexes):
            for lo, hi in self.received.overlap(start, stop):
                for first, last in self.dropped.missing(lo, hi):
                    for piece in self._cut(first, last):
                        for index in range(piece.lo, piece.hi):
                            failure = self.errors.pop(index, None)
                            if failure is not None:  # a late duplicate of that attempt is no news
                                self._attempts[index] = failure.attempt + 1
                    self.received.discard(first, last)
        self._decoder.clear()

    def ordered(self, index: int) -> Piece | None:
        """The outcomes received that start exactly at ``index``, as many as came together; None if not there yet.

        Raises:
            ResultDropped: it was there and is no more.
        """
        piece = self._find(index)
        return None if piece is None else piece.part(index, piece.hi)

    def arrived(self, position: int) -> Piece | None:
        """The outcomes that arrived from ``position`` on, as many as came together; None if there are none yet.

        Positions of items that were reset are passed over, so go on at ``piece.position + len(piece)``.

        Raises:
            ResultDropped: the outcome at that position was dropped.
        """
        if position in self._dropped_positions:
            raise ResultDropped(_DROPPED.format(f"the outcome that came as number {position}"))
        at = bisect_right(self._arrivals, position, key=_by_position)
        if at and position < self._arrivals[at - 1].position + len(self._arrivals[at - 1]):
            piece = self._arrivals[at - 1]
            return piece.part(piece.lo + position - piece.position, piece.hi)
        return self._arrivals[at] if at < len(self._arrivals) else None

    def get(self, index: int) -> Piece:
        """The piece that holds item ``index``; its ``value(index)`` or ``errors[index]`` is the outcome.

        Raises:
            KeyError: no outcome yet.
            ResultDropped: it was there and is no more.
        """
        piece = self._find(index)
        if piece is None:
            raise KeyError(index)
        return piece

    def pieces(self) -> list[Piece]:
        """All that was received and not dropped, by index."""
        return list(self._pieces)

    def lose(self, lo: int, hi: int, why: str) -> None:
        """What of [lo, hi) has no outcome was gone before it was received; asking for it raises ``why``."""
        self._why = why
        for start, stop in self.received.add(lo, hi):
            self.dropped.add(start, stop)

    def drop(self, piece: Piece) -> None:
        """Forget the outcomes of a piece that was handed out, unless results are kept."""
        if self._keep:
            return
        for part in self._cut(piece.lo, piece.hi):
            self.dropped.add(part.lo, part.hi)
            self._dropped_positions.add(part.position, part.position + len(part))
            if len(self.errors) > _DROPPED_ERRORS_KEPT:
                for index in part.errors:
                    self.errors.pop(index, None)

    def close(self) -> None:
        """Give memory and spill files back; nothing is read or taken in after that. May be called twice."""
        self._closed = True
        self.dropped = Ranges(self.received.runs)
        self._dropped_positions = Ranges([(0, self._arrived)])
        self._pieces.clear()
        self._arrivals.clear()
        self._decoder.clear()
        self._file = None
        for file in list(self._files):
            file.close()
        self.memory_bytes = self.mapped_bytes = self.spilled_bytes = 0

    def _current(self, block: Block, skip: Collection[int]) -> list[tuple[int, int]]:
        # The block without items to skip, and those that were reset since it was sent.
        if not self._attempts and not skip:
            return [(block.lo, block.hi)]
        mine = Ranges([(block.lo, block.hi)])
        for index in skip:
            mine.discard(index, index + 1)
        for index in [index for index in self._attempts if index in mine]:
            if block.attempt < self._attempts[index]:
                mine.discard(index, index + 1)
            elif index not in self.received:
                del self._attempts[index]
        return mine.runs

    def _insert(self, piece: Piece) -> None:
        _insert_sorted(self._pieces, piece, _by_lo)
        _insert_sorted(self._arrivals, piece, _by_position)
        self.errors.update(piece.errors)
        piece._body.used += len(piece)

    def _find(self, index: int) -> Piece | None:
        at = bisect_right(self._pieces, index, key=_by_lo)
        if at and index < self._pieces[at - 1].hi:
            return self._pieces[at - 1]
        if index in self.dropped:
            raise ResultDropped(self._why.format(f"the result of item {index}"))
        return None

    def _cut(self, lo: int, hi: int) -> list[Piece]:
        # Take [lo, hi) out of both orders; what sticks out of it on either side stays.
        first = bisect_right(self._pieces, lo, key=_by_lo)
        if first and lo < self._pieces[first - 1].hi:
            first -= 1
        after = bisect_left(self._pieces, hi, key=_by_lo)
        removed = []
        left: list[Piece] = []
        for piece in self._pieces[first:after]:
            start, stop = max(lo, piece.lo), min(hi, piece.hi)
            kept = [piece.part(a, b) for a, b in ((piece.lo, start), (stop, piece.hi)) if a < b]
            at = bisect_left(self._arrivals, piece.position, key=_by_position)
            self._arrivals[at : at + 1] = kept
            left += kept
            removed.append(piece.part(start, stop))
            self._release(piece._body, stop - start)
        self._pieces[first:after] = left
        return removed

    def _store(self, body: _Body) -> None:
        assert body.data is not None
        if (room := self._room(body.data)) and self.mapped_bytes + body.size <= room:
            body.mapped = True
            self.mapped_bytes += body.size
            return
        if self.memory_bytes + body.size > self._limit:
            try:
                body.spill(self._spill_file())
            except OSError:  # no room on the disk: better too much memory than a lost result
                pass
            else:
                self.spilled_bytes += body.size
                return
        self.memory_bytes += body.size

    def _spill_file(self) -> SpillFile:
        if self._file is None or self._file.size >= _SPILL_FILE_BYTES:
            self._file = SpillFile()
            self._files.add(self._file)
        return self._file

    def _release(self, body: _Body, count: int) -> None:
        body.used -= count
        if not body.used:
            if body.mapped:
                self.mapped_bytes -= body.size
            elif body.file is None:
                self.memory_bytes -= body.size
            else:
                self.spilled_bytes -= body.size


_DROPPED = "{} was handed out before and not kept; pass keep=True to keep results"


def _failures(block: Block, lo: int, hi: int) -> Mapping[int, Failure]:
    if not block.errors:
        return _NO_ERRORS
    return {
        index: Failure(record, block.worker, block.attempt)
        for index, record in block.errors.items()
        if lo <= index < hi
    } or _NO_ERRORS


def _insert_sorted(pieces: list[Piece], piece: Piece, key: Callable[[Piece], int]) -> None:
    if not pieces or key(piece) > key(pieces[-1]):  # nearly always
        pieces.append(piece)
    else:
        pieces.insert(bisect_left(pieces, key(piece), key=key), piece)
