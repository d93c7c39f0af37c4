"""The tree of errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from nbparallel import errors
from nbparallel.errors import ItemError, NbparallelError, RemoteError

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, NbparallelError)]
ITEM_CLASSES = [cls for cls in CLASSES if issubclass(cls, ItemError)]
PLAIN_CLASSES = [cls for cls in CLASSES if not issubclass(cls, ItemError)]
COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(
        lambda error, p=protocol: pickle.loads(pickle.dumps(error, p))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ),
]


def test_all_names_every_error_in_order() -> None:
    """``__all__`` is sorted and holds every class of the tree and nothing else."""
    assert errors.__all__ == sorted(cls.__name__ for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_described(cls: type[NbparallelError]) -> None:
    """Every class has a docstring of its own and stands in the module's tree."""
    assert "__doc__" in vars(cls)
    assert cls.__doc__
    assert errors.__doc__ is not None
    assert f" {cls.__name__} " in errors.__doc__.replace("\n", " ")


@pytest.mark.parametrize("clone", COPIES)
@pytest.mark.parametrize("cls", PLAIN_CLASSES)
def test_plain_errors_survive_copying(cls: type[NbparallelError], clone: Callable[[Any], Any]) -> None:
    """A plain error keeps its type, text and attributes in a copy and over a pickle."""
    error = cls("what was wrong")
    error.extra = [1]  # type: ignore[attr-defined]
    again = clone(error)
    assert type(again) is cls
    assert str(again) == "what was wrong"
    assert vars(again) == vars(error)


@pytest.mark.parametrize("clone", COPIES)
@pytest.mark.parametrize("cls", ITEM_CLASSES)
def test_item_errors_survive_copying_with_all_fields(cls: type[ItemError], clone: Callable[[Any], Any]) -> None:
    """An item error keeps every field in a copy and over a pickle, the user's exception included."""
    error = cls("boom", 3, "7", "mod.Odd", "Traceback ...", "host:12", 2, ValueError("odd"))
    again = clone(error)
    assert type(again) is cls
    assert str(again) == str(error) == "item 3 (7): boom"
    fields = {**vars(error)}
    exception = fields.pop("exception")
    others = {**vars(again)}
    assert repr(others.pop("exception")) == repr(exception)
    assert others == fields
    assert again.__cause__ is again.exception


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RemoteError("boom"), "item: boom"),
        (RemoteError("boom", index=0), "item 0: boom"),
        (RemoteError("boom", item="x"), "item (x): boom"),
    ],
)
def test_item_error_says_what_it_knows(error: ItemError, text: str) -> None:
    """The text names index and item as far as they are known."""
    assert str(error) == text


def test_builtin_families() -> None:
    """Errors can be caught as the built-in kind of error that they are."""
    assert issubclass(errors.UsageError, ValueError)
    assert issubclass(errors.SerializationError, errors.UsageError)
    assert issubclass(errors.ItemTimeout, TimeoutError)
    assert issubclass(errors.ResultNotReady, TimeoutError)
