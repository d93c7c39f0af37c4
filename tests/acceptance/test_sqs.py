"""Amazon SQS as the broker (moto's server), beside a real store: approximate order, visibility timeouts, no events."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from acceptance.aws import Moto, moto_server
from acceptance.hosts import KEY, QUICK, Rig
from support import eventually, free_port, needed, our_processes, running_server

from nbparallel import JobCancelled, UsageError, connect, pmap
from nbparallel import celery as application
from nbparallel.cluster.handle import RemoteCluster
from nbparallel.errors import ConnectionFailed

pytestmark = pytest.mark.timeout(180)

#: Seconds after which SQS delivers again what was not acknowledged.
VISIBILITY = 1
OPTIONS = {"region": "eu-central-1", "visibility_timeout": VISIBILITY, "wait_time_seconds": 1}


@pytest.fixture(scope="module")
def amazon() -> Iterator[Moto]:
    """SQS."""
    needed("boto3", "pycurl")
    with moto_server() as moto:
        yield moto


@pytest.fixture(scope="module")
def rig(amazon: Moto) -> Iterator[Rig]:
    """A store, SQS, and a host with two processes."""
    with ExitStack() as stack:
        server = stack.enter_context(running_server())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="h")))
        (directory / "key").write_text(KEY)
        broker = {"broker_url": f"sqs://test:test@127.0.0.1:{amazon.port}", "broker_options": json.dumps(OPTIONS)}
        rig = Rig(server, directory, {**QUICK, **broker})
        stack.callback(rig.stop)
        rig.add_host(2)
        rig.wait_hosts(1, 40)
        yield rig


@pytest.fixture(scope="module")
def cluster(rig: Rig) -> Iterator[RemoteCluster]:
    """A connection to it."""
    with connect(rig.server.url, key=KEY, **rig.settings) as cluster:
        pmap(abs, [-1], session=cluster).result(30)
        yield cluster


def logged(index: int, log: str, seconds: float = 0.0) -> int:
    """Leaves a line at its start."""
    with open(log, "a") as file:
        file.write(f"{index}\n")
    time.sleep(seconds)
    return index


def test_jobs_over_sqs(cluster: RemoteCluster, tmp_path: Path) -> None:
    """Results, errors and streaming are as ever, and every item runs once."""
    log = tmp_path / "log"
    job = pmap(logged, range(300), [str(log)] * 300, session=cluster)
    assert job.result(30) == list(range(300))
    assert Counter(log.read_text().split()) == Counter(map(str, range(300)))
    with pytest.raises(ZeroDivisionError):
        pmap(lambda x: 1 // x, [1, 0], session=cluster).result(30)
    done = pmap(lambda x: 1 // x, [1, 0], session=cluster, on_error="return").result(30)
    assert done[0] == 1
    assert "ZeroDivisionError" in str(done[1])


def test_an_item_longer_than_the_visibility_timeout(cluster: RemoteCluster, tmp_path: Path) -> None:
    """SQS delivers the tickets again while the items run: they still run once."""
    log = tmp_path / "log"
    job = pmap(logged, range(2), [str(log)] * 2, [3.0 * VISIBILITY] * 2, session=cluster, chunks=1)
    assert job.result(60) == [0, 1]
    assert sorted(log.read_text().split()) == ["0", "1"]


def test_cancel(cluster: RemoteCluster) -> None:
    """What runs is interrupted, and the processes are free for the next job."""
    job = pmap(time.sleep, [60] * 10, session=cluster, chunks=1)
    eventually(lambda: job.snapshot().running == 2, 20)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(10)
    assert pmap(abs, [-5], session=cluster).result(30) == [5]


def test_a_killed_process(cluster: RemoteCluster, tmp_path: Path) -> None:
    """What a killed process held runs on another one."""
    flag = tmp_path / "killed"

    def once(index: int) -> int:
        if index == 3 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    assert pmap(once, range(8), session=cluster, chunks=2).result(60) == list(range(8))


def test_tickets_that_were_lost(cluster: RemoteCluster, rig: Rig, amazon: Moto) -> None:
    """When the queue is emptied behind our back, new tickets are sent, though SQS promises no order."""
    import boto3

    aws = {"endpoint_url": amazon.url, "aws_access_key_id": "test", "aws_secret_access_key": "test"}
    queues = boto3.client("sqs", region_name=OPTIONS["region"], **aws)
    host = rig.hosts[0].pid
    family = [host, *(pid for pid, process in our_processes().items() if process.parent == host)]
    for pid in family:  # nobody takes a ticket
        os.kill(pid, signal.SIGSTOP)
    try:
        job = pmap(lambda x: x + 1, range(6), session=cluster, chunks=1)
        url = queues.get_queue_url(QueueName="nbparallel")["QueueUrl"]

        def waiting() -> int:
            found = queues.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
            return int(found["ApproximateNumberOfMessages"])

        eventually(waiting, 20, "tickets lie in the queue")
        queues.purge_queue(QueueUrl=url)
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)
    assert job.result(60) == [1, 2, 3, 4, 5, 6]


def test_queues_that_exist_already(rig: Rig, amazon: Moto) -> None:
    """Where nobody may create queues they are named by URL, each with its own credentials."""
    import boto3

    keys = {"aws_access_key_id": "other", "aws_secret_access_key": "hunter2"}
    queues = boto3.client("sqs", region_name="eu-central-1", endpoint_url=amazon.url, **keys)
    url = queues.create_queue(QueueName="team-a", Attributes={"VisibilityTimeout": "5"})["QueueUrl"]
    own = {"url": url, "access_key_id": "other", "secret_access_key": "hunter2"}
    options = {"region": "eu-central-1", "wait_time_seconds": 1, "predefined_queues": {"team-a": own}}
    special = Rig(rig.server, rig.directory, {**rig.settings, "queue": "team-a", "broker_options": json.dumps(options)})
    try:
        special.add_host()
        with connect(rig.server.url, key=KEY, **{**special.settings, "broker_options": options}) as cluster:
            assert pmap(abs, range(-20, 0), session=cluster).result(60) == list(range(20, 0, -1))
    finally:
        special.stop()


def test_sqs_that_is_not_there(rig: Rig) -> None:
    """The error names the broker, not its password."""
    settings = {**rig.settings, "broker_url": f"sqs://test:hunter2@127.0.0.1:{free_port()}"}
    settings["connect_seconds"] = 1.0
    began = time.monotonic()
    with pytest.raises(ConnectionFailed, match=r"the broker at sqs://test:\*\*\*@127.0.0.1:\d+ cannot be reached"):
        connect(rig.server.url, key=KEY, **settings)
    assert time.monotonic() - began < 15  # five times the 3 s in which it must be said


def test_sqs_without_its_packages(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named, with the extra that installs it."""
    monkeypatch.setattr(application, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"an SQS broker needs the packages boto3 and urllib3: pip install 'nbpar"):
        connect(rig.server.url, key=KEY, **rig.settings)
