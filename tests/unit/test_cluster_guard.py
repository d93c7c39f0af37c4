"""What the guard finds out about processes; its work as a process is tested in tests/acceptance."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nbparallel.cluster import guard


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended with exit status 0"),
        (3, "ended with exit status 3"),
        (-9, "was killed by signal 9 (out of memory?)"),
        (-15, "was killed by signal 15"),
    ],
)
def test_describe(code: int, text: str) -> None:
    """A process's end is told with its exit status or signal, and the likely cause of a SIGKILL."""
    assert guard.describe(code) == text


def test_descendants_of_all_generations() -> None:
    """A grandchild in a session of its own is found, with a name that looks like the end of the name field."""
    script = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c",
    "import sys; open('/proc/self/comm', 'w').write(') R 1 1'); print('up', flush=True); sys.stdin.read()"],
    start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        grandchild = int(parent.stdout.readline())

        assert {parent.pid, grandchild} <= guard.descendants(os.getpid())
        assert guard.descendants(parent.pid) == {grandchild}
        parent.communicate()

    assert not {parent.pid, grandchild} & guard.descendants(os.getpid())


def test_no_process_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, no descendants are found, and no error is raised."""
    monkeypatch.setattr(os.path, "isdir", lambda path: False)

    assert guard.descendants(os.getpid()) == set()


def test_standard_library_only() -> None:
    """The guard runs without site-packages, and without anything else of this package."""
    command = [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({guard.__file__!r})"]

    assert subprocess.run(command, capture_output=True, check=True).stderr == b""
