"""The engine loop over a scheduler and a fake executor, with everything looked at in each step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from octavo.engine.config import EngineConfig
from octavo.engine.params import Emitted, FinishReason, PoolingParams, Request, SamplingParams
from octavo.engine.scheduler.scheduler import Scheduler
from octavo.engine.step import Delta, StepPlan, TokenLogprobs

from ..fakes.executor import UNKNOWN_CELLS, FakeExecutor


def request(
    name: str,
    prompt: Iterable[int],
    *,
    seed: int = 1,
    arrival: float = 0.0,
    priority: int = 0,
    cache_salt: str = "",
    adapter: str | None = None,
    emitted: tuple[Emitted, ...] = (),
    sampling: SamplingParams | None = None,
    pooling: PoolingParams | None = None,
) -> Request:
    return Request(
        id=name,
        prompt_token_ids=tuple(prompt),
        sampling=sampling or SamplingParams(),
        pooling=pooling,
        seed=seed,
        arrival=arrival,
        priority=priority,
        cache_salt=cache_salt,
        adapter=adapter,
        emitted=emitted,
    )


def guess_always(patch: pytest.MonkeyPatch) -> None:
    """Guesses are free, and made however often they were wrong: where they are worth their time
    hangs on clocks, and what is asserted of them must not."""
    patch.setattr("octavo.engine.scheduler.drafts.GuessPrice.of", lambda price, count: (0.0, 0.0))
    patch.setattr("octavo.engine.scheduler.drafts._LONGEST_PAUSE", 0)


@dataclass(slots=True)
class Choice:
    """All that was seen of one choice."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    last: Delta | None = None


class Loop:
    """`octavo.engine.core.Engine` in small: submit while allowed, collect the oldest, commit.

    After every step it asserts what must always hold: budget, accounts, progress.
    """

    def __init__(
        self,
        executor: FakeExecutor | None = None,
        *,
        depth: int = 0,
        budget: int = 2048,
        max_num_seqs: int = 64,
        prefix_caching: bool = True,
        policy: str = "fcfs",
        preemption: str = "auto",
        checked: bool = True,
        itl_target: float = 0.0,
    ) -> None:
        self.executor = executor or FakeExecutor()
        self.depth = depth
        self.budget = budget
        self.checked = checked
        config = EngineConfig(
            model="fake",
            max_num_batched_tokens=budget,
            max_num_seqs=max_num_seqs,
            prefix_caching=prefix_caching,
            scheduling_policy=policy,
            preemption=preemption,
            itl_target=itl_target,
        )
        capacity = self.executor.start(lambda stage, done, total: None)
        self.scheduler = Scheduler(config, capacity)
        self.in_flight: deque[StepPlan] = deque()
        self.now = 0.0
        self.choices: dict[tuple[str, int], Choice] = {}

    def add(self, *requests: Request) -> None:
        for item in requests:
            self.scheduler.add(item, self.now)

    def plan(self) -> StepPlan | None:
        """Schedule one more plan and submit it."""
        idle = self.scheduler.has_work and not self.in_flight
        plan = self.scheduler.schedule(self.now)
        assert plan is not None or not idle, "there is work, nothing is in flight, and no plan"
        if plan is None:
            return None
        assert plan.slices
        assert plan.token_count <= self.budget
        assert len({piece.sequence for piece in plan.slices}) == len(plan.slices)
        self.executor.submit(plan)
        self.in_flight.append(plan)
        self.check()
        return plan

    def land(self) -> list[Delta]:
        """Collect the oldest plan and commit it."""
        plan = self.in_flight.popleft()
        try:
            output = self.executor.collect()
        except RuntimeError as error:
            deltas = self.scheduler.fail_step(plan, str(error), self.now)
        else:
            deltas = self.scheduler.commit(plan, output, self.now)
        for delta in deltas:
            self._see(delta)
        self.check()
        return deltas

    def step(self) -> list[Delta]:
        self.now += 1.0
        while len(self.in_flight) <= self.depth and self.plan() is not None:
            pass
        return self.land() if self.in_flight else []

    def run(self, *requests: Request, steps: int = 100_000) -> dict[tuple[str, int], Choice]:
        """Add the requests, step until nothing is left, and give all that was seen."""
        self.add(*requests)
        for _ in range(steps):
            if not self.scheduler.has_work and not self.in_flight:
                self.check_idle()
                return self.choices
            self.step()
        raise AssertionError(f"not done after {steps} steps: {self.scheduler.stats()}")

    def check(self) -> None:
        if self.checked:
            self.scheduler.check()

    def check_idle(self) -> None:
        """Nothing is held, nothing leaked."""
        self.scheduler.check()
        stats = self.scheduler.stats()
        assert (stats.running, stats.waiting, stats.swapped) == (0, 0, 0)
        assert (stats.blocks_used, stats.host_blocks_used, stats.audit_failures) == (0, 0, 0)

    def tokens(self, name: str, index: int = 0) -> list[int]:
        return self.choices[name, index].token_ids

    def _see(self, delta: Delta) -> None:
        assert delta.error != UNKNOWN_CELLS, "such a sequence must have ended, or start again"
        choice = self.choices.setdefault((delta.request_id, delta.index), Choice())
        assert choice.last is None, f"something follows the last delta of {delta.request_id}"
        choice.token_ids += delta.token_ids
        choice.logprobs += delta.logprobs
        choice.prompt_logprobs += delta.prompt_logprobs
        if delta.cached_tokens is not None:
            assert choice.cached_tokens is None
            choice.cached_tokens = delta.cached_tokens
        if delta.last:
            choice.last = delta
            choice.finish_reason = delta.finish_reason
            choice.error = delta.error
            assert delta.timing is not None
