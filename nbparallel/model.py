"""The words of the design as frozen data: what travels between planning, store, client and views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = ["Block", "Chunk", "Details", "ErrorRecord", "FailureGroup", "JobState", "Lane", "Snapshot", "WorkerInfo"]

#: Version of keys, scripts, messages and blobs; raised whenever one of them changes.
PROTOCOL_VERSION = 1
#: The oldest version that understands what this one writes, and whose writing this one understands; raised only by
#: changes that cannot be made otherwise. Client and workers may differ as long as each is in the other's range, so
#: that a cluster can be upgraded a machine at a time.
OLDEST_PROTOCOL = 1

JobState = Literal["starting", "running", "done", "failed", "cancelled"]


class Chunk(NamedTuple):
    """A run of consecutive items, [lo, hi), as it is submitted to the store.

    ``blob`` is the id of the payload that holds these items (and maybe others), ``attempt`` counts from 1.
    """

    id: str
    lo: int
    hi: int
    attempt: int
    blob: str


class ErrorRecord(NamedTuple):
    """Why one item failed; plain data, so that it can always be sent and read.

    Attributes:
        kind: ``raised`` (by the function), ``item`` (could not be unpickled), ``result`` (could not be
            pickled), ``timeout``, ``crashed``, ``lost`` or ``interrupted``.
        type_name: qualified name of the exception's type.
        message: ``str`` of the exception, bounded.
        item: short repr of the item.
        traceback: formatted remote traceback with source lines, bounded.
        pickled: the pickled exception, or ``b""`` when it could not be pickled and unpickled.
    """

    kind: str
    type_name: str
    message: str
    item: str
    traceback: str
    pickled: bytes = b""


@dataclass(slots=True)
class Block:
    """The outcomes of a run of consecutive items, as one flush of a worker process reports them.

    The values stay encoded until somebody reads them: the collecting thread stays fast, results take little
    memory, and can be spilled to disk as they are.

    Attributes:
        lo: index of the first item.
        count: number of items.
        body: the values, encoded by ``pickling.dump`` as one list of ``count``, with None at failed places; in parts
            on their way out of a worker.
        errors: index of item → error.
        attempt: which attempt this was, from 1.
        worker: ``host:pid`` of the worker process.
        started: when the first item started, seconds since the epoch by the worker's clock.
        seconds: running time of each item, or of all of them together when it has one entry.
        output: (index, stream name, text) of what the items printed or logged.
    """

    lo: int
    count: int
    body: bytes | memoryview | list[bytes | bytearray | memoryview]
    errors: dict[int, ErrorRecord] = field(default_factory=dict)
    attempt: int = 1
    worker: str = ""
    started: float = 0.0
    seconds: list[float] = field(default_factory=list)
    output: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def hi(self) -> int:
        """Index after the last item."""
        return self.lo + self.count


class WorkerInfo(NamedTuple):
    """What a worker says of itself in its beat; ``versions`` as ``pickling.versions`` has them."""

    id: str
    host: str
    processes: int
    queues: tuple[str, ...]
    versions: tuple[str, str, int, int]
    running: Mapping[str, str] = {}
    round_trip: float = 0.0

    @property
    def python(self) -> str:
        """The version of its Python, major and minor."""
        return self.versions[0]


class Lane(NamedTuple):
    """What one worker process did for a job, and does now.

    Attributes:
        worker: ``host:pid``.
        item: index of the item that it runs, as far as its reports tell, or None.
        heard: when it last reported, in seconds since the job started.
        items: items that it finished.
        busy: how busy it was in each ``Details.lane_seconds`` since the job started: a byte each, 0 to 255.
    """

    worker: str
    item: int | None
    heard: float
    items: int
    busy: bytes


class FailureGroup(NamedTuple):
    """Failures of one type at one place of the code.

    Attributes:
        type_name: qualified name of the exception's type.
        place: the innermost frame, in words, or ``""``.
        many: how many items failed so.
        examples: the first of them, as (index, repr of the item, message).
        traceback: the remote traceback of the first.
    """

    type_name: str
    place: str
    many: int
    examples: tuple[tuple[int, str, str], ...]
    traceback: str


@dataclass(frozen=True, slots=True)
class Details:
    """What a rich view draws beside the counts; everything in it is bounded, whatever the size of the job.

    Attributes:
        cells: the map of the job: a byte for each run of ``cell_items`` items. Its low four bits say how much
            is done (0 nothing, 15 all); 16: submitted, 32: runs now, 64: holds failed items, 128: they are more
            than half of it.
        cell_items: items a cell stands for.
        lanes: the worker processes, by name.
        lane_seconds: the time that one byte of a lane stands for.
        more_lanes: worker processes that are not among them.
        durations: how many items took how long: four counts a decade, the first from 1 µs on.
        slowest: the slowest items as (index, seconds, worker), slowest first.
        failures: the failures by type and place, the most frequent first.
        more_failures: failures in groups that are not among them.
        output: the last of what the items wrote, as (index, stream name, text).
        output_cut: characters of output that are not among it.
    """

    cells: bytes = b""
    cell_items: int = 1
    lanes: tuple[Lane, ...] = ()
    lane_seconds: float = 0.1
    more_lanes: int = 0
    durations: tuple[int, ...] = ()
    slowest: tuple[tuple[int, float, str], ...] = ()
    failures: tuple[FailureGroup, ...] = ()
    more_failures: int = 0
    output: tuple[tuple[int, str, str], ...] = ()
    output_cut: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An immutable picture of a job; all that a progress view is given.

    Attributes:
        total: number of items, or None when the input has no length.
        done: items with a final outcome, failed ones included.
        running: items that a worker process runs now (an estimate, at most one a slot).
        waiting: items read from the input that neither run nor are done.
        retried: items that were tried again.
        rate: items per second lately, or None when unknown.
        eta: seconds until the end, or None when unknown.
        elapsed: seconds since the job started.
        busy: sum of the running times of all items done, in seconds.
        chunks: chunks submitted so far.
        reason: what the job waits for, in words, or ``""``.
        errors: the first failures as (index, type name, message).
        details: what a rich view draws beside these, or None.
    """

    id: str
    name: str
    state: JobState
    total: int | None
    done: int
    failed: int
    running: int
    waiting: int
    retried: int
    rate: float | None
    eta: float | None
    elapsed: float
    busy: float
    chunks: int
    reason: str = ""
    errors: tuple[tuple[int, str, str], ...] = ()
    details: Details | None = None

    @property
    def finished(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self.state in ("done", "failed", "cancelled")
