"""The feeding half of a job's engine: reads the input, has the planner size chunks, and sends them to the store.

``running.py`` has the other half, which takes outcomes in; the job's condition guards both.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import envelope, pickling
from ..errors import ClusterError, NbparallelError, SerializationError
from ..model import Block, JobState
from ..planning import Planner
from ..remote import capture, short_repr
from ..shared import noting
from ..store import keys
from ..store.depot import Depot
from ..store.protocol import Opening, Submission, Submitted
from .meter import Meter
from .outbox import SUBMIT_BYTES, SUBMIT_CHUNKS, Outbox
from .reading import SLOW_SECONDS, Input
from .results import Results
from .sharing import LARGE, Uses
from .shelf import Shelf, file_of
from .spec import JobSpec

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Feeding"]

#: Seconds that a call of ``pmap`` itself submits; workers may be so fast that there is credit for ever.
START_SECONDS = 0.02
#: Bytes of items that are encoded before they are sent: workers need not wait while more is prepared.
FILL_BYTES = 128 << 10
#: Most items that input without a length is read ahead of its reader, however short they are.
READ_AHEAD = 10_000
#: Bytes of results that wait for the reader of such input, about.
READ_AHEAD_BYTES = 32 << 20


class Feeding(ABC):
    """What of a job goes out: its input, chunk by chunk, as long as there is credit."""

    def __init__(self, spec: JobSpec, source: Input, session: Session) -> None:
        self.session = session
        self.uses = Uses(session.shares, spec.function)
        # What refers to shared values keeps them: that is for ``uses`` to do, until the job has ended.
        self.spec = replace(spec, function=bytes(spec.function)) if self.uses.waiting else spec
        self.id = session.streams.next_id()
        self.epoch = 0
        self.changed = threading.Condition()
        self.state: JobState = "starting"
        self.failure: BaseException | None = None
        self.total = source.total
        self.stop_at: int | None = None
        self.results = Results(spec.keep, session.settings.result_bytes, pickling.load, self._room_for)
        self._source = source
        self._exhausted = False
        self._planner = Planner(spec.chunks, source.total, session.settings.chunk_seconds)
        self._meter = Meter(time.monotonic, source.total)
        self._read = 0  # items read from the input, all of them in the outbox or sent
        self._delivered = 0
        self._outcome_bytes = 0.0  # of an item; rises at once, falls slowly
        self._outbox = Outbox(self.changed)
        self._shelf = Shelf(session.drop_file)
        self._sent = 0  # items below it are known to have reached the store
        self._lost = False
        self._opened = -1  # the epoch that was opened in the store
        self._pumping = threading.Lock()
        self._feeder: threading.Thread | None = None
        self._function_file = ""
        self._waiters: list[Callable[[], None]] = []

    @property
    def key(self) -> str:
        """The job's key prefix in the store."""
        return keys.job_key(self.session.namespace, self.id, self.epoch)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def full(self) -> bool:
        """Whether no more of the input is read until somebody takes results."""
        return not self.spec.keep and self._read == len(self.results.received) and not self._may_read_on()

    def on_change(self, call: Callable[[], None]) -> None:
        """Call once, from whatever thread, when something of the job changes; the condition must be held."""
        self._waiters.append(call)

    def _notify(self) -> None:
        self.changed.notify_all()
        waiters, self._waiters = self._waiters, []
        for call in waiters:
            call()

    # -- the other half ------------------------------------------------------------------------------------------------

    @abstractmethod
    def receive(self, block: Block) -> None:
        """Take in a block of outcomes."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """The whole job failed."""

    @abstractmethod
    def cancel(self) -> bool:
        """Stop everything."""

    @abstractmethod
    def lost(self, epoch: int) -> None:
        """The store does not know the job."""

    @abstractmethod
    def _listen(self) -> None:
        """Have the stream of the present epoch read."""

    @abstractmethod
    def _recover(self) -> None:
        """Put what a store lost into the outbox again."""

    @abstractmethod
    def _check_end(self) -> None:
        """End the job when all of its outcomes are there; the condition must be held."""

    # -- feeding -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Submit what can be submitted at once; a thread does the rest."""
        if self.session.is_ready() and self._source.sliceable and not self.uses.waiting:
            self._feed_once(START_SECONDS)
        with self.changed:
            if self.ended or self._is_fed():
                return
            self._start_feeder()

    def wait_sent(self) -> None:
        """Wait until the whole input is in the store."""
        with self.changed:
            while not (self.ended or (self._exhausted and self._sent >= self._read)):
                self.changed.wait(1.0)

    def _start_feeder(self) -> None:
        if self._feeder is None:
            self._source.read_ahead()
            self._feeder = threading.Thread(target=self._feed, name=f"nbparallel-feed-{self.id[:6]}", daemon=True)
            self._feeder.start()

    def _is_fed(self) -> bool:
        return (self._exhausted or self.stop_at is not None) and not self._lost

    def _feed(self) -> None:
        """The feeder thread: reads the input as credit allows, until there is no more."""
        try:
            self.session.wait_ready()
        except NbparallelError as error:
            self.fail(error)
        while True:
            with self.changed:
                while not (self.ended or self._is_fed() or self._lost or self._may_read_on()):
                    self.changed.wait()
                if self.ended or self._is_fed():
                    self._feeder = None
                    break
            self._feed_once()
        if not (self.spec.keep and self.spec.sized):  # else retry() may go on with it
            self._source.close()

    def _feed_once(self, seconds: float = math.inf) -> None:
        with self._pumping:
            pause = 0.05
            while True:
                try:
                    self._recover()
                    self._pump(seconds)
                    return
                except ClusterError as error:
                    self.session.trouble(error)
                    with self.changed:
                        if self.ended or self.changed.wait_for(lambda: self.ended, timeout=pause):
                            return
                    pause = min(2 * pause, 1.0)
                except KeyboardInterrupt:  # ■ during pmap() itself: only then is this the main thread
                    self.cancel()
                    raise
                except Exception as error:  # must not leave the job hanging
                    self.fail(error)
                    return

    def _outstanding(self) -> int:
        return self._read - (self._delivered if not self.spec.keep else len(self.results.received))

    def _may_read_on(self) -> bool:
        """Whether there is room for so much that reading and sending it is worth a call."""
        if self.spec.detach:
            return True  # all of it is handed over
        window = self._window()
        least = min(self._planner.refill(self.session.slots(self.spec.queue)), window // 2)
        return window - self._outstanding() >= max(1, least)

    def _room(self) -> int:
        return 1 if self.spec.detach else self._window() - self._outstanding()

    def _window(self) -> int:
        window = self._planner.window(self.session.slots(self.spec.queue))
        if not self.spec.sized:
            window = min(window, READ_AHEAD)
            if self._outcome_bytes:
                window = min(
                    window, int(READ_AHEAD_BYTES / self._outcome_bytes) + 2 * self.session.slots(self.spec.queue)
                )
        return window

    def _opening(self) -> Opening | None:
        """What announces the job to the store, once an epoch."""
        if self._opened == self.epoch:
            return None
        spec, key, session = self.spec, self.key, self.session
        self._measure_way()
        self._listen()
        label = {"name": spec.name, "session": session.sid, "total": self.total, "detached": spec.detach}
        label["queue"] = spec.queue or session.settings.queue
        options = {"sid": session.sid, "star": spec.star, "timeout": spec.timeout, "seed": spec.seed, "rng": spec.rng}
        options |= {**label, "ordered": spec.ordered, "on_error": spec.on_error, "memory": spec.memory_limit}
        # Children linger for a session and queue: the usual one is the same, whether it is named or not.
        options["queue"] = queue = "" if spec.queue == session.settings.queue else spec.queue
        options["log_level"] = logging.getLogger().level  # what the user asked for here holds there
        options["budget"] = self._planner.budget(session.slots(spec.queue)) if spec.chunks == "auto" else None
        meta = envelope.seal_meta(session.key, key, options)
        place = envelope.place(key, "function")
        # What workers need of a detached job must outlive this session, which keeps the parts of a body alive.
        least = None if spec.detach else LARGE
        if self._function_file:  # of the epoch before
            session.drop_file(self._function_file)
        function = envelope.seal_body(session.key, place, (spec.function,), session.depot, least)
        self._function_file = file_of(function)
        ttl = int(session.settings.result_ttl * 1000)
        most, text = spec.max_running, json.dumps(label)
        budget = session.settings.kept_bytes if spec.detach else 0  # else the client gives up what it has received
        return Opening(session.sid, meta, function, most, spec.detach, ttl, text, queue, spec.priority, budget)

    def _room_for(self, body: bytes | memoryview) -> int:
        """Bytes of results like this one that may stay where workers left them."""
        depot = self.session.depot
        return depot.room() if isinstance(depot, Depot) and pickling.shares_memory(body) else 0

    def _measure_way(self) -> float:
        """Tell the planner how far the store is, for us or for the farthest worker; that many seconds."""
        way = max((worker.round_trip for worker in self.session.workers()), default=0.0)
        way = max(way, self.session.store.round_trip)
        self._planner.observe_round_trip(way)
        return way

    def _pump(self, seconds: float) -> None:
        """Read and submit as long as there is credit, but not for much longer than that many seconds."""
        until = time.monotonic() + seconds
        with self.changed:
            if self.state == "starting":
                self.state = "running"
        self._place()
        while self._fill():
            self._send_patiently()
            if time.monotonic() > until:
                break

    def _place(self) -> None:
        """Have the shared values on the cluster that the job refers to."""
        while self.uses.waiting and not self.ended:
            try:
                self.uses.place()
            except ClusterError as error:
                self.session.trouble(error)
                with self.changed:
                    self.changed.wait_for(lambda: self.ended, timeout=0.2)

    def _fill(self) -> int:
        """Read some chunks into the outbox; how many."""
        chunks = size = 0
        far = self.session.store.round_trip > SLOW_SECONDS  # a call takes longer than `ready` looks
        # Nothing is held back while a generator thinks, nor from workers that have nothing at all.
        most, full = SUBMIT_CHUNKS if self.spec.sized or far else 1, SUBMIT_BYTES
        if not far:
            most = most if self._sent else min(most, self.session.slots(self.spec.queue))
            full = FILL_BYTES
        while chunks < most and size < full:
            with self.changed:
                if self.ended or self._exhausted or self.stop_at is not None:
                    break
                count = self._next_count()
            if chunks and not self._source.ready(count):
                break  # what has a length may think, too, as a job does that is read here
            columns = self._take(count) if count else None
            if not columns:
                break
            size += self._encode(columns)
            chunks += 1
        return chunks

    def _next_count(self) -> int:
        room = self._room()
        if room <= 0:
            return 0
        left = None if self.total is None else self.total - self._read
        count = self._planner.next_size(self.session.slots(self.spec.queue), left)
        return count if self.spec.sized else min(count, room)

    def _take(self, count: int) -> list[Sequence[Any]]:
        """The columns of the next items; an empty list at the end of the input."""
        try:
            # One item first, and by itself: a chunk of a thousand large ones would be too much to send.
            alone = self._read == 0 and self.spec.chunks == "auto" and not self._source.starts_small()
            columns = self._source.take(1 if alone else count)
            if len(columns[0]):
                return columns
            failure = None
        except BaseException as error:  # what was read before it still counts
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            failure = error
        with self.changed:
            if not self.ended:
                self.failure = failure
                self._end_of_input(self._read)
        return []

    def _encode(self, columns: list[Sequence[Any]]) -> int:
        """Note the next chunk as read, and put it into the outbox; its size."""
        count, lo = len(columns[0]), self._read
        blob = f"b{lo:x}"
        depot = self.session.depot
        with noting() as cores:
            sealed, failed = envelope.seal_payload(self.session.key, self.key, blob, lo, columns, depot)
        if cores:
            self.uses.add(cores)
            self._place()
        filed = envelope.filed(sealed)
        with self.changed:
            self._read = lo + count
            size = filed[1] if filed else len(sealed)
            self._planner.observe_bytes(count, size)
            self._meter.submitted(count, lo)
            self._shelf.put(blob, lo, lo + count, sealed, depot)
            if self._source.exhausted:
                self._end_of_input(self._read)
            self._outbox.put(lo, lo + count, 1, blob, sealed)
        if failed:
            self._local_failures(lo, columns, failed)
        return size

    def _send(self) -> None:
        """Send what is in the outbox; raises ClusterError when that is not all done."""
        self._outbox.send(self._prepare, self._was_sent)

    def _send_patiently(self) -> None:
        while True:
            try:
                self._send()
                return
            except ClusterError as error:
                self.session.trouble(error)
                with self.changed:
                    if self.changed.wait_for(lambda: self.ended or self._lost, timeout=0.2):
                        return

    def _prepare(self, batch: Sequence[Submission]) -> Callable[[], Submitted]:
        cap = self.session.slots(self.spec.queue)
        if self.spec.max_running:
            cap = min(cap, self.spec.max_running)
        offered = [keys.new_id() for _ in range(min(cap, len(batch)))]
        key, opening = self.key, self._opening()
        wake = not self.session.streams.hears(key)
        return lambda: self.session.store.submit(key, cap, offered, batch, opening, wake)

    def _was_sent(self, batch: Sequence[Submission], answer: Submitted) -> None:
        with self.changed:
            self._opened = self.epoch
            self._sent = max(self._sent, *(submission.chunk.hi for submission in batch))
            self._notify()
        if answer.state == "gone":
            self.lost(self.epoch)
        else:
            self.session.publish(self, answer.tickets)

    def _end_of_input(self, total: int) -> None:
        self._exhausted = True
        self.total = total
        self._check_end()
        self._notify()

    def _local_failures(self, lo: int, columns: list[Sequence[Any]], failed: dict[int, SerializationError]) -> None:
        """Items that cannot be pickled: their outcomes are known before anything runs."""
        body = pickling.dump([None])
        for index, error in failed.items():
            item = short_repr(columns[0][index - lo])
            record = capture(error, "item", item)._replace(kind="raised")
            self.receive(Block(index, 1, body, {index: record}))
