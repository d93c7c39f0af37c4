"""The words for what cannot be pickled, and for what is large."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from nbparallel import culprit, pickling
from nbparallel.errors import SerializationError

LOCK = threading.Lock()


class Model:
    """Holds a lock."""

    def __init__(self, **attributes: Any) -> None:
        self.lock = threading.Lock()
        vars(self).update(attributes)

    def predict(self, x: int) -> int:
        """Do nothing."""
        return x


class Slotted:
    """Holds a lock in a slot."""

    __slots__ = ("lock", "unset")

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Stubborn:
    """Refuses in its own words."""

    def __reduce__(self) -> Any:
        raise RuntimeError("I stay here\nfor ever")


class Wordless:
    """Refuses with an exception whose text fails."""

    def __reduce__(self) -> Any:
        class Silent(Exception):
            def __str__(self) -> str:
                raise ValueError

        raise Silent


class Endless:
    """Is never done."""

    def __reduce__(self) -> Any:
        return list, ([Endless()],)


class Hungry:
    """Takes all memory."""

    def __reduce__(self) -> Any:
        raise MemoryError


def _closure(value: Any) -> Callable[[int], Any]:
    def simulate(x: int) -> Any:
        return value, x

    return simulate


def _default(x: int, lock: Any = LOCK) -> None: ...


def _keyword(x: int, *, lock: Any = LOCK) -> None: ...


def _global(x: int) -> Any:
    return [LOCK for _ in range(x)]


def _attributed(x: int) -> None: ...


vars(_attributed)["lock"] = LOCK


def _module() -> ModuleType:
    module = ModuleType("made_here")
    module.lock = LOCK  # type: ignore[attr-defined]
    return module


class WithLock:
    """Holds a lock on the class."""

    lock = LOCK


LOCKED = "is a _thread.lock, which cannot be pickled."


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_closure(LOCK), f"cannot pickle the function 'simulate': its closure variable 'value' {LOCKED}"),
        (_closure(Model()), f"its closure variable 'value' → attribute 'lock' {LOCKED}"),
        (_closure(Slotted()), f"closure variable 'value' → attribute 'lock' {LOCKED}"),
        (_closure([1, {"a": (2, LOCK)}]), f"'value' → element 1 → value at 'a' → element 1 {LOCKED}"),
        (_closure(_closure(LOCK)), f"its closure variable 'value' → closure variable 'value' {LOCKED}"),
        (_closure({LOCK: 1}), f"'value' → key of type _thread.lock {LOCKED}"),
        (_closure({(1,): LOCK}), f"'value' → value at a key of type tuple {LOCKED}"),
        (_closure(frozenset([LOCK])), f"'value' → element {LOCKED}"),
        (_closure(_module()), f"'value' → global 'lock' {LOCKED}"),
        (_closure(WithLock), f"'value' → attribute 'lock' {LOCKED}"),
        (_default, f"its default of 'lock' {LOCKED}"),
        (_keyword, f"its default of 'lock' {LOCKED}"),
        (_global, f"its global 'LOCK' {LOCKED}"),
        (_attributed, f"its attribute 'lock' {LOCKED}"),
        (functools.partial(print, 1, LOCK), f"the function 'partial': its argument 2 {LOCKED}"),
        (functools.partial(print, sep=LOCK), f"its argument 'sep' {LOCKED}"),
        (functools.partial(_closure(LOCK), 1), f"its function → closure variable 'value' {LOCKED}"),
        (Model().predict, f"the function 'Model.predict': its object → attribute 'lock' {LOCKED}"),
        (_closure(iter(x for x in ())), "is a generator, which cannot be pickled. Pass a list"),
        (_closure(Stubborn()), "Stubborn, which cannot be pickled (RuntimeError: I stay here)."),
        (_closure(Wordless()), "Wordless, which cannot be pickled (Silent: )."),
        (_closure(Hungry()), "'simulate': that takes more memory than there is."),
    ],
)
def test_function_and_path_are_named(
    function: Any, expected: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The message names the function, the path to what cannot be pickled, and its type."""
    # As if this file lay beside a notebook, and the functions were those of its cells.
    monkeypatch.chdir(request.path.parent)
    with pytest.raises(SerializationError) as caught:
        pickling.dump_function(function)
    assert expected in str(caught.value)
    assert caught.value.__cause__ is not None


def test_endless_reduce_and_deep_nesting_are_named() -> None:
    """Whatever nests too deeply is said to."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="item 3: it is nested too deeply"):
        pickling.dump(deep, "item 3")
    with pytest.raises(SerializationError, match="or its __reduce__ never ends"):
        pickling.dump(Endless())


def test_object_itself() -> None:
    """When no part is to blame the object itself is named."""
    with pytest.raises(SerializationError, match=r"cannot pickle item 3: it is a _thread.lock, which cannot"):
        pickling.dump(LOCK, "item 3")
    with pytest.raises(SerializationError, match=r"it is an .*Event|its attribute '_cond'"):
        pickling.dump(threading.Event(), "item 3")


def test_cycles_end() -> None:
    """Objects that refer to themselves are searched once."""
    loop: list[Any] = [LOCK]
    loop.insert(0, loop)
    with pytest.raises(SerializationError, match=r"its element 1 is a _thread\.lock"):
        pickling.dump(loop)


def test_long_lists_are_searched_to_the_end() -> None:
    """The culprit is found behind thousands of good neighbours."""
    with pytest.raises(SerializationError, match="element 20000 is a _thread"):
        pickling.dump([*range(20_000), LOCK])


def test_search_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is up the message names what was found so far."""
    monkeypatch.setattr(culprit, "MAX_SECONDS", -1)
    with pytest.raises(SerializationError, match="cannot pickle the list: it is a list, which"):
        pickling.dump([LOCK], "the list")


def test_search_depth_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path has a longest length."""
    monkeypatch.setattr(culprit, "MAX_DEPTH", 2)
    with pytest.raises(SerializationError, match="its element 0 → element 0 is a list"):
        pickling.dump([[[[LOCK]]]])


def test_largest_parts() -> None:
    """The three largest parts come first; what is small or cannot be measured is left out."""

    class Array:
        nbytes = 500

    def measure(part: Any) -> int:
        if isinstance(part, str):
            raise ValueError
        return len(part)

    function = functools.partial(print, b"x" * 100, b"y" * 300, b"z" * 200, b"s", "text", Array())
    found = culprit.largest(function, measure, 100)
    assert [(label, size) for label, _, size in found] == [
        ("argument 6", 500),
        ("argument 2", 300),
        ("argument 3", 200),
    ]
    assert found[1][1] == "bytes"
