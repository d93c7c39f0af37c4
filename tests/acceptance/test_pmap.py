"""What a user of ``pmap`` gets, with real worker processes: results, errors, options, and input of every kind."""

from __future__ import annotations

import functools
import itertools
import linecache
import operator
import os
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import Gate, eventually, imported

from nbparallel import (
    Cluster,
    ItemError,
    ItemTimeout,
    Job,
    JobCancelled,
    JobError,
    RemoteError,
    ResultDropped,
    ResultNotReady,
    RetryPolicy,
    SerializationError,
    UsageError,
    pmap,
    pstarmap,
)

PATIENCE = 20.0


class OddError(Exception):
    """An exception of the user's own, whose ``__init__`` takes other arguments than it hands on."""

    def __init__(self, number: int, *, reason: str) -> None:
        super().__init__(f"{number} is odd ({reason})")
        self.number = number


def square(x: int) -> int:
    """The function of most of these jobs."""
    return x * x


def refuse_odd(x: int) -> int:
    """Fails for every other item."""
    if x % 2:
        raise OddError(x, reason="test")
    return x


def note(path: Path, text: object) -> None:
    """Append a line; atomic, for several processes write to the same file."""
    with path.open("a") as file:
        file.write(f"{text}\n")


def lines(path: Path) -> list[str]:
    """What was noted in a file so far."""
    return path.read_text().splitlines() if path.exists() else []


def cell(source: str, name: str = "<cell>") -> dict[str, Any]:
    """Run a source like a notebook does: code without a file, whose lines linecache knows."""
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), namespace)
    return namespace


# -- functions ---------------------------------------------------------------------------------------------------------


def test_any_function(cluster: Cluster) -> None:
    """Lambdas, closures, partials, builtins, bound methods, callable objects and classes all run."""
    factor = 3

    def scale(x: int, y: int = 1) -> int:
        return x * factor + y

    class Adder:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, x: int) -> int:
            return x + self.number

        def twice(self, x: int) -> int:
            return 2 * self(x)

    functions: list[tuple[Callable[..., Any], list[Any]]] = [
        (lambda x: x + factor, [3, 4, 5]),
        (scale, [1, 4, 7]),
        (functools.partial(scale, y=5), [5, 8, 11]),
        (abs, [0, 1, 2]),
        (str, ["0", "1", "2"]),
        (Adder(10), [10, 11, 12]),
        (Adder(10).twice, [20, 22, 24]),
    ]
    for function, expected in functions:
        assert list(pmap(function, range(3), session=cluster)) == expected
    assert list(pmap(operator.itemgetter(0), ["ab", "cd"], session=cluster)) == ["a", "c"]


@pytest.mark.everywhere
def test_functions_of_a_cell(cluster: Cluster) -> None:
    """A function that calls others of its cell, itself, and reads a global of it, finds all of them."""
    namespace = cell(
        "limit = 5\n"
        "def helper(x):\n    return min(x, limit)\n"
        "def factorial(x):\n    return 1 if x < 2 else x * factorial(x - 1)\n"
        "def f(x):\n    return factorial(helper(x))\n"
    )
    assert list(pmap(namespace["f"], [3, 50], session=cluster)) == [6, 120]


def test_function_loads_once_in_each_process(cluster: Cluster, tmp_path: Path) -> None:
    """The function is unpickled once per job in each worker process, however many chunks run there."""
    loads = tmp_path / "loads"

    def loaded(path: Path) -> int:
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return 7

    class Captured:
        def __reduce__(self) -> Any:
            return loaded, (loads,)

    captured = Captured()
    job = pmap(lambda x: (captured, os.getpid(), time.sleep(0.002)), range(100), chunks=1, session=cluster)
    results = job.result()
    assert job.snapshot().chunks == 100
    assert {result[0] for result in results} == {7}
    assert Counter(lines(loads)) == {str(result[1]): 1 for result in results}


