"""Sweeps, tables and pictures of jobs with real workers."""

from __future__ import annotations

import os
import time
from pathlib import Path

from support import Gate, eventually

from nbparallel import Cluster, grid, pmap, sweep


def model(a: int, b: int, scale: int = 1) -> dict[str, float]:
    """A model of two parameters."""
    return {"total": scale * (a + b), "ratio": a / b}


def test_a_sweep_gives_a_table(cluster: Cluster) -> None:
    """A row for each point: parameters, fields of the result, and how it ran; failed points too."""
    job = sweep(model, grid(a=[1, 2, 3], b=[0, 2]), scale=10, on_error="return", session=cluster)
    job.result()
    frame = job.to_frame()
    assert list(frame.columns) == ["a", "b", "total", "ratio", "duration", "worker", "attempts", "error"]
    assert frame["a"].tolist() == [1, 1, 2, 2, 3, 3]
    assert frame["total"].tolist()[1::2] == [30, 40, 50]
    assert frame["error"].notna().tolist() == [True, False] * 3
    assert (frame["duration"] > 0).all()
    assert all(":" in worker for worker in frame["worker"])


def test_durations_workers_and_attempts_are_right(cluster: Cluster, tmp_path: Path) -> None:
    """Each item's own duration, the process that ran it, and the attempt that succeeded."""

    def work(x: int) -> int:
        mark = tmp_path / str(x)
        if x == 3 and not mark.exists():
            mark.touch()
            raise ConnectionError("once")
        time.sleep(0.05 * x)
        return os.getpid()

    job = pmap(work, range(5), retries=1, session=cluster)
    job.result()
    frame = job.to_frame()
    assert frame["attempts"].tolist() == [1, 1, 1, 2, 1]
    assert [int(name.rpartition(":")[2]) for name in frame["worker"]] == frame["result"].tolist()
    assert all(0.05 * x <= seconds < 0.05 * x + 0.04 for x, seconds in frame["duration"].items())


def test_many_short_items_have_mean_durations(cluster: Cluster) -> None:
    """Items that run in batches share their time; all rows are there."""
    job = pmap(abs, range(20_000), session=cluster)
    job.result()
    frame = job.to_frame()
    assert frame["result"].tolist() == list(range(20_000))
    assert (frame["duration"] > 0).sum() > 19_000
    assert frame["duration"].sum() < 20


def test_the_table_is_there_while_the_job_runs(cluster: Cluster, gate: Gate) -> None:
    """What has an outcome is in the frame, what has none is not; asking does not wait."""

    def wait(x: int) -> int:
        if x == 2:
            gate.wait()
        return x

    job = pmap(wait, range(3), chunks=1, session=cluster)
    eventually(lambda: len(job.to_frame()) == 2, within=20, what="two rows")
    assert job.to_frame()["x"].tolist() == [0, 1]
    job.plot(kind="work")
    gate.open()
    job.result()
    assert job.to_frame().index.tolist() == [0, 1, 2]


def test_results_are_drawn(cluster: Cluster) -> None:
    """A sweep draws its results, any job its work: a lane for each process, as many bars as items."""
    job = sweep(model, grid(a=range(1, 12), b=range(1, 12)), session=cluster)
    job.result()
    assert job.plot(value="ratio").axes[0].get_xlabel() == "a"
    lanes = job.plot(kind="work").axes[0]
    assert sum(len(bars.get_paths()) for bars in lanes.collections) == 121
    assert 1 <= len(lanes.get_yticks()) <= 2


def test_a_grid_is_not_made_in_advance(cluster: Cluster) -> None:
    """A job over a grid of a million millions starts at once, and has a length."""
    job = sweep(lambda a, b: a, grid(a=range(10**6), b=range(10**6)), session=cluster)
    assert len(job) == 10**12
    assert next(iter(job)) == 0
    job.cancel()
