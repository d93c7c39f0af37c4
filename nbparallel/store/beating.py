"""A program that says to a store that a client lives, until the client ends; ``client/beat.py`` starts it.

Run by itself, isolated from the user's environment: at its start it knows nothing but the standard library, and what
arrives on stdin.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from contextlib import suppress

__all__ = ["EVERY_SECONDS", "main"]

#: Longest interval between two beats, in seconds, and between attempts to reach a store that is away.
EVERY_SECONDS, AGAIN_SECONDS = 5.0, 0.5
#: Seconds between looks at the parent's id where the client cannot be watched by a pidfd.
PARENT_SECONDS = 0.5


def main() -> None:
    """Send the command that stdin names, again and again, until the client is gone or says so."""
    told = json.loads(sys.stdin.buffer.readline() or b"{}")
    if not told:
        return
    sys.path[:] = told["path"]  # redis-py lies where the client has it
    import redis

    store = redis.Redis.from_url(told["url"], socket_timeout=EVERY_SECONDS, protocol=2, client_name="nbparallel")
    command = [bytes.fromhex(part) for part in told["command"]]
    watched = select.poll()
    watched.register(0, select.POLLIN)
    interval = PARENT_SECONDS
    with suppress(AttributeError, OSError):
        watched.register(os.pidfd_open(told["client"]), select.POLLIN)
        interval = EVERY_SECONDS
    due = 0.0
    while os.getppid() == told["client"]:
        if time.monotonic() >= due:
            try:
                store.execute_command(*command)
                due = time.monotonic() + told["every"]
            except Exception:  # the store is away, or refuses us for now; the client itself says so to its user
                due = time.monotonic() + min(AGAIN_SECONDS, told["every"])
        if watched.poll(1000 * min(interval, max(0.0, due - time.monotonic()))):
            return


if __name__ == "__main__":
    main()
