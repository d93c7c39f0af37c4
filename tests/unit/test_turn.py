"""The turns of one worker process, over a store in memory: claims, reports, verdicts, outages, interrupts."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from support import eventually
from unit.workbench import KEY, SID, Work, kinds, new_slot, settings

from nbparallel import envelope, pickling, shared, wire
from nbparallel.errors import ClusterError, ConnectionFailed, JobError, StoreFull, WireError
from nbparallel.store import keys
from nbparallel.store.depot import Depot
from nbparallel.store.fake import MemoryStore
from nbparallel.store.protocol import Handed, Lingerer
from nbparallel.worker import slot as slots
from nbparallel.worker import turn as module
from nbparallel.worker.jobs import JOBS_KEPT
from nbparallel.worker.slot import Slot
from nbparallel.worker.turn import Child


class MakeChild(Protocol):
    """Makes a child of its own slot, over a store."""

    def __call__(
        self, store: Any, *, refusal: str = "", publish: Callable[[str, str], None] | None = None, **changes: Any
    ) -> tuple[Child, Slot]: ...


@pytest.fixture
def make_child(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeChild]:
    """Children in this process; their flushers end with the test, and the main thread never sleeps."""
    over, children, main = threading.Event(), [], threading.current_thread()

    def sleep(seconds: float) -> None:
        if threading.current_thread() is main:
            return
        if over.wait(seconds):
            raise SystemExit  # ends the flusher

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    monkeypatch.setattr(module, "Capture", lambda *_: SimpleNamespace(install=lambda: None))
    before = signal.getsignal(signal.SIGUSR1)

    def make(
        store: Any, *, refusal: str = "", publish: Callable[[str, str], None] | None = None, **changes: Any
    ) -> tuple[Child, Slot]:
        slot = new_slot()
        child = Child(store, KEY, "default", settings(**changes), slot, refusal)
        child._publish = publish or child._publish
        loop = child._flush_loop

        def flush() -> None:
            with contextlib.suppress(SystemExit):
                loop()

        monkeypatch.setattr(child, "_flush_loop", flush)
        children.append(child)
        return child, slot

    yield make
    signal.signal(signal.SIGUSR1, before)
    over.set()
    for child in children:
        child._busy.set()
    for thread in threading.enumerate():
        if thread.name == "nbparallel-flush":
            thread.join()


def turn(child: Child, work: Work, ticket: str) -> tuple[str, str] | None:
    """A turn for a ticket of a job."""
    return child.turn(work.id, 0, ticket)


# --- what a turn does -----------------------------------------------------------------------------------------------


def test_a_turn_runs_many_chunks(make_child: MakeChild) -> None:
    """With one ticket a process runs chunk after chunk, until nothing is pending."""
    work = Work(lambda x: x * x)
    child, slot = make_child(work.store)
    (ticket,) = work.submit(range(100), 7)
    assert turn(child, work, ticket) is None
    assert work.outcomes() == {i: i * i for i in range(100)}
    assert work.store.peek(work.key)[:4] == ("open", 0, 0, 0)
    assert slot.running() is None
    assert {block.worker for block in work.blocks()} == {f"{os.uname().nodename}:{os.getpid()}"}


def test_the_function_is_loaded_once(make_child: MakeChild) -> None:
    """Neither the chunks of a turn nor later turns send or load the function again."""
    work = Work(abs)
    child, _ = make_child(work.store)
    sent = []
    claim = work.store.claim

    def spy(*args: Any, **options: Any) -> Any:
        answer = claim(*args, **options)
        sent.append(bool(answer.function))
        return answer

    work.store.claim = spy
    for _ in range(3):
        (ticket,) = work.submit(range(4), 2)
        turn(child, work, ticket)
    assert sent.count(True) == 1
    assert sent[0]
    assert len(sent) == 9


def test_a_payload_is_sent_once(make_child: MakeChild) -> None:
    """A chunk on the payload that the process has already comes without it."""
    work = Work(lambda x: -x)
    child, _ = make_child(work.store)
    (ticket,) = work.submit(range(9))
    work.store.claim(work.key, "other", ticket, lease=10_000, first=True)
    work.store.report(work.key, "other", 0, 0, b"", new_hi=5)
    work.store.release(work.key, "other", "return")
    seen = []
    claim = work.store.claim

    def spy(*args: Any, **options: Any) -> Any:
        answer = claim(*args, **options)
        seen.append((answer.state, answer.payload is None))
        return answer

    work.store.claim = spy
    turn(child, work, work.ticket())
    assert work.outcomes() == {i: -i for i in range(9)}
    assert seen[:2] == [("chunk", False), ("chunk", True)]


def test_a_turn_ends_with_a_successor(make_child: MakeChild) -> None:
    """When its time is over the turn ends after its chunk; a new ticket goes to the end of the queue."""
    work = Work(lambda x: time.sleep(0.011))
    child, _ = make_child(work.store, turn_seconds=0.01)
    (ticket,) = work.submit(range(3), 1)
    turns = 0
    while ticket:
        successor = turn(child, work, ticket)
        turns += 1
        assert len(work.outcomes()) == turns
        if successor is None:
            break
        job, following = successor
        assert job == work.key
        assert following != ticket
        assert work.store.peek(work.key)[2:4] == (0, 1)
        ticket = following
    assert turns == 3
    assert work.store.peek(work.key).tickets == 0


def test_alone_on_its_cluster_a_turn_goes_on(make_child: MakeChild, tmp_path: Path) -> None:
    """On a cluster of one session a turn ends early only when another ticket waits for one."""
    other: list[Work] = []

    def item(x: int) -> int:
        time.sleep(0.011)
        if x == 5:
            other.append(Work(abs, store=work.store))
            other[0].submit(range(1), 1)
        return x

    work = Work(item)
    child, _ = make_child(work.store, turn_seconds=0.01)
    child._depot = Depot(str(tmp_path))
    (ticket,) = work.submit(range(8), 1)
    successor = turn(child, work, ticket)
    assert successor is not None
    assert successor[0] == work.key
    assert sorted(work.outcomes()) == list(range(6))


@pytest.mark.parametrize("state", ["unknown ticket", "cancelled", "gone"])
def test_a_ticket_without_a_job_is_dropped(make_child: MakeChild, state: str) -> None:
    """Old messages start nothing."""
    work = Work(abs)
    child, slot = make_child(work.store)
    (ticket,) = work.submit(range(3))
    if state == "cancelled":
        work.store.stop(work.key, 0)
    elif state == "gone":
        work.store.wipe()
    else:
        ticket = keys.new_id()
    assert turn(child, work, ticket) is None
    assert work.entries() == []
    assert slot.running() is None


def test_an_old_message_does_not_unload_the_function(make_child: MakeChild) -> None:
    """A ticket that was replaced or doubled drops the turn, but the job goes on and its function stays."""
    work = Work(abs)
    child, _ = make_child(work.store)
    (ticket,) = work.submit([-1], 1)
    turn(child, work, ticket)
    turn(child, work, ticket)
    assert work.key in child.jobs
    work.store.stop(work.key, 0)
    turn(child, work, work.id)
    assert work.key not in child.jobs, "the job has ended"


@pytest.mark.parametrize(("job", "epoch"), [("../etc", 0), ("a" * 32, -1)])
def test_a_message_with_a_wrong_name_is_refused(make_child: MakeChild, job: str, epoch: int) -> None:
    """No key is made of what is no job's id."""
    child, _ = make_child(MemoryStore())
    with pytest.raises(WireError):
        child.turn(job, epoch, "ticket")


