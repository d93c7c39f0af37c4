"""Finds out which part of an object cannot be pickled, and which parts are large.

Receives an object that ``pickling`` failed on (or found large) and a way to try its parts; hands back words.
"""

from __future__ import annotations

import dis
import functools
import sys
import time
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

__all__ = ["explain", "largest"]

#: How deep and how long (in seconds) the search goes.
MAX_DEPTH = 30
MAX_SECONDS = 3.0

Try = Callable[[Any], object]


def explain(obj: Any, what: str, error: BaseException, attempt: Try) -> str:
    """Why an object cannot be pickled, in words: which part of it, at which path, and what to do.

    Args:
        obj: the object.
        what: how to call it.
        error: what the attempt to pickle it raised.
        attempt: pickles a part, or raises.
    """
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return (
            f"cannot pickle {what}: it is nested too deeply (sys.getrecursionlimit() is {sys.getrecursionlimit()}), "
            "or its __reduce__ never ends. Make it flatter."
        )
    if isinstance(error, MemoryError):
        return f"cannot pickle {what}: that takes more memory than there is. Split it into smaller items."
    steps, last, cause = _search(obj, error, attempt)
    where = f"its {' → '.join(steps)}" if steps else "it"
    text = _first_line(cause)
    told = "" if text.startswith("TypeError: cannot pickle") else f" ({text})"
    return f"cannot pickle {what}: {where} is {_article(_kind(last))}, which cannot be pickled{told}. {_cure(last)}"


def largest(obj: Any, measure: Callable[[Any], int], least: int) -> list[tuple[str, str, int]]:
    """(label, type, bytes) of the parts that a function carries, from ``least`` bytes on, the three largest first."""
    found = []
    for label, part in _parts(obj):
        size = getattr(part, "nbytes", None)  # arrays: no need to pickle them
        try:
            size = size if isinstance(size, int) else measure(part)
        except Exception:
            continue
        if size >= least:
            found.append((label, _kind(part), size))
    return sorted(found, key=lambda entry: -entry[2])[:3]


def _search(obj: Any, error: BaseException, attempt: Try) -> tuple[list[str], Any, BaseException]:
    """Descend from part to failing part; the labels on the way, the innermost one, and what it raised."""
    steps: list[str] = []
    seen = {id(obj)}
    deadline = time.monotonic() + MAX_SECONDS
    while len(steps) < MAX_DEPTH:
        found = _failing_part(obj, seen, deadline, attempt)
        if found is None:
            break
        label, obj, error = found
        steps.append(label)
        seen.add(id(obj))
    return steps, obj, error


def _failing_part(obj: Any, seen: set[int], deadline: float, attempt: Try) -> tuple[str, Any, BaseException] | None:
    for label, part in _parts(obj):
        if time.monotonic() > deadline:
            return None
        if id(part) in seen:
            continue
        try:
            attempt(part)
        except Exception as error:
            return label, part, error
    return None


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """(label, object) of what is pickled along with an object."""
    if isinstance(obj, FunctionType):
        yield from _function_parts(obj)
    elif isinstance(obj, MethodType):
        yield "object", obj.__self__
        yield "function", obj.__func__
    elif isinstance(obj, functools.partial):
        yield "function", obj.func
        yield from ((f"argument {i + 1}", value) for i, value in enumerate(obj.args))
        yield from ((f"argument {name!r}", value) for name, value in obj.keywords.items())
    elif isinstance(obj, ModuleType):
        yield from ((f"global {name!r}", value) for name, value in vars(obj).items() if not name.startswith("__"))
    elif isinstance(obj, type):
        yield from ((f"base {base.__name__!r}", base) for base in obj.__bases__)
        hidden = ("__dict__", "__weakref__")
        yield from ((f"attribute {name!r}", value) for name, value in vars(obj).items() if name not in hidden)
    else:
        yield from _container_parts(obj)
        yield from ((f"attribute {name!r}", value) for name, value in _attributes(obj))


def _function_parts(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"closure variable {name!r}", cell.cell_contents
        except ValueError:  # empty yet
            continue
    code = function.__code__
    count = len(function.__defaults__ or ())
    names = code.co_varnames[code.co_argcount - count : code.co_argcount]
    yield from ((f"default of {name!r}", value) for name, value in zip(names, function.__defaults__ or (), strict=True))
    yield from ((f"default of {name!r}", value) for name, value in (function.__kwdefaults__ or {}).items())
    for name in dict.fromkeys(_global_names(code)):
        if name in function.__globals__:
            yield f"global {name!r}", function.__globals__[name]
    yield from ((f"attribute {name!r}", value) for name, value in vars(function).items())
    yield from ((f"annotation of {name!r}", value) for name, value in function.__annotations__.items())


def _global_names(code: CodeType) -> Iterator[str]:
    yield from (str(step.argval) for step in dis.get_instructions(code) if step.opname.endswith("_GLOBAL"))
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _global_names(part)


def _container_parts(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, dict):
        for key, value in obj.items():
            yield f"key of type {_kind(key)}", key
            yield f"value at {_short(key)}", value
    elif isinstance(obj, (list, tuple)):
        yield from ((f"element {i}", value) for i, value in enumerate(obj))
    elif isinstance(obj, (set, frozenset)):
        yield from (("element", value) for value in obj)


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(obj, "__dict__", {}).items()
    for kind in type(obj).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                yield name, getattr(obj, name)


def _kind(obj: Any) -> str:
    kind = type(obj)
    plain = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def _short(key: Any) -> str:
    return repr(key)[:60] if isinstance(key, (str, int, float, bytes)) else f"a key of type {_kind(key)}"


def _first_line(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text.partition(chr(10))[0][:200]}"


def _cure(obj: Any) -> str:
    if isinstance(obj, GeneratorType):
        return "Pass a list of its values instead."
    return "Create it inside the function, or pass only the plain data that it is made from."
