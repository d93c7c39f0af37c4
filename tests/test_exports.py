"""The public surface: few names, listed once, and nothing else."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import nbparallel
from nbparallel import errors

#: The public names. Whoever adds one here adds it to the README and the changelog too.
PUBLIC = [
    "Cluster",
    "Executor",
    "ForkJoin",
    "Job",
    "Pool",
    "RetryPolicy",
    "Shared",
    "Snapshot",
    "attach",
    "connect",
    "grid",
    "jobs",
    "load_ipython_extension",
    "pmap",
    "pstarmap",
    "sample",
    "share",
    "sweep",
    "unload_ipython_extension",
    "zipped",
]


def test_the_public_names_are_these() -> None:
    """A name becomes public on purpose, never by accident; the errors are public beside them."""
    assert sorted(set(nbparallel.__all__) - set(errors.__all__)) == PUBLIC


def test_the_list_is_sorted_and_has_no_doubles() -> None:
    """``__all__`` is a sorted list of different names."""
    assert list(nbparallel.__all__) == sorted(set(nbparallel.__all__))


@pytest.mark.parametrize("name", nbparallel.__all__)
def test_each_public_name_can_be_had(name: str) -> None:
    """Every name of ``__all__`` resolves, and what it gives has a docstring."""
    value = getattr(nbparallel, name)
    assert value is not None
    if callable(value):
        assert value.__doc__


def test_nothing_else_leaks() -> None:
    """``dir(nbparallel)`` in a fresh process shows the public names, and ours beside them start with ``_``."""
    code = "import nbparallel, json; print(json.dumps(dir(nbparallel)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = {name for name in json.loads(answer.stdout) if not name.startswith("_")}
    assert shown == {name for name in nbparallel.__all__ if not name.startswith("_")}


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name raises AttributeError that names it, as with any module."""
    with pytest.raises(AttributeError, match="pmapp"):
        nbparallel.pmapp


def test_a_star_import_gives_the_public_names() -> None:
    """``from nbparallel import *`` gives what ``__all__`` lists."""
    names: dict[str, object] = {}
    exec("from nbparallel import *", names)
    assert set(nbparallel.__all__) <= set(names)


def test_the_package_is_typed() -> None:
    """The marker that tells type checkers to read our annotations is installed."""
    assert (Path(nbparallel.__file__ or "").parent / "py.typed").exists()


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_survives_pickling(name: str) -> None:
    """An error that crosses a process border arrives with its type, its message and all that it carries."""
    kind = getattr(errors, name)
    details = {}
    if issubclass(kind, errors.ItemError):
        details = {"index": 3, "item": "7", "type_name": "E", "traceback": "tb", "worker": "w:1", "attempts": 2}
    error = kind("what went wrong", **details)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_an_item_error_keeps_the_exception_of_the_user() -> None:
    """The exception that the function raised comes along, also as the cause that a traceback shows."""
    again = pickle.loads(pickle.dumps(errors.RemoteError("KeyError: 'x'", exception=KeyError("x"))))
    assert isinstance(again.exception, KeyError)
    assert again.__cause__ is again.exception


def test_every_error_class_is_listed() -> None:
    """``errors.__all__`` holds every error of the module, so that the test above sees it."""
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined == set(errors.__all__)
