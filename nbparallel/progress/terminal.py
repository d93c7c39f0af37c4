"""Is given Snapshots by the view thread; draws them with tqdm on a terminal, as plain lines in a log."""

from __future__ import annotations

import sys
import threading
from typing import Any

from ..model import Snapshot
from . import phrases, summary

__all__ = ["LineView", "TerminalView"]

#: Guards the bars of all jobs, unless the program has a lock for its own bars.
_LOCK = threading.RLock()


class TerminalView:
    """A tqdm bar on stderr; it makes way for one final line.

    Args:
        delay: the job may take so many seconds before anything is drawn; one that ends earlier shows nothing.
    """

    #: Default of ``delay``: a bar that only flashes up tells nobody anything.
    DELAY_SECONDS = 0.3

    def __init__(self, delay: float = DELAY_SECONDS) -> None:
        self._delay = delay
        self._bar: Any = None

    def update(self, snapshot: Snapshot) -> None:
        """Draw the bar, once the delay is over."""
        if self._bar is None:
            if snapshot.elapsed < self._delay:
                return
            self._bar = _new_bar(snapshot)
            return
        self._bar.total, self._bar.n, self._bar.unit = snapshot.total, snapshot.done, _status(snapshot)
        self._bar.refresh()

    def close(self, snapshot: Snapshot) -> None:
        """Replace the bar by the headline of the job, with the errors below."""
        if self._bar is not None:
            self._bar.leave = False
            self._bar.close()
            self._bar = None
        elif snapshot.elapsed < self._delay and not snapshot.failed:
            return
        # Keeps the bars of other jobs whole; a closed bar may have left the cursor anywhere in the line.
        _bar_type().write("\r" + summary.text(snapshot), file=sys.stderr)


class LineView:
    """Plain lines on stderr, a few a minute: for logs, where a bar would fill pages."""

    #: Time between two lines, in seconds.
    EVERY_SECONDS = 10.0

    def __init__(self) -> None:
        self._due = self.EVERY_SECONDS

    def update(self, snapshot: Snapshot) -> None:
        """Write a line when the last one is old enough."""
        if snapshot.elapsed >= self._due:
            self._due = snapshot.elapsed + self.EVERY_SECONDS
            print(phrases.headline(snapshot), file=sys.stderr, flush=True)

    def close(self, snapshot: Snapshot) -> None:
        """Write the summary."""
        print(summary.text(snapshot), file=sys.stderr, flush=True)


def _bar_type() -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # generic in its stubs only
        #: No thread that watches the bar: it is drawn when a snapshot comes, and only then.
        monitor_interval = 0

    if not hasattr(tqdm, "_lock"):  # tqdm's default would be a lock for processes, with a process to track it
        Bar.set_lock(_LOCK)
    return Bar


def _new_bar(snapshot: Snapshot) -> Any:
    return _bar_type()(
        desc=snapshot.name,
        total=snapshot.total,
        initial=snapshot.done,
        unit=_status(snapshot),  # a field of the format that takes any text; before a postfix comes a comma
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {unit}" if snapshot.total else "{desc}: {unit}",
        file=sys.stderr,
        leave=False,
        dynamic_ncols=True,
    )


def _status(snapshot: Snapshot) -> str:
    total = "" if snapshot.total is None else f"/{phrases.number(snapshot.total)}"
    parts = [f"{phrases.number(snapshot.done)}{total}"]
    parts += [f"{phrases.number(snapshot.failed)} failed"] if snapshot.failed else []
    parts += [snapshot.reason] if snapshot.reason else []
    parts.append(phrases.duration(snapshot.elapsed))
    parts += [phrases.speed(snapshot.rate)] if snapshot.rate is not None else []
    parts += [f"{phrases.duration(snapshot.eta)} left"] if snapshot.total is not None and not snapshot.reason else []
    return ", ".join(parts)
