"""What the user holds of a cluster: ``Cluster`` (embedded) or what ``connect`` returns; each carries a session."""

from __future__ import annotations

import atexit
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

from .. import pickling
from ..client.backend import read_workers
from ..client.session import Session
from ..errors import ConnectionFailed, UsageError
from ..settings import KEY_BYTES, Settings, read_key
from ..shared import Pickled
from ..store.real import RedisStore
from ..store.urls import broker_url as kombu_url
from ..store.urls import hide_password, store_url
from .embedded import EmbeddedCluster

#: Linger of an embedded cluster's children, in seconds, unless it was set.
EMBEDDED_LINGER = 3600.0

__all__ = [
    "Cluster",
    "RemoteCluster",
    "backlog",
    "connect",
    "current_cluster",
    "default_cluster",
    "describe",
    "set_default",
    "stop_default",
]


class _EmbeddedBackend:
    """The embedded cluster as a session sees it; every ``connect`` starts it anew."""

    embedded = True

    def __init__(self, make: Callable[[], EmbeddedCluster], settings: Settings) -> None:
        self._make, self._settings = make, settings
        self._cluster = make()
        self._started = False

    def connect(self) -> _Place:
        if self._started:
            key = self._cluster.key  # kept: what was sealed for the old one is sent again to the new one
            self._cluster.stop()
            self._cluster = self._make()
            self._cluster.key = key
        self._started = True
        self._cluster.start()
        # While server and workers come up, this process imports what it will need.
        from .. import celery  # noqa: F401

        self._cluster.wait_server(self._settings.start_seconds)
        cluster = self._cluster
        return _Place(cluster.store_url, cluster.url, cluster.key, str(cluster.depot))

    def alive(self) -> bool:
        return self._cluster.alive()

    def processes(self) -> int:
        return self._cluster.workers

    def stop(self) -> None:
        if self._started:
            self._cluster.stop()


class _RemoteBackend:
    """A cluster that runs elsewhere as a session sees it."""

    embedded = False

    def __init__(self, place: _Place) -> None:
        self._place = place

    def connect(self) -> _Place:
        return self._place

    def alive(self) -> bool:
        return True

    def processes(self) -> int:
        return 0

    def stop(self) -> None:
        """Nothing of it is ours."""


class _Place:
    def __init__(self, store_url: str, broker_url: str, key: bytes, depot: str = "") -> None:
        self.store_url, self.broker_url, self.key, self.depot = store_url, broker_url, key, depot


class _Handle:
    """What both kinds share."""

    _session: Session

    @property
    def session(self) -> Session:
        """The client's session, started on first use."""
        self._session.check_usable()
        self._session.start()
        return self._session

    def stop(self) -> None:
        """Cancel what runs here and disconnect; an embedded cluster ends. Calling it again does nothing."""
        self._session.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Cluster(_Handle):
    """A server and worker processes on this machine, which end with this process.

    The first ``pmap`` makes one by itself; make your own to choose the number of workers, or to run ``init`` in each.

    Args:
        workers: worker processes; 0: one per usable core (affinity and cgroup limits count).
        init: called once in each worker process before it runs anything: load models, open connections.
        **settings: any of ``Settings``, such as ``lease_seconds``.

    Raises:
        UsageError: an argument is wrong.
        SerializationError: ``init`` cannot be pickled.

    >>> from nbparallel import Cluster, pmap
    >>> with Cluster(workers=1) as cluster:
    ...     list(pmap(abs, [-1, -2], session=cluster))
    [1, 2]
    """

    def __init__(self, workers: int = 0, *, init: Callable[[], Any] | None = None, **settings: Any) -> None:
        if init is not None and not callable(init):
            raise UsageError(f"init must be a function without arguments, not {init!r}")
        in_force = Settings.load(settings)
        if in_force.linger_seconds == Settings.linger_seconds:
            # Nobody else's work waits for these processes, so that one may well wait for this session's next call.
            in_force = replace(in_force, linger_seconds=EMBEDDED_LINGER)
        blob = None if init is None else pickling.dump_function(init)
        if isinstance(blob, Pickled):
            raise UsageError("init runs before any shared value is there; read handle.value in the function of a job")
        self._backend = _EmbeddedBackend(lambda: EmbeddedCluster(workers, init=blob, settings=in_force), in_force)
        self._session = Session(self._backend, in_force)
        atexit.register(self.stop)

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        return self._backend.processes()

    def stop(self) -> None:
        """Cancel what runs and end the server and the workers. Calling it again does nothing."""
        atexit.unregister(self.stop)
        super().stop()

    def __enter__(self) -> Cluster:
        self.session  # noqa: B018  (starts it)
        return self

    def __repr__(self) -> str:
        state = "stopped" if self._session.closed else f"{self.workers} worker processes"
        return f"<Cluster {state}>"


class RemoteCluster(_Handle):
    """A connection to a cluster that runs elsewhere; made by ``connect``."""

    def __init__(self, place: _Place, settings: Settings) -> None:
        self._shown = hide_password(place.store_url)
        self._session = Session(_RemoteBackend(place), settings)
        atexit.register(self.stop)

    def stop(self) -> None:
        """Cancel what this process runs there and disconnect. Calling it again does nothing."""
        atexit.unregister(self.stop)
        super().stop()

    def __enter__(self) -> RemoteCluster:
        return self

    def __repr__(self) -> str:
        return f"<RemoteCluster {self._shown}{' disconnected' if self._session.closed else ''}>"


