"""Turns functions, items and results into bytes and back.

Receives objects from the client (functions, items) and the worker (results); hands frames to ``wire`` to be sealed.
A frame is a pickle (protocol 5, by cloudpickle) and its large buffers, which are copied once at most:

    length of the pickle, flags, number of buffers, their lengths (64 bits each) | pickle | buffers, 64-aligned

Functions and classes from modules beside the notebook travel by value, see ``modules``.
"""

from __future__ import annotations

import functools
import inspect
import io
import json
import linecache
import mmap
import os
import pickle
import struct
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

import cloudpickle

from . import culprit, modules, shared
from .errors import SerializationError, UsageError, WireError
from .model import OLDEST_PROTOCOL, PROTOCOL_VERSION
from .wire import Buffer

__all__ = [
    "check_versions",
    "decode_columns",
    "dump",
    "dump_function",
    "dump_parts",
    "encode_columns",
    "load",
    "load_function",
    "shares_memory",
    "versions",
]

#: Boundary on which buffers start in a frame, in bytes; what numpy and SIMD code like.
ALIGNMENT = 64
#: Buffers below this many bytes stay inside the pickle: thousands of small rows are faster so.
SMALL_BUFFER = 4096
#: Function blobs above this many bytes bring a warning that names what they carry.
LARGE_FUNCTION = 10_000_000
#: Source text that travels with one function, in bytes.
SOURCE_LIMIT = 1_000_000

#: Flag of a frame: it holds classes by value.
HAS_CLASSES = 1

_HEAD = struct.Struct("<QQQ")


def dump(obj: Any, what: str = "the object", *, local_by_value: bool = True) -> bytes:
    """An object as one frame.

    Args:
        obj: what to pickle.
        what: how an error calls it, such as ``"item 3"``.
        local_by_value: whether functions and classes of modules beside the notebook or script travel by value.
            False in workers: there such modules were imported, so the client can import them too.

    Raises:
        SerializationError: it cannot be pickled; the message names the part that cannot, and the path to it.
    """
    return b"".join(dump_parts(obj, what, local_by_value=local_by_value))


def dump_parts(obj: Any, what: str = "the object", *, local_by_value: bool = True) -> list[Buffer]:
    """The same frame in parts, for ``wire.seal`` to join: large buffers are then copied once in all.

    The parts look into the object's own memory, so use them before the object changes.
    """
    return _dump(obj, what, local_by_value)[0]


def load(view: Buffer) -> Any:
    """The object in a frame.

    Arrays are writable (if they were): over the frame's own memory when that is writable, else over a copy.
    Whatever the objects raise while they are rebuilt is raised as it is.

    Raises:
        WireError: the bytes are not a frame.
    """
    view = memoryview(view).cast("B")
    if len(view) < _HEAD.size:
        raise WireError(f"a frame of {len(view)} bytes is too short")
    length, flags, count = _HEAD.unpack_from(view)
    at = _HEAD.size + 8 * count
    if at + length > len(view):
        raise WireError(f"a frame of {len(view)} bytes is too short for what its head says")
    sizes = struct.unpack_from(f"<{count}Q", view, _HEAD.size)
    body = view[at : at + length]
    at += length
    buffers = []
    for size in sizes:
        at += -at % ALIGNMENT
        if at + size > len(view):
            raise WireError(f"a frame of {len(view)} bytes ends within its buffers")
        part = view[at : at + size]
        buffers.append(bytearray(part) if view.readonly else part)
        at += size
    if at != len(view):
        raise WireError(f"a frame of {len(view)} bytes is longer than its head says ({at})")
    if flags & HAS_CLASSES:
        return _Unpickler(io.BytesIO(body), buffers=buffers).load()
    return pickle.loads(body, buffers=buffers)


def shares_memory(view: bytes | memoryview) -> bool:
    """Whether what ``load`` makes of a frame lies, for its most part, in the frame's own mapped memory."""
    view = memoryview(view)
    return isinstance(view.obj, mmap.mmap) and not view.readonly and 2 * _HEAD.unpack_from(view)[0] < view.nbytes