def test_jobs_share_no_globals(cluster: Cluster) -> None:
    """A global that one job's function changed has its first value in the next job, in every process."""
    namespace = cell(
        "import os, time\nseen = 0\ndef f(x):\n    global seen\n    seen += 1\n    time.sleep(0.002)\n"
        "    return os.getpid(), seen\n"
    )
    jobs = [pmap(namespace["f"], range(40), chunks=1, session=cluster) for _ in range(2)]
    for job in [*jobs, pmap(namespace["f"], range(40), chunks=1, session=cluster)]:
        results = job.result()
        for process in {process for process, _ in results}:
            counts = sorted(count for pid, count in results if pid == process)
            assert counts == list(range(1, len(counts) + 1))
    assert namespace["seen"] == 0


# -- input -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items",
    [
        [],
        [1],
        (1, 2),
        range(5),
        "hello",
        b"hello",
        {"a": 1, "b": 2},
        {"a": 1}.items(),
        frozenset([1, 2]),
        deque([1, 2]),
        [None, None],
        [[], (), {}],
        [float("inf"), "x", 3j],
    ],
    ids=repr,
)
def test_input_like_map(cluster: Cluster, items: Any) -> None:
    """Whatever can be iterated gives what ``map`` gives, also without a length."""
    expected = list(map(lambda x: (x, repr(x)), items))  # noqa: C417  (the very thing that is compared with)
    assert list(pmap(lambda x: (x, repr(x)), items, session=cluster)) == expected
    assert list(pmap(lambda x: (x, repr(x)), iter(items), session=cluster)) == expected


@pytest.mark.everywhere
def test_several_iterables(cluster: Cluster) -> None:
    """Several iterables are read together, and the shortest ends it."""
    assert list(pmap(lambda x, y: x + y, [1, 2, 3], [10, 20], session=cluster)) == [11, 22]
    assert list(pmap(lambda x, y: x + y, itertools.count(), [10, 20], session=cluster)) == [10, 21]
    job = pmap(lambda *xs: xs, "abc", range(5), (1.5, 2.5, 3.5, 4.5), session=cluster)
    assert len(job) == 3
    assert job.result() == [("a", 0, 1.5), ("b", 1, 2.5), ("c", 2, 3.5)]


def test_pstarmap(cluster: Cluster) -> None:
    """``pstarmap`` calls the function with each tuple's elements; one that does not fit is that item's error."""
    assert list(pstarmap(pow, [(2, 3), (3, 2)], session=cluster)) == [8, 9]
    assert list(pstarmap(pow, ((x, 2) for x in range(4)), session=cluster)) == [0, 1, 4, 9]
    results = pstarmap(pow, [(2, 3), (1,), 5, (3, 2)], on_error="return", session=cluster).result()
    assert results[::3] == [8, 9]
    assert [result.type_name for result in results[1:3]] == ["TypeError", "TypeError"]  # type: ignore[attr-defined]


def test_large_arrays_stay_where_they_are() -> None:
    """Results in shared memory are not copied to disk, though they are more than the client keeps of others."""
    numpy = imported("numpy")
    with Cluster(workers=1, result_bytes=1000) as own:
        job = pmap(lambda i: numpy.full(1 << 18, i), range(8), session=own, progress=False)
        assert [array.sum() for array in job] == [i << 18 for i in range(8)]
        text = pmap(lambda i: f"{i}" * 3_000_000, range(2), session=own, progress=False)
        assert [len(value) for value in text] == [3_000_000] * 2
        assert job._running.results.mapped_bytes > 16_000_000
        assert text._running.results.spilled_bytes > 6_000_000
        assert job._running.results.spilled_bytes == text._running.results.mapped_bytes == 0


def test_numpy_arrays(cluster: Cluster) -> None:
    """An array is its rows; arrays go and come whole."""
    numpy = imported("numpy")
    array = numpy.arange(40_000).reshape(20, 2000)
    results = pmap(lambda row: row * 2, array, session=cluster).result()
    assert (numpy.array(results) == array * 2).all()
    assert list(pmap(lambda x, y: x + y, numpy.arange(3), [1, 2, 3], session=cluster)) == [1, 3, 5]
    with pytest.raises(UsageError, match="not iterable: it is of type ndarray"):
        pmap(abs, numpy.array(5), session=cluster)


def test_exceptions_are_values_too(cluster: Cluster) -> None:
    """Items and results may be exceptions, even ours; only what is raised is a failure."""
    items = [ValueError(1), KeyError("a"), RemoteError("no", index=7)]
    job = pmap(lambda x: x, items, session=cluster)
    assert [repr(result) for result in job] == [repr(item) for item in items]
    assert [repr(job[i]) for i in range(3)] == [repr(item) for item in items]
    assert (job.errors, len(job.results_so_far())) == ([], 3)


