"""Several queues on several workers: routing, the watchers of Celery's world, the backlog, scaling, requirements."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from acceptance.elsewhere import Elsewhere, Worker, elsewhere
from support import Gate, eventually, free_port, our_processes, unavailable

from nbparallel import pmap
from nbparallel.cluster.handle import backlog as backlog_of

WORKER = ("-m", "nbparallel", "worker", "--concurrency", "1")
CELERY = ("-m", "celery", "-A", "nbparallel")
STATUS = ("-m", "nbparallel", "status", "--json")

QUEUES = ("cpu", "io", "net")


def fibonacci(n: int) -> int:
    """The slow way."""
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def children(worker: Worker) -> int:
    """How many worker processes a worker has now."""
    return sum(process.parent == worker.process.pid for process in our_processes().values())


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Elsewhere]:
    """A server on which nobody works yet."""
    with elsewhere(tmp_path) as place:
        yield place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """A server and two workers: one, of ours, on the queues cpu and io; one, of Celery's command, on cpu and net."""
    with elsewhere(tmp_path_factory.mktemp("queues")) as place:
        place.start(*WORKER, "--queues", "cpu,io")
        place.start(*CELERY, "worker", "--concurrency", "1", "-Q", "cpu,net", NBPARALLEL_QUEUE="cpu")
        place.wait_for(2)
        yield place


# -- routing -----------------------------------------------------------------------------------------------------------


