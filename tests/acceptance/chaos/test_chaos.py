"""Random faults on random jobs: every item has exactly one outcome, the right one, in its place, in bounded time.

CHAOS_SEED=17 pytest tests/acceptance/chaos      plays one schedule again
CHAOS_RUNS=500 pytest tests/acceptance/chaos     plays more of them, from CHAOS_FIRST on
CHAOS_CALM=1 ...                                  plays them without their faults, to compare
CHAOS_LOG=file ...                                appends what each came to, a line of JSON; `report.py` makes a table
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from acceptance.chaos.schedule import CONFIG, HOSTS, PROCESSES, SETTINGS, Plan, Stage, play
from acceptance.hosts import remote

#: Schedules that share a server and hosts.
BATCH = 10


def batches() -> list[Sequence[int]]:
    """The seeds, in batches."""
    if seed := os.environ.get("CHAOS_SEED"):
        return [[int(seed)]]
    first, runs = int(os.environ.get("CHAOS_FIRST", "0")), int(os.environ.get("CHAOS_RUNS", "40"))
    return [range(lo, min(lo + BATCH, first + runs)) for lo in range(first, first + runs, BATCH)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", batches(), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_chaos(seeds: Sequence[int], tmp_path: Path) -> None:
    """Whatever goes wrong meanwhile, a job ends as if nothing had."""
    left, failures = list(seeds), []
    while left:  # after a failure with a new server and new hosts
        with remote(HOSTS, PROCESSES, config=CONFIG, **SETTINGS) as (rig, cluster):
            stage = Stage(rig, cluster)
            while left:
                plan = Plan.draw(left.pop(0))
                if os.environ.get("CHAOS_CALM"):
                    plan.faults.clear()
                try:
                    account = play(stage, plan, tmp_path / f"log{plan.seed}")
                except (pytest.fail.Exception, Exception) as failure:
                    failures.append(str(failure))
                    print(f"FAILED {failure}", flush=True)
                    note({**plan.row(), "failed": str(failure)})
                    break
                print(f"{plan}: took {account.seconds:.1f} s, {account.doubled} items ran twice", flush=True)
                note(account.row())
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)


def note(row: dict[str, Any]) -> None:
    """Append a line to the log, where one is asked for."""
    if path := os.environ.get("CHAOS_LOG"):
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
