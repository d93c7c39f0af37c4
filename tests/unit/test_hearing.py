"""A deaf consumer is told from an idle one, and from a busy one."""

from __future__ import annotations

from nbparallel.worker.hearing import Hearing


class Worker:
    """What the watch sees of a worker."""

    def __init__(self) -> None:
        self.idle, self.waiting, self.roused, self.reconnects = True, 0, 0, 0
        self.hearing = Hearing(lambda: self.idle, lambda: self.waiting, self.rouse, self.reconnect, patience=10.0)

    def rouse(self) -> None:
        """Counts."""
        self.roused += 1

    def reconnect(self) -> None:
        """Counts."""
        self.reconnects += 1

    def look(self, *times: float) -> int:
        """Look at these times; how often it connected anew until then."""
        for now in times:
            self.hearing.look(now)
        return self.reconnects


def test_messages_that_nobody_takes_make_it_reconnect() -> None:
    """Idle with messages waiting for longer than its patience, it connects anew, and again after the same time."""
    worker = Worker()
    worker.waiting = 1
    assert worker.look(0.0) == 0
    assert worker.roused == 1, "children that linger are to take them first"
    assert worker.look(5.0, 9.9) == 0
    assert worker.roused == 3
    assert worker.look(10.0) == 1
    assert worker.look(11.0, 20.0) == 1
    assert worker.look(21.0) == 2


def test_an_idle_worker_without_messages_is_left_alone() -> None:
    """Nothing waits: nothing happens, however long."""
    worker = Worker()
    assert worker.look(0.0, 100.0, 200.0) == 0
    assert worker.roused == 0


def test_a_busy_worker_is_not_deaf() -> None:
    """Work in between, or an empty queue, starts the wait anew."""
    worker = Worker()
    worker.waiting = 5
    worker.look(0.0)
    worker.idle = False
    worker.look(8.0)
    worker.idle = True
    assert worker.look(9.0, 18.0) == 0
    worker.waiting = 0
    worker.look(18.5)
    worker.waiting = 5
    assert worker.look(19.5, 29.0) == 0
    assert worker.look(29.5) == 1
