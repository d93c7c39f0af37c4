"""Random streams of items: the api says which seed a job has, the worker's calls draw from a stream of their own.

The stream of an item depends on the seed and the item's index alone. Without a seed, no two processes and no two jobs
may go on from the same state, which forked processes would.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import random
import secrets
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, Literal, TypeAlias

from .errors import UsageError

__all__ = ["Seeded", "check_seed", "draws", "fresh_seed", "need_numpy", "preserved", "reseed", "shared_generators"]

Draws: TypeAlias = Literal["no", "may", "must"]
#: The parameter that receives an item's generator.
PARAMETER = "rng"


def need_numpy(what: str) -> Any:
    """The module numpy; raises UsageError that names the extra when it is missing."""
    try:
        import numpy
    except ImportError as error:
        raise UsageError(f"{what} needs numpy: pip install 'nbparallel[numpy]'") from error
    return numpy


def fresh_seed() -> int:
    """A seed that nobody had before; short enough to be copied by hand."""
    return secrets.randbits(63)


def check_seed(seed: Any) -> int:
    """The seed as a plain number; raises UsageError when it is none, or numpy is missing."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise UsageError(f"seed must be a whole number, 0 or more, or None, not {seed!r}")
    need_numpy("seed=")
    return number


def draws(function: Callable[..., Any], given: int | None) -> Draws:
    """Whether a function has a parameter ``rng`` that is ours to fill, and does not work without it.

    Args:
        given: how many arguments each item brings by position; None: unknown.
    """
    taken = getattr(function, "taken", None)
    if taken is not None:  # points.ByName: what counts is the function in it
        return "no" if PARAMETER in taken else draws(function.func, 0)  # type: ignore[attr-defined]
    if type(function) is FunctionType and not function.__dict__ and PARAMETER not in function.__code__.co_varnames:
        return "no"  # as of nearly every function, without the cost of a signature
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin
        return "no"
    for place, parameter in enumerate(parameters):
        if parameter.name != PARAMETER or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY:
            return "must" if parameter.default is parameter.empty else "may"
        if parameter.kind is parameter.POSITIONAL_ONLY or (given is not None and place < given):
            return "no"
        return "must" if parameter.default is parameter.empty and given is not None else "may"
    return "no"


def shared_generators(function: Callable[..., Any]) -> list[str]:
    """Names of random generators that a function takes from around it: every process gets its own copy in one state."""
    function = getattr(function, "func", function)  # functools.partial, points.ByName
    code, space = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:
        return []
    found = [(name, space[name]) for name in code.co_names if name in space]
    for name, cell in zip(code.co_freevars, getattr(function, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):  # a cell that is still empty
            found.append((name, cell.cell_contents))
    return sorted({name for name, value in found if _is_generator(value)})


def _is_generator(value: Any) -> bool:
    kind = type(value)
    return isinstance(value, random.Random) or (
        kind.__module__.startswith("numpy.random") and kind.__name__ in ("Generator", "RandomState")
    )


class Seeded:
    """A function of which every call draws from the stream of its item; called with the item's index first.

    Args:
        function: the user's.
        seed: of the job.
        rng: whether the function takes the generator; else the state of ``random`` and ``numpy.random`` is set.
    """

    def __init__(self, function: Callable[..., Any], seed: int, rng: bool) -> None:
        self._numpy = need_numpy("seed=").random
        self._function, self._seed, self._rng = function, seed, rng

    def __call__(self, index: int, *arguments: Any) -> Any:
        numpy = self._numpy
        stream = numpy.SeedSequence(self._seed, spawn_key=(index,))
        if self._rng:
            return self._function(*arguments, rng=numpy.default_rng(stream))
        words = stream.generate_state(8)
        numpy.seed(words)
        random.seed(words.tobytes())
        return self._function(*arguments)

    def star(self, index: int, arguments: Any) -> Any:
        """The same for an item that is a tuple of arguments."""
        return self(index, *arguments)


def reseed() -> None:
    """Give this process a random state of its own."""
    random.seed()
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """What runs inside leaves the random state of this process as it was."""
    numpy = sys.modules.get("numpy.random")
    before = random.getstate(), numpy.get_state() if numpy is not None else None
    try:
        yield
    finally:
        random.setstate(before[0])
        if numpy is not None:
            numpy.set_state(before[1])
