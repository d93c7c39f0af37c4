"""Values that many jobs use: the handle that ``share`` gives, in the client and in workers.

A handle pickles to a reference of some bytes. Whoever pickles for a job notes which handles were met (``noting``), and
``client/sharing.py`` has their values on the cluster before the job refers to them. In a worker process the reference
becomes a handle again, whose value ``worker/sharing.py`` fetches, once.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

from .errors import JobError, UsageError
from .wire import Buffer

__all__ = [
    "Core",
    "Pickled",
    "Shared",
    "fetch_with",
    "let_go",
    "load",
    "loaded",
    "make",
    "noting",
    "shown",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

_MISSING: Any = object()


class Core:
    """One shared value in this process; all of its handles, and the jobs that use it, refer to this.

    Args:
        id: 24 hexadecimal digits.
        kind: name of the value's type.
        size: of the pickled value, in bytes.
        value: the value, in the process that shared it.
        frame: the pickled value in parts, until it is put somewhere for the first time.
        inner: other shared values that the value refers to.
    """

    def __init__(
        self,
        id: str,
        kind: str,
        size: int,
        value: Any = _MISSING,
        frame: list[Buffer] | None = None,
        inner: Iterable[Core] = (),
    ) -> None:
        self.id, self.kind, self.size, self.value, self.frame, self.inner = id, kind, size, value, frame, tuple(inner)
        self.owned = value is not _MISSING
        #: Session → has it give up its copy.
        self.releases: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._users, self._closed = 0, False
        weakref.finalize(self, _release, self.releases).atexit = False

    @property
    def there(self) -> bool:
        """Whether the value is in this process."""
        return self.value is not _MISSING

    def begin_use(self) -> None:
        """A job refers to it: ``close`` frees nothing before ``end_use``."""
        with self._lock:
            self._users += 1

    def end_use(self) -> None:
        """A job has ended."""
        with self._lock:
            self._users -= 1
            over = self._closed and not self._users
        if over:
            _release(self.releases)

    def close(self) -> None:
        """Nobody new will use it: free it now, or as soon as the jobs have ended that do."""
        with self._lock:
            self._closed = True
            over = not self._users
        if over:
            _release(self.releases)

    def __str__(self) -> str:
        return f"{self.kind}, {shown(self.size)}"


def _release(releases: dict[str, Callable[[], None]]) -> None:
    while releases:
        releases.popitem()[1]()


def shown(size: int) -> str:
    """A size for people, from bytes."""
    if size < 10_000:
        return f"{size:,} bytes"
    return f"{size / 1e3:,.0f} kB" if size < 10_000_000 else f"{size / 1e6:,.0f} MB"


class Shared(Generic[T]):
    """A handle of a value that many jobs use; made by ``share``.

    Capture it in functions, pass it as an item or an argument, put it into what you pass: it travels as a reference.
    ``value`` is the value itself where it was shared; in a worker process it is a copy that is loaded once, whose large
    buffers (arrays) are in the machine's memory once for all of its processes. They are private: what is written to
    them is seen by this process alone.

    The copies are given up by ``close`` (or leaving a ``with`` block), when nobody refers to the handle any more, and
    when the cluster stops; never before the jobs that use them have ended.

    >>> from nbparallel import share
    >>> words = share(["a", "b"])
    >>> words.value, words
    (['a', 'b'], <Shared list, 48 bytes, not sent yet>)
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._open = True

    @property
    def value(self) -> T:
        """The value.

        Raises:
            JobError: it is gone, or the handle was closed; the message says which value, and what to do.
        """
        if not self._open:
            raise JobError(f"this shared value ({self._core}) was closed; share it again")
        if not self._core.there:
            _load(self._core)
        value: T = self._core.value
        return value

    def close(self) -> None:
        """Give the value up, as soon as the jobs that use it have ended. Calling it again does nothing."""
        if self._open and self._core.owned:
            self._open = False
            core = self._core
            self._core = Core(core.id, core.kind, core.size)
            core.close()

    def __enter__(self) -> Shared[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        core = self._core
        if not self._open:
            raise UsageError(f"the shared value ({core}) was closed, so nothing new can refer to it; share it again")
        if core.owned and _fetch is not None:
            raise UsageError(f"a value that was shared in a worker ({core}) cannot leave it: return handle.value")
        _note(core)
        return _revive, (core.id, core.kind, core.size)

    def __repr__(self) -> str:
        core = self._core
        if not self._open:
            state = "closed"
        elif core.owned:
            count = len(core.releases)
            state = ("not sent yet", "on its cluster")[count] if count < 2 else f"on {count} clusters"
        else:
            state = "loaded" if core.there else "not loaded yet"
        return f"<Shared {core}, {state}>"


# -- what pickling meets -----------------------------------------------------------------------------------------------

_met = threading.local()


@contextmanager
def noting() -> Iterator[dict[str, Core]]:
    """The shared values, by id, whose handles this thread pickles or unpickles meanwhile."""
    before: dict[str, Core] | None = getattr(_met, "cores", None)
    found: dict[str, Core] = {}
    _met.cores = found
    try:
        yield found
    finally:
        _met.cores = before
        if before is not None:
            before.update(found)


def _note(core: Core) -> None:
    found: dict[str, Core] | None = getattr(_met, "cores", None)
    if found is not None:
        found[core.id] = core


class Pickled(bytes):
    """The pickle of something that refers to shared values; it keeps them, and whoever pickles it again meets them."""

    cores: dict[str, Core]

    def __new__(cls, data: bytes, cores: dict[str, Core]) -> Pickled:
        self = super().__new__(cls, data)
        self.cores = cores
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _pickled, (bytes(self), [Shared(core) for core in self.cores.values()])


def _pickled(data: bytes, handles: list[Shared[Any]]) -> Pickled:
    return Pickled(data, {handle._core.id: handle._core for handle in handles})


# -- references --------------------------------------------------------------------------------------------------------

#: Every shared value that this process knows, by id.
_cores: weakref.WeakValueDictionary[str, Core] = weakref.WeakValueDictionary()
#: In a worker: those with their values; they stay until ``let_go``, so that the next job finds them here.
_loaded: dict[str, Core] = {}
_loading = threading.RLock()
_fetch: Callable[[Core], Any] | None = None


def make(id: str, value: Any, frame: list[Buffer], inner: Iterable[Core]) -> Shared[Any]:
    """The first handle of a value."""
    core = Core(id, type(value).__qualname__, sum(memoryview(part).nbytes for part in frame), value, frame, inner)
    _cores[id] = core
    return Shared(core)


def _revive(id: str, kind: str, size: int) -> Shared[Any]:
    core = _cores.get(id)
    if core is None:
        core = _cores[id] = Core(id, kind, size)
    _note(core)
    return Shared(core)


def fetch_with(fetch: Callable[[Core], Any] | None) -> None:
    """From now on this is a worker process, which gets values so; ``fetch`` raises why there is none."""
    global _fetch
    _fetch = fetch


def _load(core: Core) -> None:
    if _fetch is None:
        raise JobError(
            f"the value of this handle ({core}) is not in this process: it can be read where it was shared, and in "
            "functions that nbparallel runs there or on workers"
        )
    with _loading:
        if not core.there:
            core.value = _fetch(core)
            _loaded[core.id] = core


def load(cores: Iterable[Core]) -> None:
    """Fetch values ahead of the items that will ask for them; what cannot be had is their error, not ours."""
    for core in cores:
        try:
            if not core.there:
                _load(core)
        except Exception as error:  # the item asks again, and has the error
            log.debug("a shared value could not be fetched ahead: %s", error)


def loaded() -> list[str]:
    """Ids of the values that this worker process holds."""
    return list(_loaded)


def let_go(id: str) -> None:
    """Hold a value no more; what somebody else refers to stays with him."""
    core = _loaded.pop(id, None)
    if core is not None:
        core.value = _MISSING
