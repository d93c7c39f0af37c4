"""Receives commands from the embedded cluster through a pipe, runs them as its children, and ends all when one ends.

    client ──stdin: one line of JSON; later a byte, or EOF──► guard ──fork, exec──► server, worker ──► their children
    client ◄──stdout: why it ended, when nobody asked for it──┘

It runs as a program of its own (``python -I -S guard.py CLIENT_PID DIRECTORY LOCK_FD``) in a session of its own,
so it outlives the client however that ends, and imports only the standard library. It ends, taking every descendant
and the private directory along, when the client is gone, when it is told to, or when one of its children ends.
If the guard itself is killed, the kernel kills its children (Linux), and the next cluster sweeps the directory.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Guard", "descendants", "describe", "main"]

#: Seconds between SIGTERM to the workers and SIGKILL to everything.
GRACE_SECONDS = 0.15
#: Seconds after which processes that not even SIGKILL ends (stuck in the kernel, another user's) are given up.
KILL_SECONDS = 5.0
#: Seconds between looks at the logs' sizes.
TICK_SECONDS = 10.0
#: Seconds between looks at the parent's id where the client cannot be watched by a pidfd (macOS, old kernels).
PARENT_SECONDS = 0.25
#: A log above this size, in bytes, is emptied.
LOG_BYTES = 4 << 20
#: Bytes from the end of a log that are shown when its writer ended.
TAIL_BYTES = 4000

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Guard:
    """The children of one cluster, and the watch over them. Not thread-safe: a guard process has one thread."""

    def __init__(self, client: int, directory: str, wake: int, prctl: Callable[[int, int], object]) -> None:
        self.client = client
        self.directory = directory
        self.wake = wake
        self.prctl = prctl
        self.names: dict[int, str] = {}  # children alive, by process id
        self.logs: list[int] = []
        self.ended = ""  # the first child that ended, and how

    def run(self) -> str:
        """Spawn what arrives on stdin and watch; return why everything must end, or "" when that was asked for."""
        watched = select.poll()
        watched.register(0, select.POLLIN)
        watched.register(self.wake, select.POLLIN)
        interval = PARENT_SECONDS
        # A forked child of the client keeps the pipe open, so its end alone would not tell that the client died.
        with suppress(AttributeError, OSError):
            watched.register(os.pidfd_open(self.client), select.POLLIN)
            interval = TICK_SECONDS
        received = b""
        while not self.ended:
            ready = {descriptor for descriptor, _ in watched.poll(interval * 1000)}
            if os.getppid() != self.client:
                return ""
            if self.wake in ready and signal.SIGTERM in os.read(self.wake, 4096):
                return ""
            if 0 in ready:
                data = os.read(0, 1 << 20)
                if not data or self.names:
                    return ""
                received += data
                if received.endswith(b"\n\n"):  # the client stopped before we had even started
                    return ""
                if data.endswith(b"\n"):
                    for command in json.loads(received):
                        self.spawn(**command)
                    os.chdir("/")  # not to keep the client's file system from being unmounted
            self.reap()
            for log in self.logs:
                if os.fstat(log).st_size > LOG_BYTES:
                    os.ftruncate(log, 0)
        return self.ended

    def spawn(self, name: str, argv: list[str], stdin: str) -> None:
        """Run a program in its own session, with ``stdin`` to read and its output in a log."""
        log = os.open(self.log_path(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # A file, since filling a pipe would block the guard until the program reads it.
        feed_path = os.path.join(self.directory, f"{name}.in")
        with open(feed_path, "x+", encoding="utf-8", errors="surrogateescape") as feed:
            os.unlink(feed_path)
            feed.write(stdin)
            feed.flush()
            os.lseek(feed.fileno(), 0, os.SEEK_SET)
            guard = os.getpid()
            pid = os.fork()
            if pid == 0:
                self.become(guard, argv, feed.fileno(), log)
        self.names[pid] = name
        self.logs.append(log)

    def become(self, guard: int, argv: list[str], feed: int, log: int) -> None:
        """In the forked child: turn into the program, or leave the reason in the log."""
        try:
            for source, target in ((feed, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            os.setsid()
            self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == guard:  # else it died before the line above
                signal.set_wakeup_fd(-1)
                for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                    with suppress(OSError):  # the C library keeps some for itself
                        signal.signal(number, signal.SIG_DFL)
                os.execvp(argv[0], argv)
        except BaseException as error:  # nothing may return from here: there would be two guards
            os.write(2, f"cannot run {argv[0]}: {error}\n".encode(errors="replace"))
        finally:
            os._exit(127)

    def reap(self) -> bool:
        """Collect what ended, orphans too; say whether any process is left."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                name = self.names.pop(pid, "")
                if name and not self.ended:
                    how = describe(os.waitstatus_to_exitcode(status))
                    self.ended = f"the embedded cluster's {name} {how}{self.tail(name)}"
        return False

    def end(self) -> None:
        """End every descendant: workers get a moment to go by themselves, then all are killed."""
        workers = [pid for pid, name in self.names.items() if name != "server"]  # which stays up for them meanwhile
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.reap() and self.names.keys() & workers and time.monotonic() < deadline:
            self.wait_signal(deadline - time.monotonic())
        deadline = time.monotonic() + KILL_SECONDS
        # Again and again, for a process may fork while it is being looked for.
        while self.reap() and time.monotonic() < deadline:
            for pid in self.names:
                with suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
            for pid in descendants(os.getpid()):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.wait_signal(0.01)

    def wait_signal(self, seconds: float) -> None:
        """Sleep until a signal (of a child's end, say) arrives, at most so long."""
        if select.select([self.wake], [], [], max(0.0, seconds))[0]:
            os.read(self.wake, 4096)

    def log_path(self, name: str) -> str:
        """Where a child's output goes."""
        return os.path.join(self.directory, f"{name}.log")

    def tail(self, name: str) -> str:
        """The end of a child's log, introduced; empty when it wrote nothing."""
        with suppress(OSError), open(self.log_path(name), "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
            text = log.read().decode(errors="replace").strip()
            return f". The end of its log:\n{text}" if text else ""
        return ""


def describe(code: int) -> str:
    """How a process ended, from its exit code; below 0 for a signal, as in ``subprocess``."""
    if code >= 0:
        return f"ended with exit status {code}"
    likely = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by signal {-code}{likely}"


def descendants(root: int) -> set[int]:
    """Process ids of everything below ``root``; empty where there is no ``/proc``."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with suppress(OSError, ValueError, IndexError):  # not a process, or just gone
            with open(f"/proc/{int(entry)}/stat", "rb") as stat:
                parent = stat.read().rpartition(b")")[2].split()[1]  # the name before it may hold anything
            children.setdefault(int(parent), []).append(int(entry))
    found: set[int] = set()
    layer = [root]
    while layer:
        layer = [pid for parent in layer for pid in children.get(parent, ())]
        found.update(layer)
    return found


def main(client: int, directory: str, lock: int) -> None:
    """Run one guard to its end."""
    os.set_inheritable(lock, False)  # the lock is to end with the guard
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the client's thread may have blocked some
    wake, awake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(awake, False)
    signal.set_wakeup_fd(awake, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    prctl = _find_prctl()
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans become ours, so none escapes
    guard = Guard(client, directory, wake, prctl)
    try:
        reason = guard.run()
        with suppress(OSError):
            os.write(1, reason.encode(errors="replace"))
    finally:
        guard.end()
        import shutil  # here, since it would slow the start down

        depot = os.path.join(directory, "depot")
        if os.path.islink(depot):  # it lies in shared memory
            shutil.rmtree(os.readlink(depot), ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)


def _find_prctl() -> Callable[[int, int], object]:
    if sys.platform == "linux":
        with suppress(ImportError, OSError, AttributeError):  # a Python without ctypes
            import ctypes

            function = ctypes.CDLL(None).prctl
            return lambda option, value: function(option, ctypes.c_ulong(value), 0, 0, 0)
    return lambda option, value: None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
