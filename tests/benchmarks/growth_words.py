"""What the growth up to some dozens of workers says for a thousand, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["thousand_workers"]

_WORKERS = 1000
#: Processes of one host, in the reckoning.
_PER_HOST = 32


def thousand_workers(rows: Sequence[Mapping[str, float]], chunk_seconds: float) -> str:
    """A paragraph.

    Args:
        rows: what ``growth.by_workers`` measured; the last one, with the most workers, counts.
        chunk_seconds: what automatic chunks aim at with a thousand workers.
    """
    most = rows[-1]
    rate = _WORKERS / chunk_seconds
    share = {role: rate * most[f"cpu {role}"] for role in ("client", "server", "parent")}
    per_host = share["parent"] * _PER_HOST / _WORKERS
    extra = (most["connections"] - rows[0]["connections"]) / max(most["workers"] - rows[0]["workers"], 1)
    child = most["memory child"] / most["workers"] / 1e6
    first = max(("client", "server"), key=lambda role: share[role])
    limit = 1 / most[f"cpu {first}"]
    return (
        f"**For {_WORKERS:,} workers** (reckoned from the costs at {most['workers']:.0f}): automatic chunks then last "
        f"{chunk_seconds * 1e3:.0f} ms, so there are {rate:,.0f} chunks a second. They take {share['client']:.2f} of a "
        f"core in the client, {share['server']:.2f} in the server, {per_host:.2f} in the parent on each host of "
        f"{_PER_HOST} processes, and {rate * most['calls']:,.0f} store commands a second. The first to be full is the "
        f"{first}, at {limit:,.0f} chunks a second: with chunks of that length it would feed "
        f"{limit * chunk_seconds:,.0f} workers. Connections: {extra:.1f} more for each worker, so about "
        f"{most['connections'] + extra * (_WORKERS - most['workers']):,.0f}. Memory: {child:.0f} MB a child. These are "
        "costs of one client with one job on a machine whose cores were all busy; hosts that are further away "
        "add the time of the network to each claim, not CPU."
    )
