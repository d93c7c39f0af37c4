"""Several jobs on one cluster: those of the same priority take turns, an urgent one overtakes."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from acceptance.hosts import KEY, remote
from support import eventually

from nbparallel import Cluster, UsageError, connect, pmap
from nbparallel.cluster.handle import RemoteCluster

Where: TypeAlias = "Cluster | RemoteCluster"
#: Seconds of a turn, and of an item.
TURN, ITEM = 0.5, 0.02


def note(log: str, name: str, index: int) -> int:
    """Leaves a line at its start."""
    file = os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, f"{name}\n".encode())
    os.close(file)
    time.sleep(ITEM)
    return index


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[RemoteCluster, RemoteCluster]]:
    """Two clients of one host with two processes."""
    with remote(1, 2, turn_seconds=TURN) as (rig, first):
        second = connect(rig.server.url, key=KEY, **rig.settings)
        for client in (first, second):
            pmap(abs, [1], session=client).result(10)  # their threads are not the first test's
        yield first, second
        second.stop()


def test_a_short_job_gets_its_share_of_a_long_one(shared: tuple[RemoteCluster, RemoteCluster], tmp_path: Path) -> None:
    """A client that comes while another's long job runs has a result within two turns, and both go on."""
    log = str(tmp_path / "log")
    long = pmap(functools.partial(note, log, "long"), range(100_000), session=shared[0])
    try:
        eventually(lambda: long.snapshot().done > 20, 20)
        began, before = time.monotonic(), long.snapshot().done
        short = iter(pmap(functools.partial(note, log, "short"), range(100), session=shared[1]))
        next(short)
        assert time.monotonic() - began < 5 * 2 * TURN
        assert sum(1 for _ in short) == 99
        eventually(lambda: long.snapshot().done > before + 20, 20)
    finally:
        long.cancel()


@pytest.mark.parametrize(("plain", "urgent"), [(0, 9), (-1, 0)])
def test_an_urgent_job_overtakes_another_clients(
    shared: tuple[RemoteCluster, RemoteCluster], tmp_path: Path, plain: int, urgent: int
) -> None:
    """While a job of a higher priority has work, hardly anything of the other one starts; then that goes on."""
    overtake(shared[0], shared[1], tmp_path / "log", plain, urgent)


def test_an_urgent_job_overtakes_in_one_session(cluster: Cluster, tmp_path: Path) -> None:
    """The same where one client has all worker processes, whose turns end only when somebody waits."""
    overtake(cluster, cluster, tmp_path / "log", 0, 1)


def overtake(first: Where, second: Where, log: Path, plain: int, urgent: int) -> None:
    """Start an urgent job within a long one, and look at what started in which order."""
    long = pmap(functools.partial(note, str(log), "long"), range(100_000), session=first, priority=plain)
    try:
        eventually(lambda: long.snapshot().done > 20, 20)
        function = functools.partial(note, str(log), "urgent")
        assert pmap(function, range(300), session=second, priority=urgent).result(60) == list(range(300))
        started = log.read_text().split()
        # Of the last chunks some end before others: then processes are free again.
        of_urgent = [at for at, name in enumerate(started) if name == "urgent"][:250]
        between = started[of_urgent[0] : of_urgent[-1]].count("long")
        assert between < 50, "taking turns, it would be about 250"
        before = long.snapshot().done
        eventually(lambda: long.snapshot().done > before + 20, 20)
    finally:
        long.cancel()


def test_an_urgent_job_takes_no_more_than_it_may(shared: tuple[RemoteCluster, RemoteCluster], tmp_path: Path) -> None:
    """With ``max_running`` an urgent job leaves the other processes to the others."""
    log = str(tmp_path / "log")
    long = pmap(functools.partial(note, log, "long"), range(100_000), session=shared[0])
    try:
        eventually(lambda: long.snapshot().done > 20, 20)
        before = long.snapshot().done
        function = functools.partial(note, log, "urgent")
        job = pmap(function, range(100), session=shared[1], priority=5, max_running=1, chunks=1)
        assert job.result(60) == list(range(100))
        assert long.snapshot().done > before + 25
    finally:
        long.cancel()


@pytest.mark.parametrize("priority", [10, -10, 1.5, "high", True])
def test_a_priority_that_makes_no_sense_is_refused(priority: object) -> None:
    """Something else than a whole number from -9 to 9 is an error before anything is sent."""
    with pytest.raises(UsageError, match="priority must be a whole number"):
        pmap(abs, [1], priority=priority)  # type: ignore[call-overload]
