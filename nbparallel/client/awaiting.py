"""Waits in an event loop for something of a job to change; the Job's async methods call it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from .cell import waits_for

if TYPE_CHECKING:
    from .running import RunningJob

__all__ = ["wait_async"]


async def wait_async(running: RunningJob, reached: Callable[[], bool], heartbeat: float) -> None:
    """Wait until something is reached; wakes at least every heartbeat (seconds), else ■ would be noticed at the end."""
    loop = asyncio.get_running_loop()
    waits_for(running, loop)
    while True:
        woken = loop.create_future()

        def wake(woken: asyncio.Future[None] = woken) -> None:
            loop.call_soon_threadsafe(_set, woken)

        with running.changed:
            if reached():
                return
            running.on_change(wake)
        await asyncio.wait([woken], timeout=heartbeat)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
