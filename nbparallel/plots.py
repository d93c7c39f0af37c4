"""Pictures of a job: is given the outcomes by the Job, and what the items were; hands back a matplotlib figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .frames import RESULT, Inputs, Record, fields_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["KINDS", "plot"]

KINDS = ("auto", "work", "lines", "heatmap")
#: Most bars in the lanes; beyond that, neighbours are drawn as one.
BARS = 4000
#: Most lines in one picture.
LINES = 8


def plot(
    records: Iterable[Record], inputs: Inputs, title: str, kind: str = "auto", x: str = "", y: str = "", value: str = ""
) -> Figure:
    """Draw the work of a job, or the results of a sweep.

    Args:
        kind: ``"work"``: worker lanes over time, and durations; ``"lines"`` or ``"heatmap"``: results over one or two
            parameters, with means over all others; ``"auto"``: what fits.
        x, y: parameters; ``y`` is the second axis of a heat map, or tells the lines apart.
        value: field of the results; by default the first that is a number.

    Raises:
        UsageError: matplotlib is missing, or there is nothing to draw so.
    """
    if kind not in KINDS:
        raise UsageError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    figure_type = _figure_type()
    records = list(records)
    if kind == "work" or (kind == "auto" and not (inputs.points or x)):
        figure = figure_type(figsize=(10, 3.6), layout="constrained")
        lanes, durations = figure.subplots(1, 2, width_ratios=(2, 1))
        _lanes(lanes, records)
        _durations(durations, records)
        figure.suptitle(title)
        return figure
    good = [record for record in records if record.error is None]
    value = value or _first_number(good)
    table = {name: [inputs.row(record.index)[at] for record in good] for at, name in enumerate(inputs.names)}
    x, y = _axes(table, x, y)
    numbers = [_number(fields_of(record.value).get(value)) for record in good]
    if kind == "auto":
        kind = "heatmap" if y and _numeric(table[x]) and _numeric(table[y]) and len(set(table[y])) > LINES else "lines"
    if kind == "heatmap" and not y:
        raise UsageError("a heat map needs two parameters that vary; give x= and y=")
    figure = figure_type(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    (_heatmap if kind == "heatmap" else _lines)(axes, table, x, y, numbers, value)
    axes.set_title(title)
    return figure


def _figure_type() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plot() needs matplotlib: pip install 'nbparallel[plot]'") from error

    class Shown(Figure):
        """A figure that notebooks show by itself; pyplot, which keeps figures alive, knows nothing of it."""

        def _repr_png_(self) -> bytes:
            from io import BytesIO

            data = BytesIO()
            self.savefig(data, format="png", dpi=120)
            return data.getvalue()

    Shown.__name__ = Shown.__qualname__ = "Figure"
    return Shown


# -- the work ----------------------------------------------------------------------------------------------------------


def _lanes(axes: Axes, records: Sequence[Record]) -> None:
    """A bar for each item, in the lane of the process that ran it."""
    begin = min((record.start for record in records), default=0.0)
    by_worker: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.start):
        by_worker[record.worker].append(record)
    step = -(-len(records) // BARS) or 1
    for lane, worker in enumerate(sorted(by_worker)):
        found = by_worker[worker]
        groups = [found[at : at + step] for at in range(0, len(found), step)]
        for failed, colour in ((False, "tab:blue"), (True, "tab:red")):
            bars = [
                (group[0].start - begin, max(group[-1].start + group[-1].seconds - group[0].start, 1e-9))
                for group in groups
                if any(record.error is not None for record in group) == failed
            ]
            axes.broken_barh(bars, (lane - 0.4, 0.8), facecolors=colour, edgecolor="white", linewidth=0.3)
    axes.set_yticks(range(len(by_worker)), [name.rpartition(":")[2] or "here" for name in sorted(by_worker)])
    axes.set_xlabel("seconds")
    axes.set_ylabel("worker process")


def _durations(axes: Axes, records: Sequence[Record]) -> None:
    axes.hist([record.seconds for record in records], bins=min(40, max(5, len(records) // 4)), color="tab:blue")
    axes.set_xlabel("seconds an item")
    axes.set_ylabel("items")


# -- the results of a sweep --------------------------------------------------------------------------------------------


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _numeric(values: Iterable[Any]) -> bool:
    return all(_number(value) == _number(value) and not isinstance(value, str) for value in values)


def _first_number(records: Sequence[Record]) -> str:
    for record in records:
        for name, value in fields_of(record.value).items():
            if _numeric([value]):
                return name
    raise UsageError("there is no result that is a number yet; use kind='work', or value= with the name of a field")


def _axes(table: dict[str, list[Any]], x: str, y: str) -> tuple[str, str]:
    """The parameters to draw over: those given, else the first that vary, numbers first."""
    for name in filter(None, (x, y)):
        if name not in table:
            raise UsageError(f"there is no parameter {name!r}; there are {', '.join(table) or 'none'}")
    varying = [name for name in table if len(set(map(repr, table[name]))) > 1 and name not in (x, y)]
    varying.sort(key=lambda name: not _numeric(table[name]))
    if not x:
        if not (varying or table):
            raise UsageError("the parameters of this job are not known; use kind='work'")
        x = varying.pop(0) if varying else next(name for name in table if name != y)
    return x, y or (varying[0] if varying else "")


def _means(keys: Iterable[Any], numbers: Iterable[float]) -> dict[Any, float]:
    """The mean of the numbers that belong to each key; those that are none are left out."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for key, number in zip(keys, numbers, strict=True):
        if number == number:
            groups[key].append(number)
    return {key: fmean(group) for key, group in groups.items()}


