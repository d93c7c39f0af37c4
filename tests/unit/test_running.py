"""A job's engine on the client: what it reads, sends, takes in, sends again, and when it has ended."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import eventually
from unit.clientbench import LEASE, Backend, Bench, ended, failure
from unit.workbench import KEY

from nbparallel import envelope
from nbparallel.client import feeding, shelf
from nbparallel.client import running as module
from nbparallel.client.backend import read_workers
from nbparallel.client.job import Job
from nbparallel.client.running import RunningJob
from nbparallel.errors import ConnectionFailed, ItemError, JobCancelled, JobError, RemoteError, UsageError
from nbparallel.policies import RetryPolicy
from nbparallel.store import keys


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    """Makes benches; their sessions and workers end with the test."""
    benches: list[Bench] = []

    def make(**options: Any) -> Bench:
        benches.append(Bench(monkeypatch, **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    """A session that is connected, without workers."""
    return make().start()


@pytest.fixture
def cluster(bench: Bench) -> Bench:
    """The same with two workers."""
    bench.work()
    return bench


# --- feeding --------------------------------------------------------------------------------------------------------


def test_a_call_returns_however_fast_the_workers_are(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With credit that never ends the caller sends some items, and a thread the rest."""
    monkeypatch.setattr(feeding.Feeding, "_window", lambda self: 2 * self._outstanding() + 10**6)
    job = bench.job(abs, range(10**12))
    eventually(lambda: job._running._feeder is not None and job._running._read > 10_000)
    job.cancel()


@pytest.mark.parametrize("chunks", [1, 7, "auto"])
def test_every_item_comes_back_once(cluster: Bench, chunks: Any) -> None:
    """A job over a list gives all results in order, and the store keeps nothing to run."""
    job = cluster.job(lambda x: x * x, list(range(500)), chunks=chunks)
    assert list(job) == [x * x for x in range(500)]
    assert job.status == "done"
    eventually(lambda: cluster.state_of(job) == "done")
    shot = job.snapshot()
    assert (shot.done, shot.failed, shot.running, shot.waiting, shot.retried) == (500, 0, 0, 0, 0)


def test_only_workers_that_are_there_run_items(bench: Bench) -> None:
    """While no worker listens nothing is said to run; then as much as they have processes, and the job allows."""
    job, limited = bench.job(abs, list(range(9))), bench.job(abs, list(range(9)), max_running=1)
    eventually(lambda: min(job.snapshot().waiting, limited.snapshot().waiting) >= 4, what="items are submitted")
    assert job.snapshot().running == 0
    bench.announce()
    eventually(lambda: job.snapshot().running == 3, what="the worker is known")
    assert limited.snapshot().running == 1
    job.cancel()
    limited.cancel()


def test_several_inputs_end_with_the_shortest(cluster: Bench) -> None:
    """Inputs are read together, as ``map`` does."""
    assert cluster.job(lambda x, y: x + y, range(5), [10, 20, 30]).result(20) == [10, 21, 32]


def test_an_empty_input_is_a_job_that_is_done(cluster: Bench) -> None:
    """Nothing is sent for nothing."""
    job = cluster.job(abs, [])
    assert job.result(10) == []
    assert list(cluster.job(abs, iter(()))) == []
    assert "submit" not in cluster.server.calls


def test_what_fits_is_submitted_at_once(bench: Bench) -> None:
    """When the cluster is up and the input needs no waiting, no thread is needed for a small job."""
    job = bench.job(abs, [1, 2])
    assert bench.state_of(job) == "open"
    assert job._running._feeder is None


def test_a_generator_is_read_as_results_are_taken(cluster: Bench) -> None:
    """Input without length is read only as far as its results are wanted, and all of it in the end."""
    read: list[int] = []

    def items() -> Iterator[int]:
        for x in range(5000):
            read.append(x)
            yield x

    job = cluster.job(lambda x: -x, items())
    eventually(lambda: job._running.full, what="no more is read")
    ahead = len(read)
    assert ahead < 2500
    cluster.announce()
    eventually(lambda: job.snapshot().reason == "waiting for the reader of the results")
    results = []
    for result in job:
        results.append(result)
        assert len(read) - len(results) <= 2500
    assert results == [-x for x in range(5000)]
    assert job.snapshot().total == 5000


