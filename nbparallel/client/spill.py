"""A place on disk for results that are too many for the memory; ``results.py`` writes and reads it."""

from __future__ import annotations

import os
import tempfile
import threading

from ..errors import ResultDropped, WireError

__all__ = ["SpillFile"]


class SpillFile:
    """A nameless temporary file of bodies; closed when nobody refers to it any more.

    Raises:
        OSError: there is no place for it.
    """

    _descriptor = -1

    def __init__(self) -> None:
        with tempfile.TemporaryFile(buffering=0) as file:
            # Not the file object: collected together with us, it may be finalized first, and warn.
            self._descriptor = os.dup(file.fileno())
        self._lock = threading.Lock()
        self.size = 0

    def append(self, data: bytes | memoryview) -> int:
        """Write the bytes and return their offset."""
        view = memoryview(data).cast("B")
        with self._lock:
            offset = end = self.size
            while view:
                written = os.pwrite(self._descriptor, view, end)
                view, end = view[written:], end + written
            self.size = end
        return offset

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from that offset on.

        Raises:
            ResultDropped: the file was closed.
            WireError: the file is too short.
        """
        # Under the lock: a file closed meanwhile could give its descriptor's number, and so its bytes, to another.
        with self._lock:
            if self._descriptor < 0:
                raise ResultDropped("the results of this job were closed")
            parts = []
            while size:  # one read returns at most 2 GiB
                part = os.pread(self._descriptor, size, offset)
                if not part:
                    raise WireError("the file of results that were moved out of memory was cut short")
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Give the space back; may be called twice."""
        with self._lock:
            self._let_go()

    def __del__(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
