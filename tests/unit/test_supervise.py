"""The supervisor: what it makes of deaths, lost leases, stops, timeouts and vanished workers."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support import eventually
from unit.workbench import KEY, Work, kinds, settings

from nbparallel.errors import ConnectionFailed
from nbparallel.store import keys
from nbparallel.store.fake import MemoryStore
from nbparallel.worker import processes
from nbparallel.worker import slot as slots
from nbparallel.worker import supervise as module
from nbparallel.worker.slot import Slot, Slots, make_token
from nbparallel.worker.supervise import Supervisor

#: A pid that no process has.
NOBODY = 2**22 + 5


class Bench:
    """A supervisor over a store in memory, with the slots of two children that do not exist."""

    def __init__(self, work: Work, **changes: Any) -> None:
        self.work, self.slots = work, Slots(2)
        self.published: list[tuple[str, str, str, str]] = []
        self.supervisor = Supervisor(
            work.store,
            KEY,
            settings(**changes),
            self.slots,
            "worker1",
            lambda: b"says",
            lambda *message: self.published.append(message),
        )
        self.fds = [
            self.supervisor._reader, self.supervisor._writer, self.supervisor._deaths, self.supervisor._death
        ]  # fmt: skip

    def child(self, number: int = 0, *, lease: int = 10_000, attempt: int = 1, pid: int = NOBODY) -> Slot:
        """A child that has claimed the next chunk."""
        slot = self.slots[number]
        slot.child_starts(pid, stamp := "cd"[number] * 16)
        ticket = self.work.ticket()
        slot.child_claims(1 + number, self.work.key, ticket)
        slot.words[slots.ATTEMPT] = attempt
        token = make_token(stamp, 1 + number)
        claim = self.work.store.claim(self.work.key, token, ticket, lease=lease, first=True)
        assert claim.state == "chunk"
        return slot

    def dies(self, slot: Slot, how: str = "signal SIGSEGV") -> None:
        """The child is seen to be dead."""
        self.supervisor._release(slot, slot.pid(), how)

    def peek(self) -> Any:
        """The job's counters and what is not reported."""
        return self.work.store.peek(self.work.key, True)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Process groups that would have been killed."""
    killed: list[int] = []
    monkeypatch.setattr(processes, "kill_group", killed.append)
    return killed


@pytest.fixture
def bench(killed: list[int]) -> Iterator[Callable[..., Bench]]:
    """Makes supervisors; their pipes are closed at the end."""
    benches = []

    def make(items: int = 10, *, tickets: int = 0, known: dict[str, Any] | None = None, **changes: Any) -> Bench:
        work = Work(abs)
        work.submit(range(items), tickets=tickets, **(known or {}))
        benches.append(Bench(work, **changes))
        return benches[-1]

    yield make
    for each in benches:
        for fd in (*each.fds, *each.supervisor._watched):
            os.close(fd)


Make = Callable[..., Bench]


# --- deaths ---------------------------------------------------------------------------------------------------------


def test_the_item_that_killed_its_process_waits_alone(bench: Make, killed: list[int]) -> None:
    """Below the crash limit the culprit is tried again by itself, its neighbours without blame."""
    b = bench()
    slot = b.child()
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 4, 1
    b.dies(slot)
    assert sorted(b.peek().unreported) == [(0, 4), (4, 5), (5, 10)]
    assert b.peek()[1:4] == (3, 0, 1)
    ((job, ticket, queue, name),) = b.published
    assert (job, queue, name) == (b.work.key, "", "")
    assert b.work.store.claim(job, "k", ticket, lease=1000, first=True).crashes == 0
    assert killed == [NOBODY], "programs that it left behind"
    assert (slot.pid(), slot.running()) == (0, None)


def test_the_ticket_of_a_dead_process_goes_to_the_jobs_queue(bench: Make) -> None:
    """Not to the worker's first one, where others may listen who cannot run it; people see the job's name on it."""
    b = bench()
    b.work.store._labels[b.work.key] = b'{"name": "a job", "queue": "gpu", "detached": false}'
    slot = b.child()
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 4, 1
    b.dies(slot)
    ((_, _, *where),) = b.published
    assert where == ["gpu", "a job"]


def test_a_process_that_died_in_a_batch_leaves_suspects(bench: Make) -> None:
    """When only a range is known, the range is tried again, item by item."""
    b = bench()
    slot = b.child()
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 2, 5
    b.dies(slot)
    assert sorted(b.peek().unreported) == [(0, 2), (2, 7), (7, 10)]


def test_at_the_crash_limit_the_item_is_an_error(bench: Make) -> None:
    """The obituary says what died, how often and how; nothing else of the chunk is lost."""
    b = bench(3, crash_limit=1)
    slot = b.child(attempt=4)
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 1, 1
    b.dies(slot, "signal SIGKILL; killed from outside, perhaps because memory ran out")
    outcomes = b.work.outcomes()
    assert kinds(outcomes) == {1: "crashed"}
    record = outcomes[1]
    assert record.type_name == "nbparallel.errors.WorkerCrashed"
    assert record.message == (
        "killed its worker process 1 times; the last time: "
        "signal SIGKILL; killed from outside, perhaps because memory ran out"
    )
    (block,) = b.work.blocks()
    assert (block.attempt, block.worker) == (4, f"pid {NOBODY}")
    assert sorted(b.peek().unreported) == [(0, 1), (2, 3)]
    assert len(b.published) == 1


def test_a_process_that_died_outside_an_item(bench: Make) -> None:
    """Deaths while the function is loaded blame no item; at the limit they fail the job."""
    b = bench(3, crash_limit=2)
    b.dies(b.child(), "exit code 1")
    assert b.work.entries() == []
    assert b.peek().unreported == [(0, 3)]
    b.dies(b.child(), "exit code 1")
    (reason,) = b.work.verdicts()
    assert reason == "worker processes died 2 times while they loaded the function or its data (exit code 1)"
    assert b.peek().state == "failed"


def test_a_process_that_died_at_rest(bench: Make, killed: list[int]) -> None:
    """A child that held nothing is forgotten, and nobody is told; what it was just handed is pending again."""
    b = bench()
    slot = b.child()
    slot.child_rests()
    b.dies(slot)
    assert slot.pid() == 0
    assert (b.peek().held, b.peek().pending, len(b.published)) == (0, 1, 1), "its slot did not show the lease yet"
    b.dies(slot)
    assert len(b.published) == 1


@pytest.mark.parametrize("why", [slots.CANCELLED, slots.LOST])
def test_a_process_that_was_killed_for_a_cancel_blames_nobody(bench: Make, why: int) -> None:
    """What we killed ourselves is given back as it was."""
    b = bench(3, crash_limit=1)
    slot = b.child()
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 1, 1
    running = slot.running()
    assert running is not None
    b.supervisor._interrupter.want(slot, running, why)
    b.dies(slot)
    assert b.work.entries() == []
    assert b.peek().unreported == [(0, 3)]
    assert len(b.published) == 1
    assert not b.supervisor._interrupter.pending()


def test_a_cancelled_job_needs_no_new_ticket(bench: Make) -> None:
    """When nothing is left to run, nothing is published."""
    b = bench()
    slot = b.child()
    slot.words[slots.INDEX] = 1
    running = slot.running()
    assert running is not None
    b.work.store.stop(b.work.key, 0)
    b.supervisor._interrupter.want(slot, running, slots.CANCELLED)
    b.dies(slot)
    assert b.published == []


def test_a_timeout_that_had_to_be_killed(bench: Make) -> None:
    """An item that did not heed its timeout is a timeout, once, whatever the crash limit."""
    b = bench(3, crash_limit=9)
    slot = b.child(attempt=2)
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 1, 1
    running = slot.running()
    assert running is not None
    b.supervisor._interrupter.want(slot, running, slots.TIMED_OUT, 1)
    b.dies(slot)
    outcomes = b.work.outcomes()
    assert kinds(outcomes) == {1: "timeout"}
    assert "longer than its timeout; its worker process was killed" in outcomes[1].message
    assert [block.attempt for block in b.work.blocks()] == [2], "so that the client can retry it"


def test_children_of_a_worker_that_leaves_blame_nobody(bench: Make) -> None:
    """Whoever is killed while the worker shuts down was not at fault."""
    b = bench(3, crash_limit=1)
    slot = b.child()
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 1, 1
    b.supervisor.hand_back()
    assert slot.asked_to_hand_back()
    b.dies(slot)
    assert b.work.entries() == []
    assert b.peek().unreported == [(0, 3)]


def test_a_worker_that_leaves_gives_tails_back(bench: Make) -> None:
    """What a child has not started is pending, once; one that is between two items does it by itself, or later."""
    b = bench(5)
    slot = b.child()
    b.supervisor.hand_back()
    b.supervisor._return_tails()
    assert b.peek().pending == 0
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 1, 1
    b.supervisor._return_tails()
    b.supervisor._return_tails()
    assert sorted(b.peek().unreported) == [(0, 2), (2, 5)]
    assert b.peek()[1:3] == (1, 1)


def test_a_lease_that_was_lost_before_the_death(bench: Make) -> None:
    """When the chunk is somebody else's by now, nothing is released twice."""
    b = bench()
    slot = b.child(lease=5)
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 1, 1
    b.work.clock.now += 10
    b.work.store.reap(10, "heir", 1000)
    b.dies(slot)
    assert b.peek().unreported == [(0, 10)]
    assert b.published == []


