"""Knows which imported modules lie beside the notebook or script, and whether their files were edited since.

Receives module names from ``pickling``; tells it which of them must travel by value.
"""

from __future__ import annotations

import ast
import functools
import os
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from importlib.machinery import SourceFileLoader
from types import CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["is_local", "is_stale", "source_file"]

_PACKAGE = __name__.partition(".")[0]

#: Always travels by value, as cloudpickle does it.
_NEVER_LOCAL = ("__main__", "__mp_main__")

#: Module name → (module, whether it is local), for the roots in ``_roots``.
_known: dict[str, tuple[ModuleType, bool]] = {}
#: (what the roots were made of, the roots).
_roots: tuple[tuple[str, str, str], tuple[str, ...]] = (("", "", ""), ())
#: Module name → (mtime in ns, size) of a source file that was seen to be what the module runs.
_fresh: dict[str, tuple[int, int]] = {}


def is_local(name: str) -> bool:
    """Whether a module of this name was imported from beside the notebook or script.

    That is: a Python source file under the working directory, the directory of the main script or ``sys.path[0]``,
    that belongs to no installed package, nor to Python, nor to us. The answer is remembered: 1 µs.
    """
    module = sys.modules.get(name)
    if not isinstance(module, ModuleType) or name in _NEVER_LOCAL or name.partition(".")[0] == _PACKAGE:
        return False
    roots = _find_roots()
    known = _known.get(name)
    if known is None or known[0] is not module:
        known = _known[name] = module, module.__name__ == name and _lies_in(module, roots)
    return known[1]


def source_file(module: ModuleType) -> str | None:
    """The Python source file that a module was imported from."""
    path = _python_file(module)
    return None if path is None else os.path.realpath(path)


def _python_file(module: ModuleType) -> str | None:
    path = getattr(module, "__file__", None)
    return path if isinstance(path, str) and path.endswith(".py") else None


def _find_roots() -> tuple[str, ...]:
    global _roots
    try:
        here = os.getcwd()
    except OSError:  # the directory was removed
        here = ""
    script = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    raw = here, script, sys.path[0] if sys.path else ""
    if raw != _roots[0]:
        folders = (here, os.path.dirname(os.path.abspath(script)) if script and here else "", raw[2])
        _known.clear()
        _roots = raw, tuple({os.path.realpath(folder) for folder in folders if folder})
    return _roots[1]


def _lies_in(module: ModuleType, roots: tuple[str, ...]) -> bool:
    path = source_file(module)
    if path is not None:
        return os.path.isfile(path) and _is_user_path(path, roots)
    # A package without __init__.py has folders only.
    folders = list(getattr(module, "__path__", ())) if getattr(module, "__file__", None) is None else []
    return bool(folders) and all(_is_user_path(os.path.realpath(folder), roots) for folder in folders)


