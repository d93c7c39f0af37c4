"""Bodies that are too large for one value of the server, on a cluster that spans machines."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from acceptance.elsewhere import elsewhere
from support import Server, eventually, running_server

from nbparallel import pmap
from nbparallel.errors import WireError
from nbparallel.store import parts
from nbparallel.store.parts import PartsDepot
from nbparallel.store.real import RedisStore


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of its own."""
    with running_server() as server:
        yield server


@pytest.fixture
def depot(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[PartsDepot]:
    """Large bodies are those of ten bytes or more, in parts of four."""
    monkeypatch.setattr(parts, "PART_BYTES", 4)
    store = RedisStore(server.url)
    yield PartsDepot(store, 10, 60)
    store.close_connections()


def names(server: Server) -> list[bytes]:
    """All keys of the server."""
    with server.client() as client:
        found: list[bytes] = client.keys()
    return found


def test_a_body_goes_in_parts_and_comes_back_writable(depot: PartsDepot, server: Server) -> None:
    """No value is longer than a part, each has a time to live, and the whole is as it was."""
    name = depot.put([b"abcdef", bytearray(b"ghij"), memoryview(b"k")])
    with server.client() as client:
        keys = client.keys()
        assert sorted(client.strlen(key) for key in keys) == [3, 4, 4]
        assert all(0 < client.pttl(key) <= 60_000 for key in keys)
    body = depot.get(name, 11, keep=False)
    assert body == b"abcdefghijk"
    body[0] = 0
    assert depot.get(name, 11, keep=True) == b"abcdefghijk"


@pytest.mark.parametrize("what", ["changed", "missing", "swapped", "longer"])
def test_parts_of_somebody_else_are_refused(depot: PartsDepot, server: Server, what: str) -> None:
    """The name, which is sealed, tells what the bytes must be."""
    name = depot.put([b"abcdefghijkl"])
    first, second = (f"nbp:default:part:{name}:{i}" for i in (0, 1))
    with server.client() as client:
        if what == "changed":
            client.set(first, b"abcX")
        elif what == "missing":
            client.delete(second)
        elif what == "swapped":
            client.rename(first, "other")
            client.rename(second, first)
            client.rename("other", second)
        else:
            client.append(first, b"d")
    with pytest.raises(WireError, match="not in the store as it was put"):
        depot.get(name, 12, keep=True)


def test_what_was_put_here_can_be_dropped_and_is_remembered_till_then(server: Server) -> None:
    """The client need not fetch what it sent to send it again; dropping it frees the store."""
    store = RedisStore(server.url)
    depot = PartsDepot(store, 10, 60, remember=True)
    name = depot.put([b"abcdefghijkl"])
    with server.client() as client:
        client.flushall()
    assert depot.get(name, 12, keep=True) == b"abcdefghijkl"
    other = depot.put([b"abcdefghijkl"])
    depot.drop(other)
    assert names(server) == []
    depot.drop(other)  # again is harmless
    store.close_connections()


def test_large_functions_items_and_results_cross_a_cluster(tmp_path: Path) -> None:
    """Whatever is above the limit goes in parts, both ways, and what the client sent is gone when the job has ended."""
    carried = bytes(range(256)) * 400
    with elsewhere(tmp_path) as cluster:
        cluster.start(NBPARALLEL_PART_BYTES="50000")
        cluster.wait_for(1)
        with cluster.connect(part_bytes=50_000) as session:
            job = pmap(partial(_join, carried), [bytes([i]) * 60_000 for i in range(4)], session=session)
            assert [len(result) for result in job] == [len(carried) + 60_000] * 4
            assert job[3] == carried + b"\x03" * 60_000
            with cluster.server.client() as client:
                assert client.keys("nbp:*:part:*"), "nothing went in parts"
                eventually(lambda: len(client.keys("nbp:*:part:*")) == 4, what="only the results are left")


def _join(carried: bytes, item: bytes) -> bytes:
    return carried + item
