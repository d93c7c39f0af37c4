"""A client's session: its start and end, the threads that serve jobs, and what it makes of a cluster's troubles."""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import eventually
from unit.clientbench import Backend, Bench, Client, ended

from nbparallel import envelope, pickling
from nbparallel.client import session as module
from nbparallel.errors import (
    ClusterError,
    ConnectionFailed,
    JobCancelled,
    JobError,
    KeyMismatch,
    StoreFull,
    VersionMismatch,
)
from nbparallel.model import Block, Snapshot


class NoBeat:
    """In the place of a process of its own."""

    made: list[NoBeat]

    def __init__(self, *_: Any) -> None:
        self.kept, self.stopped = 0, False
        NoBeat.made.append(self)

    def keep_up(self) -> None:
        """Count."""
        self.kept += 1

    def stop(self) -> None:
        """Remember."""
        self.stopped = True


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    """Makes benches; their sessions and workers end with the test."""
    NoBeat.made = []
    monkeypatch.setattr(module, "Beat", NoBeat)
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


# --- start and end --------------------------------------------------------------------------------------------------


def test_a_session_starts_in_the_background(make: Callable[..., Bench]) -> None:
    """Starting returns at once; ready it is when the store answers; starting again does nothing."""
    bench = make()
    bench.backend.gate.clear()
    bench.session.start()
    bench.session.start()
    assert not bench.session.is_ready()
    with pytest.raises(ConnectionFailed, match="still starting"):
        bench.session.wait_ready(0.01)
    bench.backend.gate.set()
    bench.session.wait_ready(10)
    assert bench.session.is_ready()
    assert bench.backend.connects == 1
    assert bench.session.sid in bench.server._sessions


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [(ConnectionFailed("refused"), ConnectionFailed, "refused"), (OSError("disk"), ClusterError, "did not start: OSE")],
)
def test_a_cluster_that_does_not_start(
    make: Callable[..., Bench], error: Exception, kind: type[Exception], words: str
) -> None:
    """Everyone who waits is told why, and the session can be closed."""
    bench = make()
    bench.backend.error = error
    bench.session.start()
    with pytest.raises(kind, match=words):
        bench.session.wait_ready(10)
    assert not bench.session.is_ready()


def test_a_server_that_is_away_for_a_moment_at_the_start(make: Callable[..., Bench]) -> None:
    """A remote one answered when the user connected: the first job waits for it as any other does."""
    bench = make(backend=Backend(embedded=False))
    bench.server.away = True
    bench.session.start()
    job = bench.job(abs, [-1, -2])
    eventually(lambda: "unreachable" in job.snapshot().reason)
    bench.server.away = False
    bench.work()
    assert job.result(20) == [1, 2]


def test_a_server_that_never_comes_back(make: Callable[..., Bench]) -> None:
    """A session that waits for its server can be closed, and then says what it waited for."""
    bench = make(backend=Backend(embedded=False))
    bench.server.away = True
    bench.session.start()
    eventually(lambda: bench.session._trouble_since is not None)
    bench.session.close()
    with pytest.raises(ConnectionFailed, match="away"):
        bench.session.wait_ready(10)


def test_a_closed_session_takes_everything_with_it(make: Callable[..., Bench]) -> None:
    """Jobs are cancelled, threads end, the cluster is stopped, the store hears a goodbye; twice does no harm."""
    bench = make().start()
    job = bench.job(abs, [1, 2, 3])
    for _ in range(2):
        bench.session.close()
        assert bench.session.closed
        assert bench.backend.stopped
    with pytest.raises(JobCancelled):
        job.result(5)
    assert bench.server._sessions == {}
    with pytest.raises(JobError, match="was stopped"):
        bench.session.check_usable()


def test_a_forked_child_leaves_the_session_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What belongs to the parent is neither used nor closed by its children."""
    job = bench.job(abs, [1])
    bench.session.check_usable()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        bench.session.close()
        assert not job.cancel()
        with pytest.raises(JobError, match="parent process"):
            bench.session.check_usable()
        with pytest.raises(JobError, match="parent process"):
            job.result()
    assert not bench.backend.stopped
    assert bench.session.is_ready()


def test_a_remote_cluster_is_told_that_we_live(make: Callable[..., Bench]) -> None:
    """There a process of its own beats for us, and ends with us; the session's time in the store is bounded."""
    bench = make(backend=Backend(embedded=False)).start()
    (beat,) = NoBeat.made
    assert beat.kept >= 1
    assert bench.server._sessions[bench.session.sid] is not None
    job = bench.job(abs, [1])
    eventually(lambda: beat.kept >= 2)
    bench.report(job, bench.claim(job))
    assert ended(job)
    eventually(lambda: bench.state_of(job) == "done")
    assert len(bench.server._jobs[job._running.key].out.entries) == 1, "results stay for whoever attaches"
    bench.session.close()
    assert beat.stopped


