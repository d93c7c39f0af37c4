"""Files of a depot are written over when nobody needs them, and never while somebody has them mapped."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from nbparallel.errors import WireError
from nbparallel.store import depot as module
from nbparallel.store import spares
from nbparallel.store.depot import MAPPED_BYTES, Depot

LARGE = 2 * MAPPED_BYTES


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    """An empty depot."""
    return Depot(str(tmp_path))


def put(depot: Depot, letter: bytes, size: int = LARGE) -> str:
    """A blob of one letter."""
    name = depot.put([letter, letter * (size - 1)])
    assert name is not None
    return name


def file_of(depot: Depot, name: str) -> int:
    """Which file a blob lies in."""
    return os.stat(os.path.join(depot._path, name)).st_ino


@pytest.mark.parametrize("size", [LARGE, LARGE // 2, LARGE * 3 // 2])
def test_a_file_is_written_over_by_a_blob_of_about_its_size(depot: Depot, size: int) -> None:
    """Nothing of what was there before is seen, whether the new one is shorter or longer."""
    first = put(depot, b"a")
    file = file_of(depot, first)
    depot.drop(first)
    second = put(depot, b"b", size)
    assert file_of(depot, second) == file
    assert depot.get(second, size, keep=True) == b"b" * size
    with pytest.raises(WireError, match="not in the depot"):
        depot.get(first, LARGE, keep=True)


@pytest.mark.parametrize("size", [LARGE // 4, LARGE * 3])
def test_much_smaller_and_larger_blobs_get_a_new_file(depot: Depot, size: int) -> None:
    """Cutting a large file, or making a small one longer, saves nothing."""
    first = put(depot, b"a")
    file = file_of(depot, first)
    depot.drop(first)
    assert file_of(depot, put(depot, b"b", size)) != file


def test_what_is_mapped_is_not_written_over(depot: Depot) -> None:
    """A blob that was dropped stays as it was for whoever reads it, in parts as well; then its file is free."""
    first = put(depot, b"a")
    file = file_of(depot, first)
    mine = depot.get(first, LARGE, keep=True)
    part = depot.get(first, LARGE, keep=True)[LARGE // 2 :]
    depot.drop(first)
    second = put(depot, b"b")
    assert file_of(depot, second) != file
    del mine
    third = put(depot, b"c")
    assert file_of(depot, third) != file
    assert part == b"a" * (LARGE // 2)
    del part
    assert file_of(depot, put(depot, b"d")) == file


def test_a_blob_that_was_taken_out_goes_with_its_reader(depot: Depot) -> None:
    """Its file is there as long as it is mapped, and written over then."""
    name = put(depot, b"a")
    file = file_of(depot, name)
    view = depot.get(name, LARGE, keep=False)
    assert file_of(depot, put(depot, b"b")) != file
    assert view == b"a" * LARGE
    del view
    assert file_of(depot, put(depot, b"c")) == file


def test_a_reader_that_was_killed_holds_nothing(depot: Depot) -> None:
    """What a process had mapped is free when it is gone."""
    name = put(depot, b"a")
    file = file_of(depot, name)
    ours, theirs = multiprocessing.Pipe()

    def read() -> None:
        view = depot.get(name, LARGE, keep=True)
        theirs.send(len(view))
        signal.pause()

    reader: Any = multiprocessing.get_context("fork").Process(target=read)
    reader.start()
    assert ours.recv() == LARGE
    depot.drop(name)
    assert file_of(depot, put(depot, b"b")) != file
    reader.kill()
    reader.join()
    assert file_of(depot, put(depot, b"c")) == file


def test_few_bytes_are_kept_and_not_for_long(depot: Depot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a share of what is free files are removed, and those that nobody needs after a while, too."""
    names = [put(depot, b"a") for _ in range(3)]
    depot.drop(names[0])
    depot.tidy()
    assert len(os.listdir(tmp_path / "spare")) == 1
    monkeypatch.setattr(spares, "REST_SECONDS", -1.0)
    depot.tidy()
    assert os.listdir(tmp_path / "spare") == []
    monkeypatch.setattr(module, "SPARE", 0.0)
    depot.drop(names[1])
    assert os.listdir(tmp_path / "spare") == []
    assert sorted(os.listdir(tmp_path)) == sorted([names[2], "spare"])


def test_small_files_and_those_of_other_depots_just_go(tmp_path: Path) -> None:
    """A small one is read, not mapped; what is fetched for a machine is not written often."""
    small = Depot(str(tmp_path))
    small.drop(put(small, b"a", 1000))
    shelf = Depot(str(tmp_path), reuse=False)
    shelf.drop(put(shelf, b"a"))
    shelf.tidy()
    assert os.listdir(tmp_path) == []


def test_another_process_may_be_faster(depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is taken meanwhile is left alone, and no descriptor stays open."""
    depot.drop(put(depot, b"a"))
    rename, before = os.rename, len(os.listdir("/proc/self/fd"))

    def late(old: str, new: str) -> None:
        rename(old, new + "0")
        rename(old, new)

    monkeypatch.setattr(os, "rename", late)
    name = put(depot, b"b")
    assert depot.get(name, LARGE, keep=True)[0] == ord("b")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fork_while_a_file_is_written_over_locks_nobody_out(depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of whoever writes ends with the writing, although a child that was forked meanwhile has it, too."""
    depot.drop(put(depot, b"a"))
    writev, forked = os.writev, []

    def write(*args: Any) -> int:
        if not forked:
            forked.append(multiprocessing.get_context("fork").Process(target=signal.pause))
            forked[0].start()
        return writev(*args)

    monkeypatch.setattr(os, "writev", write)
    try:
        name = put(depot, b"b")
        with open(os.path.join(depot._path, name)) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        forked[0].kill()
        forked[0].join()


def test_a_reader_that_comes_too_late_is_told(depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the file became another blob's between its opening and its lock, nothing of that is read."""
    name = put(depot, b"a")
    flock = fcntl.flock

    def late(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        depot.drop(name)
        assert put(depot, b"b") != name
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(WireError, match="is not in the depot"):
        depot.get(name, LARGE, keep=True)


def _write_and_read(path: str, seed: int) -> None:
    """Write, map and drop at random, and see that each mapping holds what was written."""
    choice = random.Random(seed)
    depot, held = Depot(path), []
    for step in range(150):
        letter, size = bytes([(seed * 150 + step) % 251]), MAPPED_BYTES + choice.randrange(MAPPED_BYTES)
        name = put(depot, letter, size)
        held.append((letter, size, depot.get(name, size, keep=choice.random() < 0.5)))
        depot.drop(name)
        while len(held) > choice.randrange(1, 6):
            letter, size, view = held.pop(choice.randrange(len(held)))
            assert view == letter * size
        if step % 50 == 49:
            depot.tidy()


def test_processes_that_write_and_read_at_random(tmp_path: Path) -> None:
    """Whatever they do at the same moment, nobody sees anything but what was written under a name."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_and_read, args=(str(tmp_path), seed)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    reused = Depot(str(tmp_path))._spares
    assert reused is not None
    assert reused._files(), "files were given back"
