"""Points of parameters, and sweeps over them in this process."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pandas
import pytest
import scipy.stats

from nbparallel import UsageError, grid, sample, sweep, zipped


def test_a_grid_is_the_product() -> None:
    """All combinations, the last parameter varying fastest; slices and negative indexes work as with lists."""
    points = grid(a=[1, 2], b="xy", c=range(2))
    assert len(points) == 8
    assert list(points)[:3] == [{"a": 1, "b": "x", "c": 0}, {"a": 1, "b": "x", "c": 1}, {"a": 1, "b": "y", "c": 0}]
    assert points[-1] == points[7] == {"a": 2, "b": "y", "c": 1}
    assert points[2:4] == [points[2], points[3]]
    assert points.names == ("a", "b", "c")
    with pytest.raises(IndexError):
        points[8]


def test_a_large_grid_takes_no_memory() -> None:
    """A grid of a million millions is made at once, and any of its points."""
    points = grid(a=range(10**6), b=range(10**6))
    assert (len(points), points[10**6 + 3]) == (10**12, {"a": 1, "b": 3})


def test_an_iterator_is_read_once() -> None:
    """Values may come from a generator."""
    assert len(list(grid(a=(i for i in range(3)), b=[1]))) == 3


def test_an_axis_without_values_gives_no_points() -> None:
    """An empty list is a product of nothing."""
    assert list(grid(a=[], b=[1])) == []


def test_zipped_pairs_values() -> None:
    """Values are taken side by side, and must be equally many."""
    assert list(zipped(a=[1, 2], b=[3, 4])) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    with pytest.raises(UsageError, match=r"'a': 2, 'b': 1"):
        zipped(a=[1, 2], b=[3])


@pytest.mark.parametrize("call", [lambda: grid(a=3), lambda: zipped(a=3), grid, zipped])
def test_wrong_axes_are_told(call: Any) -> None:
    """A single value, or none at all, is told with what to write."""
    with pytest.raises(UsageError, match=r"such as"):
        call()


@pytest.mark.parametrize("method", ["lhs", "sobol", "random"])
def test_a_sample_is_reproducible(method: str) -> None:
    """The same seed gives the same points, another one others; a new seed is told."""

    def draw(seed: int | None) -> Any:
        return sample(8, a=(0, 1), b=scipy.stats.norm(5, 2), c=["x", "y"], method=method, seed=seed)

    assert list(draw(1)) == list(draw(1)) != list(draw(2))
    points = draw(None)
    assert points.seed is not None
    assert list(draw(points.seed)) == list(points)
    assert all(0 <= point["a"] <= 1 and type(point["a"]) is float for point in points)


def test_a_latin_hypercube_fills_every_stratum() -> None:
    """Of n points each n-th part of a range holds one, of k values each comes n/k times."""
    points = sample(20, a=scipy.stats.uniform(10, 20), b=(0, 1), c=range(4), seed=3)
    assert sorted(int(point["a"] - 10) for point in points) == list(range(20))
    assert Counter(point["c"] for point in points) == dict.fromkeys(range(4), 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, {"a": (0, 1)}), "at least 1"),
        ((2, {}), "needs parameters"),
        ((2, {"a": 3}), "'a'"),
        ((2, {"a": []}), "'a'"),
    ],
)
def test_a_wrong_sample_is_told(arguments: tuple[int, dict[str, Any]], message: str) -> None:
    """What cannot be drawn from is named."""
    with pytest.raises(UsageError, match=message):
        sample(arguments[0], **arguments[1])


def test_a_missing_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scipy a Latin hypercube is refused, with what to install."""
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(UsageError, match=r"nbparallel\[scipy\]"):
        sample(3, a=(0, 1))


def test_a_sweep_passes_parameters_by_name() -> None:
    """Points, fixed parameters and pmap's options all get where they belong."""

    def combine(a: int, b: int, *, scale: int = 1) -> int:
        if b == 4:
            raise ValueError(b)
        return scale * (10 * a + b)

    job = sweep(combine, grid(a=[1, 2], b=[3, 4]), scale=2, on_error="skip", session="serial")
    assert list(job) == [26, 46]
    assert job.name == "combine"


@pytest.mark.parametrize(
    "points",
    [
        [{"a": 1, "b": 2}, {"a": 3}],
        pandas.DataFrame({"a": [1, 3], "b": [2, 0]}),
        (point for point in [{"a": 1, "b": 2}, {"a": 3}]),
    ],
)
def test_points_may_come_in_other_forms(points: Any) -> None:
    """A list of dicts (which may leave defaults alone), a frame or a generator of dicts will do."""
    assert list(sweep(lambda a, b=0: (a, b), points, session="serial")) == [(1, 2), (3, 0)]


@pytest.mark.parametrize(
    ("points", "fixed", "message"),
    [
        (grid(a=[1]), {"retires": 3}, "no parameter 'retires'"),
        (grid(a=[1], c=[1]), {}, "no parameter 'c'"),
        (grid(a=[1]), {"a": 3}, "fixed as well"),
        ({"a": [1, 2]}, {}, "use grid"),
        ([1, 2], {}, "must be a dict"),
    ],
)
def test_a_wrong_sweep_is_told(points: Any, fixed: dict[str, Any], message: str) -> None:
    """Misspelt parameters and points of the wrong kind are found before anything runs."""
    with pytest.raises(UsageError, match=message):
        sweep(lambda a, b=1: a, points, **fixed, session="serial")
