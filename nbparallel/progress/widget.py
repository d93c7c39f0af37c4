"""Is given Snapshots by the notebook view; hands the browser what widget.js draws, and the browser's wishes back."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import anywidget
import traitlets

from ..model import Details, FailureGroup, Snapshot
from . import phrases

__all__ = ["JobWidget"]

#: Type of the message that the script sends over the control channel, the only one heard while a cell runs.
CONTROL_MESSAGE = "nbparallel_control"
#: Must match ``client.picture``: four bins of durations a decade, from 1 µs on.
BINS_A_DECADE, LOWEST = 4, -6

_HERE = Path(__file__).parent
#: Widgets of jobs that are gone, kept for pages that are reloaded, and how many.
_RETIRED: deque[JobWidget] = deque()
KEPT_WIDGETS = 8
#: The widgets that may be asked for something, by their ``view``.
_WIDGETS: WeakValueDictionary[str, JobWidget] = WeakValueDictionary()


class JobWidget(anywidget.AnyWidget):
    """The live picture of one job. One thread sets it; wishes may come in any thread.

    Args:
        ask: does what a click wants, "cancel" or "retry"; must not block, may be called twice for one click.
        can_retry: failed items of an ended job can be tried again.
    """

    _esm = (_HERE / "widget.js").read_text(encoding="utf-8")
    _css = (_HERE / "widget.css").read_text(encoding="utf-8")

    view = traitlets.Unicode().tag(sync=True)
    head = traitlets.Dict().tag(sync=True)
    cells = traitlets.Bytes().tag(sync=True)
    lanes: Any = traitlets.List().tag(sync=True)
    busy = traitlets.Bytes().tag(sync=True)
    failures: Any = traitlets.List().tag(sync=True)
    output: Any = traitlets.List().tag(sync=True)
    final = traitlets.Dict().tag(sync=True)

    def __init__(self, snapshot: Snapshot, ask: Callable[[str], None], can_retry: bool, kernel: Any) -> None:
        self._ask, self._can_retry = ask, can_retry
        self._shown: Details | None = None
        #: The job has ended, and the page shows the summary.
        self.ended = False
        super().__init__(view=uuid.uuid4().hex, **self._traits_of(snapshot))
        _WIDGETS[self.view] = self
        self.on_msg(lambda widget, content, buffers: self.asked(content))
        handlers = getattr(kernel, "control_handlers", None)
        if handlers is not None:
            handlers.setdefault(CONTROL_MESSAGE, _control)

    def mime(self) -> dict[str, Any]:
        """What shows the widget in an output."""
        return dict(self._repr_mimebundle_()[0])  # type: ignore[index]

    def show(self, snapshot: Snapshot) -> None:
        """Send what changed to the browser."""
        self.ended = False
        with self.hold_sync():
            self.final = {}
            for name, value in self._traits_of(snapshot).items():
                setattr(self, name, value)

    def end(self, snapshot: Snapshot, summary: Mapping[str, str]) -> None:
        """The page shows the summary instead; it asks for what can still be asked for."""
        self.show(snapshot)
        # A page that was reloaded in mid-run did not hear of the summary: the widget puts it in its own place.
        self.final = {"data": dict(summary), "model": self.model_id} if summary else {}
        self.ended = True

    def retire(self) -> None:
        """Nobody holds the job any more: close the last but a few of the widgets that are left."""
        _RETIRED.append(self)
        while len(_RETIRED) > KEPT_WIDGETS:
            _RETIRED.popleft().close()

    def asked(self, content: Mapping[str, Any]) -> None:
        """Do what a click asked for."""
        what = content.get("ask")
        if what in ("cancel", "retry"):
            self._ask(str(what))

    def _traits_of(self, snapshot: Snapshot) -> dict[str, Any]:
        details, before = snapshot.details or Details(), self._shown
        self._shown = details
        several = len({lane.worker.partition(":")[0] for lane in details.lanes}) > 1
        traits: dict[str, Any] = {
            "head": _head(snapshot, details, self._can_retry),
            "cells": details.cells,
            "lanes": [
                [_label(lane.worker, several), lane.item, lane.heard, lane.items, len(lane.busy)]
                for lane in details.lanes
            ],
            "busy": b"".join(lane.busy for lane in details.lanes),
        }
        # These can be large; the same object means that nothing is new.
        if before is None or before.failures is not details.failures:
            traits["failures"] = [_group(group) for group in details.failures]
        if before is None or before.output is not details.output:
            traits["output"] = [list(entry) for entry in details.output]
        return traits


def _control(stream: Any, identity: Any, message: Mapping[str, Any]) -> None:
    """Called in the kernel's control thread, also while a cell runs."""
    content = message.get("content") or {}
    widget = _WIDGETS.get(str(content.get("view")))
    if widget is not None:
        widget.asked(content)


