"""Clusters that run elsewhere: ``connect`` to a real server with real workers, over TCP and unix sockets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
from acceptance.elsewhere import NBPARALLEL, Elsewhere, elsewhere
from support import eventually

from nbparallel import Cluster, JobCancelled, JobError, UsageError, VersionMismatch, connect, pmap, pstarmap
from nbparallel.model import PROTOCOL_VERSION
from nbparallel.store.real import RedisStore


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """One worker with two processes, for all tests of this module."""
    with elsewhere(tmp_path_factory.mktemp("remote")) as remote:
        remote.start()
        remote.wait_for(1)
        yield remote


def test_jobs_run_on_the_workers(remote: Elsewhere) -> None:
    """Functions, closures and errors travel to the worker's processes and back, over TCP with a password."""
    offset = 10
    with remote.connect() as cluster:
        parents = pmap(lambda _: os.getppid(), range(20), session=cluster, chunks=1).result(timeout=30)
        assert set(parents) == {remote.workers[0].process.pid}
        assert list(pmap(lambda x: x + offset, iter(range(100)), session=cluster)) == list(range(10, 110))
        assert pstarmap(pow, [(2, 3), (3, 2)], session=cluster).result(timeout=30) == [8, 9]
        with pytest.raises(ZeroDivisionError):
            pmap(lambda x: 1 // x, [1, 0], session=cluster).result(timeout=30)


@pytest.mark.parametrize("spelling", ["unix://:{}@{}?db=0", "redis+socket://:{}@{}?virtual_host=0", "unix://:{}@{}"])
def test_any_spelling_of_a_unix_socket(remote: Elsewhere, spelling: str) -> None:
    """A socket's URL as redis-py or as Celery writes it serves store and broker alike."""
    url = spelling.format(remote.server.password, remote.server.socket)
    with connect(url, key=remote.key) as cluster:
        assert pmap(abs, [-1, 2], session=cluster).result(timeout=30) == [1, 2]


@pytest.mark.parametrize("key", ["text", "bytes", "file"])
def test_the_key_in_any_form(remote: Elsewhere, key: str) -> None:
    """The key is given as text, as bytes, or as the file that the workers read."""
    given = {"text": {"key": remote.key}, "bytes": {"key": remote.key.encode()}, "file": {"key_file": remote.key_file}}
    options = {name: str(value) if name == "key_file" else value for name, value in given[key].items()}
    with connect(remote.server.url, **options) as cluster:
        assert pmap(abs, [-1], session=cluster).result(timeout=30) == [1]


def test_stop_cancels_and_leaves_the_workers(remote: Elsewhere) -> None:
    """``stop`` ends this client's jobs at once; the workers are free for the next client."""
    cluster = remote.connect()
    job = pmap(lambda _: __import__("threading").Event().wait(60), range(4), session=cluster, chunks=1)
    eventually(lambda: job.snapshot().running, 20)
    cluster.stop()
    cluster.stop()
    assert job.status == "cancelled"
    with pytest.raises(JobCancelled):
        job.result()
    with pytest.raises(JobError, match="this cluster was stopped; make a new one"):
        pmap(abs, [1], session=cluster)
    with remote.connect() as again:
        assert pmap(abs, [-1], session=again).result(timeout=30) == [1]
    remote.wait_for(1)


def test_two_clients_at_a_time(remote: Elsewhere) -> None:
    """Jobs of two clients share the workers, and none gets the other's results."""
    with remote.connect() as one, remote.connect() as two:
        first = pmap(lambda x: ("one", x), range(300), session=one)
        second = pmap(lambda x: ("two", x), range(300), session=two)
        assert second.result(timeout=30) == [("two", x) for x in range(300)]
        assert first.result(timeout=30) == [("one", x) for x in range(300)]


def test_another_namespace_is_another_cluster(remote: Elsewhere) -> None:
    """In a namespace without workers a job waits and says why; one that has some runs it."""
    with remote.connect(namespace="team-b", queue="team-b") as cluster:
        job = pmap(abs, [-3], session=cluster)
        eventually(lambda: "no worker is listening on queue 'team-b'" in job.snapshot().reason)
        worker = remote.start(*NBPARALLEL, NBPARALLEL_NAMESPACE="team-b", NBPARALLEL_QUEUE="team-b")
        assert job.result(timeout=30) == [3]
        assert worker.end() == 0
    remote.wait_for(1)


def test_a_broker_beside_the_store(remote: Elsewhere) -> None:
    """Tickets may travel over another broker than the store, here another database of the same server."""
    broker = re.sub("/0$", "/3", remote.server.url)
    worker = remote.start(*NBPARALLEL, "--broker-url", broker, "--namespace", "split", "--queues", "split")
    with remote.connect(broker_url=broker, namespace="split", queue="split") as cluster:
        assert pmap(abs, [-4], session=cluster).result(timeout=30) == [4]
    assert worker.end() == 0
    remote.wait_for(0, "split")


#: A worker of another release.
OTHER = """
import sys
from nbparallel import model
model.PROTOCOL_VERSION, model.OLDEST_PROTOCOL = {newest}, {oldest}
from nbparallel.cli import main
sys.exit(main(["worker", "--concurrency", "1", "--queues", {queue!r}]))
"""


@pytest.mark.parametrize("newer", [1, 2])
def test_a_newer_worker_within_the_range(remote: Elsewhere, newer: int) -> None:
    """A worker whose release still speaks our protocol runs our jobs: a cluster is upgraded a machine at a time."""
    queue = f"newer-{newer}"
    code = OTHER.format(newest=PROTOCOL_VERSION + newer, oldest=PROTOCOL_VERSION, queue=queue)
    worker = remote.start("-c", code)
    with remote.connect(queue=queue) as cluster:
        assert pmap(lambda x: x + 1, range(50), session=cluster).result(timeout=30) == list(range(1, 51))
    assert worker.end() == 0


@pytest.mark.parametrize(
    ("newest", "oldest", "message"),
    [
        (PROTOCOL_VERSION + 2, PROTOCOL_VERSION + 1, "protocol {oldest} to {newest}.* for (this process|the client)"),
        (PROTOCOL_VERSION - 1, PROTOCOL_VERSION - 1, "protocol {oldest},.* for (worker .*|the worker)"),
    ],
    ids=["too new", "too old"],
)
def test_a_worker_out_of_range(remote: Elsewhere, newest: int, oldest: int, message: str) -> None:
    """A worker that does not go with us is refused by both ranges and by whom to upgrade, before anything runs."""
    worker = remote.start("-c", OTHER.format(newest=newest, oldest=oldest, queue=f"other-{newest}"))
    with remote.connect(queue=f"other-{newest}") as cluster:
        job = pmap(abs, [-1], session=cluster)
        # The client sees it in the worker's beat, or the worker in the job's rules, whichever comes first.
        with pytest.raises(VersionMismatch) as caught:
            job.result(timeout=30)
    assert re.search(message.format(newest=newest, oldest=oldest), str(caught.value))
    assert worker.end() == 0


def test_the_environment_names_the_cluster(remote: Elsewhere) -> None:
    """With ``NBPARALLEL_URL`` and ``NBPARALLEL_KEY_FILE`` set, ``pmap`` uses that cluster and leaves quietly."""
    done = remote.run("-W", "error", "-c", "import nbparallel as n, os; print(*n.pmap(lambda _: os.getppid(), [1]))")
    assert (done.stdout, done.stderr, done.returncode) == (f"{remote.workers[0].process.pid}\n", "", 0)


def test_a_client_that_ends_leaves_no_keys(remote: Elsewhere) -> None:
    """What a client leaves in the store after its end is the workers' alone."""
    with remote.connect(namespace="tidy", queue="tidy") as cluster:
        job = pmap(abs, [-1], session=cluster)
        job.cancel()
    store = RedisStore(remote.server.url, "tidy")
    with remote.server.client() as client:
        eventually(lambda: not [key for key in client.keys(f"{store.prefix}*") if b"job" not in key], what="no keys")
    store.close_connections()


def test_repr_hides_the_password(remote: Elsewhere) -> None:
    """The handle shows where it leads to, and no secret."""
    with remote.connect() as cluster:
        assert f"127.0.0.1:{remote.server.port}" in repr(cluster)
        assert remote.server.password not in repr(cluster)
    assert "disconnected" in repr(cluster)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a cluster needs its key: pass key=..., key_file=..., or set NBPARALLEL_KEY_FILE"),
        ({"key": "short"}, "key must be at least 16 bytes, the same as the workers'"),
        ({"key": 16 * [0]}, "key must be at least 16 bytes"),
        ({"key": "k" * 16, "key_file": "f"}, "give either key or key_file, not both"),
        ({"key_file": "/no/such/file"}, "the key file /no/such/file cannot be read: No such file"),
        ({"key": "k" * 16, "leas_seconds": 3}, "unknown setting 'leas_seconds'; known are broker_options"),
        ({"key": "k" * 16, "lease_seconds": "soon"}, "setting lease_seconds must be of type float, not 'soon'"),
    ],
)
def test_wrong_options_of_connect(options: dict[str, object], message: str) -> None:
    """``connect`` refuses a wrong argument before it talks to anyone, and says what to do."""
    with pytest.raises(UsageError, match=re.escape(message)):
        connect("redis://127.0.0.1:1/0", **options)  # type: ignore[arg-type]


def test_a_handle_of_the_wrong_kind() -> None:
    """``session`` takes a cluster; a URL or the class itself is refused by name."""
    for wrong in ("redis://127.0.0.1:1/0", Cluster):
        with pytest.raises(UsageError, match="session must be a Cluster, what connect\\(\\) returned"):
            pmap(abs, [1], session=wrong)  # type: ignore[call-overload]
