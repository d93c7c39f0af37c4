"""One job's keys in memory; the changes that concern nothing else are made here, the others by ``fake.py``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .protocol import Claim, Opening

__all__ = ["MemoryChunk", "MemoryJob", "MemoryStream"]

#: Most entries of a stream that one ``read`` gives.
_READ_AT_ONCE = 500


@dataclass
class MemoryChunk:
    """[lo, hi) are its items, ``at`` the first one not reported; ``token`` is ``-`` while it is pending."""

    id: str
    lo: int
    hi: int
    at: int
    attempt: int
    blob: str
    crashes: int = 0
    losses: int = 0
    token: str = "-"


class MemoryStream:
    """Entries under ids that rise, as in a stream of Redis."""

    def __init__(self) -> None:
        self.entries: list[tuple[tuple[int, int], bytes]] = []
        self.last = (0, 0)

    def append(self, ms: int, data: bytes) -> None:
        self.last = (ms, 0) if ms > self.last[0] else (self.last[0], self.last[1] + 1)
        self.entries.append((self.last, data))

    def after(self, id: str) -> list[tuple[str, bytes]]:
        found = [(f"{at[0]}-{at[1]}", data) for at, data in self.entries if at > _stream_id(id)]
        return found[:_READ_AT_ONCE]

    def keep_within(self, budget: int) -> None:
        """The oldest entries go, as long as all together are larger."""
        while len(self.entries) > 1 and sum(len(data) for _, data in self.entries) > budget:
            del self.entries[0]

    def trim(self, id: str) -> None:
        self.entries = [(at, data) for at, data in self.entries if at > _stream_id(id)]


def _stream_id(text: str) -> tuple[int, int]:
    ms, _, serial = text.partition("-")
    return int(ms), int(serial or 0)


@dataclass
class MemoryJob:
    """All keys of one job."""

    sid: str
    meta: bytes
    function: bytes
    max_running: int
    detached: bool
    expires: int
    ttl: int
    state: str = "open"
    queue: str = ""
    priority: int = 0
    budget: int = 0
    stop: int = -1
    serial: int = 0
    upto: int = 0
    splits: int = 0
    heirs: int = 0
    taken: int = 0
    deaths: int = 0
    pending: set[str] = field(default_factory=set)
    chunks: dict[str, MemoryChunk] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    held: dict[str, tuple[str, str]] = field(default_factory=dict)  # token -> chunk id, ticket
    tickets: dict[str, int] = field(default_factory=dict)  # -ms when waiting, +ms when taking its turn
    out: MemoryStream = field(default_factory=MemoryStream)

    @classmethod
    def opened(cls, opening: Opening, now: int) -> MemoryJob:
        """A new job."""
        sid, meta, function, max_running, detached, ttl, _, queue, priority, budget = opening
        expires = now + ttl
        return cls(sid, meta, function, max_running, detached, expires, ttl, "open", queue, priority, budget)

    def answer(self, chunk: MemoryChunk, have: str) -> Claim:
        """What the child that leased a chunk is told."""
        payload = None if chunk.blob == have else self.blobs.get(chunk.blob)
        counts = chunk.at, chunk.hi, chunk.attempt, chunk.crashes
        return Claim("chunk", "", chunk.id, *counts, chunk.blob, payload, self.stop, self.sid)

    def wants(self, queue: str) -> bool:
        """Whether it has work for one more child of a queue."""
        room = not 0 < self.max_running <= len(self.held)
        return self.state == "open" and self.queue == queue and bool(self.pending) and room

    def holds(self, token: str) -> MemoryChunk | None:
        """The chunk that is leased to ``token``."""
        id, _ = self.held.get(token, ("", ""))
        return self.chunks.get(id)

    def keep(self, now: int) -> None:
        """A job that is in use does not come to the end of its time to live."""
        self.expires = now + self.ttl

    def oldest(self) -> MemoryChunk | None:
        """Take the pending chunk with the lowest index out of the queue."""
        if not self.pending:
            return None
        id = min(self.pending, key=lambda id: (self.chunks[id].lo, id))
        self.pending.discard(id)
        return self.chunks[id]

    def cut(self, chunk: MemoryChunk, lo: int, hi: int, crashes: int) -> MemoryChunk:
        """Make [lo, hi) of ``chunk`` a chunk of its own."""
        self.splits += 1
        new = replace(chunk, id=f"s{self.splits}", lo=lo, hi=hi, at=lo, crashes=crashes, token="-")
        self.chunks[new.id] = new
        return new

    def requeue(self, chunk: MemoryChunk, lo: int, hi: int, crashes: int) -> None:
        """Put [lo, hi) of ``chunk`` back as a pending chunk, but not items at or above the stop."""
        if self.stop >= 0:
            hi = min(hi, self.stop)
        if lo < hi:
            self.pending.add(self.cut(chunk, lo, hi, crashes).id)

    def take(self, ticket: str, first: bool, now: int, session_lives: bool, urgent: str) -> MemoryChunk | Claim:
        """The pending chunk that a ticket takes, or why it gets none; ``urgent``: a job that goes first, or ""."""
        if self.state != "open":
            return Claim("drop", self.state)
        if ticket not in self.tickets:
            return Claim("drop", "ticket unknown")
        if first:
            if self.tickets[ticket] > 0:
                return Claim("drop", "ticket doubled")
            self.taken = now
        if not self.detached and not session_lives:
            return Claim("drop", "session")
        if urgent:
            return Claim("yield", job=urgent)
        if 0 < self.max_running <= len(self.held):
            return Claim("empty", "max_running")
        if chunk := self.oldest():
            if self.stop >= 0:
                chunk.hi = min(chunk.hi, self.stop)
            return chunk
        return Claim("empty", "nothing pending")
