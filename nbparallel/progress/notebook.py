"""Is given Snapshots by the view thread; keeps one output of a notebook cell up to date: live, then as a summary."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..model import Snapshot
from .place import Place, bundle, is_short

if TYPE_CHECKING:
    from .widget import JobWidget

__all__ = ["NotebookView", "settle"]

#: A job that is over sooner, in seconds, is not worth a widget.
LIVE_AFTER = 0.3
#: Time between two pictures where nobody looks, in seconds.
STATIC_SECONDS = 1.0

#: The views that were not closed.
_OPEN: weakref.WeakSet[NotebookView] = weakref.WeakSet()
#: The last view of each job, by its id.
_VIEWS: weakref.WeakValueDictionary[str, NotebookView] = weakref.WeakValueDictionary()
#: What IPython calls the class whose objects are displayed as the job that they are.
_JOB = "nbparallel.client.job", "Job"


class NotebookView:
    """One output, replaced in place: a widget while the job runs, at the end what needs no kernel and no script.

    Made in the thread and cell that start the job, so that the output stands there; updates may come from any
    thread. It may be updated again after ``close``, when failed items are tried again.

    Args:
        kernel: the kernel that this process is.
        cancel: cancels the job.
        retry: runs the failed items again.
        now: the picture of any moment, by which a view that is over is closed before the cell ends, or the next
            job opens one; without it, only when the view thread gets to it.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        kernel: Any,
        cancel: Callable[[], object] | None = None,
        retry: Callable[[], object] | None = None,
        now: Callable[[], Snapshot] | None = None,
    ) -> None:
        settle()
        # Two threads may draw: the view thread, and the one that runs cells, by ``settle``.
        self._lock = threading.RLock()
        self._closed = False
        self._now = now
        self._kernel, self._asks = kernel, {"cancel": cancel, "retry": retry}
        self._live = has_front_end(kernel)
        self._widget: JobWidget | None = None
        self._due = LIVE_AFTER
        #: The cell in which the job was started; "" when unknown.
        self.cell = current_cell(kernel)
        #: Inside ``with output:`` an output cannot be replaced: the widget is there from the start, and stays.
        self._captured = self._live and is_captured(self.cell)
        if self._captured:
            self._make(snapshot)
        else:
            self._place = Place.take(self.cell, bundle(snapshot))
        _OPEN.add(self)
        _VIEWS[snapshot.id] = self
        _hook(getattr(kernel, "shell", None))

    def update(self, snapshot: Snapshot) -> None:
        """Draw the picture of this moment."""
        with self._lock:
            if self._closed:
                if self._now is not None and self._now().finished:
                    return  # an old picture, overtaken by ``settle``
                self._closed = False
                _OPEN.add(self)
            self._draw(snapshot)

    def close(self, snapshot: Snapshot) -> None:
        """Leave the summary in the place of the widget."""
        with self._lock:
            if not self._closed:
                self._closed = True
                _OPEN.discard(self)
                self._finish(snapshot)

    def settle(self) -> None:
        """Close the view now when its job is over."""
        with self._lock:
            if not self._closed and self._now is not None and (snapshot := self._now()).finished:
                self.close(snapshot)

    def _draw(self, snapshot: Snapshot) -> None:
        if self._widget is not None:
            if self._widget.ended and not self._captured:
                self._show_live(self._widget, snapshot)
            self._widget.show(snapshot)
        elif snapshot.elapsed >= self._due:
            self._due = snapshot.elapsed + STATIC_SECONDS
            if self._live:
                self._show_live(self._make(snapshot), snapshot)
            else:
                self._place.show(bundle(snapshot))

    def _finish(self, snapshot: Snapshot) -> None:
        if self._captured:
            pass
        elif is_short(snapshot):
            self._place.leave(snapshot)
        else:
            offers = snapshot.failed and self._asks["retry"]
            self._place.show(bundle(snapshot, self._widget.view if self._widget and offers else ""))
        if self._widget is not None:
            self._widget.end(snapshot, {} if self._captured else bundle(snapshot))

    def _make(self, snapshot: Snapshot) -> JobWidget:
        from .widget import JobWidget

        view = weakref.ref(self)

        def ask(what: str) -> None:  # widgets live in a registry: this one must not keep the job alive
            here = view()
            act = here._asks[what] if here is not None else None
            if act is not None:
                act()

        self._widget = widget = JobWidget(snapshot, ask, self._asks["retry"] is not None, self._kernel)
        weakref.finalize(self, widget.retire).atexit = False
        if self._captured:
            from IPython.display import display

            display(widget.mime(), raw=True)  # type: ignore[no-untyped-call]
        return widget

    def _show_live(self, widget: JobWidget, snapshot: Snapshot) -> None:
        # The static picture beside it is for a front end without widgets, and for what is saved in mid-run.
        self._place.show({**widget.mime(), **bundle(snapshot)})


def _hook(shell: Any) -> None:
    """Have IPython tell of the end of cells, and display jobs by their pictures; only once, however often called."""
    events, formatter = getattr(shell, "events", None), getattr(shell, "display_formatter", None)
    if events is not None:
        events.register("post_run_cell", _cell_ended)
    if formatter is not None:
        formatter.ipython_display_formatter.for_type_by_name(*_JOB, lambda job: _show_nothing(job, shell.kernel))
        formatter.mimebundle_formatter.for_type_by_name(*_JOB, lambda job: bundle(job.snapshot()))


def _show_nothing(job: Any, kernel: Any) -> None:
    """The value of a cell is not displayed when it is a job whose view is in the same cell."""
    view = _VIEWS.get(job.id)
    if view is None or view.cell != current_cell(kernel):
        raise NotImplementedError  # IPython goes on with the picture


def settle() -> None:
    """Close the views of all jobs that are over."""
    for view in list(_OPEN):
        view.settle()


def _cell_ended(*_: object) -> None:
    """Before the front end, or nbclient, is told that the cell has ended: it may not listen any longer."""
    settle()
    Place.settle()


def has_front_end(kernel: Any) -> bool:
    """Whether a person may be looking: nbclient, papermill and nbconvert cannot answer ``input``, and say so."""
    return bool(_request(kernel).get("content", {}).get("allow_stdin", True))


def current_cell(kernel: Any) -> str:
    """An id of the execution of the cell that runs, or "" when unknown."""
    return str(_request(kernel).get("header", {}).get("msg_id", ""))


def is_captured(cell: str) -> bool:
    """Whether what this cell displays goes to an ``Output`` widget."""
    module = sys.modules.get("ipywidgets.widgets.widget")
    instances = dict(getattr(module, "_instances", None) or {})
    # Only an Output has a ``msg_id``: that of the cell which it captures at this moment.
    return bool(cell) and any(getattr(widget, "msg_id", "") == cell for widget in instances.values())


def _request(kernel: Any) -> dict[str, Any]:
    try:
        return dict(kernel.get_parent("shell"))
    except Exception:  # an unusual kernel: then nothing is known
        return {}
