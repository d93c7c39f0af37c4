"""Large bodies of a cluster that spans machines, fetched once for all processes of one."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Server, running_server

from nbparallel.errors import WireError
from nbparallel.store.host import HostDepot
from nbparallel.store.parts import PartsDepot
from nbparallel.store.real import RedisStore


class Counted(PartsDepot):
    """Counts what is fetched."""

    fetched = 0

    def get(self, name: str, size: int, *, keep: bool) -> memoryview:
        """As it does, and count."""
        self.fetched += 1
        return super().get(name, size, keep=keep)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of its own."""
    with running_server() as server:
        yield server


@pytest.fixture
def parts(server: Server) -> Iterator[Counted]:
    """Bodies in the store."""
    store = RedisStore(server.url)
    yield Counted(store, 1, 60)
    store.close_connections()


def test_a_body_is_fetched_once(parts: Counted, tmp_path: Path) -> None:
    """Processes that want it at the same time wait for the one that fetches it, and map what it wrote."""
    name = parts.put([b"abc", b"def"])
    views: list[memoryview] = []

    def read() -> None:
        views.append(HostDepot(parts, str(tmp_path)).get(name, 6, keep=True))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert parts.fetched == 1
    views[0][0] = 0
    assert [bytes(view) for view in views[1:]] == [b"abcdef"] * 7


def test_what_the_store_has_no_more_goes(parts: Counted, tmp_path: Path) -> None:
    """Files of bodies that their owner gave up are removed, with all that belongs to them; others stay."""
    host = HostDepot(parts, str(tmp_path))
    host.tidy()
    one, two = host.put([b"one"]), host.put([b"other"])
    view = host.get(one, 3, keep=True)
    host.get(two, 5, keep=True)
    parts.drop(one, 3)
    host.tidy()
    assert {path.name[:24] for path in tmp_path.iterdir()} == {two[:24]}
    assert view == b"one"
    host.drop(two)
    assert os.listdir(tmp_path) == []
    with pytest.raises(WireError, match="not in the store as it was put"):
        host.get(one, 3, keep=True)


def test_a_write_that_was_broken_off_is_begun_anew(parts: Counted, tmp_path: Path) -> None:
    """A process that died while it wrote leaves nothing that is taken for the body."""
    name = parts.put([b"abcdef"])
    (tmp_path / f"{name[:24]}.part").write_bytes(b"abcdefgh")
    assert HostDepot(parts, str(tmp_path)).get(name, 6, keep=True) == b"abcdef"


def test_without_room_each_process_has_its_own(parts: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full file system costs memory, not the job."""
    name = parts.put([b"abcdef"])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "writev", full)
    host = HostDepot(parts, str(tmp_path))
    assert host.get(name, 6, keep=True) == b"abcdef"
    assert host.get(name, 6, keep=True) == b"abcdef"
    assert parts.fetched == 2


def test_parts_that_stand_in_several_buffers(parts: Counted, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """Parts are cut wherever buffers end, and nothing is left of what could not be put whole."""
    monkeypatch.setattr("nbparallel.store.parts.PART_BYTES", 4)
    name = parts.put([b"ab", b"", b"cdefg", bytearray(b"hijklmnop")])
    assert parts.get(name, 16, keep=True) == b"abcdefghijklmnop"
    assert parts.keep(name, 16)
    assert not parts.keep(name, 20)
    parts.drop(name, 16)
    calls: list[Any] = []
    put: Callable[..., None] = parts._store.put_part

    def broken(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        put(*arguments)

    monkeypatch.setattr(parts._store, "put_part", broken)
    with server.client() as client:
        client.flushall()
        with pytest.raises(KeyboardInterrupt):
            parts.put([bytes(16)])
        assert client.keys("*") == []
