"""Sets of item indexes as runs: dispatch and results keep in them what was read, received and dropped. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["Ranges", "runs_of"]


def runs_of(indexes: Iterable[int]) -> list[tuple[int, int]]:
    """The given indexes, in any order, as sorted disjoint runs [lo, hi).

    >>> runs_of([4, 1, 2, 4])
    [(1, 3), (4, 5)]
    """
    runs: list[tuple[int, int]] = []
    for index in sorted(set(indexes)):
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


class Ranges:
    """A set of integers, kept as sorted, disjoint, never touching runs [lo, hi).

    Memory grows with the number of runs, not of members, and so does the time of a call (its logarithm, and a
    move of pointers), so a million items that arrive mostly in order cost next to nothing. Not thread-safe.

    >>> seen = Ranges([(0, 5)])
    >>> seen.add(3, 8)
    [(5, 8)]
    >>> 7 in seen, len(seen), seen.missing(0, 10)
    (True, 8, [(8, 10)])
    """

    __slots__ = ("_his", "_los", "_size")

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        # Two lists, not one of pairs: bisect then compares plain integers.
        self._los: list[int] = []
        self._his: list[int] = []
        self._size = 0
        for lo, hi in runs:
            self.add(lo, hi)

    def add(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """Put [lo, hi) in; returns the parts of it that are new, in order."""
        if lo >= hi:
            return []
        if self._his and lo == self._his[-1]:  # nearly every call: the next items in order
            self._his[-1] = hi
            self._size += hi - lo
            return [(lo, hi)]
        added = self.missing(lo, hi)
        if added:
            first, after = self._touching(lo, hi)
            if first < after:
                lo, hi = min(lo, self._los[first]), max(hi, self._his[after - 1])
            self._los[first:after] = [lo]
            self._his[first:after] = [hi]
            self._size += sum(stop - start for start, stop in added)
        return added

    def discard(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """Take [lo, hi) out; returns the parts of it that were there, in order."""
        removed = self.overlap(lo, hi)
        if removed:
            first, after = bisect_right(self._his, lo), bisect_left(self._los, hi)
            ends = ((self._los[first], lo), (hi, self._his[after - 1]))
            kept = [(start, stop) for start, stop in ends if start < stop]
            self._los[first:after] = [start for start, _ in kept]
            self._his[first:after] = [stop for _, stop in kept]
            self._size -= sum(stop - start for start, stop in removed)
        return removed

    def overlap(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """The parts of [lo, hi) that are members, in order."""
        if lo >= hi:
            return []
        first, after = bisect_right(self._his, lo), bisect_left(self._los, hi)
        return [(max(lo, self._los[at]), min(hi, self._his[at])) for at in range(first, after)]

    def missing(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """The gaps: the parts of [lo, hi) that are not members, in order."""
        gaps = []
        for start, stop in self.overlap(lo, hi):
            if lo < start:
                gaps.append((lo, start))
            lo = stop
        if lo < hi:
            gaps.append((lo, hi))
        return gaps

    def first_missing(self, start: int = 0) -> int:
        """The smallest integer from ``start`` on that is not a member."""
        at = bisect_right(self._los, start) - 1
        return max(start, self._his[at]) if at >= 0 else start

    @property
    def runs(self) -> list[tuple[int, int]]:
        """All members, as runs in order."""
        return list(zip(self._los, self._his, strict=True))

    def _touching(self, lo: int, hi: int) -> tuple[int, int]:
        # Places of the runs that [lo, hi) overlaps or borders on.
        return bisect_left(self._his, lo), bisect_right(self._los, hi)

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._los, index) - 1
        return at >= 0 and index < self._his[at]

    def __iter__(self) -> Iterator[int]:
        for lo, hi in self.runs:
            yield from range(lo, hi)

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._los == other._los and self._his == other._his

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Ranges({self.runs})"