def test_more_workers_are_given_more_at_once(bench: Bench) -> None:
    """When workers join, the input is read on, though no outcome has come yet."""
    job = bench.job(abs, iter(range(1000)))
    eventually(lambda: job._running._room() <= 0)
    before = job._running._read
    bench.announce(processes=20)
    eventually(lambda: job._running._read >= 20 > before)


def test_a_generator_runs_in_no_hurry(bench: Bench) -> None:
    """While nothing can be read the feeder waits, and does not look again and again."""
    job = bench.job(abs, iter(range(1000)))
    eventually(lambda: job._running._room() <= 0)
    looks = Counter[str]()
    pump = job._running._pump

    def counted() -> None:
        looks["pump"] += 1
        pump()

    job._running._pump = counted  # type: ignore[method-assign]
    threading.Event().wait(0.1)
    assert looks["pump"] <= 2


def test_the_error_of_an_input_comes_after_what_was_read(cluster: Bench) -> None:
    """What a generator gave before it failed is run; then its own error is raised."""

    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("broken")

    job = cluster.job(lambda x: -x, items())
    results: list[int] = []
    with pytest.raises(KeyError, match="broken"):
        results.extend(job)
    assert ended(job)
    assert job.status == "failed"


def test_an_input_that_is_slow_does_not_hold_back_what_was_read(cluster: Bench) -> None:
    """An item goes to the workers while the generator thinks about the next one."""
    gate = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert gate.wait(20)
        yield 2

    job = cluster.job(lambda x: -x, items())
    results = iter(job)
    assert next(results) == -1
    gate.set()
    assert list(results) == [-2]


def test_items_that_cannot_be_pickled_fail_alone(cluster: Bench) -> None:
    """Each such item is an error of its own; the others run."""
    items = [1, threading.Lock(), 3, threading.Lock()]
    job = cluster.job(lambda x: x, items, on_error="return", chunks=4)
    found = job.result(20)
    assert [found[0], found[2]] == [1, 3]
    assert all(isinstance(found[i], ItemError) and "cannot pickle" in found[i].message for i in (1, 3))
    assert found[1].index == 1


def test_many_items_that_cannot_be_pickled(cluster: Bench) -> None:
    """Their payloads are deleted before anyone claims them, and yet the job ends as it should."""
    items = [threading.Lock() if x % 4 else x for x in range(200)]
    job = cluster.job(lambda x: x, items, on_error="skip")
    assert list(job) == list(range(0, 200, 4))
    assert job.status == "done"
    assert len(job.errors) == 150


def test_no_more_tickets_than_may_run(bench: Bench) -> None:
    """``max_running`` bounds how many workers are called."""
    job = bench.job(abs, range(100), max_running=1)
    eventually(lambda: bench.server.peek(job._running.key).pending > 1)
    assert bench.server.peek(job._running.key).tickets == 1


# --- errors ---------------------------------------------------------------------------------------------------------


def test_the_first_failure_cuts_the_job(bench: Bench) -> None:
    """With ``raise`` items above the failed one need not run; those below are waited for."""
    job = bench.job(abs, list(range(8)))
    first, second, third = (bench.claim(job) for _ in range(3)) if bench.session.slots("") > 2 else (
        bench.claim(job), bench.claim(job), None
    )  # fmt: skip
    assert third is None
    bench.report(job, second, {1: failure(error=ValueError("odd"))})
    eventually(lambda: bench.server._jobs[job._running.key].stop == 2, what="the store is told")
    assert not job._running.ended, "item 0 may fail, too"
    bench.report(job, first)
    assert ended(job)
    with pytest.raises(ValueError, match="odd"):
        job.result(10)
    assert job.status == "failed"
    assert len(job._running.results.received) == 2


def test_a_lower_failure_lowers_the_cut(bench: Bench) -> None:
    """Of several failures the lowest is raised, whichever came first."""
    job = bench.job(abs, list(range(4)))
    first, second = bench.claim(job), bench.claim(job)
    bench.report(job, second, {1: failure(error=KeyError("second"))})
    eventually(lambda: job._running.stop_at == 2)
    bench.report(job, first, {0: failure(error=ValueError("first"))})
    with pytest.raises(ValueError, match="first"):
        list(job)