def test_none_results(cluster: Cluster) -> None:
    """None is a result like any other."""
    assert list(pmap(lambda x: None, range(50), session=cluster)) == [None] * 50


@pytest.mark.everywhere
def test_huge_range(cluster: Cluster) -> None:
    """Of a huge range a part can be read at once, and the rest is cancelled; len() works, no memory is taken."""
    job = pmap(lambda x: x + 1, range(10**9), session=cluster)
    assert job[5:8] == [6, 7, 8]
    assert len(job) == 10**9
    assert job.cancel()
    assert job[5] == 6
    assert list(itertools.islice(pmap(square, range(10**30), session=cluster), 3)) == [0, 1, 4]


def test_input_that_raises(cluster: Cluster) -> None:
    """What a generator raises is raised in its place, after the results of all items before it."""

    def items() -> Iterator[int]:
        yield from range(25)
        raise OddError(25, reason="input")

    got: list[int] = []
    with pytest.raises(OddError, match="input") as caught:
        got.extend(pmap(square, items(), session=cluster))  # which keeps what came before the error
    assert got == [x * x for x in range(25)]
    assert "in items" in "".join(traceback.format_tb(caught.tb))
    job = pmap(square, items(), keep=True, session=cluster)
    assert job.wait(PATIENCE)
    assert (job.status, len(job), job[24]) == ("failed", 25, 576)
    with pytest.raises(OddError):
        job.result()


def test_input_that_exits(cluster: Cluster) -> None:
    """``sys.exit`` in a generator reaches the reader, as with ``map``; nothing hangs."""

    def items() -> Iterator[int]:
        yield 1
        raise SystemExit(3)

    results = iter(pmap(square, items(), session=cluster))
    assert next(results) == 1
    with pytest.raises(SystemExit):
        next(results)


def test_generator_that_waits_for_results(cluster: Cluster) -> None:
    """With ``chunks=1`` a generator may need a result before its next item: nothing that was read is held back."""
    answers: deque[int] = deque([1])
    there = threading.Semaphore(1)

    def items() -> Iterator[int]:
        for _ in range(12):
            assert there.acquire(timeout=PATIENCE)
            yield answers[-1]

    for result in pmap(lambda x: x + 1, items(), chunks=1, session=cluster):
        answers.append(result)
        there.release()
    assert list(answers) == list(range(1, 14))


# -- the window --------------------------------------------------------------------------------------------------------


