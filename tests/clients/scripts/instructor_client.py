"""instructor: answers as pydantic objects, through a forced call or a JSON schema."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import cases
import instructor
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict

ASKED: dict[str, Any] = {
    "model": "octavo",
    "messages": [{"role": "user", "content": "Tell me of an animal."}],
    "max_tokens": 200,
    "max_retries": 0,
}


class Animal(BaseModel):
    """Closed: instructor's schemas are not strict, and a small model would go on with fields of
    its own until its tokens are used up."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["fox", "bear", "wolf"]
    hungry: bool


def tools(url: str) -> dict[str, Any]:
    return _by(url, instructor.Mode.TOOLS)


def json_schema(url: str) -> dict[str, Any]:
    return _by(url, instructor.Mode.JSON_SCHEMA)


def _by(url: str, mode: instructor.Mode) -> dict[str, Any]:
    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1"), mode=mode)
    animal = client.chat.completions.create(**ASKED, response_model=Animal)
    return animal.model_dump()


async def many(url: str) -> list[dict[str, Any]]:
    client = instructor.from_openai(AsyncOpenAI(base_url=f"{url}/v1"))
    animals = await asyncio.gather(
        *(
            client.chat.completions.create(**ASKED, response_model=Animal, seed=seed)
            for seed in range(6)
        )
    )
    return [animal.model_dump() for animal in animals]


def partial(url: str) -> list[dict[str, Any]]:
    """An object that grows while its answer streams in."""
    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1"))
    growing = client.chat.completions.create_partial(**ASKED, response_model=Animal)
    return [animal.model_dump() for animal in growing]


if __name__ == "__main__":
    cases.run(tools, json_schema, many, partial)
