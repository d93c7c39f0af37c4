"""Large payloads of a cluster on one machine: files in a private directory, not bytes through the server's socket.

The client writes the items of a chunk, or a function with what it carries, and a worker maps them; a worker writes
outcomes, and the client maps those. A mapping is private, copy-on-write: users may write to their arrays, and what
nobody writes to is in memory once, however many processes read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import weakref
from collections.abc import Sequence

from ..errors import WireError
from .spares import Spares, close_unlocked

__all__ = ["Depot"]

#: Names that we give.
_NAME = re.compile(r"[0-9a-f]{24}")
#: Smaller blobs are read: to map one, and to unmap it from processes that run on several cores, costs more.
MAPPED_BYTES = 1 << 20
#: Mapped bodies of one reader take at most this share of what is free beside them, and spare files that share.
ROOM, SPARE = 1 / 8, 1 / 16
#: Buffers that one ``writev`` takes.
_MOST_BUFFERS = 512


class Depot:
    """A directory of large blobs, shared by the client and the workers of one machine; thread-safe.

    The directory is private (0700) and lives as long as the cluster; what lies in it needs no MAC of its own.

    Args:
        path: of the directory.
        least: blobs of fewer bytes are better sent through the socket.
        reuse: whether files that go are written over by the next blobs.
    """

    #: One session and its workers, on one machine.
    local = True

    def __init__(self, path: str, least: int = 256 << 10, reuse: bool = True) -> None:
        self._path, self.least = path, least
        self._spares = Spares(path) if reuse else None

    def put(self, parts: Sequence[bytes | bytearray | memoryview], name: str = "") -> str | None:
        """Write the parts, one after the other, to a new file; its name, or None when there is no room.

        Written, not stored through a mapping: a full file system is then an error and no SIGBUS. Under a name that is
        given, the file appears whole.
        """
        own = f"{name}.part" if name else os.urandom(12).hex()
        path = os.path.join(self._path, own)
        views = [view for part in parts if len(view := memoryview(part).cast("B"))]
        file, size = None, sum(map(len, views))
        if self._spares and size >= MAPPED_BYTES:
            file = self._spares.take(size, path)
        try:
            if file is None:
                # Of what somebody left who died while he wrote it nothing is kept.
                file = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if name else os.O_EXCL), 0o600)
        except OSError:  # the cluster is going down, or the file system is full of names
            return None
        try:
            _write(file, views)
            if name:
                os.rename(path, os.path.join(self._path, name))
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(path)
            if isinstance(error, OSError):
                return None
            raise
        finally:
            close_unlocked(file)
        return name or own

    def has(self, name: str) -> bool:
        """Whether there is such a blob."""
        return os.path.exists(os.path.join(self._path, name))

    def names(self) -> list[str]:
        """The blobs that are there."""
        try:
            return [name for name in os.listdir(self._path) if _NAME.fullmatch(name)]
        except OSError:  # its owner is going down
            return []

    def get(self, name: str, size: int, *, keep: bool) -> memoryview:
        """The bytes of a blob, mapped privately; without ``keep`` its file goes with the last reader.

        Raises:
            WireError: there is no such blob of that size.
        """
        if type(name) is not str or not _NAME.fullmatch(name):
            raise WireError(f"{name!r:.60} is no name of a blob in the depot")
        path = os.path.join(self._path, name)
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise WireError(f"the blob {name} is not in the depot: {error.strerror}") from None
        try:
            mapped = size >= MAPPED_BYTES
            if mapped and self._spares:
                _lock(file, path)
            if os.fstat(file).st_size != size:
                raise WireError(f"the blob {name} in the depot is not {size} bytes long")
            # The mapping has a copy of the descriptor, which keeps the lock as long as anything refers to the mapping.
            held = mmap.mmap(file, size, access=mmap.ACCESS_COPY) if mapped else _read(file, size)
        finally:
            os.close(file)
        if not keep and isinstance(held, mmap.mmap):
            weakref.finalize(held, self.drop, name).atexit = False
        elif not keep:
            self.drop(name)
        return memoryview(held)

    def room(self) -> int:
        """Bytes that one reader may well leave mapped."""
        return int(self._free() * ROOM)

    def _free(self) -> int:
        try:
            space = os.statvfs(self._path)
        except OSError:  # its owner is going down
            return 0
        return space.f_bavail * space.f_frsize

    def drop(self, name: str) -> None:
        """Remove a blob; those who have it mapped keep it."""
        path = os.path.join(self._path, name)
        with contextlib.suppress(OSError):
            reused = self._spares if os.stat(path).st_size >= MAPPED_BYTES else None
            if not (reused and reused.give(path, int(self._free() * SPARE))):
                os.unlink(path)

    def tidy(self) -> None:
        """Give memory back that was kept for the next blobs, and that none came for."""
        if self._spares:
            self._spares.tidy()


def _lock(file: int, path: str) -> None:
    """Have nobody write to a file that is about to be mapped.

    Raises:
        WireError: it is another blob's by now.
    """
    with contextlib.suppress(OSError):  # where there are no locks, nothing is written over
        fcntl.flock(file, fcntl.LOCK_SH)
    try:
        there, mine = os.stat(path), os.fstat(file)
    except OSError as error:
        raise WireError(f"the blob {os.path.basename(path)} is not in the depot: {error.strerror}") from None
    if there.st_ino != mine.st_ino:
        raise WireError(f"the blob {os.path.basename(path)} is not in the depot any more")


def _read(file: int, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view and (count := os.readv(file, [view])):
        view = view[count:]
    return data


def _write(file: int, views: list[memoryview]) -> None:
    while views:
        written = os.writev(file, views[:_MOST_BUFFERS])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]