class Counted:
    """An endless input that counts how many items were read of it."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.read += 1
            yield number


@pytest.mark.everywhere
def test_endless_input_is_read_lazily(cluster: Cluster) -> None:
    """An endless generator is never read further ahead of the reader than the window."""
    source = Counted()
    results = iter(pmap(lambda x: time.sleep(0.01) or x, source, chunks=1, session=cluster))
    ahead = []
    for expected in range(40):
        assert next(results) == expected
        ahead.append(source.read - expected)
    results.close()  # type: ignore[attr-defined]
    # 2 items run; what waits is at most 0.1 s of work for each of 2 processes.
    assert max(ahead) < 50


def test_reader_who_pauses(cluster: Cluster) -> None:
    """When nobody takes results, reading stops, the job says why, and goes on with the reader."""
    source = Counted()
    job = pmap(lambda x: time.sleep(0.01) or x, source, chunks=1, session=cluster)
    results = iter(job)
    assert next(results) == 0
    eventually(lambda: "reader" in job.snapshot().reason, PATIENCE)
    assert source.read == job.snapshot().done < 50
    assert [next(results) for _ in range(60)] == list(range(1, 61))
    results.close()  # type: ignore[attr-defined]


@pytest.mark.everywhere
@pytest.mark.parametrize("ordered", [True, False])
def test_leaving_the_loop_stops_the_job(cluster: Cluster, ordered: bool) -> None:
    """``islice`` takes what it takes of an endless input, and that ends the job and closes the generator."""
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    job = pmap(square, items(), ordered=ordered, session=cluster)
    assert len(list(itertools.islice(job, 10))) == 10
    assert job.status == "cancelled"
    del job
    eventually(closed.is_set, PATIENCE)
    assert list(itertools.islice(pmap(square, itertools.count(), session=cluster), 4)) == [0, 1, 4, 9]


def test_forgotten_job(cluster: Cluster) -> None:
    """A job over endless input that nobody can read any more stops by itself."""
    running = pmap(square, itertools.count(), session=cluster)._running
    eventually(lambda: running.state == "cancelled", PATIENCE)


def test_sized_job_runs_without_a_reader(cluster: Cluster) -> None:
    """Input with a length runs to its end though nobody reads, and when the handle is gone."""
    running = pmap(square, range(500), session=cluster)._running
    eventually(lambda: running.state == "done", PATIENCE)


# -- reading results ---------------------------------------------------------------------------------------------------


def test_reading_a_job(cluster: Cluster) -> None:
    """Results can be looped over twice, taken by index and slice, all at once and so far."""
    job = pmap(square, range(100), name="squares", session=cluster)
    assert isinstance(job, Job)
    assert [job[3], job[-1], job[99], job[True]] == [9, 9801, 9801, 1]
    expected = [x * x for x in range(100)]
    assert list(job) == list(job) == job.result() == expected
    for part in (slice(2, 5), slice(-3, None), slice(None, None, 7), slice(90, 500), slice(5, 2), slice(8, 2, -2)):
        assert job[part] == expected[part]
    assert job.results_so_far() == dict(enumerate(expected))
    assert (len(job), job.status, job.errors, job.name) == (100, "done", [], "squares")
    assert (job.wait(0), job.cancel()) == (True, False)
    assert repr(job) == "<Job 'squares' done: 100 of 100 done>"
    for index in (100, -101):
        with pytest.raises(IndexError):
            job[index]
    with pytest.raises(TypeError):
        job[1.5]  # type: ignore[call-overload]


def test_readers_at_the_same_time(cluster: Cluster) -> None:
    """Several loops over one job, in one thread and in many, each get everything."""
    job = pmap(square, range(300), session=cluster)
    expected = [x * x for x in range(300)]
    assert list(zip(job, job, strict=True)) == list(zip(expected, expected, strict=True))
    job = pmap(square, range(300), session=cluster)
    with ThreadPoolExecutor(4) as threads:
        assert all(result == expected for result in threads.map(lambda _: list(job), range(4)))


@pytest.mark.everywhere
def test_unordered(cluster: Cluster, gate: Gate) -> None:
    """With ``ordered=False`` and from ``as_completed`` results come as they are there, each once."""

    def f(x: int) -> int:
        if x == 0:
            gate.wait()
        return x

    job = pmap(f, range(20), chunks=1, ordered=False, session=cluster)
    got = []
    for x in job:
        got.append(x)
        if len(got) == 19:
            gate.open()
    assert got[-1] == 0
    assert sorted(got) == list(range(20))
    assert job.result() == list(range(20))  # always in input order
    assert [index for index, _ in job.as_completed()] == got


def test_as_completed_of_an_ordered_job(cluster: Cluster) -> None:
    """``as_completed`` gives indexes with results, and what failed as ``on_error`` says."""
    job = pmap(refuse_odd, range(6), on_error="return", session=cluster)
    found = dict(job.as_completed())
    assert sorted(found) == list(range(6))
    assert isinstance(found[3], ItemError)
    assert dict(pmap(refuse_odd, range(6), on_error="skip", session=cluster).as_completed()) == {0: 0, 2: 2, 4: 4}
    with pytest.raises(OddError):
        dict(pmap(refuse_odd, range(6), session=cluster).as_completed())


def test_unsized_results_are_dropped(cluster: Cluster) -> None:
    """What was handed out of input without a length is gone, and asking for it says so."""
    job = pmap(square, iter(range(10)), session=cluster)
    with pytest.raises(TypeError, match="no length"):
        len(job)
    assert list(job) == [x * x for x in range(10)]
    assert len(job) == 10
    assert list(job) == []
    assert job.results_so_far() == {}
    for read in (lambda: job[3], lambda: job[2:4], job.result, lambda: list(job.as_completed())):
        with pytest.raises(ResultDropped, match="keep=True"):
            read()


def test_index_ahead_of_the_reader(cluster: Cluster) -> None:
    """An index that is read only when results before it are taken is refused instead of waited for."""
    job = pmap(lambda x: time.sleep(0.005) or x, itertools.count(), session=cluster)
    assert job[0] == 0
    with pytest.raises(ResultNotReady, match="keep=True"):
        job[100_000_000]
    job.cancel()


def test_keep(cluster: Cluster) -> None:
    """``keep=True`` keeps results of a generator, which is read to its end; ``keep=False`` drops those of a list."""
    job = pmap(square, iter(range(50)), keep=True, session=cluster)
    assert job[40] == 1600
    assert job[45:80] == [x * x for x in range(45, 50)]
    assert list(job) == list(job) == job.result()
    dropping = pmap(square, list(range(50)), keep=False, session=cluster)
    assert len(dropping) == 50
    assert list(dropping) == job.result()
    with pytest.raises(ResultDropped):
        dropping[3]


def test_result_in_time(cluster: Cluster, gate: Gate) -> None:
    """``result(timeout)`` and ``wait(timeout)`` wait no longer, and do not end the job."""
    job = pmap(lambda x: gate.wait(), range(2), session=cluster)
    with pytest.raises(ResultNotReady, match="in the time given: <Job"):
        job.result(timeout=0.01)
    assert not job.wait(timeout=0.01)
    gate.open()
    assert job.result(timeout=PATIENCE) == [None, None]


@pytest.mark.everywhere
def test_cancel(cluster: Cluster, tmp_path: Path, gate: Gate) -> None:
    """Cancel stops what runs; what had finished stays readable, the rest says that it was cancelled."""

    def f(x: int) -> int:
        if x == 10:
            try:
                note(tmp_path / "runs", x)
                gate.wait()
            finally:
                note(tmp_path / "left", x)
        return x

    job = pmap(f, range(10**6), chunks=1, max_running=1, session=cluster)
    assert job[9] == 9
    eventually(lambda: job.snapshot().done == 10 and lines(tmp_path / "runs"), PATIENCE)
    assert job.cancel()
    assert not job.cancel()
    assert job.status == "cancelled"
    assert job.wait(0)
    eventually(lambda: lines(tmp_path / "left") == ["10"], PATIENCE, "the running item was interrupted")
    assert job.results_so_far() == {x: x for x in range(10)}
    assert job[:10] == list(range(10))
    for read in (job.result, lambda: list(job), lambda: job[10]):
        with pytest.raises(JobCancelled):
            read()
    assert list(pmap(square, range(5), session=cluster)) == [0, 1, 4, 9, 16]


# -- errors ------------------------------------------------------------------------------------------------------------


def test_on_error_raise(cluster: Cluster, tmp_path: Path, gate: Gate) -> None:
    """At the first failure in order, earlier items still finish and are yielded; then it is raised; later ones end."""

    def f(x: int) -> int:
        note(tmp_path / "ran", x)
        if x == 1:
            raise KeyError("one")
        if x == 0:
            gate.wait()
        time.sleep(0.005)
        return x

    job = pmap(f, range(2000), chunks=1, session=cluster)
    eventually(lambda: job.errors, PATIENCE)
    assert job.status == "running"  # item 0 is still to come
    gate.open()
    results = iter(job)
    assert next(results) == 0
    with pytest.raises(KeyError, match="one"):
        next(results)
    assert job.status == "failed"
    assert job.wait(PATIENCE)
    assert job[0] == 0
    for read in (lambda: job[1], lambda: job[1999], job.result, lambda: list(job)):
        with pytest.raises(KeyError, match="one"):
            read()
    assert len(lines(tmp_path / "ran")) < 2000
    assert [error.index for error in job.errors] == [1]


@pytest.mark.everywhere
@pytest.mark.parametrize("ordered", [True, False])
def test_the_first_failure_in_order_is_raised(cluster: Cluster, gate: Gate, ordered: bool) -> None:
    """When a later item failed first, an earlier failure still wins, whichever way one reads."""

    def f(x: int) -> int:
        if x == 3:
            gate.wait()
        if x in (3, 4):
            raise ValueError(x)
        return x

    job = pmap(f, range(50), chunks=1, ordered=ordered, session=cluster)
    got: list[int] = []
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(got.extend, job)
        eventually(lambda: job.errors, PATIENCE, "item 4 fails")
        gate.open()
    with pytest.raises(ValueError, match="3") as caught:
        reading.result()
    assert caught.value.args == (3,)
    assert set(got) >= {0, 1, 2}
    assert got == [0, 1, 2] or not ordered
    with pytest.raises(ValueError, match="3"):
        job.result()


def test_exception_of_the_users_own(cluster: Cluster) -> None:
    """The user's own type is raised with its attributes, chained to the remote traceback, with index and item."""
    namespace = cell("def f(x):\n    y = x - 3\n    return 1 / y  # in a cell\n", "<cell-7>")
    with pytest.raises(ZeroDivisionError) as caught:
        pmap(namespace["f"], range(10), session=cluster).result()
    shown = "".join(traceback.format_exception(caught.value))
    assert "item 3 (3)" in shown
    assert "return 1 / y  # in a cell" in shown
    assert '"<cell-7>", line 3' in shown
    with pytest.raises(OddError) as odd:
        list(pmap(refuse_odd, [0, 2, 5], session=cluster))
    assert odd.value.number == 5
    assert str(odd.value) == "5 is odd (test)"
    assert "item 2 (5)" in "".join(traceback.format_exception(odd.value))