def encode_columns(columns: Sequence[Sequence[Any]], first: int = 0) -> list[Buffer]:
    """The arguments of a run of items, by column (all first arguments, all second ones, ...), as a frame in parts.

    Args:
        columns: equally long sequences.
        first: index of the first item, for errors.

    Raises:
        SerializationError: the message names the item by its index.
    """
    data = tuple(column if _travels_whole(column) else list(column) for column in columns)
    try:
        return _frame(data, True)[0]
    except Exception as error:
        for i, items in enumerate(zip(*data, strict=True)):
            for j, item in enumerate(items):
                what = f"item {first + i}" + (f", argument {j + 1}" if len(data) > 1 else "")
                dump(item, what)
        raise _refusal(data, f"items {first} to {first + len(data[0]) - 1}", error) from error


def _travels_whole(column: Sequence[Any]) -> bool:
    """Whether a column is sent as it is: an array's numbers or rows one by one would cost a hundred times as much."""
    kind = type(column)
    return kind in (list, range) or (kind.__module__ == "numpy" and kind.__name__ == "ndarray")


def decode_columns(view: Buffer) -> tuple[Sequence[Any], ...]:
    """The columns in a frame made by ``encode_columns``.

    Raises:
        WireError: the frame holds something else.
    """
    data = load(view)
    if not isinstance(data, tuple) or not data or not all(map(_travels_whole, data)):
        raise WireError("a chunk's payload is not a tuple of columns")
    if len({len(column) for column in data}) != 1:
        raise WireError("a chunk's payload has columns of different lengths")
    return data


def dump_function(function: Any) -> bytes:
    """The user's function as bytes, with the source text that remote tracebacks show.

    They are ``Pickled`` when it refers to shared values, which they then keep. Warns when a module it uses was edited
    after it was imported, and when it carries large values.

    Raises:
        SerializationError: it cannot be pickled; the message says what in it cannot.
    """
    name = _name(function)
    with shared.noting() as cores:
        parts, pickler = _dump(function, f"the function {name!r}", True)
    for module in sorted(pickler.local):
        if modules.is_stale(module):
            _warn(
                f"{module}.py was edited after it was imported: the workers run the imported version, as this process "
                f"does. Run importlib.reload({module}), or use %autoreload 2, to take up the edit."
            )
    size = sum(len(memoryview(part).cast("B")) for part in parts)
    if size > LARGE_FUNCTION:
        carried = culprit.largest(function, lambda part: len(dump(part)), SMALL_BUFFER * 25)
        names = ", ".join(f"{label} ({kind}, {amount / 1e6:,.0f} MB)" for label, kind, amount in carried)
        _warn(
            f"the function {name!r} carries {size / 1e6:,.0f} MB to every worker process{': ' if names else ''}{names}."
            " To send a value once and use it in many jobs, write big = nbparallel.share(value) before, and big.value "
            "in the function; or make it inside the function."
        )
    data = b"".join((_encoded_sources(tuple(_sources(pickler.codes).items())), *parts))
    return shared.Pickled(data, cores) if cores else data


def load_function(view: Buffer) -> Any:
    """The function in bytes made by ``dump_function``; its source text is shown in tracebacks from now on.

    Raises:
        WireError: the bytes hold something else.
    """
    view = memoryview(view).cast("B")
    end = 8 + int.from_bytes(view[:8], "little")
    try:
        linecache.cache.update(_decoded_sources(bytes(view[8:end])))
    except ValueError:
        raise WireError("a function's bytes do not start with its sources") from None
    return load(view[end:])