def _head(snapshot: Snapshot, details: Details, can_retry: bool) -> dict[str, Any]:
    used = [place for place, many in enumerate(details.durations) if many]
    low, high = (max(used[0] - 1, 0), used[-1] + 2) if used else (0, 0)
    return {
        "name": snapshot.name,
        "state": snapshot.state,
        "finished": snapshot.finished,
        "total": snapshot.total,
        "counts": {"done": snapshot.done, "failed": snapshot.failed, "running": snapshot.running},
        "words": {
            "state": _state(snapshot),
            "facts": _facts(snapshot),
            "times": _times(snapshot),
            "aria": phrases.headline(snapshot),
        },
        "reason": "" if snapshot.finished else snapshot.reason,
        "retry": can_retry and snapshot.finished and snapshot.failed > 0,
        "elapsed": snapshot.elapsed,
        "cell_items": details.cell_items,
        "lane_seconds": details.lane_seconds,
        "more_lanes": details.more_lanes,
        "durations": list(details.durations[low:high]),
        "durations_low": 10 ** (low / BINS_A_DECADE + LOWEST),
        "durations_high": 10 ** (high / BINS_A_DECADE + LOWEST),
        "slowest": [[index, seconds] for index, seconds, _ in details.slowest[:3]],
        "more_failures": details.more_failures,
        "output_cut": details.output_cut,
    }


def _state(snapshot: Snapshot) -> str:
    if snapshot.state == "cancelled":
        return f"cancelled, {phrases.counts(snapshot)} done, kept"
    if snapshot.state == "running":
        word = "waiting" if snapshot.reason and not snapshot.running else "running"
        return f"{word}, {100 * snapshot.done // snapshot.total} %" if snapshot.total else word
    return phrases.title(snapshot)


def _facts(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    """(kind of mark, value, label) of each count; the marks are the legend of the bar and the map."""
    number = phrases.number
    total = "" if snapshot.total is None else f" of {number(snapshot.total)}"
    facts = [("done", number(snapshot.done), f"done{total}")]
    if not snapshot.finished:
        facts += [("running", number(snapshot.running), "running"), ("waiting", number(snapshot.waiting), "waiting")]
    facts += [("failed", number(snapshot.failed), "failed")]
    return facts + ([("", number(snapshot.retried), "retried")] if snapshot.retried else [])


def _times(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    """(no mark, value, label): how fast it goes."""
    facts = [("", *phrases.rate(snapshot.rate))] if snapshot.rate is not None else []
    facts.append(("", phrases.duration(snapshot.elapsed), "elapsed"))
    if not snapshot.finished:
        facts.append(("", phrases.duration(snapshot.eta), "left"))
    elif pace := phrases.pace(snapshot):
        value, _, label = pace.partition(" × ")
        facts.append(("", f"{value} ×", label))
    return facts


def _group(group: FailureGroup) -> dict[str, Any]:
    return {
        "key": f"{group.type_name} {group.place}",
        "type": group.type_name,
        "place": group.place,
        "many": group.many,
        "examples": [list(example) for example in group.examples],
        "traceback": group.traceback,
    }


def _label(worker: str, with_host: bool) -> str:
    host, _, process = worker.rpartition(":")
    return f"{host}:{process}" if with_host or not host else f"process {process}"
