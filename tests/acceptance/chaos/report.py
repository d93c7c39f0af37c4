"""Makes a table of what schedules came to: ``python tests/acceptance/chaos/report.py LOG...`` (see ``CHAOS_LOG``)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each fault; a schedule counts for each of its faults, its extra time where it had just that one."""
    failed = [row["seed"] for row in rows if "failed" in row]
    rows = [row for row in rows if "failed" not in row]
    lines = ["| fault | schedules | items | ran twice | extra seconds, median / max |", "|---|---|---|---|---|"]
    names = sorted({name for row in rows for name in row["faults"]})
    for name in ["", *names]:
        mine = [row for row in rows if (name in row["faults"] if name else not row["faults"])]
        alone = [row["extra"] for row in mine if set(row["faults"]) <= {name} and not row["cancelled"]]
        if mine:
            times = f"{median(alone):.1f} / {max(alone):.1f} ({len(alone)})" if alone else "-"
            items, doubled = (sum(row[what] for row in mine) for what in ("items", "doubled"))
            lines.append(f"| {name or 'none'} | {len(mine)} | {items:,} | {doubled:,} | {times} |")
    return "\n".join([*lines, f"\n{len(rows)} schedules held, {len(failed)} failed: {failed}"])


if __name__ == "__main__":
    print(table([json.loads(line) for path in sys.argv[1:] for line in Path(path).read_text().splitlines()]))
