"""Bodies that are too large for one value of the server (512 MB): in parts, each a key of its own.

For clusters that span machines; on one machine ``depot.py`` does better. What ``envelope`` seals is a note with the
name, and the name holds a digest of the bytes, so parts that somebody else wrote are refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from os import urandom
from typing import TypeVar

from ..errors import ClusterError, WireError
from .real import RedisStore

__all__ = ["PartsDepot"]

T = TypeVar("T")

#: Bytes of a part.
PART_BYTES = 64 << 20
#: How long a store that is away is waited for, in seconds, before the caller is told.
PATIENCE_SECONDS = 600.0
#: Pause between attempts, in seconds.
PAUSE_SECONDS = 0.5


class PartsDepot:
    """Large bodies in the store itself; thread-safe.

    Args:
        store: where they go.
        least: bodies of fewer bytes need no parts.
        seconds: how long they stay at most.
        remember: keep what was put, until it is dropped, so that it need not be fetched to be put again.
    """

    #: Others than this session may be served by the same workers.
    local = False

    def __init__(self, store: RedisStore, least: int, seconds: float, remember: bool = False) -> None:
        self._store, self.least, self._ms = store, least, int(seconds * 1000)
        self._kept: dict[str, memoryview] | None = {} if remember else None

    def put(self, parts: Sequence[bytes | bytearray | memoryview]) -> str:
        """Write a body; its name.

        Raises:
            ClusterError: the store stayed away, or full.
        """
        if self._kept is not None:
            body = memoryview(b"".join(parts))
            parts = [body]
        views = [memoryview(part).cast("B") for part in parts]
        size = sum(map(len, views))
        name = f"{urandom(12).hex()}{_digest(*views)}"
        try:
            for (key, _), pieces in zip(self._keys(name, size), _cut(views), strict=True):
                piece = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
                self._persist(partial(self._store.put_part, key, piece, self._ms))
        except BaseException:  # an interrupt, for one
            with suppress(ClusterError):
                self.drop(name, size)
            raise
        if self._kept is not None:
            self._kept[name] = body
        return name

    def keep(self, name: str, size: int) -> bool:
        """Have a body stay as long as a new one from now on; whether it is there whole."""
        return self._store.keep_parts([key for key, _ in self._keys(name, size)], self._ms)

    def has(self, names: Sequence[str]) -> list[bool]:
        """Whether each of these bodies is there, or was at the last ``keep``."""
        return self._store.has_parts([f"{name}:0" for name in names])

    def keep_all(self) -> None:
        """The same for all that is remembered."""
        for name, body in list((self._kept or {}).items()):
            self.keep(name, len(body))

    def get(self, name: str, size: int, *, keep: bool) -> memoryview:
        """A body; ``keep`` makes no difference, as other clients may want it, too: time removes it, or ``drop``.

        Raises:
            WireError: it is not there whole, or is not what was put.
            ClusterError: the store stayed away.
        """
        if self._kept is not None and name in self._kept:
            return self._kept[name]
        found = [self._persist(partial(self._store.get_part, key)) for key, _ in self._keys(name, size)]
        body = b"".join(part for part in found if part is not None)
        if len(body) != size or _digest(body) != name[24:]:
            raise WireError(f"a large body of {size:,} bytes is not in the store as it was put there")
        return memoryview(bytearray(body))  # writable, like what a local depot maps

    def drop(self, name: str, size: int = 0) -> None:
        """Remove a body, of this size if it is not remembered; what is left after a failure goes by itself in time."""
        size = size or (len(self._kept.pop(name, b"")) if self._kept is not None else 0)
        keys = [key for key, _ in self._keys(name, size)]
        if keys:
            self._store.drop_parts(keys)

    def _keys(self, name: str, size: int) -> Iterator[tuple[str, int]]:
        return ((f"{name}:{number}", first) for number, first in enumerate(range(0, size, PART_BYTES)))

    def _persist(self, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call()
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE_SECONDS)


def _digest(*body: bytes | memoryview) -> str:
    state = blake2b(digest_size=32)
    for part in body:
        state.update(part)
    return state.hexdigest()


def _cut(views: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """What stands one after the other, in pieces of a part's length."""
    piece: list[memoryview] = []
    room = PART_BYTES
    for view in views:
        while len(view):
            piece.append(view[:room])
            room -= len(piece[-1])
            view = view[len(piece[-1]) :]
            if not room:
                yield piece
                piece, room = [], PART_BYTES
    if piece:
        yield piece
