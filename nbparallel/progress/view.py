"""Is asked by the api for a view of a job; hands back the one that fits where the program runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import UsageError
from ..model import Snapshot

__all__ = ["View", "open_view"]


class View(Protocol):
    """What draws a job. One thread calls it, at most ten times a second; ``close`` comes at the end.

    When failed items are tried again after that, it is updated and closed once more.
    """

    def update(self, snapshot: Snapshot) -> None:
        """Draw the picture of this moment."""

    def close(self, snapshot: Snapshot) -> None:
        """Draw the final picture."""


def open_view(
    progress: bool | str,
    snapshot: Snapshot,
    cancel: Callable[[], object] | None = None,
    retry: Callable[[], object] | None = None,
    now: Callable[[], Snapshot] | None = None,
) -> View | None:
    """The view for a new job, or None when nothing is to be shown.

    Call it in the thread and cell that start the job: a notebook shows the view there.

    Args:
        progress: "auto", True ("on") or False ("off").
        snapshot: the job as it is now.
        cancel: cancels the job; never blocks, may be called from any thread, any number of times.
        retry: runs the failed items of the ended job again; the same holds. Afterwards the view is updated and
            closed once more.
        now: the picture of any moment, by which a notebook knows that a job is over before its view is closed.

    Raises:
        UsageError: ``progress`` is something else.
    """
    wanted = {True: "on", False: "off"}.get(progress, progress) if isinstance(progress, bool) else progress
    if wanted not in ("auto", "on", "off"):
        raise UsageError(f'progress must be "auto", True ("on") or False ("off"), not {progress!r}')
    if wanted == "off":
        return None
    here = kernel()
    if here is not None:
        from .notebook import NotebookView

        return _Guarded(lambda: NotebookView(snapshot, here, cancel, retry, now), snapshot)
    from .terminal import LineView, TerminalView

    if sys.stderr is not None and sys.stderr.isatty():
        return _Guarded(lambda: TerminalView(delay=0.0 if wanted == "on" else TerminalView.DELAY_SECONDS), snapshot)
    return _Guarded(LineView, snapshot) if wanted == "on" else None


def kernel() -> Any:
    """The Jupyter kernel that this process is, or None; never imports IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None)


class _Guarded:
    """A view that cannot hurt the job: when it fails to draw, it is reported once and dropped."""

    def __init__(self, make: Callable[[], View], snapshot: Snapshot) -> None:
        self._view: View | None = None
        self._attempt(lambda _: self._open(make), snapshot)

    def update(self, snapshot: Snapshot) -> None:
        if self._view is not None:
            self._attempt(self._view.update, snapshot)

    def close(self, snapshot: Snapshot) -> None:
        if self._view is not None:
            self._attempt(self._view.close, snapshot)

    def _open(self, make: Callable[[], View]) -> None:
        self._view = make()

    def _attempt(self, draw: Callable[[Snapshot], None], snapshot: Snapshot) -> None:
        try:
            draw(snapshot)
        except Exception as error:
            self._view = None
            warnings.warn(
                f"the progress view of {snapshot.name!r} failed and is dropped; the job goes on: {error!r}",
                RuntimeWarning,
                stacklevel=2,
            )
