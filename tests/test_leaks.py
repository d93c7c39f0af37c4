"""The search for leaks must find what a test leaves behind, or its silence means nothing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from support import Watch, eventually

#: Starts a process of its own session, prints its pid and ends: what an orphan is.
ORPHAN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=0, start_new_session=True)
print(child.pid)
"""


def test_a_test_that_leaves_nothing_passes() -> None:
    """Nothing is reported when all that was started has ended."""
    watch = Watch.begin()
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert watch.leaks(within=0.5) == ""


def test_a_thread_of_ours_is_found_with_its_stack() -> None:
    """A daemon thread with our name is a leak, and the report shows where it is."""
    watch = Watch.begin()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="nbparallel-left", daemon=True)
    thread.start()
    found = watch.leaks(within=0)
    end.set()
    thread.join()
    assert "nbparallel-left" in found
    assert "wait" in found
    assert watch.leaks(within=0) == ""


def test_an_orphan_in_its_own_session_is_found() -> None:
    """A process that left our session, and whose parent is gone, is still recognised as ours."""
    watch = Watch.begin()
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        orphan = starter.stdout.readline().strip()
        starter.wait()
        found = watch.leaks(within=0)
    # Leaving the block closed the pipe, which ends the orphan.
    assert f"process {orphan} " in found
    eventually(lambda: watch.leaks(within=0) == "", what="the orphan ends")


def test_a_child_that_nobody_waited_for_is_found() -> None:
    """A zombie is a leak too."""
    watch = Watch.begin()
    child = subprocess.Popen([sys.executable, "-c", ""])
    eventually(lambda: "state Z" in watch.leaks(within=0), what="the child is a zombie")
    child.wait()
    assert watch.leaks(within=0) == ""


def test_a_temporary_file_is_found() -> None:
    """A directory left in the temporary directory is a leak."""
    watch = Watch.begin()
    directory = Path(tempfile.mkdtemp())
    assert str(directory) in watch.leaks(within=0)
    directory.rmdir()
    assert watch.leaks(within=0) == ""