def test_a_cut_job_does_not_spin(bench: Bench) -> None:
    """While a cut job waits for what is below the cut, no thread of it looks again and again."""
    job = bench.job(abs, iter(range(1000)))
    first = bench.claim(job)
    bench.report(job, first, {0: failure(error=ValueError())}) if first.lo else None
    second = bench.claim(job)
    bench.report(job, second, {1: failure(error=ValueError("odd"))})
    eventually(lambda: job._running.stop_at == 2)
    looks = Counter[str]()
    pump = job._running._pump

    def counted() -> None:
        looks["pump"] += 1
        pump()

    job._running._pump = counted  # type: ignore[method-assign]
    threading.Event().wait(0.1)
    assert looks["pump"] <= 2
    bench.report(job, first)
    with pytest.raises(ValueError, match="odd"):
        list(job)


def test_failures_can_be_returned_or_skipped(cluster: Bench) -> None:
    """With ``return`` errors stand in their places, with ``skip`` they are left out; the job is done all the same."""

    def function(x: int) -> float:
        return 1 / (x % 3)

    returned = cluster.job(function, range(9), on_error="return").result(20)
    assert [isinstance(value, RemoteError) for value in returned] == [x % 3 == 0 for x in range(9)]
    assert isinstance(returned[3].exception, ZeroDivisionError)
    skipped = cluster.job(function, range(9), on_error="skip")
    assert skipped.result(20) == [1.0, 0.5] * 3
    assert (skipped.status, [error.index for error in skipped.errors]) == ("done", [0, 3, 6])


def test_the_first_failures_are_remembered(cluster: Bench) -> None:
    """A snapshot names the first hundred."""

    def function(x: int) -> int:
        raise KeyError(x)

    job = cluster.job(function, range(150), on_error="skip", chunks=10)
    assert ended(job)
    shot = job.snapshot()
    assert shot.failed == 150
    assert len(shot.errors) == 100
    assert shot.errors[0][1] == "KeyError"


# --- retries --------------------------------------------------------------------------------------------------------


def test_a_failed_item_is_tried_again(cluster: Bench) -> None:
    """An item that succeeds in the end has a result; attempts are counted, and the others run once."""
    calls: Counter[int] = Counter()

    def function(x: int) -> int:
        calls[x] += 1
        if x == 3 and calls[x] < 3:
            raise ConnectionError(x)
        return x

    job = cluster.job(function, range(6), retry=RetryPolicy(5, backoff=0.001), chunks=3)
    assert job.result(20) == list(range(6))
    assert calls == Counter({0: 1, 1: 1, 2: 1, 3: 3, 4: 1, 5: 1})
    assert job.snapshot().retried == 2
    assert len(job._running.tries.history[3]) == 2


def test_retries_come_to_an_end(cluster: Bench) -> None:
    """An item that fails each time fails in the end, with its attempts counted."""

    def function(x: int) -> int:
        raise ConnectionError(x)

    (error,) = cluster.job(function, [5], retry=RetryPolicy(2, backoff=0.001), on_error="return").result(20)
    assert (error.attempts, type(error.exception)) == (3, ConnectionError)


def test_an_attempt_is_decided_once(bench: Bench) -> None:
    """A failure that arrives twice is tried again once; what it says later is not the last word."""
    asked: list[BaseException] = []

    def again(error: BaseException) -> bool:
        asked.append(error)
        return True

    job = bench.job(abs, [7, 8], retry=RetryPolicy(3, retry_if=again, backoff=0.001))
    claim = bench.claim(job)
    block = bench.report(job, claim, {0: failure(error=ValueError())})
    eventually(lambda: asked)
    for _ in range(2):
        job._running.receive(block)
    assert len(asked) == 1
    assert job.snapshot().failed == 0
    assert job.snapshot().retried == 1
    found = bench.claim(job)
    found = found if found.lo == 0 else bench.claim(job)
    assert (found.lo, found.hi, found.attempt) == (0, 1, 2)
    bench.report(job, found)
    eventually(lambda: 0 in job._running.results.received)
    job._running.receive(block)
    assert job.snapshot().failed == 0


