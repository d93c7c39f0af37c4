"""Which streams of the store the collector reads, and from where on; ``session.py`` asks, and tells what it read."""

from __future__ import annotations

import threading

from ..store import keys

__all__ = ["Streams"]


class Streams:
    """The streams of one session's jobs, and the one by which it is woken. Thread-safe.

    The stream of the next job is read before there is such a job, so that starting one wakes nobody.

    Args:
        namespace: of the store's keys.
        sid: the session.
    """

    def __init__(self, namespace: str, sid: str) -> None:
        self._namespace = namespace
        self._wake = f"wake:{sid}"
        self._lock = threading.Lock()
        self._positions: dict[str, str] = {self._wake: "0"}  # of each stream: the last entry that was read
        self._next_id = keys.new_id()
        self._read: frozenset[str] = frozenset()  # what is read just now

    def next_id(self) -> str:
        """The id of a new job."""
        with self._lock:
            id, self._next_id = self._next_id, keys.new_id()
        return id

    def add(self, key: str) -> None:
        """Read a job's stream from now on."""
        with self._lock:
            self._positions[key] = "0"

    def forget(self, key: str) -> None:
        """Read it no more."""
        with self._lock:
            self._positions.pop(key, None)

    def hears(self, key: str) -> bool:
        """Whether a job's stream is read already, so that the collector need not be woken."""
        return key in self._read

    def to_read(self) -> dict[str, str]:
        """Each stream, and the last entry of it that was read; this is what is read from now on."""
        with self._lock:
            streams = {keys.job_key(self._namespace, self._next_id, 0): "0", **self._positions}
            self._read = frozenset(streams)
        return streams

    def taken(self, key: str, last: str) -> None:
        """A stream was read up to this entry."""
        with self._lock:
            if key in self._positions:
                self._positions[key] = last

    def read_so_far(self) -> dict[str, str]:
        """The last entry that was read, of each job's stream of which some was."""
        with self._lock:
            return {key: last for key, last in self._positions.items() if last != "0" and key != self._wake}
