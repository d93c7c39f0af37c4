"""``Pool`` on real worker processes: each case runs on ``multiprocessing.Pool`` as well, and must do the same."""

from __future__ import annotations

import itertools
import multiprocessing
import operator
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
from support import Gate

from nbparallel import Cluster, JobCancelled, Pool
from nbparallel.errors import ItemTimeout, UsageError

MakePool = Callable[..., Any]


@pytest.fixture(params=["nbparallel", "multiprocessing"])
def make_pool(request: pytest.FixtureRequest, cluster: Cluster) -> MakePool:
    """Makes a pool of two of ours, or of the standard library (in threads: the interface is the same)."""
    if request.param == "multiprocessing":
        return lambda *args, **kwargs: ThreadPool(2, *args, **kwargs)
    return lambda *args, **kwargs: Pool(2, *args, session=cluster, **kwargs)


def divide(x: int) -> float:
    """Fails for 0."""
    return 12 / x


@dataclass
class Task:
    """A piece of work with an id, as the team's programs have them."""

    id: int
    seconds: float = 0.0

    def execute(self) -> tuple[int, int]:
        """Do it; says where."""
        time.sleep(self.seconds)
        return self.id, os.getpid()


def test_maps(make_pool: MakePool) -> None:
    """All forms of map give what map gives."""
    with make_pool() as pool:
        assert pool.map(divide, [1, 2, 3]) == [12, 6, 4]
        assert pool.map(divide, iter([1, 2]), 1) == [12, 6]
        assert pool.map(divide, []) == []
        assert pool.starmap(operator.add, [(1, 2), (3, 4)], chunksize=2) == [3, 7]
        assert list(pool.imap(divide, range(1, 4))) == [12, 6, 4]
        assert sorted(pool.imap_unordered(divide, range(1, 4), chunksize=2)) == [4, 6, 12]
        assert pool.map_async(divide, [1, 2]).get(10) == [12, 6]
        assert pool.starmap_async(operator.add, [(1, 2)]).get(10) == [3]
        assert pool.apply(int, ("ff",), {"base": 16}) == 255
        assert pool.apply_async(int, ["ff"], {"base": 16}).get(10) == 255


def test_errors(make_pool: MakePool) -> None:
    """What the function raises comes out where the standard library raises it, and imap goes on after it."""
    with make_pool() as pool:
        for run in (pool.map, lambda *a: pool.map_async(*a).get(10)):
            with pytest.raises(ZeroDivisionError):
                run(divide, [1, 0, 2])
        with pytest.raises(ZeroDivisionError):
            pool.apply(divide, (0,))
        results = pool.imap(divide, [1, 0, 2])
        assert next(results) == 12
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert next(results) == 6
        with pytest.raises(StopIteration):
            next(results)


def test_async_results(make_pool: MakePool, gate: Gate) -> None:
    """A result that is not there yet is not ready, and waiting for it ends in time."""

    def wait(x: int) -> float:
        gate.wait()
        return divide(x)

    with make_pool() as pool:
        result, failing = pool.apply_async(wait, (2,)), pool.map_async(wait, [0])
        assert not result.ready()
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(0.1)
        assert result.wait(0.01) is None
        slow = pool.imap(wait, [3])
        with pytest.raises(multiprocessing.TimeoutError):
            slow.next(timeout=0.1)
        gate.open()
        assert (result.get(10), slow.next(10)) == (6, 4)
        failing.wait(10)
        assert (result.ready(), result.successful(), failing.ready(), failing.successful()) == (True, True, True, False)


