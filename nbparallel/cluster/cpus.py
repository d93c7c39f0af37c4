"""Reads affinity and cgroup limits, and hands the number of usable cores to the embedded cluster."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

__all__ = ["usable_cores"]


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: its CPU affinity, lowered by cgroup quotas (v1 and v2); at least 1.

    Args:
        root: where ``proc`` and ``sys`` are mounted; tests put a fake tree there.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    # A quota of 1.5 cores is used by two processes, not by one, hence the rounding up.
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPU quotas, in cores, of this process's cgroup and of all that contain it."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
                mount = root / "sys/fs/cgroup" / controllers
                # In a container the path may be the host's, which is not visible here; the mount itself,
                # visited last, then is the container's own group.
                here = PurePosixPath(path.lstrip("/"))
                for group in (here, *here.parents):
                    yield from _quota(mount / group)


def _quota(group: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):  # no such file here, or "max"
        quota, period = (group / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota = (group / "cpu.cfs_quota_us").read_text()
        period = (group / "cpu.cfs_period_us").read_text()
        if int(quota) > 0:  # -1: no limit
            yield int(quota) / int(period)
