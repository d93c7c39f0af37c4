"""The embedded cluster with real processes that are killed, broken, interrupted and left behind."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from support import eventually

import nbparallel.cluster
from nbparallel.cluster import guard, server
from nbparallel.cluster.embedded import EmbeddedCluster
from nbparallel.errors import StartupFailed
from nbparallel.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

#: Seconds after which nothing of a killed client's cluster may be left.
GONE_SECONDS = 2.0
#: Seconds for what only has to happen at all.
PATIENCE = 20.0
ROOT = Path(nbparallel.cluster.__file__).parents[2]

Start = Callable[..., EmbeddedCluster]
Client = Callable[..., tuple[subprocess.Popen[str], Path]]

#: A worker with a pool process, both deaf to SIGTERM and stuck in C with the GIL held.
WORKER = """
import ctypes, os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
parent = os.getpid()
if os.fork() == 0:
    os.setsid()
    ctypes.CDLL(None).prctl(1, 9)  # as our pool processes do: die with the parent
    os.getppid() == parent or os._exit(1)  # it died before
    {child}
ctypes.PyDLL(None).sleep(1000)
"""
PLAIN = WORKER.format(child="")
#: The same, whose pool process has started a program in a session of its own: five processes with guard and server.
STUBBORN = WORKER.format(child="os.fork() == 0 and os.setsid()")

CLIENT = """
import os, sys
from nbparallel.cluster.embedded import EmbeddedCluster
from nbparallel.settings import Settings
cluster = EmbeddedCluster(2, settings=Settings(), worker_command=[sys.executable, "-c", sys.argv[1]])
cluster.start()
cluster.wait_server(20)
print(cluster.directory, flush=True)
"""


def runs(pid: int) -> bool:
    """Whether a process is there and not just a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: set[int], directory: Path, seconds: float = GONE_SECONDS) -> bool:
    """True once these processes and the directory have vanished; fails when they do not in time."""
    return eventually(lambda: not any(map(runs, pids)) and not directory.exists(), seconds)


def command_line(pid: int) -> str:
    """The arguments of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def guard_of(directory: Path) -> int:
    """The process id of the guard of this directory, once its program runs."""

    def look() -> int:
        pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
        found = [
            pid for pid in pids if re.search(rf"guard(?:\.py)? \d+ {re.escape(str(directory))} \d", command_line(pid))
        ]
        return found[0] if len(found) == 1 else 0

    return eventually(look, PATIENCE)


def family(directory: Path, size: int) -> set[int]:
    """The guard and all below it, once there are so many."""
    root = guard_of(directory)
    eventually(lambda: len(guard.descendants(root)) == size - 1, PATIENCE, f"{size} processes in all")
    return {root, *guard.descendants(root)}


def child_named(pids: set[int], text: str) -> int:
    """The one process of these with this in its command line."""
    (pid,) = [pid for pid in pids if text in command_line(pid)]
    return pid


@pytest.fixture(autouse=True)
def short_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for the clusters' directories, which must be empty at the end; the name wants quoting in a URL."""
    with tempfile.TemporaryDirectory(prefix="t %41", dir="/tmp") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        yield Path(name)
        eventually(lambda: not os.listdir(name), GONE_SECONDS)


@pytest.fixture(autouse=True)
def measured_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """While coverage is measured run the guard as a module with site-packages, or it would see nothing of it."""
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        isolated = ["-I"] if ROOT.name == "site-packages" else []
        monkeypatch.setattr("nbparallel.cluster.embedded.GUARD_COMMAND", [*isolated, "-m", guard.__name__])


@pytest.fixture
def start() -> Iterator[Start]:
    """Start clusters whose server answers; they are stopped at the end."""
    clusters: list[EmbeddedCluster] = []

    def start(worker: str = PLAIN, **options: object) -> EmbeddedCluster:
        command = [sys.executable, "-c", worker]
        cluster = EmbeddedCluster(2, settings=Settings(), worker_command=command, **options)  # type: ignore[arg-type]
        clusters.append(cluster)
        cluster.start()
        cluster.wait_server(PATIENCE)
        return cluster

    yield start
    for cluster in clusters:
        cluster.stop()


@pytest.fixture
def client() -> Iterator[Client]:
    """Run another client with a cluster, then more code in it; gives it and the cluster's directory."""
    clients: list[subprocess.Popen[str]] = []

    def client(
        code: str = "sys.stdin.read()", worker: str = STUBBORN, **options: object
    ) -> tuple[subprocess.Popen[str], Path]:
        process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-W", "error", "-c", CLIENT + code, worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            **options,
        )
        clients.append(process)
        assert process.stdout
        return process, Path(process.stdout.readline().rstrip("\n"))

    yield client
    for process in clients:
        process.kill()
        process.communicate()


