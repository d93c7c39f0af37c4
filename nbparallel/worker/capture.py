"""Catches what the user's function prints, logs and warns: adds it to the running chunk, whose reports carry it.

Only while an item runs; all else goes where it always went. Whoever prints nothing pays nothing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from . import slot as slots

__all__ = ["LIMIT", "Capture", "Entry", "Written", "merged"]

#: Characters that a chunk may write between two reports; what comes then is counted, not kept.
LIMIT = 100_000
#: Stream name of an entry whose text is the number of characters that were cut.
CUT = "cut"

Entry = tuple[int, str, str]


class Written(Protocol):
    """A running chunk, as far as output is concerned."""

    lo: int
    values: list[Any]

    def write(self, entry: Entry) -> None:
        """Take in what an item wrote; may be called by any thread."""


class Capture:
    """Stands in for this process's output streams, log and warnings.

    Args:
        running: the chunk that runs now, or None.
        words: of the process's slot, which tell whether an item runs.
    """

    def __init__(self, running: Callable[[], Written | None], words: Sequence[int]) -> None:
        self._running, self._words = running, words
        self._show_warning = warnings.showwarning

    def install(self) -> None:
        """From now on, catch; once in a process."""
        sys.stdout = _Stream(self, "stdout", sys.stdout)
        sys.stderr = _Stream(self, "stderr", sys.stderr)
        handler = _LogHandler(self)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        warnings.showwarning = self._warn

    def write(self, stream: str, text: str) -> bool:
        """Add a text to what the running item wrote; False when none runs."""
        run = self._running()
        if run is None or self._words[slots.INDEX] < 0:
            return False
        # Also in the midst of a batch, which grows item by item.
        run.write((run.lo + len(run.values), stream, text))
        return True

    def _warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if file is not None or not self.write("warning", f"{category.__name__}: {message}\n"):
            self._show_warning(message, category, filename, lineno, file, line)


class _Stream(io.TextIOBase):
    """What ``print`` writes to; everything else about the stream is that of the original one."""

    def __init__(self, capture: Capture, name: str, original: Any) -> None:
        self._capture, self._name, self._original = capture, name, original

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text and not self._capture.write(self._name, text) and self._original is not None:
            self._original.write(text)
        return len(text)

    def flush(self) -> None:
        if self._original is not None:
            self._original.flush()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """The process's own stream stays open."""

    def fileno(self) -> int:
        if self._original is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._original.fileno())

    @property
    def buffer(self) -> Any:
        """Where bytes are written; those are not caught."""
        return self._original.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._original, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return getattr(self._original, "errors", None)


class _LogHandler(logging.Handler):
    def __init__(self, capture: Capture) -> None:
        super().__init__()
        self._capture = capture

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a broken log message is no reason to fail
            self._capture.write("log", self.format(record) + "\n")


def merged(entries: Iterable[Entry], cut: int = 0) -> list[Entry]:
    """The entries with consecutive writes of an item joined, and what was cut of them as the last one.

    >>> merged([(0, "stdout", "a"), (0, "stdout", "\\n"), (1, "stdout", "b")])
    [(0, 'stdout', 'a\\n'), (1, 'stdout', 'b')]
    """
    found: list[tuple[int, str, list[str]]] = []
    for index, stream, text in entries:
        if found and found[-1][:2] == (index, stream):
            found[-1][2].append(text)
        else:
            found.append((index, stream, [text]))
    joined = [(index, stream, "".join(texts)) for index, stream, texts in found]
    if cut:
        joined.append((joined[-1][0] if joined else 0, CUT, str(cut)))
    return joined
