"""API contract, section 11: the official client, unchanged, against a real port."""

from __future__ import annotations

import openai
import pytest

from octavo.engine.step import Delta

from .serving import encoded, listening, saying, serve

SAID = "there was a naïve 狐狸."
MESSAGES = [{"role": "user", "content": "hello"}]


def client_of(url: str, key: str = "x") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


async def test_s11_openai_python_chat_plain_and_streamed() -> None:
    async with listening(serve(saying(SAID))) as url, client_of(url) as client:
        plain = await client.chat.completions.create(model="tiny", messages=MESSAGES)  # type: ignore[arg-type]
        assert plain.choices[0].message.content == SAID
        assert plain.usage is not None
        assert plain._request_id
        stream = await client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,  # type: ignore[arg-type]
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            top_logprobs=2,
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == SAID
        assert chunks[-1].usage == plain.usage


async def test_s11_openai_pythons_stream_helper() -> None:
    async with listening(serve(saying(SAID))) as url, client_of(url) as client:
        async with client.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:  # type: ignore[arg-type]
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == SAID
        assert kinds[-1] == "content.done" or "content.done" in kinds


async def test_s11_openai_python_completions_models_and_headers() -> None:
    async with listening(serve(saying(SAID), api_key=("k",))) as url, client_of(url, "k") as client:
        names = [model.id async for model in client.models.list()]
        assert names == ["tiny", "org/alias"]
        assert (await client.models.retrieve("org/alias")).id == "org/alias"
        answer = await client.completions.create(
            model="org/alias", prompt=["a", "b"], n=2, logprobs=3, max_tokens=50, echo=True
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.choices[2].text == "b" + SAID
        stream = await client.completions.create(
            model="tiny", prompt="a", stream=True, max_tokens=50
        )
        assert "".join([chunk.choices[0].text async for chunk in stream]) == SAID


async def test_s11_openai_python_raises_its_own_errors() -> None:
    def breaks(request: object) -> list[Delta]:
        return [
            Delta(request_id="", token_ids=(encoded("x")[0],)),
            Delta(request_id="", error="broken"),
        ]

    async with listening(serve(breaks, api_key=("k",))) as url:
        async with client_of(url, "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.retrieve("tiny")
        async with client_of(url, "k") as client:
            with pytest.raises(openai.NotFoundError) as missing:
                await client.completions.create(model="no", prompt="a")
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as wrong:
                await client.completions.create(model="tiny", prompt="a", temperature=9)
            assert wrong.value.param == "temperature"
            with pytest.raises(openai.BadRequestError) as long:
                await client.completions.create(model="tiny", prompt="a", max_tokens=5000)
            assert long.value.code == "context_length_exceeded"
            stream = await client.completions.create(model="tiny", prompt="a", stream=True)
            with pytest.raises(openai.APIError):
                async for _ in stream:
                    pass


async def test_s11_what_other_clients_send_is_served() -> None:
    async with listening(serve(saying(SAID))) as url, client_of(url) as client:
        bench = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
            max_tokens=7,
            max_completion_tokens=7,
            stop=None,
            extra_body={
                "repetition_penalty": 1.0,
                "logprobs": None,
                "ignore_eos": True,
                "chat_id": "1",
                "features": {"web": False},
            },
        )
        assert bench.usage is not None
        assert bench.usage.completion_tokens == 7
        harness = await client.completions.create(
            model="tiny",
            prompt=[[20, 21, 22], [23, 24]],
            echo=True,
            logprobs=1,
            max_tokens=1,
            temperature=0,
            seed=1234,
        )
        for choice in harness.choices:
            assert choice.logprobs is not None
            assert choice.logprobs.token_logprobs is not None
            assert choice.logprobs.token_logprobs[0] is None
