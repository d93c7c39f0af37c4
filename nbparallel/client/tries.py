"""Counts the attempts of items, and decides which failed ones run again; ``running.py`` asks about every block."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ..model import Block
from ..ordering import Ranges
from ..policies import RETRIED_KINDS, RetryPolicy
from ..remote import rebuild
from .results import Failure

__all__ = ["Sorted", "Tries"]


@dataclass(slots=True)
class Sorted:
    """The failures of a block that are not final, by index.

    Attributes:
        again: run again, after so many seconds.
        unreadable: could not be unpickled with their neighbours, and are to be sent each by itself.
        stale: an attempt that is known to have failed ran twice; another is on its way.
    """

    again: dict[int, float] = field(default_factory=dict)
    unreadable: list[int] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)

    def all(self) -> list[int]:
        """All of them."""
        return [*self.again, *self.unreadable, *self.stale]


class Tries:
    """The attempts of one job's items; the job's condition guards it.

    Args:
        policy: which failures are tried again, None for none.

    Attributes:
        history: index → how an item that was tried again failed before.
    """

    def __init__(self, policy: RetryPolicy | None) -> None:
        self.history: dict[int, list[Failure]] = {}
        self._policy = policy
        self._failed: dict[int, int] = {}  # the last attempt that failed
        self._before: dict[int, int] = {}  # of items run again by hand: attempts that the policy forgets
        self._resting: set[int] = set()  # items whose pause is not over

    def sort(self, block: Block, received: Ranges, wanted: Callable[[int], bool]) -> Sorted:
        """Which failures of a block are not final.

        Args:
            received: items that have their outcome.
            wanted: whether an item that failed may run again at all.
        """
        found = Sorted()
        for index, record in block.errors.items():
            if index in received:
                continue
            if record.kind == "payload":
                found.unreadable.append(index)
            elif self._failed.get(index, 0) >= block.attempt:
                found.stale.append(index)
            elif self._policy is not None and record.kind in RETRIED_KINDS and wanted(index):
                error = rebuild(record, index, block.worker, block.attempt)
                attempt = block.attempt - self._before.get(index, 0)
                delay = self._policy.decide(error.exception or error, attempt, random.random())
                if delay is not None:
                    found.again[index] = delay
                    self._note(index, Failure(record, block.worker, block.attempt))
                    self._resting.add(index)
        return found

    def rested(self, index: int) -> None:
        """The pause before an item's next attempt is over."""
        self._resting.discard(index)

    def by_hand(self, index: int, failure: Failure) -> None:
        """The user runs a failed item once more."""
        self._note(index, failure)
        self._before[index] = failure.attempt

    def parts(self, lo: int, hi: int) -> list[tuple[int, int, int]]:
        """[lo, hi) as (lo, hi, attempt) of one attempt each, without the items whose pause is not over."""
        parts = []
        for index in sorted(index for index in self._failed if lo <= index < hi) if self._failed else ():
            if lo < index:
                parts.append((lo, index, 1))
            if index not in self._resting:
                parts.append((index, index + 1, self._failed[index] + 1))
            lo = index + 1
        if lo < hi:
            parts.append((lo, hi, 1))
        return parts

    def _note(self, index: int, failure: Failure) -> None:
        self.history.setdefault(index, []).append(failure)
        self._failed[index] = failure.attempt
