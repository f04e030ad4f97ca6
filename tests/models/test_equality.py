"""The whole engine against transformers, and against itself under every way of scheduling.

In float32 a request's tokens depend on the request alone: not on blocks, budgets, the crowd
around it, preemption or overlap. Greedy ones are those of transformers, token for token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from octavo.engine.assembly import build_engine
from octavo.engine.bundled import TARGET
from octavo.engine.config import EngineConfig
from octavo.engine.params import Request, SamplingParams
from octavo.engine.step import StepStats, TokenLogprobs

from ..e2e.prompts import mixed_prompts

NEW_TOKENS = 24
BLOCK_BYTES = 6 * 2 * 16 * 2 * 64 * 4  # of 16 tokens of the bundled model in float32
WAYS = {
    "as by default": {},
    "one step ahead": {"overlap": "on"},
    "one after the other": {"max_num_seqs": 1, "overlap": "off", "prefix_caching": False},
    "small blocks, small budget": {"block_size": 8, "max_num_batched_tokens": 16, "overlap": "off"},
    "all swapped": {
        "block_size": 32,
        "max_num_batched_tokens": 64,
        "kv_memory": 34 * BLOCK_BYTES,
        "swap_space": 300 * BLOCK_BYTES,
        "preemption": "swap",
        "overlap": "on",
    },
    "all recomputed": {"kv_memory": 34 * BLOCK_BYTES, "preemption": "recompute", "overlap": "on"},
}
SAMPLED = (
    SamplingParams(temperature=1.0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=2),
    SamplingParams(temperature=0.8, top_p=0.9, max_tokens=NEW_TOKENS, ignore_eos=True, n=4),
    SamplingParams(
        temperature=0.9,
        top_k=50,
        min_p=0.01,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        repetition_penalty=1.2,
        max_tokens=NEW_TOKENS,
        min_tokens=10,
    ),
)


@dataclass
class Answer:
    """What came of one choice."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)


def requests() -> list[Request]:
    """Greedy ones with log-probabilities, and one in three sampled."""
    greedy = SamplingParams(
        temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=3, prompt_logprobs=1
    )
    found = []
    for number, prompt in enumerate(mixed_prompts(TARGET, count=18, longest=240, seed=3)):
        sampled = number % 3 == 2
        found.append(
            Request(
                id=f"r{number}",
                prompt_token_ids=tuple(prompt),
                sampling=SAMPLED[number // 3 % len(SAMPLED)] if sampled else greedy,
                seed=1000 + number,
                arrival=float(number),
            )
        )
    return found


def answers(**settings: object) -> tuple[dict[tuple[str, int], Answer], StepStats]:
    """All requests through one engine, together as far as its settings allow."""
    config = EngineConfig(
        model=str(TARGET),
        **{  # type: ignore[arg-type]
            "dtype": "float32",
            "threads": 1,
            "max_model_len": 288,
            "kv_memory": 400 * BLOCK_BYTES,
            **settings,
        },
    )
    engine, _ = build_engine(config, lambda stage, done, total: None)
    found: dict[tuple[str, int], Answer] = {}
    try:
        for request in requests():
            engine.add(request)
        while not engine.idle:
            for delta in engine.step().deltas:
                assert delta.error is None, delta
                answer = found.setdefault((delta.request_id, delta.index), Answer())
                answer.token_ids += delta.token_ids
                answer.logprobs += delta.logprobs
                answer.prompt_logprobs += delta.prompt_logprobs
        engine.scheduler.check()
        return found, engine.stats()
    finally:
        engine.stop()


Expected = dict[tuple[str, int], Answer]


@pytest.fixture(scope="module")
def by_default() -> Iterator[Expected]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield answers(**WAYS["as by default"])[0]
    torch.set_num_threads(threads)


def test_greedy_is_what_transformers_says(by_default: Expected) -> None:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    greedy = [request for request in requests() if request.sampling.greedy]
    assert len(greedy) == 12
    for request in greedy:
        check_against(model, request, by_default[request.id, 0])


@torch.inference_mode()
def check_against(model: PreTrainedModel, request: Request, answer: Answer) -> None:
    """One forward pass over prompt + output shows each step of transformers' greedy search: as
    long as every token so far was its choice, the next row is what it would see."""
    prompt, output = list(request.prompt_token_ids), answer.token_ids
    assert len(output) == NEW_TOKENS
    rows = model(torch.tensor([prompt + output])).logits[0].log_softmax(-1)
    told = rows[len(prompt) - 1 : -1]  # [new tokens, vocabulary]
    assert output == told.argmax(-1).tolist()
    for named, row in zip(answer.logprobs, told, strict=True):
        assert abs(named.logprob - row[named.token_id].item()) < 1e-4
        assert named.logprob == named.top_logprobs[0]
        assert named.top_logprobs == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    for position, named in enumerate(answer.prompt_logprobs):
        assert named.token_id == prompt[position + 1]
        assert abs(named.logprob - rows[position, named.token_id].item()) < 1e-4
    assert len(answer.prompt_logprobs) == len(prompt) - 1


@pytest.mark.parametrize("way", [way for way in WAYS if way != "as by default"])
def test_every_way_of_scheduling_gives_the_same_tokens(way: str, by_default: Expected) -> None:
    found, stats = answers(**WAYS[way])
    assert found.keys() == by_default.keys()
    for key, answer in found.items():
        assert answer.token_ids == by_default[key].token_ids, key
        assert [n.token_id for n in answer.prompt_logprobs] == [
            n.token_id for n in by_default[key].prompt_logprobs
        ]
    if way == "all swapped":
        assert stats.preemptions_swap > 0
        assert stats.blocks_swapped_out > 0
        assert stats.blocks_swapped_in > 0
    if way == "all recomputed":
        assert stats.preemptions_recompute > 0
    if way != "one after the other":
        assert stats.blocks_copied > 0  # n = 4 forks
