"""What the items of a job wrote, as the collector takes it from the blocks; the Job hands it to the user."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["CUT", "Output"]

#: Characters that are kept of a job; the oldest go first.
LIMIT = 1_000_000
#: Stream name of an entry whose text is the number of characters that the worker cut.
CUT = "cut"

Entry = tuple[int, str, str]


class Output:
    """The last of what the items wrote. Not thread-safe: the job's lock guards it.

    Attributes:
        entries: (index, stream name, text), oldest first.
        cut: characters that are not among them.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.entries: deque[Entry] = deque()
        self.cut = 0
        self._limit, self._size = limit, 0

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in what a block brought."""
        for index, stream, text in entries:
            if stream == CUT:
                self.cut += int(text)
                continue
            kept = text[-self._limit :]
            self.cut += len(text) - len(kept)
            self.entries.append((index, stream, kept))
            self._size += len(kept)
        while self._size > self._limit:
            size = len(self.entries.popleft()[2])
            self._size -= size
            self.cut += size
