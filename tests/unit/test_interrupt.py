"""Interrupts on their way: when a child is signalled, when it is killed, and when it is left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import eventually

from nbparallel.worker import interrupt as module
from nbparallel.worker import processes
from nbparallel.worker import slot as slots
from nbparallel.worker.interrupt import Interrupter
from nbparallel.worker.slot import Running, Slot, Slots

GRACE = 1.0


class Child:
    """A process that sleeps, and the slot in which it says that it runs item 5 of lease 3."""

    def __init__(self, number: int = 0) -> None:
        self.process = subprocess.Popen(["sleep", "60"])
        self.slot: Slot = Slots(number + 1)[number]
        self.slot.child_starts(self.process.pid, "stamp")
        self.claims(3, 5)

    def claims(self, serial: int, index: int) -> None:
        """It runs an item of a lease."""
        self.slot.child_claims(serial, "job", "ticket")
        self.slot.words[slots.INDEX] = index

    @property
    def running(self) -> Running:
        """What its parent sees."""
        running = self.slot.running()
        assert running is not None
        return running

    def state(self) -> str:
        """As the kernel tells it: S sleeps, T stopped, Z dead."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


class Signals:
    """What would have been sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.families: list[int] = []
        self.before_stop = lambda: None

    def kill(self, pid: int, number: int) -> None:
        """In the place of ``os.kill``; SIGUSR1 would end a process that sleeps."""
        if number == signal.SIGSTOP:
            self.before_stop()
        self.sent.append((pid, number))
        if number != signal.SIGUSR1:
            os.kill(pid, number)


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Signals:
    """Signals are noted."""
    signals, real = Signals(), os.kill

    class System:
        kill = staticmethod(lambda pid, number: signals.kill(pid, number))

    monkeypatch.setattr(module, "os", System)
    monkeypatch.setattr(processes, "kill_family", signals.families.append)
    assert os.kill is real
    return signals


@pytest.fixture
def child() -> Iterator[Child]:
    """A child that runs an item."""
    child = Child()
    yield child
    with contextlib.suppress(ProcessLookupError):
        child.process.kill()
    child.process.wait()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    """A clock that stands still; wishes are made at this time."""
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    return 100.0


def test_a_wish_is_signalled_until_it_is_heeded(child: Child, signals: Signals, now: float) -> None:
    """The child is signalled at once and then at intervals; once it has raised, its clean-up runs in peace."""
    interrupter = Interrupter(GRACE)
    interrupter.want(child.slot, child.running, slots.TIMED_OUT, 5)
    assert interrupter.pending()
    words = child.slot.words
    assert (words[slots.ASK_SERIAL], words[slots.ASK_INDEX], words[slots.ASK_WHY]) == (3, 5, slots.TIMED_OUT)
    pid = child.process.pid
    for tick in (0.0, 0.05, 0.11, 0.15, 0.22):
        interrupter.tick(now + tick)
    assert signals.sent == [(pid, signal.SIGUSR1)] * 3
    assert signals.families == [pid] * 3
    words[slots.RAISED] = 3
    for tick in (0.4, 0.6):
        interrupter.tick(now + tick)
    words[slots.RAISED] = 0
    interrupter.tick(now + 0.8)
    assert len(signals.sent) == 3
    assert interrupter.pending()


def test_a_child_that_goes_on_is_left_alone(child: Child, signals: Signals, now: float) -> None:
    """When the item has ended, the wish for it is over; nothing is ever sent for it again."""
    interrupter = Interrupter(GRACE)
    interrupter.want(child.slot, child.running, slots.TIMED_OUT, 5)
    child.slot.words[slots.INDEX] = 6
    interrupter.tick(now)
    assert not interrupter.pending()
    interrupter.tick(now + 2 * GRACE)
    assert signals.sent == []


@pytest.mark.parametrize("change", ["next lease", "rests", "another process"])
def test_a_wish_ends_with_its_lease(child: Child, signals: Signals, now: float, change: str) -> None:
    """A wish for whatever item is for the items of one lease of one process."""
    interrupter = Interrupter(GRACE)
    interrupter.want(child.slot, child.running, slots.CANCELLED)
    child.slot.words[slots.INDEX] = 6
    interrupter.tick(now)
    assert len(signals.sent) == 1
    if change == "next lease":
        child.claims(4, 5)
    elif change == "rests":
        child.slot.child_rests()
    else:
        child.slot.child_starts(1, "other")
        child.claims(3, 6)
    interrupter.tick(now + 2 * GRACE)
    assert len(signals.sent) == 1
    assert not interrupter.pending()


def test_a_child_that_does_not_heed_is_killed(child: Child, signals: Signals, now: float) -> None:
    """After the grace the process is stopped, looked at, and killed."""
    interrupter = Interrupter(GRACE)
    interrupter.want(child.slot, child.running, slots.CANCELLED)
    interrupter.tick(now)
    interrupter.tick(now + GRACE - 0.01)
    assert child.state() not in "TZ"
    interrupter.tick(now + GRACE)
    assert signals.sent[-2:] == [(child.process.pid, signal.SIGSTOP), (child.process.pid, signal.SIGKILL)]
    assert child.process.wait() == -signal.SIGKILL


def test_a_clean_up_that_takes_too_long_is_killed(child: Child, signals: Signals, now: float) -> None:
    """Having heeded does not help an item that still runs after the grace."""
    interrupter = Interrupter(GRACE)
    interrupter.want(child.slot, child.running, slots.CANCELLED)
    child.slot.words[slots.RAISED] = 3
    interrupter.tick(now + GRACE)
    assert child.process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("change", ["next item", "between items", "next lease"])
def test_a_child_that_goes_on_at_the_last_moment_lives(child: Child, signals: Signals, now: float, change: str) -> None:
    """What the stopped process says decides: when it is past the item, it is let go."""
    interrupter = Interrupter(GRACE)
    interrupter.want(child.slot, child.running, slots.TIMED_OUT, 5)

    def goes_on() -> None:
        if change == "next lease":
            child.claims(4, 0)
        else:
            child.slot.words[slots.INDEX] = 6 if change == "next item" else -1

    signals.before_stop = goes_on
    interrupter.tick(now + GRACE)
    assert signals.sent == [(child.process.pid, signal.SIGSTOP), (child.process.pid, signal.SIGCONT)]
    eventually(lambda: child.state() == "S", what="it runs on")


def test_a_child_outside_an_item_is_not_killed(child: Child, signals: Signals, now: float) -> None:
    """A cancel does not kill a process that reports, or waits for the store."""
    interrupter = Interrupter(GRACE)
    interrupter.want(child.slot, child.running, slots.CANCELLED)
    child.slot.words[slots.INDEX] = -1
    interrupter.tick(now + GRACE)
    eventually(lambda: child.state() == "S")
    assert interrupter.pending(), "the next item of the lease is meant as well"


def test_the_same_wish_again_changes_nothing(child: Child, signals: Signals, now: float) -> None:
    """A wish that is repeated keeps its time; another one for the same child takes its place."""
    interrupter = Interrupter(GRACE)
    interrupter.want(child.slot, child.running, slots.CANCELLED)
    interrupter.tick(now)
    interrupter.want(child.slot, child.running, slots.CANCELLED)
    interrupter.tick(now + 0.05)
    assert len(signals.sent) == 1
    interrupter.want(child.slot, child.running, slots.TIMED_OUT, 5)
    assert child.slot.words[slots.ASK_WHY] == slots.TIMED_OUT
    interrupter.tick(now + 0.06)
    assert len(signals.sent) == 2


def test_why_a_dead_child_was_to_be_interrupted(child: Child, now: float) -> None:
    """The reason is told once, and only for the lease that was meant."""
    interrupter = Interrupter(GRACE)
    running = child.running
    assert interrupter.ended(child.slot, running) == 0
    interrupter.want(child.slot, running, slots.TIMED_OUT, 5)
    assert interrupter.ended(child.slot, running) == slots.TIMED_OUT
    assert interrupter.ended(child.slot, running) == 0
    interrupter.want(child.slot, running, slots.LOST)
    child.claims(4, 5)
    assert interrupter.ended(child.slot, child.running) == 0


def test_a_child_that_dies_meanwhile_is_no_error(child: Child, signals: Signals, now: float) -> None:
    """Signals to a process that is gone are lost quietly."""
    child.process.kill()
    child.process.wait()
    interrupter = Interrupter(GRACE)
    interrupter.want(child.slot, child.running, slots.CANCELLED)

    def gone(pid: int, number: int) -> None:
        raise ProcessLookupError

    signals.kill = gone  # type: ignore[method-assign]
    interrupter.tick(now)
    interrupter.tick(now + GRACE)


def test_children_do_not_mix(signals: Signals, now: float) -> None:
    """A wish for one child is sent to that one."""
    children = [Child(0), Child(1)]
    try:
        interrupter = Interrupter(GRACE)
        for child in children:
            interrupter.want(child.slot, child.running, slots.CANCELLED)
        children[0].slot.child_rests()
        interrupter.tick(now)
        assert signals.sent == [(children[1].process.pid, signal.SIGUSR1)]
    finally:
        for child in children:
            child.process.kill()
            child.process.wait()
