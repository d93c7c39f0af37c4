"""The process that uses one peer, as a script or notebook would; obeys the coordinator and takes the times.

``python -m tests.benchmarks.driver NAME WORKERS`` reads a request a line (JSON) and answers with a line: figures,
or ``{"error": ...}``. All times in seconds. What libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .peer import Peer
from .peers import PEERS
from .workloads import (
    CAPTURED_ITEMS,
    TICKERS,
    WORKLOADS,
    add_one,
    captured_array,
    nap,
    tick,
)

Answer = dict[str, Any]

#: Items that are cancelled run so long, in seconds; for so long nothing may tick until all is taken to be idle.
TICKING, QUIET = 5.0, 0.5


class Driver:
    """Obeys requests; one method for each."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._speed = 1.0
        self._items: tuple[str, Sequence[Any]] = ("", ())  # of the last workload: making them takes long
        self._array: Any = None

    def start(self, *, speed: float) -> Answer:
        """Import the library, start workers, wait for a first result, then for one of each worker."""
        self._speed = speed
        started = time.perf_counter()
        self._peer.start()
        assert list(self._peer.map(add_one, [1])) == [2]
        seconds = time.perf_counter() - started
        self._peer.map(nap, [0.01] * (4 * self._peer.workers))
        return {"seconds": seconds, "captures_best": self._peer.captures_best}

    def map(self, *, workload: str, best: bool, chunk: int, count: int) -> Answer:
        """Map ``count`` items (0: all) and check the results."""
        chosen = WORKLOADS[workload]
        if self._items[0] != workload:
            self._items = ("", ())
            self._items = (workload, chosen.make(self._speed))
        items = self._items[1][:count] if count else self._items[1]
        gc.collect()
        function = chosen.function
        call = (function, items, chunk) if best else (function, items)
        run = self._peer.map_best if best else self._peer.map
        if chosen.columns is not None:
            columns = [list(column) for column in zip(*items, strict=True)]
            call = chosen.columns, function, columns, *call[2:]
            run = self._peer.map_columns_best if best else self._peer.map_columns
        started = time.perf_counter()
        results = run(*call)
        seconds = time.perf_counter() - started
        if not count and not chosen.check(items, results):
            raise ValueError("wrong results")
        return {"seconds": seconds, "share": len(items) / len(self._items[1])}

    def captured(self, *, best: bool) -> Answer:
        """Map a little work on a large array that the function carries along."""
        if self._array is None:
            self._array = captured_array()
        items = range(CAPTURED_ITEMS)
        call = self._peer.captured_best if best else self._peer.captured
        started = time.perf_counter()
        results = call(self._array, items)
        seconds = time.perf_counter() - started
        if list(results) != [float(item) for item in items]:
            raise ValueError("wrong results")
        return {"seconds": seconds}

    def trips(self, *, count: int, pause: float) -> Answer:
        """Seconds of calls of one item, one after the other or with rests between them."""
        samples = []
        for number in range(count):
            if pause:
                time.sleep(pause)
            started = time.perf_counter()
            results = self._peer.map(add_one, [number])
            samples.append(time.perf_counter() - started)
            if list(results) != [number + 1]:
                raise ValueError("wrong results")
        return {"samples": samples}

    def first(self, *, count: int) -> Answer:
        """Seconds until the first result of many short items."""
        started = time.perf_counter()
        results = iter(self._peer.stream(nap, [0.001] * count))
        next(results)
        seconds = time.perf_counter() - started
        if sum(1 for _ in results) != count - 1:
            raise ValueError("wrong number of results")
        return {"seconds": seconds}

    def cancel(self) -> Answer:
        """Seconds from the order to cancel until nothing runs any more, and until one more item was run."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "ticks"
            path.write_bytes(bytes(8 * TICKERS))
            begun = self._peer.begin(tick, [(str(path), TICKING)] * (10 * self._peer.workers))
            _wait_until(lambda: sum(map(bool, _ticks(path))) >= self._peer.workers, 20.0)
            ordered = time.monotonic()
            self._peer.cancel(begun)
            _wait_until(lambda: time.monotonic() - max(*_ticks(path), ordered) > QUIET, 4 * TICKING)
            idle = max(*_ticks(path), ordered) - ordered
            asked = time.monotonic()
            self._peer.map(add_one, [1])
            return {"idle": idle, "next": time.monotonic() - asked}

    def stop(self) -> Answer:
        """End what was started."""
        self._peer.stop()
        return {}


def _ticks(path: Path) -> tuple[float, ...]:
    return struct.unpack(f"{TICKERS}d", path.read_bytes())


def _wait_until(reached: Callable[[], bool], within: float) -> None:
    deadline = time.monotonic() + within
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within:g} s")
        time.sleep(0.005)


def main() -> None:
    """Obey until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    driver = Driver(PEERS[sys.argv[1]](int(sys.argv[2])))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(driver, request.pop("do"))(**request)
        except Exception as error:  # whatever a library raises is told, and ends up in the report
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
