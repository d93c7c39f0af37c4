"""The accounts of a job: counts, honest rates and ETAs, with a clock that the test moves."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nbparallel.client.meter import Meter
from nbparallel.model import Snapshot


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the meter."""
    return Clock()


def shot(meter: Meter, **changes: Any) -> Snapshot:
    """The meter's picture of a running job."""
    return meter.snapshot(**({"id": "j", "name": "f", "state": "running", "total": None, "slots": 2} | changes))


def run(meter: Meter, clock: Clock, rate: float, seconds: float, step: float = 0.1) -> None:
    """Let ``rate`` items a second arrive for ``seconds``, a block each ``step``."""
    for _ in range(round(seconds / step)):
        clock.now += step
        meter.submitted(round(rate * step))
        meter.received(round(rate * step))


def test_counts_add_up(clock: Clock) -> None:
    """Done, failed, running and waiting say where every submitted item is."""
    meter = Meter(clock)
    meter.submitted(10)
    meter.submitted(5)
    meter.received(4, failed=1, busy_seconds=2.0)
    meter.retried(2, busy_seconds=0.5)
    got = shot(meter, total=20)
    assert (got.done, got.failed, got.running, got.waiting, got.retried) == (4, 1, 2, 9, 2)
    assert (got.chunks, got.busy, got.total) == (2, 2.5, 20)


def test_nothing_runs_before_the_job_does(clock: Clock) -> None:
    """While the cluster starts, items wait and none is said to run."""
    meter = Meter(clock)
    meter.submitted(3)
    got = shot(meter, state="starting", reason="starting the local cluster")
    assert (got.running, got.waiting, got.reason) == (0, 3, "starting the local cluster")


def test_rate_and_eta_are_unknown_at_first(clock: Clock) -> None:
    """Of the first outcome, which comes at once, nobody can tell a speed."""
    meter = Meter(clock)
    meter.submitted(100)
    clock.now += 0.01
    meter.received(1)
    assert (shot(meter, total=100).rate, shot(meter, total=100).eta) == (None, None)
    clock.now += 1
    assert shot(meter, total=100).rate is None
    meter.received(9)
    assert shot(meter, total=100).rate == pytest.approx(10 / 1.01)


def test_rate_is_that_of_the_last_seconds(clock: Clock) -> None:
    """When the speed changes, the rate follows within the window, and the ETA with it."""
    meter = Meter(clock)
    run(meter, clock, rate=1000, seconds=20)
    assert shot(meter).rate == pytest.approx(1000, rel=0.02)
    run(meter, clock, rate=100, seconds=12)
    got = shot(meter, total=30_000)
    assert got.rate == pytest.approx(100, rel=0.02)
    assert got.eta == pytest.approx((30_000 - got.done) / 100, rel=0.02)


def test_start_of_the_cluster_does_not_count(clock: Clock) -> None:
    """The time before the first submission makes the rate no smaller."""
    meter = Meter(clock)
    clock.now += 5
    run(meter, clock, rate=100, seconds=2)
    assert shot(meter).rate == pytest.approx(100, rel=0.1)
    assert shot(meter).elapsed == pytest.approx(7)


def test_slow_items_have_a_rate(clock: Clock) -> None:
    """Items that take longer than the window still give a rate and an ETA."""
    meter = Meter(clock)
    meter.submitted(100)
    for _ in range(10):
        clock.now += 30
        meter.received(2)
    got = shot(meter, total=100)
    assert got.rate == pytest.approx(2 / 30, rel=0.3)
    assert got.eta == pytest.approx(80 * 15, rel=0.3)


def test_rate_of_a_job_that_stalls_goes_down(clock: Clock) -> None:
    """Time without outcomes counts, so the ETA of a job that hangs does not stay small."""
    meter = Meter(clock)
    run(meter, clock, rate=100, seconds=20)
    before = shot(meter, total=4000)
    clock.now += 60
    after = shot(meter, total=4000)
    assert (after.rate or 0) < (before.rate or 0) / 5
    assert (after.eta or 0) > (before.eta or 0) * 5 > 0


@pytest.mark.parametrize(
    "changes", [{"total": None}, {"reason": "broker unreachable for 6 s, retrying"}, {"state": "cancelled"}]
)
def test_eta_is_unknown_when_nobody_can_know(clock: Clock, changes: dict[str, Any]) -> None:
    """No ETA without a total, while the job waits for something, or after its end."""
    meter = Meter(clock)
    run(meter, clock, rate=100, seconds=5)
    assert shot(meter, total=1000).eta is not None
    assert shot(meter, **({"total": 1000} | changes)).eta is None


def test_time_stands_still_after_the_end(clock: Clock) -> None:
    """A snapshot taken later than the end shows the job's own time and its mean rate."""
    meter = Meter(clock)
    run(meter, clock, rate=100, seconds=10)
    shot(meter, state="done")
    clock.now += 1000
    got = shot(meter, state="done")
    assert got.finished
    assert got.elapsed == pytest.approx(10)
    assert got.rate == pytest.approx(100)


def test_retry_of_an_ended_job_goes_on_where_it_stopped(clock: Clock) -> None:
    """Reopened items count as open again, and the pause before them as nobody's time."""
    meter = Meter(clock)
    meter.submitted(10, lo=0)
    clock.now += 2
    meter.received(10, failed=4)
    shot(meter, state="failed", total=10)
    clock.now += 500
    meter.reopened([1, 3, 5, 7])
    got = shot(meter, total=10)
    assert (got.done, got.failed, got.retried, got.running, got.waiting) == (6, 0, 4, 2, 2)
    assert got.elapsed == pytest.approx(2)


def test_memory_is_bounded(clock: Clock) -> None:
    """A million small blocks leave some hundred samples."""
    meter = Meter(clock)
    dice = random.Random(1)
    meter.submitted(1)
    for _ in range(100_000):
        clock.now += dice.random() / 500
        meter.received(1)
    assert len(meter._samples) < 250
    assert shot(meter).rate == pytest.approx(1000, rel=0.05)
