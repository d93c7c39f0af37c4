"""A job as a table: is given the outcomes by the Job, and what the items were; hands back columns, or a DataFrame."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ItemError, UsageError
from .points import Points
from .shared import Shared

if TYPE_CHECKING:
    import pandas

__all__ = ["Inputs", "Record", "columns", "fields_of", "to_frame"]

#: Column of results that are one value each.
RESULT = "result"


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What became of one item. Times are in seconds, by the worker's clock; with an ``error`` the value is None."""

    index: int
    value: Any
    error: ItemError | None
    start: float
    seconds: float
    worker: str
    attempts: int


class Inputs:
    """The items of a job, for those who ask later which one was which.

    Args:
        names: of the parameters.
        row: the parameters of the item at an index, as many as there are names.
        points: they are points of a sweep.
    """

    def __init__(
        self, names: Sequence[str] = (), row: Callable[[int], Sequence[Any]] = lambda _: (), points: bool = False
    ) -> None:
        self.names, self.row, self.points = tuple(names), row, points

    @classmethod
    def of(cls, function: Callable[..., Any], iterables: Sequence[Any] | None, star: bool) -> Inputs:
        """What is known of the items; without an ``iterables`` that can be indexed that is nothing."""
        if not iterables:
            return cls()
        first = iterables[0]
        if isinstance(first, Points):
            return cls(first.names, first.values, points=True)
        if not star:
            # Arrays and shared values would make no columns, and should not live as long as the job.
            named = zip(_names(function, len(iterables)), iterables, strict=True)
            kept = [(name, column) for name, column in named if not (len(column) and _is_large(column[0]))]
            return cls([name for name, _ in kept], lambda index: [column[index] for _, column in kept])
        if not len(first) or not isinstance(first[0], (tuple, list)):
            return cls()
        names = _names(function, len(first[0]))

        def row(index: int) -> Sequence[Any]:
            item = list(first[index])[: len(names)]
            return item + [None] * (len(names) - len(item))

        return cls(names, row)


def _is_large(value: Any) -> bool:
    return isinstance(value, Shared) or bool(getattr(value, "shape", ()))


def _names(function: Callable[..., Any], count: int) -> list[str]:
    """Names of the first parameters of a function, as far as it has names for them."""
    own = getattr(function, "__self__", None) is not None
    code = getattr(function, "__code__", None)
    names = list(code.co_varnames[own : code.co_argcount])[:count] if code is not None else []
    return names + (["item"] if count == 1 and not names else [f"item_{place}" for place in range(len(names), count)])


def fields_of(value: Any) -> dict[str, Any]:
    """The columns of a result: of a dict, a dataclass or a namedtuple its fields, else one."""
    if isinstance(value, Mapping):
        return {str(name): field for name, field in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=False))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {RESULT: value}


def columns(records: Iterable[Record], inputs: Inputs) -> tuple[list[int], dict[str, list[Any]]]:
    """(indexes, columns): parameters, fields of the results, then duration, worker, attempts and error.

    A field that has the name of a parameter, or a later column that has the name of a field, gets a ``_`` behind it.
    """
    records = list(records)
    results: dict[str, list[Any]] = {}
    for place, record in enumerate(records):
        if record.error is None:
            for name, value in fields_of(record.value).items():
                results.setdefault(name, [None] * len(records))[place] = value
    rest: dict[str, list[Any]] = {
        "duration": [record.seconds for record in records],
        "worker": [record.worker for record in records],
        "attempts": [record.attempts for record in records],
        "error": [None if record.error is None else str(record.error) for record in records],
    }
    rows = [inputs.row(record.index) for record in records]
    table: dict[str, list[Any]] = {name: [row[at] for row in rows] for at, name in enumerate(inputs.names)}
    results = results or {RESULT: [None] * len(records)}
    later: list[tuple[str, list[Any]]] = [*results.items(), *rest.items()]
    for name, column in later:
        while name in table:
            name += "_"
        table[name] = column
    return [record.index for record in records], table


def to_frame(records: Iterable[Record], inputs: Inputs) -> pandas.DataFrame:
    """The same as a DataFrame, by index of the item.

    Raises:
        UsageError: pandas is missing.
    """
    try:
        import pandas
    except ImportError as error:
        raise UsageError("to_frame() needs pandas: pip install 'nbparallel[pandas]'") from error
    indexes, table = columns(records, inputs)
    data = {name: _column(pandas, column, indexes) for name, column in table.items()}
    return pandas.DataFrame(data, index=pandas.Index(indexes, name="item", dtype="int64"))


def _column(pandas: Any, column: list[Any], indexes: list[int]) -> Any:
    if any(hasattr(value, "__len__") and not isinstance(value, str) for value in column):
        return pandas.Series(column, index=indexes, dtype=object)  # arrays stay what they are
    return pandas.Series(column, index=indexes)
