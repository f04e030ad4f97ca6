"""The openai package on /v1/responses: plain, streamed, parsed, with tools, handed back."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import cases
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from openai.types.responses import Response
from pydantic import BaseModel, Field

TOLD: dict[str, Any] = {
    "model": "octavo",
    "input": "Tell me a story about a fox.",
    "instructions": "Be kind.",
    "temperature": 0,
}
CUT: dict[str, Any] = {**TOLD, "max_output_tokens": 24}
# The helpers make no answer whole that was cut by length; one of these soon comes.
ENDING: dict[str, Any] = {**TOLD, "extra_body": {"stop": [",", ".", " and", " the"]}}


class Animal(BaseModel):
    kind: Literal["fox", "bear", "wolf"]
    hungry: bool


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=1, le=9)


def _tool() -> Any:
    """The flat form of what the SDK makes of the class."""
    tool = pydantic_function_tool(Weather)
    return {"type": "function", **tool["function"]}


def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1")


def plain(url: str) -> dict[str, Any]:
    raw = client(url).responses.with_raw_response.create(
        **CUT, include=["message.output_text.logprobs"], top_logprobs=2, metadata={"order": "7"}
    )
    return Response.model_validate_json(raw.text).model_dump()  # strict, unlike the SDK itself


def stream(url: str) -> dict[str, Any]:
    whole = client(url).responses.create(**CUT)
    events = list(client(url).responses.create(**CUT, stream=True))
    last = events[-1]
    assert last.type == "response.incomplete", last
    assert whole.usage and last.response.usage
    return {
        "plain": whole.output_text,
        "joined": "".join(e.delta for e in events if e.type == "response.output_text.delta"),
        "final": last.response.output_text,
        "numbers": [event.sequence_number for event in events],
        "usage": last.response.usage.output_tokens,
        "plain_usage": whole.usage.output_tokens,
        "reason": last.response.incomplete_details and last.response.incomplete_details.reason,
    }


def stream_helper(url: str) -> dict[str, Any]:
    whole = client(url).responses.create(**ENDING)
    joined, snapshots = "", []
    with client(url).responses.stream(**ENDING) as running:
        for event in running:
            if event.type == "response.output_text.delta":
                joined += event.delta
                snapshots.append(event.snapshot == joined)
        final = running.get_final_response()
    return {
        "plain": whole.output_text,
        "joined": joined,
        "final": final.output_text,
        "snapshots": all(snapshots) and len(snapshots),
    }


async def async_stream(url: str) -> dict[str, Any]:
    async def one(seed: int) -> str:
        text = ""
        asked: dict[str, Any] = {**CUT, "temperature": 1, "extra_body": {"seed": seed}}
        async for event in await server.responses.create(**asked, stream=True):
            if event.type == "response.output_text.delta":
                text += event.delta
        return text

    async with AsyncOpenAI(base_url=f"{url}/v1") as server:
        crowd = await asyncio.gather(*(one(seed) for seed in range(5)))
        return {"crowd": crowd, "alone": [await one(seed) for seed in range(5)]}


def parse(url: str) -> dict[str, Any]:
    asked: dict[str, Any] = {"model": "octavo", "input": "An animal.", "max_output_tokens": 200}
    whole = client(url).responses.parse(**asked, text_format=Animal, extra_body={"seed": 1})
    with client(url).responses.stream(
        **asked, text_format=Animal, extra_body={"seed": 1}
    ) as running:
        streamed = running.get_final_response()
    assert whole.output_parsed and streamed.output_parsed
    return {
        "plain": whole.output_parsed.model_dump(),
        "streamed": streamed.output_parsed.model_dump(),
    }


def tools(url: str) -> dict[str, Any]:
    """A forced call; then all that was said and the call's result are handed back."""
    asked: dict[str, Any] = {**TOLD, "tools": [_tool()], "max_output_tokens": 300}
    named: Any = {"type": "function", "name": "Weather"}
    # One call: what a small model likes best is to call again and again.
    with client(url).responses.stream(
        **asked, tool_choice=named, parallel_tool_calls=False
    ) as running:
        kinds = [event.type for event in running]
        first = running.get_final_response()
    (call,) = first.output
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "It rains."}
    history: Any = [{"role": "user", "content": TOLD["input"]}, call.to_dict(), result]
    second = client(url).responses.create(
        **{**asked, "input": history, "max_output_tokens": 8}, tool_choice="none"
    )
    return {
        "pieces": kinds.count("response.function_call_arguments.delta"),
        "status": first.status,
        "name": call.name,
        "arguments": Weather.model_validate_json(call.arguments).model_dump(),
        "second": [item.type for item in second.output],
    }


if __name__ == "__main__":
    cases.run(plain, stream, stream_helper, async_stream, parse, tools)
