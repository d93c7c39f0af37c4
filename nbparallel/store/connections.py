"""Sends commands and reads their replies: called by ``real.py``, uses redis-py's connections without its command layer.

That layer (pool bookkeeping, retry and telemetry wrappers, reply conversions) costs more than half of the time of a
call, and a call is what a chunk costs. Connecting, authentication, TLS and the protocol stay redis-py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

__all__ = ["Connections"]


class Connections:
    """Connections to one server; thread-safe, each exchange has one to itself.

    Args:
        client: knows how to connect.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._idle: deque[Any] = deque()

    def exchange(self, *commands: Sequence[Any]) -> list[Any]:
        """Send commands in one go and return their replies.

        Repeated once on a new connection when this one turns out to be broken, as one that the server closed while it
        was idle does: every command that comes here may be repeated.

        Raises:
            redis.exceptions.RedisError: what the first refused command was refused with, or that the server is away.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._pool.make_connection()
        try:
            replies = self._attempt(connection, commands)
        except (ConnectionError, TimeoutError, OSError):
            replies = self._attempt(connection, commands)
        finally:
            # Also after an error, which disconnected it: redis-py makes a hundred connections in all, and no more.
            self._idle.append(connection)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return replies

    def _attempt(self, connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
        try:
            connection.connect()  # does nothing when it is
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            replies = []
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except ResponseError as error:
                    replies.append(error)
            return replies
        except BaseException:
            connection.disconnect()  # a reply may still be on its way
            raise

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().disconnect()