def test_an_error_of_retry_if_fails_the_job(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A broken rule is reported as such, and leaves nothing hanging."""

    def broken(error: BaseException) -> bool:
        raise KeyError("rule")

    job = bench.job(abs, [7], retry=RetryPolicy(3, retry_if=broken))
    bench.report(job, bench.claim(job), {0: failure(error=ValueError())})
    with pytest.raises(UsageError, match="retry_if raised KeyError"):
        job.result(10)


def test_a_retry_that_comes_too_late_does_nothing(bench: Bench) -> None:
    """When the job was cancelled, or the item has its outcome, the end of the pause sends nothing."""
    job = bench.job(abs, [7, 8], retry=RetryPolicy(3, backoff=100.0, max_backoff=100.0))
    bench.report(job, bench.claim(job), {0: failure(error=ConnectionError())})
    eventually(lambda: job._running.tries._resting == {0})
    bench.server.calls.clear()
    job.cancel()
    job._running._retry(0, 2)
    assert "submit" not in bench.server.calls


def test_above_a_cut_nothing_is_tried_again(bench: Bench) -> None:
    """An item that the cut leaves out needs no second attempt."""
    policy = RetryPolicy(3, retry_on=ConnectionError, backoff=0.001)
    job = bench.job(abs, range(4), chunks=2, retry=policy)
    first, second = bench.claim(job), bench.claim(job)
    low, high = (first, second) if first.lo == 0 else (second, first)
    bench.report(job, low, {1: failure(error=ValueError("odd"))}, count=2)
    assert ended(job)
    bench.report(job, high, {2: failure(error=ConnectionError())})
    with pytest.raises(ValueError, match="odd"):
        job.result(10)
    assert job.snapshot().retried == 0


# --- duplicates, losses ---------------------------------------------------------------------------------------------


def test_duplicates_are_dropped(bench: Bench) -> None:
    """An outcome that arrives twice counts once."""
    job = bench.job(abs, [1, 2, 3], chunks=3)
    block = bench.report(job, bench.claim(job))
    assert ended(job)
    job._running.receive(block)
    assert job.result(10) == [0, 1, 2]
    assert job.snapshot().done == 3


def test_a_store_that_forgot_is_told_again(bench: Bench) -> None:
    """What is missing, and nothing else, is submitted under a new epoch; old outcomes stay."""
    job = bench.job(abs, list(range(6)), chunks=2)
    claim = bench.claim(job)
    bench.report(job, claim)
    eventually(lambda: len(job._running.results.received) == 2)
    bench.server.wipe()
    while not bench.messages.empty():
        bench.messages.get()
    eventually(lambda: job._running.epoch == 1, what="a new epoch")
    eventually(lambda: bench.state_of(job) == "open")
    eventually(lambda: bench.server.peek(job._running.key).pending == 2)
    assert sorted(bench.server.peek(job._running.key, True).unreported) == [(2, 4), (4, 6)]
    bench.work()
    assert job.result(20) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("fails", ["session_beat", "submit", "peek"])
def test_a_store_that_goes_away_once_it_forgot(bench: Bench, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Whichever call of those that tell it again fails at first, it is told in the end."""
    job = bench.job(abs, list(range(6)), chunks=2)
    calls: list[str] = []

    def fail(*args: Any, **options: Any) -> Any:
        calls.append(fails)
        if len(calls) < 4:
            raise ConnectionFailed("the server is away")
        return getattr(bench.server, fails)(*args, **options)

    monkeypatch.setattr(bench.session.store, fails, fail, raising=False)
    bench.server.wipe()
    job._running.lost(0)
    eventually(lambda: len(calls) >= 4, what="it is tried again")
    eventually(lambda: bench.state_of(job) == "open")
    assert job._running.epoch == 1
    bench.work()
    assert job.result(20) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(6))
