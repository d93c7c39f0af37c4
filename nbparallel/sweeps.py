"""``sweep``: is given a function and points of parameters; hands a job over them to the api."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from .api import Options, pmap
from .client.job import Job
from .errors import UsageError
from .points import ByName, Points, grid, sample, zipped

__all__ = ["grid", "sample", "sweep", "zipped"]

R = TypeVar("R")


def sweep(fn: Callable[..., R], points: Iterable[Mapping[str, Any]], /, **fixed: Any) -> Job[R]:
    """Call a function at every point, with the point's parameters as keyword arguments; returns at once.

    Args:
        fn: the function; a parameter ``rng`` receives a random generator of the item's own.
        points: what ``grid``, ``zipped`` or ``sample`` gave, a list of dicts, or a DataFrame with a column for each
            parameter.
        **fixed: parameters that are the same at every point. Names of ``pmap``'s options (``retries``, ``seed``, ...)
            are options; fix a parameter that has such a name with ``functools.partial``.

    Returns:
        A ``Job``; its ``to_frame()`` has a column for each parameter and each field of the results, ``plot()`` draws
        them.

    Raises:
        UsageError: the function has no such parameter, or a point is no dict; nothing was sent.

    >>> from nbparallel import grid, sweep
    >>> list(sweep(lambda a, b, c: a * b + c, grid(a=[1, 2], b=[3, 4]), c=1, session="serial"))
    [4, 5, 7, 9]
    """
    if not callable(fn):
        raise UsageError(f"the first argument must be a function, not {fn!r:.60}; the points come second")
    options = {name: fixed.pop(name) for name in [*fixed] if name in Options.__annotations__}
    if not isinstance(points, Points):
        if hasattr(points, "to_dict") and hasattr(points, "columns"):
            points = points.to_dict("records")
        if isinstance(points, (list, tuple)):
            points = Points.of(points)
        elif isinstance(points, Mapping):
            raise UsageError(
                "the points must be a list of dicts; for all combinations of values use grid(**parameters)"
            )
    names = points.names if isinstance(points, Points) else ()
    _check_parameters(fn, names, fixed)
    if options.get("name") is None:
        options["name"] = getattr(getattr(fn, "func", fn), "__name__", None) or type(fn).__name__
    job: Job[R] = pmap(ByName(fn, fixed, names), points, **options)
    return job


def _check_parameters(fn: Callable[..., Any], names: tuple[str, ...], fixed: Mapping[str, Any]) -> None:
    if both := sorted(set(names) & set(fixed)):
        raise UsageError(f"{both[0]!r} is a parameter of the points and fixed as well")
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a builtin
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    for name in (*names, *fixed):
        if name not in known:
            raise UsageError(
                f"the function has no parameter {name!r} (and pmap no such option); it has {', '.join(known) or 'none'}"
            )
