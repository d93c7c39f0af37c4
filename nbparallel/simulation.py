"""A simulated cluster that a Planner is tried on: takes durations of items, gives makespan and chunks. Pure.

``python -m nbparallel.planning`` prints a table. What is modelled: the client that is told of outcomes and submits
chunks with some delay, chunks claimed in the order of their first index, the first outcome of a slot reported at
once and others by chunk or budget, and the unstarted tail of a chunk handed back at its budget while an item runs.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Literal

from .planning import Planner

__all__ = ["DISTRIBUTIONS", "Simulation", "greedy", "main", "simulate"]


@dataclass(frozen=True)
class Simulation:
    """What became of a simulated job; all times in seconds.

    Attributes:
        makespan: until the client had the last outcome.
        first: until it had the first one.
        chunks: chunks that the client submitted.
        claims: chunks that slots claimed, those that were handed back included.
        waiting: most items that waited in the store at a time.
        work: sum of the durations.
        greedy: makespan of handing out items one by one, in order, at no cost.
    """

    makespan: float
    first: float
    chunks: int
    claims: int
    waiting: int
    work: float
    greedy: float
    slots: int

    @property
    def ratio(self) -> float:
        """Makespan in terms of the greedy one."""
        return self.makespan / self.greedy

    @property
    def efficiency(self) -> float:
        """Share of the slots' time that was spent in items."""
        return self.work / (self.slots * self.makespan)


def greedy(durations: Sequence[float], slots: int) -> float:
    """Makespan when each slot takes the next item as soon as it is free."""
    free = [0.0] * min(slots, len(durations))
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free, default=0.0)


def simulate(
    durations: Sequence[float],
    slots: int,
    chunks: int | Literal["auto"] = "auto",
    *,
    sized: bool = True,
    overhead: float = 200e-6,
    client: float = 70e-6,
    latency: float = 300e-6,
    parts: int = 2,
) -> Simulation:
    """Run a job of items with these durations through a fresh planner.

    Args:
        durations: seconds of each item, in the order of the input.
        slots: worker processes.
        chunks: as for ``pmap``.
        sized: whether the planner is told the number of items.
        overhead: seconds that a slot spends on each chunk it claims.
        client: seconds that the client spends on each chunk it submits.
        latency: seconds from slot to client and from client to slot, each.
        parts: into how many chunks the unstarted items of a long chunk are split when they are handed back; 0:
            they are not.
    """
    return _Run(durations, slots, chunks, sized, overhead, client, latency, parts).run()


