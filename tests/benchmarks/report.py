"""The figures of a run as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from nbparallel.planning import Planner

from .growth_words import thousand_workers
from .peers import OURS, PEERS, SERIAL
from .results import BEST, Cell, Run

__all__ = ["render"]

#: The peer that ratios are to.
LOCAL = "multiprocessing.Pool"

_CAVEATS = """\
- Read ratios, not seconds: all peers ran in the same minutes, in turn, on a machine that may have had other work.
- Every peer ran in a process of its own, as a script would use it, kept alive with warm workers; the others idled
  meanwhile, which costs some (Ray and Dask send heartbeats).
- Each result was checked: all were counted, about fifty of each round compared.
- `~`: the peer sends a message for each item and was given part of the items; the time is scaled to all of them.
- "best": the setting that the peer's documentation advises, with the chunk size that was the fastest of those tried
  (in the column "chunk" or behind the time). nbparallel has defaults only.
- "no end in N s": everything of the peer was ended then and it was not tried again.
- Memory is the growth of the peak of resident memory, pages that processes share counted in each.
"""


def render(run: Run) -> str:
    """The whole report."""
    parts = [
        f"# Benchmark of {run.date}",
        f"{run.workers} worker processes; {run.rounds} rounds; {run.machine}; it took {run.minutes:.0f} minutes, "
        f"with a load (processes that want to run, on average) between {min(run.loads, default=0):.1f} and "
        f"{max(run.loads, default=0):.1f}.",
        ", ".join(f"{name} {version}" for name, version in run.versions.items()) + ".",
        _CAVEATS.rstrip(),
        *(f"Left out: {name}: {why}" for name, why in run.left_out.items()),
        _workloads(run),
        _against(run),
        _skew(run),
        _memory_of_peers(run),
        _responses(run),
        _imports(run),
        _growth(run),
        _memory(run),
        _simulation(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _seconds(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _hundredths(value: float) -> str:
    return f"{value:.2f}"


def _spread(samples: Sequence[float], show: Callable[[float], str] = _seconds) -> str:
    middle = show(median(samples))
    return middle if len(samples) == 1 else f"{middle} ({show(min(samples))}–{show(max(samples))})"


def _time(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if not cell.samples:
        return cell.failure.partition("\n")[0][:80].replace("|", "/")
    text = ("~" if cell.share < 1 else "") + _spread(cell.samples)
    text += f", chunk {cell.chunk:,}" if cell.chunk else ""
    return text + (f"; then {cell.failure}" if cell.failure else "")


def _names(run: Run) -> list[str]:
    """Peers and their best settings that have a cell, in the order of the report."""
    there = {name for row in run.cells.values() for name in row}
    return [name + best for name in PEERS for best in ("", BEST) if name + best in there]


def _workloads(run: Run) -> str:
    """One table a workload: with so many peers, a wide one could not be read."""
    parts = ["## Workloads", "Seconds: median (least–most). ×: ratio to the best of multiprocessing.Pool's."]
    for workload, row in run.cells.items():
        pool = _best_of(row, [LOCAL, LOCAL + BEST])
        rows = []
        for name in sorted(row, key=_speed_in(row)):
            cell = row[name]
            ratio = f"{cell.middle / pool:.2f}" if pool and cell.middle is not None else ""
            rows.append([_label(name), _time(cell), ratio])
        parts.append(f"### {workload}\n\n" + _table(["", "s", "× Pool"], rows))
        if (shared := row.get(OURS + BEST)) is not None and len(shared.samples) > 1:
            first, *again = shared.samples
            parts.append(f"`share`: {_seconds(first)} s the first time, {_spread(again)} s when it is used again.")
    words = [f"{name}: {run.best[name]}" for name in PEERS if run.best.get(name)]
    parts.append('What "best" means. ' + "; ".join(words) + ".")
    return "\n\n".join(parts)


def _speed_in(row: dict[str, Cell]) -> Callable[[str], tuple[bool, float]]:
    """A key for sorting names: the fastest first, those without a time last."""
    return lambda name: (row[name].middle is None, row[name].middle or 0.0)


def _label(name: str) -> str:
    return f"**{name}**" if name.startswith(OURS) else name


def _best_of(row: dict[str, Cell], names: Iterable[str]) -> float | None:
    times = [middle for name in names if name in row and (middle := row[name].middle) is not None]
    return min(times, default=None)


def _against(run: Run) -> str:
    """Ours against the best of all others, workload by workload."""
    rows = []
    for workload, row in run.cells.items():
        ours = row.get(OURS)
        others = [name for name in row if not name.startswith(OURS) and name != SERIAL and row[name].middle is not None]
        if ours is None or ours.middle is None or not others:
            continue
        best = min(others, key=_speed_in(row))
        defaults = min((name for name in others if not name.endswith(BEST)), key=_speed_in(row), default="")
        cells = [workload, _seconds(ours.middle)]
        for name in (best, defaults):
            middle = row[name].middle if name else None
            cells += [f"{name} {_seconds(middle)}", f"{ours.middle / middle:.2f}"] if middle else ["", ""]
        serial = row.get(SERIAL)
        busy = f"{serial.middle / ours.middle / run.workers:.3f}" if serial and serial.middle else ""
        rows.append([*cells, busy])
    head = [
        "",
        OURS,
        "the fastest peer",
        "ratio",
        "the fastest with defaults",
        "ratio",
        "plain loop / (workers × ours)",
    ]
    return "## nbparallel and the fastest of the others\n\n" + _table(head, rows) if rows else ""


def _skew(run: Run) -> str:
    rows = []
    for workload, lower in run.lower.items():
        row = run.cells.get(workload, {})
        shown = [f"{name} {cell.middle / lower:.3f}" for name in _names(run) if (cell := row.get(name)) and cell.middle]
        rows.append([workload, _seconds(lower), ", ".join(shown)])
    head = ["", "greedy, one by one, at no cost, s", "time in terms of that"]
    return "## Heavy tails\n\n" + _table(head, rows) if rows else ""


def _memory_of_peers(run: Run) -> str:
    rows = []
    for workload, row in run.cells.items():
        for name in _names(run):
            cell = row.get(name)
            if cell is not None and cell.client:
                rows.append([workload, _label(name), _megabytes(max(cell.client)), _megabytes(max(cell.others))])
    head = ["", "", "user's process, MB", "all other processes, MB"]
    return "## Memory above what there was before\n\n" + _table(head, rows) if rows else ""


def _megabytes(size: float) -> str:
    return f"{max(size, 0) / 1e6:.0f}"


def _milliseconds(samples: Sequence[float]) -> str:
    ordered = sorted(samples)
    return " / ".join(f"{ordered[int((len(ordered) - 1) * part)] * 1e3:.2f}" for part in (0.5, 0.95, 0.99))


def _responses(run: Run) -> str:
    rows = []
    for name in PEERS:
        if name not in run.starts or name == SERIAL:
            continue
        cells = [_label(name), _spread(run.starts[name], _hundredths)]
        for what in ("back to back", "0.1 s apart"):
            samples = run.trips.get(what, {}).get(name)
            cells.append(_milliseconds(samples) if samples else "")
        firsts = run.firsts.get(name)
        cells.append(_spread([value * 1e3 for value in firsts], lambda value: f"{value:.1f}") if firsts else "")
        cells.append(_cancel(run.cancels.get(name, [])))
        rows.append(cells)
    head = [
        "",
        "import and start to first result, s",
        "one item, back to back, p50 / p95 / p99 ms",
        "one item, 0.1 s apart",
        "first of 1,000 results, ms",
        "cancel to idle + next result, ms",
    ]
    note = "Items that were cancelled run 5 s of Python code each; who cannot interrupt them waits for their end."
    if run.cold:
        note += f" With its files not in the page cache {OURS} starts in {_spread(run.cold, _hundredths)} s."
    return "## Response\n\n" + _table(head, rows) + "\n\n" + note if rows else ""


def _cancel(pairs: list[list[float]]) -> str:
    return " + ".join(f"{median(column) * 1e3:.0f}" for column in zip(*pairs, strict=True))


def _imports(run: Run) -> str:
    rows = [
        [f"`import {name}`", _spread([1e3 * s for s in samples], lambda value: f"{value:.0f}")]
        for name, samples in run.imports.items()
    ]
    return "## Import, ms\n\n" + _table(["", "fresh interpreter, warm page cache"], rows) if rows else ""


def _growth(run: Run) -> str:
    if not run.growth:
        return ""
    items = [
        [f"{row['items']:,.0f}", _seconds(row["seconds"]), _megabytes(row["client"]), _megabytes(row["server"])]
        for row in run.growth["items"]
    ]
    rows = []
    for row in run.growth["workers"]:
        cells = [f"{row['workers']:.0f}", f"{row['start']:.2f}", f"{row['busy']:.3f}", f"{row['rate']:.0f}"]
        cells += [f"{row[f'cpu {role}'] * 1e3:.3f}" for role in ("client", "parent", "server", "child")]
        cells += [f"{row['calls']:.2f}", f"{row['trips']:.2f}", f"{row['connections']:.0f}"]
        cells += [_megabytes(row[f"memory {role}"]) for role in ("client", "parent", "server", "child")]
        rows.append(cells)
    head = ["workers", "start, s", "busy", "chunks/s", "client", "parent", "server", "child"]
    head += ["store commands", "round trips", "connections", "MB client", "parent", "server", "all children"]
    return "\n\n".join(
        [
            "## Growth of nbparallel",
            "A generator of additions, two workers; memory above what there was before:",
            _table(["items", "s (best of 3)", "client, MB", "server, MB"], items),
            "Workers that sleep: chunks of one item of 50 ms, 60 for each. Busy: the share of the workers' time that "
            "was spent in items. CPU in ms a chunk, store commands a chunk (a report and the next claim are two), "
            "round trips a chunk (all that the server read at once, the broker's messages and heartbeats included), "
            "memory with shared pages divided:",
            _table(head, rows),
            thousand_workers(run.growth["workers"], Planner().chunk_seconds(1000)),
        ]
    )


def _memory(run: Run) -> str:
    rows = [
        [name, *(f"{figures[role]:.1f}" for role in ("client", "server", "workers")), f"{figures['seconds']:.0f}"]
        for name, figures in run.memory.items()
    ]
    head = ["", "client, MB", "server, MB", "workers, MB", "s"]
    return "## Whether memory stays bounded\n\nGrowth at most while it ran.\n\n" + _table(head, rows) if rows else ""


def _simulation(run: Run) -> str:
    return f"## The planner in simulation\n\n```\n{run.simulation.rstrip()}\n```" if run.simulation else ""
