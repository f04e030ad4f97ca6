"""API contract, section 10, where it takes a real sampler: the bundled model in this process."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from octavo import LLM, SamplingParams

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(dtype="float32", threads=1, max_model_len=256) as model:
        yield model


def tokens(llm: LLM, **params: Any) -> list[tuple[int, ...]]:
    asked = SamplingParams(**{"max_tokens": 16, "ignore_eos": True, **params})
    return [choice.token_ids for choice in llm.generate(PROMPT, asked)[0].outputs]


@pytest.mark.parametrize(
    "params",
    [{"top_k": 1}, {"top_p": 1e-9}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-4}],
    ids=str,
)
def test_s10_what_leaves_only_the_likeliest_is_greedy(llm: LLM, params: dict[str, Any]) -> None:
    greedy = tokens(llm, temperature=0)
    assert tokens(llm, **{"temperature": 1.0, **params}) == greedy


def test_s10_greedy_is_independent_of_seed_and_logprobs(llm: LLM) -> None:
    greedy = tokens(llm, temperature=0)
    assert tokens(llm, temperature=0, seed=5) == greedy
    assert tokens(llm, temperature=0, logprobs=5) == greedy


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63 - 1])
def test_s10_any_int64_is_a_seed(llm: LLM, seed: int) -> None:
    first = tokens(llm, seed=seed, n=3)
    assert tokens(llm, seed=seed, n=3) == first
    assert len(set(first)) == 3
    assert tokens(llm, seed=seed) == first[:1]  # choice 0 of n is that of n = 1


def test_s10_without_a_seed_answers_vary(llm: LLM) -> None:
    assert len({tokens(llm)[0] for _ in range(4)}) > 1


def test_s10_frequencies_follow_the_reported_probabilities(llm: LLM) -> None:
    """A chi-square test over the first token, on the tokens expected 20 times or more."""
    draws = 128 * 8
    one = llm.generate(PROMPT, SamplingParams(max_tokens=1, logprobs=64))[0].outputs[0]
    (scored,) = one.logprobs
    expected = {
        token: draws * math.exp(logprob)
        for token, logprob in zip(scored.top_ids, scored.top_logprobs, strict=True)
        if draws * math.exp(logprob) >= 20
    }
    found = Counter(
        choice[0] for seed in range(8) for choice in tokens(llm, n=128, seed=seed, max_tokens=1)
    )
    rest = draws - sum(expected.values())
    others = draws - sum(found[token] for token in expected)
    distance = (others - rest) ** 2 / rest
    distance += sum((found[token] - count) ** 2 / count for token, count in expected.items())
    freedom = len(expected)
    assert freedom >= 3
    # Beyond mean + 5 standard deviations of the chi-square distribution; the seeds are fixed.
    assert distance < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("params", [{"top_k": 3}, {"top_p": 0.3}], ids=str)
def test_s10_truncation_never_leaves_its_support(llm: LLM, params: dict[str, Any]) -> None:
    one = llm.generate(PROMPT, SamplingParams(max_tokens=1, logprobs=64))[0].outputs[0]
    (scored,) = one.logprobs
    allowed, mass = set(), 0.0
    for rank, (token, logprob) in enumerate(
        zip(scored.top_ids, scored.top_logprobs, strict=True), 1
    ):
        if rank > params.get("top_k", 64) or mass >= params.get("top_p", 1.0):
            break
        allowed.add(token)
        mass += math.exp(logprob)
    found = {choice[0] for choice in tokens(llm, n=128, seed=1, max_tokens=1, **params)}
    assert found == allowed