# --- leases ---------------------------------------------------------------------------------------------------------


def test_leases_of_live_children_are_renewed(bench: Make) -> None:
    """As long as a child runs a chunk, nobody else gets it."""
    b = bench(lease_seconds=10)
    b.child(lease=10_000)
    for _ in range(3):
        b.work.clock.now += 9_000
        b.supervisor._renew()
    assert b.work.store.reap(10, "heir", 1000) == []
    assert b.peek().held == 1


def test_a_lost_lease_is_interrupted(bench: Make) -> None:
    """A child whose chunk runs elsewhere should not go on; before its first item it may still be claiming."""
    b = bench()
    slot = b.child(lease=5)
    b.work.clock.now += 10
    b.work.store.reap(10, "heir", 1000)
    b.supervisor._renew()
    assert not b.supervisor._interrupter.pending()
    slot.words[slots.INDEX] = 3
    b.supervisor._renew()
    assert b.supervisor._interrupter.pending()
    assert slot.words[slots.ASK_WHY] == slots.LOST
    assert slot.words[slots.ASK_INDEX] == slots.ANY_ITEM


def test_a_renewal_finds_the_stop(bench: Make) -> None:
    """A stop whose message was lost is found with the next renewal."""
    b = bench()
    slot = b.child()
    slot.words[slots.INDEX] = 3
    b.work.store.stop(b.work.key, 3)
    b.supervisor._renew()
    b.supervisor._interrupts()
    assert slot.words[slots.ASK_SERIAL] == 1
    assert slot.words[slots.ASK_WHY] == slots.CANCELLED