def versions() -> tuple[str, str, int, int]:
    """Python's (major and minor) and cloudpickle's version; the protocol's, and the oldest that this one goes with."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return python, cloudpickle.__version__, PROTOCOL_VERSION, OLDEST_PROTOCOL


def check_versions(theirs: Sequence[Any], who: str = "the worker", here: str = "this process") -> str | None:
    """Why nothing can be exchanged with someone of these versions, or None when it can.

    Python and cloudpickle must be the same; of nbparallel's protocol each side must be in the other's range.
    """
    ours = versions()
    pairs = zip(("Python", "cloudpickle"), ours, theirs, strict=False)
    differing = [(part, mine, yours) for part, mine, yours in pairs if mine != yours]
    if differing:
        own = ", ".join(f"{part} {version}" for part, version, _ in differing)
        there = ", ".join(f"{part} {version}" for part, _, version in differing)
        return f"{here} runs {own}, {who} {there}; functions can only travel between equal versions"
    newest, oldest = theirs[2], theirs[3]
    if oldest <= ours[2] and ours[3] <= newest:
        return None
    behind = here if ours[2] < oldest else who
    return (
        f"{here} speaks nbparallel protocol {_range(ours[3], ours[2])}, {who} {_range(oldest, newest)}; upgrade "
        f"nbparallel for {behind}"
    )


def _range(oldest: int, newest: int) -> str:
    return str(newest) if oldest == newest else f"{oldest} to {newest}"


class _Pickler(cloudpickle.Pickler):
    """cloudpickle's pickler; modules beside the notebook travel by value, and it notes what it met."""

    def __init__(self, file: io.BytesIO, buffers: list[memoryview], local_by_value: bool) -> None:
        def out_of_band(buffer: pickle.PickleBuffer) -> bool:
            view = memoryview(buffer)
            if view.nbytes < SMALL_BUFFER or not view.contiguous:
                return True  # stays in the pickle
            buffers.append(buffer.raw())
            return False

        super().__init__(file, 5, out_of_band)
        self.local_by_value = local_by_value
        self.local: set[str] = set()
        self.distant: set[str] = set()
        self.held: list[str] = []
        self.codes: dict[str, CodeType] = {}
        self.flags = 0

    def reducer_override(self, obj: Any) -> Any:
        """How to pickle functions, classes and modules; called for every object that is no plain builtin one."""
        kind = type(obj)
        if kind is FunctionType:
            self.meet(obj.__module__)
            reduced = super().reducer_override(obj)
            if reduced is not NotImplemented:  # by value
                self.codes.setdefault(obj.__code__.co_filename, obj.__code__)
            return reduced
        if issubclass(kind, type):
            self.meet(obj.__module__)
            reduced = super().reducer_override(obj)
            if reduced is not NotImplemented and len(reduced) == 6:  # by value, with a state
                self.flags |= HAS_CLASSES
                if id(obj) not in _foreign_classes:
                    _own_classes[id(obj)] = obj
            return reduced
        if kind is ModuleType:
            return self.reduce_module(obj)
        if kind is TypeVar:
            self.meet(obj.__module__)
        return NotImplemented

    def meet(self, name: Any) -> bool:
        """Note that something of this module is pickled; whether it goes by value."""
        if not self.local_by_value or not isinstance(name, str):
            return False
        if name in self.distant:
            return False
        if name not in self.local:
            if not modules.is_local(name):
                self.distant.add(name)
                return False
            self.local.add(name)
            if _hold_by_value(name):
                self.held.append(name)
        return True

    def reduce_module(self, module: ModuleType) -> Any:
        name = module.__name__
        if not self.meet(name) and sys.modules.get(name) is module:
            return NotImplemented
        # Not as cloudpickle does it, which never ends when two modules import each other.
        state = {key: value for key, value in vars(module).items() if key not in _MODULE_MACHINERY}
        return ModuleType, (name, module.__doc__), state, None, None, _fill_module


_MODULE_MACHINERY = {"__builtins__", "__loader__", "__spec__", "__cached__"}


def _fill_module(module: ModuleType, state: dict[str, Any]) -> None:
    vars(module).update(state)


#: Module name → the module, and how many dumps need it by value now.
_held: dict[str, tuple[ModuleType, int]] = {}
_held_lock = threading.Lock()


def _hold_by_value(name: str) -> bool:
    """Register a module with cloudpickle until released; False when the user did so himself."""
    with _held_lock:
        module, count = _held.get(name, (sys.modules[name], 0))
        if not count:
            if name in cloudpickle.list_registry_pickle_by_value():
                return False
            cloudpickle.register_pickle_by_value(module)
        _held[name] = module, count + 1
    return True


