"""Results come while a chunk still runs, with real worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import Gate, eventually

from nbparallel import Cluster, pmap

PATIENCE = 20.0


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[list[Gate]]:
    """Ten gates, which open at the end at the latest."""
    with ExitStack() as stack:
        yield [stack.enter_context(Gate(tmp_path / f"{x}")) for x in range(10)]


@pytest.mark.parametrize("ordered", [True, False])
def test_ten_slow_items_in_one_chunk(cluster: Cluster, gates: list[Gate], ordered: bool) -> None:
    """Each item of a chunk waits until the result before it was read: only reports within the chunk make that end."""

    def f(x: int) -> int:
        if x:
            gates[x - 1].wait()
        return x

    job = pmap(f, range(10), chunks=10, ordered=ordered, session=cluster)
    got = []
    for x in job:
        got.append(x)
        gates[x].open()
    assert got == list(range(10))
    assert job.snapshot().chunks == 1


def test_first_result_of_an_automatic_chunk(cluster: Cluster, gate: Gate) -> None:
    """Items that turn slow after fast ones do not keep the fast ones' results."""

    def f(x: int) -> int:
        if x >= 4000:
            gate.wait()
        return x

    job = pmap(f, range(5000), session=cluster)
    results = iter(job)
    assert [next(results) for _ in range(4000)] == list(range(4000))
    assert job.status == "running"
    gate.open()
    assert list(results) == list(range(4000, 5000))


def test_tail_of_a_chunk_goes_elsewhere(cluster: Cluster, gate: Gate) -> None:
    """While one item of an automatic chunk is slow, the unstarted items behind it run in the other process."""

    def f(x: int) -> int:
        if x == 0:
            gate.wait()
        return x

    job = pmap(f, range(200), session=cluster)
    eventually(lambda: len(job.results_so_far()) == 199, PATIENCE, "all but the slow item are done")
    assert job.status == "running"
    gate.open()
    assert job.result(PATIENCE) == list(range(200))


def test_large_results(cluster: Cluster) -> None:
    """Results of a few MB each come whole, in order, and one by one."""
    results = pmap(lambda x: bytes([x]) * 3_000_000, range(8), chunks=8, session=cluster)
    for x, result in enumerate(results):
        assert result == bytes([x]) * 3_000_000


def test_snapshot_while_it_runs(cluster: Cluster, gates: list[Gate]) -> None:
    """Counts rise while items of one chunk end, and add up at every moment."""

    def f(x: int) -> int:
        gates[x].wait()
        return 1 // (x - 2)

    job = pmap(f, range(4), chunks=4, on_error="return", name="steps", session=cluster)
    for x in range(4):
        shot = eventually(lambda x=x: job.snapshot() if job.snapshot().done == x else None, PATIENCE)  # type: ignore[misc]
        assert (shot.name, shot.state, shot.total, shot.failed) == ("steps", "running", 4, int(x > 2))
        assert shot.done + shot.running + shot.waiting == 4
        gates[x].open()
    assert job.wait(PATIENCE)
    shot = job.snapshot()
    assert (shot.state, shot.done, shot.failed, shot.running, shot.waiting) == ("done", 4, 1, 0, 0)
    assert shot.errors == ((2, "ZeroDivisionError", "integer division or modulo by zero"),)
