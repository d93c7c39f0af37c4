"""The figures of a run, as plain data that can be written down and read again. All times in seconds, sizes in bytes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["Cell", "Run"]

#: Stands behind a peer's name where its best setting is meant.
BEST = ", best"


@dataclass
class Cell:
    """One peer at one workload.

    Attributes:
        samples: seconds of each round, for all items.
        share: part of the items that was run when the time is scaled, else 1.
        chunk: items a chunk, when the best setting was looked for.
        failure: why it has no time.
        client, others: most memory above what there was before, of each round, of the user's process and all others.
    """

    samples: list[float] = field(default_factory=list)
    share: float = 1.0
    chunk: int = 0
    failure: str = ""
    client: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)

    @property
    def middle(self) -> float | None:
        """The median, if there is one."""
        return median(self.samples) if self.samples else None


@dataclass
class Run:
    """All that one run measured; names of peers and workloads are as in the report.

    Attributes:
        cells: workload → peer, or peer + BEST → times.
        starts: peer → seconds from the import to the first result, of each fresh process.
        cold: seconds of the same for nbparallel, when its files are not in the page cache.
        imports: module → seconds, of each fresh interpreter.
        trips: what → peer → seconds of each call of one item.
        firsts: peer → seconds to the first of 1,000 results.
        cancels: peer → pairs of seconds: to idle, and from there to the next result.
        lower: workload → makespan of greedy list scheduling at no cost.
        growth, memory: what ``growth.py`` and ``memory.py`` print.
    """

    date: str
    machine: str
    workers: int
    rounds: int
    versions: dict[str, str]
    best: dict[str, str]
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)
    starts: dict[str, list[float]] = field(default_factory=dict)
    cold: list[float] = field(default_factory=list)
    imports: dict[str, list[float]] = field(default_factory=dict)
    trips: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    firsts: dict[str, list[float]] = field(default_factory=dict)
    cancels: dict[str, list[list[float]]] = field(default_factory=dict)
    lower: dict[str, float] = field(default_factory=dict)
    growth: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    simulation: str = ""
    loads: list[float] = field(default_factory=list)
    minutes: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)

    def cell(self, workload: str, peer: str) -> Cell:
        """The cell, made on first use."""
        return self.cells.setdefault(workload, {}).setdefault(peer, Cell())

    def save(self, path: Path) -> None:
        """Write it down as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read what ``save`` wrote."""
        run = cls(**json.loads(path.read_text(encoding="utf-8")))
        run.cells = {
            workload: {peer: Cell(**cell) for peer, cell in row.items()}  # type: ignore[arg-type]
            for workload, row in run.cells.items()
        }
        return run
