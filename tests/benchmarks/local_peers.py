"""nbparallel and the peers that are pools on one machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .peer import Columns, Function, Peer
from .workloads import pick

__all__ = ["Futures", "Joblib", "Mpire", "Nbparallel", "PlainLoop", "Pool"]


class PlainLoop(Peer):
    """No parallelism: what everything is compared with."""

    name = "plain loop"
    library = "builtins"

    def start(self) -> None:
        """Nothing to start."""

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        return [function(item) for item in items]

    def map_columns(self, function: Columns, of_tuple: Function, columns: Sequence[Sequence[Any]]) -> Sequence[Any]:
        return list(map(function, *columns))

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        return map(function, items)

    def stop(self) -> None:
        """Nothing to stop."""


class Nbparallel(Peer):
    """Ours: all defaults, everywhere."""

    name = "nbparallel"
    library = "nbparallel"
    package = "nbparallel"

    def start(self) -> None:
        import nbparallel

        self._nbparallel: Any = nbparallel
        self._cluster = nbparallel.Cluster(workers=self.workers)
        self.captures_best = hasattr(nbparallel, "share")
        self._shared: Any = None

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self._map(function, items).result()
        return results

    def map_columns(self, function: Columns, of_tuple: Function, columns: Sequence[Sequence[Any]]) -> Sequence[Any]:
        results: Sequence[Any] = self._map(function, *columns).result()
        return results

    def _map(self, function: Columns, *columns: Sequence[Any]) -> Any:
        return self._nbparallel.pmap(function, *columns, session=self._cluster, progress=False)

    def captured(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        return self.map(lambda index: float(array[index]), items)

    def captured_best(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        if self._shared is None:  # the first call pays; later ones find it shared
            self._shared = self._nbparallel.share(array)
        shared = self._shared
        return self.map(lambda index: float(shared.value[index]), items)

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        return iter(self._map(function, items))

    def begin(self, function: Function, items: Sequence[Any]) -> Any:
        return self._map(function, items)

    def cancel(self, begun: Any) -> None:
        begun.cancel()

    def stop(self) -> None:
        self._cluster.stop()


class Pool(Peer):
    """multiprocessing.Pool, whose default is four chunks a process."""

    name = "multiprocessing.Pool"
    library = "multiprocessing"
    best = "chunksize; a large array as a global"
    captures_best = True

    def start(self) -> None:
        from multiprocessing import Pool

        self._make = Pool
        self._pool = Pool(self.workers)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        return self._pool.map(function, items)

    def map_best(self, function: Function, items: Sequence[Any], chunk: int) -> Sequence[Any]:
        return self._pool.map(function, items, chunksize=chunk)

    def map_columns(self, function: Columns, of_tuple: Function, columns: Sequence[Sequence[Any]]) -> Sequence[Any]:
        return self._pool.starmap(function, zip(*columns, strict=True))

    def map_columns_best(
        self, function: Columns, of_tuple: Function, columns: Sequence[Sequence[Any]], chunk: int
    ) -> Sequence[Any]:
        return self._pool.starmap(function, zip(*columns, strict=True), chunksize=chunk)

    def captured_best(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        return _forked(array, lambda: self._make(self.workers), items)

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        return self._pool.imap(function, items)

    def begin(self, function: Function, items: Sequence[Any]) -> Any:
        return self._pool.map_async(function, items, chunksize=1)

    def cancel(self, begun: Any) -> None:
        self.stop()
        self._pool = self._make(self.workers)

    def stop(self) -> None:
        self._pool.terminate()
        self._pool.join()


_global: Any = None


def _pick_global(index: int) -> float:
    return float(_global[index])


def _forked(array: Any, make: Any, items: Sequence[int]) -> Sequence[float]:
    """A new pool inherits the array as a global; the time to fork it counts."""
    global _global
    _global = array
    try:
        with make() as pool:
            return list(pool.map(_pick_global, items))
    finally:
        _global = None


class Futures(Peer):
    """concurrent.futures, whose default is one item at a time."""

    name = "ProcessPoolExecutor"
    library = "concurrent.futures"
    best = "chunksize; a large array as a global"
    per_item = True
    captures_best = True

    def start(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self._make = ProcessPoolExecutor
        self._pool = ProcessPoolExecutor(self.workers)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        return list(self._pool.map(function, items))

    def map_best(self, function: Function, items: Sequence[Any], chunk: int) -> Sequence[Any]:
        return list(self._pool.map(function, items, chunksize=chunk))

    def map_columns(self, function: Columns, of_tuple: Function, columns: Sequence[Sequence[Any]]) -> Sequence[Any]:
        return list(self._pool.map(function, *columns))

    def map_columns_best(
        self, function: Columns, of_tuple: Function, columns: Sequence[Sequence[Any]], chunk: int
    ) -> Sequence[Any]:
        return list(self._pool.map(function, *columns, chunksize=chunk))

    def captured_best(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        return _forked(array, lambda: self._make(self.workers), items)

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        return self._pool.map(function, items)

    def begin(self, function: Function, items: Sequence[Any]) -> Any:
        return [self._pool.submit(function, item) for item in items]

    def cancel(self, begun: Any) -> None:
        for future in begun:
            future.cancel()

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class Joblib(Peer):
    """joblib with loky, which measures and makes batches by itself."""

    name = "joblib"
    library = "joblib"
    package = "joblib"
    best = "batch_size, pre_dispatch='all'; a large array as an argument"
    captures_best = True

    def start(self) -> None:
        import joblib

        self._joblib = joblib
        self._parallel = joblib.Parallel(n_jobs=self.workers)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        call = self._joblib.delayed(function)
        results: Sequence[Any] = self._parallel(call(item) for item in items)
        return results

    def map_best(self, function: Function, items: Sequence[Any], chunk: int) -> Sequence[Any]:
        call = self._joblib.delayed(function)
        parallel = self._joblib.Parallel(n_jobs=self.workers, batch_size=chunk, pre_dispatch="all")
        results: Sequence[Any] = parallel(call(item) for item in items)
        return results

    def captured(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        return self.map(lambda index: float(array[index]), items)

    def captured_best(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        call = self._joblib.delayed(_pick_of)
        results: Sequence[float] = self._parallel(call(array, item) for item in items)
        return results

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        call = self._joblib.delayed(function)
        parallel = self._joblib.Parallel(n_jobs=self.workers, return_as="generator")
        results: Iterator[Any] = parallel(call(item) for item in items)
        return results

    def begin(self, function: Function, items: Sequence[Any]) -> Any:
        return self.stream(function, items)

    def cancel(self, begun: Any) -> None:
        begun.close()

    def stop(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _pick_of(array: Any, index: int) -> float:
    return pick((array, index))


class Mpire(Peer):
    """mpire with workers that are kept alive."""

    name = "mpire"
    library = "mpire"
    package = "mpire"
    best = "chunk_size; a large array as shared_objects"
    captures_best = True

    def start(self) -> None:
        from mpire import WorkerPool

        self._make = WorkerPool
        self._pool = WorkerPool(n_jobs=self.workers, keep_alive=True)

    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        return self._map(function, items, None)

    def map_best(self, function: Function, items: Sequence[Any], chunk: int) -> Sequence[Any]:
        return self._map(function, items, chunk)

    def _map(self, function: Function, items: Sequence[Any], chunk: int | None) -> Sequence[Any]:
        # mpire unpacks tuples into arguments and stacks arrays, unless it is told otherwise.
        results: Sequence[Any] = self._pool.map(
            _Wrapped(function), [(item,) for item in items], chunk_size=chunk, concatenate_numpy_output=False
        )
        return results

    def captured_best(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        with self._make(n_jobs=self.workers, shared_objects=array) as pool:
            results: Sequence[float] = pool.map(_pick_of, items)
            return results

    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        results: Iterator[Any] = self._pool.imap(_Wrapped(function), [(item,) for item in items])
        return results

    def begin(self, function: Function, items: Sequence[Any]) -> Any:
        return [self._pool.apply_async(function, (item,)) for item in items]

    def cancel(self, begun: Any) -> None:
        self.stop()
        self._pool = self._make(n_jobs=self.workers, keep_alive=True)

    def stop(self) -> None:
        self._pool.terminate()


class _Wrapped:
    def __init__(self, function: Function) -> None:
        self.function = function

    def __call__(self, item: Any) -> Any:
        return self.function(item)
