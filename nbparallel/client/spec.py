"""What ``pmap`` was asked for: made by the api, read by ``running.py``, ``serial.py`` and ``job.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..frames import Inputs
from ..policies import RetryPolicy

__all__ = ["JobSpec"]


@dataclass(frozen=True)
class JobSpec:
    """What ``pmap`` was asked for, checked."""

    name: str
    function: bytes
    chunks: int | Literal["auto"] = "auto"
    ordered: bool = True
    on_error: Literal["raise", "return", "skip"] = "raise"
    retry: RetryPolicy | None = None
    timeout: float | None = None
    queue: str = ""
    keep: bool = True
    sized: bool = True
    max_running: int = 0
    star: bool = False
    seed: int | None = None
    rng: bool = False
    interrupt: Literal["cancel", "keep"] = "cancel"
    detach: bool = False
    memory_limit: int = 0
    priority: int = 0
    inputs: Inputs = field(default_factory=Inputs)
