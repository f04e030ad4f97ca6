"""`Runner.execute(plan)`: moves, then the slices; a slice that cannot be computed fails alone."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from ..kv_cache import KVCache
from ..params import SamplingParams
from ..step import Slice, SliceResult, StepOutput, StepPlan
from .halves import Attempt

log = logging.getLogger(__name__)


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
    """Carries out plans on one device. Not thread-safe.

    Moves are done once, because what is swapped in overwrites what was swapped out. Slices may be
    computed several times, until it is known which of them cannot be (`halves.Attempt`).
    """

    def __init__(self, kv: KVCache, computer: Computes) -> None:
        self._kv = kv
        self.computer = computer
        self._requests: dict[int, str] = {}  # by sequence: whose it is
        self._failed: dict[int, SliceResult] = {}  # culprits that have not been retired yet

    def ready(self, params: SamplingParams) -> bool:
        """As `Computes.ready`."""
        return self.computer.ready(params)

    def execute(self, plan: StepPlan) -> StepOutput:
        """One step. An exception means that all of it failed: its moves did."""
        began = time.perf_counter()
        self._kv.apply(plan.moves)
        self.computer.begin(plan)
        self._meet(plan)
        # A plan that was made before a culprit was known names it once more.
        slices = [part for part in plan.slices if part.sequence not in self._failed]
        attempt = Attempt(self.computer.compute)
        results = {result.sequence: result for result in attempt.results(slices)}
        if attempt.failures:
            self._report(plan, attempt)
        self._failed |= {sequence: results[sequence] for sequence in attempt.culprits}
        return StepOutput(
            number=plan.number,
            results=tuple(
                [results.get(s.sequence) or self._failed[s.sequence] for s in plan.slices]
            ),
            seconds=time.perf_counter() - began,
            attempts=attempt.count,
        )

    def _meet(self, plan: StepPlan) -> None:
        """Know who comes and who has gone."""
        for sequence in plan.retired:
            self._requests.pop(sequence, None)
            self._failed.pop(sequence, None)
        for part in plan.slices:
            if part.history is not None:
                self._requests[part.sequence] = part.history.request_id
                self._failed.pop(part.sequence, None)

    def _report(self, plan: StepPlan, attempt: Attempt) -> None:
        """One line in the log for each way in which the step went wrong."""
        if not attempt.culprits:
            log.warning(
                "step %d failed with %s; its %d sequences could be computed in smaller parts\n%s",
                plan.number,
                attempt.failures[0].kind,
                len(plan.slices),
                attempt.failures[0].trace,
            )
        together: defaultdict[str, set[str]] = defaultdict(set)
        for sequence, failure in attempt.culprits.items():
            together[failure.trace].add(self._requests.get(sequence, f"of sequence {sequence}"))
        for trace, requests in together.items():
            log.error(
                "step %d: request %s cannot be computed, and fails; the others go on\n%s",
                plan.number,
                ", ".join(sorted(requests)),
                trace,
            )
