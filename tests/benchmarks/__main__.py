"""``python -m tests.benchmarks``: see the package's docstring."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from nbparallel import simulation

from . import __doc__ as description
from . import environment, memory
from .driven import Driven
from .measuring import Measuring, import_times, say
from .peers import OURS, PEERS, SERIAL
from .report import render
from .results import Run
from .workloads import WORKLOADS, Workload, loops_per_second

#: The part of the workloads that ``--quick`` measures.
QUICK = ("100,000 additions", "items of 1 ms", "200 lognormal items, shuffled", "64 arrays of 8 MB in and out")
#: Cases of ``memory.py`` that the report has, and their numbers.
MEMORY = {"jobs": 10_000, "generator": 1_000_000, "slow_reader": 1_000_000, "slow_reader_sized": 1_000_000}
#: What the parts of a run are called on the command line.
PARTS = ("start", "workloads", "captured", "response", "growth", "memory", "simulation")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(name for name in PEERS if name not in (OURS, SERIAL))
    parser.add_argument("--peers", default="multiprocessing.Pool", help=f'"all", or names separated by ";": {names}')
    parser.add_argument("--workloads", default="", help='names separated by ";"; default all: ' + ", ".join(WORKLOADS))
    parser.add_argument("--parts", default="", help='separated by ","; default all: ' + ", ".join(PARTS))
    parser.add_argument("--env", type=Path, help="environment with the peers, made there if it is missing")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies all limits, for a busy machine")
    parser.add_argument("--quick", action="store_true", help="one round of a few workloads, for a first look")
    parser.add_argument("--report", action="store_true", help="write report-<date>.md beside this file")
    parser.add_argument("--figures", type=Path, help="write all figures there, as JSON")
    parser.add_argument("--again", type=Path, help="measure nothing: make the report of such figures")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> Run:
    """All that was asked for."""
    python = environment.make(options.env) if options.env else sys.executable
    wanted = list(PEERS) if options.peers == "all" else [SERIAL, OURS, *options.peers.split(";")]
    rounds = 1 if options.quick else options.rounds
    run = Run(
        date=str(datetime.date.today()),
        machine=environment.machine(),
        workers=options.workers,
        rounds=rounds,
        versions=environment.versions(python),
        best={name: PEERS[name].best for name in wanted},
    )
    speed = loops_per_second()
    drivers = [Driven(name, options.workers, python, speed, options.patience) for name in wanted]
    end = threading.Event()
    watcher = threading.Thread(target=_watch_load, args=(run, end))
    watcher.start()
    started = time.monotonic()
    try:
        _measure(run, Measuring(run, drivers), options, python)
    finally:
        end.set()
        watcher.join()
        for driver in drivers:
            driver.stop()
        run.minutes = (time.monotonic() - started) / 60
    return run


def _measure(run: Run, measuring: Measuring, options: argparse.Namespace, python: str) -> None:
    quick: bool = options.quick
    names = options.workloads.split(";") if options.workloads else QUICK if quick else WORKLOADS
    chosen: list[Workload] = [WORKLOADS[name] for name in names]

    def workloads() -> None:
        for workload in chosen:
            measuring.workload(workload, run.rounds)

    def memories() -> None:
        for name, count in MEMORY.items():
            run.memory[f"{name}, {count:,}"] = figures = memory.measured(name, count, python=python)
            say(f"memory: {name} {figures}")

    def starts() -> None:
        libraries = [PEERS[name].library for name in run.best if name != SERIAL]
        run.imports.update(import_times(python, libraries, 2 * run.rounds - 1))
        measuring.cold_starts(run.rounds, python)

    parts: dict[str, Callable[[], None]] = {
        "start": starts,
        "workloads": workloads,
        "captured": lambda: measuring.captured(run.rounds),
        "response": lambda: measuring.responses(1 if quick else 2, 50 if quick else 300),
        "growth": lambda: run.growth.update(_growth(python, quick)),
        "memory": memories,
        "simulation": lambda: setattr(run, "simulation", _simulation()),
    }
    asked = (
        options.parts.split(",")
        if options.parts
        else [p for p in PARTS if not (quick and p in ("growth", "memory", "simulation"))]
    )
    measuring.starts(run.rounds if "start" in asked else 1)
    for name, part in parts.items():
        if name in asked:
            if name in ("growth", "memory"):
                measuring.rest()  # what follows is of nbparallel alone
            begun = time.monotonic()
            part()
            say(f"== {name}: {time.monotonic() - begun:.0f} s")
            if options.figures:
                run.save(options.figures)  # so that what was measured outlives what fails


def _growth(python: str, quick: bool) -> dict[str, object]:
    command = [python, "-m", "tests.benchmarks.growth", *(["quick"] if quick else [])]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=environment.environ(), cwd=environment.ROOT
    )
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def _simulation() -> str:
    with redirect_stdout(StringIO()) as text:
        simulation.main()
    return text.getvalue()


def _watch_load(run: Run, end: threading.Event) -> None:
    run.loads.append(os.getloadavg()[0])
    while not end.wait(15.0):
        run.loads.append(os.getloadavg()[0])


def main() -> None:
    """Parse, measure, print or write."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without ending the peers
    run = Run.load(options.again) if options.again else measure(options)
    if options.figures:
        run.save(options.figures)
    text = render(run)
    if options.report:
        place = Path(__file__).with_name(f"report-{run.date}.md")
        place.write_text(text, encoding="utf-8")
        say(f"wrote {place}")
    else:
        print(text)


if __name__ == "__main__":
    main()
