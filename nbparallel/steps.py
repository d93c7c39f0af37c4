"""The functions of a fork-join, given by ``forkjoin.py``: what they take, and what setup makes for process."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .calls import Bound
from .errors import UsageError

__all__ = ["Items", "Step", "first_of", "is_same_again", "listed", "parameters_of"]


@dataclass(frozen=True)
class Step:
    """One of the three functions; ``parameters`` by name: whether it must be given."""

    function: Callable[..., Any]
    parameters: dict[str, bool]
    reduce: bool = False

    @property
    def shown(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function)).rpartition("<locals>.")[2]

    def choose(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What of the values it takes."""
        return {name: values[name] for name in self.parameters if name in values}

    def missing(self, known: Iterable[str]) -> list[str]:
        """What it needs and would not get."""
        known = set(known)
        return [name for name, required in self.parameters.items() if required and name not in known]


class Items:
    """Checks the dicts that setup makes against the parameters of process, and binds the rest of the input.

    Attributes:
        function: process with the user input that no item brings.
    """

    def __init__(self, owner: str, process: Step, values: Mapping[str, Any], first: list[Any]) -> None:
        made: set[str] = set(first[0]) if first and isinstance(first[0], Mapping) else set()
        self._owner, self._process = owner, process
        given = process.choose(values)
        bound = {name: value for name, value in given.items() if name not in made}
        #: Input that the first item replaces: later ones without it carry it along.
        self._replaced = {name: value for name, value in given.items() if name in made}
        self._known = set(given)
        self._seen: set[frozenset[Any]] = set()
        self.function = Bound(process.function, bound)

    def check(self, items: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """The items; raises UsageError at the first that cannot be an argument list of process."""
        for index, item in enumerate(items):
            if not isinstance(item, Mapping):
                raise UsageError(f"{self._owner}.setup: item {index} must be a dict, not {item!r:.60}")
            names = frozenset(item)
            if names not in self._seen:
                self._check_names(index, names)
                self._seen.add(names)
            yield {**self._replaced, **item}

    def _check_names(self, index: int, names: frozenset[Any]) -> None:
        process = self._process
        where = f"{self._owner}.process: {process.shown}"
        if unknown := [name for name in names if name not in process.parameters]:
            takes = listed(process.parameters)
            raise UsageError(f"{where} does not take {unknown[0]!r}, which item {index} of setup has; it takes {takes}")
        if missing := process.missing(self._known | names):
            raise UsageError(
                f"{where} takes {missing[0]!r}, which nobody provides: neither item {index} of setup "
                f"({listed(names)}) nor the input"
            )


def first_of(items: Iterator[Any]) -> Iterator[Any]:
    """The first, if there is one."""
    for item in items:
        yield item
        return


def listed(names: Iterable[str]) -> str:
    """Names in a message."""
    return ", ".join(sorted(names)) or "nothing"


def parameters_of(where: str, function: Any, first: bool) -> dict[str, bool]:
    """The parameters of a step's function; without the first, for join."""
    if not callable(function):
        raise UsageError(f"{where} must decorate a function, not {function!r:.60}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise UsageError(f"{where}: the parameters of {function!r:.60} are not known; wrap it in a function") from None
    if first:
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            raise UsageError(f"{where}: its first parameter receives the list of results, and there is none")
        parameters = parameters[1:]
    for parameter in parameters:
        if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise UsageError(f"{where}: arguments are given by name, so {str(parameter)!r} cannot be; spell them out")
    return {parameter.name: parameter.default is parameter.empty for parameter in parameters}


def is_same_again(old: Any, new: Any) -> bool:
    """Whether a cell was run again, as it was or edited: the same name, and not two places of one file."""
    if (old.__module__, getattr(old, "__qualname__", "")) != (new.__module__, getattr(new, "__qualname__", None)):
        return False
    one, other = getattr(old, "__code__", None), getattr(new, "__code__", None)
    if one is None or other is None:
        return False
    return bool(one.co_filename != other.co_filename or one.co_firstlineno == other.co_firstlineno)
