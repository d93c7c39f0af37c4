"""Faults while an item is inside a C call that holds Python's global lock, so that nothing in its process can react."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from acceptance.hosts import Rig, kill, remote
from support import eventually, our_processes

from nbparallel import ItemTimeout, JobCancelled, pmap

#: The hosts' lease, and an item that is longer.
LEASE, LONG = 2.0, 2.5


def hold(index: int, log: str, seconds: float) -> int:
    """Leaves a line, then waits in C for a mutex that nobody gives back: no signal wakes it, no other thread runs."""
    with open(log, "a") as file:
        file.write(f"{index} {os.getpid()}\n")
    if seconds:
        libc, mutex, until = ctypes.PyDLL(None), ctypes.create_string_buffer(64), time.time() + seconds
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_timedlock(mutex, (ctypes.c_long * 2)(int(until), int(until % 1 * 1e9)))
    return index


def starts(log: Path) -> list[tuple[int, int]]:
    """Item and process of each start."""
    rows = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(int(index), int(pid)) for index, pid in rows]


def host_of(rig: Rig, child: int) -> int:
    """Which host runs a child."""
    parent = our_processes()[child].parent
    return [host.pid for host in rig.hosts].index(parent)


def kill_child(rig: Rig, child: int) -> None:
    """The process is killed."""
    kill(child)


def kill_host(rig: Rig, child: int) -> None:
    """The process is killed with all of its host."""
    rig.kill(rig.hosts[host_of(rig, child)])


def stand_still(*pids: int) -> None:
    """Processes stand still for longer than the lease."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + LEASE + 0.5
    eventually(lambda: time.monotonic() > until, LEASE + 5)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def stop_child(rig: Rig, child: int) -> None:
    """The process stands still, in an item longer than the lease; its parent knows that it lives."""
    stand_still(child)


def stop_host(rig: Rig, child: int) -> None:
    """The process and its parent stand still, so that its work is given away."""
    stand_still(rig.hosts[host_of(rig, child)].pid, child)


#: What befalls the process, and how many items run twice for it.
FAULTS: dict[str, tuple[Callable[[Rig, int], None], int]] = {
    "process stands still": (stop_child, 0),
    "process killed": (kill_child, 1),
    "host stands still": (stop_host, 1),
    "host killed": (kill_host, 1),
}


def test_faults_inside_c_calls(tmp_path: Path) -> None:
    """Every item has its one outcome, and only what was lost runs again: not what just cannot speak."""
    with remote(2, lease_seconds=LEASE) as (rig, cluster):
        for fault, (act, again) in FAULTS.items():
            log = tmp_path / fault
            seconds = [LONG, LONG, 0.0, 0.0, 0.0, 0.0]
            job = pmap(hold, range(6), [str(log)] * 6, seconds, chunks=1, progress=False, session=cluster)
            eventually(lambda log=log: len(starts(log)) == 2, 10, f"both hosts are busy ({fault})")
            began = time.monotonic()
            act(rig, starts(log)[0][1])
            assert job.result(60) == list(range(6)), fault
            doubled = len(starts(log)) - 6
            print(f"{fault}: {time.monotonic() - began:.1f} s from the fault on, {doubled} items ran twice")
            assert doubled <= again, fault
            assert max(Counter(index for index, _ in starts(log)).values()) <= 2, fault


def test_cancel_and_timeout_inside_a_c_call(tmp_path: Path) -> None:
    """The processes are replaced and the hosts take other work soon; a timeout ends its item alone."""
    log, late = tmp_path / "cancelled", tmp_path / "late"
    with remote(2, cancel_grace=1.0) as (rig, cluster), rig.server.client() as store:
        job = pmap(hold, range(4), [str(log)] * 4, [60.0] * 4, chunks=1, progress=False, session=cluster)
        eventually(lambda: len(starts(log)) == 2, 10)
        children = {pid for _, pid in starts(log)}
        began = time.monotonic()
        job.cancel()
        eventually(lambda: not children & set(our_processes()), 5 * 1.5)
        print(f"cancel: idle after {time.monotonic() - began:.2f} s")
        with pytest.raises(JobCancelled):
            job.result(5)
        eventually(lambda: not store.zcard("nbp:default:leases"), 10)
        assert len(starts(log)) == 2
        again = pmap(
            hold, range(4), [str(late)] * 4, [0.0, 60.0, 0.0, 0.0], chunks=4, timeout=0.5, on_error="return",
            progress=False, session=cluster,
        )  # fmt: skip
        eventually(lambda: len(starts(late)) >= 2, 10)
        began = time.monotonic()
        first, failed, *rest = again.result(30)
        print(f"timeout of 0.5 s: ended after {time.monotonic() - began:.2f} s")
        assert isinstance(failed, ItemTimeout)
        assert [first, *rest] == [0, 2, 3]
        ran = Counter(index for index, _ in starts(late))
        assert ran.pop(0) <= 2  # it had ended, and nobody could say so
        assert ran == {1: 1, 2: 1, 3: 1}


def test_a_worker_that_leaves_inside_a_c_call(tmp_path: Path) -> None:
    """SIGTERM: what its process has not started runs elsewhere at once, and the item ends where it is."""
    log = tmp_path / "log"
    with remote(2, lease_seconds=LEASE) as (rig, cluster):
        seconds = [5.0, 0.0, 0.0, 0.0]
        job = pmap(hold, range(4), [str(log)] * 4, seconds, chunks=4, progress=False, session=cluster)
        eventually(lambda: starts(log), 10)
        leaving = rig.hosts[host_of(rig, starts(log)[0][1])]
        leaving.send_signal(signal.SIGTERM)
        began = time.monotonic()
        eventually(lambda: len(starts(log)) == 4, 20)
        print(f"SIGTERM: the rest ran elsewhere after {time.monotonic() - began:.2f} s")
        assert 0 not in job.results_so_far(), "they waited for the item"
        assert job.result(30) == list(range(4))
        assert sorted(index for index, _ in starts(log)) == [0, 1, 2, 3]
        assert leaving.wait(10) == 0
