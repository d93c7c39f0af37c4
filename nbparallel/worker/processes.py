"""What the supervisor needs from the operating system: deaths of children, and the programs that they started."""

from __future__ import annotations

import contextlib
import os
import signal

__all__ = ["exit_status", "family", "kill_family", "kill_group", "memory", "watch"]


def watch(pid: int) -> int:
    """A file descriptor that becomes readable when the process dies.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return os.pidfd_open(pid)


def exit_status(pid: int) -> str:
    """How a dead child ended, in words; the child stays to be waited for by billiard, which owns it."""
    try:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return "exit status unknown"
    if info is None:
        return "exit status unknown"
    if info.si_code == os.CLD_EXITED:
        return f"exit code {info.si_status}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(info.si_status).name
        cause = {
            "SIGKILL": "; killed from outside, perhaps because memory ran out",
            "SIGSEGV": "; a crash in compiled code",
            "SIGABRT": "; compiled code gave up",
            "SIGBUS": "; memory that could not be had",
        }.get(name, "")
        return f"signal {name}{cause}"
    return f"signal {info.si_status}"


def memory(pid: int) -> int:
    """Bytes of memory that a process uses; 0 when that cannot be known."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):  # it just died, or there is no /proc
        return 0


def family(pid: int) -> list[int]:
    """The programs that a process started and those started by them, found by parent and by process group."""
    parents: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
                parents[int(name)] = int(fields[1]), int(fields[2])
    found = {other for other, (_, group) in parents.items() if group == pid and other != pid}
    grown = True
    while grown:
        more = {other for other, (parent, _) in parents.items() if parent in found or parent == pid} - found - {pid}
        grown = bool(more)
        found |= more
    return sorted(found)


def kill_family(pid: int) -> None:
    """Kill the programs that a process started, not the process itself."""
    for other in family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(other, signal.SIGKILL)


def kill_group(pid: int) -> None:
    """Kill what is left of the process group that a process led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
