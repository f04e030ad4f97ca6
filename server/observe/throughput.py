"""A log line every few seconds while the engine is busy; nothing while it is idle."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from octavo.engine.step import StepStats

from .metrics import Metrics

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 5.0


class Throughput:
    """Watches steps; a step after a quiet time starts a new interval."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._since = self._last_step = clock()
        self._prompt, self._output = 0, 0

    def on_step(self, stats: StepStats) -> None:
        now = self._clock()
        if now - self._last_step > INTERVAL_SECONDS:  # it was idle in between
            self._begin(now)
        self._last_step = now
        elapsed = now - self._since
        if elapsed < INTERVAL_SECONDS:
            return
        prompt = self._metrics.prompt_tokens_seen - self._prompt
        output = self._metrics.output_tokens_seen - self._output
        used = stats.blocks_used / stats.blocks_total if stats.blocks_total else 0.0
        log.info(
            "%.1f prompt tokens/s, %.1f output tokens/s, %d running, %d waiting, %d swapped, "
            "KV cache %.1f %%",
            prompt / elapsed,
            output / elapsed,
            stats.running,
            stats.waiting,
            stats.swapped,
            100 * used,
        )
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._since = now
        self._prompt = self._metrics.prompt_tokens_seen
        self._output = self._metrics.output_tokens_seen
