"""Is given numbers and snapshots by the views; hands back words: the same ones in every view."""

from __future__ import annotations

from ..model import Snapshot

__all__ = ["counts", "duration", "headline", "number", "pace", "rate", "speed", "title"]

#: Stands for what is not known.
UNKNOWN = "—"


def number(value: int) -> str:
    """Digits in groups of three: 4,000."""
    return f"{value:,}"


def duration(seconds: float | None) -> str:
    """A time in at most two units: 85 ms, 2.4 s, 3 min 20 s, 2 h 05 min; a dash when unknown."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.0995:
        return f"{seconds * 1000:.3g} ms" if seconds >= 0.001 else "< 1 ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min" if hours < 48 else f"{hours // 24:,} d {hours % 24} h"


def speed(rate: float | None) -> str:
    """Items per second, or per minute or hour when they are slow; a dash when unknown."""
    if rate is None:
        return UNKNOWN
    for value, unit in ((rate, "s"), (rate * 60, "min")):
        if value >= 0.95:
            return f"{_three(value)}/{unit}"
    return f"{rate * 3600:.3g}/h"


def rate(rate: float | None) -> tuple[str, str]:
    """The same as a number and what it counts: ("64.8", "items/s")."""
    value, _, unit = speed(rate).partition("/")
    return value, f"items/{unit}"


def _three(value: float) -> str:
    """Three digits that mean something: 1.85, 64.8, 3,900,000."""
    if value < 99.95:
        return f"{value:.3g}"
    digits = max(0, len(str(round(value))) - 3)
    return number(int(round(value, -digits)))


def counts(snapshot: Snapshot) -> str:
    """How far the job is: "812 of 4,000 items", without a total "812 items"."""
    total = "" if snapshot.total is None else f" of {number(snapshot.total)}"
    if snapshot.finished and snapshot.done == snapshot.total:
        total = ""
    last = snapshot.done if not total or snapshot.total is None else snapshot.total
    return f"{number(snapshot.done)}{total} item{'' if last == 1 else 's'}"


def title(snapshot: Snapshot) -> str:
    """The state in one word, as a person would say it."""
    if snapshot.state == "done" and snapshot.failed:
        return "done, with failures"
    return snapshot.state


def pace(snapshot: Snapshot) -> str:
    """How much was gained over one process: the sum of the running times over the time that passed, or ""."""
    if snapshot.elapsed < 0.1 or snapshot.busy < 0.05 * snapshot.elapsed:  # that says nothing
        return ""
    return f"{snapshot.busy / snapshot.elapsed:.1f} × one process"


def headline(snapshot: Snapshot) -> str:
    """The job in one line of text, for logs, reprs and the end of a bar."""
    time = duration(snapshot.elapsed)
    if snapshot.state == "cancelled":
        parts = [f"cancelled after {time}", f"{counts(snapshot)} done, kept"]
    elif snapshot.finished:
        parts = [snapshot.state, f"{counts(snapshot)} in {time}"]
    else:
        parts = ["starting" if snapshot.state == "starting" else counts(snapshot), time]
    if snapshot.failed:
        parts.append(f"{number(snapshot.failed)} failed")
    if snapshot.retried:
        parts.append(f"{number(snapshot.retried)} retried")
    if snapshot.reason and not snapshot.finished:
        parts.append(snapshot.reason)
    if snapshot.rate is not None:
        parts.append(speed(snapshot.rate))
    if snapshot.finished and pace(snapshot):
        parts.append(pace(snapshot))
    elif snapshot.eta is not None:
        parts.append(f"{duration(snapshot.eta)} left")
    return f"{snapshot.name}: {', '.join(parts)}"
