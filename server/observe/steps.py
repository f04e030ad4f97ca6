"""`StepMetrics`: what the engine's steps tell, in Prometheus' types."""

from __future__ import annotations

from itertools import zip_longest

from octavo.engine.config import LONGEST_DRAFT
from octavo.engine.step import StepStats

from . import families
from .families import Families


class StepMetrics:
    """Notes what each step tells, and makes gauges and counters of it when it is asked to `count`:
    it is told far more often than anybody looks."""

    def __init__(self, f: Families) -> None:
        self._latest = StepStats()  # the latest report, ...
        self._latest_restarts = 0  # ... and how many engines had been started before its own
        self._counted = StepStats()  # up to here `count` has counted
        self._computed = StepStats()  # of the latest step that computed something

        self._running = f.gauge("num_requests_running", "Sequences that are computed now.")
        self._waiting = f.gauge("num_requests_waiting", "Sequences that wait for a step.")
        self._waiting_by_reason = f.gauges(
            "num_requests_waiting_by_reason",
            "Sequences that wait, by what for; octavo defers none.",
            "reason",
            ("capacity", "deferred"),
        )
        self._swapped = f.gauge("num_requests_swapped", "Sequences swapped out to host memory.")
        self._cache_usage = f.gauge(
            "kv_cache_usage_perc", "Share of the KV blocks held by live sequences, 0 to 1."
        )
        self._host_cache_usage = f.gauge(
            "cpu_cache_usage_perc", "Share of the host memory for swapped blocks in use, 0 to 1."
        )
        # The engine's own totals, by field of StepStats.
        self._followed = {
            field: f.counter(name, text)
            for field, name, text in (
                ("prefix_queries", "prefix_cache_queries", "Tokens looked up in the prefix cache."),
                ("prefix_hits", "prefix_cache_hits", "Tokens found in the prefix cache."),
                ("blocks_swapped_out", "kv_blocks_swapped_out", "KV blocks moved to the host."),
                ("blocks_swapped_in", "kv_blocks_swapped_in", "KV blocks moved back."),
                ("blocks_copied", "kv_blocks_copied", "KV blocks copied on write."),
                ("drafts", "spec_decode_num_drafts", "Drafts verified."),
                ("draft_tokens", "spec_decode_num_draft_tokens", "Tokens of these drafts."),
                (
                    "audit_failures",
                    "kv_block_audit_failures",
                    "Errors in block accounting, mended.",
                ),
            )
        }
        self._accepted = f.counter(
            "spec_decode_num_accepted_tokens", "Tokens of drafts that were right."
        )
        self._accepted_by_place = f.counters(
            "spec_decode_num_accepted_tokens_per_pos",
            "Tokens of drafts that were right, by their place in the draft.",
            "position",
            [str(place) for place in range(LONGEST_DRAFT)],
        )
        self._preemptions = f.counter("num_preemptions", "Sequences that gave way to others.")
        self._preemptions_by_kind = f.counters(
            "preemptions_by_kind", "Preemptions, by how.", "kind", ("recompute", "swap")
        )
        self._step_tokens = f.unlocked_histogram(
            "iteration_tokens_total", "Tokens computed in a step.", families.STEP_TOKENS
        )
        self._step_seconds = f.unlocked_histogram(
            "step_time_seconds", "Computing a step.", families.STEP_SECONDS
        )
        self._host_seconds = f.unlocked_histogram(
            "step_host_time_seconds", "Planning and committing a step.", families.STEP_SECONDS
        )
        self._step_sequences = f.unlocked_histogram(
            "step_sequences", "Sequences computed in a step.", families.STEP_SEQUENCES
        )
        self._graphs = {
            state: f.gauge(f"graphs_{state}", f"Graphs of steps that are alike, {text}.")
            for state, text in (("recorded", "so far"), ("planned", "in the end"))
        }

    def note(self, stats: StepStats, restarts: int) -> None:
        """A step has ended. With more `restarts` it is a new engine's, whose totals began at 0."""
        if restarts != self._latest_restarts:
            self.count()
            self._counted, self._latest_restarts = StepStats(), restarts
        self._latest = stats
        if stats.tokens_computed:
            self._computed = stats
            self._step_tokens.observe(stats.tokens_computed)
            self._step_sequences.observe(stats.sequences_computed)
            self._step_seconds.observe(stats.step_seconds)
            self._host_seconds.observe(stats.host_seconds)

    def count(self) -> None:
        """Make gauges and counters tell what the latest step told."""
        stats, last = self._latest, self._counted
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._waiting_by_reason["capacity"].set(stats.waiting)
        self._swapped.set(stats.swapped)
        self._cache_usage.set(_share(stats.blocks_used, stats.blocks_total))
        self._host_cache_usage.set(_share(stats.host_blocks_used, stats.host_blocks_total))
        self._graphs["recorded"].set(self._computed.graphs_recorded)
        self._graphs["planned"].set(self._computed.graphs_planned)
        for field, counter in self._followed.items():
            counter.inc(max(0, getattr(stats, field) - getattr(last, field)))
        places = zip_longest(stats.drafts_accepted, last.drafts_accepted, fillvalue=0)
        for place, (accepted, before) in enumerate(places):
            grown = max(0, accepted - before)
            self._accepted_by_place[str(place)].inc(grown)
            self._accepted.inc(grown)
        for kind, counter in self._preemptions_by_kind.items():
            field = f"preemptions_{kind}"
            grown = max(0, getattr(stats, field) - getattr(last, field))
            counter.inc(grown)
            self._preemptions.inc(grown)
        self._counted = stats


def _share(used: int, total: int) -> float:
    return used / total if total else 0.0
