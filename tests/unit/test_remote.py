"""Errors on their way from a worker to the notebook."""

from __future__ import annotations

import asyncio
import builtins
import dataclasses
import linecache
import pickle
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nbparallel import pickling, remote
from nbparallel.errors import ItemError, ItemTimeout, RemoteError, SerializationError, WorkerCrashed, WorkerLost
from nbparallel.model import ErrorRecord
from nbparallel.remote import RemoteTraceback, capture, rebuild, short_repr, to_raise


def _caught(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def _travel(error: BaseException, kind: str = "raised") -> ItemError:
    return rebuild(capture(error, kind, "7"), 3, "host:12", 1)


class TwoArguments(Exception):
    """Its constructor takes other arguments than it hands on."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Rewrites(Exception):
    """Its constructor changes the text, each time."""

    def __init__(self, code: object) -> None:
        super().__init__(f"code {code}")
        self.code = code


class KeywordOnly(Exception):
    """Its constructor takes keywords only."""

    def __init__(self, *, code: int) -> None:
        super().__init__("coded")
        self.code = code


class HoldsALock(Exception):
    """Has an attribute that cannot be pickled, and one that can."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()
        self.code = 5


class BrokenText(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


class Hopeless(Exception):
    """Cannot be pickled in any way."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())


class Impostor(Exception):
    """Becomes something else over a pickle."""

    def __new__(cls, *args: Any) -> Any:
        if args == ("again",):
            raise KeyError
        return super().__new__(cls, *args)

    def __init__(self) -> None:
        super().__init__("again")

    def __reduce__(self) -> Any:
        return ValueError, ("again",)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("odd"),
        KeyError(3),
        ValueError(),
        FileNotFoundError(2, "No such file", "data.csv"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        TwoArguments(5, "five"),
        Rewrites(5),
        KeywordOnly(code=5),
        HoldsALock("locked"),
        BrokenText(),
        SerializationError("no"),
        RemoteError("inner", index=2),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_are_rebuilt(error: Exception) -> None:
    """Exceptions of all kinds of classes come back with type, text, arguments and what attributes can travel."""
    item_error = _travel(error)
    again = item_error.exception
    assert type(item_error) is RemoteError
    assert type(again) is type(error)
    assert again.args == error.args
    if not isinstance(error, BrokenText):
        assert str(again) == str(error)
    attributes = {name: value for name, value in vars(error).items() if name != "lock"}
    assert vars(again) == attributes
    raised = to_raise(item_error)
    assert type(raised) is type(error)
    assert raised is not again


@pytest.mark.parametrize("error", [Hopeless(), Impostor()], ids=lambda error: type(error).__name__)
def test_what_cannot_be_rebuilt_becomes_a_remote_error(error: Exception) -> None:
    """Otherwise a ``RemoteError`` names the type, and shows the remote traceback."""
    item_error = _travel(error)
    assert item_error.exception is None
    assert item_error.type_name.endswith(type(error).__name__)
    raised = to_raise(item_error)
    assert type(raised) is RemoteError
    assert "item 3 (7) on host:12" in str(raised.__cause__)


def test_exception_that_cannot_be_loaded_here() -> None:
    """Bytes that do not load in the client are let go."""
    record = ErrorRecord("raised", "mod.Odd", "boom", "7", "Traceback", pickling.dump(1)[:-1])
    assert rebuild(record, 3).exception is None
    assert str(rebuild(record, 3)) == "item 3 (7): mod.Odd: boom"
    assert rebuild(record._replace(pickled=pickling.dump("text")), 3).exception is None


def test_large_exceptions_stay_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception with much data travels as text."""
    record = capture(ValueError("x" * 2_000_000), "raised", "7")
    assert record.pickled == b""
    assert len(record.message) < 5_000
    assert len(record.traceback) < 65_000
    assert "characters left out" in record.message
    assert record.traceback.endswith("xxx\n")


def test_notes_travel() -> None:
    """Notes are in the text and on the rebuilt exception."""
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no notes")
    error = ValueError("odd")
    error.add_note("look at the units")
    record = capture(error, "raised", "7")
    assert "look at the units" in record.traceback
    again = to_raise(rebuild(record, 3, "host:12"))
    assert again.__notes__ == ["look at the units", "raised for item 3 (7) on host:12"]


def _chain() -> None:
    try:
        {}[3]  # type: ignore[index]
    except KeyError as error:
        raise ValueError("outer") from error


def test_causes_are_in_the_text() -> None:
    """The traceback shows the chain of causes with its source lines."""
    text = capture(_caught(_chain), "raised", "7").traceback
    assert "KeyError: 3" in text
    assert "{}[3]" in text
    assert "direct cause" in text
    assert text.rstrip().endswith("ValueError: outer")


def test_groups_travel() -> None:
    """Exception groups show their members, and are rebuilt."""
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no groups")
    cls = builtins.ExceptionGroup
    group = cls("several", [ValueError("one"), TypeError("two")])
    record = capture(group, "raised", "7")
    assert "ValueError: one" in record.traceback
    again = rebuild(record, 3).exception
    assert isinstance(again, cls)
    assert [str(member) for member in again.exceptions] == ["one", "two"]


def test_own_frames_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback starts at the user's function; frames of ours below his stay."""
    monkeypatch.setattr(remote, "_PACKAGE", "/ours/")
    namespace: dict[str, Any] = {}
    exec(compile("def load(): 1 / 0", "/ours/deep.py", "exec"), namespace)
    exec(compile("def user(): load()", "/users/cell.py", "exec"), namespace)
    outer = "def run():\n    try: user()\n    except Exception as error: return error\n"
    exec(compile(outer, "/ours/outer.py", "exec"), namespace)
    text = capture(namespace["run"](), "raised", "7").traceback
    assert "outer.py" not in text
    assert text.index("cell.py") < text.index("deep.py")


def test_lines_of_a_cell_are_shown() -> None:
    """The text holds the source lines of notebook cells."""
    source = "def simulate(x):\n    return 1 // x\n"
    linecache.cache["<cell 5>"] = len(source), None, source.splitlines(keepends=True), "<cell 5>"
    namespace: dict[str, Any] = {}
    exec(compile(source, "<cell 5>", "exec"), namespace)
    try:
        assert "    return 1 // x\n" in capture(_caught(lambda: namespace["simulate"](0)), "raised", "7").traceback
    finally:
        del linecache.cache["<cell 5>"]


def test_deep_recursion_is_bounded() -> None:
    """A recursion error gives a short text."""

    def f() -> None:
        f()

    record = capture(_caught(f), "raised", "7")
    assert record.type_name == "RecursionError"
    assert len(record.traceback) < 10_000
    assert "repeated" in record.traceback


def test_broken_tracebacks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the traceback cannot be formatted type and message remain."""
    monkeypatch.setattr(traceback.TracebackException, "from_exception", lambda *_: 1 / 0)
    assert capture(ValueError("odd"), "raised", "7").traceback == "ValueError: odd\n"


@pytest.mark.parametrize(
    ("kind", "cls", "text"),
    [
        ("raised", RemoteError, "ValueError: odd"),
        ("result", RemoteError, "ValueError: odd"),
        ("item", RemoteError, "the worker could not unpickle the item: ValueError: odd"),
        ("interrupted", RemoteError, "interrupted: ValueError: odd"),
        ("timeout", ItemTimeout, "odd"),
        ("crashed", WorkerCrashed, "odd"),
        ("lost", WorkerLost, "odd"),
    ],
)
def test_kinds_become_classes(kind: str, cls: type[ItemError], text: str) -> None:
    """Each kind of record has its class and words; only what the user's code raised is raised as such."""
    error = rebuild(capture(ValueError("odd"), kind, "7"), 3, "host:12", 2)
    assert type(error) is cls
    assert str(error) == f"item 3 (7): {text}"
    assert (error.index, error.item, error.worker, error.attempts) == (3, "7", "host:12", 2)
    assert (error.exception is not None) == (kind in ("raised", "result"))
    assert type(to_raise(error)) is (ValueError if error.exception else cls)


def test_text_without_message() -> None:
    """An exception without text is called by its type."""
    assert str(_travel(ValueError())) == "item 3 (7): ValueError"


def test_what_is_raised_shows_everything() -> None:
    """The user sees his own exception, with the remote traceback as its cause, and where it came from."""
    error = _travel(_caught(_chain))
    raised = _caught(lambda: _raise(to_raise(error)))
    text = "".join(traceback.format_exception(type(raised), raised, raised.__traceback__))
    assert type(raised) is ValueError
    assert "\nitem 3 (7) on host:12\nTraceback (most recent call last):\n" in text
    assert text.index("KeyError: 3") < text.index("in _raise") < text.rindex("ValueError: outer")
    assert text.count("host:12") == (2 if sys.version_info >= (3, 11) else 1)


def _raise(error: BaseException) -> None:
    raise error


def test_attempts_are_told() -> None:
    """More than one attempt is said."""
    error = rebuild(capture(ValueError("odd"), "raised", ""), 3, "host:12", 2)
    assert "item 3 on host:12, attempt 2" in str(to_raise(error).__cause__)


@pytest.mark.parametrize("error", [ValueError("odd"), Hopeless()], ids=["own", "remote"])
def test_each_raise_is_fresh(error: Exception) -> None:
    """Raising twice accumulates neither frames nor notes, and leaves the item error as it was."""
    item_error = _travel(error)
    one, two = (_caught(lambda: _raise(to_raise(item_error))) for _ in range(2))
    assert one is not two
    assert [len(traceback.extract_tb(each.__traceback__)) for each in (one, two)] == [3, 3]
    assert getattr(one, "__notes__", None) == getattr(two, "__notes__", None)
    assert item_error.__traceback__ is None
    assert item_error.__cause__ is item_error.exception
    assert not hasattr(item_error.exception, "__notes__")


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
        StopIteration(5),
        StopAsyncIteration(),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_that_steer_the_caller_are_not_raised(error: BaseException) -> None:
    """What would end the caller's own loop, task or process comes as a ``RemoteError``, with its traceback."""
    item_error = _travel(_caught(lambda: _raise(error)))
    raised = to_raise(item_error)
    assert type(raised) is RemoteError
    assert type(error).__name__ in str(raised)
    assert "in _raise" in str(raised.__cause__)


def test_item_errors_without_traceback() -> None:
    """A crash has no traceback: the error stands alone."""
    error = rebuild(ErrorRecord("crashed", "WorkerCrashed", "killed by signal 9", "7", ""), 3)
    raised = to_raise(error)
    assert raised is not error
    assert str(raised) == "item 3 (7): killed by signal 9"
    assert raised.__cause__ is None


def test_remote_traceback_survives_pickling() -> None:
    """The cause can be pickled like the exception it belongs to."""
    again = pickle.loads(pickle.dumps(RemoteTraceback("text")))
    assert str(again) == "\ntext"
    assert str(RemoteTraceback()) == ""


@dataclasses.dataclass
class Point:
    """Has a generated repr."""

    x: int
    y: Any
    hidden: int = dataclasses.field(default=0, repr=False)


@dataclasses.dataclass
class OwnRepr:
    """Has a repr of its own."""

    x: int

    def __repr__(self) -> str:
        return "mine"


class Broken:
    """Its repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError


class Shapeless:
    """Its attributes fail."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError


class MyList(list[Any]):
    """A list of the user's."""


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        (7, "7"),
        (None, "None"),
        (True, "True"),
        ("a\nb", r"'a\nb'"),
        ([1, "x"], "[1, 'x']"),
        ((1,), "(1,)"),
        ({"a": {"b": 1}}, "{'a': {'b': 1}}"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, ...]"),
        (set(range(100)), "{0, 1, 2, 3, 4, 5, ...}"),
        (dict.fromkeys(range(100)), "{0: None, 1: None, 2: None, 3: None, 4: None, 5: None, ...}"),
        (range(10**9), "range(0, 1000000000)"),
        (MyList(range(100)), "<MyList of 100>"),
        (MyList([1]), "[1]"),
        (OrderedDict.fromkeys(range(100)), "<OrderedDict of 100>"),
        (Pair(1, 2), "Pair(a=1, b=2)"),
        (deque([1, 2]), "deque([1, 2])"),
        (10**5000, "<int of 16610 bits>"),
        (np.zeros((3, 4)), "array(shape=(3, 4), dtype=float64)"),
        (np.float64(3.5), repr(np.float64(3.5))),
        (pd.DataFrame({"a": [1, 2]}), "DataFrame(shape=(2, 1))"),
        (pd.Series([1, 2]), "Series(shape=(2,), dtype=int64)"),
        (Point(1, [2]), "Point(x=1, y=[2])"),
        (OwnRepr(1), "mine"),
        (Point, f"<class '{__name__}.Point'>"),
        (Shapeless(), "<Shapeless, whose repr failed>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_short_repr(obj: Any, text: str) -> None:
    """Common objects are shown as a reader would write them down."""
    assert short_repr(obj) == text


@pytest.mark.parametrize(
    "make", [list, tuple, set, frozenset, OrderedDict.fromkeys, dict.fromkeys, MyList, deque, Point]
)
def test_short_repr_of_huge_objects_is_quick(make: Callable[..., Any]) -> None:
    """Size does not matter."""
    obj = make(range(300_000)) if make is not Point else Point(1, list(range(300_000)))
    start = time.perf_counter()
    assert len(short_repr([obj])) <= 80
    assert time.perf_counter() - start < 0.02


@pytest.mark.parametrize("obj", ["x" * 10**6, b"x" * 10**6, ["x" * 99] * 99, {"k" * 200: "v" * 200}])
def test_short_repr_is_short(obj: Any) -> None:
    """The text keeps to its limit and to one line."""
    for limit in (10, 80):
        text = short_repr(obj, limit)
        assert len(text) <= limit
        assert "\n" not in text


def test_broken_repr_does_not_matter() -> None:
    """A repr that fails is replaced by the type's name."""
    assert "Broken" in short_repr(Broken())
    assert "Broken" in short_repr([Broken()])
