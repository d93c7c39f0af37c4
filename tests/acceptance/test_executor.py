"""``Executor`` on real worker processes, held against what ``concurrent.futures`` promises."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from support import Gate, eventually

from nbparallel import Cluster, Executor, JobCancelled, WorkerCrashed, pmap
from nbparallel.client import feed
from nbparallel.errors import ItemTimeout, SerializationError, UsageError


def square(x: int) -> int:
    """A function of this module."""
    return x * x


def test_submit_and_map(cluster: Cluster) -> None:
    """Calls run in other processes; any function and any arguments will do."""
    offset = 10
    with Executor(session=cluster) as executor:
        futures = [executor.submit(lambda x, y=0: x + y + offset, i, y=1) for i in range(100)]
        assert [future.result(10) for future in futures] == [i + 11 for i in range(100)]
        assert executor.submit(os.getpid).result(10) != os.getpid()
        assert list(executor.map(pow, range(5), itertools.repeat(2))) == [0, 1, 4, 9, 16]
        assert list(executor.map(square, range(100), chunksize=7)) == [i * i for i in range(100)]
        assert isinstance(executor, concurrent.futures.Executor)


def test_a_single_call_does_not_wait_for_others(cluster: Cluster) -> None:
    """Two calls, then silence: both have their results, one by one, and again after a pause that ended the job."""
    with Executor(session=cluster) as executor:
        for pause in (0, feed.IDLE_SECONDS * 1.5):
            threading.Event().wait(pause)
            first, second = executor.submit(square, 2), executor.submit(square, 3)
            assert (second.result(10), first.result(10)) == (9, 4)


def test_many_calls_share_chunks(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """Ten thousand calls that wait for a free process make one job with far fewer chunks."""
    started: list[Any] = []
    start = feed.Feed._start

    def noting(self: feed.Feed, waiting: Any) -> None:
        start(self, waiting)
        started.extend(job for job, _ in self._active.values() if job not in started)

    monkeypatch.setattr(feed.Feed, "_start", noting)
    with Executor(session=cluster) as executor:
        holders = [executor.submit(gate.wait) for _ in range(2)]
        futures = [executor.submit(square, i) for i in range(10_000)]
        gate.open()
        assert [holder.result(30) for holder in holders] == [None, None]
        assert sum(future.result(30) for future in futures) == sum(i * i for i in range(10_000))
    assert len(started) == 1
    assert started[0].snapshot().chunks < 2_000


def test_a_function_is_taken_as_it_is_when_submitted(cluster: Cluster) -> None:
    """What a closure refers to may change afterwards."""
    scale = 1

    def scaled(x: int) -> int:
        return scale * x

    with Executor(session=cluster) as executor:
        before = [executor.submit(scaled, 5) for _ in range(20)]
        scale = 3
        after = executor.submit(scaled, 5)
        assert ([future.result(10) for future in before], after.result(10)) == ([5] * 20, 15)


def test_errors_belong_to_their_calls(cluster: Cluster) -> None:
    """A failing call, one with arguments or a result that cannot be pickled, and one that kills its process."""
    with Executor(session=cluster) as executor:
        with pytest.raises(KeyError, match="key") as caught:
            executor.submit(lambda x, y: {}["key"], 1, y=2).result(10)
        assert "<lambda>(1, y=2)" in str(caught.value.__cause__)
        assert 'lambda x, y: {}["key"]' in str(caught.value.__cause__)
    with Executor(session=cluster) as executor:
        fine = [executor.submit(square, i) for i in range(5)]
        bad = executor.submit(lambda: {}["key"])
        argument = executor.submit(square, threading.Lock())
        result = executor.submit(threading.Lock)
        fatal = executor.submit(lambda: os._exit(3))
        fine += [executor.submit(square, i) for i in range(5)]
        assert [future.result(30) for future in fine] == [0, 1, 4, 9, 16] * 2
        with pytest.raises(KeyError, match="key"):
            bad.result(10)
        for future in (argument, result):
            with pytest.raises(SerializationError, match="lock"):
                future.result(10)
        with pytest.raises(WorkerCrashed):
            fatal.result(30)


def test_functions_that_cannot_be_pickled_are_refused_at_once(cluster: Cluster) -> None:
    """submit says so, instead of a future that nobody looks at."""
    lock = threading.Lock()
    with Executor(session=cluster) as executor:
        with pytest.raises(SerializationError, match="lock"):
            executor.submit(lambda: lock)
        with pytest.raises(UsageError, match="must be a function, not 3"):
            executor.submit(3)  # type: ignore[arg-type]


def test_calls_that_wait_can_be_cancelled(cluster: Cluster, tmp_path: Path, gate: Gate) -> None:
    """A call that was not sent yet never runs once it is cancelled."""

    def wait(i: int) -> int:
        (tmp_path / f"ran{i}").touch()
        gate.wait()
        return i

    with Executor(session=cluster) as executor:
        futures = [executor.submit(wait, i) for i in range(200)]
        eventually(lambda: len(list(tmp_path.glob("ran*"))) == 2)
        cancelled = [i for i in range(199, 100, -1) if futures[i].cancel()]
        assert len(cancelled) > 50
        assert not futures[0].cancel()
        gate.open()
        done, _ = concurrent.futures.wait(futures, 30)
        assert len(done) == 200
    assert not [i for i in cancelled if (tmp_path / f"ran{i}").exists()]
    assert [f.result() for f in futures if not f.cancelled()] == [i for i in range(200) if i not in cancelled]


def test_shutdown_waits_cancels_and_refuses(cluster: Cluster, tmp_path: Path) -> None:
    """After shutdown nothing is taken; what was taken runs to its end, but for what waits with cancel_futures."""

    def slow(i: int) -> int:
        time.sleep(0.02)
        (tmp_path / str(i)).touch()
        return i

    executor = Executor(session=cluster)
    futures = [executor.submit(slow, i) for i in range(50)]
    results = executor.map(slow, iter(range(50, 150)))
    executor.shutdown()
    assert len(list(tmp_path.iterdir())) == 150
    assert [future.result(0) for future in futures] == list(range(50))
    assert list(results) == list(range(50, 150))
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(slow, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(slow, [1])
    executor.shutdown()

    executor = Executor(session=cluster)
    futures = [executor.submit(time.sleep, 0.05) for _ in range(300)]
    executor.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert sum(future.cancelled() for future in futures) > 100


def test_map_raises_in_place_and_times_out(cluster: Cluster) -> None:
    """Results before a failed item are given first; a result that is late raises TimeoutError."""
    with Executor(session=cluster) as executor:
        results = executor.map(lambda i: 10 // i, [5, 2, 0, 1])
        assert [next(results), next(results)] == [2, 5]
        with pytest.raises(ZeroDivisionError):
            next(results)
        late = executor.map(time.sleep, [0, 30], timeout=0.5)
        assert next(late) is None
        with pytest.raises(concurrent.futures.TimeoutError):
            next(late)
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="chunksize"):
                executor.map(square, [1], chunksize=wrong)


def test_leaving_a_map_stops_it(cluster: Cluster) -> None:
    """When the iterator is closed, what did not run yet is cancelled."""
    with Executor(session=cluster) as executor:
        results: Any = executor.map(time.sleep, [0.05] * 1000)
        next(results)
        started = time.monotonic()
        results.close()
    assert time.monotonic() - started < 5


def test_endless_input_with_a_buffer(cluster: Cluster) -> None:
    """With buffersize, input is read as results are taken."""
    with Executor(session=cluster) as executor:
        results: Any = executor.map(square, itertools.count(), buffersize=100)
        assert list(itertools.islice(results, 1000)) == [i * i for i in range(1000)]
        results.close()


def test_options_reach_the_calls(cluster: Cluster, tmp_path: Path) -> None:
    """Time limits and retries hold for each call."""

    def flaky(path: Path) -> str:
        if path.exists():
            return "second"
        path.touch()
        raise ConnectionError

    with Executor(session=cluster, timeout=0.3, retries=2) as executor:
        slow, again = executor.submit(time.sleep, 30), executor.submit(flaky, tmp_path / "tried")
        with pytest.raises(ItemTimeout):
            slow.result(20)
        assert again.result(20) == "second"


def test_run_in_executor(cluster: Cluster) -> None:
    """asyncio runs its calls on it."""

    async def main(executor: Executor) -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, square, i) for i in range(50)))

    with Executor(session=cluster) as executor:
        assert asyncio.run(main(executor)) == [i * i for i in range(50)]


def test_callbacks_may_submit(cluster: Cluster) -> None:
    """A callback runs in this process, and may use the executor."""
    last: Future[int] = Future()
    with Executor(session=cluster) as executor:

        def again(future: Future[int]) -> None:
            value = future.result()
            if value > 1000:
                last.set_result(value)
            else:
                executor.submit(square, value).add_done_callback(again)

        executor.submit(square, 2).add_done_callback(again)
        assert last.result(20) == 65536


def test_threads_may_submit_at_once(cluster: Cluster) -> None:
    """Each of ten threads gets its own results."""
    wrong = []
    with Executor(session=cluster) as executor:

        def work(thread: int) -> None:
            futures = [executor.submit(square, 1000 * thread + i) for i in range(100)]
            if [f.result(30) for f in futures] != [(1000 * thread + i) ** 2 for i in range(100)]:
                wrong.append(thread)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_workers_of_its_own_end_with_it() -> None:
    """``max_workers`` starts that many processes; a cluster that stops fails what still waits."""
    with Executor(3) as executor:
        pids = set(executor.map(lambda _: time.sleep(0.3) or os.getpid(), range(6)))
    assert len(pids) == 3
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))

    cluster = Cluster(1)
    executor = Executor(session=cluster)
    future = executor.submit(time.sleep, 30)
    eventually(lambda: future.running())
    cluster.stop()
    with pytest.raises(JobCancelled):
        future.result(10)
    executor.shutdown()


def test_inside_a_worker_calls_run_at_once(cluster: Cluster) -> None:
    """An executor in a function on a worker runs its calls there, so that none waits for the other."""

    def nested(n: int) -> list[Any]:
        with Executor(4) as executor:
            failing = executor.submit(lambda: 1 // 0)
            return [*executor.map(square, range(n)), executor.submit(square, n).result(), type(failing.exception())]

    assert pmap(nested, [2, 3], session=cluster).result() == [
        [0, 1, 4, ZeroDivisionError],
        [0, 1, 4, 9, ZeroDivisionError],
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_workers": 0}, "at least 1"),
        ({"max_workers": 1.5}, "at least 1"),
        ({"timeout": -1}, "timeout"),
        ({"initializer": 3}, "initializer"),
        ({"session": 5}, "session"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], words: str) -> None:
    """A wrong argument is an error at once, before anything starts."""
    with pytest.raises(UsageError, match=words):
        Executor(**arguments)
