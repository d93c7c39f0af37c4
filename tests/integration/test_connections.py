"""The connections of a store's client, over a real server that goes away."""

from __future__ import annotations

import pytest
from support import running_server

from nbparallel.errors import ClusterError
from nbparallel.store.real import RedisStore


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
