"""Learning what steps cost, and cutting prompts to the time that streams leave."""

from __future__ import annotations

import random

import pytest

from octavo.engine.params import SamplingParams
from octavo.engine.scheduler.step_time import StepTime
from octavo.engine.step import Slice, StepPlan

from ..fakes.executor import FakeExecutor
from .loop import Loop, request

STEP, SEQUENCE, TOKEN, PAIR = 2e-3, 5e-5, 3e-4, 1e-7


def cost(plan: StepPlan) -> float:
    pairs = sum(s.count * (s.start + (s.count + 1) / 2) for s in plan.slices)
    return STEP + SEQUENCE * len(plan.slices) + TOKEN * plan.token_count + PAIR * pairs


def decoding(*starts: int) -> StepPlan:
    slices = tuple(Slice(sequence=i, start=start, count=1) for i, start in enumerate(starts))
    return StepPlan(number=0, slices=slices)


def chunk(start: int, count: int) -> StepPlan:
    return StepPlan(number=0, slices=(Slice(sequence=0, start=start, count=count),))


def mixed(draw: random.Random) -> StepPlan:
    decoders = decoding(*(draw.randint(0, 4000) for _ in range(draw.randint(0, 32)))).slices
    long = Slice(sequence=99, start=draw.choice((0, 256, 2048)), count=draw.randint(2, 512))
    return StepPlan(number=0, slices=(*decoders, *((long,) if draw.random() < 0.3 else ())))


@pytest.fixture
def fitted() -> StepTime:
    """A model that has seen 300 steps, 10 % noise, and now and then a hiccup of 20 times."""
    draw = random.Random(1)
    time = StepTime(token_seconds=1e-2)
    for _ in range(300):
        plan = mixed(draw)
        noise = draw.lognormvariate(0, 0.1) * (20 if draw.random() < 0.01 else 1)
        time.observe(plan, cost(plan) * noise)
    return time


def test_the_first_prediction_is_the_measured_price_of_tokens() -> None:
    assert StepTime(token_seconds=1e-3).predict(chunk(0, 50)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "plan", [decoding(10), decoding(*[3000] * 32), chunk(0, 512), chunk(2048, 256)]
)
def test_it_learns_what_steps_cost(fitted: StepTime, plan: StepPlan) -> None:
    assert fitted.predict(plan) == pytest.approx(cost(plan), rel=0.25)


def test_what_recent_steps_do_not_show_is_not_forgotten(fitted: StepTime) -> None:
    plan = decoding(*[700] * 8)
    for _ in range(2000):
        fitted.observe(plan, cost(plan))
    assert fitted.predict(plan) == pytest.approx(cost(plan), rel=0.01)
    assert fitted.predict(chunk(0, 512)) == pytest.approx(cost(chunk(0, 512)), rel=0.3)


def test_a_machine_that_becomes_slower_is_followed(fitted: StepTime) -> None:
    draw = random.Random(2)
    for _ in range(300):
        plan = mixed(draw)
        fitted.observe(plan, 6 * cost(plan))
    assert fitted.predict(chunk(0, 256)) == pytest.approx(6 * cost(chunk(0, 256)), rel=0.25)


def test_no_price_is_negative_and_an_empty_step_teaches_nothing() -> None:
    draw = random.Random(3)
    time = StepTime(token_seconds=1e-3)
    for _ in range(200):
        time.observe(mixed(draw), draw.random())
        time.observe(StepPlan(number=0, slices=()), 1.0)
        assert time.predict(mixed(draw)) >= 0
        assert time.token_seconds >= 0


@pytest.mark.parametrize("start", [0, 1000, 30_000])
@pytest.mark.parametrize("seconds", [0.0, 1e-3, 0.05, 1.0])
def test_tokens_within_is_the_inverse_of_price(
    fitted: StepTime, start: int, seconds: float
) -> None:
    count = fitted.tokens_within(seconds, start)
    assert not count or fitted.price(start, count) <= seconds * (1 + 1e-9)
    assert fitted.price(start, count + 2) > seconds


class TestSchedule:
    """A long prompt beside streams, on an executor with known prices."""

    def worst_step(
        self, *, target: float, streams: int = 4, prompt: int = 900
    ) -> tuple[float, int]:
        """The dearest step with a stream in it, and how many steps the prompt took."""
        loop = Loop(
            FakeExecutor(max_model_len=1024, num_blocks=1024, price=cost), itl_target=target
        )
        params = SamplingParams(max_tokens=200, ignore_eos=True)
        loop.add(*(request(f"s{i}", (i, 2, 3), sampling=params) for i in range(streams)))
        for _ in range(60):
            loop.step()
        loop.run(
            request("long", range(100, 100 + prompt), sampling=SamplingParams(max_tokens=1)),
        )
        plans = loop.executor.plans[60:]
        shared = [plan for plan in plans if len(plan.slices) > 1]
        steps = [plan for plan in plans if any(s.count > 1 for s in plan.slices)]
        return max(map(cost, shared)), len(steps)

    def test_a_prompt_lengthens_no_stream_beyond_the_target(self) -> None:
        worst, steps = self.worst_step(target=0.05)
        assert 0.03 < worst <= 0.05 * 1.1
        assert steps < 900 * TOKEN / 0.03  # and takes the time there is

    def test_without_a_target_it_is_computed_at_once(self) -> None:
        worst, steps = self.worst_step(target=0.0)
        assert (worst > 0.25, steps) == (True, 1)

    def test_prompts_keep_a_share_where_streams_alone_exceed_the_target(self) -> None:
        worst, steps = self.worst_step(target=0.004, streams=40, prompt=300)
        assert worst < 0.02
        assert steps < 300

    def test_without_streams_prompts_have_the_whole_step(self) -> None:
        loop = Loop(FakeExecutor(price=cost), itl_target=1e-6)
        loop.run(request("a", range(500), sampling=SamplingParams(max_tokens=1)))
        assert [plan.token_count for plan in loop.executor.plans] == [500]

    def test_a_step_that_was_computed_several_times_teaches_nothing(self) -> None:
        loop = Loop(FakeExecutor(price=cost))
        loop.add(request("a", range(20), sampling=SamplingParams(max_tokens=40, ignore_eos=True)))
        for _ in range(20):
            loop.step()
        plan = loop.plan()
        assert plan is not None
        loop.in_flight.clear()
        output = loop.executor.collect()
        before = loop.scheduler.step_time.predict(plan)
        slow = output._replace(seconds=3 * before, attempts=9)
        loop.scheduler.commit(plan, slow, loop.now)
        assert loop.scheduler.step_time.predict(plan) == before

    def test_the_tokens_are_the_same(self) -> None:
        def answers(target: float) -> dict[tuple[str, int], list[int]]:
            loop = Loop(FakeExecutor(num_blocks=128, price=cost), itl_target=target)
            params = SamplingParams(max_tokens=40, temperature=1.0)
            prompts = [request(f"r{i}", range(i, 30 * i + 5), sampling=params) for i in range(9)]
            return {key: choice.token_ids for key, choice in loop.run(*prompts).items()}

        assert answers(0.01) == answers(0.0)
