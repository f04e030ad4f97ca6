"""`Runner.execute(plan)`: moves, then the slices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from ..kv_cache import KVCache
from ..params import SamplingParams
from ..step import Slice, SliceResult, StepOutput, StepPlan


class Computes(Protocol):
    """What a runner asks of a `Computer`."""

    def ready(self, params: SamplingParams) -> bool:
        """Whether a sequence with these parameters would not keep a step waiting; begins to
        prepare what is missing. From any thread."""

    def begin(self, plan: StepPlan) -> None:
        """A step begins: forget the sequences that have ended."""

    def compute(self, slices: Sequence[Slice]) -> list[SliceResult]:
        """What each slice yielded, in their order. After an exception nothing came of them, and
        they, or some of them, may be given once more."""


class Runner:
    """Carries out plans on one device. Not thread-safe."""

    def __init__(self, kv: KVCache, computer: Computes) -> None:
        self._kv = kv
        self.computer = computer

    def ready(self, params: SamplingParams) -> bool:
        """As `Computes.ready`."""
        return self.computer.ready(params)

    def execute(self, plan: StepPlan) -> StepOutput:
        """One step. An exception means that all of it failed."""
        began = time.perf_counter()
        self._kv.apply(plan.moves)
        self.computer.begin(plan)
        results = self.computer.compute(plan.slices)
        return StepOutput(
            number=plan.number, results=tuple(results), seconds=time.perf_counter() - began
        )
