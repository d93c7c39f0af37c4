"""Jobs that run in the reader's own process."""

from __future__ import annotations

import itertools
import os
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from nbparallel import ItemError, Job, JobCancelled, RemoteError, ResultDropped, pmap, pstarmap


def square(x: int) -> int:
    """The function of most of these jobs."""
    return x * x


def refuse_odd(x: int) -> int:
    """Fails for every other item."""
    if x % 2:
        raise ValueError(x)
    return x


def serial(function: Any, *iterables: Any, **options: Any) -> Job[Any]:
    """A serial job."""
    return pmap(function, *iterables, session="serial", **options)


def test_same_process_and_thread() -> None:
    """Items run here, in the reader's thread, and only when they are read; nothing is pickled."""
    lock = threading.Lock()
    ran: list[int] = []

    def f(x: int) -> Any:
        ran.append(x)
        return os.getpid(), threading.get_ident(), lock

    job = serial(f, range(3))
    assert (job.status, ran) == ("starting", [])
    results = iter(job)
    assert next(results) == (os.getpid(), threading.get_ident(), lock)
    assert (job.status, ran) == ("running", [0])
    assert len(list(results)) == 2
    assert (job.status, ran) == ("done", [0, 1, 2])


def test_reading() -> None:
    """Loops, indexes, slices and counts are as with any other job."""
    job = serial(square, range(10), name="squares")
    expected = [x * x for x in range(10)]
    assert (job[3], job.snapshot().done, job[-1], len(job)) == (9, 4, 81, 10)
    assert list(job) == list(job) == job.result() == expected
    for part in (slice(2, 5), slice(-3, None), slice(None, None, 7), slice(5, 100), slice(8, 2, -2)):
        assert job[part] == expected[part]
    assert job.results_so_far() == dict(enumerate(expected))
    assert dict(job.as_completed()) == dict(enumerate(expected))
    assert (job.name, job.status, job.errors, job.cancel(), job.wait()) == ("squares", "done", [], False, True)
    assert len(job.id) == 32
    assert "10 done" in repr(job)
    for index in (10, -11, -15):
        with pytest.raises(IndexError):
            job[index]


def test_several_readers() -> None:
    """Two loops over one job, taken in turn, each get everything, and each item runs once."""
    ran: list[int] = []
    job = serial(ran.append, range(5))
    assert list(zip(job, job, strict=True)) == [(None, None)] * 5
    assert ran == list(range(5))


def test_several_iterables_and_stars() -> None:
    """Arguments arrive as with ``map`` and ``starmap``."""
    assert list(serial(lambda x, y: x + y, [1, 2], itertools.count(10))) == [11, 13]
    assert list(pstarmap(pow, [(2, 3), (3, 2)], session="serial")) == [8, 9]
    results = pstarmap(pow, [5, (), (2, 2)], session="serial", on_error="return").result()
    assert [isinstance(result, ItemError) for result in results] == [True, True, False]
    assert list(serial(square, [])) == []


def test_endless_input() -> None:
    """Exactly as much of a generator is read as is taken; leaving the loop ends the job."""
    source = itertools.count()
    job = serial(square, source)
    with pytest.raises(TypeError, match="no length"):
        len(job)
    assert list(itertools.islice(job, 3)) == [0, 1, 4]
    assert (next(source), job.status) == (3, "cancelled")


def test_results_that_are_not_kept() -> None:
    """What was handed out of input without a length is gone; ``keep=True`` keeps it."""
    job = serial(square, iter(range(5)))
    assert list(job) == [0, 1, 4, 9, 16]
    assert (len(job), list(job), job.results_so_far()) == (5, [], {})
    for read in (job.result, lambda: job[0]):
        with pytest.raises(ResultDropped, match="keep=True"):
            read()
    job = serial(square, iter(range(5)), keep=True)
    assert (job[2], job[3:100], list(job)) == (4, [9, 16], [0, 1, 4, 9, 16])


def test_raise() -> None:
    """The function's own exception comes out as it was raised, frames and all, in its place, each time."""
    job = serial(lambda x: 1 // (x - 2), range(5))
    results = iter(job)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert "<lambda>" in [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert (job.status, [error.index for error in job.errors]) == ("failed", [2])
    assert job.wait()
    assert job[1] == -1
    for read in (job.result, lambda: list(job), lambda: job[2], lambda: job[4]):
        with pytest.raises(ZeroDivisionError):
            read()


def test_return_and_skip() -> None:
    """Failed items stand in their places as errors, or are left out."""
    job = serial(refuse_odd, range(4), on_error="return")
    results = job.result()
    assert results[::2] == [0, 2]
    assert isinstance(results[3], RemoteError)
    assert (results[3].index, results[3].item, str(results[3].exception)) == (3, "3", "3")
    assert job[1] is results[1]
    assert [error.index for error in job.errors] == [1, 3]
    assert job.results_so_far() == {0: 0, 2: 2}
    assert (job.status, job.snapshot().failed) == ("done", 2)
    job = serial(refuse_odd, range(4), on_error="skip")
    assert list(job) == list(job) == [0, 2]
    with pytest.raises(ValueError, match="1"):
        job[1]


def test_exceptions_are_values_too() -> None:
    """A result that is an error of ours is still a result."""
    error = RemoteError("no", index=7)
    job = serial(lambda x: error, range(2))
    assert (list(job), job[1], job.results_so_far()) == ([error] * 2, error, {0: error, 1: error})


def test_cancel() -> None:
    """After a cancel nothing more runs; what ran is still there."""
    job = serial(square, range(5))
    assert job[1] == 1
    assert job.cancel()
    assert not job.cancel()
    assert (job.status, job[:2]) == ("cancelled", [0, 1])
    for read in (job.result, lambda: job[2]):
        with pytest.raises(JobCancelled):
            read()


def test_interrupt() -> None:
    """A KeyboardInterrupt in the function reaches the reader, and ends the job."""

    def f(x: int) -> None:
        raise KeyboardInterrupt

    job = serial(f, range(3), on_error="return")
    with pytest.raises(KeyboardInterrupt):
        list(job)
    assert job.status == "failed"


def test_input_that_raises() -> None:
    """What the input raises comes after the results before it, each time that the job is read."""

    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("gone")

    job = serial(square, items(), keep=True)
    results = iter(job)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    for read in (lambda: next(results), job.result, lambda: job[3]):
        with pytest.raises(OSError, match="gone"):
            read()
    assert (job.status, job[2], job.wait()) == ("failed", 4, True)
