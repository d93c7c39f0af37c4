"""Large bodies that all worker processes of a machine read, on a cluster that spans several: fetched once a machine.

The first process that wants one fetches it (``parts.py``) and writes it to a directory that the worker's processes
share; the others map that file. What the store has no more, because its owner gave it up, is removed here too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence

from .depot import Depot
from .parts import PartsDepot

__all__ = ["HostDepot"]

#: A body's name here is the beginning of its name in the store; the rest of that is its digest.
_NAME = 24
#: Behind a body's name here: a file with the rest of its name, and the lock of whoever fetches it.
_WHOLE, _LOCK = ".whole", ".lock"


class HostDepot:
    """A depot whose bodies are fetched once for all processes that share a directory; thread-safe.

    Args:
        parts: where bodies come from, and where they are put.
        path: of the directory, which is private.
    """

    local = False

    def __init__(self, parts: PartsDepot, path: str) -> None:
        self._parts, self._path, self._files = parts, path, Depot(path, reuse=False)
        self.least = parts.least

    def put(self, parts: Sequence[bytes | bytearray | memoryview]) -> str:
        """Write a body to the store."""
        return self._parts.put(parts)

    def get(self, name: str, size: int, *, keep: bool) -> memoryview:
        """A body, mapped privately; its digest was checked by whoever fetched it.

        Raises:
            WireError: the store does not have it whole.
            ClusterError: the store stayed away.
        """
        short = name[:_NAME]
        with self._fetching(short):
            if not self._files.has(short):
                body = self._parts.get(name, size, keep=True)
                self._note(short, name)
                if self._files.put([body], short) is None:  # no room here: a copy for this process alone
                    return body
        return self._files.get(short, size, keep=True)

    def drop(self, name: str) -> None:
        """Remove a body, here and in the store."""
        self._forget(name[:_NAME])
        self._parts.drop(name)

    def tidy(self) -> None:
        """Remove what the store does not have any more; those who have it mapped keep it.

        Raises:
            ClusterError: the store is away.
        """
        shorts = self._files.names()
        names = [self._whole(short) for short in shorts]
        there = self._parts.has(names) if names else []
        for short, found in zip(shorts, there, strict=True):
            if not found:
                self._forget(short)

    def _forget(self, short: str) -> None:
        self._files.drop(short)
        for ending in (_WHOLE, _LOCK):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._path, short + ending))

    def _note(self, short: str, name: str) -> None:
        with contextlib.suppress(OSError), open(os.path.join(self._path, short + _WHOLE), "w") as file:
            file.write(name)

    def _whole(self, short: str) -> str:
        try:
            with open(os.path.join(self._path, short + _WHOLE)) as file:
                return file.read()
        except OSError:
            return short  # which the store never has

    @contextlib.contextmanager
    def _fetching(self, short: str) -> Iterator[None]:
        """One process at a time; when it dies the next one has its turn."""
        lock = os.open(os.path.join(self._path, short + _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
