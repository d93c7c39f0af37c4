"""Memory stays bounded: over many jobs, over a long generator, and when results come faster than they are read.

Each is measured in a process of its own; ``python -m tests.benchmarks`` reports the same figures.
"""

from __future__ import annotations

import pytest
from benchmarks.memory import measured

from nbparallel.settings import Settings

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

#: Megabytes of results that a client keeps in memory.
KEPT = Settings.result_bytes / 1e6


def test_client_memory_does_not_grow_over_ten_thousand_jobs() -> None:
    """The client grows by less than 5 MB (0.5 kB a job), and neither threads nor files pile up."""
    figures = measured("jobs", 10_000, limit=1700)
    print(figures)
    assert figures["client"] < 5
    assert figures["threads"] <= 0
    assert figures["files"] <= 4


def test_a_generator_of_a_million_items_takes_no_memory() -> None:
    """The client grows by less than 50 MB while it takes and drops a million results."""
    figures = measured("generator", 1_000_000, limit=1700)
    print(figures)
    assert figures["client"] < 50
    assert figures["server"] < 100


def test_a_generator_waits_for_a_slow_reader() -> None:
    """Of 10 GB of results only a window is in memory of client and store at a time."""
    figures = measured("slow_reader", 1_000_000, limit=1700)
    print(figures)
    assert figures["client"] < KEPT
    assert figures["server"] < KEPT


def test_results_of_a_sized_input_go_to_disk() -> None:
    """Of 10 GB of results that are kept, the client has what ``result_bytes`` allows and what is being read."""
    figures = measured("slow_reader_sized", 1_000_000, limit=1700)
    print(figures)
    assert figures["client"] < 2 * KEPT  # a block that is being read is there twice, encoded and decoded
    assert figures["server"] < KEPT
