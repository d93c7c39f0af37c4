"""The stores that the contract holds for: in memory, on the bundled server, and on one from PATH."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from contract.bench import Bench, memory_bench, server_bench
from support import Server, running_server


@pytest.fixture(scope="session", params=["bundled", "path"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each kind of real server: the one among the dependencies, and one that the machine has."""
    with running_server(request.param) as server:
        yield server


@pytest.fixture(scope="session", params=["memory", "bundled", "path"])
def place(request: pytest.FixtureRequest) -> Iterator[Server | None]:
    """Where a store can be: in memory (None), or on each kind of real server."""
    with ExitStack() as stack:
        yield None if request.param == "memory" else stack.enter_context(running_server(request.param))


@pytest.fixture
def real(server: Server) -> Iterator[Bench]:
    """A store on each kind of real server."""
    with server_bench(server) as bench:
        yield bench


@pytest.fixture
def bench(place: Server | None) -> Iterator[Bench]:
    """Each kind of store."""
    if place is None:
        yield memory_bench()
    else:
        with server_bench(place) as bench:
            yield bench
