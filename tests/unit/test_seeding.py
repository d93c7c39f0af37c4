"""Random streams of items, without processes."""

from __future__ import annotations

import functools
import random
import sys

import numpy
import pytest

from nbparallel import UsageError
from nbparallel.points import ByName
from nbparallel.seeding import Seeded, check_seed, draws, fresh_seed, preserved, reseed, shared_generators


def test_a_generator_depends_on_seed_and_index_alone() -> None:
    """The stream of an item is that of SeedSequence spawned by its index, whoever asked before."""

    def draw(x: int, rng: numpy.random.Generator) -> float:
        return rng.random()

    seeded = Seeded(draw, 42, True)
    values = [seeded(index, None) for index in (5, 0, 5, 3)]
    expected = numpy.random.default_rng(numpy.random.SeedSequence(42).spawn(6)[5]).random()
    assert values[0] == values[2] == expected
    assert len(set(values)) == 3
    assert Seeded(draw, 43, True)(5, None) != values[0]


def test_global_states_are_seeded_otherwise() -> None:
    """Without a parameter rng, random and numpy.random give the same for the same item, and not the same as another."""

    def draw(x: int) -> tuple[float, float]:
        return random.random(), numpy.random.random()

    seeded = Seeded(draw, 42, False)
    with preserved():
        first, other, again = seeded(1, None), seeded(2, None), seeded.star(1, (None,))
    assert first == again
    assert len({*first, *other}) == 4


def test_preserved_puts_the_state_back() -> None:
    """What ran inside has not moved the caller's own streams."""
    random.seed(1)
    numpy.random.seed(1)
    expected = random.random(), numpy.random.random()
    random.seed(1)
    numpy.random.seed(1)
    with preserved():
        random.seed(7)
        numpy.random.seed(7)
        random.random()
    assert (random.random(), numpy.random.random()) == expected


def test_reseed_forgets_the_state() -> None:
    """After reseed a process does not go on from the state that it had."""
    values = set()
    for _ in range(2):
        random.seed(1)
        numpy.random.seed(1)
        reseed()
        values |= {random.random(), numpy.random.random()}
    assert len(values) == 4


def needs(x: int, rng: object) -> None:
    """Cannot be called without a generator."""


def takes(x: int, rng: object = None) -> None:
    """Takes a generator."""


def by_name(x: int, *, rng: object) -> None:
    """Needs one by name."""


def second(rng: object, x: int) -> None:
    """Gets its items as ``rng``."""


def many(*rng: object) -> None:
    """Only seems to."""


@pytest.mark.parametrize(
    ("function", "given", "expected"),
    [
        (lambda x: x, 1, "no"),
        (needs, 1, "must"),
        (needs, 2, "no"),
        (needs, None, "may"),
        (takes, 1, "may"),
        (by_name, 1, "must"),
        (by_name, None, "must"),
        (second, 1, "no"),
        (many, 1, "no"),
        (functools.partial(needs, 1), 0, "must"),
        (abs, 1, "no"),
        (ByName(needs, {}, ["x"]), 1, "must"),
        (ByName(needs, {"rng": 1}, ["x"]), 1, "no"),
        (ByName(needs, {}, ["x", "rng"]), 1, "no"),
    ],
)
def test_whether_a_function_draws(function: object, given: int | None, expected: str) -> None:
    """A parameter rng is ours to fill unless the items bring it."""
    assert draws(function, given) == expected  # type: ignore[arg-type]


GENERATOR = numpy.random.default_rng()
PLAIN = random.Random()


def test_generators_around_a_function_are_found() -> None:
    """Generators that a function takes from globals or closures are named; modules are not."""
    near = numpy.random.RandomState()
    assert shared_generators(lambda x: GENERATOR.random() + PLAIN.random()) == ["GENERATOR", "PLAIN"]
    assert shared_generators(lambda x: near.random()) == ["near"]
    assert shared_generators(functools.partial(lambda x, y: near.random(), 1)) == ["near"]
    assert shared_generators(ByName(lambda x: near.random(), {})) == ["near"]
    assert shared_generators(lambda x: random.random() + numpy.random.random()) == []
    assert shared_generators(abs) == []


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_a_wrong_seed_is_told(seed: object) -> None:
    """A seed is a whole number that is not negative."""
    with pytest.raises(UsageError, match="seed must be"):
        check_seed(seed)


def test_a_seed_may_be_any_integer() -> None:
    """Integers of numpy are taken, and large ones."""
    assert check_seed(numpy.int32(7)) == 7
    assert check_seed(2**200) == 2**200
    assert fresh_seed() != fresh_seed()


def test_a_missing_numpy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without numpy a seed is refused, with what to install."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(UsageError, match=r"nbparallel\[numpy\]"):
        check_seed(1)
