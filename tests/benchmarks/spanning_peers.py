"""The peers whose workers may be on other machines: Ray, Dask, ipyparallel, Celery, and lists in Redis."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from .peer import Function, Peer, batches, run_batch

__all__ = ["CeleryTasks", "Dask", "Ipyparallel", "Ray", "RedisLists"]

#: Large messages that Celery is given at a time, so that the server does not run out of memory.
_LARGE_AT_A_TIME = 4


class Dask(Peer):
    """dask.distributed, one future an item."""

    name = "dask.distributed"
    library = "distributed"
    package = "distributed"
    best = "a future for a batch; a large array scattered"
    per_item = True
    captures_best = True

    def start(self) -> None:
        from distributed import Client, LocalCluster, as_completed

        self._as_completed = as_completed
        self._cluster = LocalCluster(
            n_workers=self.workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self._client = Client(self._cluster)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self._client.gather(self._client.map(function, items, pure=False))
        return results

    def map_best(self, function: Function, items: Sequence[Any], chunk: int) -> Sequence[Any]:
        runs = [_Batch(function, run) for run in batches(items, chunk)]
        futures = [self._client.submit(run, pure=False) for run in runs]
        return [value for part in self._client.gather(futures) for value in part.values]

    def captured_best(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        there = self._client.scatter(array, broadcast=True, hash=False)
        futures = [self._client.submit(_pick_of, there, item, pure=False) for item in items]
        results: Sequence[float] = self._client.gather(futures)
        return results

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        futures = self._client.map(function, items, pure=False)
        for future in self._as_completed(futures):
            yield future.result()

    def begin(self, function: Function, items: Sequence[Any]) -> Any:
        return self._client.map(function, items, pure=False)

    def cancel(self, begun: Any) -> None:
        self._client.cancel(begun)

    def stop(self) -> None:
        self._client.close()
        self._cluster.close()


class _Batch:
    """A function and items that Dask pickles as they are, instead of looking into each for what it knows."""

    def __init__(self, function: Function, items: Sequence[Any]) -> None:
        self._function, self._items = function, items

    def __call__(self) -> _Values:
        return _Values(run_batch(self._function, self._items))


class _Values:
    def __init__(self, values: list[Any]) -> None:
        self.values = values


def _pick_of(array: Any, index: int) -> float:
    return float(array[index])


class Ray(Peer):
    """Ray, one task an item."""

    name = "ray"
    library = "ray"
    package = "ray"
    best = "a task for a batch; a large array in its object store"
    per_item = True
    captures_best = True

    def start(self) -> None:
        import ray

        self._ray = ray
        ray.init(num_cpus=self.workers, include_dashboard=False, log_to_driver=False, logging_level="error")

    def _submit(self, function: Function, items: Sequence[Any]) -> list[Any]:
        task = self._ray.remote(function)
        return [task.remote(item) for item in items]

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self._ray.get(self._submit(function, items))
        return results

    def map_best(self, function: Function, items: Sequence[Any], chunk: int) -> Sequence[Any]:
        task = self._ray.remote(run_batch)
        parts = self._ray.get([task.remote(function, run) for run in batches(items, chunk)])
        return [value for part in parts for value in part]

    def captured(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        return self.map(lambda index: float(array[index]), items)

    def captured_best(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        there = self._ray.put(array)
        task = self._ray.remote(_pick_of)
        results: Sequence[float] = self._ray.get([task.remote(there, item) for item in items])
        return results

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        left = self._submit(function, items)
        while left:
            done, left = self._ray.wait(left, num_returns=1)
            yield self._ray.get(done[0])

    def begin(self, function: Function, items: Sequence[Any]) -> Any:
        return self._submit(function, items)

    def cancel(self, begun: Any) -> None:
        for reference in begun:
            self._ray.cancel(reference)

    def stop(self) -> None:
        self._ray.shutdown()


class Ipyparallel(Peer):
    """ipyparallel's load-balanced view, one message an item."""

    name = "ipyparallel"
    library = "ipyparallel"
    package = "ipyparallel"
    best = "chunksize; a large array pushed"
    per_item = True
    captures_best = True

    def start(self) -> None:
        import ipyparallel

        self._ipyparallel = ipyparallel
        self._cluster = ipyparallel.Cluster(n=self.workers, log_level=40)
        self._client = self._cluster.start_and_connect_sync()
        self._view = self._client.load_balanced_view()

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self._view.map_sync(function, items)
        return results

    def map_best(self, function: Function, items: Sequence[Any], chunk: int) -> Sequence[Any]:
        results: Sequence[Any] = self._view.map_sync(function, items, chunksize=chunk)
        return results

    def captured_best(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        self._client[:].push({"_there": array}, block=True)
        pick = self._ipyparallel.interactive(lambda index: float(_there[index]))  # type: ignore[name-defined]  # noqa: F821
        return self.map(pick, items)

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        return iter(self._view.map_async(function, items, ordered=False))

    def begin(self, function: Function, items: Sequence[Any]) -> Any:
        return self._view.map_async(function, items)

    def cancel(self, begun: Any) -> None:
        begun.abort()

    def stop(self) -> None:
        self._cluster.stop_cluster_sync()


class _Server:
    """A server of the kind that the embedded cluster uses, without persistence, on a unix socket."""

    def __init__(self) -> None:
        from nbparallel.cluster.server import find_server

        self._directory = tempfile.TemporaryDirectory(prefix="b", dir=os.environ.get("BENCHMARK_FILES"))
        self.socket = os.path.join(self._directory.name, "s.sock")
        # Its title would overwrite the variable by which it is found when the peer has to be killed.
        config = f'port 0\nunixsocket {self.socket}\nsave ""\nset-proc-title no\n'
        self._process = subprocess.Popen([find_server(), "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(config.encode())
        deadline = time.monotonic() + 30
        while not os.path.exists(self.socket):
            if time.monotonic() > deadline:
                raise RuntimeError("the server did not start within 30 s")
            time.sleep(0.005)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()


class CeleryTasks(Peer):
    """Plain Celery on the same kind of server, a task an item."""

    name = "Celery"
    library = "celery"
    package = "celery"
    best = "chunks()"
    per_item = True

    def start(self) -> None:
        self._server = _Server()
        url = f"redis+socket://{self._server.socket}?virtual_host=0"
        os.environ["BENCHMARK_BROKER"] = os.environ["BENCHMARK_BACKEND"] = url
        command = [sys.executable, "-m", "celery", "-A", "tests.benchmarks.plain_celery", "worker", "-l", "ERROR"]
        command += ["-c", str(self.workers), "--without-gossip", "--without-mingle", "-Ofair"]
        os.environ["C_FORCE_ROOT"] = "1"  # pickle is what lets it send any item
        self._worker = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        from . import plain_celery

        self._app, self._call = plain_celery.app, plain_celery.call
        self._call.delay("add_one", 1).get(timeout=30)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        return [result.get() for result in self.begin(function, items)]

    def map_best(self, function: Function, items: Sequence[Any], chunk: int) -> Sequence[Any]:
        pairs = [(function.__name__, item) for item in items]
        done = self._call.chunks(pairs, chunk).apply_async()
        return [value for part in done.get() for value in part]

    def captured(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        # A task carries no function, so the array is an argument.
        results, waiting = [], deque[Any]()
        for item in items:
            waiting.append(self._call.delay("pick", (array, item)))
            if len(waiting) == _LARGE_AT_A_TIME:
                results.append(waiting.popleft().get())
        return results + [result.get() for result in waiting]

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        from celery import group

        calls: Any = group(self._call.s(function.__name__, item) for item in items).apply_async()
        return (result.get() for result in calls.results)

    def begin(self, function: Function, items: Sequence[Any]) -> Any:
        return [self._call.delay(function.__name__, item) for item in items]

    def cancel(self, begun: Any) -> None:
        self._app.control.revoke([result.id for result in begun], terminate=True)

    def stop(self) -> None:
        self._worker.kill()
        self._worker.wait()
        self._server.stop()


class RedisLists(Peer):
    """Processes that pop from one list and push to another, an item at a time."""

    name = "raw Redis lists"
    library = "redis"
    package = "redis"
    per_item = True

    def start(self) -> None:
        import redis

        self._server = _Server()
        command = [sys.executable, "-m", "tests.benchmarks.plain_redis", f"unix://{self._server.socket}"]
        self._workers = [subprocess.Popen(command) for _ in range(self.workers)]
        self._redis = redis.Redis(unix_socket_path=self._server.socket)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        results: list[Any] = [None] * len(items)
        for index, value in self._answers(function, items):
            results[index] = value
        return results

    def _answers(self, function: Function, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        pipe = self._redis.pipeline(transaction=False)
        for index, item in enumerate(items):
            pipe.rpush("in", pickle.dumps((index, function.__name__, item)))
        pipe.execute()
        for _ in items:
            answer: Any = None
            while answer is None:
                answer = self._redis.blpop(["out"], timeout=4)
            yield pickle.loads(answer[1])

    def captured(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        from .workloads import pick

        results: list[Any] = []
        for some in batches(items, _LARGE_AT_A_TIME):
            results += self.map(pick, [(array, item) for item in some])
        return results

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        return (value for _, value in self._answers(function, items))

    def stop(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()
        self._server.stop()
