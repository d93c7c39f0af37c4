"""Children that linger, in the memory of ``fake.py``."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .fake_job import MemoryJob
from .protocol import Handed, Lingerer

__all__ = ["MemoryIdle"]


class MemoryIdle:
    """Who waits for work, what each was handed, and the tickets that messages were sent for."""

    _clock: Callable[[], int]
    _changed: threading.Condition
    _jobs: dict[str, MemoryJob]
    _leases: dict[tuple[str, str], int]
    _idle: dict[str, dict[str, tuple[int, Lingerer]]]  # group -> child -> until when
    _bells: dict[str, Handed]
    _waits: dict[str, list[tuple[str, str]]]

    def _idle_child(self, group: str) -> Lingerer | None:
        idle = self._idle.get(group, {})
        for child, (until, who) in sorted(idle.items(), key=lambda entry: (entry[1][0], entry[0])):
            del idle[child]
            if until > self._clock():
                return who
        return None

    def _forget_child(self, child: str) -> bool:
        """Ring for a child no more; whether anybody would have."""
        return any(idle.pop(child, None) for idle in self._idle.values())

    def waiting(self, group: str) -> bool:
        """As the protocol says."""
        with self._changed:
            return any(
                name in self._jobs and self._jobs[name].tickets.get(ticket, 1) < 0
                for name, ticket in self._waits.get(group, [])
            )

    def linger(self, who: Lingerer, expected: bool = False) -> Handed | None:
        """As the protocol says."""
        with self._changed:
            waits = self._waits.get(who.group, [])
            while waits:
                name, ticket = waits.pop(0)
                if name in self._jobs and self._jobs[name].tickets.get(ticket, 1) < 0:
                    return Handed(name, ticket)
            self._idle.setdefault(who.group, {})[who.child] = self._clock() + who.ms + 1000, who
            roused = self._changed.wait_for(lambda: who.child in self._bells, who.ms / 1000)
            return self.unlinger(who) or (Handed("", "") if roused else None)

    def unlinger(self, who: Lingerer) -> Handed | None:
        """As the protocol says."""
        with self._changed:
            self._forget_child(who.child)
            bell = self._bells.pop(who.child, None)
            if bell is not None:
                return bell if bell.job else None
            for job, token in self._leases:
                if token == who.token and token in self._jobs[job].held:
                    return Handed(job, self._jobs[job].held[token][1])
            return None

    def rouse(self, child: str) -> None:
        """As the protocol says."""
        with self._changed:
            if self._forget_child(child):
                self._bells[child] = Handed("", "")
                self._changed.notify_all()

    def bury(self, child: str) -> list[tuple[str, str]]:
        """As the protocol says."""
        with self._changed:
            self._forget_child(child)
            self._bells.pop(child, None)
            return [(job, token) for job, token in self._leases if token.startswith(child)]
