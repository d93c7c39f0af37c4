"""Private directories: where they go, and which are swept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nbparallel.errors import StartupFailed
from nbparallel.store import directory
from nbparallel.store.directory import make_directory, sweep

STALE = "nbparallel-12-abcdefgh"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path short enough for sockets, which those of pytest may not be."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        yield Path(name)


def test_runtime_directory_is_preferred(short: Path) -> None:
    """The directory is made in XDG_RUNTIME_DIR, for this user alone, with its lock held."""
    path, lock = make_directory({"XDG_RUNTIME_DIR": str(short)})
    sweep(short)

    assert path.parent == short
    assert path.stat().st_mode & 0o777 == 0o700
    assert lock > 2
    os.close(lock)
    sweep(short)
    assert not path.exists()


@pytest.mark.parametrize("runtime", ["", "relative", "/no/such/directory"])
def test_temporary_directory_is_next(short: Path, monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    """Without a usable XDG_RUNTIME_DIR the directory is made where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(short))

    path, lock = make_directory({"XDG_RUNTIME_DIR": runtime})

    os.close(lock)
    assert path.parent == short


def test_long_path_falls_back(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place whose path is too long for a socket is passed over for the next one."""
    long = short / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(short))

    path, lock = make_directory({"XDG_RUNTIME_DIR": str(long)})

    os.close(lock)
    assert path.parent == short


def test_no_place_is_short_enough(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When every path is too long, the error names the path, the limit and the cure."""
    monkeypatch.setattr(directory, "_places", lambda environ: [str(short / ("x" * 90))])

    with pytest.raises(StartupFailed, match=rf"{short}/x+/.*limit of {directory.SOCKET_PATH_LIMIT} bytes.*TMPDIR"):
        make_directory({})


def test_limit_is_the_systems(short: Path) -> None:
    """A socket path as long as the limit says can be bound, a longer one cannot."""
    import socket

    longest = short / ("x" * (directory.SOCKET_PATH_LIMIT - len(os.fsencode(short)) - 1))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(longest))
    with socket.socket(socket.AF_UNIX) as server, pytest.raises(OSError, match="too long"):
        server.bind(f"{longest}x")


def test_unusable_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that cannot be written to is named with the system's reason."""
    monkeypatch.setattr(directory, "_places", lambda environ: ["/proc/self"])

    with pytest.raises(StartupFailed, match="/proc/self cannot be used: "):
        make_directory({})


def test_nowhere_is_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    """When Python finds no temporary directory, /tmp is still tried."""

    def fail() -> str:
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", fail)

    assert list(directory._places({})) == ["/tmp"]


def test_stale_directory_is_swept(short: Path) -> None:
    """Making a directory removes those whose guard is gone, with what is in them."""
    (short / STALE).mkdir(mode=0o700)
    (short / STALE / "server.log").touch()

    path, lock = make_directory({"XDG_RUNTIME_DIR": str(short)})

    os.close(lock)
    assert list(short.iterdir()) == [path]


def test_what_is_not_ours_is_left_alone(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other names, files, links and other users' directories are not swept."""
    (short / "nbparallel-results").mkdir()
    (short / "target").mkdir()
    (short / STALE).symlink_to(short / "target")
    (short / STALE.replace("12", "13")).touch()
    (short / STALE.replace("12", "14")).mkdir()
    before = set(short.iterdir())
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    sweep(short)

    assert set(short.iterdir()) == before
    monkeypatch.undo()
    sweep(short)
    assert set(short.iterdir()) == before - {short / STALE.replace("12", "14")}


def test_directory_swept_before_it_was_locked(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another client sweeps a directory in the instant before it is locked, a new one is made."""
    made = []
    real = tempfile.mkdtemp

    def make(prefix: str, dir: str) -> str:
        made.append(real(prefix=prefix, dir=dir))
        return made[-1]

    def swept_once(descriptor: int, operation: int) -> None:
        with suppress(OSError):
            if len(made) == 1:
                os.rmdir(made[0])

    monkeypatch.setattr(tempfile, "mkdtemp", make)
    monkeypatch.setattr("fcntl.flock", swept_once)

    path, lock = make_directory({"XDG_RUNTIME_DIR": str(short)})

    os.close(lock)
    assert made[1:] == [str(path)]
    assert path.is_dir()