def test_the_beat_says_that_the_worker_lives(bench: Make) -> None:
    """A beat is known for as long as a lease."""
    b = bench(lease_seconds=10)
    b.supervisor._beat()
    assert b.work.store.workers() == {"worker1": b"says"}
    b.work.clock.now += 10_001
    assert b.work.store.workers() == {}


def test_chunks_of_vanished_workers_run_again(bench: Make) -> None:
    """Below the limit they wait again, and no item fails."""
    b = bench(lost_limit=2)
    b.child(lease=5)
    b.work.clock.now += 10
    b.supervisor._reap()
    assert b.peek()[1:3] == (1, 0)
    assert b.work.entries() == []


def test_chunks_whose_workers_vanish_again_and_again_fail(bench: Make) -> None:
    """At the limit each item of the chunk is an error that says so."""
    b = bench(3, lost_limit=1, known={"attempt": 2})
    b.child(lease=5)
    b.work.clock.now += 10
    b.supervisor._reap()
    outcomes = b.work.outcomes()
    assert kinds(outcomes) == dict.fromkeys(range(3), "lost")
    assert outcomes[0].type_name == "nbparallel.errors.WorkerLost"
    assert "vanished 1 times while it ran a chunk of 3 items" in outcomes[0].message
    (block,) = b.work.blocks()
    assert (block.attempt, block.worker) == (2, "worker1")
    assert b.peek()[1:3] == (0, 0)


