"""What a worker is told at its start: where the store and the broker are, the key, the queues."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import StartupFailed, UsageError
from ..settings import Settings, read_key
from ..store.urls import broker_url, store_url

__all__ = ["MOST_CHILDREN", "WorkerConfig", "check_requirements", "parse_autoscale"]

#: Most children of one worker.
MOST_CHILDREN = 1024


@dataclass(frozen=True)
class WorkerConfig:
    """A worker's configuration.

    Attributes:
        url: broker, in Celery's spelling.
        store_url: Redis or Valkey.
        key: the cluster's secret.
        concurrency: number of worker processes; 0: one per usable core.
        autoscale: least and most worker processes, in place of a fixed number.
        queues: Celery queues to take tickets from.
        depot: directory for large blobs, on a cluster of one machine; else "".
        init: pickled function that each process runs once, or None.
    """

    url: str
    store_url: str
    key: bytes
    concurrency: int = 0
    autoscale: tuple[int, int] | None = None
    queues: tuple[str, ...] = ()
    namespace: str = "default"
    init: bytes | None = None
    depot: str = ""
    settings: Settings = field(default_factory=Settings)

    @classmethod
    def from_settings(cls, settings: Settings, queues: Sequence[str] = ()) -> WorkerConfig:
        """From arguments and environment variables, for a worker that somebody starts by hand.

        Raises:
            UsageError: the URL or the key is missing, or the key file is of no use.
        """
        if settings.url is None:
            raise UsageError(
                "a worker needs the URL of its cluster: pass --url redis://host:6379/0 or set NBPARALLEL_URL"
            )
        if settings.key_file is None:
            raise UsageError(
                "a worker needs its cluster's key: pass --key-file or set NBPARALLEL_KEY_FILE; make one with: "
                'python -c "import secrets; print(secrets.token_hex(32))" > nbparallel.key'
            )
        return cls(
            url=broker_url(settings.broker_url or settings.url),
            store_url=store_url(settings.url),
            key=read_key(settings.key_file),
            concurrency=settings.workers,
            queues=tuple(queues) or (settings.queue,),
            namespace=settings.namespace,
            settings=settings,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkerConfig:
        """From what the guard hands to an embedded worker."""
        return cls(
            url=data["url"],
            store_url=data["store_url"],
            key=bytes.fromhex(data["key"]),
            concurrency=data["concurrency"],
            queues=tuple(data["queues"]),
            namespace=data["namespace"],
            init=bytes.fromhex(data["init"]) if data.get("init") else None,
            depot=data.get("depot", ""),
            settings=Settings.load(data.get("settings", {}), {}),
        )


def parse_autoscale(text: str) -> tuple[int, int]:
    """The bounds in ``MIN,MAX``.

    Raises:
        UsageError: they are no such bounds.
    """
    least, comma, most = text.partition(",")
    bounds = [int(number) for number in (least, most) if number.strip().isdecimal()]
    if not comma or len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1] <= MOST_CHILDREN:
        raise UsageError(
            f"--autoscale must be MIN,MAX such as 1,8 with 1 <= MIN <= MAX <= {MOST_CHILDREN}, not {text!r}"
        )
    return bounds[0], bounds[1]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def check_requirements(required: Sequence[str]) -> None:
    """Make sure that packages are installed, in versions that do.

    Args:
        required: as pip takes them, such as ``pandas>=2``.

    Raises:
        UsageError: one cannot be read.
        StartupFailed: naming all that is missing or has another version, and what to do.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    lacking = []
    for text in required:
        try:
            asked = Requirement(text)
        except InvalidRequirement as error:
            raise UsageError(
                f'--require {text!r} must be as for pip, such as "pandas>=2": {_first_line(error)}'
            ) from None
        if asked.marker is not None and not asked.marker.evaluate():
            continue
        try:
            found = version(asked.name)
        except PackageNotFoundError:
            lacking.append((text, f"{asked.name} is not installed"))
            continue
        if not asked.specifier.contains(found, prereleases=True):
            lacking.append((text, f"{asked.name} is {found}"))
    if lacking:
        wanted = " ".join(f"'{text}'" for text, _ in lacking)
        reasons = "; ".join(f"{text} is required, but {why}" for text, why in lacking)
        raise StartupFailed(
            f"{reasons}. Install it here, then start the worker again: {sys.executable} -m pip install {wanted}"
        )
