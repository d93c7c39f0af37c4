"""How IPython shows errors: the frames of a worker's traceback, made again here."""

from __future__ import annotations

import linecache
import traceback
from types import SimpleNamespace
from typing import Any

import pytest

import nbparallel.tracebacks
from nbparallel.errors import JobCancelled, RemoteError
from nbparallel.remote import to_raise
from nbparallel.tracebacks import RemoteTraceback, attach, cell_name, render, with_cells

SOURCE = "import math\n\n@print\ndef half(x):\n    x = x / 2\n    return math.sqrt(x)\n"
TEXT = (
    'Traceback (most recent call last):\n  File "/cell.py", line 6, in half\n    return math.sqrt(x)\n'
    "           ^^^^^^^^^^^^\nValueError: math domain error\n"
)


class Shell:
    """What is asked of IPython."""

    def __init__(self) -> None:
        self.InteractiveTB = self
        self.compile = SimpleNamespace(format_code_name=lambda file: ("Cell", "In[3]") if file == "/cell.py" else None)

    def structured_traceback(self, kind: type, error: BaseException, frames: Any) -> list[str]:
        """The frames, and why."""
        found = [f"{name.name}:{name.lineno}" for name in traceback.extract_tb(frames)]
        starts = [frame.f_code.co_firstlineno for frame, _ in traceback.walk_tb(frames)]
        return [*found, f"starts {starts[-1] if starts else None}", f"cause {error.__cause__!r}"]


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    """IPython is there, and knows the source of the cell."""
    shell = Shell()
    monkeypatch.setattr(nbparallel.tracebacks, "_shell", lambda: shell)
    monkeypatch.setitem(linecache.cache, "/cell.py", (len(SOURCE), None, SOURCE.splitlines(True), "/cell.py"))
    return shell


def remote(text: str = TEXT) -> BaseException:
    """What is raised for an item."""
    error = RemoteError("ValueError: odd", index=3, item="7", traceback=text, exception=ValueError("odd"))
    raised = to_raise(error)
    try:
        raise raised
    except ValueError as caught:
        return caught


#: The line of ``remote`` that raises.
HERE = remote.__code__.co_firstlineno + 5


def test_frames_of_the_worker_follow_those_of_the_cell() -> None:
    """The function's line is the last, in its function; the text is not shown once more, and still there afterwards."""
    error = remote()
    cause = error.__cause__
    assert error._render_traceback_ is not None  # type: ignore[attr-defined]
    assert render(error)[:4] == [f"remote:{HERE}", "half:6", "starts 3", "cause None"]
    assert error.__cause__ is cause


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("math.sqrt(x)", "math.sqrt(x + 1)"),  # another version of the cell
        TEXT.replace("/cell.py", "/elsewhere.py"),  # a file of the worker
        TEXT + "\nDuring handling of the above exception, another exception occurred:\n\n" + TEXT,
        TEXT.replace("ValueError", "  [Previous line repeated 990 more times]\nValueError"),
    ],
)
def test_a_traceback_that_cannot_be_made_again_is_text(text: str) -> None:
    """Where the sources differ, or the traceback has more than frames, the worker's own words are shown."""
    lines = render(remote(text))
    assert lines[0] == f"remote:{HERE}"
    assert "RemoteTraceback" in lines[-1]


def test_errors_that_stand_for_an_item_show_its_frames() -> None:
    """An ItemError that is raised by hand has the frames too."""
    assert render(RemoteError("odd", index=3, traceback=TEXT, exception=ValueError()))[0] == "half:6"


def test_our_own_frames_are_left_out() -> None:
    """What the engine called to raise is nobody's business."""
    space: dict[str, Any] = {"__name__": "nbparallel.client.job", "JobCancelled": JobCancelled}
    exec("def engine():\n    raise JobCancelled('cancelled')", space)
    with pytest.raises(JobCancelled) as caught:
        space["engine"]()
    names = [line.partition(":")[0] for line in caught.value._render_traceback_()]
    assert names[0] == "test_our_own_frames_are_left_out"
    assert "engine" not in names


def test_what_comes_first_is_called_when_the_error_is_shown() -> None:
    """Not when it is raised, nor when somebody catches it."""
    called: list[str] = []
    stop = KeyboardInterrupt()
    attach(stop, lambda: called.append("first"))
    with pytest.raises(KeyboardInterrupt) as caught:
        raise stop
    assert called == []
    try:
        raise caught.value
    except KeyboardInterrupt:
        lines = stop._render_traceback_()  # type: ignore[attr-defined]
    assert (called, lines[-1]) == (["first"], "cause None")


def test_nothing_is_attached_outside_of_ipython(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's exceptions are left as they are; so is a class that takes no attributes."""

    class Closed(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    attach(Closed())
    monkeypatch.setattr(nbparallel.tracebacks, "_shell", lambda: None)
    error = ValueError()
    attach(error)
    assert vars(error) == {}


def test_cells_have_their_names() -> None:
    """A traceback names cells as IPython does, and files as they are."""
    assert cell_name("/cell.py") == "Cell In[3]"
    assert cell_name("/other.py") == ""
    assert "  Cell In[3], line 6, in half" in with_cells(TEXT)
    assert with_cells('  File "/other.py", line 1') == '  File "/other.py", line 1'
    assert str(RemoteTraceback("where", "text")) == "\nwhere\ntext"
