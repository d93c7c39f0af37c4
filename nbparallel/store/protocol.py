"""What a store can do: the seam between our logic and a server. Implemented by ``real.py`` and ``fake.py``.

Every call is safe to repeat when its reply was lost. ``job`` is a job's key prefix (``keys.job_key``).
All times here are in milliseconds of the server's clock, since that is what the scripts compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from ..model import Chunk

__all__ = ["Backlog", "Claim", "Lost", "Opening", "Peek", "Released", "Reported", "Store", "Submission", "Submitted"]


class Submission(NamedTuple):
    """A chunk on its way into the store; ``serial`` rises with every submission of a job, so repeats are known.

    ``payload`` is empty when the blob was submitted before.
    """

    serial: int
    chunk: Chunk
    payload: bytes


class Opening(NamedTuple):
    """What creates a job. ``ttl`` in ms; ``label`` is what ``jobs()`` shows; ``queue`` when it is not the default;
    of two jobs on a queue the one of the higher ``priority`` is served first; of the results at most ``budget`` bytes
    are kept (0: all)."""

    sid: str
    meta: bytes
    function: bytes
    max_running: int
    detached: bool
    ttl: int
    label: str
    queue: str = ""
    priority: int = 0
    budget: int = 0


class Submitted(NamedTuple):
    """Answer to ``submit``: ``tickets`` still need a message each."""

    state: Literal["ok", "gone", "stopped"]
    pending: int
    held: int
    tickets: list[str]


class Claim(NamedTuple):
    """Answer to ``claim``. ``stop``: items at or above it need not run (-1: all run).

    ``payload`` is None when the child has the blob; ``meta`` and ``function`` are there when it asked for them.
    ``lingers``: the child asked to, and is ``handed`` work at once, or rung for from now on.
    With ``yield`` a more urgent job has work: the child goes on there, with that ``job`` and ``ticket``.
    """

    state: Literal["chunk", "empty", "drop", "yield"]
    why: str = ""
    id: str = ""
    lo: int = 0
    hi: int = 0
    attempt: int = 1
    crashes: int = 0
    blob: str = ""
    payload: bytes | None = None
    stop: int = -1
    sid: str = ""
    meta: bytes = b""
    function: bytes = b""
    lingers: bool = False
    handed: Handed | None = None
    job: str = ""
    ticket: str = ""


class Handed(NamedTuple):
    """What a child that lingers is handed: a ticket, and as a rule what its first claim would answer."""

    job: str
    ticket: str
    claim: Claim | None = None


class Lingerer(NamedTuple):
    """A child that waits for more work of one session and queue (``keys.group``).

    ``ms``: how long. ``token``, ``lease``: of the claim that is made for it when work comes, in ms. ``knows``: key
    prefix of the job whose function it has.
    """

    child: str
    group: str
    ms: int
    token: str
    lease: int
    knows: str = "-"


class Reported(NamedTuple):
    """Answer to ``report``: ``hi`` is the end of what the lease still covers."""

    state: Literal["ok", "fenced", "gap"]
    stop: int
    hi: int


class Released(NamedTuple):
    """Answer to ``release``.

    ``culprit``: the item that reached the crash limit and is leased to the heir now, or -1.
    ``publish``: the replacement ticket needs a message. ``deaths``: how often the job's children died outside an item.
    """

    state: Literal["ok", "fenced"]
    culprit: int
    publish: bool
    deaths: int


class Lost(NamedTuple):
    """Items whose workers vanished ``lost_limit`` times; leased to the caller of ``reap``, who reports them."""

    job: str
    token: str
    lo: int
    hi: int
    attempt: int


class Peek(NamedTuple):
    """A look at a job. ``state`` is None when the store does not know it; ages are in ms (-1: none waits)."""

    state: str | None
    pending: int
    held: int
    tickets: int
    since_taken: int
    oldest_ticket: int
    unreported: list[tuple[int, int]]


class Backlog(NamedTuple):
    """What one open job still has to do, for those who decide how many workers there should be.

    ``items``: in the store, not reported. ``upto``: items from here on were not submitted yet. ``stop``: items at or
    above it need not run (-1: all run).
    """

    label: bytes
    items: int
    upto: int
    stop: int


class Store(Protocol):
    """The narrow interface between our logic and the server."""

    prefix: str
    #: Seconds that a call takes, those of the server aside; 0.0 while that is not known.
    round_trip: float

    def submit(
        self,
        job: str,
        cap: int,
        tickets: Sequence[str],
        chunks: Sequence[Submission],
        opening: Opening | None = None,
        wake: bool = True,
    ) -> Submitted:
        """Make chunks pending and mint as many of the offered tickets as the job can use (at most ``cap`` alive).

        ``opening`` creates the job before, in the same round trip, unless it is there already. ``wake``: the session
        does not read the job's stream yet, so its ``read`` is to return.
        """

    def claim(
        self, job: str, token: str, ticket: str, *, lease: int, first: bool, have: str = "", fresh: bool = False
    ) -> Claim:
        """Lease the pending chunk with the lowest index, unless a more urgent job has work for whoever asks.

        ``fresh``: the child needs the job's function, too.
        """

    def report(
        self, job: str, token: str, lo: int, count: int, entry: bytes, *, new_hi: int = -1, finished: bool = False
    ) -> Reported:
        """Append outcomes; hand back from ``new_hi`` on; the last one ends the lease."""

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
        linger: Lingerer | None = None,
    ) -> tuple[Reported, Claim]:
        """The last report of a chunk and the next claim in one round trip; ``linger`` when there is no chunk for it."""

    def leave(self, job: str, ticket: str, successor: str) -> bool:
        """End a turn; True when the successor ticket is to be published."""

    def waiting(self, group: str) -> bool:
        """Whether a ticket of that session and queue waits for its turn."""

    def linger(self, who: Lingerer, expected: bool = False) -> Handed | None:
        """Wait for more work; of no job when the child was roused. ``expected``: it is rung for, a claim said.

        A call that failed may have been handed some all the same: ``unlinger`` tells.
        """

    def unlinger(self, who: Lingerer) -> Handed | None:
        """Wait no more; what the child was handed and has not heard of."""

    def rouse(self, child: str) -> None:
        """Have a child that lingers stop that."""

    def bury(self, child: str) -> list[tuple[str, str]]:
        """A child is dead and must be handed nothing more; (job, token) of the leases that it still has."""

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
        """End a lease whose chunk is not done; after a crash its culprit is in [culprit, culprit_end)."""

    def verdict(self, job: str, entry: bytes) -> bool:
        """The whole job failed, for the reason in the entry; False when it is not open."""

    def renew(self, lease: int, leases: Sequence[tuple[str, str]]) -> list[int]:
        """Renew leases given as (job, token); for each the job's stop (-1: none) or -2 when it is lost.

        The chunks of a dead session, unless the job is detached, become pending: such leases are lost.
        """

    def reap(self, lost_limit: int, heir: str, lease: int) -> list[Lost]:
        """Make the chunks of expired leases pending."""

    def stop(self, job: str, at: int) -> int:
        """Items at or above ``at`` need not run; 0 cancels. Number of leases held, or -1 for an unknown job."""

    def close(self, job: str, state: str, keep: bool, ttl: int) -> None:
        """The job has ended: remove all but a tombstone and, with ``keep``, its results."""

    def jobs(self) -> dict[str, bytes]:
        """Key prefix → label of the jobs that there are."""

    def sweep(self) -> int:
        """Give what dead jobs left a time to live, and remove what is left of forgotten ones; how many were touched."""

    def peek(self, job: str, ranges: bool = False) -> Peek:
        """Counters of a job and, on request, the [lo, hi) that are not reported yet."""

    def backlog(self) -> list[Backlog]:
        """What the open jobs still have to do, those aside whose client is gone; changes nothing."""

    def remint(self, job: str, age: int, cap: int, tickets: Sequence[str]) -> list[str]:
        """Forget tickets that wait for longer than ``age`` and mint new ones; those to publish."""

    def drop_blobs(self, job: str, blobs: Sequence[str]) -> None:
        """Delete payloads that were received whole."""

    def put_shared(self, id: str, sealed: bytes, ms: int) -> None:
        """Write a shared value, or the note of where it lies, for so long."""

    def get_shared(self, id: str) -> bytes | None:
        """What ``put_shared`` wrote, if it is there."""

    def keep_shared(self, id: str, ms: int) -> bool:
        """Have it stay for so long from now on; whether it is there."""

    def has_shared(self, ids: Sequence[str]) -> list[bool]:
        """Whether each of them is there."""

    def drop_shared(self, ids: Sequence[str]) -> None:
        """Remove them."""

    def trim(self, job: str, last: str) -> None:
        """Delete stream entries up to and including ``last``."""

    def read(
        self, streams: Mapping[str, str], block: int, trims: Mapping[str, str] | None = None
    ) -> list[tuple[str, list[tuple[str, bytes]]]]:
        """Entries after the given ids, per stream; waits up to ``block`` ms.

        Streams are named by job key, or ``wake:`` and a session. ``trims``: what ``trim`` is to do before, by job.
        """

    def wake(self, sid: str) -> None:
        """Make a ``read`` of that session's wake stream return."""

    def beat(self, worker: str, says: bytes, ms: int) -> None:
        """A worker lives for another ``ms``."""

    def unbeat(self, worker: str) -> None:
        """A worker says goodbye."""

    def workers(self) -> dict[str, bytes]:
        """What the living workers say, by id."""

    def listen(self, heard: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        """Call ``heard`` with every message on the control channel until ``stopped()``."""

    def session_beat(self, sid: str, says: bytes, ms: int | None) -> None:
        """A session lives for another ``ms`` (None: until it says goodbye)."""

    def end_session(self, sid: str) -> None:
        """A session says goodbye."""

    def run_id(self) -> str:
        """Identifies one start of the server."""

    def close_connections(self) -> None:
        """Drop all connections; the store reconnects when used again."""
