"""The supervisor: runs in a worker's parent process, as two threads beside Celery's event loop.

It reads the children's slots and the store's control channel; renews the leases of what live children really run,
releases what a dead child held (naming the culprit from its slot), interrupts cancelled and timed-out items, publishes
the children's next tickets, says by a beat that the worker lives, and reaps expired leases of others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from ..envelope import Verdict, seal_block, seal_verdict
from ..errors import NbparallelError
from ..model import Block, ErrorRecord
from ..pickling import dump
from ..settings import Settings
from ..store import keys
from ..store.protocol import Lost, Store
from . import processes
from . import slot as slots
from .hearing import Hearing
from .interrupt import Interrupter
from .slot import Running, Slot, Slots

__all__ = ["Supervisor"]

log = logging.getLogger(__name__)

#: Interval, in seconds, at which slots are looked at while something is to be interrupted.
TICK_SECONDS = 0.1
#: Jobs whose stop is remembered for slots that reach a stopped item later.
STOPS_KEPT = 1000


class Supervisor:
    """Watches over the children of one worker.

    Args:
        store: for the supervisor's threads alone.
        describe: what the beat says, as sealed bytes; called at each beat.
        publish: sends a ticket, given (job key, ticket, queue, the job's name for people who watch).
    """

    def __init__(
        self,
        store: Store,
        key: bytes,
        settings: Settings,
        all_slots: Slots,
        worker: str,
        describe: Callable[[], bytes],
        publish: Callable[[str, str, str, str], None],
    ) -> None:
        self._store, self._key, self._settings, self._slots = store, key, settings, all_slots
        self._worker, self._describe, self._publish = worker, describe, publish
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._stopping = threading.Event()
        self._leaving = False
        self._returned: set[str] = set()  # tokens of which we gave the tail back
        self._watch_deaths: Callable[[], object] = lambda: None
        #: Removes what the processes shared and nobody needs any more; called every few seconds.
        self.tidy: Callable[[], None] = lambda: None
        #: Watches Celery's consumer, where it has an event loop.
        self.hearing: Hearing | None = None
        self._oversized: dict[str, int] = {}  # token of a child killed for its memory -> bytes that it used
        self._watched: dict[int, tuple[int, Slot, str]] = {}  # pidfd -> (pid, slot, stamp)
        self._stops: dict[str, int] = {}
        self._interrupter = Interrupter(settings.cancel_grace)
        self._lease = int(settings.lease_seconds * 1000)
        self._partial = b""
        self._deaths, self._death = os.pipe()
        self._threads = [
            threading.Thread(target=self._loop, name="nbparallel-supervise", daemon=True),
            threading.Thread(target=self._listen, name="nbparallel-listen", daemon=True),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def tell_deaths(self, hub: Any, pool: Any) -> None:
        """Have Celery's event loop look after its pool whenever a child died.

        It watches a pipe of each child by itself, but that closes shortly before the child can be waited for; when
        the loop is faster, it finds nobody dead, and the next look is seconds away.
        """

        def look() -> None:
            os.read(self._deaths, 4096)
            pool.maintain_pool()

        def watch() -> None:
            if self._deaths not in hub.readers:
                hub.add_reader(self._deaths, look)

        watch()
        # The loop forgets all that it watches when its connection is lost.
        self._watch_deaths = lambda: hub.call_soon(watch)

    def stop(self) -> None:
        """Say goodbye; called when the worker ends."""
        self._stopping.set()
        self.tell("wake")
        if self._threads[0].is_alive():
            self._threads[0].join(timeout=2.0)
        self._read_lines()  # successors of the last turns
        for slot in self._slots.owned():
            self._safely(lambda slot=slot: self._release(slot, slot.pid(), "shutdown"))  # type: ignore[misc]
        with contextlib.suppress(NbparallelError):
            self._store.unbeat(self._worker)

    def tell(self, line: str) -> None:
        """Send a line, from a child or another thread: ``wake``, or ``publish job ticket queue name`` (quoted)."""
        os.write(self._writer, f"{line}\n".encode())  # atomic: lines are shorter than a pipe's buffer

    def hand_back(self) -> None:
        """The worker shuts down: children give back what they have not started; whoever is killed is not to blame."""
        self._leaving = True
        for slot in self._slots.owned():
            slot.hand_back()
        self.tell("wake")

    # -- the supervising thread ----------------------------------------------------------------------------------------

    def _loop(self) -> None:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        renew_at = reap_at = 0.0
        while not self._stopping.is_set():
            self._watch_new(poll)
            now = time.monotonic()
            wait = max(0.0, renew_at - now)
            if (
                self._leaving
                or self._interrupter.pending()
                or any(running.limit or slot.words[slots.MEMORY] for slot, running in self._live())
            ):
                wait = min(wait, TICK_SECONDS)
            for fd, _ in poll.poll(wait * 1000):
                if fd == self._reader:
                    self._read_lines()
                else:
                    poll.unregister(fd)
                    self._child_died(fd)
            self._safely(self._interrupts)
            self._safely(self._check_memory)
            if self._leaving:
                self._safely(self.rouse)
                self._safely(self._return_tails)
            now = time.monotonic()
            if now >= renew_at:
                renew_at = now + self._settings.renew_seconds
                if not self._safely(self._beat):
                    # Nobody could renew: leases that ended meanwhile are their holders', who come back, too.
                    reap_at = now + self._settings.lease_seconds
                self._safely(self._renew)
            if now >= reap_at:
                reap_at = now + self._settings.lease_seconds / 3
                self._safely(self._reap)
                self._safely(self._tend)
                self._safely(self.tidy)
                self._safely(self._hear_messages)

    def _safely(self, step: Callable[[], None]) -> bool:
        """Run a step; a store that is away must not end the thread, the next round tries again. Whether it worked."""
        try:
            step()
            return True
        except NbparallelError as error:
            log.warning("supervisor: %s", error)
        except Exception:
            log.exception("supervisor: a step failed")
        return False

    def _watch_new(self, poll: select.poll) -> None:
        known = {pid for pid, *_ in self._watched.values()}
        for slot in self._slots.owned():
            pid = slot.pid()
            if pid in known:
                continue
            try:
                fd = processes.watch(pid)
            except ProcessLookupError:
                self._safely(lambda slot=slot, pid=pid: self._release(slot, pid, "unknown exit"))  # type: ignore[misc]
                continue
            self._watched[fd] = pid, slot, slot.stamp()
            poll.register(fd, select.POLLIN)

    def _read_lines(self) -> None:
        try:
            data = self._partial + os.read(self._reader, 65536)
        except BlockingIOError:
            return
        *lines, self._partial = data.split(b"\n")
        for line in lines:
            words = line.decode("ascii", "replace").split(" ")
            if words[0] == "publish" and len(words) == 5:
                self._safely(lambda w=words: self._publish(w[1], w[2], w[3], unquote(w[4])))  # type: ignore[misc]

    # -- death of a child ----------------------------------------------------------------------------------------------

    def _child_died(self, fd: int) -> None:
        pid, slot, stamp = self._watched.pop(fd)
        how = processes.exit_status(pid)
        os.close(fd)
        os.write(self._death, b".")
        if slot.pid() == pid:
            self._safely(lambda: self._release(slot, pid, how))
        else:  # its successor was faster than we are
            self._safely(lambda: self._bury(stamp))

    def _release(self, slot: Slot, pid: int, how: str) -> None:
        """What a dead child held is pending again; the item that killed it too often becomes an error."""
        running, stamp = slot.running(), slot.stamp()
        slot.forget()
        if running is not None:
            self._release_running(slot, running, pid, how)
        self._bury(stamp)

    def _bury(self, stamp: str) -> None:
        for job, token in self._store.bury(stamp):  # what it was just handed, or had just finished
            self._return(job, token)

    def _return(self, job: str, token: str) -> None:
        ticket = keys.new_id()
        if self._store.release(job, token, "return", ticket=ticket).publish:
            self._publish_anew(job, ticket)

    def _release_running(self, slot: Slot, running: Running, pid: int, how: str) -> None:
        killed_for = self._interrupter.ended(slot, running)
        processes.kill_group(pid)
        ticket, heir = keys.new_id(), keys.new_id()
        end = running.index + max(running.count, 1) if running.index >= 0 else -1
        if self._leaving or killed_for in (slots.CANCELLED, slots.LOST):
            self._return(running.job, running.token)
            return
        if used := self._oversized.pop(running.token, 0):
            killed_for = slots.OUT_OF_MEMORY
            how = f"{used:,} bytes of memory, more than memory_limit={slot.words[slots.MEMORY]:,} allows"
        limit = 1 if killed_for else self._settings.crash_limit
        answer = self._store.release(
            running.job,
            running.token,
            "crash",
            culprit=running.index,
            culprit_end=end,
            crash_limit=limit,
            heir=heir,
            lease=self._lease,
            ticket=ticket,
        )
        log.warning("worker process %d died (%s) in job %s, item %d", pid, how, running.job, running.index)
        if answer.culprit >= 0:
            self._report_error(running, heir, answer.culprit, self._obituary(running, killed_for, how))
        if answer.deaths >= self._settings.crash_limit:
            reason = f"worker processes died {answer.deaths} times while they loaded the function or its data ({how})"
            self._store.verdict(running.job, seal_verdict(self._key, running.job, Verdict(reason, self._worker)))
        if answer.publish:
            self._publish_anew(running.job, ticket)

    def _publish_anew(self, job: str, ticket: str) -> None:
        """A ticket in place of a dead child's; this worker may listen on several queues, so the job's is looked up."""
        queue, name = "", ""
        with contextlib.suppress(ValueError, KeyError, TypeError):  # it is not sealed: anything may stand there
            says = json.loads(self._store.jobs().get(job, b"{}"))
            queue, name = str(says["queue"]), str(says["name"])
        self._publish(job, ticket, queue, name)

    def _obituary(self, running: Running, killed_for: int, how: str) -> ErrorRecord:
        if killed_for == slots.TIMED_OUT:
            seconds = time.monotonic() - running.started
            message = f"ran for {seconds:.3g} s, longer than its timeout; its worker process was killed"
            return ErrorRecord("timeout", "nbparallel.errors.ItemTimeout", message, "", "")
        if killed_for == slots.OUT_OF_MEMORY:
            message = f"its worker process used {how}, and was stopped"
            return ErrorRecord("crashed", "nbparallel.errors.WorkerCrashed", message, "", "")
        message = f"killed its worker process {self._settings.crash_limit} times; the last time: {how}"
        return ErrorRecord("crashed", "nbparallel.errors.WorkerCrashed", message, "", "")

    def _report_error(self, running: Running, heir: str, index: int, record: ErrorRecord) -> None:
        self._report_errors(Lost(running.job, heir, index, index + 1, running.attempt), record, f"pid {running.pid}")

    def _report_errors(self, lost: Lost, record: ErrorRecord, worker: str) -> None:
        count = lost.hi - lost.lo
        errors = dict.fromkeys(range(lost.lo, lost.hi), record)
        block = Block(lost.lo, count, dump([None] * count), errors, lost.attempt, worker or self._worker)
        entry = seal_block(self._key, lost.job, block)
        self._store.report(lost.job, lost.token, lost.lo, count, entry, finished=True)

    # -- leases and beats ----------------------------------------------------------------------------------------------

    def _live(self) -> list[tuple[Slot, Running]]:
        return [(slot, running) for slot in self._slots.owned() if (running := slot.running()) is not None]

    def _renew(self) -> None:
        live = self._live()
        answers = self._store.renew(self._lease, [(running.job, running.token) for _, running in live])
        for (slot, running), stop in zip(live, answers, strict=True):
            # Before its first item a child may still be claiming, so that its token is no lease yet.
            if stop == -2 and running.index >= 0:
                self._interrupter.want(slot, running, slots.LOST)
            elif stop >= 0:
                self._note_stop(running.job, stop)

    def _beat(self) -> None:
        self._store.beat(self._worker, self._describe(), int(self._settings.lease_seconds * 1000))

    def _reap(self) -> None:
        for lost in self._store.reap(self._settings.lost_limit, keys.new_id(), self._lease):
            message = (
                f"its worker vanished {self._settings.lost_limit} times while it ran a chunk of {lost.hi - lost.lo} "
                "items; which of them is to blame cannot be known"
            )
            self._report_errors(lost, ErrorRecord("lost", "nbparallel.errors.WorkerLost", message, "", ""), "")

    def _return_tails(self) -> None:
        """Give back what children have not started: one whose item is inside a C call cannot do it by itself."""
        for _, running in self._live():
            if running.index >= 0 and running.token not in self._returned:  # it starts no other: it was asked before
                new_hi = running.index + max(running.count, 1)
                self._store.report(running.job, running.token, 0, 0, b"", new_hi=new_hi)
                self._returned.add(running.token)

    def rouse(self) -> None:
        """Children that linger return to Celery."""
        for slot in self._slots.owned():
            if slot.running() is None:
                self._store.rouse(slot.stamp())

    def idle(self) -> bool:
        """Whether no child holds a lease."""
        return not self._live()

    def _hear_messages(self) -> None:
        self._watch_deaths()
        if self.hearing is not None and not self._leaving and self.hearing.look(time.monotonic()):
            log.warning("messages wait and none was taken for long: connecting to the broker anew")

    def _tend(self) -> None:
        """Detached jobs have no client that looks for lost tickets; dead ones have none that cleans up."""
        self._store.sweep()
        for job, label in self._store.jobs().items():
            # It is not sealed: anything may stand there.
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                says = json.loads(label)
                if says["detached"]:
                    self._tend_job(job, str(says["queue"]), str(says["name"]))

    def _tend_job(self, job: str, queue: str, name: str) -> None:
        look = self._store.peek(job)
        quiet = min(look.since_taken, look.oldest_ticket) if look.oldest_ticket >= 0 else look.since_taken
        if look.state != "open" or not look.pending or quiet < self._lease:
            return
        cap = len(self._slots.owned()) * max(1, len(self._store.workers()))
        for ticket in self._store.remint(job, self._lease, cap, [keys.new_id() for _ in range(cap)]):
            self._publish(job, ticket, queue, name)

    # -- interrupts ----------------------------------------------------------------------------------------------------

    def _check_memory(self) -> None:
        """Kill the child whose item takes more memory than its job allows, before the machine has none left."""
        for slot, running in self._live():
            limit = slot.words[slots.MEMORY]
            if not limit or running.index < 0 or (used := processes.memory(running.pid)) <= limit:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGSTOP)
                now = slot.running()
                if now is not None and (now.serial, now.index) == (running.serial, running.index):
                    self._oversized[running.token] = used
                    os.kill(running.pid, signal.SIGKILL)
                else:  # it went on at the last moment
                    os.kill(running.pid, signal.SIGCONT)

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                self._store.listen(self._hear, self._stopping.is_set)
            except NbparallelError:
                self._stopping.wait(1.0)  # renewals find meanwhile what the channel would have said

    def _hear(self, message: str) -> None:
        words = message.split(" ")
        if len(words) == 3 and words[0] == "stop" and words[2].isdigit():
            self._note_stop(words[1], int(words[2]))
            self.tell("wake")

    def _note_stop(self, job: str, stop: int) -> None:
        self._stops[job] = min(stop, self._stops.get(job, stop))
        while len(self._stops) > STOPS_KEPT:
            del self._stops[next(iter(self._stops))]

    def _interrupts(self) -> None:
        now = time.monotonic()
        for slot, running in self._live():
            if 0 < running.limit < now - running.started and running.index >= 0:
                self._interrupter.want(slot, running, slots.TIMED_OUT, running.index)
            stop = self._stops.get(running.job)
            if stop is not None and (running.index >= stop or stop == 0):
                self._interrupter.want(slot, running, slots.CANCELLED)
        self._interrupter.tick(now)
