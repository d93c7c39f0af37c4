"""Takes turns: receives a ticket from Celery, claims chunk after chunk of its job from the store, has ``execute.py``
run them, and reports blocks of outcomes to the job's stream. Runs in a pool process (child) of a worker.

A turn ends when nothing is pending (after lingering a little for more work of the same session), when its time is over
(then a successor ticket goes to the end of the queue, so that other jobs get their turn), or at shutdown.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Literal, TypeVar

from .. import shared
from ..envelope import Depot, Payload, Verdict, open_meta, seal_block, seal_verdict
from ..errors import ClusterError, SerializationError, WireError
from ..model import ErrorRecord
from ..planning import TRIPS
from ..remote import capture
from ..settings import Settings
from ..store import keys
from ..store.protocol import Claim, Handed, Lingerer, Reported, Store
from . import slot as slots
from .capture import Capture
from .execute import ChunkRun, ItemInterrupted
from .jobs import LoadedJob, LoadedJobs, load_job
from .sharing import SharedValues
from .slot import Slot, make_token

T = TypeVar("T")

__all__ = ["Child"]

#: How often, in seconds, the flusher looks at the running chunk.
FLUSHER_SECONDS = 0.025
#: Far from the store the times below last at least so many round trips: a turn, an idle turn's wait for more work, a
#: chunk until its tail is handed back, the pause between two reports. A ticket costs some ten of them, a chunk one.
TURN_TRIPS, LINGER_TRIPS, BUDGET_TRIPS, FLUSH_TRIPS = 30, 3, 2 * TRIPS, 2
#: Pauses, in seconds, after which an idle process looks whether what it holds is still needed: first and longest, and
#: longest while it lingers; and how long a turn lingers whose ticket was of no use.
FIRST_REST, LAST_REST, LINGER_REST, GLANCE = 1.0, 60.0, 4.0, 0.001
#: Longest pause, in seconds, between attempts to reach a store that is away.
PAUSE_LIMIT = 1.0


class Child:
    """One pool process. All of its methods run in the main thread, but for ``_flush_loop``.

    Args:
        store: for this process alone.
        key: the cluster's key.
        slot: shared with the parent.
        depot: for large blobs.
        shelf: for those that other processes of this machine read as well, when that is another one.
        wake: has the parent look at the slots.
        publish: has the parent send a ticket, given (job key, ticket).
        refusal: why this process cannot run anything (its ``init`` failed).
    """

    def __init__(
        self,
        store: Store,
        key: bytes,
        namespace: str,
        settings: Settings,
        slot: Slot,
        refusal: str = "",
        depot: Depot | None = None,
        wake: Callable[[], None] = lambda: None,
        shelf: Depot | None = None,
        publish: Callable[[str, str], None] = lambda job, ticket: None,
    ) -> None:
        self._store, self._key, self._namespace, self._settings, self._slot = store, key, namespace, settings, slot
        self._refusal, self._depot, self._wake, self._publish = refusal, depot, wake, publish
        self._shelf = shelf or depot
        self._values = SharedValues(store, key, self._shelf, self._persist)
        self._stamp = os.urandom(8).hex()
        self._serial = 0
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self.jobs = LoadedJobs()
        self._lock = threading.Lock()  # one report at a time, and the connection is shared with the flusher
        self._run: ChunkRun | None = None
        self._current: tuple[str, str] = ("", "")  # job and token of the running chunk
        self._busy = threading.Event()  # a turn is under way
        self._lease = int(settings.lease_seconds * 1000)
        self._ready = False
        self._deadline = 0.0
        slot.child_starts(os.getpid(), self._stamp)

    def _get_ready(self) -> None:
        """At the first turn: billiard installs its own signal handlers after its process initializer."""
        self._ready = True
        signal.signal(signal.SIGUSR1, self._on_signal)
        # Billiard's handler would raise SystemExit in the user's function, whose item would count as failed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=self._flush_loop, name="nbparallel-flush", daemon=True).start()

    def catch_output(self) -> None:
        """Have what items print, log and warn go to the client, from now on and for this whole process."""
        Capture(lambda: self._run, self._slot.words).install()

    def fetch_shared(self) -> None:
        """Have handles of shared values find them on the cluster, from now on and for this whole process."""
        shared.fetch_with(self._values.fetch)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """SIGUSR1: raise in the user's code if the parent means just what runs now, and never twice."""
        words = self._slot.words
        if (
            words[slots.ARMED]
            and words[slots.ASK_SERIAL] == words[slots.SERIAL]
            and words[slots.ASK_INDEX] in (slots.ANY_ITEM, words[slots.INDEX])  # read last, as it is written first
        ):
            words[slots.ARMED] = 0
            words[slots.RAISED] = words[slots.SERIAL]
            raise ItemInterrupted

    # -- a turn --------------------------------------------------------------------------------------------------------

    def turn(self, job: str, epoch: int, ticket: str) -> tuple[str, str] | None:
        """Take the turn of a ticket.

        Returns:
            (job key, successor ticket) to be published, or None.
        """
        job_key = keys.job_key(self._namespace, job, epoch)
        if not self._ready:
            self._get_ready()
        self._busy.set()
        self._deadline = time.monotonic() + self._far(self._settings.turn_seconds, TURN_TRIPS)
        try:
            return self._turn(job_key, ticket)
        finally:
            self._slot.child_rests()
            self._busy.clear()

    def _turn(self, job: str, ticket: str) -> tuple[str, str] | None:
        claim = self._claim(job, ticket, first=True)
        while True:
            if claim.state == "chunk":
                loaded = self._load(job, claim)
                next_claim = self._run_chunk(loaded, ticket, claim) if loaded else None
                if next_claim is None:
                    return self._leave(job, ticket)
                claim = next_claim
                continue
            self._slot.child_rests()
            if claim.state == "yield":
                if successor := self._leave(job, ticket):
                    self._publish(*successor)
                job, ticket = claim.job, claim.ticket
                self._deadline = time.monotonic() + self._far(self._settings.turn_seconds, TURN_TRIPS)
                claim = self._claim(job, ticket, first=True)
                continue
            loaded = self.jobs.get(job)
            if claim.state == "drop" and not claim.why.startswith("ticket"):
                self.jobs.pop(job, None)  # the job is over, not just its ticket
            handed = claim.handed or (self._linger(loaded, claim) if loaded else None)
            if handed is None:
                return None
            job, ticket = handed.job, handed.ticket
            if self._alone():  # nobody else waits for this turn to end: another one begins
                self._deadline = time.monotonic() + self._far(self._settings.turn_seconds, TURN_TRIPS)
            self._busy.set()
            claim = self._accept(handed)

    def _far(self, seconds: float, trips: int) -> float:
        """A time (0: none at all) as it is near the store, and longer where each call takes long."""
        return max(seconds, trips * self._store.round_trip) if seconds else 0.0

    def _may_go_on(self, loaded: LoadedJob) -> bool:
        """Whether the turn is not over; alone on a cluster of one session, it ends only when others wait."""
        if time.monotonic() < self._deadline:
            return True
        if not self._alone():  # others that cannot be seen from here may wait
            return False
        with self._lock, contextlib.suppress(ClusterError):
            if not self._store.waiting(loaded.group):
                self._deadline = time.monotonic() + self._settings.turn_seconds
                return True
        return False

    def _alone(self) -> bool:
        """Whether this is a cluster of one session."""
        return self._depot is not None and self._depot.local

    def _claim(self, job: str, ticket: str, first: bool) -> Claim:
        self._serial += 1
        return self._ask(job, ticket, first)

    def _ask(self, job: str, ticket: str, first: bool) -> Claim:
        self._slot.child_claims(self._serial, job, ticket)

        def call() -> Claim:
            fresh, have = job not in self.jobs, self.jobs.blob_of(job)
            return self._store.claim(job, self._token(), ticket, lease=self._lease, first=first, have=have, fresh=fresh)

        with self._lock:
            return self._persist(call)

    def _token(self) -> str:
        return make_token(self._stamp, self._serial)

    # -- lingering -----------------------------------------------------------------------------------------------------

    def _may_linger(self) -> float:
        """Seconds for which this turn may linger; 0.0: it may not."""
        if self._slot.asked_to_hand_back():
            return 0.0
        rest = self._far(self._settings.linger_seconds, LINGER_TRIPS)
        return rest if self._alone() else max(0.0, min(rest, self._deadline - time.monotonic()))

    def _lingerer(self, loaded: LoadedJob, seconds: float) -> Lingerer:
        ms = int(1000 * min(seconds, self._far(FIRST_REST, LINGER_TRIPS)))
        return Lingerer(self._stamp, loaded.group, ms, self._token(), self._lease, loaded.job)

    def _linger(self, loaded: LoadedJob, claim: Claim) -> Handed | None:
        """Wait for more work of the job's session; now and then what nobody needs any more is let go meanwhile."""
        self._busy.clear()  # the flusher rests, too
        left, expected = self._may_linger(), claim.lingers
        if claim.state == "drop" and not expected:  # more messages that nobody needs may wait for Celery to take them
            left = min(left, GLANCE)
        until, who = time.monotonic() + left, self._lingerer(loaded, left)
        while left > 0 or expected:
            with self._lock:
                try:
                    handed = self._store.linger(who, expected)
                except ClusterError:  # it may have been handed something all the same
                    with contextlib.suppress(ClusterError):  # at a shutdown, when the parent looks after that
                        return self._persist(lambda who=who: self._store.unlinger(who))  # type: ignore[misc]
                    return None
                if handed is not None:
                    return handed if handed.job else None
                self._let_go()
            left, expected = until - time.monotonic(), False
            who = who._replace(ms=int(1000 * min(left, LINGER_REST)))
        return None

    def _accept(self, handed: Handed) -> Claim:
        """The first claim on what this process was handed, under the token with which it lingered."""
        claim = handed.claim
        if claim is None or not (claim.meta or handed.job in self.jobs):
            return self._ask(handed.job, handed.ticket, first=True)
        self._slot.child_claims(self._serial, handed.job, handed.ticket)
        return claim

    def _leave(self, job: str, ticket: str) -> tuple[str, str] | None:
        successor = keys.new_id()
        with self._lock:
            return (job, successor) if self._persist(lambda: self._store.leave(job, ticket, successor)) else None

    # -- a job's function ----------------------------------------------------------------------------------------------

    def _load(self, job: str, claim: Claim) -> LoadedJob | None:
        """The job's function; None when it cannot run here, which ends the job with a verdict."""
        loaded = self.jobs.get(job)
        if loaded is None:
            with self._lock:
                self._let_go()
            reason = self._refusal
            if not reason:
                try:
                    loaded = load_job(self._key, job, claim, self._shelf)
                    reason = loaded.refusal
                except BaseException as error:  # importing the user's modules may raise anything
                    record = capture(error, "raised", "")
                    reason = f"the function cannot be loaded on worker {self._name}: {record.type_name}: "
                    reason += f"{record.message}{self._advice(job, claim, error)}\n\n{record.traceback}".rstrip()
            if reason or loaded is None:
                self._give_verdict(job, reason, "versions" if loaded else "")
                return None
        return self.jobs.use(loaded)

    def _advice(self, job: str, claim: Claim, error: BaseException) -> str:
        """What to do when it is a module that this worker lacks, and who wants it."""
        if not isinstance(error, ModuleNotFoundError) or not error.name:
            return ""
        name = open_meta(self._key, job, claim.meta).get("name", job)  # its MAC was checked: the function was loaded
        return (
            f". Job {name!r} needs the module {error.name!r}, which worker {self._name} lacks: install it there; "
            f"a worker that is started with --require checks that it has what it needs"
        )

    def _give_verdict(self, job: str, reason: str, kind: Literal["", "versions"] = "") -> None:
        entry = seal_verdict(self._key, job, Verdict(reason, self._name, kind))
        with self._lock:
            self._persist(lambda: self._store.verdict(job, entry))

    # -- a chunk -------------------------------------------------------------------------------------------------------

    def _run_chunk(self, loaded: LoadedJob, ticket: str, claim: Claim) -> Claim | None:
        """Run and report a chunk; the next claim, or None when the turn ends with this chunk."""
        run = self._prepare(loaded, claim)
        if run is None:
            return None
        self._current = loaded.job, self._token()
        self._run = run
        try:
            run.value_bytes = loaded.value_bytes
            first = loaded.item_seconds is None
            loaded.item_seconds = run.run(
                self._flush if first else None,
                1.0 if loaded.item_seconds is None else loaded.item_seconds,
                flush=self._flush,
                flush_bytes=self._settings.flush_bytes,
            )
            loaded.value_bytes = run.value_bytes
        finally:
            self._run = None
        return self._finish(loaded, ticket, run, self._may_go_on(loaded))

    def _prepare(self, loaded: LoadedJob, claim: Claim) -> ChunkRun | None:
        payload = self._payload(loaded, claim)
        if payload is None:
            return None
        timeout, budget = loaded.options["timeout"], loaded.options["budget"]
        self._slot.times[slots.LIMIT] = timeout or 0.0
        self._slot.words[slots.MEMORY] = memory = loaded.options.get("memory", 0)
        self._slot.words[slots.ATTEMPT] = claim.attempt
        if timeout or memory:
            self._wake()  # the parent looks at limits only while there are some
        return ChunkRun(
            loaded.function,
            payload.columns,
            base=payload.base,
            lo=claim.lo,
            hi=claim.hi if claim.stop < 0 else min(claim.hi, claim.stop),
            attempt=claim.attempt,
            star=loaded.options["star"],
            each=payload.each,
            precise=claim.crashes > 0 or timeout is not None or memory > 0,
            budget=None if budget is None else self._far(budget, BUDGET_TRIPS),
            slot=self._slot,
            worker=self._name,
            seeded=loaded.seeded,
        )

    def _payload(self, loaded: LoadedJob, claim: Claim) -> Payload | None:
        """The chunk's items; when they cannot be unpickled all together, the client is asked to send each by itself."""
        try:
            return loaded.payload(self._key, claim.blob, claim.payload, self._depot)
        except WireError as error:
            self._give_verdict(loaded.job, f"worker {self._name} refused the items of a chunk: {error}")
            return None
        except BaseException as error:  # unpickling runs code of the user's classes
            record = capture(error, "payload", "")._replace(pickled=b"")
            self._report_errors(loaded, claim, record)
            return None

    def _report_errors(self, loaded: LoadedJob, claim: Claim, record: ErrorRecord) -> None:
        run = ChunkRun(
            loaded.function,
            ([],),
            base=claim.lo,
            lo=claim.lo,
            hi=claim.hi,
            attempt=claim.attempt,
            star=False,
            each=False,
            precise=True,
            budget=None,
            slot=self._slot,
            worker=self._name,
        )
        run.values = [None] * (claim.hi - claim.lo)
        run.errors = dict.fromkeys(range(claim.lo, claim.hi), record)
        self._current = loaded.job, self._token()
        self._report(run, finished=True)

    # -- reports -------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Report what the running chunk has so far."""
        run = self._run
        if run is not None:
            self._report(run)

    def _report(self, run: ChunkRun, new_hi: int = -1, finished: bool = False) -> None:
        with self._lock:
            if not finished and self._run is not run:
                return  # the flusher came too late: the lease is that of another chunk by now
            lo, count, entry = self._entry(run)
            if not entry and new_hi < 0 and not finished:
                return
            job, token = self._current
            report = partial(self._store.report, job, token, lo, count, entry, new_hi=new_hi, finished=finished)
            self._heed(run, self._persist(report, work=True))

    def _finish(self, loaded: LoadedJob, ticket: str, run: ChunkRun, go_on: bool) -> Claim | None:
        """The last report of a chunk, in one round trip with the next claim if the turn goes on."""
        if run.fenced or not go_on or self._slot.asked_to_hand_back():
            if not run.fenced:
                self._report(run, finished=True)
            return self._claim(loaded.job, ticket, first=False) if go_on and run.fenced else None
        with self._lock:
            lo, count, entry = self._entry(run)
            job, token = self._current
            self._slot.words[slots.INDEX] = -1
            serial, self._serial = self._serial, self._serial + 1
            rest = self._may_linger()
            linger = self._lingerer(loaded, rest) if rest else None
            report_and_claim = partial(
                self._store.report_and_claim, job, token, lo, count, entry,
                next_token=self._token(), ticket=ticket, lease=self._lease, have=self.jobs.blob_of(job), linger=linger,
            )  # fmt: skip

            self._slot.child_claims(self._serial, job, ticket)
            try:
                return report_and_claim()[1]
            except ClusterError:
                # A lease is renewed while the slot shows its token: what is finished comes first, and then the claim.
                self._slot.child_claims(serial, job, ticket)
                self._persist(partial(self._store.report, job, token, lo, count, entry, finished=True), work=True)
                self._slot.child_claims(self._serial, job, ticket)
                # The reply may have been lost, and this process rung for meanwhile.
                handed = self._persist(lambda: self._store.unlinger(linger)) if linger else None
                return Claim("empty", handed=handed) if handed else self._persist(report_and_claim, work=True)[1]

    def _entry(self, run: ChunkRun) -> tuple[int, int, bytes]:
        block = run.take()
        if block is None:
            return run.lo + run.taken, 0, b""
        return block.lo, block.count, seal_block(self._key, self._current[0], block, self._depot)

    def _persist(self, call: Callable[[], T], work: bool = False) -> T:
        """Repeat a call while the store is away or full: finished work is worth waiting for.

        A worker that shuts down waits for nothing but finished ``work``, and no longer than a lease lasts: then it is
        another's.
        """
        pause, leave_at = 0.05, float("inf")
        while True:
            try:
                return call()
            except ClusterError:
                now = time.monotonic()
                if self._slot.asked_to_hand_back():
                    leave_at = min(leave_at, now + self._settings.lease_seconds * work)
                if now >= leave_at:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, PAUSE_LIMIT)

    def _heed(self, run: ChunkRun, reply: Reported) -> None:
        if reply.state != "ok":
            run.fenced = True
        elif reply.hi < run.hi:
            run.hi = reply.hi
        if 0 <= reply.stop < run.hi:
            run.hi = reply.stop

    def _flush_loop(self) -> None:
        """The flusher: reports while an item runs, and gives the tail of an overrunning chunk back."""
        rest = FIRST_REST
        while True:
            if not self._busy.wait(rest if self._holds() else None):
                with self._lock:
                    if not self._busy.is_set():  # else what is loaded may be about to run
                        self._let_go()
                rest = min(2 * rest, LAST_REST)
                continue
            rest = FIRST_REST
            time.sleep(FLUSHER_SECONDS)
            run = self._run
            if run is not None:
                with contextlib.suppress(ClusterError, SerializationError):  # the main thread reports again
                    self._look_after(run)

    def _holds(self) -> bool:
        """Whether this process has something that it should let go of when nobody needs it any more."""
        return bool(shared.loaded() or self.jobs.large())

    def _let_go(self) -> None:
        """Hold nothing more of large functions whose jobs are over, and of shared values that were given up."""
        if not self._holds():
            return
        with contextlib.suppress(ClusterError):
            over = [job for job in self.jobs.large() if self._store.peek(job).state != "open"]
            for job in over:
                del self.jobs[job]
            if self._values.let_go() or over:
                gc.collect()  # functions and their globals refer to each other

    def _look_after(self, run: ChunkRun) -> None:
        now = time.monotonic()
        if now - run.flushed < self._far(self._settings.flush_seconds, FLUSH_TRIPS):
            return
        run.flushed = now
        new_hi = run.position + 1
        overran = run.budget is not None and now - run.claimed >= run.budget
        overran = overran or self._slot.asked_to_hand_back()
        self._report(run, new_hi if overran and run.shrink(new_hi) else -1)
