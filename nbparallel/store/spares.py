"""Files of a depot that nobody needs any more, kept for a moment so that the next blob is written over one of them.

The system need not find and clear memory for that, which is most of the cost of a new file. What somebody has mapped
is locked (``flock``, until the mapping is gone, or its process), and is not written to. Only a fork that closes
descriptors which it does not know must not go on reading what its parent had mapped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

__all__ = ["Spares", "close_unlocked"]

#: Seconds after which a file that nobody wrote over goes.
REST_SECONDS = 5.0
#: Files that are tried at most: others may be faster, or still have one mapped.
_TRIES = 4


class Spares:
    """The spare files of one depot, in a directory inside it; any process that uses the depot takes and gives them.

    Args:
        path: of the depot.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.join(path, "spare")

    def take(self, size: int, path: str) -> int | None:
        """Move a file of about that size to ``path``: its descriptor, exclusively locked, or None."""
        me = os.getpid()  # each process tries files of the same size in an order of its own
        near = [
            (abs(have - size), hash((name, me)), name) for have, name in self._files() if size <= 2 * have <= 4 * size
        ]
        for *_, name in sorted(near)[:_TRIES]:
            spare = os.path.join(self._path, name)
            try:
                file = os.open(spare, os.O_RDWR | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(spare, path)  # fails when another process was faster
                os.ftruncate(file, size)
                return file
            except OSError:
                close_unlocked(file)
        return None

    def give(self, path: str, most: int) -> bool:
        """Keep a file, unless there are more than ``most`` bytes then; False: it is still where it was."""
        try:
            size = os.stat(path).st_size
            if sum(have for have, _ in self._files()) + size > most:
                return False
            os.makedirs(self._path, mode=0o700, exist_ok=True)
            os.rename(path, os.path.join(self._path, f"{size}-{os.urandom(8).hex()}"))
            return True
        except OSError:
            return False

    def tidy(self) -> None:
        """Remove those that nobody needed for a while."""
        for _, name in self._files():
            spare = os.path.join(self._path, name)
            with contextlib.suppress(OSError):  # it was just taken
                if time.time() - os.stat(spare).st_ctime > REST_SECONDS:  # since it came here
                    os.unlink(spare)

    def _files(self) -> list[tuple[int, str]]:
        try:
            return [(int(name.partition("-")[0]), name) for name in os.listdir(self._path)]
        except OSError:  # none was given yet, or the cluster is going down
            return []


def close_unlocked(file: int) -> None:
    """Close a descriptor; its lock goes with it, although a process that was forked meanwhile has it, too."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
