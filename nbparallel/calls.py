"""What executors, pools and fork-joins send instead of the user's own function; imported by worker processes.

Kept apart from those who send it, so that a worker loads no part of the client.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from . import pickling

__all__ = ["Bound", "Call", "Initialized", "Joined", "run_call"]

#: Pools whose initializers a worker process remembers; each may hold a model in memory.
POOLS_KEPT = 4


class Call:
    """One call of a function, as an item: the function travels as bytes, so that a process loads it once."""

    __slots__ = ("args", "blob", "kwargs", "name")

    def __init__(self, blob: bytes, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.blob, self.name, self.args, self.kwargs = blob, name, args, kwargs

    def __reduce__(self) -> tuple[Any, ...]:
        return Call, (self.blob, self.name, self.args, self.kwargs)

    def __repr__(self) -> str:
        shown = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"{self.name}({', '.join(shown)})"


@lru_cache(maxsize=64)
def _loaded(blob: bytes) -> Any:
    return pickling.load_function(blob)


def run_call(call: Call) -> Any:
    """Make the call."""
    return _loaded(call.blob)(*call.args, **call.kwargs)


class Initialized:
    """A function before whose first call in a process an initializer runs, once for its pool."""

    def __init__(
        self, func: Callable[..., Any], initializer: Callable[..., object], initargs: Sequence[Any], pool: str
    ) -> None:
        self.func, self.initializer, self.initargs, self.pool = func, initializer, initargs, pool
        self._ready = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Initialized, (self.func, self.initializer, self.initargs, self.pool)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._ready:
            _initialize(self.pool, self.initializer, self.initargs)
            self._ready = True
        return self.func(*args, **kwargs)


#: Pool → the globals of its initializer, and those of them that it set, in this process.
_initialized: OrderedDict[str, tuple[dict[str, Any], dict[str, Any]]] = OrderedDict()


def _initialize(pool: str, initializer: Callable[..., object], initargs: Sequence[Any]) -> None:
    names = getattr(initializer, "__globals__", {})
    if pool in _initialized:
        seen, changed = _initialized[pool]
        if names is not seen:
            # A notebook's function brings globals of its own with every job: what the initializer set is set there.
            names.update(changed)
        return
    before = dict(names)
    initializer(*initargs)
    changed = {name: value for name, value in names.items() if name not in before or before[name] is not value}
    _initialized[pool] = names, changed
    while len(_initialized) > POOLS_KEPT:
        _initialized.popitem(last=False)


class Bound:
    """A fork-join's ``process``, to be called with an item; user input comes along with the function, once a job."""

    def __init__(self, func: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
        self.func, self.inputs = func, inputs

    def __call__(self, item: Mapping[str, Any]) -> Any:
        return self.func(**{**self.inputs, **item})


class Joined:
    """A fork-join's ``join``, to be called with a list of results."""

    def __init__(self, func: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
        self.func, self.inputs = func, inputs

    def __call__(self, results: list[Any]) -> Any:
        return self.func(results, **self.inputs)
