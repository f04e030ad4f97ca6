"""One request, one answer: in float32 its tokens do not depend on what else runs, nor on how the
engine cuts time and memory. The bundled model, the real executor."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.engine.bundled import TARGET
from octavo.engine.step import StepStats

from .prompts import mixed_prompts

CONTEXT = 256
Prompts = list[list[int]]
Tokens = list[list[tuple[int, ...]]]  # [request][choice]


def requests() -> tuple[Prompts, list[SamplingParams]]:
    """32 requests: greedy and seeded, n = 1 and 4, with every kind of parameter among them; the
    last eight share a prefix of 100 tokens."""
    prompts = mixed_prompts(TARGET, count=32, longest=150, seed=3)
    prefix = mixed_prompts(TARGET, count=2, longest=100, seed=4)[1]
    prompts[24:] = [prefix + prompt[:20] for prompt in prompts[24:]]
    draw = random.Random(5)
    variety: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9, "n": 4},
        {"temperature": 1.3, "top_k": 40, "min_p": 0.02},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.9, "presence_penalty": 0.8, "frequency_penalty": 0.4, "n": 4},
    ]
    params = [
        SamplingParams(
            max_tokens=draw.randint(8, 40), seed=number, ignore_eos=True, **variety[number % 6]
        )
        for number in range(32)
    ]
    return prompts, params


PROMPTS, PARAMS = requests()


def answers(llm: LLM, prompts: Prompts, params: list[SamplingParams]) -> Tokens:
    return [
        [choice.token_ids for choice in output.outputs] for output in llm.generate(prompts, params)
    ]


def model(**settings: Any) -> LLM:
    """Without a target for the time of a step, the same steps on every machine."""
    fixed = {"dtype": "float32", "threads": 1, "max_model_len": CONTEXT, "itl_target": 0.0}
    return LLM(**{**fixed, **settings})


@pytest.fixture(scope="module")
def alone() -> Iterator[Tokens]:
    """Each request by itself, one after the other, without a prefix cache."""
    with model(prefix_caching=False, overlap="off") as llm:
        yield [
            answers(llm, [prompt], [params])[0]
            for prompt, params in zip(PROMPTS, PARAMS, strict=True)
        ]


@pytest.mark.parametrize("budget", [16, 64, 2048])
@pytest.mark.parametrize("block_size", [8, 16, 32])
def test_in_a_crowd(alone: Tokens, block_size: int, budget: int) -> None:
    settings = {"block_size": block_size, "max_num_batched_tokens": budget, "overlap": "on"}
    with model(**settings) as llm:
        assert answers(llm, PROMPTS, PARAMS) == alone
        stats = llm.stats
    assert stats.blocks_copied > 0
    assert stats.prefix_hits > 0
    assert stats.blocks_used == 0


def test_with_prompts_cut_to_the_time_that_streams_leave(alone: Tokens) -> None:
    with model(itl_target=0.002, prefix_caching=False) as llm:
        assert answers(llm, PROMPTS, PARAMS) == alone


def pressed(preemption: str, **settings: Any) -> LLM:
    """A KV cache that holds little more than one full-length sequence."""
    return model(
        kv_memory=26 * 16 * KV_BYTES_PER_TOKEN,
        swap_space=64 << 20,
        preemption=preemption,
        **settings,
    )


KV_BYTES_PER_TOKEN = 6 * 2 * 2 * 64 * 4  # layers, key and value, heads, head_dim, float32


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_with_a_cache_so_small_that_everything_gives_way(
    alone: Tokens, preemption: str, overlap: str
) -> None:
    with pressed(preemption, overlap=overlap, max_num_batched_tokens=64) as llm:
        assert answers(llm, PROMPTS, PARAMS) == alone
        stats = llm.stats
    if preemption == "swap":
        assert stats.preemptions_swap > 0
        assert stats.blocks_swapped_out > 0
        assert stats.blocks_swapped_in > 0
    else:
        assert stats.preemptions_recompute > 0
    assert stats.blocks_used == stats.host_blocks_used == 0


def test_ends_that_are_seen_a_step_late_are_where_they_would_be() -> None:
    """Stop strings, stop ids and the end of sequence, while the next step is under way."""
    params = [
        replace(one, ignore_eos=False, stop=("e", "the"), stop_token_ids=(300 + number,))
        for number, one in enumerate(PARAMS)
    ]
    told = []
    for overlap in ("off", "on"):
        with model(overlap=overlap) as llm:
            told.append([output.outputs for output in llm.generate(PROMPTS, params)])
            assert llm.stats.blocks_used == 0
    assert told[0] == told[1]
    reasons = {choice.stop_reason for outputs in told[0] for choice in outputs}
    assert {"e", None} <= reasons


def test_the_choices_of_one_seed_differ_and_the_first_is_that_of_n_1(alone: Tokens) -> None:
    with model() as llm:
        single = [replace(params, n=1) for params in PARAMS]
        firsts = [choices[0] for choices in answers(llm, PROMPTS, single)]
    assert firsts == [choices[0] for choices in alone]
    several = [choices for choices in alone if len(choices) > 1]
    assert several
    assert all(len(set(choices)) == len(choices) for choices in several)


def test_chunks_really_happen() -> None:
    """With a budget of 16 a prompt of 150 tokens takes ten steps at least."""
    with model(max_num_batched_tokens=16, prefix_caching=False) as llm:
        before: StepStats = llm.stats
        llm.generate([PROMPTS[1]], SamplingParams(max_tokens=1, temperature=0))
        assert len(PROMPTS[1]) == 150
        assert llm.stats.step - before.step >= 10
