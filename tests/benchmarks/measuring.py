"""Takes the figures of a run: every peer in turn, round by round, so that drift of the machine hits all alike."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from nbparallel.simulation import greedy

from .driven import Driven, PeerFailed
from .environment import environ, forget_files
from .peers import OURS, PEERS, SERIAL
from .results import BEST, Cell, Run
from .workloads import CAPTURED_ITEMS, CAPTURED_MEGABYTES, Workload, durations

__all__ = ["CAPTURED", "Measuring", "import_times"]

CAPTURED = f"{CAPTURED_MEGABYTES} MB captured array, {CAPTURED_ITEMS} items"
#: In one round a peer goes on for this many seconds, or this many times: short times vary most.
SHORT, MOST_AGAIN = 0.3, 5
#: Limit of the captured array, in seconds.
CAPTURED_LIMIT = 30.0
#: Seconds in which responses must be measured, of one peer in one round.
RESPONSE_LIMIT = 40.0

#: A peer that sends a message for each tiny item is first given so many; when all would take longer than
#: ``FULL`` seconds it is given what takes about ``SCALED`` seconds.
PROBE, FULL, SCALED = 500, 6.0, 2.5


class Measuring:
    """A run under way.

    Args:
        run: receives the figures.
        drivers: the peers, in the order of the report.
    """

    def __init__(self, run: Run, drivers: Sequence[Driven]) -> None:
        self._run = run
        self._drivers = list(drivers)

    def _in_turn(self, number: int) -> list[Driven]:
        return self._drivers if number % 2 == 0 else self._drivers[::-1]

    def starts(self, rounds: int) -> None:
        """Start each peer in fresh processes; the last ones stay. Those that cannot start are left out."""
        for number in range(rounds):
            for driver in self._in_turn(number):
                driver.stop()
                try:
                    seconds = driver.start()
                except PeerFailed as error:
                    self._run.left_out[driver.name] = str(error)
                    say(f"left out {driver.name}: {error}")
                    continue
                self._run.starts.setdefault(driver.name, []).append(seconds)
                say(f"start: {driver.name} {seconds:.3f} s")
            self._drivers = [driver for driver in self._drivers if driver.name not in self._run.left_out]

    def cold_starts(self, rounds: int, python: str) -> None:
        """Start nbparallel when its files are not in the page cache."""
        for driver in self._drivers:
            if driver.name == OURS:
                for _ in range(rounds):
                    driver.stop()
                    forget_files(python)
                    self._run.cold.append(driver.start())
                    say(f"cold start: {self._run.cold[-1]:.3f} s")

    def rest(self) -> None:
        """Stop all peers; they start again when they are asked something."""
        for driver in self._drivers:
            driver.stop()

    def workload(self, workload: Workload, rounds: int) -> None:
        """Time all peers at one workload, with their defaults and at their best."""
        if workload.name.startswith("200 lognormal"):
            self._run.lower[workload.name] = greedy(durations(workload.name.rpartition(" ")[2]), self._run.workers)
        chunks: dict[str, int] = {}
        for number in range(rounds):
            if workload.fresh:
                self.rest()
            for driver in self._in_turn(number):
                for best in (False, True) if number % 2 == 0 else (True, False):
                    if not self._wanted(driver, workload, best, number):
                        continue
                    cell = self._run.cell(workload.name, driver.name + BEST * best)
                    if cell.failure:
                        continue
                    try:
                        if best and driver.name not in chunks:
                            chunks[driver.name] = cell.chunk = self._best_chunk(driver, workload)
                        if number == 0 and workload.tiny and PEERS[driver.name].per_item and not best:
                            cell.share = self._share(driver, workload)
                        self._sample(driver, workload, cell, chunks.get(driver.name, 0) if best else 0)
                    except PeerFailed as error:
                        cell.failure = str(error)
                    say(f"{workload.name}: {driver.name}{BEST * best} {cell.failure or cell.samples[-1]}")

    @staticmethod
    def _wanted(driver: Driven, workload: Workload, best: bool, number: int) -> bool:
        if driver.name == SERIAL:
            return not best and workload.serial and number == 0  # it only says how much work there is
        peer = PEERS[driver.name]
        # One item at a time is what these do by default.
        return not best or (bool(peer.best) and not (peer.per_item and workload.chunks == (1,)))

    def _best_chunk(self, driver: Driven, workload: Workload) -> int:
        if len(workload.chunks) == 1:
            return workload.chunks[0]
        tried = {}
        for chunk in workload.chunks:
            answer = driver.ask(_map(workload, True, chunk), workload.limit)
            tried[chunk] = answer["seconds"]
        return min(tried, key=lambda chunk: tried[chunk])

    @staticmethod
    def _share(driver: Driven, workload: Workload) -> float:
        answer = driver.ask(_map(workload, False, 0, PROBE), workload.limit)
        seconds, share = answer["seconds"], answer["share"]
        return 1.0 if seconds / share < FULL else min(1.0, share * SCALED / seconds)

    @staticmethod
    def _sample(driver: Driven, workload: Workload, cell: Cell, chunk: int) -> None:
        size = len(workload.make(1.0)) if cell.share < 1 else 0
        spent = 0.0
        for _ in range(MOST_AGAIN):
            answer = driver.ask(
                _map(workload, bool(chunk), chunk, int(size * cell.share)), workload.limit, memory=workload.memory
            )
            cell.samples.append(answer["seconds"] / answer["share"])
            if workload.memory:
                cell.client.append(answer["client"])
                cell.others.append(answer["others"])
            spent += answer["seconds"]
            if spent > SHORT:
                break

    def captured(self, rounds: int) -> None:
        """Time all peers with a large array that the function carries along, and as their documentation advises."""
        for number in range(rounds):
            for driver in self._in_turn(number):
                for best in (False, True):
                    if driver.name == SERIAL or (best and not driver.captures_best):
                        continue
                    cell = self._run.cell(CAPTURED, driver.name + BEST * best)
                    if cell.failure:
                        continue
                    try:
                        answer = driver.ask({"do": "captured", "best": best}, CAPTURED_LIMIT, memory=True)
                        cell.samples.append(answer["seconds"])
                        cell.client.append(answer["client"])
                        cell.others.append(answer["others"])
                    except PeerFailed as error:
                        cell.failure = str(error)
                    say(f"{CAPTURED}: {driver.name}{BEST * best} {cell.failure or cell.samples[-1]}")

    def responses(self, rounds: int, count: int) -> None:
        """Round trips of one item, first results of 1,000, and how long a cancel takes."""
        run = self._run
        for what, pause, number in (("back to back", 0.0, count), ("0.1 s apart", 0.1, max(10, count // 10))):
            trips = run.trips.setdefault(what, {})
            for _ in range(rounds):
                for name, answer in self._each({"do": "trips", "count": number, "pause": pause}):
                    trips.setdefault(name, []).extend(answer.get("samples", []))
        for _ in range(rounds):
            for name, answer in self._each({"do": "first", "count": 1000}):
                if "seconds" in answer:
                    run.firsts.setdefault(name, []).append(answer["seconds"])
        for _ in range(rounds):
            for name, answer in self._each({"do": "cancel"}):
                if "idle" in answer:
                    run.cancels.setdefault(name, []).append([answer["idle"], answer["next"]])
                else:
                    run.left_out[f"cancel of {name}"] = answer["error"].removeprefix("NotImplementedError: ")

    def _each(self, request: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The answer of each peer, or what failed as ``error``."""
        for driver in self._drivers:
            if driver.name == SERIAL:
                continue
            try:
                answer = driver.ask(request, RESPONSE_LIMIT)
                samples = answer.get("samples")
                said = f"median {statistics.median(samples) * 1e3:.2f} ms" if samples else answer
            except PeerFailed as error:
                said = answer = {"error": str(error)}
            say(f"{request['do']}: {driver.name} {said}")
            yield driver.name, answer


def _map(workload: Workload, best: bool, chunk: int, count: int = 0) -> dict[str, Any]:
    return {"do": "map", "workload": workload.name, "best": best, "chunk": chunk, "count": count}


_IMPORT = """
import importlib, sys, time
started = time.perf_counter()
importlib.import_module(sys.argv[1])
print(time.perf_counter() - started)
"""


def import_times(python: str, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Module → seconds that its import takes in fresh interpreters, in turn."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in names:
            command = [python, "-c", _IMPORT, name]
            done = subprocess.run(command, capture_output=True, text=True, env=environ(), check=False)
            if done.returncode == 0:
                found.setdefault(name, []).append(float(done.stdout.splitlines()[-1]))
    return found


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)
