"""Talks to the broker for ``supervise.py``, whose thread must not wait for it: leases would expire meanwhile.

Takes tickets from the supervisor and publishes them; asks now and then how many messages wait.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

__all__ = ["Courier"]

log = logging.getLogger(__name__)

#: Most tickets that wait for a broker that is away; others are dropped, and replaced by those who look for lost ones.
MOST_WAITING = 10_000


class Courier:
    """A thread of the worker's parent process.

    Args:
        publish: sends a ticket, given (job key, ticket, queue, the job's name); may block, may raise.
        count: number of messages that wait in our queues; may block, may raise.
    """

    def __init__(self, publish: Callable[[str, str, str, str], None], count: Callable[[], int]) -> None:
        self._publish, self._count = publish, count
        self._errands: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._counted = 0
        self._thread = threading.Thread(target=self._run, name="nbparallel-broker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, patience: float = 2.0) -> None:
        """What was asked for so far is done, if that takes no longer than ``patience``, in seconds."""
        self._ask(None)
        if self._thread.is_alive():
            self._thread.join(patience)

    def publish(self, job: str, ticket: str, queue: str, name: str) -> None:
        """Have a ticket sent; returns at once."""
        self._ask(lambda: self._publish(job, ticket, queue, name))

    def waiting(self) -> int:
        """Messages that waited when this was asked last; 0 when the broker has not said so yet. Asks anew."""
        counted, self._counted = self._counted, 0
        if self._errands.empty():
            self._ask(self._look)
        return counted

    def _look(self) -> None:
        self._counted = self._count()

    def _ask(self, errand: Callable[[], None] | None) -> None:
        try:
            self._errands.put_nowait(errand)
        except queue.Full:
            log.warning("a ticket is dropped: the broker has taken none of the %d before it", MOST_WAITING)

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None:
            try:
                errand()
            except Exception as error:  # kombu's transports raise what their libraries raise
                log.warning("the broker: %s", error)