def test_callbacks(make_pool: MakePool) -> None:
    """Callbacks ran when get returns."""
    seen: list[Any] = []
    with make_pool() as pool:
        pool.apply_async(divide, (2,), callback=seen.append).get(10)
        pool.map_async(divide, [3, 4], callback=seen.append).get(10)
        pool.starmap_async(operator.add, [(1, 2)], callback=seen.append).get(10)
        failing = [
            pool.apply_async(divide, (0,), callback=seen.append, error_callback=lambda e: seen.append(type(e))),
            pool.map_async(divide, [0], error_callback=lambda e: seen.append(type(e))),
        ]
        for result in failing:
            with pytest.raises(ZeroDivisionError):
                result.get(10)
    assert seen == [6, [4, 3], [3], ZeroDivisionError, ZeroDivisionError]


def test_close_and_join(make_pool: MakePool, tmp_path: Path) -> None:
    """A closed pool takes nothing more; join waits until all has run, read or not, also from a generator."""
    pool = make_pool()

    def touch(i: int) -> int:
        (tmp_path / str(i)).touch()
        return i

    with pytest.raises(ValueError, match="still running"):
        pool.join()
    unread = pool.imap(touch, (i for i in range(500)))
    pool.imap_unordered(touch, range(500, 600))
    pool.map_async(touch, range(600, 700))
    pool.apply_async(touch, (700,))
    pool.close()
    for refused in (pool.map, pool.imap, pool.map_async):
        with pytest.raises(ValueError, match="not running"):
            refused(touch, [1])
    with pytest.raises(ValueError, match="not running"):
        pool.apply_async(touch, (1,))
    pool.join()
    assert len(list(tmp_path.iterdir())) == 701
    assert list(unread) == list(range(500))


def test_a_terminated_pool_is_over(make_pool: MakePool) -> None:
    """Leaving the block stops what runs; join returns."""
    with make_pool() as pool:
        pool.map_async(time.sleep, [0.05] * 100)
    started = time.monotonic()
    pool.join()
    assert time.monotonic() - started < 4
    with pytest.raises(ValueError, match="not running"), pool:
        pass


# -- ours alone --------------------------------------------------------------------------------------------------------

_model = None


def load(value: int, directory: str) -> None:
    """Sets a global, as initializers do, and notes the process."""
    global _model
    _model = value
    Path(directory, f"{os.getpid()}.{time.monotonic_ns()}").touch()


def use(x: int) -> int:
    """Uses the global."""
    assert _model is not None
    return _model * x


