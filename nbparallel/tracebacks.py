"""Is asked by IPython how to show an error; hands it the user's frames, those on the worker too, and none of ours."""

from __future__ import annotations

import ast
import contextlib
import functools
import linecache
import re
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["RemoteTraceback", "attach", "cell_name", "render", "with_cells"]

_PACKAGE = __name__.partition(".")[0]
_HEAD = "Traceback (most recent call last):"
_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (.+)\n(?:    (.+)\n)?', re.MULTILINE)


class RemoteTraceback(Exception):
    """Stands as the cause of an exception that a worker raised; its text is where, and the traceback there."""

    def __str__(self) -> str:
        # On a line of its own, so that the traceback's lines stay aligned.
        return "".join(f"\n{part}" for part in self.args)


def attach(error: BaseException, first: Callable[[], None] | None = None) -> None:
    """Have IPython show an exception of whatever class by ``render``; elsewhere nothing happens.

    Args:
        first: is called when IPython begins to show it, so when nobody caught it: rendering takes its time.
    """
    if _shell() is not None and not hasattr(error, "_render_traceback_"):
        show = _render_last if first is None else functools.partial(_render_last, first)
        with contextlib.suppress(AttributeError, TypeError):  # a class that takes no attributes is shown in full
            error._render_traceback_ = show  # type: ignore[attr-defined]


def render(error: BaseException) -> list[str]:
    """What IPython prints for an error: its traceback without our frames, followed by the frames on the worker."""
    text = where = ""
    if isinstance(error.__cause__, RemoteTraceback):
        where, text = error.__cause__.args
    elif getattr(error, "traceback", ""):  # an ItemError
        text = str(getattr(error, "traceback", ""))
    frames = _frames(text)
    frame = _chain(_mine(error.__traceback__) + frames)
    cause, suppressed = error.__cause__, error.__suppress_context__
    try:
        if frames:
            error.__cause__ = None
        elif text:
            error.__cause__ = RemoteTraceback(where, text)
        lines: list[str] = _shell().InteractiveTB.structured_traceback(type(error), error, frame)
    finally:
        error.__cause__, error.__suppress_context__ = cause, suppressed
    if where and frames and not hasattr(error, "add_note"):  # Python 3.10
        lines.append(f"raised for {where}")
    return lines


def cell_name(file: str) -> str:
    """What the notebook calls the cell that IPython keeps under this file name: ``Cell In[3]``; "" for a file."""
    label_of = getattr(getattr(_shell(), "compile", None), "format_code_name", None)
    label = None if label_of is None else label_of(file)
    return " ".join(label) if label else ""


def with_cells(text: str) -> str:
    """A traceback in which cells have their names in place of files."""

    def named(match: re.Match[str]) -> str:
        cell = cell_name(match[1])
        return f"{cell}," if cell else match[0]

    return re.sub(r'File "([^"\n]+)",', named, text)


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None


def _render_last(first: Callable[[], None] | None = None) -> list[str]:
    """``render``, of what IPython is about to show: an exception's attribute that needs no reference to it."""
    if first is not None:
        first()
    error = sys.exc_info()[1] or getattr(sys, "last_value", None)
    assert error is not None
    return render(error)


_Frame = tuple[Any, int, int]


def _mine(traceback: TracebackType | None) -> list[_Frame]:
    """The frames of a traceback that are not this package's."""
    found = []
    while traceback is not None:
        if str(traceback.tb_frame.f_globals.get("__name__")).partition(".")[0] != _PACKAGE:
            found.append((traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno))
        traceback = traceback.tb_next
    return found


def _frames(text: str) -> list[_Frame]:
    """Frames that look like those of a worker's traceback; none when that cannot be had with the sources of here."""
    found = _FRAME.findall(text)
    if text.count(_HEAD) != 1 or len(found) != len(re.findall(r"^  (?:File |\[|\| )", text, re.MULTILINE)):
        return []  # chained, grouped or shortened: the text says more
    frames = []
    for file, line, name, source in found:
        if not source or linecache.getline(file, int(line)).strip() != source.strip():
            return []
        frames.append(_frame(file, int(line), name))
    return frames


def _frame(file: str, line: int, name: str) -> _Frame:
    first = _first_line(file, line, name)
    # Lines are counted from the first one of the function.
    code = compile("\n" * (line - first) + "raise LookupError", file, "exec")
    code = code.replace(co_name=name, co_firstlineno=first)
    if sys.version_info >= (3, 11):
        code = code.replace(co_qualname=name)
    try:
        exec(code, {"__name__": "__main__"})
    except LookupError as error:
        made = error.__traceback__
    while made is not None and made.tb_next is not None:
        made = made.tb_next
    assert made is not None
    return made.tb_frame, made.tb_lasti, line


def _first_line(file: str, line: int, name: str) -> int:
    """Where the function begins whose line this is: IPython shows no line of another one."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return line
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    around = [node for node in functions if node.name == name and node.lineno <= line <= (node.end_lineno or 0)]
    return max((min([node, *node.decorator_list], key=_line).lineno for node in around), default=line)


def _line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.expr) -> int:
    return node.lineno


def _chain(frames: list[_Frame]) -> TracebackType | None:
    chained = None
    for frame, last, line in reversed(frames):
        chained = TracebackType(chained, frame, last, line)
    return chained
