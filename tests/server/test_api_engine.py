"""The whole server over the real planning wing: engine in a thread, fake executor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from octavo.engine.assembly import build_threaded_engine
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.config import EngineConfig
from octavo.server.app import create_app
from octavo.server.models import ModelPool
from octavo.server.settings import Settings

from ..fakes.executor import FakeExecutor
from .serving import chunks, encoded, model
from .vocabularies import byte_level

COMPLETIONS = "/v1/completions"


@contextlib.asynccontextmanager
async def running(
    *, poison: int | None = None, **executor: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, AsyncEngine]]:
    fake = FakeExecutor(
        vocab_size=byte_level().vocab_size,
        max_model_len=512,
        eos_token_ids=(1,),
        **{"num_blocks": 128, **executor},
    )
    fake.poison = poison
    engine = build_threaded_engine(EngineConfig(model="fake"), fake)
    app = create_app(engine, ModelPool((model(),)), Settings())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
        await engine.start(lambda *_: None)
        try:
            yield client, engine
        finally:
            await engine.stop()


async def idle(engine: AsyncEngine) -> None:
    """Until the engine says that it holds nothing."""
    async with asyncio.timeout(20):
        while engine.stats.running or engine.stats.waiting or engine.stats.blocks_used:
            await asyncio.sleep(0.005)


async def answer_of(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post(COMPLETIONS, json={"prompt": "once upon", **body})
    assert response.status_code == 200, response.text
    return response.json()


async def test_s10_a_request_repeats_alone_and_in_a_crowd() -> None:
    async with running() as (client, engine):
        for fields in ({"temperature": 0}, {"seed": 0}, {"seed": -7, "n": 3}):
            body = {"prompt": "once", "max_tokens": 40, **fields}
            alone = (await answer_of(client, **body))["choices"]
            crowd = await asyncio.gather(
                *(answer_of(client, **body) for _ in range(5)),
                *(answer_of(client, prompt=f"other {i}", max_tokens=50) for i in range(10)),
            )
            assert all(answer["choices"] == alone for answer in crowd[:5])
        await idle(engine)


async def test_s10_choices_differ_and_choice_0_is_that_of_n_1() -> None:
    async with running() as (client, _):
        many = (await answer_of(client, seed=5, n=4, max_tokens=30))["choices"]
        one = (await answer_of(client, seed=5, max_tokens=30))["choices"]
        texts = [choice["text"] for choice in many]
        assert len(set(texts)) == 4
        assert one[0]["text"] == texts[0]


async def test_s10_without_a_seed_answers_vary() -> None:
    async with running() as (client, _):
        answers = [await answer_of(client, max_tokens=30) for _ in range(3)]
        assert len({answer["choices"][0]["text"] for answer in answers}) == 3


@pytest.mark.parametrize("n", [1, 3])
async def test_s10_a_seeded_stream_is_the_plain_answer(n: int) -> None:
    async with running() as (client, _):
        body = {"prompt": ["one", "two"], "seed": 3, "n": n, "max_tokens": 60, "logprobs": 1}
        plain = (await answer_of(client, **body))["choices"]
        stream = await client.post(COMPLETIONS, json={**body, "stream": True})
        texts: dict[int, str] = {}
        for chunk in chunks(stream.text):
            choice = chunk["choices"][0]
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        assert texts == {choice["index"]: choice["text"] for choice in plain}


async def test_s5_cached_tokens_are_told() -> None:
    async with running() as (client, _):
        prompt = [20 + i % 200 for i in range(100)]
        first = (await answer_of(client, prompt=prompt))["usage"]["prompt_tokens_details"]
        second = (await answer_of(client, prompt=prompt))["usage"]["prompt_tokens_details"]
        assert first["cached_tokens"] == 0
        assert second["cached_tokens"] == 96


async def test_s7_a_stop_string_frees_the_choice_in_the_engine() -> None:
    ids = (*encoded("one STOP"), *encoded("x") * 400)
    async with running(script=lambda prompt: ids, seconds_per_step=0.005) as (client, engine):
        answer = await answer_of(client, stop="STOP", n=2, max_tokens=400)
        assert [choice["text"] for choice in answer["choices"]] == ["one ", "one "]
        counted = 2 * len(encoded("one STOP"))
        assert answer["usage"]["completion_tokens"] == counted
        await idle(engine)
        assert engine.stats.step < 300  # it would have gone on to 400


async def test_s6c_echoed_scores_are_complete_on_a_prefix_cache_hit() -> None:
    async with running() as (client, _):
        body = {"prompt": [20 + i % 200 for i in range(100)], "echo": True, "logprobs": 2}
        first = await answer_of(client, **body, max_tokens=1, temperature=0)
        again = await answer_of(client, **body, max_tokens=1, temperature=0)
        only = await answer_of(client, **body, max_tokens=0)
        scores = first["choices"][0]["logprobs"]
        assert again["choices"][0]["logprobs"] == scores
        assert only["choices"][0]["logprobs"]["token_logprobs"] == scores["token_logprobs"][:-1]


async def test_s9_a_client_that_leaves_frees_its_blocks() -> None:
    async with running(seconds_per_step=0.002) as (client, engine):
        asking = [
            asyncio.create_task(answer_of(client, prompt=["a", "b"], n=2, max_tokens=400))
            for _ in range(3)
        ]
        async with asyncio.timeout(20):
            while engine.stats.running < 12:
                await asyncio.sleep(0.005)
        for task in asking:
            task.cancel()
        await idle(engine)


async def test_s2_the_prefix_cache_is_separate_for_each_salt() -> None:
    async def cached(client: httpx.AsyncClient, salt: str | None) -> int:
        prompt = [20 + i % 200 for i in range(100)]
        answer = await answer_of(client, prompt=prompt, max_tokens=1, cache_salt=salt)
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    async with running() as (client, engine):
        for salt in (None, "a", "b"):
            assert await cached(client, salt) == 0
        for salt in (None, "a", "b"):
            assert await cached(client, salt) == 96
        await idle(engine)


async def test_s9_a_short_request_overtakes_a_long_one() -> None:
    said = tuple(encoded("x" * 400))
    async with running(seconds_per_step=0.002, script=lambda prompt: said) as (client, engine):
        long = asyncio.create_task(answer_of(client, max_tokens=400))
        async with asyncio.timeout(20):
            while not engine.stats.running:
                await asyncio.sleep(0.001)
        short = await answer_of(client, max_tokens=2)
        assert short["usage"]["completion_tokens"] == 2
        for path in ("/health", "/v1/models", "/metrics"):
            assert (await client.get(path)).status_code == 200
        assert not long.done()
        assert (await long)["usage"]["completion_tokens"] == 400
        await idle(engine)


async def test_s9_one_failing_request_fails_alone() -> None:
    (poison,) = encoded("q")
    said = tuple(encoded("x" * 60))
    async with running(poison=poison, script=lambda prompt: said) as (client, engine):
        fine = asyncio.create_task(answer_of(client, max_tokens=60))
        bad = await client.post(COMPLETIONS, json={"prompt": [poison], "max_tokens": 5})
        assert bad.status_code == 500
        assert bad.json()["error"]["type"] == "server_error"
        assert (await fine)["usage"]["completion_tokens"] == 60
        await idle(engine)
