"""The rivals, each behind the same three methods. A peer that is not installed is left out of the report."""

from __future__ import annotations

import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Pool as ProcessPool
from typing import Any

__all__ = ["PEERS", "Peer"]

Function = Callable[[Any], Any]


class Peer(ABC):
    """A way to map a function over items with worker processes.

    ``per_item``: it sends a message for each item, so that tiny items are measured with fewer of them.
    """

    name: str
    per_item = False

    def __init__(self, workers: int) -> None:
        self.workers = workers

    @abstractmethod
    def start(self) -> None:
        """Start the workers; raises ImportError when the package is missing."""

    @abstractmethod
    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        """All results, in order."""

    @abstractmethod
    def stop(self) -> None:
        """End everything that was started."""


class Nbparallel(Peer):
    """Ours, all defaults."""

    name = "nbparallel"

    def start(self) -> None:
        from nbparallel import Cluster

        self._cluster = Cluster(workers=self.workers)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        from nbparallel import pmap

        return pmap(function, items, session=self._cluster, progress=False).result()

    def stop(self) -> None:
        self._cluster.stop()


class Pool(Peer):
    """multiprocessing.Pool, whose default is four chunks a process."""

    name = "multiprocessing.Pool"

    def start(self) -> None:
        self._pool = ProcessPool(self.workers)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        return self._pool.map(function, items)

    def stop(self) -> None:
        self._pool.terminate()
        self._pool.join()


class PoolOneByOne(Pool):
    """multiprocessing.Pool with chunks of one item."""

    name = "multiprocessing.Pool, chunksize=1"
    per_item = True

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        return self._pool.map(function, items, chunksize=1)


