"""Limits that a user sets on what an item may take."""

from __future__ import annotations

import pytest

from nbparallel import Cluster, UsageError, WorkerCrashed, pmap


def hungry(index: int) -> int:
    """Item 7 takes half a gigabyte, a page at a time, and holds it."""
    import time

    if index == 7:
        held = bytearray(512 << 20)
        held[::4096] = bytes(len(held) // 4096) or b""
        time.sleep(20)
        return len(held)
    return index


def test_an_item_that_takes_too_much_memory_is_stopped(cluster: Cluster) -> None:
    """The item becomes an error that names it and both sizes, soon; all others have their results."""
    job = pmap(hungry, range(40), memory_limit=300 << 20, on_error="return", session=cluster)
    results = job.result(15)
    error = results[7]
    assert isinstance(error, WorkerCrashed)
    assert error.index == 7
    assert f"memory_limit={300 << 20:,}" in str(error)
    assert "item 7" in str(error)
    assert [value for value in results if value is not error] == [index for index in range(40) if index != 7]


def test_a_limit_that_nothing_exceeds_changes_nothing(cluster: Cluster) -> None:
    """Items that keep within the limit run as without it."""
    assert pmap(abs, range(-100, 0), memory_limit=1 << 40, session=cluster).result(10) == list(range(100, 0, -1))


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1G", True])
def test_a_limit_that_makes_no_sense_is_refused(limit: object, cluster: Cluster) -> None:
    """Something else than a positive number of bytes is an error before anything is sent."""
    with pytest.raises(UsageError, match="memory_limit"):
        pmap(abs, [1], memory_limit=limit, session=cluster)  # type: ignore[call-overload]
