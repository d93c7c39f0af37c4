"""A plain Celery application, as people write it."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from . import workloads

app = Celery("plain", broker=os.environ.get("BENCHMARK_BROKER"), backend=os.environ.get("BENCHMARK_BACKEND"))
app.conf.update(task_serializer="pickle", result_serializer="pickle", accept_content=["pickle", "json"])
app.conf.update(worker_prefetch_multiplier=4, result_expires=600)


@app.task
def call(name: str, item: Any) -> Any:
    """Call one of the workloads' functions."""
    return getattr(workloads, name)(item)
