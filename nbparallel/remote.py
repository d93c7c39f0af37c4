"""What went wrong with an item, as plain data in the worker, and as an exception again in the client.

Receives exceptions from the worker, which reports the records in its blocks; hands the client what to raise.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import reprlib
import traceback
from collections.abc import Callable
from typing import Any

from . import pickling
from .errors import ItemError, ItemTimeout, RemoteError, WorkerCrashed, WorkerLost
from .model import ErrorRecord
from .tracebacks import RemoteTraceback, attach

__all__ = ["capture", "rebuild", "short_repr", "to_raise"]

#: Longest message and traceback that travel, in characters, and largest pickled exception, in bytes.
MESSAGE_LIMIT = 4_000
TRACEBACK_LIMIT = 64_000
PICKLED_LIMIT = 1 << 20

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_KINDS: dict[str, type[ItemError]] = {"timeout": ItemTimeout, "crashed": WorkerCrashed, "lost": WorkerLost}


def capture(exc: BaseException, kind: str, item: str, *, local_by_value: bool = False) -> ErrorRecord:
    """An exception as plain data; never raises, whatever the exception is. Runs in the worker.

    Args:
        exc: what was raised.
        kind: see ``ErrorRecord``.
        item: short repr of the item.
        local_by_value: see ``pickling.dump``.
    """
    return ErrorRecord(
        kind=kind,
        type_name=_type_name(type(exc)),
        message=_cut(_safe_str(exc), MESSAGE_LIMIT),
        item=item,
        traceback=_cut(_format(exc), TRACEBACK_LIMIT),
        pickled=_encode(exc, local_by_value),
    )


def rebuild(record: ErrorRecord, index: int, worker: str = "", attempts: int = 1) -> ItemError:
    """The error that stands in an item's place, with the user's own exception when that can be rebuilt here."""
    kind = _KINDS.get(record.kind, RemoteError)
    message = record.message
    if kind is RemoteError:
        message = f"{record.type_name}: {message}" if message else record.type_name
        if record.kind == "item":
            message = f"the worker could not unpickle the item: {message}"
        elif record.kind == "interrupted":
            message = f"interrupted: {message}"
    return kind(
        message,
        index=index,
        item=record.item,
        type_name=record.type_name,
        traceback=record.traceback,
        worker=worker,
        attempts=attempts,
        exception=_decode(record.pickled) if record.kind in ("raised", "result") else None,
    )


def to_raise(error: ItemError) -> BaseException:
    """What to raise for a failed item: a fresh exception of the user's own type, or else of the item error's.

    Its cause shows the remote traceback, the item and the worker. An exception that means something to the caller's
    own loop (``StopIteration``, ``KeyboardInterrupt``, ``CancelledError``, ...) is not raised as such.
    """
    raised: BaseException | None = None
    if isinstance(error.exception, Exception) and not isinstance(error.exception, (StopIteration, StopAsyncIteration)):
        # A copy: an exception that is raised again keeps the frames of the first time.
        raised = _decode(_encode(error.exception, local_by_value=False))
    own = raised is not None
    if raised is None:
        raised = copy.copy(error)
    where = f"item {error.index}" + (f" ({error.item})" if error.item else "")
    where += f" on {error.worker}" if error.worker else ""
    where += f", attempt {error.attempts}" if error.attempts > 1 else ""
    if error.traceback:
        raised.__cause__ = RemoteTraceback(where, error.traceback.rstrip("\n") + "\n")
    elif not own:
        raised.__cause__ = error.exception
    if own and hasattr(raised, "add_note"):  # Python 3.11
        raised.add_note(f"raised for {where}")
    attach(raised)
    return raised


def _type_name(cls: type) -> str:
    module = cls.__module__
    return cls.__qualname__ if module in ("builtins", "__main__") else f"{module}.{cls.__qualname__}"


def _safe_str(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:
        return "<its __str__ failed>"


def _cut(text: str, limit: int) -> str:
    """The text, without its middle when it is too long."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


def _format(exc: BaseException) -> str:
    """The traceback from the user's own function on, with causes, groups and notes."""
    try:
        summary = traceback.TracebackException.from_exception(exc)
        _drop_own_frames(summary, set())
        return "".join(summary.format())
    except Exception:  # recursion, or a broken class
        return f"{_type_name(type(exc))}: {_safe_str(exc)}\n"


