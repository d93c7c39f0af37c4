"""A job's engine on the client: takes blocks of outcomes from the collector, and decides what runs again and when the
job has ended. ``feeding.py`` is its other half, which reads the input and sends it.

``Job`` (the user's handle) and the session's threads share it; its condition guards everything in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import envelope, pickling
from ..errors import JobError, ResultDropped
from ..model import Block, JobState, Snapshot
from ..ordering import Ranges
from ..store import keys
from .feeding import Feeding
from .kept import Kept
from .output import Entry, Output
from .reading import Input
from .results import Piece
from .spec import JobSpec
from .tries import Tries

if TYPE_CHECKING:
    from .session import Session

__all__ = ["RunningJob"]

_DROPPED = (
    "{} left the store before being read here: it keeps the last {:,} bytes of a job's results (setting kept_bytes). "
    "What is left is in job.results_so_far(), job.as_completed() and job[index]"
)
#: Seconds that outcomes may need from the store to us.
AUDIT_SECONDS = 1.0
#: Seconds after which tickets that nobody took are replaced, at first (far from the store so many round trips, which a
#: message needs), and at most.
NUDGE_SECONDS, NUDGE_TRIPS, NUDGE_MOST = 1.0, 8, 30.0


class RunningJob(Feeding):
    """One job on its way. See the module's docstring for who calls what; every method may be called by any thread."""

    def __init__(self, spec: JobSpec, source: Input, session: Session) -> None:
        super().__init__(spec, source, session)
        self.tries = Tries(spec.retry)
        self.output = Output()
        #: Shows what items write as it comes, where no view does.
        self.echo: Callable[[list[Entry]], None] | None = None
        #: Shows the job again when it is run once more.
        self.reopened: Callable[[], None] | None = None
        self._hands: list[list[list[Any]]] = []
        self._nudge_after = NUDGE_SECONDS
        self._workers: set[str] = set()  # seen at the last nudge
        self._kept = Kept(session.settings.kept_bytes)
        self._came = -1
        self._dropped: ResultDropped | None = None
        self._first_errors: list[tuple[int, str, str]] = []

    # -- receiving -----------------------------------------------------------------------------------------------------

    def receive(self, block: Block) -> None:
        """Take in a block of outcomes; called by the collector."""
        if block.output:
            self._write(block)
            if not block.count:  # of an item that still runs
                return
        stop: int | None = None
        with self.changed:
            if self.ended and self.state != "cancelled":
                return
            sorted_out = self.tries.sort(block, self.results.received, self._may_run)
            added = self.results.add(block, skip=sorted_out.all())
            count = sum(hi - lo for lo, hi in added)
            failed = 0
            if block.errors:
                new = [index for index in block.errors if any(lo <= index < hi for lo, hi in added)]
                failed = len(new)
                stop = self._note_failures(block, new)
            seconds = sum(block.seconds)
            if block.worker:
                self._planner.observe(block.count, seconds)
                size = memoryview(block.body).nbytes / block.count  # type: ignore[arg-type]
                self._outcome_bytes = max(size, (self._outcome_bytes + size) / 2)
            self._meter.received(count, failed, seconds, block, sorted_out.again)
            for lo, hi in added:
                self._shelf.settle(lo, hi)
            self._check_end()
            self._notify()
        for index, delay in sorted_out.again.items():
            self.session.later(delay, lambda index=index: self._retry(index, block.attempt + 1))  # type: ignore[misc]
        for index in sorted_out.unreadable:
            self._send_alone(index, block)
        if stop is not None:
            self.session.stop_job(self, stop)

    def _write(self, block: Block) -> None:
        """Take in what items wrote."""
        with self.changed:
            if self.ended and self.state != "cancelled":
                return
            self.output.add(block.output)
            if not block.count:  # else the meter is told of the whole block
                self._meter.wrote(block.output)
        if self.echo is not None:
            self.echo(block.output)

    def _may_run(self, index: int) -> bool:
        return not self.ended and (self.stop_at is None or index < self.stop_at)

    def _retry(self, index: int, attempt: int) -> None:
        """Submit one item again; called by the keeper when its pause is over."""
        with self.changed:
            self.tries.rested(index)
            if self.ended or index in self.results.received:
                return
            self._outbox.put(index, index + 1, attempt, self._shelf.of(index).id, b"")
        self.session.soon(self._send)

    def _send_alone(self, index: int, block: Block) -> None:
        """An item that could not be unpickled with its neighbours goes to the workers by itself."""
        with self.changed:
            old = self._shelf.of(index)
            blob = f"e{index:x}"
            try:
                payload = envelope.open_payload(self.session.key, self.key, old.id, old.sealed, self.session.depot)
            except Exception:  # what the worker could not unpickle cannot be unpickled here either
                record = block.errors[index]._replace(kind="item")
                self.receive(Block(index, 1, pickling.dump([None]), {index: record}, block.attempt, block.worker))
                return
            sealed = envelope.seal_alone(self.session.key, self.key, payload, index, blob)
            self._outbox.put(index, index + 1, block.attempt, blob, sealed)
        self.session.soon(self._send)

    def _note_failures(self, block: Block, indexes: list[int]) -> int | None:
        """Remember the first failures; the new stop when ``on_error="raise"`` lowers it."""
        for index in indexes:
            if len(self._first_errors) < 100:
                record = block.errors[index]
                self._first_errors.append((index, record.type_name, record.message))
        if self.spec.keep:
            self._shelf.mark_failed(indexes)
        if self.spec.on_error != "raise" or not indexes:
            return None
        first = min(indexes)
        if self.stop_at is not None and self.stop_at <= first + 1:
            return None
        self.stop_at = first + 1
        return self.stop_at

    def take_done_blobs(self) -> list[str]:
        """Payloads to be deleted in the store, once there are enough of them."""
        with self.changed:
            return [] if self.ended else self._shelf.take_done()

    def took(self, entries: Sequence[tuple[str, bytes]], given_up: bool) -> str:
        """These entries of the stream were received; the id up to which the store need not keep them, or ``""``."""
        surplus = self._kept.take(entries)
        return entries[-1][0] if given_up else surplus

    def delivered(self, piece: Piece) -> None:
        """The reader took a piece; for input without length this is what lets more of it be read."""
        if self.spec.keep:
            return
        with self.changed:
            self.results.drop(piece)
            self._delivered += len(piece)
            self._notify()

    @contextmanager
    def handing(self) -> Iterator[list[list[Any]]]:
        """A place for results that a reader is handed all at once: their list is emptied when the job is cancelled."""
        hand: list[list[Any]] = [[]]
        self._hands.append(hand)
        try:
            yield hand
        finally:
            self._hands[:] = [other for other in self._hands if other is not hand]

    # -- the end -------------------------------------------------------------------------------------------------------

    def _target(self) -> int | None:
        """Number of items whose outcomes end the job; None while it is unknown."""
        if self.stop_at is not None:
            return self.stop_at
        return self.total if self._exhausted else None

    def _check_end(self) -> None:
        target = self._target()
        if self.ended or target is None or self.results.received.first_missing() < target:
            return
        failed = self.failure is not None or self.stop_at is not None
        self._end("failed" if failed else "done")

    def _end(self, state: JobState) -> None:
        self.state = state
        if state == "cancelled":
            for hand in self._hands:
                hand[0].clear()
        self.failure = self.failure or self._dropped
        self._shelf.close(self.spec.keep)
        self.uses.end(again=self.spec.keep and (state != "done" or bool(self.results.errors)))
        if self._function_file:
            self.session.drop_file(self._function_file)
        self._notify()
        self.session.job_ended(self)

    def fail(self, error: BaseException) -> None:
        """The whole job failed, for a reason that is no item's."""
        with self.changed:
            if not self.ended:
                self.failure = error
                self._end("failed")

    def cancel(self) -> bool:
        """Stop everything; never blocks. False when the job had ended already."""
        with self.changed:
            if self.ended:
                return False
            self.stop_at = 0
            self._end("cancelled")
        self.session.stop_job(self, 0)
        return True

    def retry(self) -> int:
        """Run what failed, or was not run, once more; how many of the items that were read that concerns.

        Raises:
            JobError: the job still runs, or keeps no results.
        """
        with self.changed:
            if not self.ended:
                raise JobError(f"job {self.spec.name!r} still runs; retry() is for jobs that have ended")
            if not self.spec.keep:
                raise JobError(f"job {self.spec.name!r} kept neither results nor input; pass keep=True to be able to")
            failed = sorted(self.results.errors)
            count = self._read - len(self.results.received) + len(failed)
            if count == 0 and self._source.exhausted:
                return 0
            for index in failed:
                failure = self.results.errors[index]
                self.tries.by_hand(index, failure)
                self._shelf.of(index).missing += 1
            self.results.reset(failed)
            self._meter.reopened(failed)
            self._first_errors.clear()
            self.stop_at = self.failure = None
            self._exhausted = self._source.exhausted
            self.total = self._read if self._exhausted else self._source.total
            self.state = "running"
            self._lost = True  # what the store had of it is gone: a new epoch begins
            self._start_feeder()
            self._notify()
            return count

    # -- loss ----------------------------------------------------------------------------------------------------------

    def lost(self, epoch: int) -> None:
        """The store does not know the job any more (or is another one): it is submitted again under a new epoch."""
        with self.changed:
            if self.ended or epoch != self.epoch or self._lost:
                return
            self._lost = True
            self._start_feeder()
            self._notify()

    def _listen(self) -> None:
        self.session.collect(self)

    def _recover(self) -> None:
        if not self._lost:
            return
        self.session.say_alive()  # first, as it may fail: then all of this is done again
        with self.changed:
            if self.ended:
                return
            self._lost = False
            old_key = self.key
            self.session.forget(old_key)
            self.epoch += 1
            self._shelf.reseal(self.session.key, old_key, self.key, self.session.depot)
            self._outbox.clear()
            self._put_again(Ranges([(0, self._read)]))
            if self.state == "starting":
                self.state = "running"
        self.uses.again()
        self._place()
        self._send_patiently()

    def _put_again(self, among: Ranges) -> None:
        """The items among these that have no outcome go into the outbox as new chunks."""
        for blob in self._shelf:
            sealed = blob.sealed
            for start, stop in self.results.received.missing(blob.lo, blob.hi):
                for first, last in among.overlap(start, stop):
                    for lo, hi, attempt in self.tries.parts(first, last):
                        self._outbox.put(lo, hi, attempt, blob.id, sealed)
                        sealed = b""

    def audit(self) -> None:
        """The server was restarted, perhaps with older data: what it does not know is submitted again."""
        with self.changed:
            if self.ended or self._opened != self.epoch:
                return
            sent, epoch, key = self._sent, self.epoch, self.key
        look = self.session.store.peek(key, ranges=True)
        if look.state is None:
            self.lost(epoch)
            return
        unknown = Ranges([(0, sent)])
        for lo, hi in look.unreported:
            unknown.discard(lo, hi)
        # What was reported before may still be on its way to us.
        self.session.later(AUDIT_SECONDS, lambda: self._send_unknown(unknown, epoch))

    def _send_unknown(self, unknown: Ranges, epoch: int) -> None:
        if self._is_past(epoch):
            return
        self.uses.again()
        self.uses.place()
        # An item whose pause ended meanwhile was sent by itself.
        for lo, hi in self.session.store.peek(self.key, ranges=True).unreported:
            unknown.discard(lo, hi)
        with self.changed:
            if self._is_past(epoch):
                return
            self._put_again(unknown)
        self.session.soon(self._send)

    def _is_past(self, epoch: int) -> bool:
        return self.ended or self._lost or epoch != self.epoch

    # -- what the keeper asks ------------------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Look whether tickets were lost, and send new ones; called about once a second."""
        if self.spec.detach and self._opened == self.epoch:
            self._find_dropped()
        self._replace_tickets()

    def _find_dropped(self) -> None:
        """Results that the store gave up before they were read here will not come."""
        with self.changed:
            gone = self._kept.gone(self.results.received)
            for lo, hi in gone.runs:
                self.results.lose(lo, hi, _DROPPED.format("{}", self._kept.budget))
                self._shelf.settle(lo, hi)
            if gone:
                self._dropped = ResultDropped(_DROPPED.format(f"{len(gone):,} results", self._kept.budget))
                self._check_end()
                self._notify()
            came, self._came = self._came, len(self.results.received)
            look = not self.ended and came in (-1, self._came)  # at first, and when nothing comes any more
        if look:
            self._kept.looked(*self.session.store.account(self.key))

    def _replace_tickets(self) -> None:
        with self.changed:
            if self._opened != self.epoch or self.ended:
                return
            self.changed.notify_all()  # with more workers than before, the feeder may read on
            epoch, key, store = self.epoch, self.key, self.session.store
        look = store.peek(key)
        if look.state is None:
            self.lost(epoch)
            return
        if look.state == "cancelled":  # by another process
            with self.changed:
                if not self.ended:
                    self.stop_at = 0
                    self._end("cancelled")
            return
        least = max(NUDGE_SECONDS, NUDGE_TRIPS * self._measure_way())
        if look.pending == 0 or look.since_taken < 1000 * least or self._workers_vanished():
            self._nudge_after = least
        quiet = min(look.since_taken, look.oldest_ticket if look.oldest_ticket >= 0 else look.since_taken) / 1000
        if look.pending == 0 or quiet < self._nudge_after:
            return
        cap = min(self.session.slots(self.spec.queue), self.spec.max_running or look.pending + look.held)
        tickets = store.remint(key, int(self._nudge_after * 1000), cap, [keys.new_id() for _ in range(cap)])
        if tickets:  # else every ticket runs a chunk, perhaps a long one, and no queue gets longer
            self._nudge_after = min(2 * self._nudge_after, NUDGE_MOST)
        self.session.publish(self, tickets)

    def _workers_vanished(self) -> bool:
        """Whether one that was there is gone, and with it the messages that were on their way to it."""
        before, self._workers = self._workers, {worker.id for worker in self.session.workers()}
        return not before <= self._workers

    def snapshot(self) -> Snapshot:
        """The picture of this moment."""
        with self.changed:
            return self._meter.snapshot(
                id=self.id,
                name=self.spec.name,
                state=self.state,
                total=self.total,
                slots=self._slots(),
                reason="" if self.ended else self._reason(),
                errors=tuple(self._first_errors),
            )

    def _slots(self) -> int:
        """Worker processes that are there, and may run items of this job."""
        queue = self.spec.queue or self.session.settings.queue
        there = sum(worker.processes for worker in self.session.workers() if queue in worker.queues)
        return min(there, self.spec.max_running or there)

    def _reason(self) -> str:
        reason = self.session.reason(self.spec.queue)
        return reason or ("waiting for the reader of the results" if self.full else "")