def test_few_functions_are_kept(make_child: MakeChild) -> None:
    """A process keeps the functions that it used last, and loads others anew."""
    store = MemoryStore()
    child, _ = make_child(store)
    works = [Work(abs, store) for _ in range(JOBS_KEPT + 2)]
    for work in (*works, works[0]):
        (ticket,) = work.submit([-1])
        turn(child, work, ticket)
    assert len(child.jobs) == JOBS_KEPT
    assert works[0].outcomes() == {0: 1, 1: 1}


# --- lingering ------------------------------------------------------------------------------------------------------


class Lingering:
    """A store whose ``linger`` does what a test says."""

    def __init__(self, store: Any, *steps: Callable[[], Handed | None]) -> None:
        self._store, self._steps, self.waited = store, list(steps), []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def linger(self, who: Lingerer, expected: bool = False) -> Handed | None:
        """The next step, or a word that the child is to go."""
        self.who = who
        self.waited.append((who.group, who.ms))
        return self._steps.pop(0)() if self._steps else Handed("", "")


def test_an_idle_child_lingers_for_its_session(make_child: MakeChild) -> None:
    """Work of the same session that comes soon needs no message; it may be another job's."""
    first = Work(lambda x: x + 1)
    second = Work(lambda x: -x, first.store)
    store = Lingering(
        first.store,
        lambda: Handed(first.key, first.submit([10, 20], 1)[0]),
        lambda: Handed(second.key, second.submit([5])[0]),
    )
    child, _ = make_child(store, linger_seconds=0.5)
    (ticket,) = first.submit([1])
    assert turn(child, first, ticket) is None
    assert first.outcomes() == {0: 2, 1: 11, 2: 21}
    assert second.outcomes() == {0: -5}
    assert [sid for sid, _ in store.waited] == [SID] * 3
    assert all(0 < ms <= 500 for _, ms in store.waited)


