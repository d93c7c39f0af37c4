"""Says to a remote store that the client lives, from a process of its own: a kernel that is busy in C is not dead.

``session.py`` hands over where a store is and one command, which the process repeats until its client ends, however
that ends; then it just stops, so that the session's grace runs out. The process runs ``store/beating.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, cast

from ..store import beating

__all__ = ["Beat"]

#: Seconds in which the process ends when it is told to.
STOP_SECONDS = 2.0


class Beat:
    """The beating process, seen from the client. Thread-safe.

    Args:
        place: the store, as ``RedisStore.place`` has it; goes through a pipe, as it may hold a password.
        command: what to send.
        every: seconds between two beats.
    """

    def __init__(self, place: Mapping[str, Any], command: Sequence[bytes], every: float) -> None:
        self._told = {
            "place": place,
            "command": [part.hex() for part in command],
            "every": min(every, beating.EVERY_SECONDS),
            "client": os.getpid(),
            "path": [entry for entry in sys.path if entry],
        }
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    @property
    def pid(self) -> int:
        """Process id, or 0."""
        return self._process.pid if self._process is not None else 0

    def keep_up(self) -> None:
        """Start the process unless it runs; in a forked child, and after ``stop``, this does nothing."""
        with self._lock:
            if self._stopped or os.getpid() != self._told["client"]:
                return
            if self._process is not None:
                if self._process.poll() is None:
                    return
                self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-I", beating.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",  # not to keep the client's file system from being unmounted
                start_new_session=True,  # an interrupt of the client's process group is not for it
            )
            with suppress(BrokenPipeError):  # found dead, and started anew, by the next call
                cast(IO[bytes], self._process.stdin).write(json.dumps(self._told).encode() + b"\n")

    def stop(self) -> None:
        """End the process; when this returns, it beats no more."""
        with self._lock:
            self._stopped = True
            if self._process is not None and os.getpid() == self._told["client"]:
                self._end()

    def _end(self) -> None:
        assert self._process is not None
        stdin = cast(IO[bytes], self._process.stdin)
        with suppress(BrokenPipeError):  # a byte, since a forked child of ours may hold the pipe open
            stdin.write(b"\n")
        stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:  # the store does not answer just now
            self._process.kill()
            self._process.wait()
        self._process = None
