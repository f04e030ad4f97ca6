"""The openai package: completions and chats, plain, streamed, asynchronous, through helpers."""

from __future__ import annotations

import asyncio
from typing import Any

import cases
import openai
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

MODEL = "octavo"
SAME: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
    "max_tokens": 24,
    "temperature": 0,
    "extra_body": {"ignore_eos": True},  # all 24, whatever the model says
}
# The helpers refuse to make an answer whole that was cut by length; one of these soon comes.
ENDING: dict[str, Any] = {**SAME, "max_tokens": 400, "stop": [",", ".", " and", " the"]}


def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1")


def version(url: str) -> str:
    return openai.__version__


def completion(url: str) -> dict[str, Any]:
    raw = client(url).completions.with_raw_response.create(
        model=MODEL,
        prompt=["Once upon a time", "The king"],
        max_tokens=12,
        n=2,
        seed=7,
        logprobs=2,
        stop=["\n\n"],
        extra_headers={"x-request-id": "mine-1"},
    )
    answer = Completion.model_validate_json(raw.text)  # strict about types, unlike the SDK itself
    return {"answer": answer.model_dump(), "request_id": raw.headers["x-request-id"]}


def completion_stream(url: str) -> dict[str, Any]:
    same: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 24}
    same |= {"seed": 3, "n": 2}
    plain = client(url).completions.create(**same)
    texts = ["", ""]
    usage = None
    options = {"include_usage": True}
    for chunk in client(url).completions.create(**same, stream=True, stream_options=options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert usage and plain.usage
    return {
        "plain": [choice.text for choice in plain.choices],
        "joined": texts,
        "plain_usage": _counts(plain.usage),
        "usage": _counts(usage),
    }


def chat(url: str) -> dict[str, Any]:
    raw = client(url).chat.completions.with_raw_response.create(
        **SAME, logprobs=True, top_logprobs=3
    )
    return ChatCompletion.model_validate_json(raw.text).model_dump()


def chat_stream(url: str) -> dict[str, Any]:
    plain = client(url).chat.completions.create(**SAME)
    chunks = list(client(url).chat.completions.create(**SAME, stream=True))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump())
    return {
        "plain": plain.choices[0].message.content,
        "joined": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "chunks": len(chunks),
        "finish_reason": chunks[-1].choices[0].finish_reason,
    }


def chat_stream_left(url: str) -> str:
    """A client that has read enough."""
    long = {**SAME, "max_tokens": 1500}
    with client(url).chat.completions.create(**long, stream=True) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                return chunk.choices[0].delta.content
    return ""


def stream_helper(url: str) -> dict[str, Any]:
    asked = {**ENDING, "logprobs": True, "top_logprobs": 1}
    plain = client(url).chat.completions.create(**asked)
    joined, done, kinds, scores = "", "", set(), 0
    with client(url).chat.completions.stream(
        **asked, stream_options={"include_usage": True}
    ) as stream:
        for event in stream:
            kinds.add(event.type)
            if event.type == "content.delta":
                joined += event.delta
            elif event.type == "content.done":
                done = event.content
            elif event.type == "logprobs.content.delta":
                scores += len(event.content)
        final = stream.get_final_completion()
    logprobs = plain.choices[0].logprobs
    assert logprobs and logprobs.content
    return {
        "kinds": sorted(kinds),
        "joined": joined,
        "done": done,
        "scores": scores,
        "plain_scores": len(logprobs.content),
        "plain": _told(plain),
        "final": _told(final),
    }


async def async_stream_helper(url: str) -> dict[str, Any]:
    async with AsyncOpenAI(base_url=f"{url}/v1") as asynchronous:
        async with asynchronous.chat.completions.stream(**ENDING) as stream:
            joined = "".join([e.delta async for e in stream if e.type == "content.delta"])
            final = await stream.get_final_completion()
    return {"joined": joined, "final": final.choices[0].message.content}


async def crowd(url: str) -> dict[str, Any]:
    """Many at once, each with an answer of its own: the one it gets alone."""
    seeds = range(6)
    async with AsyncOpenAI(base_url=f"{url}/v1") as asynchronous:
        create = asynchronous.chat.completions.create

        async def ask(seed: int) -> str | None:
            answer = await create(**{**SAME, "temperature": 1, "seed": seed})
            return answer.choices[0].message.content

        async def streamed(seed: int) -> str:
            stream = await create(**{**SAME, "temperature": 1, "seed": seed}, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        alone = [await ask(seed) for seed in seeds]
        together = await asyncio.gather(*map(ask, seeds), *map(streamed, seeds))
    return {"alone": alone, "plain": together[:6], "streamed": together[6:]}


def models(url: str) -> dict[str, Any]:
    listed = [model.id for model in client(url).models.list()]
    return {"listed": listed, "one": client(url).models.retrieve(listed[0]).model_dump()}


def _told(answer: Any) -> dict[str, Any]:
    """What the stream's answer and the plain one must have in common."""
    (choice,) = answer.choices
    return {
        "content": choice.message.content,
        "role": choice.message.role,
        "finish_reason": choice.finish_reason,
        "usage": _counts(answer.usage),
    }


def _counts(usage: Any) -> dict[str, int]:
    """Without the details: the second of two equal prompts comes from the cache."""
    return usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"})


if __name__ == "__main__":
    cases.run(
        version,
        completion,
        completion_stream,
        chat,
        chat_stream,
        chat_stream_left,
        stream_helper,
        async_stream_helper,
        crowd,
        models,
    )