def test_ten_threads_post_to_three_queues(place: Elsewhere) -> None:
    """Ten threads post at once; every job gets its results, on workers that listen on its queue and on no other."""
    ran: dict[tuple[str, int], list[tuple[int, int]]] = {}
    with place.connect() as cluster:

        def post(number: int) -> None:
            queue = QUEUES[number % 3]
            job = pmap(
                lambda n: (fibonacci(n), os.getppid()), range(8, 18), session=cluster, queue=queue, name=f"fib {number}"
            )
            ran[queue, number] = job.result(timeout=40)

        threads = [threading.Thread(target=post, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ran) == 10
    ours, theirs = (worker.process.pid for worker in place.workers[:2])
    allowed = {"cpu": {ours, theirs}, "io": {ours}, "net": {theirs}}
    for (queue, _), results in ran.items():
        assert [value for value, _ in results] == [fibonacci(n) for n in range(8, 18)]
        assert {parent for _, parent in results} <= allowed[queue]


def test_a_queue_without_a_worker(place: Elsewhere) -> None:
    """A job that nobody listens for says so, with the command; its items are the backlog; a late worker runs it."""
    with place.connect() as cluster:
        job = pmap(abs, range(-700, 0), session=cluster, queue="gpu")
        eventually(lambda: "no worker is listening on queue 'gpu'" in job.snapshot().reason)
        assert job.snapshot().reason.endswith("start one with: nbparallel worker --queues gpu")
        assert pmap(abs, [-1], session=cluster, queue="io").result(timeout=20) == [1], "the others go on"
        endless = pmap(abs, itertools.count(), session=cluster, queue="fpga")
        eventually(lambda: backlog_of(cluster.session.store).get("fpga"))
        report = json.loads(place.run(*STATUS).stdout)
        backlog: dict[str, int] = report["cluster"]["backlog"]
        assert backlog.pop("fpga") > 0
        assert backlog == {"cpu": 0, "gpu": 700, "io": 0, "net": 0}
        assert "backlog: 700 items on queue gpu\n" in place.run(*STATUS[:-1]).stdout
        endless.cancel()
        late = place.start(*WORKER, "--queues", "gpu")
        assert job.result(timeout=30) == list(range(700, 0, -1))
        assert job.snapshot().reason == ""
        assert late.end() == 0
    assert json.loads(place.run(*STATUS).stdout)["cluster"]["backlog"] == {"cpu": 0, "io": 0, "net": 0}


def test_a_dead_processs_ticket_stays_on_its_queue(place: Elsewhere) -> None:
    """The worker listens on cpu first; a process that dies in a job on io leaves the rest of it to that queue."""
    ours = place.workers[0].process.pid
    with place.connect() as cluster:
        job = pmap(
            lambda n: os._exit(3) if n == 1 else os.getppid(),
            range(6),
            session=cluster, queue="io", chunks=2, on_error="return",
        )  # fmt: skip
        done = job.result(timeout=60)
    assert [one for one in done if isinstance(one, int)] == [ours] * 5
    assert "killed its worker process" in str(done[1])


# -- those who watch ---------------------------------------------------------------------------------------------------


def test_celery_inspect(place: Elsewhere) -> None:
    """``celery -A nbparallel inspect`` reaches both workers, and shows their queues."""
    ours, host = place.workers[0].process.pid, socket.gethostname()
    whom = ("--timeout", "10", "--destination", f"nbparallel-{ours}@{host},celery@{host}")  # else it waits for more
    asked = place.run(*CELERY, "inspect", "active_queues", "--json", *whom)
    queues = {name: {queue["name"] for queue in listed} for name, listed in json.loads(asked.stdout).items()}
    assert sorted(map(sorted, queues.values())) == [["cpu", "io"], ["cpu", "net"]]
    ping = place.run(*CELERY, "inspect", "ping", *whom)
    assert ping.stdout.count("pong") == 2
    assert "2 nodes online" in ping.stdout


def test_flower(place: Elsewhere) -> None:
    """Flower shows the workers, their queues, and tasks with the job's name, those of later turns too."""
    try:
        import flower  # noqa: F401
    except ImportError:
        unavailable("flower")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    watcher = place.start(*CELERY, "flower", f"--port={port}", "--address=127.0.0.1", FLOWER_UNAUTHENTICATED_API="true")
    try:
        workers = eventually(lambda: len(got := _ask(f"{url}/workers?refresh=1")) == 2 and got, 40, watcher.err)
        queues = {frozenset(queue["name"] for queue in worker["active_queues"]) for worker in workers.values()}
        assert queues == {frozenset(("cpu", "io")), frozenset(("cpu", "net"))}
        with place.connect() as cluster:
            job = pmap(time.sleep, [0.4] * 6, session=cluster, queue="net", name="naps of 400 ms", chunks=1)
            job.result(timeout=30)
        tasks = eventually(
            lambda: [one for one in _ask(f"{url}/tasks").values() if one["name"].startswith("naps of 400 ms")][1:],
            20,
            "a task of the job, and of its next turn",
        )
        assert {task["name"] for task in tasks} == {"naps of 400 ms (nbparallel.turn)"}
        assert all(task["worker"].startswith("celery@") for task in tasks)
        counted = [worker["stats"]["total"] for worker in _ask(f"{url}/workers?refresh=1").values()]
        assert {name for one in counted for name in one} == {"nbparallel.turn"}, "workers remember no names of jobs"
    finally:
        watcher.end()


def _ask(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except (urllib.error.URLError, OSError):
        return {}


# -- connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [16, pytest.param(64, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
def test_the_connection_budget(empty: Elsewhere, processes: int) -> None:
    """A worker has one connection for each process and 8 more at most: idle, at any moment of a job, and after it.

    The client comes by the unix socket, so that all others are the worker's.
    """
    short_turns = {"NBPARALLEL_TURN_SECONDS": "0.1"}  # so that the worker publishes tickets, on one connection more
    empty.start("-m", "nbparallel", "worker", "--concurrency", str(processes), **short_turns)
    empty.wait_for(1, within=120)
    server = empty.server
    code = f"""
import os, time
from nbparallel import connect, pmap
def work(seconds):
    time.sleep(seconds)
    return os.getpid()
with connect("unix://:{server.password}@{server.socket}?db=0") as cluster:
    seen, seconds = set(), 0.1
    while len(seen) < {processes}:  # a machine that is slow to hand out work hands the next to the same few
        seconds *= 2
        seen |= set(pmap(work, [seconds] * {2 * processes}, session=cluster, chunks=1))
"""
    with server.client() as watcher:

        def theirs() -> list[str]:
            rows = [row for row in watcher.client_list() if "U" not in row["flags"]]
            return [f"{row['name']} {row['cmd']}" for row in rows]

        # While it starts, kombu has one more for a moment.
        idle, most = eventually(lambda: len(found) <= 8 and len(found) if (found := theirs()) else 0, 20), 0
        client = subprocess.Popen([sys.executable, "-c", code], env=empty.environ(), cwd=empty.directory)
        try:
            while client.poll() is None:
                most = max(most, len(theirs()))
                time.sleep(0.02)  # between two looks
        finally:
            client.kill()
            client.wait()
        after = theirs()
    print(f"{processes} processes: {idle} connections idle, {most} at most in a job, {len(after)} after it")
    assert client.returncode == 0
    assert processes < most <= processes + 8, after
    assert len(after) <= processes + 8, after


# -- scaling -----------------------------------------------------------------------------------------------------------


def test_autoscale_follows_the_backlog(empty: Elsewhere, tmp_path: Path, gate: Gate) -> None:
    """A worker starts with the least number of processes, has the most while work waits, and gives them up again."""
    worker = empty.start("-m", "nbparallel", "worker", "--autoscale", "1,3", AUTOSCALE_KEEPALIVE="1")
    empty.wait_for(1)
    assert children(worker) == 1

    def wait(n: int) -> int:
        (tmp_path / f"{os.getpid()}.pid").touch()
        gate.wait()
        return os.getpid()

    with empty.connect() as cluster:
        job = pmap(wait, range(6), session=cluster, chunks=1)
        eventually(lambda: len(list(tmp_path.glob("*.pid"))) == 3, 20, worker.err)
        assert children(worker) == 3
        gate.open()
        assert len(set(job.result(timeout=20))) == 3
        eventually(lambda: children(worker) == 1, 30, worker.err)
        assert pmap(abs, [-1], session=cluster).result(timeout=20) == [1]
    assert worker.end() == 0


# -- what a worker has -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--require", "no-such-thing>=2"), 1, "no-such-thing>=2 is required, but no-such-thing is not installed"),
        (("--require", "celery", "--require", "celery>=99,<100"), 1, "celery>=99,<100 is required, but celery is "),
        (("--require", "celery>>2"), 2, "--require 'celery>>2' must be as for pip"),
        (("--autoscale", "3"), 2, "--autoscale must be MIN,MAX such as 1,8"),
        (("--autoscale", "4,2"), 2, "--autoscale must be MIN,MAX such as 1,8"),
        (("--autoscale", "1,2", "--concurrency", "2"), 2, "give either --concurrency or --autoscale, not both"),
    ],
)
def test_a_worker_that_cannot_start(place: Elsewhere, arguments: tuple[str, ...], status: int, message: str) -> None:
    """What is missing, or was mistyped, is said in one line before the worker takes any work."""
    done = place.run("-m", "nbparallel", "worker", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_worker_that_has_what_is_required(empty: Elsewhere) -> None:
    """Requirements that hold, or whose marker does not, let the worker start."""
    worker = empty.start(*WORKER, "--require", "celery>=5", "--require", "no-such-thing; python_version < '3'")
    empty.wait_for(1)
    assert worker.end() == 0


def test_a_worker_that_lacks_a_module(place: Elsewhere, tmp_path: Path) -> None:
    """The error names the module, the worker and the job that asked."""
    (tmp_path / "only_here.py").write_text("def f(x): return x\n")
    code = f"""
import sys, types
from nbparallel import connect, pmap
sys.path.insert(0, {str(tmp_path)!r})
import only_here
only_here.__file__ = sys.prefix + "/lib/site-packages/only_here.py"  # installed here, so it is sent by its name
only_here.__spec__.origin = only_here.__file__
with connect({place.server.url!r}) as cluster:
    pmap(only_here.f, [1], session=cluster, queue="io", name="wind of 2019").result(timeout=30)
"""
    done = place.run("-c", code)
    assert done.returncode == 1
    assert "JobError: " in done.stderr
    assert re.search(
        rf"Job 'wind of 2019' needs the module 'only_here', which worker {re.escape(socket.gethostname())}:\d+ lacks: "
        "install it there; a worker that is started with --require checks that it has what it needs",
        done.stderr,
    ), done.stderr
