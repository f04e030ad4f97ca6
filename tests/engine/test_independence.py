"""The tokens of a request depend on its prompt, parameters and seed, and on nothing else.

The fake executor's tokens are hashes of the KV cells a block table leads to, so that this holds
only while every copy, swap, fork and reuse of blocks is right.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.engine.params import Request, SamplingParams
from octavo.engine.step import StepStats

from ..fakes.executor import FakeExecutor
from .loop import Choice, Loop, request

MAX_MODEL_LEN = 192
Seen = dict[tuple[str, int], tuple[list[int], object]]


def crowd(count: int, *, n: int = 1, beam_width: int = 0, seed: int = 0) -> list[Request]:
    """Requests with shared and own prefixes, greedy and sampled, of many lengths."""
    draw = random.Random(seed)
    shared = [draw.randrange(1, 500) for _ in range(70)]
    requests = []
    for number in range(count):
        own = [draw.randrange(1, 500) for _ in range(draw.randrange(1, 60))]
        prompt = shared[: draw.choice((0, 16, 33, 64, 70))] + own
        requests.append(
            request(
                f"r{number}",
                prompt,
                seed=draw.randrange(1 << 40),
                arrival=float(number),
                sampling=SamplingParams(
                    n=n,
                    beam_width=beam_width,
                    temperature=draw.choice((0.0, 1.0)),
                    max_tokens=draw.randrange(1, 50),
                    stop_token_ids=(17, 18),
                    logprobs=draw.choice((None, 2)),
                    prompt_logprobs=draw.choice((None, None, 1)),
                ),
            )
        )
    return requests


def seen(choices: dict[tuple[str, int], Choice]) -> Seen:
    return {
        key: (c.token_ids, (c.finish_reason, tuple(c.logprobs), tuple(c.prompt_logprobs)))
        for key, c in choices.items()
    }


def alone(requests: list[Request]) -> Seen:
    """What each request gives in an engine of its own, with room for everything."""
    every: Seen = {}
    for item in requests:
        loop = Loop(FakeExecutor(max_model_len=MAX_MODEL_LEN, eos_rate=0.02, num_blocks=600))
        every |= seen(loop.run(item))
    return every


def tiny(block_size: int, host_tokens: int = 0, **knobs: float) -> FakeExecutor:
    """Room for one sequence of full length and not much more."""
    return FakeExecutor(
        num_blocks=MAX_MODEL_LEN // block_size + 1,
        num_host_blocks=host_tokens // block_size,
        block_size=block_size,
        max_model_len=MAX_MODEL_LEN,
        eos_rate=0.02,
        **knobs,  # type: ignore[arg-type]
    )


def total(stats: list[StepStats], counter: str) -> int:
    return sum(getattr(one, counter) for one in stats)


@pytest.mark.parametrize("n", [1, 4])
def test_tokens_do_not_depend_on_anything_but_the_request(n: int) -> None:
    requests = crowd(16, n=n)
    expected = alone(requests)
    assert len(expected) == 16 * n
    stats: list[StepStats] = []
    chunked = 0
    for depth in (0, 1):
        for block_size in (8, 16, 32):
            swapping = tiny(block_size, 512, swap_seconds_per_block=1e-6)
            for executor, budget, preemption, caching in (
                (
                    FakeExecutor(block_size=block_size, eos_rate=0.02, max_model_len=192),
                    2048,
                    "auto",
                    True,
                ),
                (
                    FakeExecutor(block_size=block_size, eos_rate=0.02, max_model_len=192),
                    16,
                    "auto",
                    False,
                ),
                (tiny(block_size), 64, "recompute", False),
                (tiny(block_size, 512), 16, "swap", True),
                (swapping, 2048, "auto", False),
            ):
                loop = Loop(
                    executor,
                    depth=depth,
                    budget=budget,
                    preemption=preemption,
                    prefix_caching=caching,
                )
                assert seen(loop.run(*requests)) == expected
                stats.append(loop.scheduler.stats())
                chunked += sum(
                    piece.count > 1 and not piece.wants
                    for plan in executor.plans
                    for piece in plan.slices
                )
    assert chunked > 100
    for counter in (
        "preemptions_recompute",
        "preemptions_swap",
        "blocks_swapped_out",
        "blocks_swapped_in",
        "prefix_hits",
    ):
        assert total(stats, counter) > 10, counter
    assert n == 1 or total(stats, "blocks_copied") > 10


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1 << 30),
    n=st.sampled_from([1, 1, 2, 4]),
    block_size=st.sampled_from([8, 16, 32]),
    budget=st.sampled_from([16, 64, 2048]),
    max_num_seqs=st.sampled_from([1, 3, 64]),
    depth=st.sampled_from([0, 1, 3]),
    preemption=st.sampled_from(["auto", "recompute", "swap"]),
    host_tokens=st.sampled_from([0, 64, 1024]),
    caching=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority"]),
)
def test_tokens_do_not_depend_on_the_machine(
    seed: int,
    n: int,
    block_size: int,
    budget: int,
    max_num_seqs: int,
    depth: int,
    preemption: str,
    host_tokens: int,
    caching: bool,
    policy: str,
) -> None:
    requests = [replace(r, priority=i % 3) for i, r in enumerate(crowd(6, n=n, seed=seed))]
    loop = Loop(
        tiny(block_size, host_tokens),
        depth=depth,
        budget=budget,
        max_num_seqs=max_num_seqs,
        preemption=preemption,
        prefix_caching=caching,
        policy=policy,
    )
    assert seen(loop.run(*requests)) == alone(requests)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_beams_do_not_depend_on_the_machine(depth: int) -> None:
    requests = crowd(5, n=2, beam_width=4)
    expected = alone(requests)
    assert len(expected) == 10
    for max_num_seqs in (1, 3, 64):
        for host_tokens in (0, 256):
            loop = Loop(
                tiny(8, host_tokens, swap_seconds_per_block=1e-6),
                depth=depth,
                budget=64,
                max_num_seqs=max_num_seqs,
            )
            assert seen(loop.run(*requests)) == expected
            stats = loop.scheduler.stats()
            assert stats.preemptions_recompute + stats.preemptions_swap > 10


def test_little_of_the_cache_is_wasted() -> None:
    """Cells reserved but not written: below 5 % at a mean length of 160 and more."""
    executor = FakeExecutor(num_blocks=2000, max_model_len=512)
    loop = Loop(executor, budget=1 << 14, checked=False)
    draw = random.Random(3)
    loop.add(
        *(
            request(
                f"r{number}",
                [draw.randrange(1, 500) for _ in range(draw.randrange(120, 201))],
                sampling=SamplingParams(max_tokens=100, ignore_eos=True),
            )
            for number in range(64)
        )
    )
    waste = []
    for _ in range(90):
        loop.step()
        lengths = [len(context) for context in executor.contexts().values()]
        assert sum(lengths) / 64 >= 150
        waste.append(1 - sum(lengths) / (loop.scheduler.stats().blocks_used * 16))
    assert 0 < sum(waste) / len(waste) < 0.05