class _Run:
    """One simulation: events (time, number, what happens) in the order of time."""

    def __init__(
        self,
        durations: Sequence[float],
        slots: int,
        chunks: int | Literal["auto"],
        sized: bool,
        overhead: float,
        client: float,
        latency: float,
        parts: int,
    ) -> None:
        self.durations = durations
        self.sums = [0.0, *accumulate(durations)]
        self.slots = slots
        self.sized = sized
        self.overhead = overhead
        self.client = client
        self.latency = latency
        self.planner = Planner(chunks, len(durations) if sized else None)
        self.budget = self.planner.budget(slots) if parts else float("inf")
        self.parts = parts
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.numbers = count()
        self.pending: list[tuple[int, int]] = []  # runs [lo, hi), the lowest first
        self.waiting = self.most_waiting = 0
        self.idle = slots
        self.fresh = slots  # slots that have not reported anything
        self.read = self.received = self.chunks = self.claims = 0
        self.first = 0.0
        self.busy = self.filling = False  # the client

    def run(self) -> Simulation:
        now = 0.0
        self.fill(now)
        while self.events:
            now, _, happen = heapq.heappop(self.events)
            happen(now)
        assert self.received == len(self.durations)
        return Simulation(
            makespan=now,
            first=self.first,
            chunks=self.chunks,
            claims=self.claims,
            waiting=self.most_waiting,
            work=self.sums[-1],
            greedy=greedy(self.durations, self.slots),
            slots=self.slots,
        )

    def at(self, time: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), happen))

    def fill(self, now: float) -> None:
        """The client submits a chunk if the planner's window has room, and looks again when that is done."""
        total = len(self.durations)
        if self.busy or self.read == total:
            return
        room = self.planner.window(self.slots) - (self.read - self.received)
        if room < (1 if self.filling else self.planner.refill(self.slots)):
            self.filling = False
            return
        self.filling = True
        left = total - self.read
        size = min(self.planner.next_size(self.slots, left if self.sized else None), left)
        lo, hi = self.read, self.read + size
        self.read = hi
        self.chunks += 1
        self.busy = True
        self.at(now + self.client + self.latency, lambda time: self.submitted(time, lo, hi))
        self.at(now + self.client, self.filled)

    def filled(self, now: float) -> None:
        self.busy = False
        self.fill(now)

    def submitted(self, now: float, lo: int, hi: int) -> None:
        """A chunk, from the client or handed back, is pending in the store."""
        heapq.heappush(self.pending, (lo, hi))
        self.waiting += hi - lo
        while self.idle and self.pending:
            self.idle -= 1
            self.claim(now)
        self.most_waiting = max(self.most_waiting, self.waiting)

    def claim(self, now: float) -> None:
        """A free slot takes the first pending chunk; all that will happen to it is known at once."""
        if not self.pending:
            self.idle += 1
            return
        lo, hi = heapq.heappop(self.pending)
        self.waiting -= hi - lo
        self.claims += 1
        start = now + self.overhead
        reported = lo
        if self.fresh:
            self.fresh -= 1
            reported = lo + 1
            self.at(start + self.durations[lo], lambda time: self.report(time, lo, lo + 1))
        if self.sums[hi] - self.sums[lo] > self.budget:
            # The item before cut runs when the budget is over; what comes after it goes back.
            cut = min(bisect_left(self.sums, self.sums[lo] + self.budget, lo + 1, hi), hi)
            over = start + self.budget
            if cut - 1 > reported:
                done, reported = reported, cut - 1
                self.at(over, lambda time: self.report(time, done, cut - 1))
            if cut < hi:
                rest = hi
                self.at(over, lambda time: self.give_back(time, cut, rest))
                hi = cut
        end = start + self.sums[hi] - self.sums[lo]
        if reported < hi:
            self.at(end, lambda time: self.report(time, reported, hi))
        self.at(end, self.claim)

    def give_back(self, now: float, lo: int, hi: int) -> None:
        """Items [lo, hi) of a running chunk are pending again, in parts, so that they spread over idle slots."""
        step = -(-(hi - lo) // self.parts)
        for start in range(lo, hi, step):
            self.submitted(now, start, min(start + step, hi))

    def report(self, now: float, lo: int, hi: int) -> None:
        """A slot sends the outcomes of items [lo, hi)."""
        self.at(now + self.latency, lambda time: self.receive(time, lo, hi))

    def receive(self, now: float, lo: int, hi: int) -> None:
        """The client learns of the outcomes of items [lo, hi)."""
        self.first = self.first or now
        self.received += hi - lo
        self.planner.observe(hi - lo, self.sums[hi] - self.sums[lo])
        self.fill(now)


def _bimodal(rng: random.Random) -> float:
    return 0.2 if rng.random() < 0.1 else 0.002


#: Name → makes n durations (seconds) of the given mean, roughly.
DISTRIBUTIONS: dict[str, Callable[[random.Random, int], list[float]]] = {
    "0.1 µs": lambda rng, n: [1e-7] * n,
    "0.1 ms": lambda rng, n: [1e-4] * n,
    "1 ms": lambda rng, n: [1e-3] * n,
    "10 ms": lambda rng, n: [1e-2] * n,
    "100 ms": lambda rng, n: [1e-1] * n,
    "lognormal": lambda rng, n: [rng.lognormvariate(-4.0, 1.0) for _ in range(n)],
    "lognormal up": lambda rng, n: sorted(rng.lognormvariate(-4.0, 1.0) for _ in range(n)),
    "lognormal down": lambda rng, n: sorted((rng.lognormvariate(-4.0, 1.0) for _ in range(n)), reverse=True),
    "Pareto": lambda rng, n: [min(0.005 * rng.paretovariate(1.2), 5.0) for _ in range(n)],
    "bimodal": lambda rng, n: [_bimodal(rng) for _ in range(n)],
    "drifting": lambda rng, n: [1e-5 * 1000 ** (index / n) * rng.uniform(0.8, 1.2) for index in range(n)],
}

#: Rows of the table for each distribution: slots, and items for each slot.
_SIZES = ((1, 200), (2, 100), (2, 10_000), (16, 1000), (256, 200), (1000, 200), (10_000, 50))


def main() -> None:
    """Print how automatic chunks do, by distribution and number of slots."""
    print(
        "ratio: makespan to that of free one-by-one scheduling; busy: share of the slots' time spent in items\n"
        "chunks: submitted by the client, 70 µs each; claims: by slots, 200 µs each; waiting: most items in the store\n"
    )
    print(f"{'items':16}{'slots':>6}{'number':>8}{'ms':>10}{'ratio':>9}{'busy':>7}{'first ms':>10}", end="")
    print(f"{'chunks':>8}{'claims':>8}{'waiting':>9}")
    for name, make in DISTRIBUTIONS.items():
        for slots, each in _SIZES:
            result = simulate(make(random.Random(1), slots * each), slots)
            print(f"{name:16}{slots:6}{slots * each:8}{result.makespan * 1e3:10.1f}{result.ratio:9.3f}", end="")
            print(f"{result.efficiency:7.3f}{result.first * 1e3:10.1f}", end="")
            print(f"{result.chunks:8}{result.claims:8}{result.waiting:9}", flush=True)


if __name__ == "__main__":
    main()
