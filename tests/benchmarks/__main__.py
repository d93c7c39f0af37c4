"""``python -m tests.benchmarks --peers all --report``: all peers on the same workloads, interleaved, in one run."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .peers import PEERS, Peer, warm
from .workloads import WORKLOADS, Workload

#: Items that a peer which sends a message for each is given of a tiny workload; its time is scaled.
FEW = 2_000
PACKAGES = ("celery", "redis", "cloudpickle", "joblib", "mpire", "distributed", "ray", "ipyparallel", "numpy")

Times = dict[tuple[str, str], list[float]]


def measure(peers: list[Peer], workloads: Sequence[Workload], rounds: int) -> tuple[Times, dict[str, float]]:
    """Seconds by (workload, peer), and of the plain loop by workload."""
    times: Times = defaultdict(list)
    loops: dict[str, float] = {}
    for workload in workloads:
        items = workload.make()
        if workload.serial:
            started = time.perf_counter()
            for item in items:
                workload.function(item)
            loops[workload.name] = time.perf_counter() - started
        for number in range(rounds):
            for peer in peers if number % 2 == 0 else peers[::-1]:  # interleaved, so that drift hits all
                some = items[:FEW] if workload.tiny and peer.per_item else items
                started = time.perf_counter()
                try:
                    results = peer.map(workload.function, some)
                except Exception as error:
                    print(f"{peer.name} failed at {workload.name}: {error!r}", file=sys.stderr)
                    continue
                seconds = time.perf_counter() - started
                if len(some) == len(items) and not workload.check(items, results):
                    raise SystemExit(f"{peer.name} gave wrong results for {workload.name}")
                times[workload.name, peer.name].append(seconds * len(items) / len(some))
                print(f"{workload.name}: {peer.name} {seconds:.3f} s", file=sys.stderr)
                del results
    return times, loops


def round_trips(peers: list[Peer], count: int) -> dict[str, list[float]]:
    """Seconds of calls of one item, by peer."""
    from .workloads import add_one

    times: dict[str, list[float]] = {}
    for peer in peers:
        samples = []
        for _ in range(count):
            started = time.perf_counter()
            peer.map(add_one, [1])
            samples.append(time.perf_counter() - started)
        times[peer.name] = samples
    return times


def report(
    times: Times, loops: dict[str, float], starts: dict[str, float], trips: dict[str, list[float]], workers: int
) -> str:
    """The report in Markdown."""
    names = list(starts)
    lines = [
        f"# Benchmark of {datetime.date.today()}",
        "",
        f"{workers} worker processes on {os.cpu_count()} cores, Python {platform.python_version()}, "
        + ", ".join(f"{package} {_version(package)}" for package in PACKAGES if _version(package)),
        "",
        "Medians in seconds, (least–most); × is the ratio to `multiprocessing.Pool` in the same run. `~`: measured",
        f"with {FEW:,} items and scaled, since it sends a message for each. The machine was noisy: read ratios.",
        "",
        "| workload | plain loop | " + " | ".join(names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for workload in WORKLOADS.values():
        row = [_cell(times, workload, name) for name in names]
        if any(row):
            loop = loops.get(workload.name)
            lines.append(f"| {workload.name} | {f'{loop:.3f}' if loop else ''} | " + " | ".join(row) + " |")
    lines += ["", "| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines.append("| start to first result, s | " + " | ".join(f"{starts[name]:.2f}" for name in names) + " |")
    lines.append("| one item, warm, p50 / p99 ms | " + " | ".join(_trip(trips.get(name, [])) for name in names) + " |")
    return "\n".join(lines) + "\n"


def _cell(times: Times, workload: Workload, name: str) -> str:
    samples = times.get((workload.name, name))
    if not samples:
        return ""
    middle = statistics.median(samples)
    pool = times.get((workload.name, "multiprocessing.Pool"))
    ratio = f" ×{middle / statistics.median(pool):.2f}" if pool else ""
    scaled = "~" if workload.tiny and PEERS[name].per_item else ""
    return f"{scaled}{middle:.3f} ({min(samples):.3f}–{max(samples):.3f}){ratio}"


def _trip(samples: list[float]) -> str:
    if not samples:
        return ""
    ordered = sorted(samples)
    return f"{ordered[len(ordered) // 2] * 1000:.2f} / {ordered[int(len(ordered) * 0.99)] * 1000:.2f}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def main() -> None:
    """Parse, measure, print or write."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--peers", default="multiprocessing.Pool", help='"all", or names separated by ";"')
    parser.add_argument("--workloads", default="", help='names separated by ";"; default all')
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="write report-<date>.md beside this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    wanted = list(PEERS) if options.peers == "all" else ["nbparallel", *options.peers.split(";")]
    chosen = [WORKLOADS[name] for name in options.workloads.split(";")] if options.workloads else WORKLOADS.values()
    peers, starts = [], {}
    for name in wanted:
        peer = PEERS[name](options.workers)
        try:
            starts[name] = warm(peer)
            peers.append(peer)
        except ImportError as error:
            print(f"left out {name}: {error}", file=sys.stderr)
    try:
        trips: dict[str, Any] = round_trips(peers, 200)
        times, loops = measure(peers, list(chosen), options.rounds)
    finally:
        for peer in peers:
            peer.stop()
    text = report(times, loops, starts, trips, options.workers)
    print(text)
    if options.report:
        Path(__file__).with_name(f"report-{datetime.date.today()}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