def test_a_store_that_forgets_again_and_again(cluster: Bench, seed: int) -> None:
    """However often the server loses everything, each result comes once, and the job ends."""
    rng = random.Random(seed)
    calls: Counter[int] = Counter()

    def function(x: int) -> int:
        calls[x] += 1
        time.sleep(0.002)
        if x % 10 == 1 and calls[x] < 3:
            raise ConnectionError(x)
        return -x

    inputs: Any = iter(range(120)) if seed % 2 else list(range(120))
    job = cluster.job(function, inputs, chunks=rng.choice([1, 5]), retry=RetryPolicy(9, backoff=0.01), keep=True)
    for _ in range(3):
        threading.Event().wait(rng.random() * 0.15)
        cluster.server.wipe()
    assert job.result(60) == [-x for x in range(120)]


def test_items_that_rest_are_not_sent_twice(bench: Bench) -> None:
    """An item whose pause is not over when the store forgets is sent by its timer alone, with the right attempt."""
    job = bench.job(abs, [7], retry=RetryPolicy(3, backoff=0.5, jitter=0.0))
    bench.report(job, bench.claim(job), {0: failure(error=ConnectionError())})
    eventually(lambda: job._running.tries._resting == {0})
    bench.server.wipe()
    job._running.lost(0)
    eventually(lambda: job._running.epoch == 1)
    claim = bench.claim(job)
    assert (claim.lo, claim.attempt) == (0, 2)
    assert bench.server.peek(job._running.key).pending == 0
    bench.report(job, claim)
    assert job.result(10) == [0]


def test_a_loss_that_is_reported_late_is_ignored(bench: Bench) -> None:
    """Only the present epoch can be lost, once, and only while the job runs."""
    job = bench.job(abs, [1])
    running = job._running
    running.lost(5)
    assert not running._lost
    bench.report(job, bench.claim(job))
    assert ended(job)
    running.lost(0)
    assert not running._lost


def test_an_outage_is_waited_for(cluster: Bench) -> None:
    """While the server is away the job says so; when it is back, the job goes on."""
    gate = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert gate.wait(20)
        yield from range(2, 20)

    job = cluster.job(lambda x: -x, items(), keep=True)
    eventually(lambda: len(job._running.results.received) == 1)
    cluster.server.away = True
    gate.set()
    eventually(lambda: "unreachable" in job.snapshot().reason)
    cluster.server.away = False
    assert job.result(20) == [-x for x in range(1, 20)]
    assert job.snapshot().reason == ""


def test_items_that_no_worker_could_unpickle_together_are_sent_alone(bench: Bench) -> None:
    """After such a report each item goes to the workers by itself, on a payload of its own."""
    job = bench.job(abs, [-1, -2, -3], chunks=3)
    bench.report(job, bench.claim(job), dict.fromkeys(range(3), failure("payload", "ImportError")))
    eventually(lambda: bench.server.peek(job._running.key).pending == 3)
    bench.work()
    assert job.result(20) == [1, 2, 3]
    assert not job.errors