def test_an_initializer_runs_once_in_each_process(cluster: Cluster, tmp_path: Path) -> None:
    """The functions of a pool find what its initializer set, in every call; another pool has its own."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    with Pool(2, load, (3, str(first)), session=cluster) as pool:
        assert pool.map(use, range(100), chunksize=1) == [3 * i for i in range(100)]
        assert pool.starmap(use, [(2,)]) == [6]
        assert pool.apply(use, (4,)) == 12
        assert list(pool.imap(lambda x: use(x) + 1, [1])) == [4]
    with Pool(2, initializer=load, initargs=(5, str(second)), session=cluster) as pool:
        assert pool.map(use, [1, 2]) == [5, 10]
    runs = [path.name.partition(".")[0] for path in first.iterdir()]
    assert len(runs) == len(set(runs)) <= 2
    with Pool(session=cluster, initializer=divide, initargs=(0,)) as pool, pytest.raises(ZeroDivisionError):
        pool.map(use, [1])


def test_an_initializer_of_a_program(program: Any, tmp_path: Path) -> None:
    """In a script, too, whose functions travel by value, globals that the initializer sets are there in each call."""
    script = tmp_path / "program.py"
    script.write_text(
        "from nbparallel import Pool\n"
        "def load(value):\n    global model\n    model = [value]\n"
        "def use(x):\n    return model[0] * x\n"
        "def more(x):\n    return use(x) + 1\n"
        "if __name__ == '__main__':\n"
        "    with Pool(2, initializer=load, initargs=(3,)) as pool:\n"
        "        print(pool.map(use, range(4)), pool.map(more, range(4)), pool.apply(use, (5,)))\n"
    )
    answer = program(str(script))
    assert (answer.stdout, answer.stderr) == ("[0, 3, 6, 9] [1, 4, 7, 10] 15\n", "")


def test_changing_the_import_moves_a_program(program: Any, tmp_path: Path) -> None:
    """A program for multiprocessing prints the same with the one import changed."""
    text = (
        "from multiprocessing import Pool\n"
        "def forecast(year, month=1):\n    return year * 100 + month\n"
        "def main():\n"
        "    done = []\n"
        "    with Pool(processes=2) as pool:\n"
        "        print(pool.map(forecast, range(2020, 2024), chunksize=2))\n"
        "        print(pool.starmap(forecast, [(2020, m) for m in (1, 2)]))\n"
        "        print(sorted(pool.imap_unordered(forecast, (y for y in range(3)))))\n"
        "        results = [pool.apply_async(forecast, (y,), {'month': 2}, done.append) for y in range(3)]\n"
        "        print([r.get(timeout=30) for r in results], sorted(done))\n"
        "        pool.close()\n        pool.join()\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(text)
    new.write_text(text.replace("from multiprocessing", "from nbparallel"))
    before, after = program(str(old)), program(str(new))
    assert before.stdout.count("\n") == 4
    assert (after.stdout, after.stderr) == (before.stdout, before.stderr)


def test_objects_with_execute_and_the_lower_bound() -> None:
    """Fifty tasks that sleep, on four processes of a pool's own, end near the time that they need at least."""
    tasks = [Task(id, 0.1) for id in range(50)]
    with Pool(4) as pool:
        pool.map(time.sleep, [0.2] * 4, 1)  # all four are up
        started = time.monotonic()
        results = pool.map(lambda task: task.execute(), tasks)
        seconds = time.monotonic() - started
    assert [id for id, _ in results] == list(range(50))
    assert len({pid for _, pid in results}) == 4
    assert 1.3 <= seconds + 0.01 < 2.0  # thirteen rounds


def test_no_more_run_at_once_than_processes(cluster: Cluster, tmp_path: Path) -> None:
    """On a cluster that is there already ``processes`` is a limit."""

    def alone(i: int) -> bool:
        try:
            (tmp_path / "here").mkdir()
        except FileExistsError:
            return False
        time.sleep(0.01)
        (tmp_path / "here").rmdir()
        return True

    with Pool(1, session=cluster) as pool:
        assert all(pool.map(alone, range(40), chunksize=1))


def test_time_limits_and_stopping(cluster: Cluster) -> None:
    """A slow item is stopped at its limit; terminate stops all, and whoever waits is told."""
    with Pool(session=cluster, timeout=0.3) as pool, pytest.raises(ItemTimeout):
        pool.map(time.sleep, [0, 30])
    pool = Pool(session=cluster)
    waiting = [pool.map_async(time.sleep, [30] * 4), pool.apply_async(time.sleep, (30,))]
    stream = pool.imap(time.sleep, iter([30] * 4))
    started = time.monotonic()
    threading.Timer(0.2, pool.terminate).start()
    for result in waiting:
        with pytest.raises(JobCancelled):
            result.get(20)
    with pytest.raises(JobCancelled):
        next(stream)
    pool.join()
    assert time.monotonic() - started < 5
    with Pool(session=cluster) as again:
        assert again.map(abs, [-1]) == [1]


def test_endless_input(cluster: Cluster) -> None:
    """imap reads a generator as its results are taken."""
    read = itertools.count()

    def numbers() -> Iterator[int]:
        yield from read

    with Pool(session=cluster) as pool:
        results = pool.imap(abs, numbers())
        assert [next(results) for _ in range(1000)] == list(range(1000))
    assert next(read) < 1_000_000


@pytest.mark.parametrize("processes", [0, -1, 1.5, "2"])
def test_wrong_numbers_of_processes(processes: Any) -> None:
    """A number of processes that is none is a ValueError."""
    with pytest.raises(UsageError, match="at least 1"):
        Pool(processes)
