"""Clients, stores and workers that go away and come back: nothing is lost, and the user is told what is waited for."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from acceptance.hosts import Rig, kill, remote
from support import eventually, process_table

from nbparallel import pmap


def slow(index: int, log: str = "", seconds: float = 0.1) -> int:
    """Leaves a line at its start and at its end."""
    if log:
        with open(log, "a") as file:
            file.write(f"{index}\n")
    time.sleep(seconds)
    return index * index


def lines(path: Path) -> list[int]:
    """The items of which ``slow`` wrote."""
    return [int(line) for line in path.read_text().split()] if path.exists() else []


CLIENT = """
import time
from nbparallel import pmap
def slow(index):
    with open({log!r}, "a") as file:
        file.write(f"{{index}}\\n")
    time.sleep(0.1)
    return index
if __name__ == "__main__":
    job = pmap(slow, range({count}), chunks=1, progress=False)
    print("started", flush=True)
    print(sum(job), flush=True)
"""

# -- the session's beat ------------------------------------------------------------------------------------------------


def test_a_job_outlives_the_grace_of_its_session() -> None:
    """A job longer than ``session_grace`` runs to its end, for its session says all the time that it lives."""
    with remote(session_grace=1.0) as (_, cluster):
        started = time.monotonic()
        assert pmap(slow, range(60), chunks=1, session=cluster).result(30) == [i * i for i in range(60)]
        assert time.monotonic() - started > 2.0


def test_a_client_that_is_busy_in_c_is_not_dead(tmp_path: Path) -> None:
    """While the client's own threads stand still for longer than the grace, its job goes on: the beat is another's."""
    log = tmp_path / "log"
    with remote(session_grace=1.0) as (rig, _), rig.client(CLIENT.format(log=str(log), count=200)) as client:
        assert client.stdout
        assert client.stdout.readline() == "started\n"
        eventually(lambda: lines(log), 10)
        os.kill(client.pid, signal.SIGSTOP)
        before = len(lines(log))
        stopped = time.monotonic()
        eventually(lambda: time.monotonic() > stopped + 3.0, 5)
        # It submits nothing meanwhile: what was out goes on, and its session stays.
        with rig.server.client() as store:
            assert store.keys("nbp:default:s:*")
        os.kill(client.pid, signal.SIGCONT)
        assert client.communicate(timeout=60)[0] == f"{sum(range(200))}\n"
        assert before > 0
        assert sorted(lines(log)) == list(range(200)), "a lease was taken for a dead client's"


def test_a_killed_client_stops_after_its_grace(tmp_path: Path) -> None:
    """When the client is killed its chunks go on for the grace, then running items are interrupted, and none starts."""
    log = tmp_path / "log"
    code = CLIENT.format(log=str(log), count=4).replace("time.sleep(0.1)", "time.sleep(30)")
    with remote(session_grace=1.0) as (rig, cluster), rig.client(code) as client:
        assert client.stdout
        assert client.stdout.readline() == "started\n"
        eventually(lambda: len(lines(log)) == 2, 10)
        client.kill()
        client.wait()
        # The hosts are free again, long before the items would have ended, for others.
        started = time.monotonic()
        assert pmap(abs, range(-4, 0), session=cluster).result(20) == [4, 3, 2, 1]
        took = time.monotonic() - started
        assert 0.3 < took < 6.0, took
        assert len(lines(log)) == 2


def test_a_laptop_that_slept_finds_its_job_waiting(tmp_path: Path) -> None:
    """A client that stood still together with its beat, for longer than the grace, goes on and gets every result."""
    log = tmp_path / "log"
    with remote(session_grace=1.0) as (rig, _), rig.client(CLIENT.format(log=str(log), count=60)) as client:
        assert client.stdout
        assert client.stdout.readline() == "started\n"
        eventually(lambda: lines(log), 10)
        asleep = [client.pid, *_beats_of(client.pid)]
        assert len(asleep) == 2
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        with rig.server.client() as store:
            eventually(lambda: not store.keys("nbp:default:s:*"), 5)
        fell = time.monotonic()
        eventually(lambda: time.monotonic() > fell + 1.5, 3)
        before = len(lines(log))
        eventually(lambda: time.monotonic() > fell + 2.5, 3)
        assert len(lines(log)) == before, "an item of a dead session was started"
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)
        assert client.communicate(timeout=60)[0] == f"{sum(range(60))}\n"


def test_a_killed_beat_is_replaced() -> None:
    """The process that beats is started anew when it is killed, and ends with the session."""
    with remote(session_grace=1.0) as (_, cluster):
        job = pmap(slow, range(50), chunks=1, session=cluster)
        first = eventually(lambda: _beats_of(os.getpid()), 5)
        kill(first[0])
        second = eventually(lambda: [pid for pid in _beats_of(os.getpid()) if pid not in first], 5)
        assert job.result(30) == [i * i for i in range(50)]
        cluster.stop()
        assert not [pid for pid in _beats_of(os.getpid()) if pid in second]


# -- the store ---------------------------------------------------------------------------------------------------------


def go_back(rig: Rig) -> None:
    """The server is killed and comes back with what it knew a second ago."""
    with rig.server.client() as store:
        store.save()
    saved = time.monotonic()
    eventually(lambda: time.monotonic() > saved + 1.0, 5)
    restart(rig)


def restart(rig: Rig) -> None:
    """Kill the server and start it again; what it remembers is a matter of its configuration."""
    rig.server.stop()
    rig.server.start()


def stand_still(rig: Rig) -> None:
    """The server does not answer for five seconds."""
    process = rig.server.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    eventually(lambda: time.monotonic() > stopped + 5.0, 10)
    process.send_signal(signal.SIGCONT)


def kill_connections(rig: Rig) -> None:
    """Every connection of every client is cut."""
    with rig.server.client() as store:
        for kind in ("normal", "pubsub"):
            store.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def flush(rig: Rig) -> None:
    """Everything in the store is deleted."""
    with rig.server.client() as store:
        store.flushall()


FAULTS = {
    "restarted with its data": (restart, ("appendonly yes", "appendfsync always")),
    "restarted with old data": (go_back, ()),
    "restarted empty": (restart, ()),
    "stands still": (stand_still, ()),
    "connections cut": (kill_connections, ()),
    "flushed": (flush, ()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_comes_back(fault: str, tmp_path: Path) -> None:
    """Whatever becomes of the store in the middle of a job, the job ends with every result once, and goes on soon."""
    act, config = FAULTS[fault]
    log = tmp_path / "log"
    with remote(config=config) as (rig, cluster):
        job = pmap(slow, range(80), [str(log)] * 80, chunks=2, session=cluster)
        eventually(lambda: len(lines(log)) > 20, 20)
        act(rig)
        came_back = time.monotonic()
        assert job.result(60) == [i * i for i in range(80)]
        took = time.monotonic() - came_back
        again = Counter(lines(log))
        print(f"{fault}: {took:.1f} s after the fault, {sum(again.values()) - 80} items ran twice")
        assert took < 15.0
        assert set(again) == set(range(80))
        # The hosts take new work at once: none of them is deaf.
        started = time.monotonic()
        pids = set(pmap(where, range(40), chunks=1, session=cluster).result(20))
        assert len(pids) == 2, f"only {pids} take work {rig.logs()}"
        assert time.monotonic() - started < 6.0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGQUIT])
def test_a_rolling_restart_loses_and_doubles_nothing(how: signal.Signals, tmp_path: Path) -> None:
    """Under load every worker is replaced: each item has its result, and with SIGTERM each ran exactly once."""
    log = tmp_path / "log"
    with remote(2, processes=2, crash_limit=1) as (rig, cluster):
        job = pmap(slow, range(200), [str(log)] * 200, session=cluster)
        for number, host in enumerate(rig.hosts[:]):
            eventually(lambda number=number: len(lines(log)) > 40 * (number + 1), 20)
            rig.add_host(2)
            host.send_signal(how)
            assert host.wait(10) in (0, 1)
        assert job.result(60) == [i * i for i in range(200)]
        again = Counter(lines(log))
        assert set(again) == set(range(200))
        doubled = sum(again.values()) - 200
        print(f"{how.name}: {doubled} items ran twice")
        assert doubled == 0 if how == signal.SIGTERM else doubled <= 8  # running or unreported, in 4 processes


def test_a_worker_that_leaves_gives_its_chunk_back(tmp_path: Path) -> None:
    """SIGTERM in a long item: the rest of its chunk runs elsewhere at once, the item itself ends where it is."""
    log = tmp_path / "log"
    with remote(1) as (rig, cluster):
        job = pmap(slow, range(4), [str(log)] * 4, [8.0, 0.1, 0.1, 0.1], chunks=4, session=cluster)
        eventually(lambda: lines(log), 10)
        rig.add_host()
        rig.wait_hosts(2)
        rig.hosts[0].send_signal(signal.SIGTERM)
        eventually(lambda: len(lines(log)) == 4, 7)
        assert job.result(20) == [0, 1, 4, 9]
        assert sorted(lines(log)) == [0, 1, 2, 3]


def where(_: int) -> int:
    """The host that runs it."""
    time.sleep(0.05)
    return os.getppid()


def big(index: int) -> bytes:
    """Half a megabyte."""
    return index.to_bytes(4, "little") * (1 << 17)


def test_a_full_store_is_waited_for() -> None:
    """At ``maxmemory`` the job says what it waits for, goes on as room is made, and ends complete."""
    with remote(config=("maxmemory 1gb",)) as (rig, cluster), rig.server.client() as store:
        blocker = "blocker"
        store.set(blocker, bytes(30 << 20))
        store.config_set("maxmemory", str(20 << 20))
        job = pmap(big, range(40), session=cluster)
        eventually(lambda: "full" in job.snapshot().reason, 10, "the reason names the full store")
        store.delete(blocker)
        assert [len(value) for value in job.result(60)] == [1 << 19] * 40


def test_a_full_store_ends_no_worker() -> None:
    """A message that comes while the server refuses all that Celery writes down is lost; its worker is not."""
    with remote(1) as (rig, cluster), rig.server.client() as store:
        (host,) = rig.hosts
        os.kill(host.pid, signal.SIGSTOP)
        job = pmap(abs, range(-10, 0), session=cluster)
        eventually(lambda: store.info("commandstats").get("cmdstat_lpush"), 10, "the message is sent")
        store.config_set("maxmemory", 1)
        os.kill(host.pid, signal.SIGCONT)
        eventually(lambda: any(what in rig.logs() for what in ("re-establish", "Unrecoverable")), 20, "it is refused")
        store.config_set("maxmemory", 0)
        assert job.result(30) == list(range(10, 0, -1))
        assert host.poll() is None


def test_results_larger_than_the_store() -> None:
    """Results that do not fit into the store all together go through it: what the client has is given up there."""
    with remote(config=(f"maxmemory {64 << 20}",)) as (_, cluster):
        values = pmap(big, range(300), chunks=4, session=cluster).result(60)
        assert [value[:4] for value in values] == [index.to_bytes(4, "little") for index in range(300)]


def _beats_of(client: int) -> list[int]:
    """The processes that beat for a client."""
    ours = [process for process in process_table().values() if process.parent == client and process.state != "Z"]
    return [process.pid for process in ours if "beating.py" in process.command]
