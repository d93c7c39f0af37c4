"""Jobs that outlive the process that started them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from acceptance.hosts import Rig, remote
from support import Gate, eventually

from nbparallel import Cluster, Job, JobCancelled, JobError, ResultDropped, UsageError, attach, jobs, pmap
from nbparallel.cluster.handle import RemoteCluster

START = """
import sys, time
from nbparallel import pmap
def slow(index):
    time.sleep({seconds})
    return index * index
job = pmap(slow, {items}, name="slow one", progress=False, {options})
{then}
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[tuple[Rig, RemoteCluster]]:
    """Two hosts and a connection."""
    with remote(session_grace=1.0) as both:
        pmap(abs, [1], session=both[1]).result(10)  # its threads are not the first test's
        yield both


def start(rig: Rig, items: str, seconds: float = 0.05, options: str = "detach=True", killed: bool = False) -> str:
    """A client that starts a job and ends, or is killed after the first result; the job's id."""
    then = f"{'next(iter(job)); ' if killed else ''}print(job.id, flush=True){'; time.sleep(60)' if killed else ''}"
    code = START.format(items=items, seconds=seconds, options=options, then=then)
    with rig.client(code) as client:
        assert client.stdout
        id = client.stdout.readline().strip()
        assert id, client.communicate()
        if killed:
            client.kill()
        assert client.wait(20) == (-9 if killed else 0)
    return id


def test_a_detached_job_goes_on_without_its_client(rig: tuple[Rig, RemoteCluster]) -> None:
    """Its client has ended; another process gets all results, in order, while they come."""
    id = start(rig[0], "range(100)", 0.15)
    job = attach(id, session=rig[1])
    assert len(job) == 100
    seen = []
    for value in job:
        seen.append(value)
        if len(seen) == 1:
            assert job.status == "running"
    assert seen == [index * index for index in range(100)]
    assert (job.status, job.name) == ("done", "slow one")
    # Results stay, for whoever comes later.
    assert attach(id, session=rig[1]).result(10) == seen


def test_a_detached_job_takes_a_generator(rig: tuple[Rig, RemoteCluster]) -> None:
    """Input without a length is read to its end before ``pmap`` returns."""
    id = start(rig[0], "(i for i in range(30))", 0.01)
    assert attach(id, session=rig[1]).result(20) == [index * index for index in range(30)]


def test_a_detached_job_can_be_cancelled_by_another(rig: tuple[Rig, RemoteCluster]) -> None:
    """``cancel`` of an attached job stops it everywhere; its workers are free soon."""
    id = start(rig[0], "range(1000)", 0.2)
    job = attach(id, session=rig[1])
    next(iter(job))
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(10)
    started = time.monotonic()
    assert pmap(abs, range(-8, 0), chunks=1, session=rig[1]).result(10) == list(range(8, 0, -1))
    assert time.monotonic() - started < 3.0


def test_what_a_killed_client_left_can_be_read(rig: tuple[Rig, RemoteCluster]) -> None:
    """A job that was not detached stops with its client; its results until then are there, in order."""
    id = start(rig[0], "range(1000)", 0.05, "", killed=True)
    job = attach(id, session=rig[1])
    got: list[int] = []
    with pytest.raises(JobError, match=r"its client is gone"):
        got.extend(job)
    assert 1 <= len(got) < 1000
    assert got == [index * index for index in range(len(got))]


def test_a_job_of_a_living_client_can_be_watched(rig: tuple[Rig, RemoteCluster]) -> None:
    """Whoever attaches to a job that another client reads gets all of it, and disturbs nothing."""
    job = pmap(lambda index: time.sleep(0.05) or index, range(60), session=rig[1])
    eventually(lambda: job.snapshot().done)
    code = f"import nbparallel; print(sum(nbparallel.attach({job.id!r}, progress=False)), flush=True)"
    with rig[0].client(code) as other:
        assert job.result(30) == list(range(60))
        assert other.communicate(timeout=20)[0].strip() == str(sum(range(60)))


def test_a_job_of_this_process_is_shared(rig: tuple[Rig, RemoteCluster]) -> None:
    """Whoever attaches to a job of the same client has that job: both handles give all results."""
    job = pmap(lambda index: time.sleep(0.02) or index, range(60), session=rig[1])
    next(iter(job))
    other = attach(job.id, session=rig[1])
    assert other.result(20) == job.result(20) == list(range(60))


def test_jobs_are_listed(rig: tuple[Rig, RemoteCluster]) -> None:
    """``jobs()`` shows what runs and what has ended."""
    id = start(rig[0], "range(40)")
    shown = {info.id: info for info in jobs(session=rig[1])}
    assert (shown[id].name, shown[id].total, shown[id].detached) == ("slow one", 40, True)
    attach(id, session=rig[1]).result(20)
    eventually(lambda: {info.id: info for info in jobs(session=rig[1])}[id].state == "done")


def test_lost_tickets_of_a_detached_job_are_found_by_the_workers() -> None:
    """Without a client the workers notice that a job's messages are gone, and send new ones."""
    with remote(1) as (rig, cluster):
        rig.kill(rig.hosts[0])
        id = start(rig, "range(10)", 0.01)
        with rig.server.client() as store:
            assert store.delete("nbparallel")
        rig.add_host()
        eventually(lambda: [info.left for info in jobs(session=cluster)] == [0], 20)
        assert attach(id, session=cluster).result(20) == [index * index for index in range(10)]


