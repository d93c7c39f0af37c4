"""Is given what items write, by the job's engine; shows it in a terminal or a log, line by line, as other programs do.

In a notebook the job's own output shows it instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from .view import kernel

__all__ = ["open_echo"]

#: Characters of a job that are shown; a log should not drown in one job's prints.
LIMIT = 200_000


def open_echo(
    progress: bool | str, soon: Callable[[Callable[[], None]], None]
) -> Callable[[list[tuple[int, str, str]]], None] | None:
    """What shows the output of a job, or None when nothing is to be shown.

    Args:
        progress: as for ``open_view``, which checked it.
        soon: has another thread call something: a terminal that is stopped must not stop the collector.
    """
    if progress in (False, "off") or kernel() is not None:
        return None
    echo = _Echo()
    return lambda entries: soon(lambda: echo.show(entries))


class _Echo:
    def __init__(self) -> None:
        self._left = LIMIT

    def show(self, entries: Sequence[tuple[int, str, str]]) -> None:
        if self._left <= 0 or sys.stderr is None:
            return
        lines = [
            f"[item {index}] {line}" for index, stream, text in entries if stream != "cut" for line in text.splitlines()
        ]
        shown = "\n".join(lines)[: self._left]
        self._left -= len(shown)
        if self._left <= 0:
            shown += "\n[no more is shown here; the rest is in job.output]"
        tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
        if tqdm is not None and getattr(tqdm, "_instances", None):  # bars make way for the lines
            from .terminal import _bar_type

            _bar_type().write("\r" + shown, file=sys.stderr)
        else:
            print(shown, file=sys.stderr, flush=True)
