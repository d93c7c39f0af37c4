"""Configuration: argument, then environment (``NBPARALLEL_*``), then default.

All times are in seconds, all sizes in bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import UsageError

__all__ = ["KEY_BYTES", "Settings", "read_key"]

#: Least length of a key, in bytes.
KEY_BYTES = 16

#: Prefix of the environment variables; the rest is a field's name in upper case.
ENVIRONMENT_PREFIX = "NBPARALLEL_"


def _setting(default: Any, help: str, *, low: float | None = None, json: bool = False) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "json": json})


@dataclass(frozen=True)
class Settings:
    """What can be configured; immutable.

    >>> from nbparallel.settings import Settings
    >>> Settings.load({"turn_seconds": 2}, environ={"NBPARALLEL_LEASE_SECONDS": "20"}).lease_seconds
    20.0
    """

    url: str | None = _setting(None, "store (and broker) of a cluster that runs elsewhere; none: embedded")
    broker_url: str | None = _setting(None, "broker, when it is not the store")
    broker_options: str = _setting(
        "{}", 'the broker\'s options for Celery, as JSON: {"region": "eu-central-1"}', json=True
    )
    key_file: str | None = _setting(None, "file that holds the cluster's key")
    namespace: str = _setting("default", "prefix of all keys in the store; separates users of one server")
    queue: str = _setting("nbparallel", "Celery queue that carries the tickets")
    workers: int = _setting(0, "worker processes of the embedded cluster; 0: one per usable core", low=0)
    chunk_seconds: float = _setting(0.05, "duration that an automatic chunk aims at", low=0.001)
    flush_seconds: float = _setting(0.1, "longest that a finished outcome waits before it is reported", low=0.001)
    flush_bytes: int = _setting(1 << 20, "outcomes above this size are reported at once", low=1)
    turn_seconds: float = _setting(1.5, "how long one ticket lets a worker process work", low=0.01)
    linger_seconds: float = _setting(0.05, "how long an idle turn waits for more work of its session", low=0.0)
    lease_seconds: float = _setting(10.0, "time after which a vanished worker's chunk runs elsewhere", low=0.1)
    renew_seconds: float = _setting(2.0, "interval between renewals of a lease", low=0.01)
    cancel_grace: float = _setting(1.0, "time between a soft interrupt and the kill of the process", low=0.0)
    session_grace: float = _setting(60.0, "time that a remote cluster works on without its client", low=1.0)
    result_ttl: float = _setting(86400.0, "how long the results of an ended job stay in the store", low=1.0)
    kept_bytes: int = _setting(256 << 20, "results of a job above this size leave the store, the oldest first", low=1)
    part_bytes: int = _setting(256 << 20, "on several machines: bodies above this size go in parts", low=1)
    result_bytes: int = _setting(256 << 20, "results above this size move from the client's memory to disk", low=0)
    crash_limit: int = _setting(3, "times that an item may kill its worker process", low=1)
    lost_limit: int = _setting(10, "times that an item's worker may vanish", low=1)
    connect_seconds: float = _setting(3.0, "time in which a server must answer", low=0.1)
    start_seconds: float = _setting(30.0, "time in which the embedded cluster must be up", low=1.0)
    threads_per_worker: int = _setting(1, "threads of BLAS and OpenMP in a worker process; 0: leave alone", low=0)
    progress: str = _setting("auto", "progress view: auto, on or off")

    @classmethod
    def load(cls, arguments: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings in force: arguments (those not None), then environment, then defaults.

        Raises:
            UsageError: an unknown name, or a value of the wrong type or below its minimum.
        """
        return cls(**{name: value for name, (value, _) in _resolve(arguments or {}, environ).items()})

    @classmethod
    def explain(
        cls, arguments: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
    ) -> list[tuple[str, Any, str, str]]:
        """Rows of (name, value, where it comes from, help) for every setting."""
        helps = {spec.name: spec.metadata["help"] for spec in fields(cls)}
        resolved = _resolve(arguments or {}, environ)
        return [(name, value, source, helps[name]) for name, (value, source) in resolved.items()]


def _resolve(arguments: Mapping[str, Any], environ: Mapping[str, str] | None) -> dict[str, tuple[Any, str]]:
    environ = os.environ if environ is None else environ
    specs = {spec.name: spec for spec in fields(Settings)}
    unknown = sorted(set(arguments) - set(specs))
    if unknown:
        raise UsageError(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(specs))}")
    resolved = {}
    for name, spec in specs.items():
        variable = ENVIRONMENT_PREFIX + name.upper()
        if arguments.get(name) is not None:
            resolved[name] = (_convert(spec, arguments[name], f"setting {name}"), "argument")
        elif environ.get(variable):
            resolved[name] = (_convert(spec, environ[variable], f"environment variable {variable}"), "environment")
        else:
            resolved[name] = (spec.default, "default")
    return resolved


def _convert(spec: Any, value: Any, where: str) -> Any:
    if spec.metadata["json"]:
        return _json_object(value, where)
    kind = str if spec.type.startswith("str") else {"int": int, "float": float}[spec.type]
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise UsageError(f"{where} must be of type {kind.__name__}, not {value!r}")
    try:
        converted = kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{where} must be of type {kind.__name__}, not {value!r}") from None
    low = spec.metadata["low"]
    if low is not None and not converted >= low:  # also refuses nan
        raise UsageError(f"{where} must be at least {low}, not {value!r}")
    return converted


def _json_object(value: Any, where: str) -> str:
    """A JSON object as text; a mapping will do as well."""
    try:
        data = json.loads(value) if isinstance(value, str) else value
        if not isinstance(data, Mapping):
            raise TypeError
        return json.dumps(dict(data))
    except (TypeError, ValueError):
        raise UsageError(f'{where} must be a JSON object such as {{"region": "eu-central-1"}}, not {value!r}') from None


def read_key(path: str) -> bytes:
    """The cluster's key from a file; white space around it does not count.

    Raises:
        UsageError: the file cannot be read, or holds less than 16 bytes.
    """
    try:
        with open(path, "rb") as file:
            key = file.read(4096).strip()
    except OSError as error:
        raise UsageError(f"the key file {path} cannot be read: {error.strerror}") from None
    if len(key) < KEY_BYTES:
        raise UsageError(f"the key file {path} holds {len(key)} bytes; at least {KEY_BYTES} random ones are needed")
    return key[:64]
