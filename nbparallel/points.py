"""The points of a parameter sweep: made by the user with ``grid``, ``zipped`` or ``sample``, read like a list."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

from .errors import UsageError
from .seeding import fresh_seed, need_numpy

__all__ = ["ByName", "Points", "grid", "sample", "zipped"]


class Points(Sequence[dict[str, Any]]):
    """Points of parameters, each a dict; made as they are read, so that a grid of millions takes no memory.

    Attributes:
        names: the parameters, in order.
        seed: what the points were drawn with, if they were.
    """

    def __init__(
        self, names: Sequence[str], length: int, point: Callable[[int], Sequence[Any]], seed: int | None = None
    ) -> None:
        self.names, self.seed = tuple(names), seed
        self._length, self._point = length, point

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Points:
        """Points that are given one by one; a name that a row lacks is None there."""
        names: dict[str, None] = {}
        for row in rows:
            if not isinstance(row, Mapping):
                raise UsageError(f"a point must be a dict of parameters, such as {{'a': 1}}, not {row!r:.60}")
            names.update(dict.fromkeys(row))
        points = _Rows(tuple(names), len(rows), lambda index: tuple(map(rows[index].get, names)))
        points.rows = rows
        return points

    def values(self, index: int) -> Sequence[Any]:
        """The parameters of one point, in the order of ``names``."""
        return self._point(index)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._dict(at) for at in range(*index.indices(self._length))]
        at = index + self._length if index < 0 else index
        if not 0 <= at < self._length:
            raise IndexError(f"point {index} of {self._length}")
        return self._dict(at)

    def _dict(self, index: int) -> dict[str, Any]:
        return dict(zip(self.names, self._point(index), strict=True))

    def __repr__(self) -> str:
        seed = "" if self.seed is None else f", seed={self.seed}"
        return f"<{self._length:,} points of {', '.join(self.names)}{seed}>"


class _Rows(Points):
    rows: Sequence[Mapping[str, Any]]

    def _dict(self, index: int) -> dict[str, Any]:
        return dict(self.rows[index])  # without the names that only other rows have


class ByName:
    """A function of parameters as a function of one point; what ``sweep`` sends to the workers.

    Args:
        function: the user's.
        fixed: parameters that are the same at every point.
        names: the parameters of the points.
    """

    def __init__(self, function: Callable[..., Any], fixed: Mapping[str, Any], names: Iterable[str] = ()) -> None:
        self.func, self.fixed = function, dict(fixed)
        #: Parameters that are given by the user.
        self.taken = {*fixed, *names}

    def __call__(self, point: Mapping[str, Any], **more: Any) -> Any:
        return self.func(**self.fixed, **point, **more)


def grid(**parameters: Iterable[Any]) -> Points:
    """Every combination of the given values; the last parameter varies fastest.

    >>> from nbparallel import grid
    >>> list(grid(a=[1, 2], b="xy"))
    [{'a': 1, 'b': 'x'}, {'a': 1, 'b': 'y'}, {'a': 2, 'b': 'x'}, {'a': 2, 'b': 'y'}]
    """
    axes = _axes("grid", parameters)
    sizes = [len(axis) for axis in axes]

    def point(index: int) -> Sequence[Any]:
        values = []
        for axis, size in zip(reversed(axes), reversed(sizes), strict=True):
            index, at = divmod(index, size)
            values.append(axis[at])
        return values[::-1]

    return Points(tuple(parameters), math.prod(sizes), point)


def zipped(**parameters: Iterable[Any]) -> Points:
    """The first values of all parameters, then the second ones, and so on; all must be equally many.

    >>> from nbparallel import zipped
    >>> list(zipped(a=[1, 2], b="xy"))
    [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'y'}]
    """
    axes = _axes("zipped", parameters)
    sizes = {name: len(axis) for name, axis in zip(parameters, axes, strict=True)}
    if len(set(sizes.values())) > 1:
        raise UsageError(f"zipped() needs the same number of values for each parameter, not {sizes}")
    return Points(tuple(parameters), len(axes[0]), lambda index: [axis[index] for axis in axes])


def _axes(maker: str, parameters: Mapping[str, Iterable[Any]]) -> list[Sequence[Any]]:
    if not parameters:
        raise UsageError(f"{maker}() needs parameters with their values, such as {maker}(a=[1, 2])")
    axes: list[Sequence[Any]] = []
    for name, values in parameters.items():
        try:
            # A range of any length stays what it is.
            axes.append(values if isinstance(values, range) else tuple(values))
        except TypeError:
            raise UsageError(f"{maker}() needs a list of values for {name!r}, such as [{values!r:.40}]") from None
    return axes


def sample(n: int, /, *, method: str = "lhs", seed: int | None = None, **parameters: Any) -> Points:
    """Points drawn at random, spread evenly over the space of the parameters.

    Args:
        n: how many.
        method: ``"lhs"`` (Latin hypercube), ``"sobol"`` (best with a power of 2) or ``"random"``.
        seed: the same seed gives the same points; by default a new one, which is ``points.seed``.
        **parameters: for each a pair (low, high) to draw evenly from, a list of equally likely values, or a
            distribution of ``scipy.stats``, such as ``uniform(0, 1)`` or ``norm(5, 2)``.

    Raises:
        UsageError: an argument is wrong, or scipy is missing.

    >>> from nbparallel import sample
    >>> points = sample(4, a=(0, 1), b=["x", "y"], seed=7)
    >>> len(points), sorted(point["b"] for point in points)
    (4, ['x', 'x', 'y', 'y'])
    """
    if type(n) is not int or n < 1:
        raise UsageError(f"sample() needs the number of points, at least 1, not {n!r}")
    if method not in ("lhs", "sobol", "random"):
        raise UsageError(f'method must be "lhs", "sobol" or "random", not {method!r}')
    if not parameters:
        raise UsageError("sample() needs parameters with what to draw them from, such as sample(10, a=(0, 1))")
    quantiles = [_quantile(name, source) for name, source in parameters.items()]
    numpy = need_numpy("sample()")
    seed = fresh_seed() if seed is None else seed
    unit = _draw(n, len(quantiles), method, numpy.random.default_rng(seed))
    columns = [quantile(unit[:, place]) for place, quantile in enumerate(quantiles)]
    return Points(tuple(parameters), n, lambda index: [column[index] for column in columns], seed)


def _draw(n: int, width: int, method: str, generator: Any) -> Any:
    if method == "random":
        return generator.random((n, width))
    try:
        from scipy.stats import qmc
    except ImportError as error:
        raise UsageError(f"sample(method={method!r}) needs scipy: pip install 'nbparallel[scipy]'") from error
    kind = qmc.LatinHypercube if method == "lhs" else qmc.Sobol
    word = "rng" if "rng" in inspect.signature(kind).parameters else "seed"  # renamed in scipy 1.15
    return kind(width, **{word: generator}).random(n)


def _quantile(name: str, source: Any) -> Callable[[Any], list[Any]]:
    """What makes numbers from 0 to 1 values of a parameter."""
    if hasattr(source, "ppf"):
        return lambda unit: list(source.ppf(unit).tolist())
    if isinstance(source, tuple) and len(source) == 2 and all(isinstance(end, (int, float)) for end in source):
        low, high = source
        return lambda unit: list((low + (high - low) * unit).tolist())
    if isinstance(source, (list, range)) and len(source):
        return lambda unit: [source[min(int(u * len(source)), len(source) - 1)] for u in unit]
    raise UsageError(
        f"sample() draws {name!r} from a pair (low, high), a list of values, or a distribution of scipy.stats, "
        f"not from {source!r:.60}"
    )
