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
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis

__all__ = ["EVERY_SECONDS", "main", "open_client"]

#: Longest interval between two beats, in seconds, and between attempts to reach a store that is away.
EVERY_SECONDS, AGAIN_SECONDS = 5.0, 0.5
#: Seconds between looks at the parent's id where the client cannot be watched by a pidfd.
PARENT_SECONDS = 0.5


def open_client(place: Mapping[str, Any], **options: Any) -> redis.Redis:
    """redis-py's client for a server, or for the one that Sentinels say is the master now.

    Args:
        place: ``url``; or ``nodes``, ``master``, ``login`` and ``sentinel_login``, see ``urls.Sentinels``.
        options: redis-py's.
    """
    if "url" in place:
        from redis import Redis

        return Redis.from_url(place["url"], **options)
    from redis.sentinel import Sentinel

    patience = {name: value for name, value in options.items() if name.startswith("socket_")}
    nodes = [(host, port) for host, port in place["nodes"]]
    watchers = Sentinel(nodes, sentinel_kwargs={**place["sentinel_login"], **patience, "protocol": 2})
    client: redis.Redis = watchers.master_for(place["master"], **place["login"], **options)
    return client


def main() -> None:
    """Send the command that stdin names, again and again, until the client is gone or says so."""
    told = json.loads(sys.stdin.buffer.readline() or b"{}")
    if not told:
        return
    sys.path[:] = told["path"]  # redis-py lies where the client has it
    store = open_client(told["place"], socket_timeout=EVERY_SECONDS, protocol=2, client_name="nbparallel")
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