def _is_user_path(path: str, roots: tuple[str, ...]) -> bool:
    inside = [root for root in roots if _is_under(path, root)]
    if not inside or {"site-packages", "dist-packages"} & set(path.split(os.sep)):
        return False
    libraries = {os.path.realpath(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    if any(_is_under(path, library) for library in libraries):
        return False
    # A virtual environment in the project's folder is no part of the project, but a project may well lie in /usr.
    prefixes = {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    return not any(
        _is_under(path, prefix) and not any(_is_under(root, prefix) for root in inside) for prefix in prefixes
    )


def _is_under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def is_stale(name: str) -> bool:
    """Whether a module's source file was edited after it was imported (or last reloaded), in a way that matters.

    Python keeps no record of what it imported, a ``.pyc`` may be absent or written by another process, and
    IPython's autoreload patches functions without importing anew. So a file that changed since this process began
    is compiled (not run), and its functions, defaults and constants are compared with those in use.
    """
    module = sys.modules.get(name)
    path = None if module is None else _python_file(module)
    # Other loaders may change the code, as pytest's does to assertions.
    if module is None or path is None or not isinstance(getattr(module, "__loader__", None), SourceFileLoader):
        return False
    try:
        status = os.stat(path)
        if status.st_mtime < _process_start(os.getpid()) or _fresh.get(name) == (status.st_mtime_ns, status.st_size):
            return False
        path = os.path.realpath(path)
        with open(path, "rb") as file:
            tree = ast.parse(file.read(), path)
        code = compile(tree, path, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return True  # gone, or in the middle of an edit
    try:
        if _differs(module, path, tree, code):
            return True
    except Exception:  # objects in use that cannot be compared; a warning is not worth an error
        return False
    _fresh[name] = status.st_mtime_ns, status.st_size
    return False


@functools.lru_cache(maxsize=1)  # each job asks; a fork has another number
def _process_start(pid: int) -> float:
    """When this process began, seconds since the epoch; 0 when the system does not say."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError, IndexError):  # pragma: no cover
        return 0.0
    return time.time() - age - 0.02  # a tick or two is lost in rounding


def _differs(module: ModuleType, path: str, tree: ast.Module, code: CodeType) -> bool:
    written: dict[str, list[CodeType]] = {}
    for qualname, part in _codes(code):
        written.setdefault(qualname, []).append(part)
    defaults = dict(_defaults(tree.body))
    for function in _functions(vars(module), module.__name__):
        qualname = function.__qualname__
        if "<" in qualname:
            continue
        if qualname not in written:
            if function.__code__.co_filename in (path, module.__file__):
                return True
            continue  # made by a decorator, such as a dataclass's __init__
        if not any(_same_code(function.__code__, part) for part in written[qualname]):
            return True
        if qualname in defaults and not _same_defaults(*defaults[qualname], function):
            return True
    missing = object()
    return any(vars(module).get(name, missing) != value for name, value in _constants(tree.body))


def _codes(code: CodeType, prefix: str = "") -> Iterator[tuple[str, CodeType]]:
    """(qualified name, code) of the functions at the top and in classes; class bodies run, so they are left out."""
    for part in code.co_consts:
        if isinstance(part, CodeType) and "<" not in part.co_name:
            yield prefix + part.co_name, part
            yield from _codes(part, f"{prefix}{part.co_name}.")


def _functions(namespace: Any, module: str) -> Iterator[FunctionType]:
    for value in list(namespace.values()):
        if isinstance(value, type) and value.__module__ == module and "<" not in value.__qualname__:
            yield from _functions({k: v for k, v in vars(value).items() if not isinstance(v, type)}, module)
            continue
        value = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
        while not isinstance(value, type) and hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        if isinstance(value, FunctionType) and value.__module__ == module:
            yield value


def _same_code(one: CodeType, other: CodeType) -> bool:
    """Equal but for line numbers: a comment added above changes nothing."""
    fields = ("co_code", "co_names", "co_varnames", "co_freevars", "co_argcount", "co_kwonlyargcount", "co_flags")
    if any(getattr(one, field) != getattr(other, field) for field in fields):
        return False
    if len(one.co_consts) != len(other.co_consts):
        return False
    for left, right in zip(one.co_consts, other.co_consts, strict=True):
        if isinstance(left, CodeType) and isinstance(right, CodeType):
            if not _same_code(left, right):
                return False
        elif type(left) is not type(right) or left != right:
            return False
    return True


_UNKNOWN = object()


def _literal(node: ast.expr | None) -> Any:
    try:
        return _UNKNOWN if node is None else ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _UNKNOWN


def _same_defaults(written: list[Any], named: dict[str, Any], function: FunctionType) -> bool:
    """Whether the literals among the written defaults are the live ones."""
    live = [*(function.__defaults__ or ())]
    keywords = function.__kwdefaults__ or {}
    if len(written) != len(live) or named.keys() != keywords.keys():
        return False
    pairs = [*zip(written, live, strict=True), *((value, keywords[name]) for name, value in named.items())]
    return all(left is _UNKNOWN or left == right for left, right in pairs)


def _defaults(body: Iterable[ast.stmt], prefix: str = "") -> Iterator[tuple[str, tuple[list[Any], dict[str, Any]]]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _defaults(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            named = {argument.arg: _literal(value) for argument, value in keywords if value is not None}
            yield prefix + node.name, ([_literal(value) for value in node.args.defaults], named)


def _constants(body: list[ast.stmt]) -> list[tuple[str, Any]]:
    """Names that are bound once at the top, to a literal; not to an empty one, which is there to be filled."""
    found: dict[str, list[Any]] = {}
    for node in body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
            targets = [node.target]
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name):
                found.setdefault(target.id, []).append(_literal(node.value))
    return [
        (name, values[0])
        for name, values in found.items()
        if len(values) == 1 and values[0] is not _UNKNOWN and values[0] not in ([], {})
    ]
