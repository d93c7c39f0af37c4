"""What is measured: functions, their inputs, and how a result is checked. Importable by every peer's workers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["WORKLOADS", "Workload"]


def add(pair: tuple[int, int]) -> int:
    """One of the 100,000 additions."""
    return pair[0] + pair[1]


def add_one(x: int) -> int:
    """The cheapest function there is."""
    return x + 1


def fib(n: int) -> int:
    """Small recursive Fibonacci."""
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def spin(loops: int) -> int:
    """A fixed amount of *work*, not of time."""
    total = 0
    for i in range(loops):
        total += i & 3
    return total


def nap(seconds: float) -> float:
    """Waits, so that many workers fit on few cores."""
    time.sleep(seconds)
    return seconds


def double(array: Any) -> Any:
    """Large in, large out."""
    array *= 2
    return array


def arrays(count: int, megabytes: int) -> list[Any]:
    """Arrays of that size, each with a value of its own."""
    import numpy as np

    return [np.full(megabytes * 131072, i, dtype=float) for i in range(count)]


@dataclass(frozen=True)
class Workload:
    """One row of the report.

    Attributes:
        make: the items; called once.
        check: whether results are right.
        tiny: items so short that a message for each is hopeless; peers that send one are given fewer, and the time is
            scaled, which the report says.
        serial: whether the time of a plain loop is measured, too.
    """

    name: str
    function: Callable[[Any], Any]
    make: Callable[[], Sequence[Any]]
    check: Callable[[Sequence[Any], Sequence[Any]], bool]
    tiny: bool = False
    serial: bool = True
    chunk: int | None = field(default=None)


def _matches(function: Callable[[Any], Any]) -> Callable[[Sequence[Any], Sequence[Any]], bool]:
    return lambda items, results: (
        len(items) == len(results)
        and all(results[i] == function(items[i]) for i in range(0, len(items), max(1, len(items) // 50)))
    )


def _lognormal(order: str) -> list[float]:
    source = random.Random(7)
    durations = [source.lognormvariate(-3.9, 0.9) for _ in range(200)]
    if order != "shuffled":
        durations.sort(reverse=order == "down")
    return durations


def _spins(seconds: float, items: int) -> Callable[[], list[int]]:
    def make() -> list[int]:
        loops = 200_000
        best = min(_timed(loops) for _ in range(5))
        return [max(1, int(loops * seconds / best))] * items

    return make


def _timed(loops: int) -> float:
    started = time.perf_counter()
    spin(loops)
    return time.perf_counter() - started


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("100,000 additions", add_one, lambda: range(100_000), _matches(add_one), tiny=True),
        Workload(
            "100,000 additions, tuples in",
            add,
            lambda: [(i, i + 1) for i in range(100_000)],
            _matches(add),
            tiny=True,
        ),
        Workload("100,000 Fibonaccis (n=5)", fib, lambda: [5] * 100_000, _matches(fib), tiny=True),
        Workload("1,000,000 Fibonaccis (n=10)", fib, lambda: [10] * 1_000_000, _matches(fib), tiny=True),
        Workload("items of 0.1 ms", spin, _spins(0.0001, 20_000), _matches(spin), tiny=True),
        Workload("items of 1 ms", spin, _spins(0.001, 3_000), _matches(spin)),
        Workload("items of 10 ms", spin, _spins(0.01, 300), _matches(spin)),
        Workload("items of 100 ms", spin, _spins(0.1, 40), _matches(spin)),
        Workload("skewed, sorted up", nap, lambda: _lognormal("up"), _matches(lambda x: x), serial=False),
        Workload("skewed, sorted down", nap, lambda: _lognormal("down"), _matches(lambda x: x), serial=False),
        Workload("skewed, shuffled", nap, lambda: _lognormal("shuffled"), _matches(lambda x: x), serial=False),
        Workload(
            "64 arrays of 8 MB in and out",
            double,
            lambda: arrays(64, 8),
            lambda items, results: all((results[i] == 2 * i).all() for i in (0, 1, 31, 63)),
            serial=False,
        ),
    )
}