def test_dead_jobs_get_a_time_to_live(rig: tuple[Rig, RemoteCluster]) -> None:
    """What a dead client's job left in the store goes by itself in the end."""
    id = start(rig[0], "range(1000)", 0.05, "", killed=True)
    with rig[0].server.client() as store:
        found = eventually(lambda: store.keys(f"nbp:*{id}*"), 5)
        eventually(lambda: all(store.pttl(key) != -1 for key in store.keys(f"nbp:*{id}*")), 15)
        assert found


def test_gc_finds_dead_jobs() -> None:
    """``nbparallel gc`` does by hand, where no worker runs, what the workers do."""
    with remote(1) as (rig, _):
        id = start(rig, "range(1000)", 0.05, "", killed=True)
        rig.stop()
        with rig.server.client() as store:
            # The client's session is over, and no worker is left that would give back what it holds.
            store.delete(f"nbp:default:{id}.0:held", *store.keys("nbp:*:s:*"))
            command = [sys.executable, "-m", "nbparallel", "gc"]
            said = subprocess.run(command, env=rig.environ(), capture_output=True, text=True, check=True).stdout
            assert "1 dead jobs found" in said
            assert all(store.pttl(key) != -1 for key in store.keys(f"nbp:*{id}*"))


# -- the budget of results ---------------------------------------------------------------------------------------------

#: What the store keeps of a job's results in these tests, in bytes.
BUDGET = 200_000

LARGE = """
import fcntl, sys
from nbparallel import pmap
def large(index):
    if index >= 85:
        with open({gate!r}) as gate:
            fcntl.flock(gate, fcntl.LOCK_SH)
    return index.to_bytes(4, "little") * 2500
job = pmap(large, range(100), chunks=5, progress=False, {options})
print(job.id, flush=True)
{then}
"""


@pytest.fixture(scope="module")
def thrifty() -> Iterator[tuple[Rig, RemoteCluster]]:
    """Two hosts that keep few results."""
    with remote(kept_bytes=BUDGET) as both:
        pmap(abs, [1], session=both[1]).result(10)
        yield both


def check_what_is_left(rig: Rig, job: Job[bytes]) -> None:
    """Of the job's 100 results the newest are there; whoever asks for the others is told why they are not."""
    with rig.server.client() as store:
        assert BUDGET / 2 < (store.memory_usage(f"nbp:default:{job.id}.0:out", samples=0) or 0) < 2 * BUDGET
    with pytest.raises(ResultDropped, match=r"item 0 left the store .* the last 200,000 bytes .* kept_bytes"):
        job.result(20)
    assert job.wait(20)
    left = job.results_so_far()
    assert 10 <= len(left) < 100
    assert all(value[:4] == index.to_bytes(4, "little") for index, value in left.items())
    came = {}
    with pytest.raises(ResultDropped, match=rf"{100 - len(left)} results left the store"):
        came.update(job.as_completed())
    assert came == left
    assert job.status == "done"
    assert job[max(left)] == left[max(left)]


def test_of_a_detached_jobs_results_the_newest_stay(thrifty: tuple[Rig, RemoteCluster], gate: Gate) -> None:
    """Whoever attaches in the middle is told at once which results are gone, and gets all that come from then on."""
    rig, cluster = thrifty
    with rig.client(LARGE.format(gate=str(gate.path), options="detach=True", then="")) as client:
        assert client.stdout
        id = client.stdout.readline().strip()
        assert client.wait(20) == 0
    eventually(lambda: {info.id: info.left for info in jobs(session=cluster)}[id] == 15, 20)
    job: Job[bytes] = attach(id, session=cluster)
    with pytest.raises(ResultDropped, match="item 0 left the store"):
        job[0]
    assert job.status == "running"
    gate.open()
    assert job.wait(20)
    assert set(range(85, 100)) <= set(job.results_so_far())
    check_what_is_left(rig, job)
    check_what_is_left(rig, attach(id, session=cluster))


def test_what_its_client_has_leaves_the_store(thrifty: tuple[Rig, RemoteCluster], gate: Gate) -> None:
    """The client of a job has every result, however small the budget; whoever attaches has the newest."""
    rig, cluster = thrifty
    then = "assert len(job.result()) == 100; print('read', flush=True); sys.stdin.read()"
    gate.open()
    with rig.client(LARGE.format(gate=str(gate.path), options="", then=then)) as client:
        assert client.stdout
        id = client.stdout.readline().strip()
        assert client.stdout.readline() == "read\n"
        eventually(lambda: {info.id: info.state for info in jobs(session=cluster)}[id] == "done", 20)
        check_what_is_left(rig, attach(id, session=cluster))


# -- errors ------------------------------------------------------------------------------------------------------------


def test_an_unknown_job(rig: tuple[Rig, RemoteCluster]) -> None:
    """An id that the store does not know is an error that says so."""
    with pytest.raises(JobError, match="knows no job 'nonsense'"):
        attach("nonsense", session=rig[1])


@pytest.mark.embedded_only
def test_an_embedded_cluster_cannot_be_left(cluster: Cluster) -> None:
    """``detach=True`` makes no sense where the cluster ends with this process."""
    with pytest.raises(UsageError, match="outlives"):
        pmap(abs, [1], detach=True, session=cluster)
