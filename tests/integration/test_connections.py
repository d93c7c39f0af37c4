"""The connections of a store's client, over a real server that goes away."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest
from redis.exceptions import ConnectionError, InvalidResponse, NoScriptError, ResponseError, TimeoutError
from support import running_server

from nbparallel.errors import ClusterError
from nbparallel.store.connections import _Replies
from nbparallel.store.real import RedisStore


def test_replies_of_all_kinds_and_sizes() -> None:
    """What the server answers comes back as it was, however the system cuts it into pieces."""
    with running_server() as server:
        store = RedisStore(server.url)
        lines = store._lines
        for size in (0, 1, 10, 65_530, 65_536, 65_540, 1_000_003):
            data = os.urandom(size // 2) + b"\r\n" * (size // 4)
            assert lines.exchange(("SET", "key", data), ("GET", "key"), ("STRLEN", "key")) == [b"OK", data, len(data)]
            assert lines.exchange(("SET", "key", memoryview(data)), ("GET", "key"))[1] == data
        many = [f"{number}é" for number in range(20_000)]
        lines.exchange(("RPUSH", "list", *many), ("SET", "number", -7))
        replies = lines.exchange(
            ("LRANGE", "list", 0, -1), ("GET", "none"), ("INCRBY", "number", 5), ("LRANGE", "no", 0, 9)
        )
        assert replies == [[text.encode() for text in many], None, -2, []]
        assert lines.exchange(("EVAL", "return {1, {false, 'a'}, {}}", 0)) == [[1, [None, b"a"], []]]
        assert lines.exchange(("BLPOP", "empty", 0.01)) == [None]
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            lines.exchange(("GET", "list"), ("PING",))
        with pytest.raises(NoScriptError):
            lines.exchange(("EVALSHA", "0" * 40, 0))
        assert lines.exchange(("PING",)) == [b"PONG"], "the connection is as good as before"
        store.close_connections()


@pytest.mark.parametrize(
    ("answer", "ends", "error"),
    [
        (b"HTTP/1.1 400\r\n", False, InvalidResponse),
        (b"$5\r\nab", False, TimeoutError),
        (b"$5\r\nab", True, ConnectionError),
    ],
)
def test_a_server_that_is_not_well(answer: bytes, ends: bool, error: type[Exception]) -> None:
    """What answers as no server does, falls silent or leaves in the middle of a reply is told apart."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.05)
        theirs.sendall(answer)
        if ends:
            theirs.close()
        with pytest.raises(error):
            _Replies(SimpleNamespace(_sock=ours)).next()


def test_a_long_outage_uses_up_nothing() -> None:
    """However often a server that is away was asked for, it is reached again when it is back."""
    with running_server() as server:
        store = RedisStore(server.url)
        assert store.jobs() == {}
        server.stop()
        for _ in range(250):
            with pytest.raises(ClusterError):
                store.jobs()
        server.start()
        assert store.jobs() == {}
        store.close_connections()
