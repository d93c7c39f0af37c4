"""What a worker process keeps of a job: its function, loaded once, and the rules it runs under.

Receives sealed blobs from the store, hands a ``LoadedJob`` to ``turn.py``.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..envelope import Depot, Payload, open_body, open_meta, open_payload, place
from ..errors import WireError
from ..pickling import check_versions, load_function
from ..seeding import Seeded, reseed
from ..shared import load, noting
from ..store import keys
from ..store.protocol import Claim

__all__ = ["JOBS_KEPT", "LoadedJob", "LoadedJobs", "load_job"]

#: Functions that a process keeps; a turn of another job in between must not unload them.
JOBS_KEPT = 8

#: Functions of at least so many bytes are not kept when their job is over.
LARGE = 1 << 20


@dataclass(slots=True)
class LoadedJob:
    """A job as a worker process knows it.

    ``refusal`` says why it cannot run here at all; ``large``: it is let go of when the job is over; ``item_seconds`` is
    how long its items took lately, None at first, ``value_bytes`` how large their outcomes were, 0 at first.
    """

    job: str
    sid: str
    function: Callable[..., Any]
    options: dict[str, Any]
    refusal: str = ""
    seeded: Seeded | None = None
    last: Payload | None = None
    large: bool = False
    item_seconds: float | None = None
    value_bytes: float = 0.0

    @property
    def group(self) -> str:
        """Whose further work a process waits for that ran some of this job."""
        return keys.group(self.sid, self.options.get("queue", ""))

    def payload(self, key: bytes, blob: str, sealed: bytes | None, depot: Depot | None = None) -> Payload:
        """The items of a blob; without bytes, those of the blob that was used last.

        Raises:
            LookupError: the client deleted it, as it has all outcomes; if not, it will send the items again.
        """
        if sealed is not None:
            self.last = None  # free it before the next is unpickled
            with noting() as cores:
                self.last = open_payload(key, self.job, blob, sealed, depot)
            load(cores.values())
        elif self.last is None or self.last.blob != blob:
            raise LookupError(f"the payload {blob} of job {self.job} is no longer there")
        return self.last


class LoadedJobs(OrderedDict[str, LoadedJob]):
    """The jobs that a worker process has loaded, by key prefix; the one that was used last is the last."""

    def __init__(self) -> None:
        super().__init__()
        self._used = ""

    def use(self, loaded: LoadedJob) -> LoadedJob:
        """Begin with a chunk of this job."""
        self[loaded.job] = loaded
        self.move_to_end(loaded.job)
        while len(self) > JOBS_KEPT:
            self.popitem(last=False)
        if loaded.job != self._used:
            # Neither the parent's random state, which all children inherit, nor what the job before left of it.
            self._used = loaded.job
            reseed()
            logging.getLogger().setLevel(loaded.options.get("log_level", logging.getLogger().level))
        return loaded

    def large(self) -> list[str]:
        """Those that should go when they are over."""
        return [job for job, loaded in list(self.items()) if loaded.large]

    def blob_of(self, job: str) -> str:
        """Which payload of a job is here; "" when none is."""
        loaded = self.get(job)
        return loaded.last.blob if loaded and loaded.last else ""

    def name_of(self, job: str) -> str:
        """What the user calls a job; "" when it is not here."""
        loaded = self.get(job)
        return str(loaded.options["name"]) if loaded else ""


def load_job(key: bytes, job: str, claim: Claim, depot: Depot | None = None) -> LoadedJob:
    """The job's function and options from the first claim: MACs and versions are checked, and only then unpickled.

    Raises:
        WireError: something was not written with our key for this job.
    """
    sid = claim.sid
    options = open_meta(key, job, claim.meta)
    if options["sid"] != sid:
        raise WireError(f"job {job} was moved to another session")
    refusal = check_versions(options["versions"], "the client", "the worker") or ""
    if refusal:
        return LoadedJob(job, sid, lambda: None, options, refusal)
    body = open_body(key, place(job, "function"), claim.function, depot)
    with noting() as cores:
        function = load_function(body)
    load(cores.values())
    seed = options.get("seed")
    seeded = None if seed is None else Seeded(function, seed, options["rng"])
    return LoadedJob(job, sid, function, options, seeded=seeded, large=len(body) >= LARGE)
