"""API contract, sections 9 to 11: metrics, repetition, and requests as real clients write them."""

from __future__ import annotations

from typing import Any

import pytest

from .serving import chunks, saying, score, serve
from .test_api_cancellation import count
from .test_api_engine import answer_of, running

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BOTH = pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
USER = {"role": "user", "content": "hello"}


def start(path: str) -> dict[str, Any]:
    return {"prompt": "once"} if path == COMPLETIONS else {"messages": [USER]}


# --- section 9 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 4, 100])
async def test_s9_generated_tokens_are_those_that_the_answers_say(at_once: int) -> None:
    server = serve(saying("once upon a time", at_once=at_once))
    spent = 0
    for fields in ({"stop": "upo"}, {"max_tokens": 3}, {"n": 2, "best_of": 3}):
        spent += (await server.complete(**fields))["usage"]["completion_tokens"]
    events = await server.events(COMPLETIONS, stop="upo", stream_options={"include_usage": True})
    spent += events[-1]["usage"]["completion_tokens"]
    assert await count(server, "octavo:generation_tokens_total") == spent


async def test_s9_every_histogram_of_time_is_filled_by_an_answer() -> None:
    async with running() as (client, _):
        await answer_of(client, max_tokens=5, n=2, ignore_eos=True)
        lines = (await client.get("/metrics")).text.splitlines()
    counted = {
        line.partition("{")[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("octavo:") and "_count{" in line
    }
    for name, expected in (
        ("time_to_first_token_seconds", 1),
        ("inter_token_latency_seconds", 2 * 4),  # two choices of five tokens
        ("e2e_request_latency_seconds", 1),
        ("request_queue_time_seconds", 1),
        ("request_prefill_time_seconds", 1),
        ("request_decode_time_seconds", 1),
    ):
        assert counted[f"octavo:{name}_count"] == expected, name


# --- section 10, over the real planning wing -----------------------------------------------------


async def test_s10_greedy_answers_know_nothing_of_seeds_logprobs_or_neighbours() -> None:
    async with running() as (client, _):
        body = {"prompt": "once", "max_tokens": 30}
        texts = {
            (await answer_of(client, **body, **fields))["choices"][0]["text"]
            for fields in (
                {"temperature": 0},
                {"temperature": 0, "seed": 1},
                {"temperature": 0, "seed": -(2**63)},
                {"temperature": 0, "logprobs": 5},
                {"temperature": 0, "n": 2},
                {"temperature": 0, "top_p": 0.5, "min_p": 0.1},
                {"top_k": 1, "seed": 3},
            )
        }
        assert len(texts) == 1
        sampled = (await answer_of(client, **body, seed=1))["choices"][0]["text"]
        assert sampled not in texts


async def test_s10_every_int64_is_a_seed_of_its_own() -> None:
    seeds = (0, 1, -1, 2**63 - 1, -(2**63), 2**32, -(2**32))
    async with running() as (client, _):
        texts = {}
        for seed in seeds:
            body = {"seed": seed, "max_tokens": 20}
            texts[seed] = (await answer_of(client, **body))["choices"][0]["text"]
            assert (await answer_of(client, **body))["choices"][0]["text"] == texts[seed]
        assert len(set(texts.values())) == len(seeds)


async def test_s10_a_seeded_prompt_is_the_same_wherever_it_stands_in_a_list() -> None:
    async with running() as (client, _):
        body = {"seed": 9, "max_tokens": 20, "n": 2, "logprobs": 1}
        listed = (await answer_of(client, prompt=["b", "a", "b"], **body))["choices"]
        alone = (await answer_of(client, prompt="b", **body))["choices"]
        for place in (0, 4):
            for mine, other in zip(alone, listed[place : place + 2], strict=True):
                assert {**mine, "index": 0} == {**other, "index": 0}


# --- section 11 ----------------------------------------------------------------------------------


async def test_s11_guidellm() -> None:
    server = serve(saying("abcdefgh"))
    for path in ("/health", "/v1/models"):
        assert (await server.http.get(path)).status_code == 200
    for path in (COMPLETIONS, CHAT):
        events = await server.events(
            path,
            model="tiny",
            stream_options={"include_usage": True, "continuous_usage_stats": True},
            max_tokens=5,
            max_completion_tokens=5,
            stop=None,
            ignore_eos=True,
        )
        assert server.engine.requests[-1].sampling.ignore_eos
        assert events[-1]["choices"] == []
        assert events[-1]["usage"]["completion_tokens"] == 5


async def test_s11_vllm_bench_serve() -> None:
    server = serve(saying("abcdefgh"))
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": None,
        "ignore_eos": True,
        "max_completion_tokens": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    response = await server.post(CHAT, body, headers={"x-request-id": "bench-0"})
    assert response.headers["x-request-id"] == "bench-0"
    *events, last = chunks(response.text)
    assert last["choices"] == []
    assert all(event["choices"] for event in events)
    assert server.engine.requests[-1].sampling.ignore_eos


@BOTH
async def test_s11_web_uis_send_fields_of_their_own(path: str) -> None:
    server = serve(saying("abc"))
    body = {
        **start(path),
        "chat_id": "1",
        "session_id": {"a": 1},
        "features": {"web_search": False},
        "background_tasks": {"title_generation": True},
        "stop": [f"<stop {i}>" for i in range(30)],
    }
    response = await server.post(path, body)
    assert response.status_code == 200
    await server.refusal(COMPLETIONS, {"prompt": "a", "suffix": "b"})


async def test_s11_langchain_says_what_it_does_not_want() -> None:
    server = serve(saying("abc"))
    body = {"messages": [USER], "stream": False, "n": 1, "temperature": None}
    assert (await server.post(CHAT, body)).status_code == 200
    events = await server.events(CHAT, n=1, stream_options={"include_usage": True})
    assert events[-1]["usage"]


async def test_s11_scores_of_lm_eval() -> None:
    """Contexts as ids, scored with their continuations: echo, and one token that is dropped."""
    server = serve(saying("ab"))
    prompts = [[20, 21, 22], [23, 24]]
    answer = await server.complete(
        prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    )
    for choice, prompt in zip(answer["choices"], prompts, strict=True):
        found = choice["logprobs"]
        assert len(found["token_logprobs"]) == len(prompt) + 1
        expected = [score(place, token).logprob for place, token in enumerate(prompt[1:])]
        assert found["token_logprobs"][1:-1] == expected
        assert found["top_logprobs"][0] is None
        for top, logprob in zip(
            found["top_logprobs"][1:], found["token_logprobs"][1:], strict=True
        ):
            assert logprob in top.values()
