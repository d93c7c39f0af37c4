"""Reads the user's iterables, a chunk at a time: hands columns of arguments to ``running.py``."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from ..errors import UsageError
from ..points import Points

__all__ = ["Input"]

#: When items took longer than this to come, in seconds, those that are there go before more are waited for.
SLOW_SECONDS = 0.005
#: So often, in seconds, it is looked whether a first item has come without a word.
LOOK_SECONDS = 0.1
#: What a small item has at most: fields, bytes in each.
SMALL_FIELDS, SMALL_BYTES = 16, 128
_SCALARS = ("float64", "float32", "int64", "int32", "bool", "bool_", "uint8")


class Input:
    """One or several iterables, read together like ``map`` does: the shortest ends it. One thread at a time reads.

    Args:
        iterables: what the user passed to ``pmap``.

    Attributes:
        total: number of items, or None when an iterable has no length.

    Raises:
        UsageError: none given, or one is not iterable.
    """

    def __init__(self, iterables: Sequence[Iterable[Any]]) -> None:
        if not iterables:
            raise UsageError("pmap needs at least one iterable: pmap(function, items)")
        iterators = [_iterator(iterable, position) for position, iterable in enumerate(iterables, 1)]
        lengths = [_length(iterable) for iterable in iterables]
        known = [length for length in lengths if length is not None]
        self.total: int | None = min(known) if len(known) == len(lengths) else None
        self.sliceable: list[Any] | None = (
            list(iterables) if self.total is not None and all(map(_is_sliceable, iterables)) else None
        )
        self._rows: Iterator[Any] = zip(*iterators, strict=False) if len(iterators) > 1 else iterators[0]
        self._width = len(iterators)
        self._position = 0
        self._ended = False
        self._ahead: _ReadAhead | None = None

    @property
    def exhausted(self) -> bool:
        """Whether it is known that there is no more to take."""
        return self._ended or (self.total is not None and self._position >= self.total)

    def take(self, count: int) -> list[Sequence[Any]]:
        """The columns of the next ``count`` items, or of fewer when they come slowly; of none at the end.

        Raises:
            BaseException: whatever the iterables raised, after the items before it were taken.
        """
        if self.total is not None:
            count = min(count, self.total - self._position)
        if self.sliceable is not None:
            columns = [source[self._position : self._position + count] for source in self.sliceable]
        else:
            rows = self._read(count)
            columns = [list(column) for column in zip(*rows, strict=True)] if self._width > 1 and rows else [rows]
        self._position += len(columns[0])
        return columns

    def starts_small(self) -> bool:
        """Whether it can be seen at once that the first item is a small one: a number, say."""
        return bool(self.total and self.sliceable) and all(_is_small(source[0]) for source in self.sliceable or ())

    def ready(self, count: int) -> bool:
        """Whether ``take(count)`` gives at once one item at least, or the end."""
        return self._ahead is None or self._ahead.ready(count)

    def read_ahead(self) -> None:
        """Read in a thread of its own from now on: items that are there do not wait for one that is not."""
        if self.sliceable is None and self._ahead is None:
            self._ahead = _ReadAhead(self._rows)
            self._rows = iter(())

    def close(self) -> None:
        """Nothing more is taken: let go of the iterables, so that a generator's ``finally`` runs."""
        self._ended, self._rows, self.sliceable = True, iter(()), None
        if self._ahead is not None:
            self._ahead.close()

    def _read(self, count: int) -> list[Any]:
        if self._ahead is not None:
            rows = self._ahead.take(count)
            self._ended = self._ahead.exhausted
        else:
            rows = list(islice(self._rows, count))
            self._ended = len(rows) < count
        return rows


