"""Puts shared values on a session's cluster, and takes them away: ``feeding.py`` asks before a job refers to them."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from .. import envelope, pickling
from ..shared import Core, Pickled
from ..store import keys
from ..store.depot import Depot
from ..store.parts import PartsDepot

if TYPE_CHECKING:
    from .session import Session

__all__ = ["LARGE", "Shares", "Uses"]

#: On several machines values and functions of at least so many bytes are fetched once a machine, not once a process.
LARGE = 256 << 10


class Shares:
    """The shared values that a session has on its cluster; thread-safe.

    In the store each is a sealed blob, or the sealed note of where its bytes lie: in a file on one machine, in parts in
    the store on several. They stay until the handle or the session is closed; when the client was killed, for
    ``result_ttl``.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        #: What was put: name and size of its bytes, where they lie beside the note.
        self._put: dict[str, tuple[str, int] | None] = {}
        self._cores: weakref.WeakValueDictionary[str, Core] = weakref.WeakValueDictionary()
        self._tended = time.monotonic()

    @property
    def _ms(self) -> int:
        return int(self._session.settings.result_ttl * 1000)

    def _depot(self) -> Depot | PartsDepot:
        session = self._session
        if isinstance(session.depot, Depot):
            return session.depot
        return PartsDepot(session.store, min(LARGE, session.settings.part_bytes), session.settings.result_ttl)

    def place(self, cores: Iterable[Core]) -> None:
        """Have values on the cluster; those that are there already cost a look.

        Raises:
            ClusterError: the store is away, or full.
            SerializationError: a value was changed since it was shared, and cannot be pickled any more.
        """
        for core in _with_inner(cores):
            if not core.owned:  # somebody else's; workers find it or say that it is gone
                continue
            with self._lock:
                if not self._is_there(core):
                    self._send(core)
                self._cores[core.id] = core
                core.releases[self._session.sid] = partial(self._release, core.id)

    def _is_there(self, core: Core) -> bool:
        if core.id not in self._put or not self._session.store.keep_shared(core.id, self._ms):
            return False
        filed, depot = self._put[core.id], self._depot()
        if filed is None:
            return True
        return depot.has(filed[0]) if isinstance(depot, Depot) else depot.keep(*filed)

    def _send(self, core: Core) -> None:
        session, depot = self._session, self._depot()
        parts = core.frame or pickling.dump_parts(core.value, f"the shared value ({core})")
        where = envelope.place(keys.prefix(session.namespace), "shared", core.id)
        sealed = envelope.seal_body(session.key, where, parts, depot)
        session.store.put_shared(core.id, sealed, self._ms)
        self._put[core.id] = envelope.filed(sealed)
        core.frame = None

    def _release(self, id: str) -> None:
        """Give a value up; may be called by the garbage collector, so nothing here waits."""
        session = self._session
        if os.getpid() != session.pid or session.closed or id not in self._put:
            return
        filed = self._put.pop(id)
        if filed is not None and isinstance(session.depot, Depot):
            session.depot.drop(filed[0])
            filed = None
        session.soon(partial(self._drop, id, filed))

    def _drop(self, id: str, filed: tuple[str, int] | None) -> None:
        if not self._session.is_ready():
            return
        self._session.store.drop_shared([id])
        depot = self._depot()
        if filed is not None and isinstance(depot, PartsDepot):
            depot.drop(*filed)

    def tend(self) -> None:
        """What is used for longer than results are kept stays; called now and then while jobs run."""
        if time.monotonic() - self._tended < self._session.settings.result_ttl / 4:
            return
        self._tended = time.monotonic()
        session, depot = self._session, self._depot()
        for id, filed in list(self._put.items()):
            session.store.keep_shared(id, self._ms)
            if filed is not None and isinstance(depot, PartsDepot):
                depot.keep(*filed)
        if isinstance(session.depot, PartsDepot):
            session.depot.keep_all()

    def close(self, keep: set[str]) -> None:
        """The session ends; what jobs use that go on without it stays for ``result_ttl``."""
        for core in list(self._cores.values()):
            core.releases.pop(self._session.sid, None)
        for id in [id for id in self._put if id not in keep]:
            self._drop(id, self._put.pop(id))


def _with_inner(cores: Iterable[Core]) -> Iterator[Core]:
    """Values that others refer to come before those."""
    for core in cores:
        yield from _with_inner(core.inner)
        yield core


class Uses:
    """The shared values that one job refers to: on the cluster before it does, and not freed until it has ended.

    Args:
        shares: those of its session.
        function: the job's, as it was pickled.
    """

    def __init__(self, shares: Shares, function: bytes) -> None:
        self._shares = shares
        self._lock = threading.Lock()
        self._cores: dict[str, Core] = {}
        self._placed: set[str] = set()
        self._active: set[str] = set()
        self._over = False
        self.add(function.cores if isinstance(function, Pickled) else {})

    @property
    def ids(self) -> set[str]:
        """Of the values that the job uses now."""
        with self._lock:
            cores = [self._cores[id] for id in self._active]
        return {core.id for core in _with_inner(cores)}

    @property
    def waiting(self) -> bool:
        """Whether some are to be placed."""
        return len(self._placed) < len(self._cores)

    def add(self, cores: dict[str, Core]) -> None:
        """The job refers to these, too."""
        with self._lock:
            if not self._over:
                self._add(cores)

    def _add(self, cores: dict[str, Core]) -> None:
        for id, core in cores.items():
            self._cores[id] = core
            if id not in self._active:
                self._active.add(id)
                core.begin_use()

    def again(self) -> None:
        """The store may have lost them, or the job begins once more."""
        with self._lock:
            self._over = False
            self._placed.clear()
            self._add(self._cores.copy())

    def place(self) -> None:
        """Have all of them on the cluster; raises ClusterError when that cannot be done now."""
        with self._lock:
            missing = [core for id, core in self._cores.items() if id not in self._placed]
        for core in missing:
            self._shares.place([core])
            self._placed.add(core.id)

    def end(self, again: bool) -> None:
        """The job has ended; ``again``: what failed may be run once more."""
        with self._lock:
            self._over = True
            ended = [self._cores[id] for id in self._active]
            self._active.clear()
            if not again:
                self._cores.clear()
                self._placed.clear()
        for core in ended:
            core.end_use()
