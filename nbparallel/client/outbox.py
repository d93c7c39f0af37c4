"""Chunks of one job on their way to the store: ``running.py`` puts them in, several threads of the client send them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from ..model import Chunk
from ..store.protocol import Submission, Submitted

__all__ = ["Outbox"]

#: Chunks, and bytes of payload, that go to the store in one call.
SUBMIT_CHUNKS, SUBMIT_BYTES = 64, 8 << 20

#: Makes the call that submits a batch; it is repeated as it is when its reply was lost.
Prepare = Callable[[Sequence[Submission]], "Callable[[], Submitted]"]


class Outbox:
    """Sends in the order in which chunks were put in: the store takes a lower serial for a repeated call.

    Args:
        guard: the job's condition, held by those who call ``put`` and ``clear``.
    """

    def __init__(self, guard: threading.Condition) -> None:
        self._guard = guard
        self._sending = threading.Lock()
        self._queue: deque[Submission] = deque()
        self._call: tuple[list[Submission], Callable[[], Submitted]] | None = None
        self._serial = 0

    def put(self, lo: int, hi: int, attempt: int, blob: str, sealed: bytes) -> int:
        """A chunk more; ``sealed`` is empty when its payload was put in before. The size of the payload."""
        self._serial += 1
        self._queue.append(Submission(self._serial, Chunk(f"c{self._serial:x}", lo, hi, attempt, blob), sealed))
        return len(sealed)

    def clear(self) -> None:
        """What waits is not to be sent any more."""
        self._queue.clear()
        self._call = None

    def send(self, prepare: Prepare, sent: Callable[[Sequence[Submission], Submitted], None]) -> None:
        """Send all that waits.

        Raises:
            ClusterError: the store is away; call again to go on.
        """
        with self._sending:
            while True:
                with self._guard:
                    if self._call is None:
                        batch = self._take()
                        if not batch:
                            return
                        self._call = batch, prepare(batch)
                    mine = self._call
                answer = mine[1]()
                with self._guard:
                    if self._call is not mine:
                        continue  # cleared meanwhile
                    self._call = None
                sent(mine[0], answer)

    def _take(self) -> list[Submission]:
        batch: list[Submission] = []
        size = 0
        while self._queue and len(batch) < SUBMIT_CHUNKS and size < SUBMIT_BYTES:
            batch.append(self._queue.popleft())
            size += len(batch[-1].payload)
        return batch
