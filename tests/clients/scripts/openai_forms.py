"""The openai package: `.parse()` into classes, forced tool calls, and both as streams."""

from __future__ import annotations

from typing import Any, Literal

import cases
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel, Field

ASKED: dict[str, Any] = {
    "model": "octavo",
    "messages": [{"role": "user", "content": "Tell me of an animal."}],
    "max_tokens": 200,
}


class Animal(BaseModel):
    kind: Literal["fox", "bear", "wolf"]
    hungry: bool
    legs: Literal[2, 4]


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=1, le=9)


TOOLS = [pydantic_function_tool(Weather)]


def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1")


def parse(url: str) -> list[dict[str, Any]]:
    """The SDK makes a strict schema of the class, and an object of the answer."""
    answers = [
        client(url).chat.completions.parse(**ASKED, response_format=Animal, seed=seed)
        for seed in range(3)
    ]
    return [answer.choices[0].message.parsed.model_dump() for answer in answers]


def parse_stream(url: str) -> dict[str, Any]:
    with client(url).chat.completions.stream(**ASKED, response_format=Animal, seed=1) as stream:
        kinds = sorted({event.type for event in stream})
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert parsed
    return {"kinds": kinds, "parsed": parsed.model_dump()}


def tool_call(url: str) -> dict[str, Any]:
    """A forced call, parsed by the SDK; then the call and its result are handed back."""
    named = {"type": "function", "function": {"name": "Weather"}}
    first = client(url).chat.completions.parse(**ASKED, tools=TOOLS, tool_choice=named, seed=5)
    message = first.choices[0].message
    assert message.tool_calls
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    second = client(url).chat.completions.create(
        **{**ASKED, "messages": [*ASKED["messages"], message, result]},
        tools=TOOLS,
        tool_choice="none",
    )
    return {
        "content": message.content,
        "finish_reason": first.choices[0].finish_reason,
        "name": call.function.name,
        "parsed": call.function.parsed_arguments.model_dump(),
        "second": second.choices[0].message.model_dump(),
    }


def tool_call_stream(url: str) -> dict[str, Any]:
    with client(url).chat.completions.stream(
        **ASKED, tools=TOOLS, tool_choice="required", seed=5
    ) as stream:
        kinds = [event.type for event in stream]
        (choice,) = stream.get_final_completion().choices
    assert choice.message.tool_calls
    return {
        "pieces": kinds.count("tool_calls.function.arguments.delta"),
        "done": kinds.count("tool_calls.function.arguments.done"),
        "finish_reason": choice.finish_reason,
        "calls": [
            call.function.parsed_arguments.model_dump() for call in choice.message.tool_calls
        ],
    }


if __name__ == "__main__":
    cases.run(parse, parse_stream, tool_call, tool_call_stream)
