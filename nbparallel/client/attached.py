"""Jobs that another process started: found in the store for ``api.py``, read and cancelled here.

A detached job goes on without a client: whoever attaches to it may end it. Another one belongs to its client; when
that is gone, what it left is there to be read.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .. import envelope, pickling
from ..errors import JobError, WireError
from ..model import Block, JobState
from ..store.protocol import Peek
from .reading import Input
from .running import RunningJob
from .session import Session
from .spec import JobSpec

__all__ = ["AttachedJob", "JobInfo", "find_job", "list_jobs"]


class JobInfo(NamedTuple):
    """A job in the store.

    Attributes:
        id: what ``attach`` takes.
        state: ``running``, ``done``, ``failed``, ``cancelled``, or ``abandoned``: its client is gone.
        total: number of items, or None when that is not known.
        left: items that were submitted and have no result yet.
        detached: whether it goes on without its client.
    """

    id: str
    name: str
    state: str
    total: int | None
    left: int
    detached: bool


def list_jobs(session: Session) -> list[JobInfo]:
    """The jobs of a namespace that the store knows, of all clients."""
    session.wait_ready()
    found = []
    for key, label in session.store.jobs().items():
        look = session.store.peek(key, ranges=True)
        says = _label(label)
        if look.state is None or not says:
            continue
        state = _state(session, look, says)
        left = sum(hi - lo for lo, hi in look.unreported)
        found.append(JobInfo(_id(key)[0], says["name"], state, says["total"], left, says["detached"]))
    return found


def find_job(session: Session, id: str) -> RunningJob:
    """Attach to a job; one that this session reads already is that very job.

    Raises:
        JobError: the store does not know it, or it was not sealed with our key.
    """
    session.wait_ready()
    known = [(_id(key)[1], key) for key in session.store.jobs() if _id(key)[0] == id]
    if not known:
        raise JobError(
            f"the store knows no job {id!r:.60}: it ended long ago, kept no results, or is another cluster's"
        )
    epoch, key = max(known)
    if (ours := session.reads(key)) is not None:
        return ours
    meta, sid = session.store.meta(key)
    try:
        options = envelope.open_meta(session.key, key, meta)
    except WireError as error:
        raise JobError(f"job {id} cannot be attached to: {error}") from None
    if options["sid"] != sid:
        raise JobError(f"job {id} cannot be attached to: it was moved to another session")
    return AttachedJob(session, id, epoch, options)


class AttachedJob(RunningJob):
    """A job of which this process has results alone, neither function nor input."""

    def __init__(self, session: Session, id: str, epoch: int, options: dict[str, Any]) -> None:
        spec = JobSpec(
            options["name"], b"", ordered=options["ordered"], on_error=options["on_error"], queue=options["queue"],
            detach=True,
        )  # fmt: skip
        super().__init__(spec, Input(((),)), session)
        self.id, self.epoch, self.total = id, epoch, options["total"]
        self._sid, self._detached = options["sid"], options["detached"]
        self._exhausted = self.total is not None
        self._opened = epoch
        if self.total:
            self._meter.submitted(self.total, 0)

    def start(self) -> None:
        """Read what is there, and what comes."""
        self.state = "running"
        with self.changed:
            self._check_end()  # no items at all
        if not self.ended:
            self.session.collect(self)
            self.session.store.wake(self.session.sid)

    def nudge(self) -> None:
        """Does it still go on? Called about twice a second until it has ended."""
        before = self._came
        self._find_dropped()
        look = self.session.store.peek(self.key)
        over = self._over(look)
        if not over:
            if self._detached:
                self._replace_tickets()
            return
        with self.changed:
            came = len(self.results.received)
            if self.ended or came != before:  # what it left is still on its way to us
                return
            if look.state != "cancelled":
                total = "?" if self.total is None else f"{self.total:,}"
                self.failure = JobError(f"job {self.spec.name!r} has {came:,} of {total} results: {over}")
            self._end("cancelled" if look.state == "cancelled" else "failed")

    def _over(self, look: Peek) -> str:
        """Why nothing more comes, or ``""``."""
        if look.state is None:
            return "the store does not know it any more"
        if look.state != "open":
            return f"it was {look.state}, and the store gave up what is missing"
        if not self._detached and not self.session.store.session_lives(self._sid):
            return "its client is gone"
        return ""

    def retry(self) -> int:
        """Neither function nor input are here."""
        raise JobError(f"job {self.spec.name!r} was started by another process, which alone can run items again")

    def audit(self) -> None:
        """Nothing of it can be sent again from here; ``nudge`` tells when it is gone."""

    def lost(self, epoch: int) -> None:
        """As ``audit``."""

    def _send_alone(self, index: int, block: Block) -> None:
        """The payloads are with the client that submitted them: the item stays unreadable here."""
        record = block.errors[index]._replace(kind="item")
        self.receive(Block(index, 1, pickling.dump([None]), {index: record}, block.attempt, block.worker))

    def _note_failures(self, block: Block, indexes: list[int]) -> int | None:
        stop = super()._note_failures(block, indexes)
        return stop if self._detached else None  # else its own client knows what to do

    def _end(self, state: JobState) -> None:
        if self._detached:
            super()._end(state)
        else:  # its own client cleans up behind it
            self.state = state
            self.failure = self.failure or self._dropped
            self._notify()
            self.session.forget(self.key)


def _state(session: Session, look: Peek, says: dict[str, Any]) -> str:
    if look.state != "open":
        return str(look.state)
    if says["detached"]:
        return "running" if look.unreported else "done"
    return "running" if session.store.session_lives(says["session"]) else "abandoned"


def _label(label: bytes) -> dict[str, Any]:
    """What ``running.py`` wrote; it is not sealed, so it is shown and not trusted."""
    try:
        says = json.loads(label)
        return {
            "name": str(says["name"]),
            "session": str(says["session"]),
            "total": None if says["total"] is None else int(says["total"]),
            "detached": bool(says["detached"]),
        }
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}


def _id(key: str) -> tuple[str, int]:
    """Job id and epoch of a job's key prefix."""
    id, _, epoch = key.rpartition(":")[2].partition(".")
    return id, int(epoch) if epoch.isdecimal() else -1
