"""Random streams with real workers: never shared, and the same for a seed whatever happens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest

from nbparallel import Cluster, UsageError, pmap, pstarmap


def draw(x: int) -> tuple[float, float]:
    """Draw from both global streams."""
    return random.random(), float(numpy.random.random())


def draw_from(x: int, rng: numpy.random.Generator) -> float:
    """Draw from the item's own stream."""
    return float(rng.random())


def load() -> None:
    """What every process does at its start: the classical mistake, one state for all."""
    random.seed(0)
    numpy.random.seed(0)


def test_forked_workers_never_share_a_state() -> None:
    """Without a seed all draws of all items differ, even where every process started from the same state."""
    with Cluster(workers=2, init=load) as cluster:
        values = [
            value for _ in range(3) for pair in pmap(draw, range(200), chunks=5, session=cluster) for value in pair
        ]
    assert len(set(values)) == 1200


def test_a_seeded_job_leaves_no_state_behind(cluster: Cluster) -> None:
    """A job without a seed does not go on from what a seeded one, or the user's function, left in the process."""

    def seed_and_draw(x: int) -> float:
        random.seed(1)
        return random.random()

    values = []
    for _ in range(2):
        pmap(draw, range(4), seed=1, session=cluster).result()
        values += [value for pair in pmap(draw, range(4), session=cluster) for value in pair]
        pmap(seed_and_draw, range(4), session=cluster).result()
        values += [value for pair in pmap(draw, range(4), session=cluster) for value in pair]
    assert len(set(values)) == 32


@pytest.mark.parametrize("function", [draw, draw_from])
def test_a_seed_decides(cluster: Cluster, function: Any) -> None:
    """The same values whatever the chunks, the order, the number of workers, or without any worker."""
    expected = pmap(function, range(300), seed=42, session="serial").result()
    assert len(set(expected)) == 300
    for options in ({}, {"chunks": 7}, {"max_running": 1}):
        assert pmap(function, range(300), seed=42, session=cluster, **options).result() == expected
    job = pmap(function, range(300), seed=42, ordered=False, chunks=3, session=cluster)
    job.wait()
    assert list(job.results_so_far().values()) == expected
    assert pmap(function, range(300), seed=43, session=cluster).result() != expected
    assert pmap(function, iter(range(300)), seed=42, session=cluster, keep=True).result() == expected


def test_a_retry_draws_the_same_again(cluster: Cluster, tmp_path: Path) -> None:
    """An item that failed the first time gives what it would have given."""

    def stumble(x: int, rng: numpy.random.Generator) -> float:
        value = float(rng.random())
        mark = tmp_path / str(x)
        if not mark.exists():
            mark.touch()
            raise ConnectionError("the first time")
        return value

    job = pmap(stumble, range(20), seed=42, retries=2, session=cluster)
    assert job.result() == pmap(draw_from, range(20), seed=42, session="serial").result()


def test_a_failed_item_does_not_shift_the_others(cluster: Cluster) -> None:
    """Streams belong to indexes: what happens to one item changes no other."""

    def odd(x: int, rng: numpy.random.Generator) -> float:
        if x % 3 == 0:
            raise ValueError(x)
        return float(rng.random())

    expected = pmap(draw_from, range(30), seed=1, session="serial").result()
    job = pmap(odd, range(30), seed=1, on_error="skip", session=cluster)
    job.wait()
    assert job.results_so_far() == {x: value for x, value in enumerate(expected) if x % 3}


def test_items_that_travel_alone_are_seeded_too(cluster: Cluster) -> None:
    """Items next to one that cannot be pickled are sent one by one; their streams are the same."""
    items: list[Any] = [1, (x for x in [1]), 3]
    job = pmap(draw_from, items, seed=5, on_error="skip", chunks=3, session=cluster)
    job.wait()
    expected = pmap(draw_from, [0, 0, 0], seed=5, session="serial").result()
    assert job.results_so_far() == {0: expected[0], 2: expected[2]}
    stars: list[Any] = [(1,), ((x for x in [1]),), (3,)]
    job = pstarmap(draw_from, stars, seed=5, on_error="skip", chunks=3, session=cluster)
    job.wait()
    assert job.results_so_far() == {0: expected[0], 2: expected[2]}


def test_tuples_of_arguments_are_seeded(cluster: Cluster) -> None:
    """pstarmap takes a seed as pmap does."""
    expected = pmap(draw_from, range(9), seed=3, session="serial").result()
    assert pstarmap(draw_from, [(x,) for x in range(9)], seed=3, session=cluster).result() == expected


def test_the_seed_is_on_the_job(cluster: Cluster) -> None:
    """A function that needs a generator gets a seed even when none was given; with it the run can be repeated."""
    job = pmap(draw_from, range(5), session=cluster)
    values = job.result()
    assert job.seed is not None
    assert pmap(draw_from, range(5), seed=job.seed, session=cluster).result() == values
    assert pmap(draw_from, range(5), session=cluster).result() != values
    assert pmap(draw, range(5), session=cluster).seed is None


def test_a_generator_of_the_user_is_left_alone(cluster: Cluster) -> None:
    """Where the items bring the parameter rng themselves, it is theirs."""
    assert pmap(lambda x, rng: (x, rng), [1], ["mine"], seed=1, session=cluster).result() == [(1, "mine")]


def test_a_generator_that_would_be_copied_brings_a_warning(cluster: Cluster) -> None:
    """A generator of the notebook, which each process would get in the same state, is named before it does harm."""
    mine = numpy.random.default_rng()
    with pytest.warns(RuntimeWarning, match=r"'mine' is a random generator"):
        pmap(lambda x: mine.random(), range(4), session=cluster).result()


def test_a_wrong_seed_is_told(cluster: Cluster) -> None:
    """A seed that is no whole number is refused before anything is sent."""
    with pytest.raises(UsageError, match="seed must be"):
        pmap(draw, [1], seed="x", session=cluster)  # type: ignore[call-overload]


def test_serial_runs_keep_the_callers_state() -> None:
    """A seeded run in this process does not seed the notebook."""
    random.seed(9)
    expected = random.random()
    random.seed(9)
    pmap(draw, range(3), seed=1, session="serial").result()
    assert random.random() == expected
