"""The store in memory; called by tests in the place of ``real.py``, with the same answers as its scripts give."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from . import keys
from .fake_idle import MemoryIdle
from .fake_job import MemoryChunk, MemoryJob, MemoryStream
from .fake_shared import MemoryShared
from .protocol import (
    Backlog,
    Claim,
    Handed,
    Lingerer,
    Lost,
    Opening,
    Peek,
    Released,
    Reported,
    Submission,
    Submitted,
)

__all__ = ["MemoryStore"]

#: Most leases that one call of ``reap`` looks at.
_REAP_AT_ONCE = 100


class MemoryStore(MemoryShared, MemoryIdle):
    """A ``Store`` in the memory of this process, for tests; usable from several threads at once.

    Args:
        clock: gives the server's time in milliseconds; leases, beats and ages follow it. ``read`` and ``linger``
            wait in real time whatever it says.
        namespace: as for a real store.
    """

    def __init__(
        self, clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000, namespace: str = "default"
    ) -> None:
        self.prefix, self.round_trip = keys.prefix(namespace), 0.0
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        self._listeners: list[list[str]] = []  # what each of them was told and has not heard yet
        self.wipe()

    def wipe(self) -> None:
        """Forget everything, as a server does that was started again without its data."""
        with self._changed:
            self._run_id = secrets.token_hex(20)
            self._jobs: dict[str, MemoryJob] = {}
            self._leases: dict[tuple[str, str], int] = {}  # (job, token) -> expiry
            self._sessions: dict[str, int | None] = {}
            self._labels: dict[str, bytes] = {}  # of jobs, also of forgotten ones until they are swept
            self._wakes: dict[str, MemoryStream] = {}
            self._idle = {}
            self._bells = {}
            self._waits = {}
            self._beats: dict[str, tuple[int, bytes]] = {}
            self._shared: dict[str, tuple[int, bytes]] = {}
            self._changed.notify_all()

    @contextmanager
    def _atomic(self, job: str = "") -> Iterator[MemoryJob | None]:
        """One script: nobody else changes anything meanwhile, and those who wait look again afterwards."""
        with self._changed:
            for name in [name for name, known in self._jobs.items() if known.expires <= self._clock()]:
                del self._jobs[name]
                self._leases = {lease: until for lease, until in self._leases.items() if lease[0] != name}
            yield self._jobs.get(job)
            self._changed.notify_all()

    # -- parts of scripts ----------------------------------------------------------------------------------------------

    def _alive(self, sid: str) -> bool:
        until = self._sessions.get(sid, 0)
        return until is None or until > self._clock()

    def _end_lease(self, name: str, job: MemoryJob, chunk: MemoryChunk) -> str:
        """The ticket under which the chunk was held."""
        self._leases.pop((name, chunk.token), None)
        return job.held.pop(chunk.token)[1]

    def _give_back(self, name: str, job: MemoryJob, chunk: MemoryChunk) -> str:
        ticket = self._end_lease(name, job, chunk)
        del job.chunks[chunk.id]
        job.requeue(chunk, chunk.at, chunk.hi, chunk.crashes)
        return ticket

    def _lease(self, name: str, job: MemoryJob, chunk: MemoryChunk, token: str, ticket: str, lease: int) -> None:
        chunk.token = token
        job.held[token] = chunk.id, ticket
        self._leases[name, token] = self._clock() + lease

    def _mint(self, name: str, job: MemoryJob, cap: int, offered: Sequence[str]) -> list[str]:
        need = min(cap, len(job.pending) + len(job.held)) - len(job.tickets)
        messages = []
        group = keys.group(job.sid, job.queue)
        for ticket in offered:
            if job.tickets.get(ticket, 0) < 0:
                messages.append(ticket)  # a repeated call
            elif need > 0 and ticket not in job.tickets:
                need -= 1
                job.tickets[ticket] = -self._clock()
                if who := self._idle_child(group):
                    self._bells[who.child] = self._handed(name, job, ticket, who)
                else:
                    messages.append(ticket)
                    self._waits.setdefault(group, []).append((name, ticket))
        return messages

    def _handed(self, name: str, job: MemoryJob, ticket: str, who: Lingerer) -> Handed:
        lives = job.detached or self._alive(job.sid)
        if not (job.wants(job.queue) and lives) or self._more_urgent(job):
            return Handed(name, ticket)
        claim = self.claim(name, who.token, ticket, lease=who.lease, first=True, fresh=name != who.knows)
        return Handed(name, ticket, claim)

    def _publish(self, message: str) -> None:
        for told in self._listeners:
            told.append(message)

    def _wake(self, sid: str) -> None:
        stream = self._wakes.setdefault(sid, MemoryStream())
        stream.append(self._clock(), b"")
        del stream.entries[:-1]

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def submit(
        self,
        job: str,
        cap: int,
        tickets: Sequence[str],
        chunks: Sequence[Submission],
        opening: Opening | None = None,
        wake: bool = True,
    ) -> Submitted:
        with self._atomic(job) as known:
            if not known and opening:
                self._labels[job] = opening.label.encode()
                self._jobs[job] = known = MemoryJob.opened(opening, self._clock())
            if not known:
                return Submitted("gone", 0, 0, [])
            if known.state != "open":
                return Submitted("stopped", 0, 0, [])
            for serial, chunk, payload in chunks:
                if serial <= known.serial:
                    continue
                known.serial = serial
                known.upto = max(known.upto, chunk.hi)
                if 0 <= known.stop <= chunk.lo:
                    continue
                if payload:
                    known.blobs[chunk.blob] = payload
                known.chunks[chunk.id] = MemoryChunk(chunk.id, chunk.lo, chunk.hi, chunk.lo, chunk.attempt, chunk.blob)
                known.pending.add(chunk.id)
            known.keep(self._clock())
            if wake:
                self._wake(known.sid)
            return Submitted("ok", len(known.pending), len(known.held), self._mint(job, known, cap, tickets))

    def claim(
        self, job: str, token: str, ticket: str, *, lease: int, first: bool, have: str = "", fresh: bool = False
    ) -> Claim:
        with self._atomic(job) as known:
            if not known:
                return Claim("drop", "gone")
            chunk = known.holds(token)
            if not chunk:
                found = known.take(ticket, first, self._clock(), self._alive(known.sid), self._more_urgent(known))
                if isinstance(found, Claim):
                    if found.state == "yield":
                        self._jobs[found.job].tickets[token] = -self._clock()
                        return found._replace(ticket=token)
                    known.tickets.pop("" if found.why in ("ticket unknown", "ticket doubled") else ticket, None)
                    return found
                chunk = found
                self._lease(job, known, chunk, token, ticket, lease)
                known.tickets[ticket] = self._clock()
            answer = known.answer(chunk, have)
            return answer._replace(meta=known.meta, function=known.function) if fresh else answer

    def _more_urgent(self, job: MemoryJob) -> str:
        others = ((other.priority, name) for name, other in self._jobs.items() if other.priority > job.priority)
        able = (name for _, name in sorted(others, reverse=True) if self._jobs[name].wants(job.queue))
        return next((name for name in able if self._jobs[name].detached or self._alive(self._jobs[name].sid)), "")

    def report(
        self, job: str, token: str, lo: int, count: int, entry: bytes, *, new_hi: int = -1, finished: bool = False
    ) -> Reported:
        with self._atomic(job) as known:
            stop = known.stop if known else -1
            chunk = known.holds(token) if known else None
            if not known or not chunk:
                return Reported("fenced", stop, 0)
            if lo > chunk.at:
                return Reported("gap", stop, chunk.at)
            if lo == chunk.at and (count > 0 or entry):  # of no outcomes: what a running item wrote
                known.out.append(self._clock(), entry)
                chunk.at = lo + count
                if known.budget:
                    known.out.keep_within(known.budget)
            if stop >= 0:
                chunk.hi = min(chunk.hi, stop)
            if chunk.at <= new_hi < chunk.hi:
                known.requeue(chunk, new_hi, chunk.hi, 0)
                chunk.hi = new_hi
            if chunk.at >= chunk.hi or finished:
                self._give_back(job, known, chunk)
            return Reported("ok", stop, chunk.hi)

    def report_and_claim(
        self,
        job: str,
        token: str,
        lo: int,
        count: int,
        entry: bytes,
        *,
        next_token: str,
        ticket: str,
        lease: int,
        have: str,
        linger: Lingerer | None = None,  # one that is not rung for yet asks by itself
    ) -> tuple[Reported, Claim]:
        reported = self.report(job, token, lo, count, entry, finished=True)
        return reported, self.claim(job, next_token, ticket, lease=lease, first=False, have=have)

    def leave(self, job: str, ticket: str, successor: str) -> bool:
        with self._atomic(job) as known:
            if not known:
                return False
            if known.tickets.pop(ticket, None) is None:
                return successor in known.tickets
            if not successor or not known.pending:
                return False
            known.tickets[successor] = -self._clock()
            self._waits.setdefault(keys.group(known.sid, known.queue), []).append((job, successor))
            return True

    def release(
        self,
        job: str,
        token: str,
        why: Literal["crash", "return"],
        *,
        culprit: int = -1,
        culprit_end: int = -1,
        crash_limit: int = 1,
        heir: str = "-",
        lease: int = 0,
        ticket: str = "",
    ) -> Released:
        with self._atomic(job) as known:
            if not known:
                return Released("fenced", -1, False, 0)
            chunk = known.holds(token)
            if not chunk:  # perhaps a repeated call
                mine = known.holds(heir)
                return Released("fenced", mine.at if mine else -1, known.tickets.get(ticket, 0) < 0, 0)
            inherited, deaths = -1, 0
            lo, hi = max(culprit, chunk.at), min(culprit_end, chunk.hi)
            if why == "crash" and lo < hi:
                old = self._end_lease(job, known, chunk)
                if self._split(job, known, chunk, lo, hi, crash_limit, heir, lease):
                    inherited = lo
            else:
                if why == "crash":
                    known.deaths += 1
                    deaths = known.deaths
                old = self._give_back(job, known, chunk)
            known.tickets.pop(old, None)
            publish = bool(ticket and known.pending)
            if publish:
                known.tickets[ticket] = -self._clock()
            return Released("ok", inherited, publish, deaths)

    def _split(
        self, name: str, job: MemoryJob, chunk: MemoryChunk, lo: int, hi: int, crash_limit: int, heir: str, lease: int
    ) -> bool:
        """Part the suspects [lo, hi) from their neighbours; True when the only one is leased to the heir."""
        del job.chunks[chunk.id]
        job.requeue(chunk, chunk.at, lo, 0)
        job.requeue(chunk, hi, chunk.hi, 0)
        if hi > lo + 1 or chunk.crashes + 1 < crash_limit:
            job.requeue(chunk, lo, hi, chunk.crashes + 1)
            return False
        self._lease(name, job, job.cut(chunk, lo, hi, chunk.crashes + 1), heir, "-", lease)
        return True

    def verdict(self, job: str, entry: bytes) -> bool:
        with self._atomic(job) as known:
            if not known or known.state != "open":
                return False
            known.state, known.stop = "failed", 0
            known.pending.clear()
            known.chunks.clear()
            known.out.append(self._clock(), entry)
            self._publish(f"stop {job} 0")
            return True

    def renew(self, lease: int, leases: Sequence[tuple[str, str]]) -> list[int]:
        with self._atomic():
            answers = []
            for job, token in leases:
                answers.append(-2)
                if (job, token) not in self._leases:
                    continue
                known = self._jobs[job]
                chunk = known.holds(token)
                if chunk and not known.detached and not self._alive(known.sid):
                    known.tickets.pop(self._give_back(job, known, chunk), None)
                else:
                    self._leases[job, token] = self._clock() + lease
                    known.keep(self._clock())
                    answers[-1] = known.stop
            return answers

    def reap(self, lost_limit: int, heir: str, lease: int) -> list[Lost]:
        with self._atomic():
            now, lost = self._clock(), []
            expired = sorted((until, *held) for held, until in self._leases.items() if until <= now)
            for _, name, token in expired[:_REAP_AT_ONCE]:
                job = self._jobs[name]
                chunk = job.holds(token)
                if not chunk:  # the job has failed meanwhile
                    del self._leases[name, token]
                    continue
                job.tickets.pop(job.held[token][1], None)
                chunk.losses += 1
                if chunk.losses < lost_limit:
                    self._give_back(name, job, chunk)
                    continue
                self._end_lease(name, job, chunk)
                del job.chunks[chunk.id]
                job.heirs += 1
                mine = f"{heir}{job.heirs:08x}"
                chunk = job.cut(chunk, chunk.at, chunk.hi, chunk.crashes)
                self._lease(name, job, chunk, mine, "-", lease)
                lost.append(Lost(name, mine, chunk.at, chunk.hi, chunk.attempt))
            return lost

    def stop(self, job: str, at: int) -> int:
        with self._atomic(job) as known:
            if not known:
                return -1
            if known.stop < 0 or at < known.stop:
                known.stop = at
                if at == 0 and known.state == "open":
                    known.state = "cancelled"
                for id in [id for id in known.pending if known.chunks[id].lo >= at]:
                    known.pending.discard(id)
                    del known.chunks[id]
            self._publish(f"stop {job} {known.stop}")
            return len(known.held)

    def close(self, job: str, state: str, keep: bool, ttl: int) -> None:
        with self._atomic(job) as known:
            if known:
                self._leases = {lease: until for lease, until in self._leases.items() if lease[0] != job}
                tombstone = MemoryJob(known.sid, known.meta, b"", 0, False, self._clock() + ttl, ttl, state)
                tombstone.stop, tombstone.taken = known.stop, known.taken
                tombstone.out = known.out if keep else MemoryStream()
                self._jobs[job] = tombstone
                if not keep:
                    self._labels.pop(job, None)

    def jobs(self) -> dict[str, bytes]:
        with self._atomic():
            return dict(self._labels)

    def sweep(self) -> int:
        with self._atomic():
            gone = [job for job in self._labels if job not in self._jobs]
            for job in gone:
                del self._labels[job]
            return len(gone)

    def peek(self, job: str, ranges: bool = False) -> Peek:
        with self._atomic(job) as known:
            now = self._clock()
            if not known:
                return Peek(None, 0, 0, 0, now, -1, [])
            oldest = max((now + at for at in known.tickets.values() if at < 0), default=-1)
            unreported = [(chunk.at, chunk.hi) for chunk in known.chunks.values()] if ranges else []
            counts = len(known.pending), len(known.held), len(known.tickets)
            return Peek(known.state, *counts, now - known.taken, oldest, unreported)

    def backlog(self) -> list[Backlog]:
        with self._atomic():
            rows = []
            for name, label in self._labels.items():
                job = self._jobs.get(name)
                if job and job.state == "open" and (job.detached or self._alive(job.sid)):
                    ends = [(c.at, c.hi if job.stop < 0 else min(c.hi, job.stop)) for c in job.chunks.values()]
                    rows.append(Backlog(label, sum(max(0, hi - at) for at, hi in ends), job.upto, job.stop))
            return rows

    def remint(self, job: str, age: int, cap: int, tickets: Sequence[str]) -> list[str]:
        with self._atomic(job) as known:
            if not known:
                return []
            busy = {ticket for _, ticket in known.held.values()}
            before = self._clock() - age
            known.tickets = {t: at for t, at in known.tickets.items() if t in busy or abs(at) > before}
            known.keep(self._clock())
            return [] if known.state != "open" else self._mint(job, known, cap, tickets)

    def drop_blobs(self, job: str, blobs: Sequence[str]) -> None:
        with self._atomic(job) as known:
            if known:
                known.blobs = {blob: data for blob, data in known.blobs.items() if blob not in blobs}

    def trim(self, job: str, last: str) -> None:
        with self._atomic(job) as known:
            if known:
                known.out.trim(last)

    def read(
        self, streams: Mapping[str, str], block: int, trims: Mapping[str, str] | None = None
    ) -> list[tuple[str, list[tuple[str, bytes]]]]:
        for job, last in (trims or {}).items():
            self.trim(job, last)

        def look() -> list[tuple[str, list[tuple[str, bytes]]]]:
            return [(name, new) for name, last in streams.items() if (new := self._stream(name).after(last))]

        with self._changed:
            return self._changed.wait_for(look, block / 1000)

    def _stream(self, name: str) -> MemoryStream:
        if name.startswith("wake:"):
            return self._wakes.get(name.removeprefix("wake:"), MemoryStream())
        return self._jobs[name].out if name in self._jobs else MemoryStream()

    def wake(self, sid: str) -> None:
        with self._atomic():
            self._wake(sid)

    # -- workers and sessions ------------------------------------------------------------------------------------------

    def beat(self, worker: str, says: bytes, ms: int) -> None:
        with self._atomic():
            self._beats[worker] = self._clock() + ms, says

    def unbeat(self, worker: str) -> None:
        with self._atomic():
            self._beats.pop(worker, None)

    def workers(self) -> dict[str, bytes]:
        with self._atomic():
            return {worker: says for worker, (until, says) in self._beats.items() if until >= self._clock()}

    def listen(self, heard: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        told: list[str] = []
        self._listeners.append(told)
        try:
            while not stopped():
                with self._changed:
                    self._changed.wait_for(lambda: told, 1.0)
                    message = told.pop(0) if told else None
                if message:
                    heard(message)
        finally:
            self._listeners = [other for other in self._listeners if other is not told]

    def session_beat(self, sid: str, says: bytes, ms: int | None) -> None:
        with self._atomic():
            self._sessions[sid] = None if ms is None else self._clock() + ms

    def end_session(self, sid: str) -> None:
        with self._atomic():
            for kind in (self._sessions, self._wakes, self._idle):
                kind.pop(sid, None)

    # -- the server ----------------------------------------------------------------------------------------------------

    def run_id(self) -> str:
        return self._run_id

    def close_connections(self) -> None:
        """There are none."""
