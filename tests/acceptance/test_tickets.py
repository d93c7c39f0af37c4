"""Messages of the broker that are lost, doubled, late or delivered again: what is run is decided in the store alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from acceptance.chaos.schedule import QUEUE, messages
from acceptance.hosts import Rig, remote
from support import eventually

from nbparallel import pmap
from nbparallel.client.job import Job
from nbparallel.cluster.handle import RemoteCluster


def logged(log: str, index: int, seconds: float = 0.02) -> int:
    """Leaves a line at its start."""
    with open(log, "a") as file:
        file.write(f"{index}\n")
    time.sleep(seconds)
    return index


def lines(log: Path) -> list[int]:
    """The items that were started."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@contextmanager
def busy(tmp_path: Path, seconds: float = 3.0) -> Iterator[tuple[Rig, RemoteCluster, redis.Redis, Job[int]]]:
    """Two hosts that are busy for a while, so that the next job's messages wait in the queue."""
    # A child that lingers would take the next job's tickets whatever becomes of their messages.
    with remote(2, linger_seconds=0.0) as (rig, cluster), rig.server.client() as store:
        log = str(tmp_path / "before")
        before = pmap(logged, [log] * 2, range(2), [seconds] * 2, chunks=1, progress=False, session=cluster)
        eventually(lambda: len(lines(tmp_path / "before")) == 2, 10)
        yield rig, cluster, store, before
        assert before.result(30) == [0, 1]
        assert sorted(lines(tmp_path / "before")) == [0, 1]


def start(cluster: RemoteCluster, log: Path, store: redis.Redis) -> Job[int]:
    """A job whose messages wait, one for each host."""
    job = pmap(logged, [str(log)] * 40, range(40), chunks=2, progress=False, session=cluster)
    eventually(lambda: store.llen(QUEUE) == 2, 5, "messages wait")
    return job


def test_lost_messages_are_replaced(tmp_path: Path) -> None:
    """All messages of a job are lost: new ones come within seconds, and every item runs once."""
    log = tmp_path / "log"
    with busy(tmp_path) as (_, cluster, store, before):
        job = start(cluster, log, store)

        def drop() -> bool:
            store.delete(QUEUE)
            return before.status == "done"

        eventually(drop, 10, "the hosts are free")
        free = time.monotonic()
        assert job.result(20) == list(range(40))
        assert time.monotonic() - free < 8.0
        assert sorted(lines(log)) == list(range(40))


def test_doubled_messages_do_no_harm(tmp_path: Path) -> None:
    """Every message comes ten times, those of running items too: every item runs once."""
    log = tmp_path / "log"
    with busy(tmp_path) as (_, cluster, store, _before):
        job = start(cluster, log, store)
        copies = [message for message in messages(store) for _ in range(10)]
        assert len(copies) >= 30
        store.lpush(QUEUE, *copies)
        assert job.result(30) == list(range(40))
        assert sorted(lines(log)) == list(range(40))
        eventually(lambda: not store.llen(QUEUE), 10, "all copies were taken")


def test_late_messages_do_no_harm(tmp_path: Path) -> None:
    """Messages that come when their job has ended long ago start nothing, and the next job is none the worse."""
    log = tmp_path / "log"
    with busy(tmp_path, seconds=1.0) as (_, cluster, store, _before):
        job = start(cluster, log, store)
        late = store.lrange(QUEUE, 0, -1)
        store.delete(QUEUE)
        assert job.result(30) == list(range(40))
        store.lpush(QUEUE, *late)
        again = tmp_path / "again"
        assert pmap(logged, [str(again)] * 40, range(40), session=cluster).result(20) == list(range(40))
        eventually(lambda: not store.llen(QUEUE), 10, "the late messages were taken")
        assert sorted(lines(log)) == sorted(lines(again)) == list(range(40))


