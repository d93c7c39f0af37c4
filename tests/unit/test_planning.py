"""Chunk sizes: single decisions, and whole jobs on a simulated cluster."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nbparallel.errors import UsageError
from nbparallel.planning import CHUNK_BYTES, FIRST_ITEMS, GROWTH, WAITING_BYTES, Planner
from nbparallel.simulation import DISTRIBUTIONS, Simulation, greedy, main, simulate


def measured(seconds: float, total: int | None = None, count: int = 1000, reports: int = 20) -> Planner:
    """A planner that has seen items of one duration."""
    planner = Planner("auto", total)
    for _ in range(reports):
        planner.observe(count, count * seconds)
    return planner


@pytest.mark.parametrize("chunks", [0, -1, 1.5, True, "many", None])
def test_bad_chunks_are_refused(chunks: Any) -> None:
    """Anything but "auto" and a positive int is refused, with the value."""
    with pytest.raises(UsageError, match="chunks must be"):
        Planner(chunks, 10)


def test_fixed_chunks_stay_fixed() -> None:
    """chunks=n gives n items a chunk, whatever was measured, and the rest at the end."""
    planner = Planner(7, 100)
    assert planner.next_size(2, 100) == 7
    planner.observe(7, 100.0)
    planner.observe_bytes(7, 10**9)
    assert planner.next_size(2, 93) == 7
    assert planner.next_size(2, 2) == 2


@pytest.mark.parametrize(
    ("total", "slots", "size"),
    [(100_000, 2, 12_500), (200, 2, 25), (8, 2, 1), (3, 64, 1), (10**9, 2, FIRST_ITEMS), (None, 2, 1), (0, 2, 1)],
)
def test_first_chunk(total: int | None, slots: int, size: int) -> None:
    """The first chunk is an eighth of a slot's share, bounded; of an input without length one item."""
    assert Planner("auto", total).next_size(slots, total or None) == size


@pytest.mark.parametrize(("seconds", "size"), [(1e-3, 50), (1e-2, 5), (0.2, 1), (1e-4, 500)])
def test_chunks_aim_at_a_duration(seconds: float, size: int) -> None:
    """A chunk in the middle takes 50 ms, and one item when that is longer."""
    assert measured(seconds).next_size(2, 10**6) == pytest.approx(size, abs=1)


def test_outliers_do_not_matter_and_drift_does() -> None:
    """One slow report changes little; when all become slow, the size follows within some reports."""
    planner = measured(1e-3)
    planner.observe(1, 30.0)
    assert planner.next_size(2, None) == 50
    for _ in range(16):
        planner.observe(1, 0.05)
    assert planner.next_size(2, None) == 1


def test_a_first_call_is_not_believed() -> None:
    """What one quick item took, with what is done once and the clock's share, is forgotten with a longer report."""
    planner = Planner("auto", 100_000)
    planner.observe(1, 2e-5)
    assert planner.item_seconds == 2e-5
    planner.observe(12_500, 12_500 * 1e-7)
    planner.observe(1, 2e-5)
    planner.observe(12_500, 12_500 * 1e-7)
    assert planner.item_seconds == pytest.approx(1e-7)


def test_slots_share_very_short_items_evenly() -> None:
    """None takes all that is left, however little time it may need for it: they would come one after the other."""
    planner = measured(5e-8, 100_000, count=12_500)
    assert planner.next_size(2, 50_000) == 16_667
    assert planner.next_size(2, 1000) == 1000


def test_chunks_shrink_toward_the_end_but_not_to_nothing() -> None:
    """What is left is shared out in ever smaller chunks, down to those that are still worth their cost."""
    planner = measured(1e-3, 10_000)
    left, sizes = 300, []
    while left:
        sizes.append(planner.next_size(4, left))
        left -= sizes[-1]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-2]) == (50, 2)


