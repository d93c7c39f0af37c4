"""A worker that pops items from a list and pushes results to another."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import redis

from . import workloads


def work(url: str) -> None:
    """Run until killed."""
    server = redis.Redis.from_url(url)
    while True:
        popped: Any = server.blpop(["in"], timeout=4)
        if popped:
            index, name, item = pickle.loads(popped[1])
            server.rpush("out", pickle.dumps((index, getattr(workloads, name)(item))))


if __name__ == "__main__":
    work(sys.argv[1])
