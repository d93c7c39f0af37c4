"""The benchmarks' report and their time limits; no peer is measured here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmarks.driven import Driven, NoEnd, PeerFailed
from benchmarks.growth_words import thousand_workers
from benchmarks.peers import OURS, PEERS, SERIAL
from benchmarks.report import render
from benchmarks.results import BEST, Cell, Run
from benchmarks.workloads import WORKLOADS

POOL = "multiprocessing.Pool"
GROWTH_ROW = {
    "workers": 64,
    "start": 1.0,
    "busy": 0.9,
    "rate": 1000.0,
    "calls": 1.5,
    "trips": 1.2,
    "connections": 130,
    "cpu client": 100e-6,
    "cpu server": 50e-6,
    "cpu parent": 20e-6,
    "cpu child": 200e-6,
    "memory client": 50e6,
    "memory server": 8e6,
    "memory parent": 40e6,
    "memory child": 640e6,
}


def run() -> Run:
    """A run with one of each kind of cell."""
    one = Run("2026-01-02", "a machine", 2, 3, {"Python": "3.11"}, {POOL: "chunksize"}, loads=[1.0, 2.5], minutes=3)
    row = {
        SERIAL: Cell([2.0]),
        OURS: Cell([1.1, 1.0, 1.2]),
        POOL: Cell([4.0]),
        POOL + BEST: Cell([1.0], chunk=50),
        "ray": Cell([30.0], share=0.02),
        "dask.distributed": Cell(failure="no end in 20 s"),
    }
    one.cells["items of 1 ms"] = row
    one.cells["200 lognormal items, up"] = {OURS: Cell([2.02], client=[3_000_000], others=[0])}
    one.lower["200 lognormal items, up"] = 2.0
    one.starts[OURS] = [0.3]
    one.cold = [0.7]
    one.cells["captured"] = {OURS + BEST: Cell([0.4, 0.01, 0.03, 0.02])}
    one.trips["back to back"] = {OURS: [0.001] * 99 + [0.005]}
    one.cancels[OURS] = [[0.02, 0.001]]
    one.imports["nbparallel"] = [0.04]
    one.growth = {
        "items": [{"items": 1000, "seconds": 0.01, "client": 0, "server": 0}],
        "workers": [{**GROWTH_ROW, "workers": 1, "connections": 4}, GROWTH_ROW],
    }
    one.memory["jobs, 10,000"] = {"client": 1.0, "server": 2.0, "workers": 3.0, "seconds": 4.0}
    one.simulation = "a table\n"
    return one


def test_the_report_has_medians_spread_and_ratios() -> None:
    """A row shows median, least and most, and the ratio to Pool's best; ours is marked, the fastest comes first."""
    text = render(run())
    assert f"| **{OURS}** | 1.100 (1.000–1.200) | 1.10 |" in text
    assert f"| {POOL}{BEST} | 1.000, chunk 50 | 1.00 |" in text
    assert text.index(f"| {POOL}{BEST} | 1.000") < text.index(f"| **{OURS}** | 1.100") < text.index("| ray |")


def test_the_report_says_what_was_scaled_and_what_had_no_end() -> None:
    """A scaled time is marked, and a peer that did not end is said to, instead of being left out."""
    text = render(run())
    assert "| ray | ~30.0 | 30.00 |" in text
    assert "| dask.distributed | no end in 20 s |  |" in text


def test_the_report_compares_ours_with_the_fastest_other() -> None:
    """The summary names the fastest peer, with any setting and with defaults, and how busy ours kept its workers."""
    assert f"| items of 1 ms | 1.100 | {POOL}{BEST} 1.000 | 1.10 | {POOL} 4.000 | 0.28 | 0.909 |" in render(run())


def test_the_report_has_every_part() -> None:
    """Skew, memory, responses, growth and the simulation's table are there when they were measured."""
    text = render(run())
    assert f"| 200 lognormal items, up | 2.000 | {OURS} 1.010 |" in text
    assert f"| 200 lognormal items, up | **{OURS}** | 3 | 0 |" in text
    assert f"| **{OURS}** | 0.30 | 1.00 / 1.00 / 1.00 |  |  | 20 + 1 |" in text
    assert f"With its files not in the page cache {OURS} starts in 0.70 s." in text
    assert "`share`: 0.400 s the first time, 0.0200 (0.0100–0.0300) s when it is used again." in text
    assert "| `import nbparallel` | 40 |" in text
    assert (
        "| 64 | 1.00 | 0.900 | 1000 | 0.100 | 0.020 | 0.050 | 0.200 | 1.50 | 1.20 | 130 | 50 | 40 | 8 | 640 |" in text
    )
    assert "| jobs, 10,000 | 1.0 | 2.0 | 3.0 | 4 |" in text
    assert "```\na table\n```" in text


def test_a_report_of_nothing_is_short() -> None:
    """Parts that were not measured are left out."""
    text = render(Run("2026-01-02", "a machine", 2, 3, {}, {}))
    assert "##" not in text.replace("## Workloads", "")


def test_a_thousand_workers_are_reckoned_from_the_costs() -> None:
    """The rate follows from the chunks' length, and the first to be full is the one that costs most."""
    text = thousand_workers([{**GROWTH_ROW, "workers": 1, "connections": 4}, GROWTH_ROW], 0.25)
    assert "4,000 chunks a second" in text
    assert "0.40 of a core in the client, 0.20 in the server" in text
    assert "the client, at 10,000 chunks a second" in text
    assert "would feed 2,500 workers" in text
    assert "10 MB a child" in text


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    """A report can be made again from the figures."""
    before = run()
    before.save(tmp_path / "figures.json")
    assert render(Run.load(tmp_path / "figures.json")) == render(before)


def test_workloads_check_their_results() -> None:
    """Each workload takes right results and refuses wrong or missing ones."""
    for workload in WORKLOADS.values():
        if workload.name.startswith(("64 arrays", "1,000,000")):
            continue  # slow, and the same check as others
        items = workload.make(10.0)  # so slow a machine that items are tiny
        results = [item if workload.function.__name__ == "nap" else workload.function(item) for item in items]
        assert workload.check(items, results)
        assert not workload.check(items, results[:-1])
        assert not workload.check(items, [None, *results[1:]])


def test_peers_that_have_a_best_setting_say_which() -> None:
    """The report explains every setting that it shows."""
    for name, peer in PEERS.items():
        assert bool(peer.best) == ("map_best" in vars(peer)), name


def test_a_peer_that_does_not_end_is_ended() -> None:
    """Past its limit a driver is killed and the next request gets a new one; an error leaves it running."""
    driver = Driven(SERIAL, 1, sys.executable, 1e4)
    try:
        with pytest.raises(PeerFailed, match="no better setting"):
            driver.ask({"do": "map", "workload": "items of 10 ms", "best": True, "chunk": 1, "count": 1}, 20)
        with pytest.raises(NoEnd, match=r"no end in 0\.1 s"):
            driver.ask({"do": "trips", "count": 10, "pause": 60.0}, 0.1)
        assert driver.ask({"do": "trips", "count": 2, "pause": 0.0}, 20)["samples"]
    finally:
        driver.stop()
