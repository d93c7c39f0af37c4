"""``python -m nbparallel.worker``: the worker of an embedded cluster; the guard hands its configuration to stdin."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from urllib.parse import unquote, urlsplit

from .config import WorkerConfig
from .main import run_worker


def main() -> int:
    """Run the worker of the embedded cluster whose guard writes to our stdin; its exit code."""
    config = WorkerConfig.from_json(json.loads(sys.stdin.readline()))
    # Celery's pool keeps shared memory in a temporary directory, which a killed worker would leave behind: it is made
    # in the cluster's own directory, which goes with the cluster.
    process = multiprocessing.current_process()
    process._config["tempdir"] = os.path.dirname(unquote(urlsplit(config.store_url).path))  # type: ignore[attr-defined]
    return run_worker(config)


if __name__ == "__main__":
    sys.exit(main())
