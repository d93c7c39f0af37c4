"""What the running notebook cell waits for, and ■."""

from __future__ import annotations

import asyncio
import signal
import types
from collections.abc import Iterator
from typing import Any

import pytest

from nbparallel.client import cell


@pytest.fixture
def interrupts() -> Iterator[None]:
    """■ as a kernel hears it while a cell runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Shell:
    """What is used of IPython's."""

    def __init__(self, **attributes: Any) -> None:
        self.events = types.SimpleNamespace(register=lambda *_: None)
        vars(self).update(attributes)


def test_interrupt_is_heard_once(interrupts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """■ pressed again at once does not hit the kernel while that ends the cell; a later press does."""
    here = Shell(kernel="kernel")
    monkeypatch.setattr(cell, "SAME_PRESS", 60.0)
    waits = cell._Cell(here)
    waits.shield()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    waits._deaf_until = 0.0
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_awaited_job_is_cancelled_before_the_kernel_ends_the_cell(interrupts: None) -> None:
    """■ while an event loop sleeps: the jobs hear of it first, once, however many were awaited."""
    heard: list[str] = []
    here = Shell(kernel="kernel")
    waits = cell._Cell(here)
    job = types.SimpleNamespace(spec=types.SimpleNamespace(interrupt="cancel"), cancel=lambda: heard.append("job"))
    kept = types.SimpleNamespace(spec=types.SimpleNamespace(interrupt="keep"), cancel=lambda: heard.append("kept"))
    waits.jobs = [job, kept]  # type: ignore[assignment]

    async def body() -> None:
        loop = asyncio.get_running_loop()
        end = loop.create_future()

        def kernels(number: int, frame: Any) -> None:
            loop.call_soon_threadsafe(lambda: (heard.append("kernel"), end.set_result(None)))

        signal.signal(signal.SIGINT, kernels)
        waits.awaits(loop)
        waits.awaits(loop)
        signal.raise_signal(signal.SIGINT)
        await end

    waits.beat = lambda loop: None  # type: ignore[method-assign]
    asyncio.run(body())
    assert heard == ["job", "kernel"]


def test_other_handlers_stay(interrupts: None) -> None:
    """Outside of a kernel, and where the user handles the signal, nothing is changed."""
    terminal, kernel = Shell(), Shell(kernel="kernel")
    cell._Cell(terminal).shield()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cell._Cell(kernel).shield()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
