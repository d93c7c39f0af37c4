"""What is measured: functions, their inputs, and how a result is checked. Importable by every peer's workers."""

from __future__ import annotations

import mmap
import os
import random
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CAPTURED_ITEMS",
    "CAPTURED_MEGABYTES",
    "WORKLOADS",
    "Captured",
    "Workload",
    "add",
    "add_one",
    "add_pair",
    "captured_array",
    "durations",
    "loops_per_second",
    "nap",
    "pick",
    "tick",
]

#: Slots of the file in which running items leave the time.
TICKERS = 64
CAPTURED_MEGABYTES, CAPTURED_ITEMS = 200, 200


def add(x: int, y: int) -> int:
    """One of the 100,000 additions."""
    return x + y


def add_pair(pair: tuple[int, int]) -> int:
    """The same of a tuple."""
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


def ten_kilobytes(i: int) -> bytes:
    """A result of 10 kB."""
    return i.to_bytes(4, "little") * 2500


def double(array: Any) -> Any:
    """Large in, large out. Not in place: some hand out arrays that cannot be written to."""
    return array * 2


def pick(pair: tuple[Any, int]) -> float:
    """A little of a large array, which is an argument."""
    array, index = pair
    return float(array[index])


class Captured:
    """A function that carries a large array along, which any pickle can send."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __call__(self, index: int) -> float:
        return float(self.array[index])


def tick(where: tuple[str, float]) -> None:
    """Runs for some seconds of Python code, and leaves the time in a file while it does."""
    path, seconds = where
    end = time.monotonic() + seconds
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8 * TICKERS) as shared:
        while (now := time.monotonic()) < end:
            struct.pack_into("d", shared, 8 * (os.getpid() % TICKERS), now)
            spin(500)


def arrays(count: int, megabytes: int) -> list[Any]:
    """Arrays of that size, each with a value of its own."""
    import numpy as np

    return [np.full(megabytes * 131072, i, dtype=float) for i in range(count)]


def captured_array() -> Any:
    """The array that a function carries along; its first values are their own indexes."""
    import numpy as np

    return np.arange(CAPTURED_MEGABYTES * 131072, dtype=float)


def durations(order: str, count: int = 200) -> list[float]:
    """Heavy-tailed seconds (lognormal, about 20 ms on average), sorted "up" or "down", or "shuffled"."""
    source = random.Random(7)
    seconds = [source.lognormvariate(-4.3, 0.9) for _ in range(count)]
    if order != "shuffled":
        seconds.sort(reverse=order == "down")
    return seconds


def loops_per_second() -> float:
    """Speed of ``spin`` on this machine: the best of many tries, to see through other people's work."""
    loops = 50_000
    best = min(_timed(loops) for _ in range(40))
    return loops / best


def _timed(loops: int) -> float:
    started = time.perf_counter()
    spin(loops)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Workload:
    """One row of the report.

    Attributes:
        make: the items, from the speed of ``spin`` in loops per second.
        check: whether results are right.
        chunks: items a chunk among which a peer whose best setting is a chunk size may choose, in items.
        tiny: items so short that a message for each is hopeless; peers that send one are given fewer when all would
            take too long, and the time is scaled, which the report says.
        limit: seconds after which a peer is given up.
        memory: whether the report says how much memory it took.
        serial: whether a plain loop is measured, too.
        fresh: whether peers start anew for each round: one process runs the same loop some percent faster or slower
            than the next, for as long as it lives.
        columns: items are tuples of arguments, and this is the function of these arguments, for peers who can map
            such a function over all first ones, all second ones and so on.
    """

    name: str
    function: Callable[[Any], Any]
    make: Callable[[float], Sequence[Any]]
    check: Callable[[Sequence[Any], Sequence[Any]], bool]
    chunks: tuple[int, ...] = (1,)
    tiny: bool = False
    limit: float = 60.0
    memory: bool = False
    serial: bool = True
    fresh: bool = False
    columns: Callable[..., Any] | None = None


def _matches(function: Callable[[Any], Any]) -> Callable[[Sequence[Any], Sequence[Any]], bool]:
    return lambda items, results: (
        len(items) == len(results)
        and all(results[i] == function(items[i]) for i in range(0, len(items), max(1, len(items) // 50)))
    )


def _fixed(ms: float, items: int, chunks: tuple[int, ...]) -> Workload:
    make: Callable[[float], list[int]] = lambda speed: [max(1, int(speed * ms / 1000))] * items  # noqa: E731
    return Workload(f"items of {ms} ms", spin, make, _matches(spin), chunks=chunks, tiny=ms < 1, fresh=True)


def _skewed(order: str) -> Workload:
    return Workload(
        f"200 lognormal items, {order}", nap, lambda _: durations(order), _matches(lambda x: x), serial=False
    )


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "100,000 additions",
            add_pair,
            lambda _: [(i, i + 1) for i in range(100_000)],
            _matches(add_pair),
            chunks=(50_000, 12_500, 3_125, 800),
            tiny=True,
            columns=add,
        ),
        Workload(
            "100,000 additions of one",
            add_one,
            lambda _: range(100_000),
            _matches(add_one),
            chunks=(50_000, 12_500, 3_125, 800),
            tiny=True,
        ),
        Workload(
            "100,000 additions, tuples in",
            add_pair,
            lambda _: [(i, i + 1) for i in range(100_000)],
            _matches(add_pair),
            chunks=(50_000, 12_500, 3_125, 800),
            tiny=True,
        ),
        Workload(
            "1,000,000 Fibonaccis (n=10)",
            fib,
            lambda _: [10] * 1_000_000,
            _matches(fib),
            chunks=(20_000,),
            tiny=True,
            limit=120,
            memory=True,
            fresh=True,
        ),
        _fixed(0.1, 20_000, (2_500, 500, 100)),
        _fixed(1, 2_000, (250, 50, 10)),
        _fixed(10, 200, (10, 1)),
        _fixed(100, 40, (1,)),
        _skewed("up"),
        _skewed("down"),
        _skewed("shuffled"),
        Workload(
            "64 arrays of 8 MB in and out",
            double,
            lambda _: arrays(64, 8),
            lambda items, results: len(results) == 64 and all((results[i] == 2 * i).all() for i in (0, 1, 31, 63)),
            chunks=(1, 8),
            limit=20,
            memory=True,
            serial=False,
        ),
    )
}
