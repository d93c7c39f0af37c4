"""Deaths of children in words, and the programs that they started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import eventually

from nbparallel.worker.processes import exit_status, family, kill_family, kill_group, watch

#: A process with a child, that one's child, and a child in a session of its own.
TREE = """
import subprocess, sys
inner = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
middle = subprocess.Popen([sys.executable, "-I", "-S", "-c", inner], stdout=subprocess.PIPE, text=True)
grandchild = middle.stdout.readline().strip()
other = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(middle.pid, grandchild, other.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tree() -> Iterator[tuple[int, list[int]]]:
    """Pids: of a process that leads a group of its own, and of its child, grandchild and child in another session."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", TREE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as leader:
        assert leader.stdout is not None
        others = [int(pid) for pid in leader.stdout.readline().split()]
        yield leader.pid, others
        leader.kill()
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    """Whether a process is dead, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("pass", "exit code 0"),
        ("import os; os._exit(5)", "exit code 5"),
        ("import os; os.kill(os.getpid(), 9)", "signal SIGKILL; killed from outside, perhaps because memory ran out"),
        ("import os; os.kill(os.getpid(), 11)", "signal SIGSEGV; a crash in compiled code"),
        ("import os; os.kill(os.getpid(), 6)", "signal SIGABRT; compiled code gave up"),
        ("import os; os.kill(os.getpid(), 7)", "signal SIGBUS; memory that could not be had"),
        ("import os; os.kill(os.getpid(), 15)", "signal SIGTERM"),
        ("import os; os.kill(os.getpid(), 36)", "signal 36"),
    ],
)
def test_how_a_child_ended(code: str, words: str) -> None:
    """The words say what happened and what may have caused it; the child is left for its owner to wait for."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"import resource; resource.setrlimit(4, (0, 0)); {code}"]
    )
    fd = watch(child.pid)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(10_000), "the descriptor tells the death"
    os.close(fd)
    assert exit_status(child.pid) == words
    assert exit_status(child.pid) == words
    child.wait()
    assert exit_status(child.pid) == "exit status unknown", "somebody else waited for it"


def test_a_child_that_lives_has_no_exit_status() -> None:
    """Asking too early does not wait."""
    with subprocess.Popen(["sleep", "60"]) as child:
        assert exit_status(child.pid) == "exit status unknown"
        child.kill()


def test_a_process_that_is_gone_cannot_be_watched() -> None:
    """There is nothing to wait for."""
    with subprocess.Popen(["true"]) as child:
        pass
    with pytest.raises(ProcessLookupError):
        watch(child.pid)


def test_a_family_is_all_that_a_process_started(tree: tuple[int, list[int]]) -> None:
    """Children, their children, and those in other sessions; not the process itself, nor its parent or siblings."""
    leader, others = tree
    assert family(leader) == sorted(others)
    assert leader in family(os.getpid())
    assert os.getpid() not in family(os.getpid())


def test_a_family_is_found_without_its_leader(tree: tuple[int, list[int]]) -> None:
    """What is in the group of a dead process is still its family."""
    leader, others = tree
    os.kill(leader, signal.SIGKILL)
    eventually(lambda: gone(leader))
    assert family(leader) == sorted(others[:2])


def test_a_family_is_killed_without_its_head(tree: tuple[int, list[int]]) -> None:
    """The programs that a function waits for die; the process that waits does not."""
    leader, others = tree
    kill_family(leader)
    for pid in others:
        eventually(lambda pid=pid: gone(pid), what=f"{pid} is dead")  # type: ignore[misc]
    assert not gone(leader)
    kill_family(leader)


def test_a_group_is_killed(tree: tuple[int, list[int]]) -> None:
    """What is left of a dead child's group goes; a group that is no more is no error."""
    leader, others = tree
    os.kill(leader, signal.SIGKILL)
    kill_group(leader)
    eventually(lambda: all(gone(pid) for pid in others[:2]), what="the group is dead")
    assert not gone(others[2])
    with subprocess.Popen(["true"]) as child:
        pass
    kill_group(child.pid)