@pytest.mark.everywhere
def test_on_error_return(cluster: Cluster) -> None:
    """An ``ItemError`` stands in each failed place, with all that is known."""
    job = pmap(refuse_odd, range(40), on_error="return", session=cluster)
    results = job.result()
    assert results[::2] == list(range(0, 40, 2))
    assert (job.status, len(job.errors), len(job.results_so_far())) == ("done", 20, 20)
    for error in results[1::2]:
        assert isinstance(error, RemoteError)
        assert error.item == str(error.index)
        assert error.type_name.endswith("OddError")
        assert "raise OddError" in error.traceback
        assert error.worker
        assert isinstance(error.exception, OddError)
    assert isinstance(job[1], ItemError)
    assert [error.index for error in job.errors] == list(range(1, 40, 2))


def test_on_error_skip(cluster: Cluster) -> None:
    """Failed places are left out; they are in ``errors``, and raised when asked for by index."""
    for ordered in (True, False):
        job = pmap(refuse_odd, range(10), on_error="skip", ordered=ordered, session=cluster)
        assert sorted(job) == job.result() == [0, 2, 4, 6, 8]
        assert (job.status, len(job.errors)) == ("done", 5)
        with pytest.raises(OddError):
            job[1]


@pytest.mark.parametrize("raised", [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_exceptions_with_a_meaning(cluster: Cluster, raised: type[BaseException]) -> None:
    """What would end the reader's own loop or process is an item's error like any other, also within a batch."""

    def f(x: int) -> int:
        if x == 777:
            raise raised("x")
        return x

    results = pmap(f, range(2000), on_error="return", session=cluster).result()
    assert [index for index, result in enumerate(results) if isinstance(result, ItemError)] == [777]
    with pytest.raises(RemoteError, match=raised.__name__):
        pmap(f, range(2000), session=cluster).result()


def test_what_cannot_be_pickled(cluster: Cluster) -> None:
    """An unpicklable item or result is that item's error, by name; an unpicklable function is refused at once."""
    lock = threading.Lock()
    results = pmap(str, [1, lock, 3], on_error="return", session=cluster).result()
    assert [results[0], results[2]] == ["1", "3"]
    assert "item 1" in str(results[1])
    assert "lock" in str(results[1])
    results = pmap(lambda x: threading.Lock() if x == 1 else x, range(3), on_error="return", session=cluster).result()
    assert [results[0], results[2]] == [0, 2]
    assert "the result of item 1" in str(results[1])
    with pytest.raises(SerializationError, match="lock"):
        pmap(lambda x: lock, [1], session=cluster)


# -- options -----------------------------------------------------------------------------------------------------------


def test_chunks(cluster: Cluster) -> None:
    """``chunks=n`` makes chunks of n items, the last one of the rest; one ticket runs many of them."""
    job = pmap(square, range(25), chunks=10, session=cluster)
    assert job.result() == [x * x for x in range(25)]
    assert job.snapshot().chunks == 3


def test_one_ticket_runs_many_chunks(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker process takes chunk after chunk with one ticket, and so far fewer tickets than chunks are sent."""
    tickets: list[list[str]] = []
    publish = cluster.session.publish

    def counted(job: Any, offered: list[str]) -> None:
        tickets.append(offered)
        publish(job, offered)

    monkeypatch.setattr(cluster.session, "publish", counted)
    job = pmap(square, range(400), chunks=1, session=cluster)
    assert job.result() == [x * x for x in range(400)]
    assert job.snapshot().chunks == 400
    assert tickets
    assert sum(map(len, tickets)) < 40  # none, even, when the processes linger after the last job


@pytest.mark.everywhere
def test_max_running(cluster: Cluster, tmp_path: Path) -> None:
    """With ``max_running=1`` no two items of the job ever run at once."""

    def alone(x: int) -> int:
        (tmp_path / "busy").mkdir()  # fails when it is there
        time.sleep(0.005)
        (tmp_path / "busy").rmdir()
        return x

    job = pmap(alone, range(40), chunks=1, max_running=1, session=cluster)
    assert job.result() == list(range(40))


@pytest.mark.everywhere
def test_timeout(cluster: Cluster) -> None:
    """An item that runs longer than ``timeout`` is interrupted; its neighbours are not touched."""
    results = pmap(
        lambda x: time.sleep(x) or x, [0, 30, 0.01], timeout=0.2, on_error="return", session=cluster
    ).result()
    assert results[::2] == [0, 0.01]
    assert isinstance(results[1], ItemTimeout)
    assert results[1].index == 1


@pytest.mark.everywhere
def test_retries(cluster: Cluster, tmp_path: Path) -> None:
    """A failed item runs again as often as allowed; then its last error counts, and others are not run again."""

    def flaky(x: int) -> int:
        note(tmp_path / str(x), "try")
        if len((tmp_path / str(x)).read_text().splitlines()) <= x:
            raise ConnectionError(x)
        return x

    policy = RetryPolicy(2, backoff=0.01)
    results = pmap(flaky, range(4), retries=policy, on_error="return", session=cluster).result()
    assert results[:3] == [0, 1, 2]
    assert isinstance(results[3], RemoteError)
    assert results[3].attempts == 3
    assert [len(lines(tmp_path / str(x))) for x in range(4)] == [1, 2, 3, 3]
    assert pmap(flaky, [4], retries=RetryPolicy(5, backoff=0.0), session=cluster).result() == [4]
    with pytest.raises(KeyError):
        pmap(lambda x: {}[x], [1], retries=3, session=cluster).result()


def test_init(tmp_path: Path) -> None:
    """``init`` runs once in each process before anything else there."""

    def init() -> None:
        os.environ["INIT_DONE"] = "yes"
        note(tmp_path / "init", os.getpid())

    with Cluster(workers=2, init=init) as own:
        assert set(pmap(lambda x: os.environ["INIT_DONE"], range(20), chunks=1, session=own)) == {"yes"}
        assert own.workers == 2
    counts = Counter(lines(tmp_path / "init"))
    assert set(counts.values()) == {1}
    assert len(counts) <= 2
    with pytest.raises(JobError, match="stopped"):
        pmap(square, [1], session=own)


def test_init_that_fails() -> None:
    """When ``init`` fails, jobs fail with what it raised instead of waiting for ever."""

    def init() -> None:
        raise OddError(1, reason="init")

    with Cluster(workers=1, init=init) as own:
        job = pmap(square, range(3), session=own)
        with pytest.raises(JobError, match="1 is odd"):
            job.result(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pmap(5, [1]), "must be a function"),  # type: ignore[call-overload]
        (lambda: pmap(abs), "at least one iterable"),
        (lambda: pmap(abs, 5), "argument 1 after the function is not iterable: it is of type int"),  # type: ignore[call-overload]
        (lambda: pmap(pow, [1], None), "argument 2"),  # type: ignore[call-overload]
        (lambda: pmap(abs, [1], chunks=0), "chunks"),
        (lambda: pmap(abs, [1], chunks=True), "chunks"),
        (lambda: pmap(abs, [1], chunks="big"), "chunks"),  # type: ignore[call-overload]
        (lambda: pmap(abs, [1], on_error="ignore"), "on_error"),  # type: ignore[call-overload]
        (lambda: pmap(abs, [1], ordered=2), "ordered"),  # type: ignore[call-overload]
        (lambda: pmap(abs, [1], timeout=0), "timeout"),
        (lambda: pmap(abs, [1], timeout=float("nan")), "timeout"),
        (lambda: pmap(abs, [1], retries=-1), "retries"),
        (lambda: pmap(abs, [1], keep="yes"), "keep"),  # type: ignore[call-overload]
        (lambda: pmap(abs, [1], max_running=-1), "max_running"),
        (lambda: pmap(abs, [1], progress="pretty"), "progress"),
        (lambda: pmap(abs, [1], name=7), "name must be a string"),  # type: ignore[call-overload]
        (lambda: pmap(abs, [1], queue=b"q"), "queue must be a string"),  # type: ignore[call-overload]
        (lambda: pmap(abs, [1], session="cluster"), "session"),  # type: ignore[call-overload]
        (lambda: pstarmap(abs, [1], chunk=3), "unknown option 'chunk'"),  # type: ignore[call-arg]
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    """A bad argument is refused at once, by name, before anything starts."""
    with pytest.raises(UsageError, match=message):
        call()


# -- many at once ------------------------------------------------------------------------------------------------------


def test_nested_pmap_runs_serially(cluster: Cluster) -> None:
    """A ``pmap`` in a worker runs right there, so that no number of levels can deadlock."""

    def outer(x: int) -> tuple[int, set[int], list[int]]:
        from nbparallel import pmap

        inner = pmap(lambda y: (os.getpid(), y + x), range(5), chunks=1)
        found = list(inner)
        return os.getpid(), {pid for pid, _ in found}, [y for _, y in found]

    for x, (pid, inner, values) in enumerate(pmap(outer, range(8), chunks=1, session=cluster)):
        assert inner == {pid}
        assert values == list(range(x, x + 5))
        assert pid != os.getpid()


def test_ten_threads(cluster: Cluster) -> None:
    """Ten threads may call ``pmap`` at once, each getting its own results."""
    with ThreadPoolExecutor(10) as threads:
        jobs = threads.map(lambda n: pmap(lambda x: x + n, range(100), session=cluster).result(), range(10))
        assert list(jobs) == [list(range(n, n + 100)) for n in range(10)]


def test_thirty_jobs_in_a_row(cluster: Cluster) -> None:
    """Job after job works, and none of the ended ones is still looked after."""
    for number in range(30):
        assert pmap(lambda x: x * number, range(10), session=cluster).result() == [x * number for x in range(10)]  # noqa: B023
    eventually(lambda: not cluster.session._jobs, PATIENCE, "the session forgot the ended jobs")


@pytest.mark.everywhere
def test_two_jobs_interleaved(cluster: Cluster) -> None:
    """Two endless jobs that are read in turn both go on."""
    first = pmap(square, itertools.count(), session=cluster)
    second = pmap(lambda x: -x, itertools.count(), session=cluster)
    got = list(itertools.islice(zip(first, second, strict=True), 500))
    assert got == [(x * x, -x) for x in range(500)]
    first.cancel()
    second.cancel()


def test_results_feed_the_next_job(cluster: Cluster) -> None:
    """A job is an iterable like any other: one reads what the other gives."""
    first = pmap(square, range(50), session=cluster)
    assert list(pmap(lambda x: x + 1, first, session=cluster)) == [x * x + 1 for x in range(50)]
    stream = pmap(lambda x: x + 1, iter(pmap(square, itertools.count(), session=cluster)), session=cluster)
    assert list(itertools.islice(stream, 50)) == [x * x + 1 for x in range(50)]


def test_workers_write_nothing_here(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither results nor errors nor a cancel leave a word on our standard streams."""
    list(pmap(square, range(100), session=cluster))
    pmap(refuse_odd, range(100), on_error="return", session=cluster).result()
    pmap(time.sleep, [30, 30], session=cluster).cancel()
    assert capfd.readouterr() == ("", "")