class Futures(Peer):
    """concurrent.futures, whose default is one item at a time."""

    name = "ProcessPoolExecutor"
    per_item = True
    chunksize = 1

    def start(self) -> None:
        self._pool = ProcessPoolExecutor(self.workers)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        return list(self._pool.map(function, items, chunksize=self.chunksize or max(1, len(items) // 16)))

    def stop(self) -> None:
        self._pool.shutdown()


class FuturesChunked(Futures):
    """concurrent.futures with chunks of a sixteenth."""

    name = "ProcessPoolExecutor, chunks"
    per_item = False
    chunksize = 0


class Joblib(Peer):
    """joblib with loky, all defaults."""

    name = "joblib"

    def start(self) -> None:
        import joblib

        self._parallel = joblib.Parallel(n_jobs=self.workers)
        self._delayed = joblib.delayed

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self._parallel(self._delayed(function)(item) for item in items)
        return results

    def stop(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


class Mpire(Peer):
    """mpire, all defaults, workers kept alive."""

    name = "mpire"

    def start(self) -> None:
        from mpire import WorkerPool

        self._pool = WorkerPool(n_jobs=self.workers, keep_alive=True)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        # mpire unpacks tuples into arguments and stacks arrays, unless it is told otherwise.
        results: Sequence[Any] = self._pool.map(
            _Wrapped(function), [(item,) for item in items], concatenate_numpy_output=False
        )
        return results

    def stop(self) -> None:
        self._pool.terminate()


class _Wrapped:
    def __init__(self, function: Function) -> None:
        self.function = function

    def __call__(self, item: Any) -> Any:
        return self.function(item)


class Dask(Peer):
    """dask.distributed, one future an item."""

    name = "dask.distributed"
    per_item = True

    def start(self) -> None:
        from distributed import Client, LocalCluster

        self._cluster = LocalCluster(
            n_workers=self.workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self._client = Client(self._cluster)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self._client.gather(self._client.map(function, items, pure=False))
        return results

    def stop(self) -> None:
        self._client.close()
        self._cluster.close()


class Ray(Peer):
    """ray, one task an item."""

    name = "ray"
    per_item = True

    def start(self) -> None:
        import ray

        self._ray = ray
        ray.init(num_cpus=self.workers, include_dashboard=False, log_to_driver=False, logging_level="error")

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        task = self._ray.remote(function)
        results: Sequence[Any] = self._ray.get([task.remote(item) for item in items])
        return results

    def stop(self) -> None:
        self._ray.shutdown()


class Ipyparallel(Peer):
    """ipyparallel's load-balanced view, one message an item."""

    name = "ipyparallel"
    per_item = True

    def start(self) -> None:
        import ipyparallel

        self._cluster = ipyparallel.Cluster(n=self.workers, log_level=40)
        client = self._cluster.start_and_connect_sync()
        self._view = client.load_balanced_view()

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self._view.map_sync(function, items)
        return results

    def stop(self) -> None:
        self._cluster.stop_cluster_sync()


class CeleryPerItem(Peer):
    """Plain Celery on the same kind of server: ``group`` of one task an item."""

    name = "Celery, a task an item"
    per_item = True

    def start(self) -> None:
        from nbparallel.cluster.embedded import EmbeddedCluster
        from nbparallel.settings import Settings

        # Only the server is used; its worker idles.
        self._server = EmbeddedCluster(1, settings=Settings())
        self._server.start()
        self._server.wait_server(30)
        command = [sys.executable, "-m", "celery", "-A", "tests.benchmarks.plain_celery", "worker", "-l", "ERROR"]
        command += ["-c", str(self.workers), "--without-gossip", "--without-mingle", "-Ofair"]
        import os

        os.environ["BENCHMARK_BROKER"] = self._server.url
        os.environ["BENCHMARK_BACKEND"] = self._server.url
        self._worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        from . import plain_celery

        self._call = plain_celery.call
        self._call.delay("add_one", 1).get(timeout=30)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        pending = [self._call.delay(function.__name__, item) for item in items]
        return [result.get(timeout=600) for result in pending]

    def stop(self) -> None:
        self._worker.kill()
        self._worker.wait()
        self._server.stop()


class CeleryChunks(CeleryPerItem):
    """Plain Celery with ``chunks`` of a sixteenth."""

    name = "Celery, chunks"
    per_item = False

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        pairs = [(function.__name__, item) for item in items]
        done = self._call.chunks(pairs, max(1, len(pairs) // 16)).apply_async()
        return [value for part in done.get(timeout=600) for value in part]


class RedisLists(Peer):
    """Two processes that pop from one list and push to another, an item at a time."""

    name = "raw Redis lists"
    per_item = True

    def start(self) -> None:
        from nbparallel.cluster.embedded import EmbeddedCluster
        from nbparallel.settings import Settings

        self._server = EmbeddedCluster(1, settings=Settings())
        self._server.start()
        self._server.wait_server(30)
        command = [sys.executable, "-m", "tests.benchmarks.plain_redis", self._server.store_url]
        self._workers = [subprocess.Popen(command) for _ in range(self.workers)]
        import redis

        self._redis = redis.Redis.from_url(self._server.store_url)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        import pickle

        results: list[Any] = [None] * len(items)
        pipe = self._redis.pipeline(transaction=False)
        for index, item in enumerate(items):
            pipe.rpush("in", pickle.dumps((index, function.__name__, item)))
        pipe.execute()
        for _ in items:
            answer: Any = self._redis.blpop(["out"], timeout=4)
            index, value = pickle.loads(answer[1])
            results[index] = value
        return results

    def stop(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()
        self._server.stop()


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Nbparallel,
        Pool,
        PoolOneByOne,
        Futures,
        FuturesChunked,
        Joblib,
        Mpire,
        RedisLists,
        CeleryChunks,
        CeleryPerItem,
        Ray,
        Dask,
        Ipyparallel,
    )
}


def warm(peer: Peer) -> float:
    """Start a peer and run something in each of its processes; seconds until the first result."""
    from .workloads import add_one

    started = time.perf_counter()
    peer.start()
    peer.map(add_one, list(range(4 * peer.workers)))
    return time.perf_counter() - started