@contextlib.contextmanager
def meanwhile(step: Callable[[], None]) -> Iterator[None]:
    """Something that another thread does while the child has this one."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(step)
        yield
        done.result()


def test_work_that_comes_while_a_child_lingers_is_just_run(make_child: MakeChild) -> None:
    """It is handed the chunk, and the function of a job that it does not know: it claims nothing."""
    first, claims = Work(lambda x: x + 1), []
    second = Work(lambda x: -x, first.store)

    class Counting(Lingering):
        def claim(self, job: str, *args: Any, **options: Any) -> Any:
            claims.append(job)
            return self._store.claim(job, *args, **options)

        def linger(self, who: Lingerer, expected: bool = False) -> Handed | None:
            return self._store.linger(who, expected)

    child, slot = make_child(Counting(first.store), linger_seconds=60.0)

    def send() -> None:
        for work, item in ((first, 10), (second, 5), (first, 20)):
            eventually(lambda: first.store._idle.get(SID), what="the child lingers")
            assert work.submit([item]) == [], "no message is needed"
            eventually(lambda item=item, work=work: len(work.outcomes()) == 1 + (item > 5) + (item > 10))  # type: ignore[misc]
        eventually(lambda: first.store._idle.get(SID), what="the child lingers")
        first.store.rouse(slot.stamp())

    (ticket,) = first.submit([1])
    with meanwhile(send):
        assert turn(child, first, ticket) is None
    assert first.outcomes() == {0: 2, 1: 11, 2: 21}
    assert second.outcomes() == {0: -5}
    assert claims == [first.key]
    assert first.store.peek(first.key)[:4] == second.store.peek(second.key)[:4] == ("open", 0, 0, 0)


def test_what_a_child_was_handed_is_not_lost_with_the_connection(make_child: MakeChild) -> None:
    """When it cannot hear what it was handed, it asks; also when the reply to its last report was lost."""
    work = Work(lambda x: x + 1)

    def handed_unheard() -> None:
        (ticket,) = work.submit([10])
        assert work.store.claim(work.key, store.who.token, ticket, lease=9999, first=True).state == "chunk"
        raise ConnectionFailed("away")

    store = Lingering(work.store, handed_unheard)
    child, _ = make_child(store, linger_seconds=60.0)
    (ticket,) = work.submit([1])
    assert turn(child, work, ticket) is None
    assert work.outcomes() == {0: 2, 1: 11}
    report_and_claim = work.store.report_and_claim

    def lost_reply(*args: Any, next_token: str, **options: Any) -> Any:
        work.store.report_and_claim = report_and_claim
        report_and_claim(*args, next_token=next_token, **options)
        (ticket,) = work.submit([30])
        assert work.store.claim(work.key, next_token, ticket, lease=9999, first=True).state == "chunk"
        raise ConnectionFailed("away")

    work.store.report_and_claim = lost_reply
    (ticket,) = work.submit([20])
    assert turn(child, work, ticket) is None
    assert work.outcomes() == {0: 2, 1: 11, 2: 21, 3: 31}


def test_after_a_useless_ticket_a_child_only_glances(make_child: MakeChild) -> None:
    """It takes tickets that wait for their message, and else goes: more useless ones may wait for Celery."""
    work = Work(abs)
    store = Lingering(work.store)
    child, _ = make_child(store, linger_seconds=60.0)
    turn(child, work, work.submit([-1])[0])
    store._steps.append(lambda: Handed(work.key, work.submit([-2])[0]))
    turn(child, work, "useless")
    assert work.outcomes() == {0: 1, 1: 2}
    assert [ms for _, ms in store.waited] == [1000, 1, 1000]


def test_a_child_lets_go_of_what_is_over_while_it_lingers(
    make_child: MakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the store's connection then, so that its flusher cannot; a function that it let go comes again."""
    monkeypatch.setattr(module, "FIRST_REST", 0.01)
    monkeypatch.setattr(module, "LINGER_REST", 0.01)
    work = large()
    child, slot = make_child(work.store, linger_seconds=60.0)
    over = threading.Event()

    def close() -> None:
        eventually(lambda: work.outcomes())
        assert set(child.jobs) == {work.key}
        work.store.close(work.key, "done", False, 1000)
        eventually(lambda: not child.jobs)
        eventually(lambda: work.store.rouse(slot.stamp()) or over.is_set())

    (ticket,) = work.submit([0])
    with meanwhile(close):
        turn(child, work, ticket)
        over.set()


