"""Runs of indexes."""

from __future__ import annotations

import random
import time

import pytest

from nbparallel.ordering import Ranges, runs_of


def as_runs(members: set[int]) -> list[tuple[int, int]]:
    """The runs of a set, found the slow way."""
    edges = sorted(members)
    los = [index for index in edges if index - 1 not in members]
    his = [index + 1 for index in edges if index + 1 not in members]
    return list(zip(los, his, strict=True))


@pytest.mark.parametrize("seed", range(30))
def test_ranges_behave_as_a_set(seed: int) -> None:
    """After any adds and discards, members, runs, gaps and answers are those of a plain set."""
    rng = random.Random(seed)
    ranges, members = Ranges(), set()
    for _ in range(120):
        lo = rng.randrange(60)
        hi = lo + rng.randrange(12)
        span = set(range(lo, hi))
        if rng.random() < 0.6:
            assert ranges.add(lo, hi) == as_runs(span - members)
            members |= span
        else:
            assert ranges.discard(lo, hi) == as_runs(span & members)
            members -= span
        assert ranges.runs == as_runs(members)
        assert len(ranges) == len(members)
        assert set(ranges) == members
        assert [index in ranges for index in range(-1, 75)] == [index in members for index in range(-1, 75)]
        a, b = rng.randrange(40), rng.randrange(40, 80)
        assert ranges.missing(a, b) == as_runs(set(range(a, b)) - members)
        assert ranges.overlap(a, b) == as_runs(set(range(a, b)) & members)
        assert ranges.first_missing(a) == next(index for index in range(a, 200) if index not in members)


def test_neighbours_merge() -> None:
    """Runs that touch become one, so that memory follows the gaps and not the calls."""
    ranges = Ranges()
    for lo in (0, 20, 10, 30):
        ranges.add(lo, lo + 10)
    assert ranges.runs == [(0, 40)]
    assert ranges.first_missing() == 40


def test_empty_spans_are_nothing() -> None:
    """Adding, discarding or asking for an empty span changes and finds nothing."""
    ranges = Ranges([(2, 4)])
    assert ranges.add(3, 3) == ranges.discard(3, 3) == ranges.overlap(3, 3) == ranges.missing(3, 3) == []
    assert ranges.runs == [(2, 4)]


def test_ranges_compare_by_members() -> None:
    """Two sets are equal when they have the same members, however these came in."""
    assert Ranges([(0, 2), (2, 4)]) == Ranges([(0, 4)])
    assert Ranges([(0, 2)]) != Ranges([(0, 3)])


def test_runs_of_any_order() -> None:
    """Indexes in any order, with duplicates, become sorted disjoint runs."""
    assert runs_of([9, 1, 3, 2, 3]) == [(1, 4), (9, 10)]
    assert runs_of([]) == []


def test_a_million_items_mostly_in_order_are_fast() -> None:
    """A million single items that arrive with neighbours swapped take seconds at the very most."""
    ranges = Ranges()
    start = time.process_time()
    for lo in range(0, 1_000_000, 2):
        ranges.add(lo + 1, lo + 2)
        ranges.add(lo, lo + 1)
    assert ranges.runs == [(0, 1_000_000)]
    assert time.process_time() - start < 10
