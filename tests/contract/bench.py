"""A store to test against, in memory or real, with a clock that a test can move and a job of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
from support import Server, eventually

from nbparallel.model import Chunk
from nbparallel.store import keys
from nbparallel.store.fake import MemoryStore
from nbparallel.store.protocol import Claim, Lingerer, Opening, Reported, Store, Submission, Submitted
from nbparallel.store.real import RedisStore

#: A lease that outlives any test, in ms; and one that has expired when it is given.
LONG, EXPIRED = 3_600_000, -1

SID = "session"


def lingerer(child: str = "child", ms: int = 5, group: str = SID, token: str = "", knows: str = "-") -> Lingerer:
    """A child that waits for work."""
    return Lingerer(child, group, ms, token or f"{child}-token", LONG, knows)


@dataclass
class Bench:
    """A store, a job on it, and the steps that most tests take; all times in milliseconds."""

    store: Store
    pass_time: Callable[[int], None]
    raw: redis.Redis | None = None
    job: str = ""
    serials: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    names: Iterator[int] = field(default_factory=itertools.count)

    def open(self, job: str = "", **options: Any) -> Submitted:
        """Open the job (or another), with a session that lives; nothing is submitted yet."""
        self.store.session_beat(SID, b"beat", None)
        opening = Opening(SID, b"meta", b"function", max_running=0, detached=False, ttl=LONG, label="label")
        return self.store.submit(job or self.job, 0, [], [], opening._replace(**options))

    def submit(self, *ranges: tuple[int, int], cap: int = 100, tickets: int = 0, attempt: int = 1) -> Submitted:
        """Submit each [lo, hi) as a chunk, and offer that many tickets (0: one a chunk)."""
        chunks = [
            Submission(next(self.serials), Chunk(f"c{lo}.{attempt}", lo, hi, attempt, f"b{lo}"), b"payload%d" % lo)
            for lo, hi in ranges
        ]
        return self.store.submit(self.job, cap, self.offer(tickets or len(ranges)), chunks)

    def offer(self, count: int) -> list[str]:
        """Fresh ticket ids."""
        return [f"t{next(self.names)}" for _ in range(count)]

    def claim(self, token: str, ticket: str, *, lease: int = LONG, first: bool = True, **options: Any) -> Claim:
        """Claim as a child does at the start of its turn."""
        return self.store.claim(self.job, token, ticket, lease=lease, first=first, **options)

    def start(self, *ranges: tuple[int, int], lease: int = LONG, **options: Any) -> list[str]:
        """Open the job and submit; token ``k<i>`` holds the i-th chunk. Returns their tickets."""
        self.open(**options)
        tickets = self.submit(*ranges).tickets
        for number, ticket in enumerate(tickets):
            assert self.claim(f"k{number}", ticket, lease=lease).state == "chunk"
        return tickets

    def report(self, token: str, lo: int, count: int, entry: bytes = b"entry", **options: Any) -> Reported:
        """Report as a child does."""
        return self.store.report(self.job, token, lo, count, entry, **options)

    def take(self, token: str = "next", lease: int = LONG) -> Claim:
        """Claim the next pending chunk under a ticket made for it."""
        ticket = self.store.remint(self.job, LONG, 100, self.offer(1))
        if not ticket:  # every chunk has one: make them all come again
            ticket = self.store.remint(self.job, -1, 100, self.offer(1))
        return self.claim(token, ticket[0] if ticket else "none", lease=lease)

    @property
    def unreported(self) -> list[tuple[int, int]]:
        """The [lo, hi) not yet reported, in order."""
        return sorted(self.store.peek(self.job, True).unreported)

    @property
    def entries(self) -> list[bytes]:
        """What the job's stream holds."""
        return [entry for _, found in self.store.read({self.job: "0"}, 0) for _, entry in found]


def memory_bench() -> Bench:
    """A store in memory; its time passes only when a test says so."""
    now = [1_700_000_000_000]

    def pass_time(ms: int) -> None:
        now[0] += ms

    return Bench(MemoryStore(lambda: now[0]), pass_time, job=keys.job_key("default", keys.new_id(), 0))


@contextmanager
def server_bench(server: Server) -> Iterator[Bench]:
    """A real store in a namespace of its own, which is emptied at the end."""
    namespace = keys.new_id()
    store = RedisStore(server.url, namespace)
    with server.client() as raw:

        def now() -> int:
            seconds, micros = raw.time()
            return seconds * 1000 + micros // 1000

        def pass_time(ms: int) -> None:
            end = now() + ms
            eventually(lambda: now() >= end, within=ms / 1000 + 5, what="the server's clock moves")

        try:
            yield Bench(store, pass_time, raw, keys.job_key(namespace, keys.new_id(), 0))
        finally:
            if found := raw.keys(f"{store.prefix}*"):
                raw.delete(*found)
            store.close_connections()
