"""nbparallel: a parallel map for people in notebooks, on Celery.

The path of one item::

    notebook cell                    client threads                        worker machine
    pmap(fn, items)
      └ Job ──► RunningJob: reads items, asks the Planner for a chunk ◄── measured durations ───┐
                 envelope: cloudpickle + buffers + MAC                                          │
                 store: function once a job; chunks, pending                                    │
                 celery: a ticket ──► take_turn ──► Child.turn: claims a chunk                  │
                                                    ChunkRun: item by item                      │
                 Session's collector ◄── the job's stream ◄── Blocks of outcomes, every ≤100 ms ┘
      ┌───────────┘ Results: deduplicated, ordered, retried
      ├► Job: iterate / result / await / cancel
      └► Snapshot (≤10 a second) ► progress views

Importing this package loads neither celery nor redis; what is used is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import attach, jobs, pmap, pstarmap, share
    from .client.job import Job
    from .cluster.handle import Cluster, connect
    from .errors import (
        ClusterError,
        ConnectionFailed,
        ItemError,
        ItemTimeout,
        JobCancelled,
        JobError,
        KeyMismatch,
        NbparallelError,
        RemoteError,
        ResultDropped,
        ResultNotReady,
        SerializationError,
        StartupFailed,
        StoreFull,
        UsageError,
        VersionMismatch,
        WorkerCrashed,
        WorkerLost,
    )
    from .executor import Executor
    from .forkjoin import ForkJoin
    from .model import Snapshot
    from .points import grid, sample, zipped
    from .policies import RetryPolicy
    from .pool import Pool
    from .shared import Shared
    from .sweeps import sweep

__all__ = [
    "Cluster",
    "ClusterError",
    "ConnectionFailed",
    "Executor",
    "ForkJoin",
    "ItemError",
    "ItemTimeout",
    "Job",
    "JobCancelled",
    "JobError",
    "KeyMismatch",
    "NbparallelError",
    "Pool",
    "RemoteError",
    "ResultDropped",
    "ResultNotReady",
    "RetryPolicy",
    "SerializationError",
    "Shared",
    "Snapshot",
    "StartupFailed",
    "StoreFull",
    "UsageError",
    "VersionMismatch",
    "WorkerCrashed",
    "WorkerLost",
    "attach",
    "connect",
    "grid",
    "jobs",
    "load_ipython_extension",
    "pmap",
    "pstarmap",
    "sample",
    "share",
    "sweep",
    "unload_ipython_extension",
    "zipped",
]

__version__ = "0.1.0"

_HOMES = {
    "Cluster": "cluster.handle",
    "Executor": "executor",
    "ForkJoin": "forkjoin",
    "Job": "client.job",
    "Pool": "pool",
    "RetryPolicy": "policies",
    "Shared": "shared",
    "Snapshot": "model",
    "connect": "cluster.handle",
    "grid": "points",
    "attach": "api",
    "jobs": "api",
    "pmap": "api",
    "pstarmap": "api",
    "sample": "points",
    "share": "api",
    "sweep": "sweeps",
    "zipped": "points",
}


def load_ipython_extension(ipython: Any) -> None:
    """What ``%load_ext nbparallel`` does."""
    from . import magics

    magics.load_ipython_extension(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """What ``%unload_ext nbparallel`` does."""
    from . import magics

    magics.unload_ipython_extension(ipython)


def __getattr__(name: str) -> Any:
    if name == "app":  # what ``celery -A nbparallel worker`` looks for
        from .worker.main import app_from_environment

        globals()["app"] = app = app_from_environment()
        return app
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
