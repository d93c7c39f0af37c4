"""What a worker process holds for longer than a chunk: large functions and shared values, and when it lets go of them.

``jobs.py`` and the user's functions read values here; ``turn.py`` asks what is over, when it has time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import envelope, shared
from ..errors import JobError, WireError
from ..pickling import load
from ..shared import Core
from ..store.protocol import Store

__all__ = ["SharedValues"]


class SharedValues:
    """The shared values of one worker process, which it loads once each.

    Args:
        persist: repeats a call while the store is away.
    """

    def __init__(
        self,
        store: Store,
        key: bytes,
        depot: envelope.Depot | None,
        persist: Callable[[Callable[[], bytes | None]], bytes | None],
    ) -> None:
        self._store, self._key, self._depot, self._persist = store, key, depot, persist

    def fetch(self, core: Core) -> Any:
        """The value.

        Raises:
            JobError: the cluster does not have it; the message says what to do.
        """
        sealed = self._persist(lambda: self._store.get_shared(core.id))
        try:
            if sealed is None:
                raise WireError("the cluster does not have it")
            where = envelope.place(self._store.prefix, "shared", core.id)
            body = envelope.open_body(self._key, where, sealed, self._depot)
        except WireError as error:
            raise JobError(
                f"the shared value ({core}) cannot be had on this worker: {error}. Its handle was closed or dropped, "
                "or its client is gone: keep the handle that share() returned until the jobs that use it have ended"
            ) from None
        return load(body)

    def let_go(self) -> bool:
        """Hold nothing more of what was given up; whether that was something. Raises ClusterError."""
        ids = shared.loaded()
        gone = [id for id, there in zip(ids, self._store.has_shared(ids), strict=True) if not there] if ids else []
        for id in gone:
            shared.let_go(id)
        return bool(gone)
