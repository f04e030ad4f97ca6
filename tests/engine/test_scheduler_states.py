"""The scheduler under requests, aborts and failures that come at any moment."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from octavo.engine.params import (
    FinishReason,
    GrammarKind,
    GrammarSpec,
    PoolingKind,
    PoolingParams,
    Request,
    SamplingParams,
)
from octavo.engine.step import StepPlan

from ..fakes.executor import FakeExecutor, pooled
from .loop import Loop, request

BLOCK = 8
MODEL_LEN = 96
GRAMMAR = GrammarSpec(GrammarKind.REGEX, "whatever")
ENDS = {FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR}


class Requests(RuleBasedStateMachine):
    """Whatever happens, every choice ends once, and nothing is left."""

    @initialize(
        blocks=st.integers(MODEL_LEN // BLOCK, 40),
        host=st.sampled_from([0, 3, 40]),
        depth=st.sampled_from([0, 1, 3]),
        budget=st.sampled_from([7, 16, 64, 2048]),
        places=st.sampled_from([1, 3, 64]),
        caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        preemption=st.sampled_from(["auto", "recompute", "swap"]),
        drafts=st.sampled_from([0, 1, 7]),
    )
    def begin(
        self,
        blocks: int,
        host: int,
        depth: int,
        budget: int,
        places: int,
        caching: bool,
        policy: str,
        preemption: str,
        drafts: int,
    ) -> None:
        executor = FakeExecutor(
            num_blocks=blocks,
            num_host_blocks=host,
            block_size=BLOCK,
            max_model_len=MODEL_LEN,
            eos_rate=0.05,
            drafts=drafts,
            swap_seconds_per_block=8e-3,
        )
        self.loop = Loop(
            executor,
            depth=depth,
            budget=budget,
            max_num_seqs=places,
            prefix_caching=caching,
            policy=policy,
            preemption=preemption,
        )
        self.expected: dict[str, int] = {}  # request -> choices that must end
        self.embedded: dict[str, Request] = {}  # of those, the ones to be embedded
        self.dropped: set[tuple[str, int]] = set()
        self.named: dict[int, set[int]] = {}  # plan in flight -> blocks its slices name

    @rule(
        prompt=st.lists(st.integers(1, 3), min_size=1, max_size=60),
        n=st.sampled_from([1, 1, 1, 2, 4]),
        beam=st.sampled_from([0, 0, 0, 4]),
        bound=st.booleans(),
        max_tokens=st.sampled_from([None, 0, 1, 5, 30]),
        scores=st.sampled_from([None, 0]),
        priority=st.integers(0, 2),
    )
    def ask(
        self,
        prompt: list[int],
        n: int,
        beam: int,
        bound: bool,
        max_tokens: int | None,
        scores: int | None,
        priority: int,
    ) -> None:
        name = f"r{len(self.expected)}"
        asked = SamplingParams(
            n=n,
            beam_width=beam,
            max_tokens=max_tokens,
            prompt_logprobs=scores,
            temperature=1.0,
            grammar=GRAMMAR if bound and not beam else None,
        )
        arrival = float(len(self.expected))
        self.loop.add(
            request(name, prompt, arrival=arrival, priority=priority, sampling=asked, seed=n)
        )
        self.expected[name] = n
        self.loop.check()

    @rule(
        prompt=st.lists(st.integers(1, 3), min_size=1, max_size=60),
        kind=st.sampled_from(PoolingKind),
        priority=st.integers(0, 2),
    )
    def embed(self, prompt: list[int], kind: PoolingKind, priority: int) -> None:
        name = f"r{len(self.expected)}"
        pooling = PoolingParams(kind=kind, normalize=False)
        arrival = float(len(self.expected))
        asked = request(name, prompt, arrival=arrival, priority=priority, pooling=pooling)
        self.loop.add(asked)
        self.expected[name] = 1
        self.embedded[name] = asked
        self.loop.check()

    @rule()
    def step(self) -> None:
        self.loop.now += 1
        while len(self.loop.in_flight) <= self.loop.depth:
            plan = self.loop.plan()
            if plan is None:
                break
            self.look_at(plan)
        if self.loop.in_flight:
            done = self.loop.in_flight[0].number
            self.loop.land()
            del self.named[done]

    @rule(count=st.integers(2, 12))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def look_at(self, plan: StepPlan) -> None:
        """No block is written that somebody else holds, or that an older plan names."""
        live = self.loop.scheduler._roster.live
        tables: dict[int, int] = {}
        for sequence in live.values():
            for block in sequence.block_table:
                tables[block] = tables.get(block, 0) + 1
        named: set[int] = set()
        for piece in plan.slices:
            table = live[piece.sequence].block_table
            written = table[piece.start // BLOCK : (piece.start + piece.count - 1) // BLOCK + 1]
            assert all(tables[block] == 1 for block in written)
            fresh = set(piece.blocks) if piece.history is None else set()
            for older in self.named.values():
                assert not fresh & older
            named.update(table)
        self.named[plan.number] = named

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), whole=st.booleans())
    def abort(self, data: st.DataObject, whole: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.expected)))
        index = None if whole else data.draw(st.integers(0, self.expected[name] - 1))
        beam = any(
            s.request.id == name and s.request.sampling.beam_width
            for s in self.loop.scheduler._roster.live.values()
        )
        self.loop.scheduler.abort(name, index)
        if whole:
            self.dropped |= {(name, i) for i in range(self.expected[name])}
        elif not beam:
            self.dropped.add((name, index or 0))
        self.loop.check()

    @rule()
    def fail_a_slice(self) -> None:
        self.loop.executor.failing_slices = 1

    @rule()
    def fail_a_step(self) -> None:
        self.loop.executor.failing_steps = 1

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        self.loop.executor.failing_slices = self.loop.executor.failing_steps = 0
        tokens = sum(self.expected.values()) * MODEL_LEN * 4
        self.loop.run(steps=200 + tokens * 8)
        for name, n in self.expected.items():
            for index in range(n):
                if (name, index) not in self.dropped:
                    assert self.loop.choices[name, index].finish_reason in ENDS, (name, index)
        for name, asked in self.embedded.items():
            choice = self.loop.choices.get((name, 0))
            if choice is not None and choice.last is not None and choice.error is None:
                assert choice.last.embedding == pooled(asked)
        assert self.loop.scheduler._blocks.behind_fence == 0


Requests.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRequests = Requests.TestCase
