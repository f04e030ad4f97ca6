"""Not only the tokens: the log-probabilities of a request are the same bits alone, in a crowd, with
a cold or a warm prefix cache, and however its prompt is cut."""

from __future__ import annotations

from typing import Any

import pytest

from octavo import LLM, SamplingParams
from octavo.engine.bundled import TARGET
from octavo.engine.step import TokenLogprobs

from .prompts import mixed_prompts

PARAMS = SamplingParams(max_tokens=24, temperature=0, logprobs=3, ignore_eos=True)
KV_BYTES_PER_TOKEN = 6 * 2 * 2 * 64 * 2  # layers, key and value, heads, head_dim, bfloat16
WAYS: dict[str, dict[str, Any]] = {
    "a crowd": {"overlap": "on"},
    "chunks of 16, blocks of 8": {"max_num_batched_tokens": 16, "block_size": 8},
    "chunks of 50": {"max_num_batched_tokens": 50, "overlap": "on"},
    "no prefix cache, in step": {"prefix_caching": False, "overlap": "off", "block_size": 32},
    "a tight cache": {
        "kv_memory": 1100 * KV_BYTES_PER_TOKEN * 2,
        "swap_space": 64 << 20,
        "preemption": "swap",
        "overlap": "on",
    },
}


def prompts() -> list[list[int]]:
    """Of 1 to 400 tokens; the last eight share 200."""
    found = mixed_prompts(TARGET, count=24, longest=400, seed=3)
    prefix = mixed_prompts(TARGET, count=2, longest=200, seed=4)[1]
    return found[:16] + [prefix + prompt[:40] for prompt in found[16:]]


PROMPTS = prompts()
Scores = list[tuple[TokenLogprobs, ...]]


def scores(llm: LLM, prompts: list[list[int]]) -> Scores:
    return [output.outputs[0].logprobs for output in llm.generate(prompts, PARAMS)]


def model(dtype: str, threads: int, **settings: Any) -> LLM:
    return LLM(dtype=dtype, threads=threads, max_model_len=512, **settings)


@pytest.fixture(scope="module", params=[("float32", 1), ("float32", 2), ("bfloat16", 1)], ids=str)
def alone(request: pytest.FixtureRequest) -> tuple[tuple[str, int], Scores]:
    with model(*request.param, prefix_caching=False) as llm:
        return request.param, [scores(llm, [prompt])[0] for prompt in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_log_probabilities_are_the_same_bits(
    alone: tuple[tuple[str, int], Scores], way: str
) -> None:
    (dtype, threads), expected = alone
    with model(dtype, threads, **WAYS[way]) as llm:
        assert scores(llm, PROMPTS) == expected
        assert scores(llm, PROMPTS) == expected  # where there is a prefix cache, it is warm now
        if way == "a crowd":
            assert llm.stats.prefix_hits > 0
            assert [scores(llm, [prompt])[0] for prompt in PROMPTS] == expected
        if way == "a tight cache" and dtype == "float32":
            assert llm.stats.preemptions_swap > 0
