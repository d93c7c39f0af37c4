"""Celery's request for a turn: a message that a worker has received; its task goes to ``main.py``."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

__all__ = ["TurnRequest"]


class TurnRequest(Request):
    """A request that is shown under its job's name, and counted under its task's."""

    def on_accepted(self, *arguments: Any) -> Any:
        """A child took it."""
        # A worker counts by name as long as it lives, and the names of jobs are without end.
        self.name = self.type  # type: ignore[misc]
        return super().on_accepted(*arguments)