def test_a_child_is_patient_far_from_its_store(make_child: MakeChild) -> None:
    """Where a call takes long a turn lasts many of them, an idle child waits for some, and tails stay for some."""
    work = Work(lambda x: (child._deadline - time.monotonic(), child._run.budget), budget=0.1)
    store = Lingering(work.store)
    child, _ = make_child(store, linger_seconds=0.5, turn_seconds=1.5)
    for far, turns, lingers, budgets in ((0.0004, 1.5, 0.5, 0.1), (0.4, 12.0, 1.2, 3.2)):
        work.store.round_trip = far
        (ticket,) = work.submit([1])
        turn(child, work, ticket)
        rest, budget = list(work.outcomes().values())[-1]
        assert turns - 1.0 < rest <= turns
        assert budget == budgets
        assert store.waited.pop()[1] == pytest.approx(lingers * 1000)


def test_a_more_urgent_job_goes_first(make_child: MakeChild) -> None:
    """Between two chunks the child leaves for a more urgent job; a new ticket goes out for the one that it leaves."""
    ran: list[int] = []

    def low(x: int) -> None:
        ran.append(x)
        if x == 1:
            urgent.submit([10, 11], 1, tickets=2)

    plain, urgent = Work(low), Work(lambda x: ran.append(x))
    urgent.store = plain.store
    urgent.open(priority=1)
    published: list[tuple[str, str]] = []
    child, _ = make_child(plain.store, publish=lambda job, ticket: published.append((job, ticket)))
    (ticket,) = plain.submit(range(3), 1)
    turn(child, plain, ticket)
    assert ran == [0, 1, 10, 11]
    assert [job for job, _ in published] == [plain.key]
    turn(child, plain, published[0][1])
    assert ran == [0, 1, 10, 11, 2]


@pytest.mark.parametrize("why", ["no time", "shutdown", "nothing known"])
def test_nobody_lingers_who_should_not(make_child: MakeChild, why: str) -> None:
    """A turn that is over, a worker that shuts down and a child that has no session end at once."""
    work = Work(lambda x: slot.hand_back() if why == "shutdown" else time.sleep(0.02))
    store = Lingering(work.store)
    child, slot = make_child(store, linger_seconds=0.5, turn_seconds=0.01 if why == "no time" else 60)
    (ticket,) = work.submit([1])
    turn(child, work, keys.new_id() if why == "nothing known" else ticket)
    assert store.waited == []


def test_a_store_that_goes_while_a_child_lingers(make_child: MakeChild) -> None:
    """The turn ends quietly: nothing is held, and lost tickets are replaced."""

    def away() -> None:
        raise ConnectionFailed("away")

    work = Work(abs)
    child, slot = make_child(Lingering(work.store, away), linger_seconds=0.5)
    (ticket,) = work.submit([1])
    assert turn(child, work, ticket) is None
    assert slot.running() is None


# --- what cannot run ------------------------------------------------------------------------------------------------


class Unloadable:
    """Fails where it is unpickled."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __call__(self, x: int) -> int:
        return x

    def __reduce__(self) -> Any:
        return _fail, (self.kind,)


def _fail(kind: type[BaseException]) -> None:
    raise kind("not here")


@pytest.mark.parametrize("kind", [ImportError, SystemExit, KeyboardInterrupt])
def test_a_function_that_cannot_be_loaded_fails_the_job(make_child: MakeChild, kind: type[BaseException]) -> None:
    """The verdict says what happened and where; the job ends, whatever was raised."""
    work = Work(Unloadable(kind))
    child, slot = make_child(work.store)
    (ticket,) = work.submit(range(10), 2)
    assert turn(child, work, ticket) is None
    (reason,) = work.verdicts()
    assert "the function cannot be loaded on worker" in reason
    assert f"{kind.__name__}: not here" in reason
    assert "_fail" in reason, "the traceback"
    assert work.store.peek(work.key).state == "failed"
    assert slot.running() is None


def test_a_failed_init_fails_every_job(make_child: MakeChild) -> None:
    """A process that is not as it should be runs nothing, and says why."""
    work = Work(abs)
    child, _ = make_child(work.store, refusal="init failed on host")
    (ticket,) = work.submit(range(3))
    turn(child, work, ticket)
    assert work.verdicts() == ["init failed on host"]


@pytest.mark.parametrize("part", ["meta", "function"])
def test_what_was_not_sealed_with_our_key_is_not_loaded(make_child: MakeChild, part: str) -> None:
    """Someone else's bytes are refused before they are unpickled; the job ends."""
    work = Work(abs)
    work.id = keys.new_id()
    work.key = keys.job_key("default", work.id, 0)
    stranger = wire.seal(b"another key 1234", envelope.place(work.key, part), pickling.dump_function(abs))
    work.open(**{part: stranger})
    child, _ = make_child(work.store)
    (ticket,) = work.submit(range(3))
    turn(child, work, ticket)
    (reason,) = work.verdicts()
    assert "WireError" in reason
    assert "wrong MAC" in reason