def connect(
    url: str,
    *,
    key: bytes | str | None = None,
    key_file: str | None = None,
    broker_url: str | None = None,
    broker_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> RemoteCluster:
    """Connect to a cluster that runs elsewhere.

    Args:
        url: its Redis or Valkey, such as ``redis://:password@host:6379/0``, ``rediss://...``, or Sentinels that know
            where it is: ``sentinel://:password@one:26379;sentinel://two:26379/0?master_name=mymaster``.
        key: the cluster's secret, at least 16 bytes, the same as the workers'.
        key_file: a file that holds it instead.
        broker_url: the broker when it is not the store, such as ``amqp://...`` or ``sqs://``.
        broker_options: what Celery calls the broker's transport options, such as ``{"region": "eu-central-1"}``; the
            workers need the same, from ``NBPARALLEL_BROKER_OPTIONS`` or ``--broker-options`` as JSON.
        **settings: any of ``Settings``, such as ``queue`` or ``namespace``.

    Raises:
        UsageError: the key is missing or too short, or a setting is wrong.
        ConnectionFailed: nothing answers there within ``connect_seconds``, or it is the wrong kind of server; the
            message names the URL, with its password hidden.
    """
    if type(url) is not str or not url:
        raise UsageError(f"url must be text such as redis://:password@host:6379/0, not {url!r}")
    broker = {"broker_url": broker_url, "broker_options": broker_options}
    in_force = Settings.load({"url": url, "key_file": key_file, **broker, **settings})
    if key is not None and key_file is not None:
        raise UsageError("give either key or key_file, not both")
    if key is None:
        if in_force.key_file is None:
            raise UsageError("a cluster needs its key: pass key=..., key_file=..., or set NBPARALLEL_KEY_FILE")
        key = read_key(in_force.key_file)
    secret = key.encode() if isinstance(key, str) else key
    if type(secret) is not bytes or len(secret) < KEY_BYTES:
        raise UsageError(f"key must be at least {KEY_BYTES} bytes, the same as the workers'")
    place = _Place(store_url(url), kombu_url(in_force.broker_url or url), secret[:64])
    RedisStore(place.store_url, in_force.namespace, in_force.connect_seconds).check_server()
    if in_force.broker_url is not None:
        _check_broker(place.broker_url, in_force)
    return RemoteCluster(place, in_force)


def _check_broker(url: str, settings: Settings) -> None:
    if url.startswith(("redis", "sentinel")):  # kombu sets no limit to the time in which it must answer
        RedisStore(url, settings.namespace, settings.connect_seconds).check_server()
        return
    from .. import celery

    app = celery.make_app(url, settings)
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=math.ceil(settings.connect_seconds))
    except Exception as error:  # every transport raises errors of its own library
        shown = hide_password(url)
        raise ConnectionFailed(
            f"the broker at {shown} cannot be reached: {error}. Is it running, and is the URL right?"
        ) from error


# -- the cluster of this process ---------------------------------------------------------------------------------------

_default: Cluster | RemoteCluster | None = None
_default_lock = threading.Lock()


def default_cluster() -> Cluster | RemoteCluster:
    """The cluster that ``pmap`` uses by itself: the one ``NBPARALLEL_URL`` names, else an embedded one."""
    global _default
    with _default_lock:
        if _default is None or _default._session.closed:
            settings = Settings.load()
            _default = connect(settings.url) if settings.url is not None else Cluster()
        return _default


def current_cluster() -> Cluster | RemoteCluster | None:
    """The cluster that ``pmap`` uses by itself, if it is there already."""
    with _default_lock:
        return None if _default is None or _default._session.closed else _default


def set_default(cluster: Cluster | RemoteCluster) -> None:
    """Have ``pmap`` use this cluster by itself; the one before is not stopped."""
    global _default
    with _default_lock:
        _default = cluster


def stop_default() -> None:
    """Stop the cluster that ``pmap`` started by itself, if it did."""
    global _default
    with _default_lock:
        cluster, _default = _default, None
    if cluster is not None:
        cluster.stop()


def _after_fork() -> None:
    """A forked child has no threads of ours and must not touch the parent's cluster: it gets its own when it asks."""
    global _default, _default_lock
    _default, _default_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def backlog(store: RedisStore, queues: Iterable[str] = ()) -> dict[str, int]:
    """Items that were sent or will be and have no outcome, by queue; of jobs without a length, those that were sent.

    Only this tells how much work there is: of a job no more messages wait in its queue than there are processes.

    Args:
        queues: those that are shown even when there is nothing to do on them.
    """
    items = dict.fromkeys(sorted(queues), 0)
    for job in store.backlog():
        with suppress(ValueError, KeyError, TypeError):  # labels are not sealed: anything may stand there
            says = json.loads(job.label)
            total = int(says["total"] or 0)
            end = total if job.stop < 0 else min(total, job.stop)
            queue = str(says["queue"])
            items[queue] = items.get(queue, 0) + job.items + max(0, end - job.upto)
    return items


def describe(settings: Settings) -> dict[str, Any]:
    """What ``nbparallel status`` shows of the cluster that the settings name.

    Raises:
        NbparallelError: it cannot be reached, or the key is wrong.
    """
    if settings.url is None:
        return {"cluster": "embedded: starts with the first pmap", "python": sys.version.split()[0]}
    if settings.key_file is None:
        raise UsageError("set NBPARALLEL_KEY_FILE, or pass --key-file, to see the workers")
    store = RedisStore(settings.url, settings.namespace, settings.connect_seconds)
    store.check_server()
    started = time.monotonic()
    workers, strangers = read_workers(store, read_key(settings.key_file))
    shown = [f"{w.host} ({w.processes} processes; queues {', '.join(w.queues)}; Python {w.python})" for w in workers]
    return {
        "cluster": hide_password(settings.url),
        "answers in": f"{(time.monotonic() - started) * 1000:.1f} ms",
        "workers": shown,
        "backlog": backlog(store, {queue for worker in workers for queue in worker.queues}),
        "workers with another key": len(strangers),
    }