def test_redelivered_messages_do_no_harm(tmp_path: Path) -> None:
    """Messages that workers hold are delivered again all the time, as after lost connections: every item runs once."""
    log = tmp_path / "log"
    with remote(2) as (rig, cluster), rig.server.client() as store:
        job = pmap(logged, [str(log)] * 100, range(100), [0.05] * 100, chunks=1, progress=False, session=cluster)

        def deliver_again() -> bool:
            for message in messages(store):
                store.lpush(QUEUE, message)
            return job.status == "done"

        eventually(deliver_again, 60, "the job ends")
        assert job.result(0) == list(range(100))
        assert sorted(lines(log)) == list(range(100))
        store.delete(QUEUE)


def test_a_long_queue_is_not_stormed(tmp_path: Path) -> None:
    """While the workers are busy elsewhere, the search for lost messages adds a few, ever more rarely."""
    log = tmp_path / "log"
    most = 0
    with busy(tmp_path, seconds=8.0) as (_, cluster, store, before):
        job = start(cluster, log, store)

        def ended() -> bool:
            nonlocal most
            most = max(most, store.llen(QUEUE))
            return before.status == "done"

        eventually(ended, 20, "the workers are free")
        assert job.result(20) == list(range(40))
    assert 1 <= most <= 10, f"{most} messages waited"


#: An application as somebody would write it who runs Celery with a short visibility timeout.
IMPATIENT = """
from nbparallel.worker.main import app_from_environment
app = app_from_environment()
app.conf.broker_transport_options = {
    "visibility_timeout": 5, "unacked_restore_interval": 1, "unacked_restore_throttle": 1,
}
"""


@pytest.mark.timeout(90)
def test_an_item_longer_than_the_visibility_timeout_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker delivers the message of a long item again while it runs; the item runs once."""
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    log = tmp_path / "log"
    worker = (sys.executable, "-m", "celery", "-A", "impatient", "--workdir", str(tmp_path), "worker", "-c", "1")
    with remote(0) as (rig, cluster), rig.server.client() as store:
        for number in range(2):
            rig.add_host(1, command=(*worker, "-n", f"host{number}"))
        rig.wait_hosts(2)
        job = pmap(logged, [str(log)], [0], [12.0], progress=False, session=cluster)
        delivered = eventually(lambda: held(store), 10)
        assert len(delivered) == 1
        eventually(lambda: held(store) != delivered, 11, "the message is delivered again")
        assert job.status == "running", "the message came back too late to matter"
        assert job.result(30) == [0]
        assert lines(log) == [0]


def held(store: redis.Redis) -> dict[bytes, float]:
    """The messages that workers hold, and since when."""
    return dict(store.zrange("unacked_index", 0, -1, withscores=True))


#: An application whose consumer goes deaf when a file appears, as after a connection that died without a word.
DEAF = """
import os
from kombu.transport.redis import Channel
from nbparallel.worker.main import app_from_environment

app = app_from_environment()
flag, ask, deaf = os.environ["DEAF_FLAG"], Channel._brpop_start, []

def ask_unless_deaf(self, *arguments, **options):
    if os.path.exists(flag):
        os.rename(flag, flag + ".seen")
        deaf.append(self)
    if self not in deaf:
        ask(self, *arguments, **options)

Channel._brpop_start = ask_unless_deaf
"""


def test_a_deaf_worker_hears_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is connected and takes no messages though some wait connects anew, after the lease's time."""
    (tmp_path / "deaf.py").write_text(DEAF)
    flag = tmp_path / "flag"
    monkeypatch.setenv("DEAF_FLAG", str(flag))
    with remote(0) as (rig, cluster):
        rig.add_host(
            command=(sys.executable, "-m", "celery", "-A", "deaf", "--workdir", str(tmp_path), "worker", "-c1")
        )
        rig.wait_hosts(1)
        assert pmap(abs, [-1], session=cluster).result(20) == [1]
        flag.touch()
        eventually((tmp_path / "flag.seen").exists, 10, "it is deaf")
        began = time.monotonic()
        assert pmap(abs, range(-9, 0), session=cluster).result(30) == list(range(9, 0, -1))
        print(f"heard again after {time.monotonic() - began:.1f} s")
        assert "connecting to the broker anew" in rig.logs()
