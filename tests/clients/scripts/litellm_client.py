"""litellm: through its `openai` and `text-completion-openai` providers."""

from __future__ import annotations

from typing import Any

import cases
import litellm

MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
litellm.suppress_debug_info = True
litellm.telemetry = False


def asked(url: str) -> dict[str, Any]:
    return {
        "model": "openai/octavo",
        "api_base": f"{url}/v1",
        "api_key": "unused",
        "messages": MESSAGES,
        "max_tokens": 24,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }


def chat(url: str) -> dict[str, Any]:
    plain = litellm.completion(**asked(url))
    chunks = list(
        litellm.completion(**asked(url), stream=True, stream_options={"include_usage": True})
    )
    rebuilt = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    usage = next(chunk.usage for chunk in chunks if getattr(chunk, "usage", None))
    return {
        "plain": plain.choices[0].message.content,
        "joined": "".join(
            chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
        ),
        "rebuilt": rebuilt.choices[0].message.content,
        "plain_usage": [plain.usage.prompt_tokens, plain.usage.completion_tokens],
        "usage": [usage.prompt_tokens, usage.completion_tokens],
        "finish_reason": plain.choices[0].finish_reason,
    }


async def asynchronous(url: str) -> dict[str, Any]:
    plain = await litellm.acompletion(**asked(url))
    stream = await litellm.acompletion(**asked(url), stream=True)
    joined = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    return {"plain": plain.choices[0].message.content, "joined": joined}


def text(url: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model": "text-completion-openai/octavo",
        "api_base": f"{url}/v1",
        "api_key": "unused",
        "prompt": "Once upon a time",
        "max_tokens": 16,
        "seed": 4,
    }
    plain = litellm.text_completion(**options)
    stream = litellm.text_completion(**options, stream=True)
    return {
        "plain": plain.choices[0].text,
        "joined": "".join(chunk.choices[0].text or "" for chunk in stream),
    }


def errors(url: str) -> dict[str, str]:
    """litellm tells a context overflow from other 400s by its wording."""
    wrong: dict[str, dict[str, Any]] = {
        "too long": {"max_tokens": 10**6},
        "wrong value": {"temperature": 9},
        "unknown model": {"model": "openai/nobody"},
    }
    told = {}
    for name, change in wrong.items():
        try:
            litellm.completion(**{**asked(url), **change}, num_retries=0)
            told[name] = "no error"
        except Exception as error:
            told[name] = type(error).__name__
    return told


def embeddings(url: str) -> list[int]:
    answer = litellm.embedding(
        model="openai/octavo", api_base=f"{url}/v1", api_key="unused", input=["A fox.", "A king."]
    )
    return [len(entry["embedding"]) for entry in answer.data]


if __name__ == "__main__":
    cases.run(chat, asynchronous, text, errors, embeddings)