# --- interrupts -----------------------------------------------------------------------------------------------------


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Children that would have been signalled."""
    signalled: list[int] = []
    monkeypatch.setattr(module.Interrupter, "_signal", lambda _, wish: signalled.append(wish.slot.number))
    return signalled


@pytest.mark.parametrize(("stop", "hit"), [(0, [0, 1]), (5, [1]), (8, [1]), (9, [])])
def test_a_stop_interrupts_what_is_above_it(bench: Make, silent: list[int], stop: int, hit: list[int]) -> None:
    """Items at or above the stop are interrupted, those below run on; a cancel means all."""
    b = bench()
    for number, index in enumerate((4, 8)):
        slot = b.slots[number]
        slot.child_starts(NOBODY, "s" * 16)
        slot.child_claims(1, b.work.key, "ticket")
        slot.words[slots.INDEX] = index
    b.supervisor._hear(f"stop {b.work.key} {stop}")
    b.supervisor._interrupts()
    assert silent == hit


def test_stops_of_other_jobs_mean_others(bench: Make, silent: list[int]) -> None:
    """A child that runs another job, or rests, is left alone; so it is by messages that make no sense."""
    b = bench()
    b.child().words[slots.INDEX] = 3
    for message in ("stop another 0", f"stop {b.work.key} x", f"stop {b.work.key}", f"go {b.work.key} 0", ""):
        b.supervisor._hear(message)
    b.supervisor._interrupts()
    assert silent == []


def test_a_stop_never_rises(bench: Make) -> None:
    """Messages that overtake each other leave the lowest stop."""
    b = bench()
    for at in (7, 3, 5):
        b.supervisor._note_stop("job", at)
    assert b.supervisor._stops == {"job": 3}


def test_few_stops_are_remembered(bench: Make) -> None:
    """Of jobs without end only the last stops are kept."""
    b = bench()
    for number in range(module.STOPS_KEPT + 3):
        b.supervisor._note_stop(f"job{number}", 0)
    assert len(b.supervisor._stops) == module.STOPS_KEPT
    assert "job2" not in b.supervisor._stops


@pytest.mark.parametrize(("ran", "limit", "index", "hit"), [(2, 1, 3, 1), (2, 3, 3, 0), (2, 0, 3, 0), (2, 1, -1, 0)])
def test_an_item_that_runs_too_long_is_interrupted(
    bench: Make, silent: list[int], monkeypatch: pytest.MonkeyPatch, ran: int, limit: int, index: int, hit: int
) -> None:
    """An item with a limit that has run for longer is asked to end: that item, and for that reason."""
    b = bench()
    slot = b.child()
    slot.words[slots.INDEX] = index
    slot.times[slots.STARTED], slot.times[slots.LIMIT] = 1000.0, limit
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 1000.0 + ran))
    b.supervisor._interrupts()
    assert len(silent) == hit
    if hit:
        assert (slot.words[slots.ASK_INDEX], slot.words[slots.ASK_WHY]) == (3, slots.TIMED_OUT)


# --- the threads ----------------------------------------------------------------------------------------------------


@pytest.fixture
def running(bench: Make) -> Iterator[Callable[..., Bench]]:
    """Makes supervisors whose threads run; they are stopped at the end."""
    started: list[Bench] = []

    def make(**options: Any) -> Bench:
        b = bench(renew_seconds=0.02, lease_seconds=0.1, **options)
        b.supervisor.start()
        started.append(b)
        return b

    yield make
    for b in started:
        b.supervisor.stop()
        b.work.store.stop(b.work.key, 0)  # whoever listens looks whether it is over
        b.supervisor._threads[1].join()


def test_a_death_is_seen_at_once(running: Callable[..., Bench]) -> None:
    """A child that dies is released by what its slot says, and Celery is told to look after its pool."""
    b = running(items=3, crash_limit=1)
    looked = threading.Event()
    readers: dict[int, Callable[[], None]] = {}
    hub = SimpleNamespace(readers=readers, add_reader=readers.__setitem__, call_soon=lambda call: call())
    b.supervisor.tell_deaths(hub, SimpleNamespace(maintain_pool=looked.set))
    ((fd, look),) = readers.items()
    readers.clear()  # as the loop does when it loses its connection
    with subprocess.Popen(["sleep", "60"]) as process:
        slot = b.child(pid=process.pid)
        slot.words[slots.INDEX], slot.words[slots.COUNT] = 1, 1
        b.supervisor.tell("wake")
        eventually(lambda: b.supervisor._watched)
        process.kill()
        eventually(lambda: slot.pid() == 0)
        eventually(b.work.outcomes)
        assert "signal SIGKILL" in b.work.outcomes()[1].message
        select.select([fd], [], [], 10)
        eventually(lambda: readers == {fd: look}, what="it is watched again")
        look()
        assert looked.is_set()


def test_a_child_that_died_before_it_was_seen(running: Callable[..., Bench]) -> None:
    """A pid that is no more is a death, of which nothing more is known."""
    b = running(items=3, crash_limit=1)
    slot = b.child()
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 1, 1
    b.supervisor.tell("wake")
    eventually(b.work.outcomes)
    assert b.work.outcomes()[1].message.endswith("unknown exit")


def test_a_slot_that_has_a_new_owner_is_not_released(running: Callable[..., Bench]) -> None:
    """When the pool was faster than we, the new child's lease is not taken for the dead one's, which is given back."""
    b = running()
    with subprocess.Popen(["sleep", "60"]) as old, subprocess.Popen(["sleep", "60"]) as new:
        slot = b.slots[0]
        slot.child_starts(old.pid, "o" * 16)
        b.supervisor.tell("wake")
        eventually(lambda: b.supervisor._watched)
        token, known = make_token("o" * 16, 1), {"lease": 10_000, "first": True}
        b.child(pid=new.pid)
        assert b.work.store.claim(b.work.key, token, b.work.submit([1])[0], **known).state == "chunk"
        assert b.peek().held == 2
        old.kill()
        eventually(lambda: [pid for pid, *_ in b.supervisor._watched.values()] == [new.pid])
        assert slot.pid() == new.pid
        eventually(lambda: b.peek().held == 1)
        assert b.work.store.release(b.work.key, token, "return").state == "fenced"
        slot.child_rests()
        slot.forget()
        new.kill()
        eventually(lambda: not b.supervisor._watched)


def test_tickets_of_children_are_published(running: Callable[..., Bench]) -> None:
    """A line in the pipe becomes a message; lines in parts and nonsense are dealt with."""
    b = running()
    os.write(b.supervisor._writer, b"wake\npublish job tic")
    os.write(b.supervisor._writer, b"ket queue a%20job\npublish too few\npublish job2 ticket2  \n")
    eventually(lambda: len(b.published) == 2)
    assert b.published == [("job", "ticket", "queue", "a job"), ("job2", "ticket2", "", "")]


def test_the_control_channel_is_heard(running: Callable[..., Bench]) -> None:
    """A stop that somebody publishes is noted at once."""
    b = running()
    eventually(lambda: b.work.store._listeners)
    b.work.store.stop(b.work.key, 4)
    eventually(lambda: b.supervisor._stops == {b.work.key: 4})


def test_beats_and_renewals_come_by_themselves(running: Callable[..., Bench]) -> None:
    """The threads beat, renew and reap in their intervals."""
    b = running()
    with subprocess.Popen(["sleep", "60"]) as process:
        slot = b.child(pid=process.pid, lease=50)
        eventually(lambda: b.work.store.workers())
        b.work.clock.now += 45
        eventually(lambda: next(iter(b.work.store._leases.values())) > b.work.clock.now + 50, what="it is renewed")
        slot.child_rests()
        b.work.clock.now += 1000
        eventually(lambda: b.peek().pending == 1, what="it is reaped")
        slot.forget()
        process.kill()


def test_a_supervisor_says_goodbye(bench: Make) -> None:
    """At the end the last tickets are published, what is held is given back, and the worker is known no more."""
    b = bench(renew_seconds=0.02)
    b.supervisor._threads[0].start()
    eventually(lambda: b.work.store.workers())
    with subprocess.Popen(["sleep", "60"]) as process:
        b.child(pid=process.pid)
        b.supervisor.hand_back()
        b.supervisor.stop()
        process.kill()
    assert b.work.store.workers() == {}
    assert b.peek()[1:3] == (1, 0)


class Away:
    """A store that is away as long as the test wants."""

    def __init__(self, store: Any) -> None:
        self.store, self.away, self.error = store, True, ConnectionFailed("away")

    def __getattr__(self, name: str) -> Any:
        if not self.away:
            return getattr(self.store, name)

        def call(*_: Any, **__: Any) -> None:
            raise self.error

        return call


@pytest.mark.parametrize("error", [ConnectionFailed("away"), KeyError("a bug")])
def test_an_outage_does_not_end_the_supervisor(
    bench: Make, error: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store is away the threads go on, and when it is back so are beats and stops."""
    b = bench(renew_seconds=0.01)
    store = Away(b.work.store)
    store.error = error if isinstance(error, ConnectionFailed) else store.error
    b.supervisor._store = store  # type: ignore[assignment]
    if isinstance(error, KeyError):
        monkeypatch.setattr(b.supervisor, "_describe", lambda: {}["a bug"])
        store.away = False
    with caplog.at_level(logging.WARNING):
        b.supervisor.start()
        try:
            eventually(lambda: len(caplog.records) >= 3)
            assert {record.levelno for record in caplog.records} == {
                logging.WARNING if isinstance(error, ConnectionFailed) else logging.ERROR
            }
            monkeypatch.setattr(b.supervisor, "_describe", lambda: b"says")
            store.away = False
            eventually(lambda: b.work.store.workers())
            eventually(lambda: b.work.store._listeners)
        finally:
            b.supervisor.stop()
            b.supervisor._threads[1].join()


def test_a_ticket_is_the_one_that_was_minted(bench: Make) -> None:
    """What is published can be claimed with."""
    b = bench()
    slot = b.child()
    slot.words[slots.INDEX], slot.words[slots.COUNT] = 0, 1
    b.dies(slot)
    ((job, ticket, _, _),) = b.published
    store: MemoryStore = b.work.store
    assert store.claim(job, keys.new_id(), ticket, lease=1000, first=True).state == "chunk"
