"""Redis Sentinel: the server dies in the midst of a job, its replica takes over, and every item has its result."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from acceptance.hosts import KEY, QUICK, Rig
from support import Server, eventually, free_port, unavailable

from nbparallel import connect, pmap
from nbparallel.errors import ConnectionFailed

PASSWORD = "secret"


@dataclass
class Watched(Server):
    """A server, its replica, and two Sentinels that watch over them."""

    ports: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        """URL of the Sentinels."""
        nodes = ";".join(f"sentinel://:{PASSWORD}@127.0.0.1:{port}" for port in self.ports)
        return f"{nodes}/0?master_name=ours"


@pytest.fixture
def watched() -> Iterator[tuple[Watched, list[subprocess.Popen[bytes]]]]:
    """The servers, the first being the master."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        unavailable("a redis-server that can be a Sentinel")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sn")))
        both = [free_port(), free_port()]
        processes = [
            start(stack, str(binary), directory, port, [f"requirepass {PASSWORD}", f"masterauth {PASSWORD}", 'save ""'])
            for port in both
        ]
        with redis.Redis(port=both[1], password=PASSWORD) as replica:
            replica.execute_command("REPLICAOF", "127.0.0.1", both[0])
            eventually(lambda: replica.info("replication")["master_link_status"] == "up", 30)
        watch = [
            f"sentinel monitor ours 127.0.0.1 {both[0]} 1", f"sentinel auth-pass ours {PASSWORD}",
            "sentinel down-after-milliseconds ours 1000", "sentinel failover-timeout ours 3000",
        ]  # fmt: skip
        sentinels = [free_port(), free_port()]
        for port in sentinels:
            start(stack, str(binary), directory, port, watch, "--sentinel")
        for port in sentinels:
            with redis.Redis(port=port, protocol=2) as sentinel:
                eventually(lambda s=sentinel: knows_all(s), 30, "the Sentinels know each other and the replica")  # type: ignore[misc]
        yield Watched(str(binary), directory, PASSWORD, ports=sentinels), processes


def knows_all(sentinel: redis.Redis) -> bool:
    """Whether it has found the replica and the other Sentinel."""
    flat = sentinel.execute_command("SENTINEL", "MASTERS")[0]
    if isinstance(flat, dict):
        known = {str(name): str(value) for name, value in flat.items()}
    else:
        known = dict(zip(*([(word.decode() for word in flat)] * 2), strict=False))
    return (known["num-slaves"], known["num-other-sentinels"]) == ("1", "1")


def start(
    stack: ExitStack, binary: str, directory: Path, port: int, lines: list[str], *mode: str
) -> subprocess.Popen[bytes]:
    """A server with a configuration of its own, which a Sentinel rewrites."""
    config = directory / f"{port}.conf"
    config.write_text("\n".join([f"port {port}", "bind 127.0.0.1", f"dir {directory}", *lines]) + "\n")
    with (directory / f"{port}.log").open("wb") as log:
        process = subprocess.Popen([binary, str(config), *mode], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stack.callback(lambda: (process.kill(), process.wait()))

    def answers() -> bool:
        try:
            with redis.Redis(port=port, password=None if mode else PASSWORD, protocol=2) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    eventually(answers, 20, f"the server at {port} answers")
    return process


def logged(index: int, log: str) -> int:
    """Leaves a line at its start."""
    with open(log, "a") as file:
        file.write(f"{index}\n")
    time.sleep(0.05)
    return index


@pytest.mark.timeout(180)
def test_a_failover_in_the_midst_of_a_job(
    watched: tuple[Watched, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    """The master is killed; client, workers and tickets find the new one, and the job ends complete."""
    server, (master, _) = watched
    (server.directory / "key").write_text(KEY)
    rig = Rig(server, server.directory, {**QUICK, "lease_seconds": 5.0})
    log = tmp_path / "log"
    try:
        for _ in range(2):
            rig.add_host()
        rig.wait_hosts(2, 40)
        with connect(server.url, key=KEY, **rig.settings) as cluster:
            job = pmap(logged, range(200), [str(log)] * 200, chunks=2, progress=False, session=cluster)
            eventually(lambda: log.exists() and len(log.read_text().split()) > 30, 30, f"the job runs {rig.logs()}")
            master.kill()
            killed = time.monotonic()
            assert job.result(90) == list(range(200)), rig.logs()
            again = len(log.read_text().split()) - 200
            print(f"{time.monotonic() - killed:.1f} s after the master's death; {again} items ran twice")
            assert pmap(abs, range(-50, 0), session=cluster).result(60) == list(range(50, 0, -1)), "new work, too"
    finally:
        rig.stop()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sentinel://:hunter2@127.0.0.1:1/0", "does not name its master: put ?master_name=mymaster"),
        ("sentinel://127.0.0.1:1/x?master_name=m", "its database must be a number, not 'x'"),
        ("sentinel://127.0.0.1:1/0?master_name=m&ssl=1", "it says 'ssl'; known are master_name"),
        ("sentinel://a:1;redis://b:2/0?master_name=m", "each of its Sentinels must be sentinel://host:port"),
        ("sentinel://127.0.0.1:{port}/0?master_name=m", "cannot be reached: No master found for 'm'"),
    ],
)
def test_urls_of_sentinels_that_are_wrong(url: str, message: str) -> None:
    """What is wrong, or that nobody answers, is said with the URL and without the password."""
    with pytest.raises(ConnectionFailed) as caught:
        connect(url.format(port=free_port()), key=KEY)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)
