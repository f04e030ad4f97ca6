"""Embeddings in planning: right whatever the slices, the crowd and the preemptions.

The fake executor's hidden states are hashes of the cells that the block table leads to, in whole
numbers: their sums are exact, in whatever order.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.engine.errors import InvalidParameter
from octavo.engine.params import (
    FinishReason,
    PoolingKind,
    PoolingParams,
    Request,
    SamplingParams,
)
from octavo.engine.step import Delta, SliceResult, StepOutput, Wants

from ..fakes.executor import HIDDEN, FakeExecutor, pooled
from .loop import Loop, request

MEAN = PoolingParams(normalize=False)
LAST = PoolingParams(kind=PoolingKind.LAST, normalize=False)
SUM = Wants.EMBEDDING_SUM
MAX_MODEL_LEN = 192


def last_delta(loop: Loop, name: str) -> Delta:
    delta = loop.choices[name, 0].last
    assert delta is not None
    return delta


def crowd(count: int, seed: int) -> list[Request]:
    """Embeddings of both kinds among sampled requests, with shared prefixes."""
    draw = random.Random(seed)
    shared = [draw.randrange(1, 500) for _ in range(70)]
    requests = []
    for number in range(count):
        own = [draw.randrange(1, 500) for _ in range(draw.randrange(1, 100))]
        prompt = shared[: draw.choice((0, 16, 33, 64, 70))] + own
        sampling = SamplingParams(max_tokens=draw.randrange(1, 20), ignore_eos=True)
        pooling = draw.choice((None, MEAN, MEAN, LAST))
        if pooling is not None:
            sampling = SamplingParams()
        requests.append(
            request(f"r{number}", prompt, arrival=float(number), sampling=sampling, pooling=pooling)
        )
    return requests


def check_crowd(loop: Loop, requests: list[Request]) -> None:
    loop.run(*requests)
    for asked in requests:
        delta = last_delta(loop, asked.id)
        if asked.pooling is not None:
            assert delta.embedding == pooled(asked), asked.id
            assert delta.finish_reason is FinishReason.STOP
            assert not loop.tokens(asked.id)
        else:
            assert delta.embedding is None
            assert len(loop.tokens(asked.id)) == asked.sampling.max_tokens


@pytest.mark.parametrize("length", [1, 2, 16, 33, MAX_MODEL_LEN])
@pytest.mark.parametrize("budget", [1, 16, 2048])
@pytest.mark.parametrize("pooling", [MEAN, LAST])
def test_one_delta_carries_the_embedding(pooling: PoolingParams, budget: int, length: int) -> None:
    """Up to a prompt that fills the context to its last position."""
    loop = Loop(FakeExecutor(max_model_len=MAX_MODEL_LEN), budget=budget)
    asked = request("a", range(1, length + 1), pooling=pooling)
    loop.run(asked)
    delta = last_delta(loop, "a")
    assert delta.embedding == pooled(asked)
    assert (delta.token_ids, delta.cached_tokens) == ((), 0)
    assert delta.timing is not None
    assert delta.timing.finished == delta.timing.first_token == -(-length // budget)


def test_it_is_cut_and_then_brought_to_length_1() -> None:
    for dimensions in (None, 3):
        for normalize in (False, True):
            pooling = PoolingParams(dimensions=dimensions, normalize=normalize)
            asked = request("a", range(1, 30), pooling=pooling)
            loop = Loop()
            loop.run(asked)
            plain = pooled(asked)[:dimensions]
            length = math.sqrt(sum(x * x for x in plain)) if normalize else 1.0
            found = last_delta(loop, "a").embedding
            assert found == pytest.approx([x / length for x in plain], rel=1e-12)
            assert len(found or ()) == (dimensions or HIDDEN)


def test_dimensions_below_1_are_refused() -> None:
    with pytest.raises(InvalidParameter) as refused:
        PoolingParams(dimensions=0)
    assert refused.value.param == "dimensions"


def test_a_vector_without_length_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        FakeExecutor, "_embedding", lambda self, piece, context: (0.0, 0.0) if piece.wants else ()
    )
    loop = Loop()
    loop.run(request("a", [1, 2], pooling=PoolingParams()))
    assert last_delta(loop, "a").embedding == (0.0, 0.0)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(
    ("host_blocks", "mode"), [(0, "recompute"), (64, "swap")], ids=["recompute", "swap"]
)
def test_preemption_in_the_middle_of_a_prompt_changes_nothing(
    host_blocks: int, mode: str, depth: int
) -> None:
    executor = FakeExecutor(
        num_blocks=MAX_MODEL_LEN // 8 + 1,
        num_host_blocks=host_blocks,
        block_size=8,
        max_model_len=MAX_MODEL_LEN,
    )
    loop = Loop(executor, depth=depth, budget=8, preemption=mode)
    generating = [
        request(f"g{i}", [i + 1] * 4, sampling=SamplingParams(max_tokens=40, ignore_eos=True))
        for i in range(4)
    ]
    embedded = request("embedded", range(100, 200), arrival=1.0, pooling=MEAN)
    check_crowd(loop, [*generating, embedded])
    timing = last_delta(loop, "embedded").timing
    assert timing is not None
    assert timing.preemptions > 0
    assert getattr(loop.scheduler.stats(), f"preemptions_{mode}") > 0
    starts = [s.start for plan in executor.plans for s in plan.slices if s.wants is SUM]
    again = 0 in starts[1:]
    assert again == (mode == "recompute"), "after a swap it goes on where it was"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1 << 30),
    block_size=st.sampled_from([8, 16, 32]),
    budget=st.sampled_from([7, 16, 64, 2048]),
    max_num_seqs=st.sampled_from([1, 3, 64]),
    depth=st.sampled_from([0, 1, 3]),
    preemption=st.sampled_from(["auto", "recompute", "swap"]),
    host_tokens=st.sampled_from([0, 64, 1024]),
    caching=st.booleans(),
)
def test_embeddings_do_not_depend_on_the_machine(
    seed: int,
    block_size: int,
    budget: int,
    max_num_seqs: int,
    depth: int,
    preemption: str,
    host_tokens: int,
    caching: bool,
) -> None:
    executor = FakeExecutor(
        num_blocks=MAX_MODEL_LEN // block_size + 1,
        num_host_blocks=host_tokens // block_size,
        block_size=block_size,
        max_model_len=MAX_MODEL_LEN,
    )
    loop = Loop(
        executor,
        depth=depth,
        budget=budget,
        max_num_seqs=max_num_seqs,
        preemption=preemption,
        prefix_caching=caching,
    )
    check_crowd(loop, crowd(8, seed=seed))


@pytest.mark.parametrize(("pooling", "cached"), [(MEAN, 0), (LAST, 48)], ids=["mean", "last"])
def test_only_the_last_token_needs_no_other_position_computed(
    pooling: PoolingParams, cached: int
) -> None:
    loop = Loop()
    first = request("first", range(1, 61), sampling=SamplingParams(max_tokens=1))
    second = request("second", range(1, 61), pooling=pooling)
    loop.run(first)
    loop.run(second)
    delta = last_delta(loop, "second")
    assert delta.embedding == pooled(second)
    assert delta.cached_tokens == cached
    assert loop.scheduler.stats().prefix_queries == (60 if pooling is MEAN else 120)


def test_what_a_mean_has_computed_is_found_by_others() -> None:
    loop = Loop()
    loop.run(request("first", range(1, 61), pooling=MEAN))
    loop.run(request("second", range(1, 61), sampling=SamplingParams(max_tokens=1)))
    assert loop.choices["second", 0].cached_tokens == 48


def test_an_aborted_embedding_leaves_nothing() -> None:
    for index in (None, 0):
        loop = Loop(depth=1, budget=16)
        loop.add(request("a", range(1, 100), pooling=MEAN))
        loop.step()
        loop.scheduler.abort("a", index)
        while loop.in_flight:
            assert loop.land() == []
        loop.check_idle()


@pytest.mark.parametrize("what", ["failing_slices", "failing_steps"])
def test_a_failure_ends_that_embedding_alone(what: str) -> None:
    loop = Loop(budget=16)
    loop.add(request("a", range(1, 41), pooling=MEAN))
    loop.step()
    setattr(loop.executor, what, 1)
    good = request("good", range(1, 50), pooling=MEAN)
    loop.run(good)
    assert last_delta(loop, "a").finish_reason is FinishReason.ERROR
    assert last_delta(loop, "a").error
    assert last_delta(loop, "good").embedding == pooled(good)


def test_an_executor_that_gives_no_hidden_state_is_found_out() -> None:
    loop = Loop()
    loop.add(request("a", [1, 2, 3], pooling=MEAN))
    plan = loop.plan()
    assert plan is not None
    loop.in_flight.clear()
    empty = StepOutput(number=plan.number, results=(SliceResult(sequence=0),))
    (delta,) = loop.scheduler.commit(plan, empty, 1.0)
    assert delta.error == "the executor gave no hidden state for this sequence"
    loop.check_idle()


def test_a_request_resumed_after_a_crash_begins_again() -> None:
    """It has emitted nothing, so the front end submits it as it was."""
    asked = request("a", range(1, 41), pooling=MEAN)
    first = Loop(budget=16)
    first.add(asked)
    first.step()
    second = Loop(budget=16)
    second.run(replace(asked))
    assert last_delta(second, "a").embedding == pooled(asked)
