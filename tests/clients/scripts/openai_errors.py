"""The openai package: its exception classes by status, and its own retries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import cases
import openai
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion

MODEL = "octavo"
STORY = [{"role": "user", "content": "Tell me a story about a fox."}]


def errors(url: str) -> dict[str, Any]:
    client = OpenAI(base_url=f"{url}/v1", max_retries=0)
    chat = client.chat.completions.create
    asked: dict[str, Callable[[], object]] = {
        "wrong value": lambda: chat(model=MODEL, messages=STORY, temperature=9),
        "wrong value, streamed": lambda: chat(
            model=MODEL, messages=STORY, temperature=9, stream=True
        ),
        "wrong type": lambda: chat(model=MODEL, messages="Hello."),
        "too long": lambda: client.completions.create(model=MODEL, prompt="a", max_tokens=10**6),
        "unknown model": lambda: chat(model="nobody", messages=STORY),
        "unknown model entry": lambda: client.models.retrieve("nobody/at all"),
        "unknown path": lambda: client.post("/nowhere", body={}, cast_to=object),
        "wrong method": lambda: client.get("/chat/completions", cast_to=object),
    }
    return {name: _error(ask) for name, ask in asked.items()}


def keys(url: str) -> dict[str, Any]:
    """Against a server whose key is `right`."""
    wrong = OpenAI(base_url=f"{url}/v1", api_key="wrong")
    right = OpenAI(base_url=f"{url}/v1", api_key="right")
    return {"wrong": _error(wrong.models.list), "right": [m.id for m in right.models.list()]}


def _error(ask: Callable[[], object]) -> dict[str, Any]:
    try:
        answer = ask()
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "param": error.param,
            "type": error.type,
            "has_request_id": bool(error.request_id),
            "message": str(error),
        }
    raise AssertionError(f"no error, but {answer!r}")


async def overload(url: str) -> dict[str, Any]:
    """Against a server that runs one request and lets one wait: without retries some are refused,
    with the SDK's own retries everybody is served."""
    asked: dict[str, Any] = {
        "model": MODEL,
        "prompt": "Once upon a time",
        "extra_body": {"ignore_eos": True},
    }
    async with AsyncOpenAI(base_url=f"{url}/v1", max_retries=0) as strict:
        done = await asyncio.gather(
            *(strict.completions.create(**asked, max_tokens=200) for _ in range(6)),
            return_exceptions=True,
        )
    refused = [error for error in done if isinstance(error, openai.RateLimitError)]
    async with AsyncOpenAI(base_url=f"{url}/v1", max_retries=20) as patient:
        served = await asyncio.gather(
            *(patient.completions.create(**asked, max_tokens=50) for _ in range(6))
        )
    return {
        "refused": len(refused),
        "answered": sum(isinstance(answer, Completion) for answer in done),
        "retry_after": [error.response.headers["retry-after"] for error in refused],
        "codes": sorted({str(error.code) for error in refused}),
        "served": [answer.usage.completion_tokens for answer in served if answer.usage],
    }


if __name__ == "__main__":
    cases.run(errors, keys, overload)
