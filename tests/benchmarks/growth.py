"""How nbparallel grows with items and with workers: time, memory, CPU by process, store calls, connections.

``python -m tests.benchmarks.growth [quick]`` prints it in JSON. Workers run items that sleep, so that many fit on few
cores, and each chunk is one item, as long as an automatic chunk aims at. Times in seconds, sizes in bytes.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import redis

from nbparallel import Cluster, pmap
from nbparallel.settings import Settings

from .processes import Process, cpu_seconds, peaks, reset_peaks, tree
from .workloads import add_one, nap

__all__ = ["ROLES", "by_items", "by_workers"]

#: Commands of ours that are calls of the store; scripts do not call these themselves.
_CALLS = ("cmdstat_evalsha", "cmdstat_xread", "cmdstat_blpop")
ROLES = ("client", "server", "parent", "child")

#: Chunks that each worker runs, and their length.
_CHUNKS = 60


@dataclass(frozen=True)
class _Processes:
    """The processes of an embedded cluster and of its client, by role."""

    client: list[Process]
    server: list[Process]
    parent: list[Process]
    child: list[Process]

    @classmethod
    def find(cls) -> _Processes:
        found = tree(os.getpid())
        server = [process for process in found if process.command.partition(" ")[0].endswith("-server")]
        server = server or [process for process in found if "-server" in process.command]
        workers = [process for process in found if "nbparallel.worker" in process.command]
        pids = {process.pid for process in workers}
        parent = [process for process in workers if process.parent not in pids]
        child = [process for process in workers if process.parent in pids]
        return cls([Process(os.getpid())], server, parent, child)

    def cpu(self) -> dict[str, float]:
        return {role: cpu_seconds(getattr(self, role)) for role in ROLES}


class _Store:
    """What the embedded cluster's server says of itself."""

    def __init__(self, cluster: Cluster) -> None:
        self._redis = redis.Redis.from_url(cluster._backend._cluster.store_url)

    def calls(self) -> tuple[int, int]:
        """Commands of ours so far, and how often the server read some that came together from anybody."""
        commands: Any = self._redis.info("commandstats")
        stats: Any = self._redis.info("stats")
        return sum(commands.get(name, {"calls": 0})["calls"] for name in _CALLS), int(stats["total_reads_processed"])

    def connections(self) -> int:
        clients: Any = self._redis.info("clients")
        return int(clients["connected_clients"]) - 1  # without this one

    def peak(self) -> int:
        memory: Any = self._redis.info("memory")
        return int(memory["used_memory_peak"])

    def close(self) -> None:
        self._redis.close()


def by_items(counts: list[int], rounds: int = 3) -> list[dict[str, float]]:
    """Additions, two workers: seconds (the best round), and most memory above what there was before."""
    rows = []
    with Cluster(workers=2) as cluster:
        pmap(add_one, range(50_000), session=cluster, progress=False).result()
        processes = _Processes.find()
        for count in counts:
            seconds = []
            gc.collect()
            reset_peaks([*processes.client, *processes.server])
            before = [processes.client[0].resident, processes.server[0].resident]
            for _ in range(rounds):
                started = time.perf_counter()
                total = sum(pmap(add_one, (i for i in range(count)), session=cluster, progress=False))
                seconds.append(time.perf_counter() - started)
                assert total == count * (count + 1) // 2
            rows.append(
                {
                    "items": count,
                    "seconds": min(seconds),
                    "client": peaks(processes.client) - before[0],
                    "server": peaks(processes.server) - before[1],
                }
            )
    return rows


def by_workers(counts: list[int]) -> list[dict[str, float]]:
    """Chunks that sleep: how busy so many workers are kept, and what a chunk costs."""
    length = Settings().chunk_seconds
    rows = []
    for count in counts:
        started = time.perf_counter()
        with Cluster(workers=count) as cluster:
            pmap(add_one, [1], session=cluster, progress=False).result()
            first = time.perf_counter() - started
            pmap(nap, [length] * (4 * count), chunks=1, session=cluster, progress=False).result()
            processes, store = _Processes.find(), _Store(cluster)
            connections, done = [0], threading.Event()
            watcher = threading.Thread(target=_watch, args=(store, connections, done))
            chunks = count * _CHUNKS
            before, calls, started = processes.cpu(), store.calls(), time.perf_counter()
            watcher.start()
            pmap(nap, [length] * chunks, chunks=1, session=cluster, progress=False).result()
            seconds = time.perf_counter() - started
            done.set()
            watcher.join()
            (commands, trips), after = store.calls(), processes.cpu()
            rows.append(
                {
                    "workers": count,
                    "start": first,
                    "busy": _CHUNKS * length / seconds,
                    "rate": chunks / seconds,
                    "calls": (commands - calls[0]) / chunks,
                    "trips": (trips - calls[1]) / chunks,
                    "connections": connections[0],
                    **{f"cpu {role}": (after[role] - before[role]) / chunks for role in ROLES},
                    **{
                        f"memory {role}": sum(process.proportional for process in getattr(processes, role))
                        for role in ROLES
                    },
                }
            )
            store.close()
    return rows


def _watch(store: _Store, most: list[int], done: threading.Event) -> None:
    while not done.wait(0.2):
        most[0] = max(most[0], store.connections())


def main() -> None:
    """Measure and print."""
    quick = "quick" in sys.argv[1:]
    items = by_items([10**3, 10**4, 10**5] if quick else [10**3, 10**4, 10**5, 10**6])
    workers = by_workers([1, 4] if quick else [1, 2, 4, 8, 16, 32, 64])
    print(json.dumps({"items": items, "workers": workers}))


if __name__ == "__main__":
    main()