def test_stop_leaves_nothing(start: Start) -> None:
    """After stop no process and no file is left, not even a program that a pool process had started."""
    cluster = start(STUBBORN)
    pids = family(cluster.directory, 5)
    assert cluster.alive()

    cluster.stop()

    assert gone(pids, cluster.directory, 0.0)
    assert not cluster.alive()
    assert cluster.failure() == ""
    cluster.stop()


def test_urls_fit_redis_and_celery(start: Start) -> None:
    """Both URLs lead redis-py and kombu to the same server, which wants the password."""
    import kombu
    import redis

    cluster = start()

    with redis.Redis.from_url(cluster.store_url) as store, kombu.Connection(cluster.url) as broker:
        broker.SimpleQueue("greetings").put("hello")
        assert store.llen("greetings") == 1
    path = unquote(urlsplit(cluster.store_url).path)
    with redis.Redis(unix_socket_path=path) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_worker_gets_its_configuration(start: Start) -> None:
    """The worker reads one line of JSON, however long, in the client's folder and with the variables asked for."""
    worker = """
import json, os, sys, time
config = json.loads(sys.stdin.readline())
config["init"] = len(config["init"])
config |= {"rest": sys.stdin.read(), "here": os.getcwd(), "variable": os.environ["TEST_VARIABLE"]}
print(json.dumps(config), flush=True)
time.sleep(1000)
"""
    cluster = start(worker, init=bytes(5_000_000), environ={"TEST_VARIABLE": "x"})
    log = cluster.directory / "worker.log"
    eventually(lambda: log.read_text().endswith("\n"), PATIENCE)

    config = json.loads(log.read_text())
    settings = config.pop("settings")
    assert Settings(**settings) == Settings()
    assert config == {
        "url": cluster.url,
        "store_url": cluster.store_url,
        "key": cluster.key.hex(),
        "concurrency": 2,
        "queues": ["nbparallel"],
        "namespace": "default",
        "init": 10_000_000,
        "pool": "prefork",
        "depot": str(cluster.depot),
        "rest": "",
        "here": os.getcwd(),
        "variable": "x",
    }


def test_no_secret_in_the_process_table(start: Start) -> None:
    """Neither the password nor the key is in any process's arguments or environment, or in a file."""
    cluster = start()
    password = urlsplit(cluster.store_url).password
    assert password

    for pid in family(cluster.directory, 4):
        shown = command_line(pid) + Path(f"/proc/{pid}/environ").read_text()
        assert password not in shown
        assert cluster.key.hex() not in shown
    assert sorted(os.listdir(cluster.directory)) == ["depot", "s.sock", "server.log", "worker.log"]


def test_worker_inherits_only_its_streams() -> None:
    """The worker has no file open but its three streams, not the lock or a pipe, and ignores and blocks no signal."""
    cluster = EmbeddedCluster(1, settings=Settings(), worker_command=["sleep", "1000"])
    cluster.start()
    pids = family(cluster.directory, 3)
    eventually(lambda: any("sleep" in command_line(pid) for pid in pids), PATIENCE)
    worker = child_named(pids, "sleep")

    assert sorted(os.listdir(f"/proc/{worker}/fd")) == ["0", "1", "2"]
    masks = re.findall(r"^Sig(?:Ign|Blk):\s*(\w+)$", Path(f"/proc/{worker}/status").read_text(), re.MULTILINE)
    assert masks == ["0" * 16, "0" * 16]
    cluster.stop()


@pytest.mark.parametrize("attempt", range(5))
def test_killed_client_leaves_nothing(client: Client, attempt: int) -> None:
    """After kill -9 of the client nothing is left 2 s later, though all are deaf to SIGTERM and stuck in C."""
    process, directory = client()
    pids = family(directory, 5)

    process.kill()

    assert gone(pids, directory)