# --- streams --------------------------------------------------------------------------------------------------------


def test_what_strangers_write_is_refused(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """An outcome that was not sealed with our key is not taken in; the true one is."""
    job = bench.job(abs, [1])
    claim = bench.claim(job)
    key = job._running.key
    block = Block(0, 1, pickling.dump(["forged"]), worker="stranger")
    bench.server._jobs[key].out.append(1, envelope.seal_block(b"another key 1234", key, block))
    with caplog.at_level(logging.WARNING):
        bench.server.wake(bench.session.sid)
        eventually(lambda: "not sealed with our key" in caplog.text)
    bench.report(job, claim)
    assert job.result(10) == [0]


def test_a_bug_in_one_job_does_not_end_the_collector(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The job whose outcome could not be taken in fails; others go on."""
    broken, other = bench.job(abs, [1]), bench.job(abs, [2])

    def fail(_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(broken._running, "receive", fail)
    bench.report(broken, bench.claim(broken))
    with pytest.raises(RuntimeError, match="a bug"):
        broken.result(10)
    bench.report(other, bench.claim(other))
    assert other.result(10) == [0]


def test_a_stream_of_a_job_that_is_no_more_is_passed_over(bench: Bench) -> None:
    """Entries that arrive as a job is forgotten concern nobody."""
    bench.session._take("unknown", [("1-0", b"entry")], {})


# --- the keeper -----------------------------------------------------------------------------------------------------


class View:
    """Notes what it is to draw."""

    def __init__(self) -> None:
        self.updates: list[Snapshot] = []
        self.closed: list[Snapshot] = []

    def update(self, snapshot: Snapshot) -> None:
        """Draw."""
        self.updates.append(snapshot)

    def close(self, snapshot: Snapshot) -> None:
        """Draw the last."""
        self.closed.append(snapshot)


def test_progress_is_drawn_until_the_end(bench: Bench) -> None:
    """A view sees snapshots of the running job, and its last one once."""
    job, view = bench.job(abs, [1, 2]), View()
    bench.session.watch(job._running, view)
    eventually(lambda: view.updates)
    for _ in range(2):
        bench.report(job, bench.claim(job))
    eventually(lambda: view.closed)
    assert [shot.state for shot in view.closed] == ["done"]
    assert all(not shot.finished for shot in view.updates)


def test_a_view_that_fails_is_dropped(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be drawn must not end the thread that all jobs depend on."""

    class Broken(View):
        def update(self, snapshot: Snapshot) -> None:
            raise RuntimeError("no display")

    job = bench.job(abs, [1])
    bench.session.watch(job._running, Broken())
    eventually(lambda: "no display" in caplog.text)
    done = threading.Event()
    bench.session.soon(done.set)
    assert done.wait(5), "the keeper lives"


def test_steps_are_done_in_time(bench: Bench) -> None:
    """What is to be done later is done in order of its time; a step that fails is only logged."""
    done: list[int] = []
    bench.session.later(0.05, lambda: done.append(2))
    bench.session.later(0.01, lambda: done.append(1))
    bench.session.soon(lambda: {}["bug"])
    bench.session.soon(lambda: done.append(0))
    eventually(lambda: done == [0, 1, 2])


def test_the_keeper_never_sleeps_over_something_to_do(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may look for jobs at any moment of a job's end, and nobody wakes it for what is left to do then."""
    forget, pause, pauses = bench.session.forget, bench.session._pause, list[float | None]()

    def note() -> float | None:
        pauses.append(pause())
        return pauses[-1]

    def forget_and_let_it_look(key: str) -> None:
        forget(key)
        before = len(pauses)
        bench.session._wake.set()
        eventually(lambda: len(pauses) > before)

    monkeypatch.setattr(bench.session, "forget", forget_and_let_it_look)
    monkeypatch.setattr(bench.session, "_pause", note)
    job = bench.job(abs, [1])
    bench.report(job, bench.claim(job))
    eventually(lambda: bench.state_of(job) == "done")


def test_a_step_is_repeated_while_the_store_is_away(bench: Bench) -> None:
    """A cancel during an outage takes effect when the store is back."""
    job = bench.job(abs, [1, 2])
    bench.server.away = True
    job.cancel()
    eventually(lambda: bench.session._trouble_since is not None)
    bench.server.away = False
    eventually(lambda: bench.state_of(job) == "cancelled")


def test_an_outage_does_not_pile_up_work(bench: Bench) -> None:
    """However long the store is away, what is done regularly anyway is not also repeated."""
    bench.job(abs, [1])
    bench.server.away = True
    eventually(lambda: bench.session._trouble_since is not None)
    bench.server.calls.clear()
    eventually(lambda: sum(name in ("health", "session_beat") for name in bench.server.calls) >= 3)
    assert bench.session._timers == []
    bench.server.away = False


def test_a_broker_that_is_away_is_told_and_worked_around(bench: Bench) -> None:
    """Messages that could not be sent are named as the reason, and sent again later."""
    bench.announce()
    bench.broker_error = OSError("no route")
    job = bench.job(abs, [1])
    eventually(lambda: "the broker does not take messages" in job.snapshot().reason)
    bench.broker_error = None
    bench.report(job, bench.claim(job))
    assert job.result(10) == [0]


def test_a_full_store_is_named(bench: Bench) -> None:
    """A store at its limit is not called unreachable; what was received is given up to make room."""
    job = bench.job(abs, [1, 2])
    bench.report(job, bench.claim(job))
    eventually(lambda: len(job._running.results.received) == 1)
    bench.server.memory = 1.0
    bench.session.trouble(StoreFull("maxmemory"))
    eventually(lambda: job.snapshot().reason == "the store is full (maxmemory reached), waiting for room")
    eventually(lambda: not bench.server._jobs[job._running.key].out.entries)


# --- workers --------------------------------------------------------------------------------------------------------


def test_slots_are_those_of_the_queue(bench: Bench) -> None:
    """What is sent ahead follows the workers that listen; unknown, what the backend says, and at least one."""
    job = bench.job(abs, [1])
    assert bench.session.slots("") == 2
    bench.announce(("nbparallel", "gpu"), processes=5)
    eventually(lambda: bench.session.slots("") == 5)
    assert bench.session.slots("gpu") == 5
    assert bench.session.slots("other") == 2
    assert [worker.id for worker in bench.session.workers()] == ["w1"]
    job.cancel()


def test_workers_with_another_key(bench: Bench) -> None:
    """When nobody has our key, every job fails with that reason."""
    job = bench.job(abs, [1])
    bench.announce(key=b"another key 1234")
    with pytest.raises(KeyMismatch, match="another key"):
        job.result(10)


def test_workers_with_other_versions(bench: Bench) -> None:
    """When no worker can run what we send, jobs fail with the versions of both sides."""
    job = bench.job(abs, [1])
    bench.announce(versions=("2.7", "0.1", 1))
    with pytest.raises(VersionMismatch, match=r"2\.7"):
        job.result(10)


# --- a cluster that dies --------------------------------------------------------------------------------------------


def test_an_embedded_cluster_that_was_killed_is_started_again(bench: Bench) -> None:
    """Its jobs are submitted anew, and what was received is not run again."""
    job = bench.job(abs, [-5, -6])
    bench.report(job, bench.claim(job))
    eventually(lambda: len(job._running.results.received) == 1)
    bench.server.wipe()
    bench.backend.living = False
    eventually(lambda: bench.backend.connects == 2)
    eventually(lambda: job._running.epoch >= 1)
    bench.work()
    assert job.result(20) == [0, 6]


def test_an_embedded_cluster_that_cannot_be_started_again(bench: Bench) -> None:
    """Then its jobs fail, with the reason."""
    job = bench.job(abs, [1, 2])
    bench.backend.error = ConnectionFailed("no memory")
    bench.backend.living = False
    with pytest.raises(ConnectionFailed, match="no memory"):
        job.result(20)


# --- all together ---------------------------------------------------------------------------------------------------


class Unsteady(Client):
    """A server that is away at times: before it heard the call, or before its reply came."""

    rng = random.Random(0)

    def __getattr__(self, name: str) -> Any:
        method = super().__getattr__(name)

        def call(*args: Any, **options: Any) -> Any:
            if name in ("submit", "read", "stop", "drop_blobs", "remint", "peek") and self.rng.random() < 0.15:
                raise ConnectionFailed("refused")
            answer = method(*args, **options)
            if name in ("submit", "stop", "drop_blobs", "remint") and self.rng.random() < 0.15:
                raise ConnectionFailed("no reply")
            return answer

        return call


@pytest.mark.parametrize("seed", range(8))
def test_no_outage_loses_or_doubles_a_result(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever the client's calls run into, each result is there once, in order, and the job ends."""
    bench = make()
    Unsteady.rng = random.Random(seed)
    monkeypatch.setattr(module, "RedisStore", lambda *_: Unsteady(bench.server))
    monkeypatch.setattr(module.Session, "_check_server", lambda _: None)
    bench.start()
    bench.work(2)
    items: Any = range(50) if seed % 2 else iter(range(50))
    job = bench.job(lambda x: -x, items, chunks=Unsteady.rng.choice([1, 4, "auto"]))
    assert list(job) == [-x for x in range(50)]
    assert job.snapshot().done == 50
