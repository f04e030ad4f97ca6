"""`AsyncEngine`: the front end's handle on an engine that runs elsewhere. No torch.

It submits requests, hands each one its deltas (one wake-up per step), and aborts what nobody
listens to any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from .executor.base import Capacity
from .params import Request
from .step import Delta, StepStats


class EngineStage(Protocol): ...


class AsyncEngine:
    """Draft of the public surface; being implemented."""

    capacity: Capacity  # set once started
    stats: StepStats  # of the newest step

    async def start(self, progress: Callable[[str, int, int], None]) -> None: ...

    def generate(self, request: Request) -> AsyncIterator[Delta]: ...

    async def stop(self) -> None: ...