def _drop_own_frames(summary: traceback.TracebackException, seen: set[int]) -> None:
    if id(summary) in seen:
        return
    seen.add(id(summary))
    own = 0
    while own < len(summary.stack) and os.path.abspath(summary.stack[own].filename).startswith(_PACKAGE):
        own += 1
    del summary.stack[:own]
    for other in (summary.__cause__, summary.__context__, *(getattr(summary, "exceptions", None) or ())):
        if other is not None:
            _drop_own_frames(other, seen)


def _encode(exc: BaseException, local_by_value: bool) -> bytes:
    """The exception pickled so that it is known to load again, or ``b""``; cause and context stay behind."""
    forms: tuple[Callable[[], Any], ...] = (lambda: exc, lambda: _parts(exc, local_by_value))
    for form in forms:
        try:
            data = pickling.dump(form(), local_by_value=local_by_value)
            if len(data) <= PICKLED_LIMIT and _same(_decode(data), exc):
                return data
        except Exception:
            continue
    return b""


def _parts(exc: BaseException, local_by_value: bool) -> tuple[type, tuple[Any, ...], dict[str, Any]]:
    """What an exception is made of, without attributes that cannot travel; for classes that pickle cannot rebuild."""
    attributes = {name: value for name, value in vars(exc).items() if _loads(value, local_by_value)}
    return type(exc), exc.args, attributes


def _loads(value: Any, local_by_value: bool) -> bool:
    try:
        pickling.load(pickling.dump(value, local_by_value=local_by_value))
    except Exception:
        return False
    return True


def _same(loaded: BaseException | None, exc: BaseException) -> bool:
    # Some classes build a message in __init__ and do so again on load: then the text differs.
    return type(loaded) is type(exc) and _safe_str(loaded) == _safe_str(exc)


def _decode(pickled: bytes) -> BaseException | None:
    try:
        loaded = pickling.load(pickled) if pickled else None
        if isinstance(loaded, tuple):
            cls, args, attributes = loaded
            loaded = cls.__new__(cls, *args)  # not __init__: it may take other arguments
            loaded.args = args
            vars(loaded).update(attributes)
    except Exception:  # a class that cannot be imported here, or one with ideas of its own
        return None
    return loaded if isinstance(loaded, BaseException) else None


class _Repr(reprlib.Repr):
    """reprlib's, which reads only the beginning of containers; also for arrays, frames, dataclasses, subclasses."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxlong = self.maxother = limit

    def repr1(self, x: Any, level: int) -> str:
        cls = type(x)
        shape = getattr(x, "shape", None)
        if isinstance(shape, tuple) and shape:
            dtype = f", dtype={x.dtype}" if hasattr(x, "dtype") else ""
            name = "array" if cls.__name__ == "ndarray" else cls.__name__
            return f"{name}(shape={tuple(shape)}{dtype})"
        if isinstance(x, (str, bytes, bytearray)):
            x = x[: 2 * self.maxstring]
        elif isinstance(x, int) and x.bit_length() > 4 * self.maxlong:
            return f"<int of {x.bit_length()} bits>"
        elif isinstance(x, (dict, set, frozenset)) and len(x) > self.maxlist:
            # reprlib would sort the whole of it.
            return self.beginning(x, level) if cls in (dict, set, frozenset) else f"<{cls.__name__} of {len(x)}>"
        elif isinstance(x, (list, tuple)) and cls not in (list, tuple) and len(x) > self.maxlist:
            return f"<{cls.__name__} of {len(x)}>"
        elif dataclasses.is_dataclass(cls) and hasattr(cls.__repr__, "__wrapped__") and level > 0:
            names = [field.name for field in dataclasses.fields(x) if field.repr][: self.maxlist]
            return f"{cls.__name__}({', '.join(f'{name}={self.repr1(getattr(x, name), level - 1)}' for name in names)})"
        return super().repr1(x, level)

    def beginning(self, x: dict[Any, Any] | set[Any] | frozenset[Any], level: int) -> str:
        first = list(itertools.islice(x, self.maxlist if level > 0 else 0))
        shown = [self.repr1(key, level - 1) for key in first]
        if isinstance(x, dict):
            shown = [f"{key}: {self.repr1(x[name], level - 1)}" for key, name in zip(shown, first, strict=True)]
        return f"{{{', '.join([*shown, '...'])}}}"


def short_repr(obj: Any, limit: int = 80) -> str:
    """A repr of one line and at most ``limit`` characters; never raises, and is quick for huge containers."""
    try:
        text = " ".join(_Repr(limit).repr(obj).split())
    except Exception:
        text = f"<{type(obj).__name__}, whose repr failed>"
    return text if len(text) <= limit else text[: limit - 1] + "…"
