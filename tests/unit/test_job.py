"""The handle over a job whose outcomes the test hands in, in any order, without processes."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
from collections.abc import Iterable
from typing import Any
from unittest.mock import Mock

import pytest
from support import eventually

from nbparallel import pickling
from nbparallel.client.job import Job
from nbparallel.client.reading import Input
from nbparallel.client.running import RunningJob
from nbparallel.client.spec import JobSpec
from nbparallel.client.streams import Streams
from nbparallel.errors import (
    ItemError,
    JobCancelled,
    JobError,
    RemoteError,
    ResultDropped,
    ResultNotReady,
)
from nbparallel.model import Block
from nbparallel.remote import capture
from nbparallel.settings import Settings
from nbparallel.store.fake import MemoryStore


class Driven:
    """A job, and the means to play the workers of it."""

    def __init__(self, items: Iterable[Any] = range(4), **options: Any) -> None:
        session = Mock(settings=Settings(), namespace="n", key=b"k" * 16, sid="5" * 32, depot=None)
        session.store = MemoryStore(lambda: 1_000_000)
        session.streams = Streams("n", session.sid)
        session.store.session_beat(session.sid, b"", None)
        session.slots.return_value = 2
        session.workers.return_value = []
        session.reason.return_value = ""
        self.session = session
        self.source = Input([items])
        options.setdefault("keep", self.source.total is not None)
        spec = JobSpec(name="driven", function=b"", sized=self.source.total is not None, **options)
        self.running = RunningJob(spec, self.source, session)
        self.job: Job[Any] = Job(self.running)
        self.running.start()

    def give(self, lo: int, *values: Any) -> None:
        """Outcomes of items from ``lo`` on; an exception is a failure."""
        errors = {
            index: capture(value, "raised", str(index))
            for index, value in enumerate(values, lo)
            if isinstance(value, Exception)
        }
        body = [None if isinstance(value, Exception) else value for value in values]
        self.running.receive(Block(lo, len(values), pickling.dump(body), errors, 1, "host:1", 0.0, [0.1]))


def test_results_come_in_order() -> None:
    """What arrived out of order waits for its turn; ``ordered=False`` gives it as it came."""
    for ordered, expected in ((True, [10, 11, 12, 13]), (False, [12, 13, 10, 11])):
        driven = Driven(ordered=ordered)
        driven.give(2, 12, 13)
        assert driven.job.status == "running"
        assert driven.job.results_so_far() == {2: 12, 3: 13}
        driven.give(0, 10)
        driven.give(1, 11)
        assert driven.job.status == "done"
        assert list(driven.job) == list(driven.job) == expected
        assert driven.job.result() == [10, 11, 12, 13]
        assert [index for index, _ in driven.job.as_completed()] == [2, 3, 0, 1]


def test_duplicates_are_reported_once() -> None:
    """An outcome that comes again, alone or within another block, changes nothing."""
    driven = Driven(ordered=False)
    driven.give(1, "one")
    driven.give(0, "zero", "again")
    driven.give(1, "again", "two", "three")
    assert list(driven.job) == ["one", "zero", "two", "three"]


def test_first_failure_stops_and_is_raised_in_its_place() -> None:
    """With ``on_error="raise"`` the job lasts until all items before the first failure have their outcomes."""
    driven = Driven()
    driven.give(3, ValueError("three"))
    assert driven.job.status == "running"
    driven.session.stop_job.assert_called_with(driven.running, 4)
    driven.give(1, ValueError("one"))
    driven.session.stop_job.assert_called_with(driven.running, 2)
    assert driven.job.status == "running"
    driven.give(0, "zero")
    assert driven.job.status == "failed"
    results = iter(driven.job)
    assert next(results) == "zero"
    with pytest.raises(ValueError, match="one"):
        next(results)
    assert driven.job[0] == "zero"
    for read in (driven.job.result, lambda: driven.job[1], lambda: driven.job[2], lambda: list(driven.job)):
        with pytest.raises(ValueError, match="one"):
            read()


@pytest.mark.parametrize("ordered", [True, False])
def test_return_and_skip(ordered: bool) -> None:
    """A failed place holds an error, or is left out; both kinds of jobs end as done."""
    for on_error, expected in (("return", ["0", "RemoteError", "2", "3"]), ("skip", ["0", "2", "3"])):
        driven = Driven(on_error=on_error, ordered=ordered)
        driven.give(0, "0", KeyError("k"), "2", "3")
        names = [type(value).__name__ if isinstance(value, ItemError) else value for value in driven.job]
        assert names == expected
        assert len(driven.job.result()) == len(expected)
        assert dict(driven.job.as_completed()).keys() == {0, 2, 3} | ({1} if on_error == "return" else set())
        assert driven.job.status == "done"
        assert [(error.index, error.worker) for error in driven.job.errors] == [(1, "host:1")]
        if on_error == "return":
            assert isinstance(driven.job[1], RemoteError)
        else:
            with pytest.raises(KeyError):
                driven.job[1]


def test_raised_anew_each_time() -> None:
    """Each read raises a fresh exception, so that tracebacks do not grow."""
    driven = Driven()
    driven.give(0, ValueError("x"))
    caught = []
    for _ in range(2):
        with pytest.raises(ValueError, match="x") as info:
            list(driven.job)
        caught.append(info.value)
    assert caught[0] is not caught[1]


def test_waiting() -> None:
    """What is not there yet is waited for, and not longer than asked."""
    driven = Driven()
    with pytest.raises(ResultNotReady):
        driven.job.result(timeout=0.001)
    assert not driven.job.wait(timeout=0.001)
    reader = threading.Thread(target=lambda: got.append(driven.job[3]))
    got: list[Any] = []
    reader.start()
    driven.give(0, 0, 1, 2, 3)
    reader.join()
    assert got == [3]
    assert driven.job.wait()


def test_cancel() -> None:
    """A cancelled job wakes its readers; what arrived stays readable, even what arrives after it."""
    driven = Driven()
    driven.give(0, "zero")
    caught: list[BaseException] = []

    def read() -> None:
        try:
            driven.job.result()
        except JobCancelled as error:
            caught.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert driven.job.cancel()
    reader.join()
    assert len(caught) == 1
    assert not driven.job.cancel()
    driven.give(1, "one")
    assert driven.job.results_so_far() == {0: "zero", 1: "one"}
    with pytest.raises(JobCancelled, match="2 results"):
        driven.job[2]


def test_failure_of_the_whole_job() -> None:
    """A reason that is no item's is raised after what is there."""
    driven = Driven()
    driven.give(0, "zero")
    driven.running.fail(JobError("the cluster is gone"))
    results = iter(driven.job)
    assert next(results) == "zero"
    for read in (lambda: next(results), driven.job.result, lambda: driven.job[3]):
        with pytest.raises(JobError, match="the cluster is gone"):
            read()


