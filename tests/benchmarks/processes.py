"""What the system says of processes: memory, CPU time, threads, files. Linux only (/proc)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MARK", "Process", "cpu_seconds", "end_all", "marked", "peaks", "reset_peaks", "tree"]

#: Every process that a driver starts inherits this variable, so that it is found even after setsid and a new parent.
MARK = "BENCHMARK_DRIVER"

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    """A process; figures are read when they are asked for, and are 0 when it has ended."""

    pid: int

    def _read(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.pid}/{name}").read_text(errors="replace")
        except OSError:  # it ended, or is not ours
            return ""

    @property
    def command(self) -> str:
        """Its command line, or what it calls itself."""
        return self._read("cmdline").replace("\0", " ").strip()

    @property
    def parent(self) -> int:
        """Pid of its parent."""
        return int((self._read("stat").rpartition(")")[2].split() or ["", "0"])[1])

    @property
    def cpu(self) -> float:
        """Seconds of CPU time so far, of all its threads, ended ones too."""
        fields = self._read("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0

    @property
    def resident(self) -> int:
        """Bytes in memory, shared ones included."""
        return int((self._read("statm").split() or ["", "0"])[1]) * _PAGE

    @property
    def proportional(self) -> int:
        """Bytes in memory, each shared page divided by those that share it."""
        return self._kilobytes("smaps_rollup", "Pss:")

    @property
    def peak(self) -> int:
        """Most bytes in memory since ``reset_peak``."""
        return self._kilobytes("status", "VmHWM:")

    def _kilobytes(self, file: str, name: str) -> int:
        for line in self._read(file).splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        return 0

    def reset_peak(self) -> None:
        """Let ``peak`` start from what is in memory now."""
        with suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def tree(root: int) -> list[Process]:
    """A process and all that descend from it, itself first."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        children.setdefault(Process(pid).parent, []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return [Process(pid) for pid in found]


def marked(mark: str) -> list[Process]:
    """Processes that inherited the mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for pid in _pids():
        with suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(Process(pid))
    return found


def end_all(mark: str, within: float = 10.0) -> None:
    """Kill all processes with the mark, and those that they start meanwhile; returns when they are gone."""
    deadline = time.monotonic() + within
    while (left := [process for process in marked(mark) if process.pid != os.getpid()]) and time.monotonic() < deadline:
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.02)


def reset_peaks(processes: Iterable[Process]) -> None:
    """Let the peaks start from what is in memory now."""
    for process in processes:
        process.reset_peak()


def peaks(processes: Iterable[Process]) -> int:
    """Sum of the peaks, in bytes; pages that processes share count in each."""
    return sum(process.peak for process in processes)


def cpu_seconds(processes: Iterable[Process]) -> float:
    """CPU time of all of them so far."""
    return sum(process.cpu for process in processes)
