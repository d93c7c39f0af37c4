"""Whether memory stays bounded: many jobs in one kernel, a long generator, a reader that is slower than the results.

``python -m tests.benchmarks.memory jobs 10000`` prints figures in JSON; each runs in a process of its own, so that
nothing that was there before is counted. Used by the report and by the soak tests. All sizes are in megabytes.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from nbparallel import Cluster, pmap

from .environment import ROOT, environ
from .processes import Process, tree
from .workloads import add_one, ten_kilobytes

__all__ = ["MEASURES", "measured"]

Figures = dict[str, float]

_MEGABYTE = 1e6
#: The slow reader rests so long, in seconds, after so many results.
_REST, _RESTS_AFTER = 0.004, 1000


class _Sampler:
    """Follows memory of client, server and workers while the block runs."""

    def __init__(self) -> None:
        self._me = Process(os.getpid())
        self._others = tree(os.getpid())[1:]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="sampler")
        self.before = self._sizes()
        self.most = list(self.before)

    def _sizes(self) -> list[float]:
        server = [process for process in self._others if _is_server(process)]
        rest = [process for process in self._others if process not in server]
        groups = ([self._me], server, rest)
        return [sum(process.resident for process in group) / _MEGABYTE for group in groups]

    def _follow(self) -> None:
        while not self._end.wait(0.05):
            self.most = [max(pair) for pair in zip(self.most, self._sizes(), strict=True)]

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def figures(self) -> Figures:
        """Growth at most, by role."""
        client, server, workers = (most - before for most, before in zip(self.most, self.before, strict=True))
        return {"client": client, "server": server, "workers": workers}


def _is_server(process: Process) -> bool:
    return "valkey-server" in process.command or "redis-server" in process.command


def _warm(cluster: Cluster) -> None:
    pmap(add_one, range(20_000), session=cluster, progress=False).result()
    gc.collect()


def jobs(count: int) -> Figures:
    """Many small jobs one after the other; growth between the first tenth and the end."""
    with Cluster(workers=2) as cluster:
        _warm(cluster)
        for _ in range(count // 10):
            pmap(add_one, [1, 2], session=cluster, progress=False).result()
        gc.collect()
        started = time.perf_counter()
        with _Sampler() as sampler:
            threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
            for _ in range(count - count // 10):
                pmap(add_one, [1, 2], session=cluster, progress=False).result()
            gc.collect()
            more = {
                "threads": float(threading.active_count() - threads),
                "files": float(len(os.listdir("/proc/self/fd")) - files),
            }
        return {**sampler.figures(), **more, "seconds": time.perf_counter() - started}


def generator(count: int) -> Figures:
    """A generator of that many items, each result taken and dropped."""
    with Cluster(workers=2) as cluster:
        _warm(cluster)
        started = time.perf_counter()
        with _Sampler() as sampler:
            total = sum(pmap(add_one, (i for i in range(count)), session=cluster, progress=False))
        assert total == count * (count + 1) // 2
        return {**sampler.figures(), "seconds": time.perf_counter() - started}


def _slowly(results: Iterator[bytes]) -> int:
    taken = 0
    for taken, result in enumerate(results, 1):
        assert len(result) == 10_000
        if taken % _RESTS_AFTER == 0:
            time.sleep(_REST)
    return taken


def slow_reader(count: int) -> Figures:
    """Results of 10 kB over a generator, read more slowly than they could be made: the input has to wait."""
    return _read(count, lambda: (i for i in range(count)))


def slow_reader_sized(count: int) -> Figures:
    """Results of 10 kB over a range, read more slowly than they are made: they have to go to disk."""
    return _read(count, lambda: range(count))


def _read(count: int, make: Callable[[], Any]) -> Figures:
    with Cluster(workers=2) as cluster:
        _warm(cluster)
        started = time.perf_counter()
        with _Sampler() as sampler:
            job = pmap(ten_kilobytes, make(), session=cluster, progress=False)
            assert _slowly(iter(job)) == count
        return {**sampler.figures(), "seconds": time.perf_counter() - started}


MEASURES: dict[str, Callable[[int], Figures]] = {
    "jobs": jobs,
    "generator": generator,
    "slow_reader": slow_reader,
    "slow_reader_sized": slow_reader_sized,
}


def measured(name: str, count: int, *, python: str = sys.executable, limit: float = 900.0) -> Figures:
    """Figures of one measure, taken in a process of its own.

    Raises:
        RuntimeError: it failed; with what it wrote.
        subprocess.TimeoutExpired: it did not end within ``limit`` seconds.
    """
    command = [python, "-m", "tests.benchmarks.memory", name, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, env=environ(), cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[1]](int(sys.argv[2]))))
