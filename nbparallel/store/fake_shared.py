"""Shared values in the memory of ``fake.py``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

__all__ = ["MemoryShared"]


class MemoryShared:
    """The part of a store in memory that concerns nothing else."""

    _clock: Callable[[], int]
    _changed: threading.Condition
    _shared: dict[str, tuple[int, bytes]]  # id -> expiry, sealed value

    def put_shared(self, id: str, sealed: bytes, ms: int) -> None:
        """As the protocol says."""
        with self._changed:
            self._shared[id] = self._clock() + ms, sealed

    def get_shared(self, id: str) -> bytes | None:
        """As the protocol says."""
        with self._changed:
            until, sealed = self._shared.get(id, (0, b""))
            return sealed if until > self._clock() else None

    def keep_shared(self, id: str, ms: int) -> bool:
        """As the protocol says."""
        with self._changed:
            sealed = self.get_shared(id)
            if sealed is not None:
                self.put_shared(id, sealed, ms)
            return sealed is not None

    def has_shared(self, ids: Sequence[str]) -> list[bool]:
        """As the protocol says."""
        return [self.get_shared(id) is not None for id in ids]

    def drop_shared(self, ids: Sequence[str]) -> None:
        """As the protocol says."""
        with self._changed:
            for id in ids:
                self._shared.pop(id, None)
