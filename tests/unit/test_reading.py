"""How the user's iterables are read."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from support import eventually, imported

from nbparallel.client.reading import Input
from nbparallel.errors import UsageError


def rows(source: Input, count: int) -> list[tuple[Any, ...]]:
    """All rows, taken ``count`` at a time."""
    found: list[tuple[Any, ...]] = []
    while len((columns := source.take(count))[0]):
        assert len(columns[0]) <= count
        found += zip(*columns, strict=True)
    return found


class Sequence:
    """Has a length, but no slices that would do."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        return [5, 6, 7][index]


class NoLength:
    """Says that it has a length and then has none, as some data sets do."""

    def __len__(self) -> int:
        raise TypeError

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])


@pytest.mark.parametrize("count", [1, 2, 100])
@pytest.mark.parametrize(
    ("iterables", "total"),
    [
        (([1, 2, 3],), 3),
        ((range(7),), 7),
        (("abc", b"abcd"), 3),
        (({1: 2, 3: 4},), 2),
        ((deque([1, 2]), [3, 4, 5]), 2),
        ((Sequence(),), 3),
        ((NoLength(),), None),
        (([],), 0),
        (([1], []), 0),
    ],
    ids=repr,
)
def test_same_as_zip(iterables: tuple[Any, ...], total: int | None, count: int) -> None:
    """The rows are those of ``zip``, however many are taken at a time, and the length is known where there is one."""
    source = Input(iterables)
    assert source.total == total
    assert rows(source, count) == list(zip(*iterables, strict=False))
    assert source.exhausted
    assert len(source.take(count)[0]) == 0


def test_generators() -> None:
    """Generators have no length; the shortest iterable ends it."""
    source = Input([itertools.count(), (x for x in "abc")])
    assert source.total is None
    assert rows(source, 2) == [(0, "a"), (1, "b"), (2, "c")]


def test_nothing_is_read_beforehand() -> None:
    """Making an Input reads nothing, and taking n items reads n, calling ``iter`` once."""
    calls: list[str] = []

    class Source:
        def __iter__(self) -> Iterator[int]:
            calls.append("iter")
            for number in itertools.count():
                calls.append("next")
                yield number

    source = Input([Source()])
    assert "next" not in calls
    assert source.take(3)[0] == [0, 1, 2]
    assert (calls.count("iter"), calls.count("next")) == (1, 3)


def test_end_is_asked_for_once() -> None:
    """An iterator that has ended is not asked again, for it may block."""
    ends: list[int] = []

    def items() -> Iterator[int]:
        yield 1

    class Once:
        def __init__(self) -> None:
            self.items = items()

        def __iter__(self) -> Once:
            return self

        def __next__(self) -> int:
            try:
                return next(self.items)
            except StopIteration:
                ends.append(1)
                raise

    source = Input([Once()])
    source.read_ahead()
    assert source.take(10) == [[1]]
    assert source.take(10) == [[]]
    assert (source.exhausted, ends) == (True, [1])
    assert source.take(10) == [[]]
    assert ends == [1]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_error_comes_after_the_items_before_it(error: type[BaseException]) -> None:
    """What an iterable raises is raised by the take after the one that gave the items before it, and once."""

    def items() -> Iterator[int]:
        yield from range(5)
        raise error("here")

    source = Input([items()])
    source.read_ahead()
    assert source.take(2) == [[0, 1]]
    assert source.take(100) == [[2, 3, 4]]
    assert not source.exhausted
    with pytest.raises(error, match="here"):
        source.take(100)
    assert source.take(100) == [[]]


def test_items_do_not_wait_for_one_that_does_not_come() -> None:
    """Items that an iterable gave are taken while it thinks about the next one, and not more than was asked for."""
    gave: list[int] = []
    go_on = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            if number == 7:
                go_on.wait(10)
            gave.append(number)
            yield number

    source = Input([items()])
    source.read_ahead()
    taken: list[int] = []
    while len(taken) < 7:
        taken += source.take(50)[0]
    assert taken == list(range(7))
    go_on.set()
    while len(taken) < 60:
        taken += source.take(60 - len(taken))[0]
    assert taken == list(range(60))
    assert len(gave) <= 60
    source.close()


def test_close_ends_the_reader_and_lets_go() -> None:
    """A generator that is read ahead is closed, and its thread ends."""
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    source = Input([items()])
    source.read_ahead()
    assert source.take(3)[0][0] == 0
    source.close()
    assert closed.wait(5)


def test_close_lets_go() -> None:
    """Closing runs a generator's ``finally``, and no more is given."""
    closed: list[int] = []

    def items() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.append(1)

    source = Input([items()])
    source.take(3)
    source.close()
    assert closed == [1]
    assert source.take(3) == [[]]


def test_huge_range() -> None:
    """A range that is too long for ``len`` is read like a generator."""
    source = Input([range(10**30)])
    assert (source.total, source.take(2)) == (None, [[0, 1]])


@pytest.mark.parametrize(
    ("iterables", "message"),
    [
        ((), "at least one iterable"),
        ((5,), "argument 1 after the function is not iterable: it is of type int"),
        (([1], None), "argument 2 after the function is not iterable: it is of type NoneType"),
    ],
)
def test_refused(iterables: tuple[Any, ...], message: str) -> None:
    """What is not iterable is refused by its place and type."""
    with pytest.raises(UsageError, match=message):
        Input(iterables)


def test_numpy() -> None:
    """An array is sliced into its rows; one without dimensions is refused."""
    numpy = imported("numpy")
    source = Input([numpy.arange(6).reshape(3, 2)])
    assert source.total == 3
    assert [row.tolist() for (row,) in rows(source, 2)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(UsageError, match="ndarray"):
        Input([numpy.array(5)])


def test_ready_does_not_wait_for_a_slow_item() -> None:
    """An input that thinks is not ready, and loses nothing by being asked; at an item, and at the end, it is."""
    gate = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        gate.wait()
        yield 1

    source = Input([items()])
    assert source.ready(1), "as long as nobody reads ahead, there is nothing to ask"
    source.read_ahead()
    assert source.take(1) == [[0]]
    assert not source.ready(5)
    gate.set()
    eventually(lambda: source.ready(5))
    assert source.take(5) == [[1]]
    assert source.ready(1)
    assert source.take(1) == [[]]
    assert Input([range(3)]).ready(2)