def _keys(values: Sequence[Any]) -> list[Any]:
    """The values as something that can be sorted and looked up."""
    return list(values) if _numeric(values) else [str(value) for value in values]


def _lines(axes: Axes, table: dict[str, list[Any]], x: str, y: str, numbers: list[float], value: str) -> None:
    across = _keys(table[x])
    kinds = _keys(table[y]) if y else [""] * len(across)
    shown = sorted(set(kinds))
    for kind in shown[:: -(-len(shown) // LINES) or 1]:
        mine = [at for at, other in enumerate(kinds) if other == kind]
        means = _means([across[at] for at in mine], [numbers[at] for at in mine])
        places = sorted(means)
        mark = "o" if len(places) <= 60 else ""
        axes.plot(places, [means[place] for place in places], marker=mark, markersize=4, label=f"{y} = {kind}")
    axes.set_xlabel(x)
    axes.set_ylabel(value if value != RESULT else "result")
    if y:
        axes.legend()


def _heatmap(axes: Axes, table: dict[str, list[Any]], x: str, y: str, numbers: list[float], value: str) -> None:
    across, up = _keys(table[x]), _keys(table[y])
    means = _means(zip(across, up, strict=True), numbers)
    places, heights = sorted(set(across)), sorted(set(up))
    if len(means) * 2 < len(places) * len(heights) and _numeric(across) and _numeric(up):  # sampled: points, no cells
        dots = list(means)
        picture: Any = axes.scatter([dot[0] for dot in dots], [dot[1] for dot in dots], c=list(means.values()))
    else:
        cells = [[means.get((place, height), float("nan")) for place in places] for height in heights]
        numeric = _numeric(across) and _numeric(up) and len(places) > 1 and len(heights) > 1
        wide: Sequence[Any] = places if numeric else range(len(places))
        high: Sequence[Any] = heights if numeric else range(len(heights))
        picture = axes.pcolormesh(wide, high, cells, shading="nearest")
        if not numeric:
            axes.set_xticks(range(len(places)), [str(place) for place in places])
            axes.set_yticks(range(len(heights)), [str(height) for height in heights])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.get_figure().colorbar(picture, ax=axes, label=value)  # type: ignore[union-attr]