def test_a_job_of_another_session_is_refused(make_child: MakeChild) -> None:
    """Whoever can write to the store cannot move a job to a session of their own."""
    work = Work(abs, sid="other")
    child, _ = make_child(work.store)
    (ticket,) = work.submit(range(3))
    turn(child, work, ticket)
    assert "was moved to another session" in work.verdicts()[0]


def test_other_versions_fail_the_job(make_child: MakeChild, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that cannot exchange pickles with us is told so, and its function is not loaded."""
    with monkeypatch.context() as patch:
        patch.setattr(pickling, "versions", lambda: ("2.7", "0.1", 1))
        work = Work(Unloadable(AssertionError))
    child, _ = make_child(work.store)
    (ticket,) = work.submit(range(3))
    turn(child, work, ticket)
    (reason,) = work.verdicts()
    assert "the client Python 2.7" in reason


def test_items_of_another_key_fail_the_job(make_child: MakeChild) -> None:
    """Items that were not sealed with our key are not unpickled."""
    work = Work(abs)
    child, slot = make_child(work.store)
    (ticket,) = work.submit(range(4), 2, payload=b"someone else's bytes, long enough to be a head")
    assert turn(child, work, ticket) is None
    (reason,) = work.verdicts()
    assert "refused the items of a chunk" in reason
    assert slot.running() is None


@pytest.mark.parametrize("kind", [ImportError, SystemExit])
def test_items_that_cannot_be_unpickled_are_asked_for_one_by_one(
    make_child: MakeChild, kind: type[BaseException]
) -> None:
    """When unpickling a payload fails, each item says so; the client sends them by themselves."""
    work = Work(abs)
    child, _ = make_child(work.store)
    (ticket,) = work.submit([1, Unloadable(kind), 3])
    assert turn(child, work, ticket) is None
    assert kinds(work.outcomes()) == dict.fromkeys(range(3), "payload")
    assert {record.pickled for record in work.outcomes().values()} == {b""}
    assert work.verdicts() == []
    assert work.store.peek(work.key)[1:3] == (0, 0)


def test_a_payload_that_is_gone_is_asked_for(make_child: MakeChild) -> None:
    """A client deletes payloads that it needs no more; a chunk that waits on one must not fail the job."""
    work = Work(abs)
    child, _ = make_child(work.store)
    (ticket,) = work.submit([-1, -2, -3, -4], 2)
    work.store.drop_blobs(work.key, ["b0"])
    following = turn(child, work, ticket)
    assert work.verdicts() == []
    assert following is not None
    turn(child, work, following[1])
    assert kinds(work.outcomes()) == {0: "payload", 1: "payload"}
    assert [work.outcomes()[i] for i in (2, 3)] == [3, 4]


# --- flushing -------------------------------------------------------------------------------------------------------


def test_outcomes_come_while_a_chunk_runs(make_child: MakeChild) -> None:
    """Finished items are reported after the flush interval, not with the end of the chunk."""
    work = Work(lambda x: eventually(lambda: x < 2 or len(work.outcomes()) == 2))
    child, _ = make_child(work.store, flush_seconds=0.01)
    (ticket,) = work.submit(range(3))
    turn(child, work, ticket)
    assert len(work.outcomes()) == 3
    assert len(work.blocks()) >= 2


def test_an_overrunning_chunk_gives_its_tail_back(make_child: MakeChild) -> None:
    """While an item takes longer than planned, others can run what waits behind it."""
    ran = []

    def function(x: int) -> int:
        ran.append(x)
        if x == 1 and not work.store.peek(work.key).pending:
            eventually(lambda: work.store.peek(work.key).pending, what="the tail is pending")
        return x

    work = Work(function, budget=0.02, timeout=1000)
    child, _ = make_child(work.store, flush_seconds=0.01)
    (ticket,) = work.submit(range(50))
    turn(child, work, ticket)
    assert work.outcomes() == {i: i for i in range(50)}
    assert ran == list(range(50))
    assert work.store._jobs[work.key].splits >= 1


def test_a_chunk_without_a_budget_is_kept(make_child: MakeChild) -> None:
    """Chunks whose size the user chose are never cut."""
    work = Work(lambda x: eventually(lambda: x < 1 or len(work.outcomes()) >= 1))
    child, _ = make_child(work.store, flush_seconds=0.01)
    (ticket,) = work.submit(range(5))
    turn(child, work, ticket)
    assert work.store._jobs[work.key].splits == 0


def test_a_stop_shortens_the_running_chunk(make_child: MakeChild) -> None:
    """A report learns that the items from some index on need not run."""
    ran = []

    def function(x: int) -> int:
        ran.append(x)
        if x == 2:
            work.store.stop(work.key, 5)
            eventually(lambda: len(work.outcomes()) >= 2)
            eventually(lambda: child._run is not None and child._run.hi == 5)
        return x

    work = Work(function, timeout=1000)
    child, _ = make_child(work.store, flush_seconds=0.01)
    (ticket,) = work.submit(range(40), 20)
    turn(child, work, ticket)
    assert ran == [0, 1, 2, 3, 4]
    assert sorted(work.outcomes()) == [0, 1, 2, 3, 4]


# --- losing the lease, shutting down --------------------------------------------------------------------------------


def test_a_child_that_lost_its_lease_goes_on_with_the_next_chunk(make_child: MakeChild) -> None:
    """What was given to somebody else meanwhile is not reported twice; the turn takes what is pending."""
    other, _ = make_child(None)

    def function(x: int) -> int:
        if x == 1 and not stolen:
            stolen.append(x)
            work.clock.now += 3_600_000
            work.store.reap(10, "heir", 10_000)
        return x

    stolen: list[int] = []
    work = Work(function)
    child, _ = make_child(work.store)
    (ticket,) = work.submit(range(12), 4)
    turn(child, work, ticket)
    other._store = work.store
    while work.store.peek(work.key).pending:
        turn(other, work, work.ticket())
    assert work.outcomes() == {i: i for i in range(12)}


def test_a_worker_that_shuts_down_gives_back_what_it_has_not_begun(make_child: MakeChild) -> None:
    """What is finished is reported, the rest waits, and a successor is published for it."""
    work = Work(lambda x: slot.hand_back() if x == 2 else x, timeout=1000)
    child, slot = make_child(work.store)
    (ticket,) = work.submit(range(10), 5)
    assert turn(child, work, ticket) is not None
    assert work.outcomes() == {0: 0, 1: 1, 2: None}
    assert sorted(work.store.peek(work.key, True).unreported) == [(3, 5), (5, 10)]
    assert work.store.peek(work.key).held == 0


def test_a_worker_that_shuts_down_does_not_wait_for_its_store(make_child: MakeChild) -> None:
    """With the store away and the worker ending, the turn ends with what the store said; the lease expires."""
    work = Work(lambda x: x)
    flaky = Flaky(work.store, random.Random(0), before=1.0)
    child, slot = make_child(flaky)
    (ticket,) = work.submit(range(3))
    slot.hand_back()
    with pytest.raises(ConnectionFailed):
        turn(child, work, ticket)
    assert slot.running() is None


# --- a store that is away -------------------------------------------------------------------------------------------


class Flaky:
    """A store whose server is away at times: calls fail before they are made, or their replies are lost."""

    round_trip = 0.0

    def __init__(self, store: Any, rng: random.Random, before: float = 0.15, after: float = 0.15) -> None:
        self._store, self._rng, self._before, self._after = store, rng, before, after

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any, **options: Any) -> Any:
            if self._rng.random() < self._before:
                raise ConnectionFailed("refused")
            answer = method(*args, **options)
            if self._rng.random() < self._after:
                raise ConnectionFailed("no reply")
            return answer

        return call


@pytest.mark.parametrize("seed", range(60))
def test_no_outage_loses_or_doubles_an_outcome(make_child: MakeChild, seed: int) -> None:
    """Whenever the store goes, and whether or not it heard us: each index has one outcome, and no turn fails."""
    rng = random.Random(seed)

    def function(x: int) -> int:
        if rng.random() < 0.05:
            raise ValueError(x)
        if short and rng.random() < 0.05:
            time.sleep(0.01)  # the turn is over
        if rng.random() < 0.02:  # the lease expires while nobody could renew it
            work.clock.now += 3_600_000
            work.store.reap(1000, keys.new_id(), 10_000)
        return x

    short = rng.random() < 0.5
    work = Work(function, budget=rng.choice([None, 0.0]))
    flaky = Flaky(work.store, rng)
    child, _ = make_child(flaky, turn_seconds=0.01 if short else 60, flush_seconds=0.001)
    tickets = work.submit(range(120), rng.randint(1, 30), tickets=3)
    for _ in range(1000):
        peek = work.store.peek(work.key)
        if not peek.pending and not peek.held:
            break
        if not tickets:
            work.clock.now += 3_600_000
            work.store.reap(1000, keys.new_id(), 10_000)
            tickets = work.store.remint(work.key, -1, 3, [keys.new_id()])
            continue
        successor = turn(child, work, tickets.pop())
        tickets += [successor[1]] if successor else []
    else:
        pytest.fail("the job does not end")
    assert sorted(work.outcomes()) == list(range(120))
    assert work.verdicts() == []


def test_what_is_finished_is_held_until_it_is_reported(make_child: MakeChild, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot shows the token of the chunk whose outcomes the store does not take, so that its lease is renewed."""
    work = Work(lambda x: x)
    child, _ = make_child(work.store, turn_seconds=60)
    (ticket,) = work.submit(range(4), 2)
    shown: list[tuple[str, str]] = []
    report, report_and_claim = work.store.report, work.store.report_and_claim
    answers = itertools.count()

    def full_at_first(*given: Any, **named: Any) -> Any:
        if next(answers) == 0:
            raise StoreFull("no room")
        monkeypatch.setattr(work.store, "report", report)
        return report_and_claim(*given, **named)

    def reporting(job: str, token: str, *given: Any, **named: Any) -> Any:
        running = child._slot.running()
        shown.append((token, running.token if running else ""))
        return report(job, token, *given, **named)

    monkeypatch.setattr(work.store, "report_and_claim", full_at_first)
    monkeypatch.setattr(work.store, "report", reporting)
    turn(child, work, ticket)
    assert sorted(work.outcomes()) == list(range(4))
    assert shown
    assert all(token == held for token, held in shown)


def test_a_verdict_waits_for_the_store(make_child: MakeChild) -> None:
    """A reason is not lost with a call that failed."""
    work = Work(Unloadable(ImportError))
    child, _ = make_child(Flaky(work.store, random.Random(3), 0.6, 0.3))
    (ticket,) = work.submit(range(3))
    turn(child, work, ticket)
    assert len(work.verdicts()) == 1


def test_the_pause_between_attempts_grows(make_child: MakeChild, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away is not hammered, and asked at least every second."""
    pauses: list[float] = []
    child, _ = make_child(None)
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    answers = iter([ClusterError("away")] * 8)

    def call() -> str:
        for error in answers:
            raise error
        return "answer"

    assert child._persist(call) == "answer"
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


def test_who_shuts_down_waits_for_the_store_as_long_as_its_lease(
    make_child: MakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished is reported when the store is back in time; after the lease it is given up, as another's."""
    now = [0.0]
    child, slot = make_child(None, lease_seconds=5.0)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    slot.hand_back()

    def call(back_at: float) -> str:
        if now[0] < back_at:
            raise ClusterError("away")
        return "answer"

    assert child._persist(lambda: call(4.0), work=True) == "answer"
    with pytest.raises(ClusterError, match="away"):
        child._persist(lambda: call(100.0), work=True)
    assert 9.0 <= (ended := now[0]) < 12.0
    with pytest.raises(ClusterError, match="away"):
        child._persist(lambda: call(100.0))
    assert now[0] == ended


# --- interrupts -----------------------------------------------------------------------------------------------------


def test_a_signal_for_nothing_does_nothing(make_child: MakeChild) -> None:
    """Without a turn, without a wish and for another lease, SIGUSR1 is not noticed."""
    work = Work(lambda x: signal.raise_signal(signal.SIGUSR1))
    child, slot = make_child(work.store)
    (ticket,) = work.submit(range(5))
    turn(child, work, ticket)
    signal.raise_signal(signal.SIGUSR1)
    slot.ask(999, slots.ANY_ITEM, slots.CANCELLED)
    signal.raise_signal(signal.SIGUSR1)
    assert work.outcomes() == dict.fromkeys(range(5))


def test_a_cancelled_item_ends_the_lease(make_child: MakeChild) -> None:
    """What was interrupted is not reported, what was finished before is, and the rest is given back."""

    def function(x: int) -> int:
        if x == 3:
            running = slot.running()
            assert running is not None
            slot.ask(running.serial, slots.ANY_ITEM, slots.CANCELLED)
            signal.raise_signal(signal.SIGUSR1)
        return x

    work = Work(function)
    child, slot = make_child(work.store, turn_seconds=0.01)
    (ticket,) = work.submit(range(6))
    work.store.claim(work.key, "x", ticket, lease=1, first=True)
    work.store.release(work.key, "x", "return")
    claims = iter([work.ticket()])
    turn(child, work, next(claims))
    assert {index: outcome for index, outcome in work.outcomes().items() if index < 3} == {0: 0, 1: 1, 2: 2}


@pytest.fixture
def untraced() -> Iterator[None]:
    """Without coverage: an exception from a signal inside its own tracer would leave its lock taken for ever."""
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


def test_random_interrupts_hit_only_what_was_meant(make_child: MakeChild, untraced: None) -> None:
    """Ten thousand signals at any moment, with true and stale wishes: only the item that was meant is interrupted."""
    stop, asked, sent, hits = threading.Event(), set(), [0], 0
    rng = random.Random(11)

    def function(x: int) -> int:
        total = 0
        for i in range(500):
            total += i
        return x

    work = Work(function, timeout=1000)
    child, slot = make_child(work.store, flush_seconds=0.005)

    def shoot() -> None:
        while not stop.is_set():
            running = slot.running()
            if running is not None and rng.random() < 0.7:
                index = running.index + rng.choice([0, 0, 0, 1, -1])
                serial = running.serial + rng.choice([0, 0, 0, -1, 1])
                if index >= 0:
                    asked.add(index)
                    slot.ask(serial, index, slots.TIMED_OUT)
            sent[0] += 1
            os.kill(os.getpid(), signal.SIGUSR1)

    (ticket,) = work.submit(range(2000), 100)
    child._get_ready()
    thread, before = threading.Thread(target=shoot), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        while sent[0] < 10_000 or hits < 20:
            turn(child, work, ticket)
            outcomes = work.outcomes()
            assert sorted(outcomes) == list(range(2000))
            hit = kinds(outcomes)
            assert set(hit.values()) <= {"timeout"}
            assert set(hit) <= asked
            hits += len(hit)
            assert all(outcomes[i] == i for i in outcomes if i not in hit)
            work = Work(function, work.store, timeout=1000)
            asked.clear()
            (ticket,) = work.submit(range(2000), 100)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


# --- what is kept, and for how long ---------------------------------------------------------------------------------


def large(store: Any = None) -> Work:
    """A job whose function carries two megabytes."""
    return Work(functools.partial(operator.mul, bytes(2 << 20)), store)


def test_a_large_function_goes_when_its_job_is_over(make_child: MakeChild) -> None:
    """Loading the next job frees it; small ones stay, as their job may go on."""
    big, small = large(), Work(abs)
    child, _ = make_child(big.store)
    turn(child, big, big.submit([0])[0])
    small = Work(abs, big.store)
    turn(child, small, small.submit([1])[0])
    assert set(child.jobs) == {big.key, small.key}
    for work in (big, small):
        work.store.close(work.key, "done", False, 1000)
    last = Work(abs, big.store)
    turn(child, last, last.submit([1])[0])
    assert set(child.jobs) == {small.key, last.key}


def test_an_idle_process_lets_go_of_what_is_over(make_child: MakeChild, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs to send it anything; a store that is away changes nothing."""
    monkeypatch.setattr(module, "FIRST_REST", 0.01)
    monkeypatch.setattr(module, "LAST_REST", 0.02)
    work = large()
    child, _ = make_child(work.store)
    looks = []
    peek = work.store.peek

    def spy(job: str) -> Any:
        looks.append(job)
        if len(looks) < 3:
            raise ConnectionFailed("away")
        return peek(job)

    work.store.peek = spy
    turn(child, work, work.submit([0])[0])
    eventually(lambda: len(looks) >= 5)
    assert set(child.jobs) == {work.key}
    work.store.close(work.key, "done", False, 1000)
    eventually(lambda: not child.jobs)
    turn(child, work, "gone")  # nothing is held any more: the flusher sleeps


def test_shared_values_are_read_from_the_store(make_child: MakeChild, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed ones, once; they are let go of when they were given up."""
    work = Work(abs)
    child, _ = make_child(work.store)
    monkeypatch.setattr(shared, "_fetch", None)
    child.fetch_shared()
    where = envelope.place(work.store.prefix, "shared", "a" * 24)
    work.store.put_shared("a" * 24, envelope.seal_body(KEY, where, pickling.dump_parts([1])), 10**9)
    work.store.put_shared("b" * 24, work.store.get_shared("a" * 24), 10**9)
    one, other, none = (shared._revive(letter * 24, "list", 30) for letter in "abc")
    assert one.value == [1]
    child._let_go()
    assert shared.loaded() == ["a" * 24]
    work.store.drop_shared(["a" * 24])
    child._let_go()
    assert shared.loaded() == []
    for handle, why in ((one, "does not have it"), (other, "wrong MAC"), (none, "does not have it")):
        with pytest.raises(JobError, match=rf"shared value \(list, 30 bytes\) cannot be had .*{why}.*keep the handle"):
            handle.value
