"""Interrupts running items: receives wishes from the supervisor, signals children, and kills those that do not heed.

A wish names a lease and an item (or any item of the lease). SIGUSR1 makes the child look; it raises only inside the
user's function, and only for what was meant, so a signal that comes too late does nothing. It is repeated until it
was raised once; then ``finally`` blocks run in peace. After the grace the process is stopped, looked at again, and
killed only if it still runs the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

from . import processes
from . import slot as slots
from .slot import Running, Slot

__all__ = ["Interrupter"]

#: Interval, in seconds, between signals to a child that has not heeded yet.
REPEAT_SECONDS = 0.1


@dataclass(slots=True)
class _Wish:
    slot: Slot
    serial: int
    pid: int
    index: int
    why: int
    since: float
    signalled: float = 0.0
    heeded: bool = False


class Interrupter:
    """Interrupts on their way; used by the supervising thread alone.

    Args:
        grace: seconds between the first signal and the kill.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._wishes: dict[int, _Wish] = {}  # by slot

    def pending(self) -> bool:
        """Whether ``tick`` is to be called soon."""
        return bool(self._wishes)

    def want(self, slot: Slot, running: Running, why: int, index: int = slots.ANY_ITEM) -> None:
        """Interrupt what the slot runs (again is harmless)."""
        wish = self._wishes.get(slot.number)
        if wish is not None and wish.serial == running.serial and (wish.index, wish.why) == (index, why):
            return
        self._wishes[slot.number] = _Wish(slot, running.serial, running.pid, index, why, time.monotonic())
        slot.ask(running.serial, index, why)

    def ended(self, slot: Slot, running: Running) -> int:
        """Forget the wish of a dead child; for which reason it was to be interrupted, or 0."""
        wish = self._wishes.pop(slot.number, None)
        return wish.why if wish is not None and wish.serial == running.serial else 0

    def tick(self, now: float) -> None:
        """Signal, or kill, those that still run what they should not."""
        for number, wish in list(self._wishes.items()):
            running = wish.slot.running()
            if not _still(wish, running):
                del self._wishes[number]
            elif now - wish.since >= self._grace:
                self._kill(wish)
            elif running is not None and running.raised:
                wish.heeded = True
            elif not wish.heeded and now - wish.signalled >= REPEAT_SECONDS:
                wish.signalled = now
                self._signal(wish)

    def _signal(self, wish: _Wish) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(wish.pid, signal.SIGUSR1)
            processes.kill_family(wish.pid)  # a solver that the function waits for

    def _kill(self, wish: _Wish) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(wish.pid, signal.SIGSTOP)
            if _still(wish, wish.slot.running()) and wish.slot.words[slots.INDEX] >= 0:
                os.kill(wish.pid, signal.SIGKILL)
            else:  # it went on at the last moment
                os.kill(wish.pid, signal.SIGCONT)


def _still(wish: _Wish, running: Running | None) -> bool:
    """Whether the child still holds the lease, and runs the item, that the wish means."""
    if running is None or running.serial != wish.serial or running.pid != wish.pid:
        return False
    return wish.index == slots.ANY_ITEM or running.index == wish.index
