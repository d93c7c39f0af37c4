"""Makes private directories on this machine, and sweeps those whose owner is gone: those of embedded clusters, for
sockets, logs and large blobs, and those of workers, for what their processes share.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StartupFailed

__all__ = ["SOCKET_NAME", "make_depot", "make_directory", "make_shelf", "remove", "sweep"]

#: Memory as a file system, and the least of it, in bytes, that must be free; containers often have but 64 MB.
SHARED_MEMORY, LEAST_SHARED_MEMORY = "/dev/shm", 1 << 30

#: Name of the server's socket in the directory; short, because the length of the whole path is limited.
SOCKET_NAME = "s.sock"
#: Longest path, in bytes, of a unix socket (``sun_path`` less its final zero byte).
SOCKET_PATH_LIMIT = 103 if sys.platform == "darwin" else 107
#: Names of our directories: the client's process id, then what mkdtemp appends.
NAME = re.compile(r"nbparallel-\d+-\w{8}")


def make_directory(environ: Mapping[str, str]) -> tuple[Path, int]:
    """A new directory that only this user may enter, and a file descriptor that holds its lock.

    While anyone holds the descriptor open, nobody sweeps the directory (nor does systemd-tmpfiles, which
    honours such locks). Stale directories beside it are swept.

    Raises:
        StartupFailed: no place is writable and short enough for a socket; names each and the limit.
    """
    refused = []
    for parent in _places(environ):
        template = os.path.join(parent, f"nbparallel-{os.getpid()}-12345678", SOCKET_NAME)
        if len(os.fsencode(template)) > SOCKET_PATH_LIMIT:
            refused.append(f"the socket path {template} would exceed the system's limit of {SOCKET_PATH_LIMIT} bytes")
            continue
        try:
            sweep(Path(parent))
            return _make_locked(parent)
        except OSError as error:
            refused.append(f"{parent} cannot be used: {error}")
    raise StartupFailed(
        f"no directory for the embedded cluster's socket: {'; '.join(refused)}. "
        "Set TMPDIR to a writable directory with a short path"
    )


def sweep(parent: Path) -> None:
    """Remove directories of ours in ``parent`` whose lock nobody holds: their guard was killed."""
    for entry in parent.iterdir():
        if not NAME.fullmatch(entry.name):
            continue
        with suppress(OSError):  # somebody else's, locked, or just removed by its guard
            status = entry.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            with _locked(entry):
                remove(entry)


def make_depot(directory: Path) -> tuple[Path, int]:
    """Where the cluster's large blobs lie: in memory when there is enough of it, else in the directory itself.

    ``directory/depot`` leads there, so that whoever removes the directory finds it. Returned with a file descriptor
    that keeps others from sweeping it, or -1.
    """
    depot = directory / "depot"
    with suppress(OSError):
        if _has_room():
            path, lock = _make_swept(SHARED_MEMORY)
            depot.symlink_to(path)
            return path, lock
    depot.mkdir(mode=0o700)
    return depot, -1


def make_shelf() -> tuple[Path, int]:
    """A new private directory for blobs that several processes read, in memory when there is enough of it.

    Returned with a file descriptor that keeps others from sweeping it.

    Raises:
        OSError: there is no place for it.
    """
    with suppress(OSError):
        if _has_room():
            return _make_swept(SHARED_MEMORY)
    return _make_swept(tempfile.gettempdir())


def _has_room() -> bool:
    space = os.statvfs(SHARED_MEMORY)
    return space.f_bavail * space.f_frsize >= LEAST_SHARED_MEMORY


def _make_swept(parent: str) -> tuple[Path, int]:
    sweep(Path(parent))
    return _make_locked(parent)


def remove(directory: Path) -> None:
    """Remove a directory of ours with its depot."""
    depot = directory / "depot"
    if depot.is_symlink():
        target = Path(os.readlink(depot))
        if target.parent == Path(SHARED_MEMORY) and NAME.fullmatch(target.name):
            shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def _places(environ: Mapping[str, str]) -> Iterator[str]:
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK):
        yield runtime
    with suppress(OSError):  # raised when nowhere is writable
        yield os.path.abspath(tempfile.gettempdir())
    yield "/tmp"


def _make_locked(parent: str) -> tuple[Path, int]:
    while True:
        path = tempfile.mkdtemp(prefix=f"nbparallel-{os.getpid()}-", dir=parent)
        low = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Above 2, because the guard's own stdin, stdout and stderr take those numbers
            # (a client with a closed stdin would get 0 here).
            lock = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3)
        finally:
            os.close(low)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(path):
            return Path(path), lock
        os.close(lock)  # another client swept it before it was locked


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
