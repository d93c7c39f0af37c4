"""The coordinator's side of a driver: asks with a time limit, and ends everything that does not answer in time."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import IO, Any

from .environment import ROOT, environ
from .processes import MARK, Process, end_all, marked, peaks, reset_peaks

__all__ = ["Driven", "NoEnd", "PeerFailed"]

#: Seconds in which a peer must start.
START_LIMIT = 90.0
#: A peer that needs more than this share of the machine's memory is ended.
MOST_MEMORY = 0.5

_MACHINE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class PeerFailed(Exception):
    """A peer raised an error, gave wrong results, or died."""


class NoEnd(PeerFailed):
    """It did not end within its limit, or took too much memory."""


class Driven:
    """A peer in a process of its own.

    Args:
        name: of the peer.
        workers: processes that it gets.
        python: the interpreter that has the peer.
        speed: of ``spin`` in loops per second, so that all peers get the same work.
        patience: multiplies all limits.
    """

    def __init__(self, name: str, workers: int, python: str, speed: float, patience: float = 1.0) -> None:
        self.name = name
        self.captures_best = False
        self._command = [python, "-m", "tests.benchmarks.driver", name, str(workers)]
        self._speed, self._patience = speed, patience
        self._process: subprocess.Popen[str] | None = None
        self._mark = ""
        self._log: IO[str] | None = None
        self._files: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> float:
        """Start process and peer, if it does not run; seconds until the first result, the library's import included.

        Raises:
            PeerFailed: it cannot be imported, or does not start.
        """
        if self._process is not None:
            return 0.0
        self._mark = secrets.token_hex(8)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (kill closes it)
        # Whoever is killed leaves what he has there.
        self._files = tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True)
        files = self._files.name
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=environ(**{MARK: self._mark, "JOBLIB_TEMP_FOLDER": files, "BENCHMARK_FILES": files}),
            start_new_session=True,
        )
        try:
            answer = self._exchange({"do": "start", "speed": self._speed}, START_LIMIT)
        except PeerFailed:
            self.kill()
            raise
        self.captures_best = answer["captures_best"]
        return float(answer["seconds"])

    def ask(self, request: dict[str, Any], limit: float, *, memory: bool = False) -> dict[str, Any]:
        """The driver's answer, starting it when it does not run; ``memory``: also the growth of its peaks, in bytes.

        Raises:
            NoEnd: nothing within ``limit`` seconds; all its processes were ended.
            PeerFailed: it answered with an error, or died.
        """
        self.start()
        assert self._process is not None
        client, before = Process(self._process.pid), (0, 0)
        if memory:
            others = self._others()
            reset_peaks([client, *others])
            before = (client.resident, sum(process.resident for process in others))
        answer = self._exchange(request, limit)
        if memory:
            answer["client"] = client.peak - before[0]
            answer["others"] = peaks(self._others()) - before[1]
        return answer

    def _others(self) -> list[Process]:
        assert self._process is not None
        return [process for process in marked(self._mark) if process.pid != self._process.pid]

    def _exchange(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead, and reading will tell
        self._wait(limit * self._patience)
        line = self._process.stdout.readline()
        if not line:
            words = self._last_words()
            self.kill()
            raise PeerFailed(f"its process ended: {words}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(answer["error"])
        return answer

    def _wait(self, limit: float) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not selector.select(1.0):
                if time.monotonic() > deadline:
                    self.kill()
                    raise NoEnd(f"no end in {limit:g} s")
                taken = sum(process.proportional for process in marked(self._mark))
                if taken > MOST_MEMORY * _MACHINE_BYTES:
                    self.kill()
                    raise NoEnd(f"ended at {taken / 1e9:.0f} GB of memory")

    def _last_words(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        return self._log.read()[-300:].strip()

    def stop(self) -> None:
        """Have the peer stop by itself, and end what is left."""
        if self._process is not None:
            with suppress(PeerFailed):  # it is ended anyway
                self._exchange({"do": "stop"}, 30.0)
            self.kill()

    def kill(self) -> None:
        """End all processes of this peer."""
        if self._process is not None:
            process, self._process = self._process, None
            end_all(self._mark)
            process.kill()
            process.wait()
            if self._files is not None:
                self._files.cleanup()
            for pipe in (process.stdin, process.stdout, self._log):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
