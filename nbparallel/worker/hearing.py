"""Notices that Celery's consumer takes no messages any more though it looks alive; ``supervise.py`` asks it to look.

After a lost connection kombu's consumer may sit there for good, connected and deaf, while messages wait.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Hearing"]


class Hearing:
    """Has the consumer connect anew when messages wait and nothing runs for some time.

    Args:
        idle: whether no child works.
        waiting: number of messages that wait in our queues; may raise when the broker is away.
        rouse: has children that linger take messages again: perhaps none was taken only because of them.
        reconnect: makes the consumer connect anew; harmless when it was not deaf.
        patience: seconds for which it must have looked deaf.
    """

    def __init__(
        self,
        idle: Callable[[], bool],
        waiting: Callable[[], int],
        rouse: Callable[[], None],
        reconnect: Callable[[], None],
        patience: float,
    ) -> None:
        self._idle, self._waiting, self._rouse = idle, waiting, rouse
        self._reconnect, self._patience = reconnect, patience
        self._since: float | None = None

    def look(self, now: float) -> bool:
        """Called every few seconds; whether the consumer was found deaf.

        >>> hearing = Hearing(lambda: True, lambda: 3, lambda: print("wake up"), lambda: print("again"), patience=10.0)
        >>> hearing.look(0.0), hearing.look(5.0)
        wake up
        wake up
        (False, False)
        >>> hearing.look(11.0)
        wake up
        again
        True
        """
        if not (self._idle() and self._waiting()):
            self._since = None
            return False
        self._rouse()
        if self._since is None:
            self._since = now
        elif now - self._since >= self._patience:
            self._since = None
            self._reconnect()
            return True
        return False
