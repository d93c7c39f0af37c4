"""What the store keeps of a job's results, for whoever attaches: the newest ones, up to a budget.

The client of a job gives up what it has received itself; of a detached job, which may have none, the store does. What
went before it was read is found here, for ``running.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..ordering import Ranges

__all__ = ["Kept"]


class Kept:
    """The entries of one job's stream, as its reader knows them.

    Attributes:
        budget: bytes that stay in the store.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: deque[tuple[str, int]] = deque()  # that are still there: id, size
        self._bytes = 0
        self._read = (0, 0)
        self._look: tuple[str, Ranges] | None = None

    def take(self, entries: Sequence[tuple[str, bytes]]) -> str:
        """Note what was received; the id up to which it is to go now, or ``""``."""
        self._read = _place(entries[-1][0])
        for id, data in entries:
            self._entries.append((id, len(data)))
            self._bytes += len(data)
        last = ""
        while self._bytes > self.budget and len(self._entries) > 1:
            last, size = self._entries.popleft()
            self._bytes -= size
        return last

    def gone(self, received: Ranges) -> Ranges:
        """Items that were reported when the store was looked at, and which nobody can read any more."""
        gone = Ranges()
        if self._look is not None and _place(self._look[0]) <= self._read:
            for lo, hi in self._look[1].runs:
                for start, stop in received.missing(lo, hi):
                    gone.add(start, stop)
            self._look = None
        return gone

    def looked(self, last: str, reported: Ranges) -> None:
        """The store said what was reported until which entry."""
        self._look = last, reported


def _place(id: str) -> tuple[int, int]:
    ms, _, serial = id.partition("-")
    return int(ms), int(serial or 0)