def test_an_item_that_cannot_be_unpickled_here_either_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what the worker said is its error."""
    job = bench.job(abs, [-1], on_error="return")
    claim = bench.claim(job)

    def fail(*_: Any) -> None:
        raise ImportError("not here")

    monkeypatch.setattr(envelope, "open_payload", fail)
    bench.report(job, claim, {0: failure("payload", "ImportError")})
    (error,) = job.result(10)
    assert "could not unpickle the item: ImportError" in error.message


def test_lost_messages_are_sent_again(bench: Bench) -> None:
    """When nobody takes a ticket, new ones are minted after a while."""
    bench.lose_messages = True
    job = bench.job(abs, [-1, -2])
    assert bench.messages.empty()
    bench.lose_messages = False
    claim = bench.claim(job)
    assert claim.lo == 0
    bench.work()
    bench.report(job, claim)
    assert job.result(20) == [0, 2]


def passing(bench: Bench) -> Callable[[float], None]:
    """What makes seconds pass for the server, which stands still otherwise."""
    now = [bench.server._clock()]
    bench.server._clock = lambda: now[0]

    def passes(seconds: float) -> None:
        now[0] += int(seconds * 1000)

    return passes


def only_nudged_here(bench: Bench, job: Job[Any]) -> RunningJob:
    """The engine of a job that the keeper leaves alone."""
    bench.session._look = lambda: None  # type: ignore[method-assign]
    bench.session.forget(job._running.key)
    return job._running


def test_a_nudge_is_patient(bench: Bench) -> None:
    """While work is taken nothing is minted; each round of new tickets waits for longer than the one before."""
    passes = passing(bench)
    running = only_nudged_here(bench, job := bench.job(abs, list(range(3))))
    running.nudge()
    assert running._nudge_after == 1.0
    for expected in (2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        passes(running._nudge_after - 0.01)
        running.nudge()
        passes(0.01)
        sent = bench.messages.qsize()
        running.nudge()
        assert bench.messages.qsize() == sent + 2
        assert running._nudge_after == expected
    while bench.messages.qsize() > 2:
        bench.messages.get()
    bench.claim(job)
    running.nudge()
    assert running._nudge_after == 1.0, "somebody took one lately"


def test_long_items_do_not_make_the_nudge_late(bench: Bench) -> None:
    """After a while in which all tickets ran, those of a worker that vanished are replaced at the next look."""
    passes = passing(bench)
    running = only_nudged_here(bench, job := bench.job(abs, list(range(3))))
    tokens = [bench.claim(job).id for _ in range(2)]
    for _ in range(20):
        passes(1.0)
        running.nudge()
    assert bench.messages.empty()
    bench.server.renew(1000, [(running.key, token) for token in tokens])
    passes(1.0)
    bench.server.reap(10, keys.new_id(), LEASE)
    running.nudge()
    assert bench.messages.qsize() == 2


def test_a_worker_that_vanished_makes_the_nudge_early(bench: Bench) -> None:
    """However patient a full queue had made it: messages may have been on their way to that worker."""
    passes = passing(bench)
    running = only_nudged_here(bench, bench.job(abs, list(range(3))))
    bench.announce()
    bench.session._workers, _ = read_workers(bench.server, KEY)  # type: ignore[arg-type]
    running.nudge()
    running._nudge_after, sent = 30.0, bench.messages.qsize()
    passes(1.0)
    running.nudge()
    assert bench.messages.qsize() == sent
    bench.session._workers = []
    running.nudge()
    assert bench.messages.qsize() == sent + 2


def test_a_job_that_is_not_open_needs_no_nudge(make: Callable[..., Bench]) -> None:
    """Before the first submit and after the end there is nothing to look at."""
    bench = make()
    bench.backend.gate.clear()
    bench.session.start()
    job = bench.job(abs, [1])
    job._running.nudge()
    job._running.audit()
    assert bench.server.calls == []
    job.cancel()


# --- the end --------------------------------------------------------------------------------------------------------


def test_a_cancel_keeps_what_is_there(bench: Bench) -> None:
    """Finished results stay; the store is told to stop; a second cancel says that there is nothing to do."""
    job = bench.job(abs, list(range(5)))
    bench.report(job, bench.claim(job))
    eventually(lambda: len(job._running.results.received) == 1)
    assert job.cancel()
    assert not job.cancel()
    assert job.results_so_far() == {0: 0}
    with pytest.raises(JobCancelled):
        job.result(10)
    eventually(lambda: bench.state_of(job) == "cancelled")
    assert job.snapshot().state == "cancelled"


def test_outcomes_after_a_cancel_are_taken_in(bench: Bench) -> None:
    """What a worker finished before it heard of the cancel is not thrown away."""
    job = bench.job(abs, list(range(5)))
    claim = bench.claim(job)
    job.cancel()
    bench.report(job, claim)
    eventually(lambda: job.results_so_far() == {0: 0})


def test_a_cancel_before_the_cluster_is_up(make: Callable[..., Bench]) -> None:
    """A job that was cancelled while the cluster started submits nothing."""
    bench = make()
    bench.backend.gate.clear()
    bench.session.start()
    job = bench.job(abs, [1, 2])
    assert job.status == "starting"
    assert job.snapshot().reason == "starting the cluster"
    assert job.cancel()
    bench.backend.gate.set()
    bench.session.wait_ready(10)
    eventually(lambda: job._running._feeder is None)
    assert "submit" not in bench.server.calls


def test_a_cluster_that_does_not_come_up_fails_the_job(make: Callable[..., Bench]) -> None:
    """The job ends with the reason."""
    bench = make()
    bench.backend.error = JobError("no server")
    bench.session.start()
    job = bench.job(abs, [1, 2])
    with pytest.raises(JobError, match="no server"):
        job.result(10)


def test_a_verdict_fails_the_job(bench: Bench) -> None:
    """What a worker says of the whole job is what the user reads."""
    job = bench.job(abs, [1, 2])
    eventually(lambda: bench.state_of(job) == "open")
    verdict = envelope.Verdict("cannot be loaded", "host:1")
    bench.server.verdict(job._running.key, envelope.seal_verdict(KEY, job._running.key, verdict))
    with pytest.raises(JobError, match="'f' failed on worker host:1: cannot be loaded"):
        job.result(10)


def test_an_unexpected_error_ends_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the feeder must not leave the job hanging."""

    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module.RunningJob, "_encode", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        bench.job(abs, [1, 2]).result(10)


