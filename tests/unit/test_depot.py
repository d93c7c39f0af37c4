"""Large blobs in files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nbparallel.errors import WireError
from nbparallel.store import directory
from nbparallel.store.depot import Depot


def test_a_blob_comes_back_as_it_was(tmp_path: Path) -> None:
    """Parts are joined in order, empty ones and hundreds of them included."""
    depot = Depot(str(tmp_path))
    parts = [bytes([i % 256]) * i for i in range(1500)]
    name = depot.put(parts)
    assert name is not None
    assert depot.get(name, sum(map(len, parts)), keep=True) == b"".join(parts)
    assert os.stat(tmp_path / name).st_mode & 0o777 == 0o600


def test_there_is_room_for_what_is_mapped(tmp_path: Path) -> None:
    """A share of what is free, and nothing when the cluster is going down."""
    free = os.statvfs(tmp_path)
    assert 0 < Depot(str(tmp_path)).room() < free.f_bavail * free.f_frsize / 4
    assert Depot(str(tmp_path / "gone")).room() == 0


def test_writing_to_a_mapping_changes_nobody_elses(tmp_path: Path) -> None:
    """Mappings are private and writable, as users write to their arrays."""
    depot = Depot(str(tmp_path))
    name = depot.put([b"abc"])
    assert name is not None
    mine, other = depot.get(name, 3, keep=True), depot.get(name, 3, keep=True)
    mine[0] = 0
    assert other == b"abc"
    assert (tmp_path / name).read_bytes() == b"abc"


def test_a_blob_that_is_taken_out_stays_readable(tmp_path: Path) -> None:
    """The file goes at once, the memory with the last reader."""
    depot = Depot(str(tmp_path))
    name = depot.put([b"abc"])
    assert name is not None
    view = depot.get(name, 3, keep=False)
    assert os.listdir(tmp_path) == []
    assert view == b"abc"
    depot.drop(name)  # again is harmless


@pytest.mark.parametrize("name", ["", "../x", "a" * 23, "g" * 24, 7])
def test_only_names_of_ours_are_opened(tmp_path: Path, name: str) -> None:
    """A name from outside cannot lead out of the directory."""
    with pytest.raises(WireError, match="no name of a blob"):
        Depot(str(tmp_path)).get(name, 1, keep=True)


def test_a_missing_or_cut_blob_is_refused(tmp_path: Path) -> None:
    """What is not there, or not as long as the note says, is an error and no crash."""
    depot = Depot(str(tmp_path))
    with pytest.raises(WireError, match="not in the depot"):
        depot.get("0" * 24, 1, keep=True)
    name = depot.put([b"abc"])
    assert name is not None
    with pytest.raises(WireError, match="not 4 bytes"):
        depot.get(name, 4, keep=True)


def test_a_full_file_system_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room the caller sends the bytes through the socket, and no half-written file stays."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "writev", full)
    assert Depot(str(tmp_path)).put([b"abc"]) is None
    assert os.listdir(tmp_path) == []
    assert Depot(str(tmp_path / "gone")).put([b"abc"]) is None


def test_the_depot_is_in_memory_only_where_there_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shared memory, as containers have, is left alone; removing the directory removes either kind."""
    monkeypatch.setattr(directory, "SHARED_MEMORY", str(tmp_path))
    for least, link in ((1, True), (1 << 62, False)):
        monkeypatch.setattr(directory, "LEAST_SHARED_MEMORY", least)
        home = tmp_path / "home"
        home.mkdir()
        depot, lock = directory.make_depot(home)
        assert (home / "depot").is_symlink() is link
        assert depot.stat().st_mode & 0o777 == 0o700
        directory.sweep(tmp_path)
        assert depot.exists(), "it is locked"
        directory.remove(home)
        assert os.listdir(tmp_path) == []
        assert (lock >= 0) is link
        if link:
            os.close(lock)


def test_a_depot_whose_owner_is_gone_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory does not fill with what killed programs left."""
    monkeypatch.setattr(directory, "SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(directory, "LEAST_SHARED_MEMORY", 1)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, lock = directory.make_depot(tmp_path / "one")
    os.close(lock)  # as the end of the process does
    second, lock = directory.make_depot(tmp_path / "two")
    assert (first.exists(), second.exists()) == (False, True)
    os.close(lock)
