"""What every peer looks like to a driver: start, map with its defaults or at its best, stream, cancel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .workloads import Captured

__all__ = ["Columns", "Function", "Peer", "batches", "run_batch"]

Function = Callable[[Any], Any]
Columns = Callable[..., Any]


class Peer(ABC):
    """A way to map a function over items with worker processes. Libraries are imported by ``start``, not before.

    Attributes:
        name: as the report calls it.
        library: the module that its users import.
        package: what is installed, for its version; empty for what comes with Python.
        best: what its best setting is, in words; empty when there is none but the defaults.
        per_item: with its defaults it sends a message for each item.
        captures_best: there is a better way than the default to hand a large value to all items.
    """

    name: str
    library: str
    package: str = ""
    best: str = ""
    per_item = False
    captures_best = False

    def __init__(self, workers: int) -> None:
        self.workers = workers

    @abstractmethod
    def start(self) -> None:
        """Import the library and start the workers; raises ImportError when it is missing."""

    @abstractmethod
    def map(self, function: Function, items: Sequence[Any]) -> Sequence[Any]:
        """All results in order, with the defaults."""

    def map_best(self, function: Function, items: Sequence[Any], chunk: int) -> Sequence[Any]:
        """All results in order, with chunks of so many items."""
        raise NotImplementedError(f"{self.name} has no better setting")

    def map_columns(self, function: Columns, of_tuple: Function, columns: Sequence[Sequence[Any]]) -> Sequence[Any]:
        """All results of a function of several arguments, with the defaults; ``of_tuple`` is it for one tuple."""
        return self.map(of_tuple, list(zip(*columns, strict=True)))

    def map_columns_best(
        self, function: Columns, of_tuple: Function, columns: Sequence[Sequence[Any]], chunk: int
    ) -> Sequence[Any]:
        """The same with chunks of so many items."""
        return self.map_best(of_tuple, list(zip(*columns, strict=True)), chunk)

    def captured(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        """Values of a large array that the function carries along, as one would write it first."""
        return self.map(Captured(array), items)

    def captured_best(self, array: Any, items: Sequence[int]) -> Sequence[float]:
        """The same, as its documentation advises."""
        raise NotImplementedError(f"{self.name} has no better way")

    @abstractmethod
    def stream(self, function: Function, items: Sequence[Any]) -> Iterator[Any]:
        """Results as early as it gives them."""

    def begin(self, function: Function, items: Sequence[Any]) -> Any:
        """Start mapping and return what ``cancel`` takes."""
        raise NotImplementedError(f"{self.name} cannot map in the background")

    def cancel(self, begun: Any) -> None:
        """Stop it as quickly as the library can and be ready for the next call."""
        raise NotImplementedError(f"{self.name} cannot cancel")

    @abstractmethod
    def stop(self) -> None:
        """End everything that was started."""


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """The items in runs of so many."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def run_batch(function: Function, items: Sequence[Any]) -> list[Any]:
    """What people write around a task of a library that has no chunks."""
    return [function(item) for item in items]
