"""All peers by name, in the order of the report."""

from __future__ import annotations

from .local_peers import Futures, Joblib, Mpire, Nbparallel, PlainLoop, Pool
from .peer import Peer
from .spanning_peers import CeleryTasks, Dask, Ipyparallel, Ray, RedisLists

__all__ = ["OURS", "PEERS", "SERIAL"]

OURS, SERIAL = Nbparallel.name, PlainLoop.name

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (PlainLoop, Nbparallel, Pool, Futures, Joblib, Mpire, Ray, Dask, Ipyparallel, CeleryTasks, RedisLists)
}
