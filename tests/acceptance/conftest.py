"""Fixtures of the acceptance tests: clusters of two worker processes, and programs in processes of their own.

What takes the fixture ``cluster`` runs on the embedded one; on two hosts, a store and a client in network namespaces;
and with RabbitMQ as the broker. In a usual run the last two are for those tests alone that are marked ``everywhere``;
the others on them are marked ``soak``: ``pytest -m "soak or everywhere" -k "netns or rabbitmq" tests/acceptance``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from acceptance.hosts import KEY, Rig
from acceptance.network import FarRig, far_apart, inside
from acceptance.rabbit import over_rabbitmq
from support import Gate

import nbparallel
from nbparallel import Cluster, connect, pmap
from nbparallel.cluster.handle import RemoteCluster

#: Where the tested package lies, for programs that are run elsewhere.
ROOT = str(Path(nbparallel.__file__ or "").parents[1])

Program = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Where the tests run that take a cluster."""
    if "cluster" not in metafunc.fixturenames or hasattr(metafunc.module, "cluster"):
        return
    marked = {mark.name for mark in metafunc.definition.iter_markers()}
    places = ["embedded"]
    if "embedded_only" not in marked:
        soak = [] if "everywhere" in marked else [pytest.mark.soak]
        netns, rabbitmq = [*soak, pytest.mark.netns], [*soak, pytest.mark.rabbitmq]
        places += [pytest.param("netns", marks=netns), pytest.param("rabbitmq", marks=rabbitmq)]
    metafunc.parametrize("cluster", places, indirect=True, scope="module")


@pytest.fixture(scope="session")
def far_rig() -> Iterator[FarRig]:
    """A store, a client and two hosts on nodes of their own."""
    with far_apart() as rig:
        yield rig


@pytest.fixture(scope="session")
def rabbit_rig() -> Iterator[Rig]:
    """A store, RabbitMQ and two hosts."""
    with over_rabbitmq() as (_, rig):
        yield rig


@contextmanager
def embedded() -> Iterator[Cluster]:
    """Two worker processes."""
    with Cluster(workers=2) as cluster:
        yield cluster


@contextmanager
def in_namespaces(rig: FarRig) -> Iterator[RemoteCluster]:
    """Two hosts with a process each; this process is the client on its node meanwhile."""
    assert rig.network is not None
    with inside(rig.network.space("client")), connect(rig.server.url, key=KEY) as cluster:
        yield cluster


@contextmanager
def with_rabbitmq(rig: Rig) -> Iterator[RemoteCluster]:
    """Two hosts with a process each, which get their tickets from RabbitMQ."""
    with connect(rig.server.url, key=KEY, **rig.settings) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster | RemoteCluster]:
    """Two worker processes, shared by the tests of a module."""
    place = {
        "embedded": embedded,
        "netns": lambda: in_namespaces(request.getfixturevalue("far_rig")),
        "rabbitmq": lambda: with_rabbitmq(request.getfixturevalue("rabbit_rig")),
    }[request.param]
    with place() as cluster:
        pmap(abs, [-1], session=cluster).result(30)  # all of its threads run before the first test looks around
        yield cluster


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Where items wait until the test opens it, or ends."""
    with Gate(tmp_path / "gate") as gate:
        yield gate


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Run Python with the given arguments in an empty directory, warnings being errors; gives what it wrote."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "PYTHONPATH": ROOT, "NBPARALLEL_WORKERS": "2", "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-W", "error", *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, cwd=tmp_path, env=environ, timeout=60
        )

    return run