class _ReadAhead:
    """Reads an iterator in a thread of its own, never further than was asked for; one other thread takes the items.

    The thread lives while items that were asked for are missing: nobody has to end it.
    """

    def __init__(self, rows: Iterator[Any]) -> None:
        self._changed = threading.Condition()
        self._items: deque[Any] = deque()  # the reader appends while the taker pops: a deque bears that
        self._taken = 0
        self._read = 0
        self._wanted = 0
        self._rows = rows
        self._running = self._ended = False
        self._error: BaseException | None = None

    @property
    def exhausted(self) -> bool:
        """Whether it is known that there is no more to take, not even an exception."""
        return self._ended and not self._items and self._error is None

    def take(self, count: int) -> list[Any]:
        """The next items: ``count``, or those that are there when the next one keeps people waiting."""
        with self._changed:
            self._ask(count)
            patience: float | None = None
            while not self._ended and len(self._items) < count:
                if self._items and patience is None:
                    patience = time.monotonic() + SLOW_SECONDS
                rest = LOOK_SECONDS if patience is None else patience - time.monotonic()
                if rest <= 0:
                    break
                self._changed.wait(rest)
            if self._error is not None and not self._items:
                error, self._error = self._error, None
                raise error
            rows = [self._items.popleft() for _ in range(min(count, len(self._items)))]
            self._taken += len(rows)
            return rows

    def ready(self, count: int) -> bool:
        """Whether an item is there, or comes without keeping people waiting; true at the end of the input, too."""
        with self._changed:
            self._ask(count)
            return self._changed.wait_for(lambda: bool(self._items) or self._ended, SLOW_SECONDS)

    def _ask(self, count: int) -> None:
        """Have so many items read, those included that are there."""
        self._wanted = self._taken + count
        if not (self._running or self._ended) and self._read < self._wanted:
            self._running = True
            threading.Thread(target=self._run, name="nbparallel-read", daemon=True).start()

    def close(self) -> None:
        """Read no more, and let go of the iterator: at once, or when it has given what it is asked for now."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            if not self._running:  # a generator's `finally` runs when this returns, not under the lock
                dropped, self._rows = self._rows, iter(())  # noqa: F841

    def _run(self) -> None:
        step = 1
        while True:
            with self._changed:
                if self._ended:
                    dropped, self._rows = self._rows, iter(())  # noqa: F841
                if self._ended or self._read >= self._wanted:
                    self._running = False
                    return
                asked = min(step, self._wanted - self._read)
            started = time.monotonic()
            error: BaseException | None = None
            try:
                self._items.extend(islice(self._rows, asked))
            except BaseException as raised:  # whatever it is, it is the user's to see, and ends the input
                error = raised
            with self._changed:
                came = self._taken + len(self._items) - self._read
                self._read += came
                self._error = error
                if error is not None or came < asked:
                    self._ended = True
                self._changed.notify_all()
            step = 2 * step if time.monotonic() - started < SLOW_SECONDS else 1


def _iterator(iterable: Any, position: int) -> Iterator[Any]:
    try:
        return iter(iterable)  # of a numpy array without dimensions it fails, though there is an __iter__
    except TypeError:
        kind = type(iterable).__name__
        raise UsageError(f"argument {position} after the function is not iterable: it is of type {kind}") from None


def _length(iterable: Any) -> int | None:
    if not hasattr(type(iterable), "__len__"):
        return None
    try:
        return len(iterable)
    except (TypeError, NotImplementedError, OverflowError):  # it has none after all, or range(10**30)
        return None


def _is_small(value: Any) -> bool:
    kind = type(value)
    if kind is tuple:
        return len(value) <= SMALL_FIELDS and all(type(field) is not tuple and _is_small(field) for field in value)
    if kind in (str, bytes):
        return len(value) <= SMALL_BYTES
    return kind in (int, float, complex, bool, type(None)) or (kind.__module__ == "numpy" and kind.__name__ in _SCALARS)


def _is_sliceable(iterable: Any) -> bool:
    """Whether slices of it hold just what iteration gives."""
    kind = type(iterable)
    return (
        isinstance(iterable, Points)
        or kind in (list, tuple, range, str, bytes)
        or (kind.__module__ == "numpy" and kind.__name__ == "ndarray")
    )