def test_sizes_grow_step_by_step() -> None:
    """An unsized input's chunks grow by a factor, as what was measured of one item says little of a million."""
    planner = Planner("auto", None)
    sizes = []
    for _ in range(4):
        sizes.append(planner.next_size(2, None))
        assert planner.window(2) <= 4 * sizes[-1]
        planner.observe(sizes[-1], sizes[-1] * 1e-7)
    assert sizes == [1, GROWTH, GROWTH**2, GROWTH**3]


def test_chunks_are_bounded_in_bytes() -> None:
    """Chunks of large items are small, from the first on; the bound rises slowly after one large item."""
    planner = Planner("auto", 10**6)
    planner.observe_bytes(1, CHUNK_BYTES // 10)
    assert planner.next_size(2, 10**6) == 10
    planner.observe_bytes(10, 10 * CHUNK_BYTES)
    assert planner.next_size(2, 10**6) == 1
    planner.observe_bytes(1, 8)
    assert planner.next_size(2, 10**6) <= 2
    for _ in range(40):
        planner.observe_bytes(1, 8)
    assert planner.next_size(2, 10**6) == FIRST_ITEMS


def test_little_is_outstanding() -> None:
    """Before anything is known half the input at most, then about a chunk that runs and two that wait a slot."""
    planner = Planner("auto", 100_000)
    assert planner.window(2) == 50_000
    assert measured(1e-2).window(2) == 2 * 5 + 4 * 5
    assert measured(10.0).window(100) == 100 + 5


def test_more_is_read_when_a_chunk_a_slot_is_left() -> None:
    """Not for each chunk that was received: several then go to the store in one call, where several may wait."""
    assert measured(1e-2).refill(2) == 4 * 5 - 2 * 5
    assert measured(10.0).refill(100) == 1
    assert Planner("auto", 100_000).refill(2) == 1
    assert Planner("auto", None).refill(2) == 1


def test_short_fixed_chunks_bridge_the_way_to_the_client() -> None:
    """Slots that take chunks of one short item find enough of them, and large items are not heaped up."""
    planner = Planner(1, 10**6)
    planner.observe(1, 1e-4)
    assert planner.window(2) == 2 + 1000
    planner.observe_bytes(1, WAITING_BYTES // 10)
    assert planner.window(2) == 2 + 10


def test_store_calls_are_bounded() -> None:
    """With thousands of slots chunks, and the time after which they are handed back, get longer."""
    planner = measured(1e-3)
    assert planner.chunk_seconds(2) == 0.05
    assert planner.budget(2) == 0.1
    for slots in (10, 1000, 10_000, 100_000):
        assert slots / planner.chunk_seconds(slots) <= 4000
        assert slots / planner.budget(slots) <= 4000


def test_chunks_are_longer_far_from_the_store() -> None:
    """Where a call takes long a chunk lasts several calls, as does the work that waits, and the last ones one."""
    planner = measured(1e-2, 10**6)
    planner.observe_round_trip(0.4)
    assert planner.next_size(2, 10**6) == 160
    assert planner.window(2) == 2 * 160 + 2 * 160
    assert planner.next_size(2, 1) == 1
    assert planner.next_size(2, 50) == 25, "two of 25 rather than one of 40 and one of 10"
    fixed = Planner(1, 10**6)
    fixed.observe(1, 0.1)
    fixed.observe_round_trip(0.4)
    assert fixed.window(2) == 2 + 2 * 16


def test_a_store_nearby_changes_nothing() -> None:
    """A call that takes some milliseconds has no say."""
    planner, other = measured(1e-2, 10**6), measured(1e-2, 10**6)
    planner.observe_round_trip(0.004)
    for left in (10**6, 100, 20, 3):
        assert planner.next_size(2, left) == other.next_size(2, left)
        assert planner.window(2) == other.window(2)


def test_items_without_duration_are_taken() -> None:
    """A clock that shows no time passed, or an empty report, is no division by zero."""
    planner = Planner("auto", None)
    planner.observe(0, 0.0)
    assert planner.item_seconds is None
    planner.observe(1, 0.0)
    assert planner.next_size(2, None) == GROWTH
    assert planner.window(2) > 0


def test_greedy_schedule() -> None:
    """The yardstick gives each item to the slot that is free first."""
    assert greedy([3, 1, 1, 1, 2], 2) == 5
    assert greedy([1.0], 10_000) == 1.0
    assert greedy([], 2) == 0.0


def skewed(order: str, seed: int, mu: float) -> list[float]:
    """200 lognormal durations."""
    rng = random.Random(seed)
    durations = [rng.lognormvariate(mu, 1.0) for _ in range(200)]
    return durations if order == "shuffled" else sorted(durations, reverse=order == "down")


@pytest.mark.parametrize("order", ["up", "down", "shuffled"])
@pytest.mark.parametrize("mu", [-4.0, -3.5, -3.0])
@pytest.mark.parametrize("sized", [True, False])
def test_skew_ends_as_one_by_one(order: str, mu: float, sized: bool) -> None:
    """Skewed items, in any order, end within 3 % of one-by-one scheduling, with fewer chunks claimed."""
    runs = [simulate(skewed(order, seed, mu), 2, sized=sized) for seed in range(10)]
    assert max(run.ratio for run in runs) <= 1.03
    assert sum(run.claims for run in runs) < (0.9 if sized else 1.0) * 10 * 200


def test_handing_back_matters() -> None:
    """Without it the skewed inputs take longer, so that the simulator can tell."""
    assert simulate(skewed("down", 1, -3.0), 2, parts=0).ratio > 1.05


def test_a_tail_handed_back_whole_is_worse_than_halves() -> None:
    """One large chunk that goes from slot to slot leaves the others idle; halves spread."""
    durations = [0.1] * 20_000
    assert simulate(durations, 2, parts=1).ratio > 1.04
    assert simulate(durations, 2, parts=2).ratio < 1.01


@pytest.mark.parametrize(("name", "number"), [("0.1 ms", 20_000), ("1 ms", 4000), ("10 ms", 1000), ("100 ms", 200)])
@pytest.mark.parametrize("slots", [1, 2, 16])
def test_efficiency(name: str, number: int, slots: int) -> None:
    """At most two percent of the slots' time are lost, from 0.1 to 100 ms an item."""
    number *= slots
    assert simulate(DISTRIBUTIONS[name](random.Random(1), number), slots).efficiency >= 0.98


def test_tiny_items_take_few_chunks() -> None:
    """100,000 additions take a dozen chunks at most, sized or not twice that, and the first outcome comes at once."""
    run = simulate([1e-7] * 100_000, 2)
    assert run.chunks <= 12
    assert run.first < 0.002
    assert simulate([1e-7] * 100_000, 2, sized=False).chunks <= 24


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
@pytest.mark.parametrize("slots", [1, 2, 16, 256])
@pytest.mark.parametrize("chunks", ["auto", 1, 30])
def test_every_job_ends(name: str, slots: int, chunks: Any) -> None:
    """Whatever the durations, slots and chunks, all items are received, and one by one is never beaten by much."""
    run = simulate(DISTRIBUTIONS[name](random.Random(2), 1500), slots, chunks)
    assert run.makespan >= max(run.work / slots, run.first) > 0
    if chunks != "auto":
        assert run.chunks == -(-1500 // chunks)


def test_ten_thousand_slots() -> None:
    """At 10,000 slots each item is done, and the chunks stay as few as the store can take."""
    run = simulate(DISTRIBUTIONS["lognormal"](random.Random(1), 100_000), 10_000)
    assert run.claims / run.makespan <= 20_000


def test_the_table_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a row for each distribution and size."""
    monkeypatch.setattr("nbparallel.simulation._SIZES", ((2, 10), (4, 5)))
    main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 + 2 * len(DISTRIBUTIONS)
    assert all(len(line) <= 120 for line in lines)


def test_simulated_numbers_add_up() -> None:
    """Ratio and efficiency are what they say."""
    run = Simulation(makespan=2.0, first=0.1, chunks=3, claims=4, waiting=1, work=3.0, greedy=1.6, slots=2)
    assert (run.ratio, run.efficiency) == (1.25, 0.75)
