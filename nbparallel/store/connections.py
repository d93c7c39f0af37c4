"""Sends commands and reads their replies: called by ``real.py``, uses redis-py's connections without its command layer.

That layer (pool bookkeeping, retry and telemetry wrappers, reply conversions) costs more than half of the time of a
call, and a call is what a chunk costs; the better part of the rest was the reading of replies in many small steps.
Connecting, authentication and TLS stay redis-py's.
"""

from __future__ import annotations

from builtins import TimeoutError as OSTimeout
from collections import deque
from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import ConnectionError, InvalidResponse, ReadOnlyError, ResponseError, TimeoutError
from redis.sentinel import SentinelManagedConnection

__all__ = ["Connections"]

#: Most bytes that are received in one call.
_RECEIVED = 1 << 16


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
            connection.send_packed_command(_packed(commands), check_health=False)
            replies = _Replies(connection)
            return [replies.next() for _ in commands]
        except BaseException:
            connection.disconnect()  # a reply may still be on its way
            raise

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().disconnect()


def _packed(commands: Sequence[Sequence[Any]]) -> list[bytes]:
    """Commands as the server reads them, in few pieces: each is a call of the system, and may wake the server."""
    pieces: list[bytes] = []
    for command in commands:
        pieces.append(b"*%d\r\n" % len(command))
        for part in command:
            kind = type(part)
            if kind is str:
                part = part.encode()
            elif kind is int:
                part = b"%d" % part
            elif kind is float:
                part = repr(part).encode()
            pieces += (b"$%d\r\n" % (part.nbytes if kind is memoryview else len(part)), part, b"\r\n")
    return [b"".join(pieces)]


class _Replies:
    """Reads the replies to what was sent on a connection, of which nobody else reads meanwhile.

    Of protocol 2: status, error, number, string (of bytes) or list.
    """

    __slots__ = ("_at", "_connection", "_data")

    def __init__(self, connection: Any) -> None:
        self._connection, self._data, self._at = connection, b"", 0

    def next(self) -> Any:
        """The next reply: None, bytes, a number, a list of replies, or the error that the server answered with."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self._take(size)
        if kind == b":":
            return int(rest)
        if kind == b"*":
            count = int(rest)
            return None if count < 0 else [self.next() for _ in range(count)]
        if kind == b"+":
            return rest
        if kind != b"-":
            raise InvalidResponse(f"protocol error: {line[:80]!r}")
        error = self._connection._parser.parse_error(rest.decode("utf-8", "replace"))
        if not isinstance(error, ResponseError):  # such as one of a server that is loading its data
            raise error
        if isinstance(error, ReadOnlyError) and isinstance(self._connection, SentinelManagedConnection):
            raise ConnectionError("the server is a replica now: its Sentinels know the new master")
        return error

    def _line(self) -> bytes:
        while (end := self._data.find(b"\r\n", self._at)) < 0:
            self._data, self._at = self._data[self._at :] + self._receive(), 0
        line = self._data[self._at : end]
        self._at = end + 2
        return line

    def _take(self, size: int) -> bytes:
        parts, missing = [self._data[self._at : self._at + size + 2]], size + 2
        self._at += len(parts[0])
        while missing := missing - len(parts[-1]):
            data = self._receive()
            parts.append(data[:missing])
            if len(data) > missing:
                self._data, self._at = data, missing
        if len(parts) == 1:
            return parts[0][:-2]
        return b"".join(parts)[:-2]

    def _receive(self) -> bytes:
        try:
            data: bytes = self._connection._sock.recv(_RECEIVED)
        except OSTimeout as error:
            raise TimeoutError("timed out") from error
        if not data:
            raise ConnectionError("the server closed the connection")
        return data