def test_killed_client_with_a_forked_child(client: Client) -> None:
    """A child that the client had forked, and which lives on with its pipes, does not keep the cluster alive."""
    process, directory = client("pid = os.fork()\nif pid: print(pid, flush=True)\nsys.stdin.read()")
    assert process.stdout
    child = int(process.stdout.readline())
    pids = family(directory, 5)
    try:
        process.kill()

        assert gone(pids, directory)
        assert runs(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_forked_child_leaves_the_cluster_alone(client: Client) -> None:
    """A forked child sees no cluster of its own, and neither its stop nor its exit ends the parent's."""
    code = """
if os.fork() == 0:
    cluster.stop()
    print(cluster.alive(), repr(cluster.failure()), flush=True)
    sys.exit()
os.wait()
cluster.wait_server(0)
print(cluster.alive(), flush=True)
sys.stdin.read()
"""
    process, directory = client(code)
    pids = family(directory, 5)

    assert process.stdout
    assert process.stdout.readline() == "False ''\n"
    assert process.stdout.readline() == "True\n"
    assert all(map(runs, pids))
    process.communicate()
    assert gone(pids, directory)


def test_normal_exit_leaves_nothing(client: Client) -> None:
    """When the client just ends, all has ended before it."""
    process, directory = client()
    pids = family(directory, 5)

    process.communicate()

    assert process.returncode == 0
    assert gone(pids, directory, 0.0)


def test_interrupt_of_the_clients_group(client: Client) -> None:
    """A SIGINT for the client's whole process group reaches the client alone."""
    code = """
try:
    sys.stdin.read()
except KeyboardInterrupt:
    cluster.wait_server(0)
    print("interrupted", flush=True)
sys.stdin.read()
"""
    process, directory = client(code, worker=PLAIN, start_new_session=True)
    pids = family(directory, 4)

    os.killpg(process.pid, signal.SIGINT)

    assert process.stdout
    assert process.stdout.readline() == "interrupted\n"
    assert all(map(runs, pids))
    eventually(lambda: all(os.getsid(pid) == pid for pid in pids), PATIENCE)


def test_start_without_standard_streams() -> None:
    """A client with stdin and stderr closed has a cluster that nobody sweeps, until it turns into another program."""
    code = """
from nbparallel.store.directory import sweep
sweep(cluster.directory.parent)
cluster.wait_server(0)
print(os.listdir(cluster.directory.parent) == [cluster.directory.name], flush=True)
os.execlp('sleep', 'sleep', '1000')
"""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os\nos.close(0)\nos.close(2)\n{CLIENT}{code}", STUBBORN],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout
        directory = Path(process.stdout.readline().rstrip("\n"))
        try:
            assert process.stdout.readline() == "True\n"
            eventually(lambda: not directory.exists(), PATIENCE)
            assert process.poll() is None
        finally:
            process.kill()


def test_start_in_a_thread(start: Start) -> None:
    """A cluster that was started in a thread with blocked signals outlives the thread, and can be stopped."""
    clusters: list[EmbeddedCluster] = []

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
        clusters.append(start())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (cluster,) = clusters
    pids = family(cluster.directory, 4)

    assert cluster.alive()
    cluster.wait_server(0)
    os.kill(guard_of(cluster.directory), signal.SIGTERM)
    assert gone(pids, cluster.directory)


def test_two_clusters(start: Start) -> None:
    """The end of one cluster does not touch another one of the same process."""
    first, second = start(), start()
    pids = family(first.directory, 4), family(second.directory, 4)
    assert first.key != second.key

    first.stop()

    assert gone(pids[0], first.directory, 0.0)
    assert all(map(runs, pids[1]))
    second.wait_server(0)


def test_forgotten_cluster() -> None:
    """A cluster that nobody refers to any more is stopped."""
    cluster = EmbeddedCluster(1, settings=Settings(), worker_command=[sys.executable, "-c", PLAIN])
    cluster.start()
    directory = cluster.directory
    pids = family(directory, 4)

    del cluster
    gc.collect()

    assert gone(pids, directory, 0.0)


@pytest.mark.parametrize("victim", ["unixsocket:", "ctypes.PyDLL"])
def test_killed_child_ends_all(start: Start, victim: str) -> None:
    """When the server or the worker is killed, all the others end, and the cluster says what happened."""
    cluster = start("import ctypes; ctypes.PyDLL(None).sleep(1000)")
    pids = family(cluster.directory, 3)

    os.kill(child_named(pids, victim), signal.SIGKILL)

    assert gone(pids, cluster.directory)
    eventually(lambda: not cluster.alive(), PATIENCE)
    name = "server" if victim == "unixsocket:" else "worker"
    assert cluster.failure().startswith(f"the embedded cluster's {name} was killed by signal 9 (out of memory?)")
    with pytest.raises(StartupFailed, match=f"{name} was killed"):
        cluster.wait_server(PATIENCE)


def test_killed_guard_ends_all(start: Start) -> None:
    """When the guard is killed, its children and the pool processes die; stop removes the directory."""
    cluster = start()
    pids = family(cluster.directory, 4)

    os.kill(guard_of(cluster.directory), signal.SIGKILL)

    eventually(lambda: not any(map(runs, pids)), GONE_SECONDS)
    eventually(lambda: not cluster.alive(), PATIENCE)
    assert cluster.failure() == "the embedded cluster's guard was killed by signal 9 (out of memory?)"
    cluster.stop()
    assert not cluster.directory.exists()


def test_directory_of_a_killed_guard_is_swept(start: Start, client: Client) -> None:
    """When guard and client are killed at once, the next cluster removes their directory, and no living one's."""
    living = start()
    process, directory = client(worker=PLAIN)
    family(directory, 4)
    process.send_signal(signal.SIGSTOP)  # lest it cleans up between the two kills
    os.kill(guard_of(directory), signal.SIGKILL)
    process.kill()
    process.wait()
    assert directory.exists()

    start()

    assert not directory.exists()
    living.wait_server(0)


def test_worker_that_cannot_start(start: Start) -> None:
    """When the worker ends at once, the cluster fails with the worker's own words."""
    cluster = start("import ctypes; ctypes.CDLL(None).usleep(300000); raise ImportError('no such engine')")

    eventually(lambda: not cluster.alive(), PATIENCE)
    assert "worker ended with exit status 1. The end of its log:\n" in cluster.failure()
    assert "ImportError: no such engine" in cluster.failure()
    assert not cluster.directory.exists()


def test_worker_program_missing() -> None:
    """When the worker's program is not there, the error names it."""
    cluster = EmbeddedCluster(1, settings=Settings(), worker_command=["/no/such/program"])
    cluster.start()

    eventually(lambda: not cluster.alive(), PATIENCE)
    assert "cannot run /no/such/program: " in cluster.failure()


@pytest.fixture
def broken_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make the only server on this machine one that runs this shell code."""

    def install(code: str) -> None:
        program = tmp_path / "valkey-server"
        program.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo 'Valkey server v=9.9.9' && exit\n{code}\n")
        program.chmod(0o755)
        monkeypatch.setattr(server, "_candidates", lambda: [("valkey-server", str(program))])

    return install


def test_server_that_cannot_start(broken_server: Callable[[str], None]) -> None:
    """When the server ends at once, the error says so with the server's own words, and nothing is left."""
    broken_server("echo 'FATAL CONFIG FILE ERROR' >&2; exit 3")
    cluster = EmbeddedCluster(1, settings=Settings(), worker_command=[sys.executable, "-c", PLAIN])
    cluster.start()

    with pytest.raises(StartupFailed, match=r"server ended with exit status 3.*\n.*FATAL CONFIG FILE ERROR"):
        cluster.wait_server(PATIENCE)
    assert not cluster.directory.exists()


def test_server_that_does_not_answer(broken_server: Callable[[str], None]) -> None:
    """When the server never answers, waiting ends in time with the end of its log."""
    broken_server("echo still thinking; exec sleep 1000")
    cluster = EmbeddedCluster(1, settings=Settings(), worker_command=[sys.executable, "-c", PLAIN])
    cluster.start()
    log = cluster.directory / "server.log"
    eventually(lambda: log.exists() and bool(log.read_text()), PATIENCE)

    with pytest.raises(StartupFailed, match=r"did not answer within 0\.1 s.*\nstill thinking"):
        cluster.wait_server(0.1)
    cluster.stop()


def test_waiting_for_a_stopped_cluster(start: Start) -> None:
    """Waiting for the server of a cluster that was stopped is an error, not a hang."""
    cluster = start()
    cluster.stop()

    with pytest.raises(StartupFailed, match="is stopped"):
        cluster.wait_server(PATIENCE)


def test_guard_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the guard cannot be started at all, the error names the program; no directory is left."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    cluster = EmbeddedCluster(1, settings=Settings())

    with pytest.raises(StartupFailed, match=r"/no/such/python.* does not run"):
        cluster.start()


def test_guard_that_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the guard ends before it has read its instructions, waiting ends with how it ended."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    cluster = EmbeddedCluster(1, init=bytes(5_000_000), settings=Settings())
    cluster.start()

    with pytest.raises(StartupFailed, match="guard ended with exit status 1"):
        cluster.wait_server(PATIENCE)
    cluster.stop()


def test_guard_that_hangs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the guard does not react, stop kills it, and with it everything else."""
    monkeypatch.setattr("nbparallel.cluster.embedded.STOP_SECONDS", 0.2)
    cluster = start()
    pids = family(cluster.directory, 4)
    os.kill(guard_of(cluster.directory), signal.SIGSTOP)

    cluster.stop()

    assert gone(pids, cluster.directory)


def test_logs_are_bounded(start: Start) -> None:
    """A worker's log that grew too large is emptied when the guard next looks, at the end of some process, say."""
    worker = f"""
import os, sys, time
print("x" * {guard.LOG_BYTES + 1})
sys.stdout.flush()
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(0.5)  # to be an orphan, and the log be seen full, by then
    os._exit(0)
os.wait()
time.sleep(1000)
"""
    cluster = start(worker)

    log = cluster.directory / "worker.log"
    eventually(lambda: log.exists() and log.stat().st_size > guard.LOG_BYTES, PATIENCE)
    eventually(lambda: log.stat().st_size == 0, PATIENCE)
    assert cluster.alive()
