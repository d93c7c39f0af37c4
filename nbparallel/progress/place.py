"""Is given pictures of jobs by notebook views; keeps the outputs of a cell in which they are shown."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from html import escape
from typing import Any

from ..model import Snapshot
from . import phrases, summary

__all__ = ["Place", "bundle", "is_short"]

#: Jobs of one cell that were over sooner, in seconds, and without failures, share one line.
SHORT_SECONDS = 2.0
#: Time between two pictures of that line, in seconds.
SHARED_SECONDS = 0.1
#: Short jobs whose headlines are kept, and names that are told.
HEADLINES, NAMES = 50, 4


class Place:
    """An output of a cell. Short jobs of the same cell use it one after the other, and end as one line."""

    _lock = threading.Lock()
    _last: Place | None = None

    def __init__(self, cell: str, data: dict[str, Any]) -> None:
        from IPython.display import display

        self._cell = cell
        self._free = False
        self._jobs, self._items, self._seconds = 0, 0, 0.0
        self._names: Counter[str] = Counter()
        self._headlines: deque[str] = deque(maxlen=HEADLINES)
        self._shown_at = time.monotonic()
        self._timer: threading.Timer | None = None
        self._handle: Any = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    @classmethod
    def take(cls, cell: str, data: dict[str, Any]) -> Place:
        """The place that a short job of this cell left, or a new one that shows ``data``."""
        with cls._lock:
            last = cls._last
            if last is None or not last._free or not cell or last._cell != cell:
                last = cls._last = cls(cell, data)
            last._free = False
            return last

    @classmethod
    def settle(cls) -> None:
        """Show at once what would be shown a little later."""
        with cls._lock:
            if cls._last is not None and cls._last._timer is not None:
                cls._last._stop_timer()
                cls._last._show_line()

    def show(self, data: dict[str, Any]) -> None:
        """Show a picture, below the line of the short jobs that were here before."""
        with self._lock:
            self._stop_timer()
            if self._jobs:
                data = {**data, **{kind: line + "\n" + data[kind] for kind, line in self._line().items()}}
            self._handle.update(data, raw=True)

    def leave(self, snapshot: Snapshot) -> None:
        """A short job ended well: others may follow here."""
        with self._lock:
            self._free = True
            self._jobs += 1
            self._items += snapshot.done
            self._seconds += snapshot.elapsed
            known = snapshot.name in self._names or len(self._names) < NAMES
            self._names[snapshot.name if known else "others"] += 1
            self._headlines.append(phrases.headline(snapshot))
            if self._jobs == 1:
                self._handle.update(bundle(snapshot), raw=True)
            elif time.monotonic() - self._shown_at >= SHARED_SECONDS:
                self._show_line()
            elif self._timer is None:  # a loop of pmaps of a millisecond each must not flood the page
                self._timer = threading.Timer(SHARED_SECONDS, self._late)
                self._timer.daemon = True
                self._timer.start()

    def _late(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():
                self._timer = None
                self._show_line()

    def _show_line(self) -> None:
        self._shown_at = time.monotonic()
        self._handle.update(self._line(), raw=True)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _line(self) -> dict[str, str]:
        names = ", ".join(f"{name} × {phrases.number(many)}" for name, many in self._names.items())
        line = f"{phrases.number(self._jobs)} job{'s' * (self._jobs > 1)} done ({names}), "
        line += f"{phrases.number(self._items)} items in {phrases.duration(self._seconds)}"
        rows = "<br>".join(escape(headline) for headline in self._headlines)
        if self._jobs > HEADLINES:
            rows = f'<span style="opacity:.75">the last {HEADLINES}:</span><br>{rows}'
        return {
            "text/plain": line,
            "text/html": f"<details><summary>{escape(line)}</summary>{rows}</details>",
        }


def bundle(snapshot: Snapshot, view: str = "") -> dict[str, Any]:
    """The static picture of a job by MIME type; ``view`` names the widget that may put a button into it."""
    return {"text/plain": summary.text(snapshot), "text/html": summary.html(snapshot, f"nbp-again-{view}" * bool(view))}


def is_short(snapshot: Snapshot) -> bool:
    """Whether a job is over that needs no output of its own."""
    return snapshot.state == "done" and not snapshot.failed and snapshot.elapsed < SHORT_SECONDS
