"""What a session needs of a cluster and of a view, and what workers say of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

from ..envelope import Verdict
from ..errors import ClusterError, ConnectionFailed, JobError, KeyMismatch, NbparallelError, VersionMismatch, WireError
from ..model import Snapshot, WorkerInfo
from ..pickling import check_versions
from ..store.real import RedisStore
from ..wire import unseal

__all__ = ["Backend", "Connection", "View", "connected", "failure_of", "read_workers", "refusal"]


class Connection(Protocol):
    """Where a cluster is."""

    store_url: str
    broker_url: str
    key: bytes
    #: Directory for large blobs, when the workers are on this machine; else "".
    depot: str


class Backend(Protocol):
    """A cluster as a session sees it: the embedded one, or one that runs elsewhere."""

    #: Whether it lives and dies with this process.
    embedded: bool

    def connect(self) -> Connection:
        """Start what is to be started and wait until the store answers."""

    def alive(self) -> bool:
        """Whether it still runs, as far as this process can tell without asking the store."""

    def processes(self) -> int:
        """Number of worker processes when that is known beforehand, else 0."""

    def stop(self) -> None:
        """End what ``connect`` started."""


class View(Protocol):
    """What draws a job's snapshots."""

    def update(self, snapshot: Snapshot) -> None: ...

    def close(self, snapshot: Snapshot) -> None: ...


def connected(connect: Callable[[], None], again: Callable[[ConnectionFailed], bool]) -> NbparallelError | None:
    """Connect to a cluster; returns why that cannot be done. ``again``: whether to try once more after an error."""
    while True:
        try:
            connect()
        except ConnectionFailed as error:
            if not again(error):
                return error
        except NbparallelError as error:
            return error
        except Exception as error:
            failure = ClusterError(f"the cluster did not start: {error!r}")
            failure.__cause__ = error
            return failure
        else:
            return None


def read_workers(store: RedisStore, key: bytes) -> tuple[list[WorkerInfo], list[str]]:
    """The workers that live and hold our key, and the ids of those whose beat has another key."""
    workers, strangers = [], []
    for id, sealed in store.workers().items():
        try:
            says = json.loads(bytes(unseal(key, ("worker", id), sealed, any_version=True)))
        except WireError:
            strangers.append(id)
            continue
        workers.append(
            WorkerInfo(
                id,
                says["host"],
                says["processes"],
                tuple(says["queues"]),
                tuple(says["versions"]),
                says["running"],
                says.get("round_trip", 0.0),
            )
        )
    return workers, strangers


def refusal(workers: list[WorkerInfo], strangers: list[str]) -> KeyMismatch | VersionMismatch | None:
    """Why none of a cluster's workers can run what we send, if that is so.

    Args:
        workers: those that hold our key.
        strangers: ids of the others.
    """
    if strangers and not workers:
        return KeyMismatch("the workers of this cluster hold another key; give both sides the same key file")
    mismatches = [check_versions(worker.versions, f"worker {worker.host}") for worker in workers]
    return VersionMismatch(mismatches[0]) if mismatches and all(mismatches) else None


def failure_of(verdict: Verdict, name: str) -> VersionMismatch | JobError:
    """Why a job of that name failed as a whole."""
    if verdict.kind == "versions":
        return VersionMismatch(verdict.reason)
    return JobError(f"job {name!r} failed on worker {verdict.worker}: {verdict.reason}")