def test_unsized_results_are_dropped_as_they_are_read() -> None:
    """Results of a generator are handed out once; the next loop goes on where the first one is."""
    driven = Driven(iter(range(4)), chunks=1)
    with pytest.raises(TypeError, match="no length"):
        len(driven.job)
    for index in range(4):
        eventually(lambda: driven.running._read > index, what="the feeder's thread reads")  # noqa: B023
        driven.give(index, index)
    first, second = iter(driven.job), iter(driven.job)
    assert [next(first), next(second), next(first)] == [0, 1, 2]
    for read in (driven.job.result, lambda: driven.job[0]):
        with pytest.raises(ResultDropped, match="keep=True"):
            read()
    assert (list(second), len(driven.job), driven.job.status) == ([3], 4, "done")


def test_index_beyond_what_is_read() -> None:
    """An index that only comes when somebody takes results before it is refused."""
    driven = Driven(itertools.count(), chunks=1)
    running, given = driven.running, 0
    while eventually(lambda: running.full or running._read > given) and not running.full:  # noqa: B023
        driven.give(given, given)
        given += 1
    assert driven.job[given - 1] == given - 1
    with pytest.raises(ResultNotReady, match="keep=True"):
        driven.job[10**9]
    assert "reader" in driven.job.snapshot().reason
    driven.job.cancel()


def test_bad_indexes() -> None:
    """Indexes out of range and of the wrong type are refused at once, though nothing is there yet."""
    driven = Driven()
    for index in (4, -5):
        with pytest.raises(IndexError):
            driven.job[index]
    with pytest.raises(TypeError):
        driven.job["0"]  # type: ignore[call-overload]
    driven.job.cancel()
    endless = Driven(itertools.count())
    for part in (slice(3, None), slice(-3, 5), slice(None, None, -1)):
        with pytest.raises(TypeError, match="no length"):
            endless.job[part]
    endless.job.cancel()


def test_index_error_of_the_users_own_in_a_slice() -> None:
    """An IndexError that an item raised is not taken for the end of the input."""
    driven = Driven(iter(range(3)), keep=True, chunks=3)
    eventually(lambda: driven.running.total is not None)
    driven.give(0, "zero", IndexError("mine"), "two")
    with pytest.raises(IndexError, match="mine"):
        driven.job[0:2]


def test_async_wakes_without_polling_only() -> None:
    """An event loop that waits gets results that another thread hands in, and goes on meanwhile."""
    driven = Driven()

    async def main() -> list[Any]:
        waiting = asyncio.ensure_future(driven.job._result_async())
        await asyncio.sleep(0)
        await asyncio.to_thread(driven.give, 0, 0, 1, 2, 3)
        return await waiting

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_forgotten_handle() -> None:
    """A job whose results nobody can read any more is cancelled; one that keeps them goes on."""
    endless, sized = Driven(itertools.count()), Driven()
    del endless.job, sized.job
    gc.collect()
    assert (endless.running.state, sized.running.state) == ("cancelled", "running")
    sized.running.cancel()


def test_forked_child() -> None:
    """A forked child can neither read nor cancel its parent's job."""
    driven = Driven()
    pid = os.fork()
    if pid == 0:
        refused = 0
        for read in (driven.job.result, lambda: list(driven.job), lambda: driven.job[0]):
            try:
                read()
            except JobError:
                refused += 1
        os._exit(refused if not driven.job.cancel() else 99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert driven.job.status == "running"
    driven.job.cancel()


def test_repr() -> None:
    """The repr says what is known in one line."""
    driven = Driven(on_error="return")
    driven.give(0, 1, ValueError())
    assert repr(driven.job) == "<Job 'driven' running: 2 of 4 done, 1 failed>"
    driven.job.cancel()
    assert len(driven.job.id) == 32
    assert driven.job.name == "driven"
