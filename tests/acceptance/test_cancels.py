"""Cancels at random moments of one of two jobs that share a cluster: how soon its work ends, and what the other loses.

python -m pytest -m soak tests/acceptance/test_cancels.py -s         200 cancels, and a table (CANCELS=n for others)
"""

from __future__ import annotations

import functools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest
from acceptance.hosts import Rig, remote
from support import eventually

from nbparallel import Job, pmap
from nbparallel.cluster.handle import RemoteCluster

#: Seconds within which work ends after a cancel: Python code, and a C call that holds the interpreter lock.
IN_PYTHON, IN_C = 0.25, 1.5
#: Longest that a cancelled job works before.
LONGEST = 0.6


def sign(log: str, word: str) -> None:
    """Leave a line."""
    file = os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, f"{word} {time.time():.4f}\n".encode())
    os.close(file)


def work(log: str, how: str, index: int) -> int:
    """Work for seconds, and leave signs of it all the time, and when it is interrupted."""
    try:
        for _ in range(200):
            sign(log, "work")
            if how == "python":
                until = time.perf_counter() + 0.02
                while time.perf_counter() < until:
                    pass
            elif how == "sleep":
                time.sleep(5.0)
            else:
                sum(range(10**9))  # seconds in C that no signal ends
    finally:
        sign(log, "end")
    return index


def other(log: str, index: int) -> int:
    """An item of the job beside, which nobody cancels."""
    sign(log, f"{index}")
    time.sleep(0.02)
    return index * index


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[tuple[Rig, RemoteCluster]]:
    """Two hosts of two processes, with the times that users have."""
    with remote(2, 2, cancel_grace=1.0, lease_seconds=10.0, renew_seconds=2.0, turn_seconds=0.3) as both:
        pmap(abs, [1], session=both[1]).result(10)
        yield both


def cancel_once(rig: Rig, cluster: RemoteCluster, how: str, log: Path, rng: random.Random) -> float:
    """Cancel a job after a random time; seconds from then until no process works for it any more."""
    job: Job[Any] = pmap(functools.partial(work, str(log), how), range(100), chunks=1, session=cluster)
    eventually(log.exists, 20, "an item starts")
    pause, ends = rng.uniform(0.0, LONGEST), time.monotonic()
    eventually(lambda: time.monotonic() - ends >= pause, 20)
    with rig.server.client() as store:
        cancelled = time.time()
        assert job.cancel()
        # What a process does for the job it does under a lease, which goes when the process is free again or dead.
        eventually(lambda: not store.hlen(f"nbp:default:{job.id}.0:held"), 30, "the workers are free")
        free = time.time()
        eventually(
            lambda: [key.rpartition(b":")[2] for key in store.keys(f"*{job.id}*")] == [b"meta"], 30, "a tombstone"
        )
    signs = [line.split() for line in log.read_text().splitlines()]
    assert how == "C" or "end" in {word for word, _ in signs}, "finally blocks did not run"
    return max(free, *(float(at) for _, at in signs)) - cancelled


def measure(rig: Rig, cluster: RemoteCluster, how: str, count: int, directory: Path) -> list[float]:
    """So many cancels while another job runs, which must lose nothing; sorted seconds."""
    rng, beside = random.Random(f"{how}{count}"), directory / "beside"
    items = int(count * 60 + 200)
    long = pmap(functools.partial(other, str(beside)), range(items), session=cluster)
    try:
        eventually(lambda: long.snapshot().done > 10, 20)
        times = [cancel_once(rig, cluster, how, directory / f"log{number}", rng) for number in range(count)]
        assert long.result(600) == [index * index for index in range(items)]
    finally:
        long.cancel()
    starts = Counter(line.split()[0] for line in beside.read_text().splitlines())
    assert set(starts.values()) == {1}, "items of the other job ran twice"
    return sorted(times)


@pytest.mark.parametrize(("how", "limit"), [("python", IN_PYTHON), ("sleep", IN_PYTHON), ("C", IN_C)])
def test_a_cancel_ends_one_of_two_jobs(
    two_hosts: tuple[Rig, RemoteCluster], tmp_path: Path, how: str, limit: float
) -> None:
    """Workers are free soon, of the job's keys in the store a tombstone is left, and the other job loses nothing."""
    assert measure(*two_hosts, how, 2, tmp_path)[-1] < 5 * limit


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_cancels(two_hosts: tuple[Rig, RemoteCluster], tmp_path: Path) -> None:
    """The same at 200 random moments; the table is printed."""
    count, rows = int(os.environ.get("CANCELS", "200")), {}
    for how, limit in (("python", IN_PYTHON), ("sleep", IN_PYTHON), ("C", IN_C)):
        directory = tmp_path / how
        directory.mkdir()
        times = measure(*two_hosts, how, -(-count // 3), directory)
        cuts = quantiles(times, n=20)
        rows[how] = {"cancels": len(times), "p50": cuts[9], "p95": cuts[18], "max": times[-1], "guaranteed": limit}
        print(json.dumps({how: {name: round(value, 3) for name, value in rows[how].items()}}), flush=True)
    # Where many other programs run, single ones take as long as it takes until a process has its turn.
    assert all(row["p50"] < 5 * row["guaranteed"] for row in rows.values()), rows
