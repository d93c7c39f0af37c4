"""A user of the server who may do what nbparallel does and nothing else: the line that the README gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from acceptance.elsewhere import Elsewhere
from support import Server, eventually, free_port, server_binary, unavailable

from nbparallel import attach, jobs, pmap
from nbparallel.errors import ConnectionFailed

README = Path(__file__).parents[2] / "README.md"
PASSWORD = "of-nbp"


@dataclass
class Restricted(Server):
    """A server on which clients and workers are the user ``nbp``."""

    user: str = f"nbp:{PASSWORD}"

    @property
    def url(self) -> str:
        """URL with that user."""
        return f"redis://{self.user}@127.0.0.1:{self.port}/0"


@contextmanager
def restricted(directory: Path, line: str) -> Iterator[Elsewhere]:
    """A cluster on a server with this user."""
    binary = server_binary()
    if binary is None:
        unavailable("a Redis or Valkey server")
    server = Restricted(str(binary), directory, port=free_port(), config=(line,))
    place = Elsewhere(server, directory)
    try:
        server.start()
        yield place
    finally:
        for worker in place.workers:
            if worker.process.poll() is None:
                worker.end()
        server.stop()


def test_the_user_of_the_readme(tmp_path: Path) -> None:
    """Jobs, detached ones, watchers and the command line need no more than the line in the README allows."""
    found = re.search(r"^user nbp .*", README.read_text(), re.MULTILINE)
    assert found is not None
    line = found.group().replace(">password", f">{PASSWORD}")
    with restricted(tmp_path, line) as place:
        place.start()
        place.wait_for(1)
        with place.connect(part_bytes=100_000) as cluster:
            assert pmap(abs, range(-200, 0), session=cluster).result(30) == list(range(200, 0, -1))
            assert pmap(len, [b"x" * 300_000], session=cluster).result(30) == [300_000], "in parts"
            job = pmap(abs, range(50), session=cluster, detach=True)
            assert job.result(30) == list(range(50))
            assert any(one.id == job.id for one in jobs(session=cluster))
            assert attach(job.id, session=cluster).result(30) == list(range(50))
            killed = pmap(lambda x: __import__("os")._exit(3) if x == 1 else x, range(4), session=cluster, chunks=1,
                          on_error="return")  # fmt: skip
            assert "killed its worker process" in str(killed.result(60)[1])
        for command in (
            ("nbparallel", "status"),
            ("nbparallel", "gc"),
            ("celery", "-A", "nbparallel", "inspect", "ping"),
        ):
            done = place.run("-m", *command)
            assert (done.returncode, "pong" in done.stdout) == (0, "inspect" in command), done.stderr
        with place.server.client() as admin:
            refused = admin.acl_log()
            assert refused == [], "something was refused"
            assert [key for key in admin.keys("*") if b"dump" in key] == []
        with redis.Redis(port=place.server.port, username="nbp", password=PASSWORD) as user:
            for forbidden in (("FLUSHALL",), ("KEYS", "*"), ("GET", "other"), ("CONFIG", "GET", "*"), ("SHUTDOWN",)):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    user.execute_command(*forbidden)


def test_a_user_who_may_not(tmp_path: Path) -> None:
    """A user who lacks a right is told which, and a wrong password as such; nothing waits."""
    with restricted(tmp_path, f"user nbp on >{PASSWORD} ~other:* +@all -info") as place:
        with pytest.raises(ConnectionFailed, match=r"does not allow this user what .*'info' command"):
            place.connect()
        place.server.user = "nbp:wrong"  # type: ignore[attr-defined]
        with pytest.raises(ConnectionFailed, match="refused the user or password: invalid username-password pair"):
            place.connect()
        done = place.run("-m", "nbparallel", "worker")
        eventually(lambda: done.returncode == 1, 1)
        assert "refused the user or password" in done.stderr
