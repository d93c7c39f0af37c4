"""Keeps the payloads of a job that may have to be sent again: ``running.py`` puts them here, and asks for them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .. import envelope, wire

__all__ = ["Blob", "Shelf", "file_of"]

#: Payloads that were received whole are deleted in the store once there are so many.
DROP_BLOBS = 16


@dataclass(slots=True)
class Blob:
    """A payload in the store: kept until all of its items have an outcome."""

    id: str
    lo: int
    hi: int
    sealed: bytes
    missing: int
    body: memoryview | None = None  # mapped, when it lies in the depot: it outlives the file
    failed: bool = False  # holds items that failed, which the user may want to run again


def file_of(sealed: bytes) -> str:
    """Name of the body that a blob left in the depot, or ``""``."""
    filed = envelope.filed(sealed)
    return filed[0] if filed else ""


class Shelf:
    """The payloads of one job, by index; the job's condition guards it.

    Args:
        drop_file: removes a body from the depot.
    """

    def __init__(self, drop_file: Callable[[str], None]) -> None:
        self._drop_file = drop_file
        self._blobs: dict[str, Blob] = {}
        self._starts: list[int] = []  # lo of each blob that there was, and ...
        self._order: list[str] = []  # ... its id, by lo
        self._done: list[str] = []

    def __iter__(self) -> Iterator[Blob]:
        return iter(self._blobs.values())

    def put(self, id: str, lo: int, hi: int, sealed: bytes, depot: envelope.Depot | None) -> None:
        """A payload of items [lo, hi), which follow those put before."""
        filed = envelope.filed(sealed)
        body = depot.get(*filed, keep=True) if filed and depot is not None else None
        self._blobs[id] = Blob(id, lo, hi, sealed, hi - lo, body)
        self._starts.append(lo)
        self._order.append(id)

    def of(self, index: int) -> Blob:
        """The payload that holds an item without an outcome, or with a failure that ``mark_failed`` was told of."""
        return self._blobs[self._order[bisect_right(self._starts, index) - 1]]

    def mark_failed(self, indexes: list[int]) -> None:
        """Keep the payloads of these items, whatever becomes of the others in them."""
        for index in indexes if self._starts else ():
            self.of(index).failed = True

    def settle(self, lo: int, hi: int) -> None:
        """Items [lo, hi) have their outcomes: payloads that nobody needs any more go."""
        at = max(0, bisect_right(self._starts, lo) - 1)  # none: an attached job, whose payloads are elsewhere
        while at < len(self._starts) and self._starts[at] < hi:
            blob = self._blobs.get(self._order[at])
            if blob is not None:
                blob.missing -= min(hi, blob.hi) - max(lo, blob.lo)
                if blob.missing == 0:
                    if not blob.failed:
                        del self._blobs[blob.id]
                    self._drop(blob.sealed)
                    self._done.append(blob.id)
            at += 1
        if len(self._starts) > 1024 and len(self._blobs) < len(self._starts) // 2:
            kept = [(start, id) for start, id in zip(self._starts, self._order, strict=True) if id in self._blobs]
            self._starts, self._order = [start for start, _ in kept], [id for _, id in kept]

    def take_done(self) -> list[str]:
        """Payloads to be deleted in the store, once there are enough of them."""
        if len(self._done) < DROP_BLOBS:
            return []
        done, self._done = self._done, []
        return done

    def reseal(self, key: bytes, old: str, new: str, depot: envelope.Depot | None) -> None:
        """Seal all payloads anew, for the keys of another epoch."""
        self._done.clear()  # of what is sent again nothing may be deleted for what came before
        for blob in self:
            body = blob.body
            if body is None:
                body = wire.unseal(key, envelope.place(old, "items", blob.id), blob.sealed)
            blob.sealed = envelope.seal_body(key, envelope.place(new, "items", blob.id), (body,), depot)

    def close(self, keep: bool) -> None:
        """The job has ended; with ``keep`` what is left may be sent again."""
        for blob in self:
            self._drop(blob.sealed)
        if not keep:
            self._blobs.clear()

    def _drop(self, sealed: bytes) -> None:
        name = file_of(sealed)
        if name:
            self._drop_file(name)
