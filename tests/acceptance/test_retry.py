"""Items that fail are tried again: by a rule, or by hand once the job has ended."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support import eventually

from nbparallel import Cluster, JobCancelled, RetryPolicy, pmap
from nbparallel.errors import ItemError, JobError


def fails_until(path: str, index: int, odd: bool = True) -> int:
    """Odd items fail as long as the file is not there."""
    if index % 2 and not Path(path).exists():
        raise ValueError(f"not yet {index}")
    return index * 10


def flaky(directory: str, index: int, times: int) -> int:
    """Fails so many times with a ConnectionError."""
    path = Path(directory) / str(index)
    tries = len(path.read_text()) if path.exists() else 0
    path.write_text("x" * (tries + 1))
    if tries < times:
        raise ConnectionError(f"try {tries + 1}")
    return tries + 1


def test_a_failed_job_runs_only_what_failed_again(cluster: Cluster, tmp_path: Path) -> None:
    """``retry()`` re-runs the failed items into the same results, and counts and errors follow."""
    flag = str(tmp_path / "flag")
    job = pmap(lambda index: (time.time_ns(), fails_until(flag, index)), range(20), on_error="return", session=cluster)
    first = job.result(20)
    assert [isinstance(value, ItemError) for value in first] == [bool(i % 2) for i in range(20)]
    assert job.snapshot().failed == 10
    Path(flag).touch()
    assert job.retry() == 10
    second = job.result(20)
    assert [value[1] for value in second] == [index * 10 for index in range(20)]
    assert second[::2] == first[::2], "what had succeeded ran again"
    shot = job.snapshot()
    assert (shot.state, shot.done, shot.failed, shot.retried) == ("done", 20, 0, 10)
    assert job.errors == []
    said = {index: [str(error.exception) for error in past] for index, past in job.history.items()}
    assert said == {index: [f"not yet {index}"] for index in range(1, 20, 2)}


def test_what_fails_again_keeps_its_history(cluster: Cluster, tmp_path: Path) -> None:
    """An item that fails in each run says how often it was tried and how it failed before."""
    flag = str(tmp_path / "never")
    job = pmap(lambda index: fails_until(flag, index), range(4), on_error="return", session=cluster)
    job.result(20)
    job.retry()
    job.result(20)
    assert job.retry() == 2
    error = job.result(20)[1]
    assert isinstance(error, ItemError)
    assert (error.attempts, [past.attempts for past in error.history]) == (3, [1, 2])


def test_a_job_that_stopped_at_an_error_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """With ``on_error="raise"`` a retry also runs what was never started, the input that was not read included."""
    flag = tmp_path / "flag"
    job = pmap(lambda index: fails_until(str(flag), index), range(3000), chunks=1, session=cluster)
    with pytest.raises(ValueError, match="not yet 1"):
        job.result(30)
    flag.touch()
    job.retry()
    assert job.result(60) == [index * 10 for index in range(3000)]


def test_a_cancelled_job_goes_on(cluster: Cluster) -> None:
    """``retry()`` of a cancelled job runs what was cancelled; results from before stay."""
    job = pmap(lambda index: time.sleep(0.05) or index, range(60), session=cluster)
    for value in job:
        if value == 10:
            break
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(10)
    before = len(job.results_so_far())
    assert 11 <= before < 60
    job.retry()
    assert job.result(30) == list(range(60))
    assert not job.cancel()


def test_only_an_ended_job_can_be_retried(cluster: Cluster) -> None:
    """A running job, one without results and one with nothing to do say so."""
    job = pmap(time.sleep, [0.5], session=cluster)
    with pytest.raises(JobError, match="still runs"):
        job.retry()
    job.result(10)
    assert job.retry() == 0
    assert job.status == "done"
    stream = pmap(abs, iter([1]), session=cluster)
    assert list(stream) == [1]
    with pytest.raises(JobError, match="keep=True"):
        stream.retry()


def test_the_policy_tries_again_and_keeps_the_history(cluster: Cluster, tmp_path: Path) -> None:
    """``retries=`` repeats what may pass, up to its number, and ``history`` tells of each failure."""
    rule = RetryPolicy(retries=3, backoff=0.01)
    job = pmap(lambda index: flaky(str(tmp_path), index, index), range(6), retries=rule, on_error="return",
               session=cluster)  # fmt: skip
    results = job.result(20)
    assert results[:4] == [1, 2, 3, 4]
    assert [results[index].attempts for index in (4, 5)] == [4, 4]
    assert [len(results[index].history) for index in (4, 5)] == [3, 3]
    assert {index: len(past) for index, past in job.history.items()} == {1: 1, 2: 2, 3: 3, 4: 3, 5: 3}
    # By hand they get the policy's tries anew.
    job.retry()
    assert job.result(20) == [1, 2, 3, 4, 5, 6]


def test_a_pause_holds_no_worker(cluster: Cluster, tmp_path: Path) -> None:
    """While items wait for their next try, the worker processes do other work."""
    rule = RetryPolicy(retries=1, backoff=1.5, jitter=0.0)
    job = pmap(lambda index: flaky(str(tmp_path), index, 1), range(8), retries=rule, session=cluster)
    eventually(lambda: job.snapshot().retried == 8)
    started = time.monotonic()
    assert pmap(abs, range(-3, 0), session=cluster).result(10) == [3, 2, 1]
    assert time.monotonic() - started < 1.0
    assert job.result(20) == [2] * 8
