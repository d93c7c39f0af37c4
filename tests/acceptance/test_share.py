"""Shared and captured values on real clusters: sent once, in memory once a machine, gone when nobody needs them."""

from __future__ import annotations

import gc
import glob
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from acceptance.conftest import ROOT
from acceptance.elsewhere import NBPARALLEL, Elsewhere, elsewhere
from support import Gate, eventually

from nbparallel import Cluster, Executor, ForkJoin, JobError, Pool, attach, grid, pmap, share, sweep
from nbparallel.cluster.handle import RemoteCluster

#: Bytes of a value; what a job costs beside it is far less.
SIZE = 8_000_000


def _pause(seconds: float) -> None:
    """What items do that take their time."""
    threading.Event().wait(seconds)


def value() -> Any:
    """A large array."""
    return np.arange(SIZE // 8, dtype=float)


def depot(cluster: Cluster) -> Path:
    """Where the large blobs of an embedded cluster lie."""
    return Path(str(cluster.session.depot._path))  # type: ignore[union-attr]


def files(directory: Path) -> set[str]:
    """The blobs that lie in a directory."""
    return {name for name in os.listdir(directory) if re.fullmatch("[0-9a-f]{24}", name)}


def mapped(pids: set[int], directory: Path) -> dict[int, set[str]]:
    """Process → large files of the directory that it has mapped, removed ones too."""
    found: dict[int, set[str]] = {}
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if str(directory) in line and not line.endswith(".sock"):
                found.setdefault(pid, set()).add(line.split()[4])
    return found


def private(directory: Path) -> tuple[int, int, set[str]]:
    """Of this process: its id, the kilobytes of these files that are its own, and the files."""
    own, inodes, inside = 0, set(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-", line):
            inside = str(directory) in line
            inodes |= {line.split()[4]} if inside else set()
        elif inside and line.startswith("Anonymous:"):
            own += int(line.split()[1])
    return os.getpid(), own, inodes


# --- one machine ----------------------------------------------------------------------------------------------------


def test_a_handle_goes_wherever_a_value_goes(cluster: Cluster) -> None:
    """Captured, as an item, as an argument, in a partial, a sweep, an executor, a pool, a fork-join, nested, serial."""
    big = share([10, 20, 30])

    def pick(data: Any, at: int) -> Any:
        return data.value[at]

    class Total(ForkJoin):
        pass

    Total.setup(lambda data: [{"at": at} for at in range(3)])
    Total.process(lambda at, data: data.value[at])
    Total.join(lambda picked, data: sum(picked) + len(data.value))
    for session in (cluster, "serial"):
        options: Any = {"session": session}
        assert pmap(lambda at: big.value[at], range(3), **options).result(30) == [10, 20, 30]
        assert pmap(pick, [big] * 3, range(3), **options).result(30) == [10, 20, 30]
        assert pmap(partial(pick, big), iter(range(3)), **options).result(30) == [10, 20, 30]
        assert sweep(pick, grid(at=[2, 0]), data=big, **options).result(30) == [30, 10]
        with Executor(**options) as executor:
            assert executor.submit(pick, big, 1).result(30) == 20
            assert executor.submit(lambda: big.value[2]).result(30) == 30
        with Pool(**options) as pool:
            assert pool.starmap(pick, [(big, 1), (big, 2)]) == [20, 30]
        assert Total({"data": big}, **options).result(30) == 63
        assert pmap(lambda _: big, [0], **options).result(30)[0].value is big.value
    nested = pmap(lambda _: list(pmap(partial(pick, big), range(3))), [0], session=cluster)
    assert nested.result(30) == [[10, 20, 30]]


def test_a_machine_has_it_once(cluster: Cluster) -> None:
    """Each process reads the same file and has no page of its own, until it writes to it, which nobody else sees."""
    big, here = share(value()), depot(cluster)

    def read(_: int) -> Any:
        _pause(0.3)
        return float(big.value.sum()), private(here)

    found = pmap(read, range(4), chunks=1, session=cluster).result(60)
    pids = {pid for _, (pid, _, _) in found}
    assert len(pids) == 2
    assert {total for total, _ in found} == {float(value().sum())}
    assert {own for _, (_, own, _) in found} == {0}
    assert len({inode for _, (_, _, inodes) in found for inode in inodes}) == len(files(here)) == 1
    pmap(lambda _: big.value.fill(0), [0], session=cluster).result(30)
    (name,) = files(here)
    assert np.frombuffer((here / name).read_bytes()[-SIZE:])[1] == big.value[1] == 1
    big.close()
    assert files(here) == set()
    eventually(lambda: not mapped(pids, here), 20, "the worker processes let go")


def test_the_second_time_nothing_is_sent(cluster: Cluster) -> None:
    """Ten jobs with one handle write one file, once."""
    big, here = share(value()), depot(cluster)
    for round in range(10):
        assert pmap(lambda at: big.value[at], range(8), session=cluster).result(30) == list(range(8))
        if not round:
            before = {name: (here / name).stat().st_mtime_ns for name in files(here)}
    assert {name: (here / name).stat().st_mtime_ns for name in files(here)} == before
    assert len(before) == 1


def test_what_a_function_captures_goes_with_its_job(cluster: Cluster) -> None:
    """When the job has ended neither a file nor a mapping in a worker process is left, without another job."""
    data, here = np.zeros(SIZE // 8), depot(cluster)
    job = pmap(lambda at: (os.getpid(), data[at]), range(100), session=cluster)
    pids = {pid for pid, _ in job.result(30)}
    assert files(here) == set()
    eventually(lambda: not mapped(pids, here), 20, "the worker processes let go")


@pytest.mark.parametrize("close", [True, False])
def test_a_job_keeps_what_it_uses(cluster: Cluster, gate: Gate, close: bool) -> None:
    """A handle that is closed, or dropped, while a job with it is pending breaks nothing, and is freed behind it."""
    big, here = share(value()), depot(cluster)
    function = partial(_wait_and_pick, big, gate)
    job = pmap(function, range(6), chunks=1, session=cluster)
    eventually(lambda: job.snapshot().running)
    if close:
        big.close()
    del big, function
    gc.collect()
    assert len(files(here)) == 1
    gate.open()
    assert job.result(30) == list(range(6))
    eventually(lambda: files(here) == set(), 5, "the file is gone")


def _wait_and_pick(big: Any, gate: Gate, at: int) -> float:
    gate.wait()
    return float(big.value[at])


def test_a_value_that_is_gone_is_an_error_of_the_item(cluster: Cluster) -> None:
    """A reference that somebody kept beyond its handle names type and size, and says what to do."""
    with share({"a": list(range(5000))}, session=cluster) as big:
        kept = pickle.dumps(big)
        assert pmap(lambda data: len(pickle.loads(data).value["a"]), [kept], session=cluster).result(30) == [5000]
    other = share([1])
    eventually(lambda: not cluster.session.store.has_shared([big._core.id])[0])
    eventually(lambda: _fails(cluster, kept), 20, "the processes let go")
    assert pmap(lambda _: other.value, [0], session=cluster).result(30) == [[1]]


def _fails(cluster: Cluster, kept: bytes) -> bool:
    job = pmap(lambda data: pickle.loads(data).value, [kept] * 4, chunks=1, session=cluster, on_error="return")
    errors = [error for error in job.result(30) if not isinstance(error, dict)]
    for error in errors:
        message = r"the shared value \(dict, \d+ kB\) cannot be had on this worker.*keep the handle that share\(\)"
        assert re.search(message, str(error)), error
        assert isinstance(error.exception, JobError)
    return len(errors) == 4


def test_a_forked_child_has_the_value_and_frees_nothing(cluster: Cluster) -> None:
    """What happens to the handle in the child is the child's alone."""
    big, here = share(value(), session=cluster), depot(cluster)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, b"%d" % big.value[7])
            big.close()
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"7"
    os.close(reader)
    os.close(writer)
    assert len(files(here)) == 1
    assert pmap(lambda at: big.value[at], [7], session=cluster).result(30) == [7]


CLIENT = """
import sys, time
from nbparallel import Cluster, pmap, share
cluster = Cluster(workers=1)
big = share(bytes(8_000_000))
print(pmap(lambda at: big.value[at], [0], session=cluster).result(), flush=True)
print(cluster.session.depot._path, flush=True)
sys.stdin.read()
"""


def test_a_killed_client_leaves_no_file() -> None:
    """Nothing of a shared value survives a SIGKILL of the program that shared it."""
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ROOT},
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"[0]\n"
        here = Path(client.stdout.readline().decode().strip()).resolve()
        assert len(files(here)) == 1
        client.kill()
    eventually(lambda: not here.exists(), 10, "the directory is gone")


# --- several machines -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """One worker with four processes, on a server of its own."""
    with elsewhere(tmp_path_factory.mktemp("share")) as remote:
        remote.start(*NBPARALLEL[:-1], "4")
        remote.wait_for(1)
        yield remote


@pytest.fixture
def session(remote: Elsewhere) -> Iterator[RemoteCluster]:
    """A client of that cluster; afterwards nothing large may be left in the store."""
    with remote.connect() as session:
        yield session
    with remote.server.client() as client:
        eventually(lambda: client.keys("nbp:*part:*") + client.keys("nbp:*shared:*") == [], what="nothing is left")


def shelf(remote: Elsewhere) -> Path:
    """What the worker's processes share."""
    (found,) = glob.glob(f"/dev/shm/nbparallel-{remote.workers[0].process.pid}-*") or glob.glob(
        f"{os.environ['TMPDIR']}/nbparallel-{remote.workers[0].process.pid}-*"
    )
    return Path(found)


def traffic(remote: Elsewhere) -> tuple[int, int]:
    """Bytes that came to the server, and that left it, so far."""
    with remote.server.client() as client:
        says = client.info("stats")
    return says["total_net_input_bytes"], says["total_net_output_bytes"]


def test_a_machine_fetches_it_once(remote: Elsewhere, session: RemoteCluster) -> None:
    """Four processes cost one transfer and one file; the next jobs none; a large captured value likewise."""
    big, data = share(value()), value()

    def read(at: int) -> Any:
        _pause(0.1)
        return os.getpid(), float(big.value[at])

    def captured(at: int) -> Any:
        _pause(0.1)
        return os.getpid(), float(data[at])

    for function, times in ((read, (1, 0, 0)), (captured, (1, 1))):
        for expected in times:
            before = traffic(remote)
            found = pmap(function, range(32), chunks=1, session=session).result(60)
            assert [number for _, number in found] == list(range(32))
            assert len({pid for pid, _ in found}) == 4
            moved = [(after - old) / SIZE for old, after in zip(before, traffic(remote), strict=True)]
            assert all(expected <= share_of < expected + 0.3 for share_of in moved), (function, expected, moved)
    pids = {pid for pid, _ in found}
    eventually(lambda: len(files(shelf(remote))) == 1, 30, "captured values are gone")
    big.close()
    eventually(lambda: files(shelf(remote)) == set(), 30, "the file is gone")
    eventually(lambda: not mapped(pids, shelf(remote)), 30, "the processes let go")


def test_a_store_that_was_emptied_gets_it_again(remote: Elsewhere, session: RemoteCluster) -> None:
    """While a job runs and between two jobs: all of them complete."""
    big = share(value())

    def read(at: int) -> float:
        _pause(0.05)
        return float(big.value[at])

    job = pmap(read, range(40), chunks=1, session=session)
    eventually(lambda: job.snapshot().done > 3, 30)
    for expected in (40, 8):
        with remote.server.client() as client:
            client.flushall()
        assert (job if expected == 40 else pmap(read, range(8), session=session)).result(60) == list(range(expected))


def test_a_detached_job_has_it_without_its_client(remote: Elsewhere) -> None:
    """The value stays when the session ends, for as long as results do."""
    big = share(value())
    with remote.connect() as session:
        job = pmap(partial(_slow_pick, big), range(12), chunks=1, session=session, detach=True)
    with remote.server.client() as client, remote.connect() as session:
        assert attach(job.id, session=session).result(60) == list(range(12))
        left = client.keys("nbp:*part:*") + client.keys("nbp:*shared:*")
        assert len(left) == 2
        assert all(client.pttl(key) > 0 for key in left)
        client.delete(*left)


def _slow_pick(big: Any, at: int) -> float:
    _pause(0.3)
    return float(big.value[at])


def test_what_a_worker_kept_goes_with_it(remote: Elsewhere) -> None:
    """A worker that is told to stop removes its directory."""
    here = shelf(remote)
    assert remote.workers[0].end() == 0
    assert not here.exists()