def test_an_interrupt_while_the_input_is_read_cancels(bench: Bench) -> None:
    """■ in the midst of ``pmap`` itself stops the job and is raised."""

    class Items(list[int]):
        def __getitem__(self, index: Any) -> Any:
            raise KeyboardInterrupt

    source = Items([1, 2])
    started: list[Any] = []
    start = module.RunningJob.start

    def remember(running: Any) -> None:
        running._source.sliceable = [source]
        started.append(running)
        start(running)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.RunningJob, "start", remember)
        with pytest.raises(KeyboardInterrupt):
            bench.job(abs, source)
    assert started[0].state == "cancelled"


def test_payloads_that_were_received_are_deleted(cluster: Bench) -> None:
    """The store does not keep items whose outcomes are here."""
    gate = threading.Event()

    def function(x: int) -> int:
        assert x < 99 or gate.wait(20)
        return x

    job = cluster.job(function, list(range(100)))
    eventually(lambda: len(job._running.results.received) == 99)
    eventually(lambda: len(cluster.server._jobs[job._running.key].blobs) <= shelf.DROP_BLOBS + 1)
    gate.set()
    assert job.result(20) == list(range(100))


def test_what_is_known_of_payloads_stays_small(cluster: Bench) -> None:
    """The list of payloads does not grow with the job."""
    job = cluster.job(lambda x: x, list(range(3000)))
    assert len(job.result(60)) == 3000
    assert len(job._running._shelf._starts) <= 2100


def test_a_restart_with_older_data_is_audited(bench: Bench) -> None:
    """What the server does not know of is submitted again, once its outcomes could have arrived."""
    job = bench.job(abs, list(range(4)))
    first = bench.claim(job)
    bench.server._jobs[job._running.key].chunks.pop(first.blob.replace("b", "c"), None)
    known = bench.server._jobs[job._running.key]
    for token in list(known.held):
        del known.chunks[known.held.pop(token)[0]]
    bench.server._leases.clear()
    bench.server._run_id = "started anew"
    eventually(lambda: (0, 1) in bench.server.peek(job._running.key, True).unreported, within=10)
    bench.work()
    bench.server.remint(job._running.key, -1, 0, [])
    assert job.result(20) == list(range(4))


@pytest.mark.parametrize("embedded", [True, False])
def test_why_a_job_waits(make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, embedded: bool) -> None:
    """A snapshot says in words what the job waits for."""
    monkeypatch.setattr("nbparallel.client.session.Beat", lambda *_: _NoBeat())
    bench = make(backend=Backend(embedded)).start()
    job = bench.job(abs, [1, 2])
    waits = "the workers are starting" if embedded else "no worker is listening on queue 'nbparallel'"
    eventually(lambda: job.snapshot().reason.startswith(waits))
    bench.announce()
    eventually(lambda: job.snapshot().reason == "")
    bench.announce(("other",))
    eventually(lambda: job.snapshot().reason.startswith("no worker is listening on queue 'nbparallel'"))


class _NoBeat:
    """No process of its own for a session that a test makes."""

    def keep_up(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""