def _release(names: list[str]) -> None:
    with _held_lock:
        for name in names:
            module, count = _held.pop(name)
            if count > 1:
                _held[name] = module, count - 1
            else:
                cloudpickle.unregister_pickle_by_value(module)


#: Classes by id: those that this process sent and had not received, and those that it received.
_own_classes: weakref.WeakValueDictionary[int, type] = weakref.WeakValueDictionary()
_foreign_classes: weakref.WeakValueDictionary[int, type] = weakref.WeakValueDictionary()


class _Unpickler(pickle.Unpickler):
    """Leaves the classes alone that were defined here.

    cloudpickle knows a class again that comes back, but then sets all its attributes: methods would be replaced by
    copies that no longer see the notebook's globals, and counters by the worker's.
    """

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return functools.partial(_set_class_state, found) if name == "_class_setstate" else found


def _set_class_state(original: Callable[[type, Any], type], cls: type, state: Any) -> type:
    if id(cls) in _own_classes:
        return cls
    _foreign_classes[id(cls)] = cls
    return original(cls, state)


def _frame(obj: Any, local_by_value: bool) -> tuple[list[Buffer], _Pickler]:
    file = io.BytesIO()
    buffers: list[memoryview] = []
    pickler = _Pickler(file, buffers, local_by_value)
    try:
        pickler.dump(obj)
    finally:
        _release(pickler.held)
    body = file.getbuffer()
    head = _HEAD.pack(len(body), pickler.flags, len(buffers)) + struct.pack(f"<{len(buffers)}Q", *map(len, buffers))
    parts: list[Buffer] = [head, body]
    at = len(head) + len(body)
    for buffer in buffers:
        parts += bytes(-at % ALIGNMENT), buffer
        at += -at % ALIGNMENT + len(buffer)
    return parts, pickler


def _dump(obj: Any, what: str, local_by_value: bool) -> tuple[list[Buffer], _Pickler]:
    try:
        return _frame(obj, local_by_value)
    except Exception as error:  # objects may raise anything from __reduce__ and __getstate__
        raise _refusal(obj, what, error) from error


def _refusal(obj: Any, what: str, error: Exception) -> SerializationError:
    if isinstance(error, UsageError):  # an object of ours, which says what is wrong with it
        return SerializationError(f"cannot pickle {what}: {error}")
    return SerializationError(culprit.explain(obj, what, error, lambda part: _frame(part, True)))


#: The same function is often called again, and its file is long against itself.
@functools.lru_cache(maxsize=4)
def _encoded_sources(sources: tuple[tuple[str, str], ...]) -> bytes:
    """Sources with their length in front, padded so that what follows starts aligned."""
    data = json.dumps(dict(sources)).encode()
    data += b" " * (-(8 + len(data)) % ALIGNMENT)
    return len(data).to_bytes(8, "little") + data


@functools.lru_cache(maxsize=4)
def _decoded_sources(data: bytes) -> dict[str, tuple[int, None, list[str], str]]:
    """The same as entries of linecache; raises ValueError when it is something else."""
    sources = json.loads(data)
    if not isinstance(sources, dict):
        raise ValueError("no mapping")
    # Without a modification time linecache.checkcache keeps an entry though there is no such file.
    return {name: (len(text), None, text.splitlines(keepends=True), name) for name, text in sources.items()}


def _name(function: Any) -> str:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name).rpartition("<locals>.")[2]


def _sources(codes: Mapping[str, CodeType]) -> dict[str, str]:
    """Text of the files and cells that the code comes from: the worker may not have them."""
    texts: dict[str, str] = {}
    left = SOURCE_LIMIT
    for name, code in codes.items():
        linecache.checkcache(name)
        try:
            lines = linecache.getlines(name) or inspect.findsource(code)[0]
        except (OSError, TypeError, IndexError):
            continue  # typed where nothing keeps it
        text = "".join(lines)
        if len(text) <= left:
            texts[name] = text
            left -= len(text)
    return texts


def _warn(message: str) -> None:
    """Warn at the line of the user that led here."""
    package = os.path.dirname(__file__) + os.sep
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level + 1)
