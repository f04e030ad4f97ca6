"""API contract, section 8: POST /v1/responses. The engine is scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from octavo.engine.errors import EngineDead
from octavo.engine.params import FinishReason
from octavo.engine.step import Delta

from .serving import Served, encoded, listening, model, saying, serve
from .test_api_tools import CALL, HERMES, SECOND, THINKING, Trusting, trusting

PATH = "/v1/responses"
SAID = "there was a naïve fox, 狐狸, who said: “hello”."
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "How it is outside.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
    "strict": True,
}
NOW = {"type": "function", "name": "now"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
EVENT = TypeAdapter[Any](ResponseStreamEvent)


async def respond(server: Served, **body: Any) -> dict[str, Any]:
    response = await server.post(PATH, {"input": "hello", **body})
    assert response.status_code == 200, response.text
    OpenAIResponse.model_validate(response.json())  # strict, unlike the SDK itself
    answer: dict[str, Any] = response.json()
    return answer


def parsed(stream: str) -> list[Any]:
    """Each event: its `event:` line is its type, numbers without gaps, one line of JSON."""
    events = []
    assert stream.endswith("\n\n")
    for number, event in enumerate(stream.removesuffix("\n\n").split("\n\n")):
        kind, data = event.split("\n")
        assert len(data.splitlines()) == 1
        value = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {value['type']}"
        assert value["sequence_number"] == number
        EVENT.validate_python(value)
        events.append(value)
    return events


async def events_of(server: Served, **body: Any) -> list[Any]:
    response = await server.post(PATH, {"input": "hello", **body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parsed(response.text)


def kinds(events: list[Any]) -> list[str]:
    """Types of events without their common prefix, repetitions once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def without_ids(value: Any) -> Any:
    """What is the same whenever and however one asks."""
    if isinstance(value, dict):
        changing = ("id", "item_id", "call_id", "created_at", "completed_at")
        return {k: without_ids(v) for k, v in value.items() if k not in changing}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def prompt_of(server: Served) -> str:
    ids = server.engine.requests[-1].prompt_token_ids
    return model().tokenizer.decode(ids, skip_special_tokens=False)


async def refused(server: Served, body: dict[str, Any]) -> dict[str, Any]:
    error = await server.refusal(PATH, {"input": "hello", **body})
    assert not server.engine.requests
    return error


class TestAnswer:
    async def test_s8_it_has_all_its_parts(self) -> None:
        answer = await respond(serve(saying(SAID)), model="org/alias")
        assert answer["id"].startswith("resp_")
        assert answer["object"] == "response"
        assert answer["status"] == "completed"
        assert answer["model"] == "org/alias"
        assert answer["created_at"] <= answer["completed_at"]
        assert answer["error"] is answer["incomplete_details"] is None
        (item,) = answer["output"]
        assert item.pop("id").startswith("msg_")
        text = {"type": "output_text", "text": SAID, "annotations": [], "logprobs": []}
        assert item == {
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [text],
        }

    async def test_s8_usage_counts(self) -> None:
        server = serve(saying("there was"))
        usage = (await respond(server))["usage"]
        prompt, made = len(server.engine.requests[0].prompt_token_ids), len(encoded("there was"))
        assert usage == {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": made + 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + made + 1,
        }

    async def test_s8_what_was_asked_for_is_repeated(self) -> None:
        asked: dict[str, Any] = {
            "instructions": "be kind",
            "max_output_tokens": 100,
            "temperature": 0.5,
            "top_p": 0.25,
            "metadata": {"order": "7"},
            "tools": [WEATHER],
            "tool_choice": "none",
            "parallel_tool_calls": False,
            "user": "ann",
            "prompt_cache_key": "k",
            "safety_identifier": "s",
        }
        server = trusting("hm")
        answer = await respond(server, **asked)
        assert {name: answer[name] for name in asked} == asked
        params = server.engine.requests[0].sampling
        assert (params.max_tokens, params.temperature, params.top_p) == (100, 0.5, 0.25)

    async def test_s8_null_means_the_default(self) -> None:
        names = [
            *("model", "instructions", "max_output_tokens", "temperature", "top_p", "tools"),
            *("tool_choice", "parallel_tool_calls", "text", "reasoning", "stream", "store"),
            *("metadata", "truncation", "include", "user", "previous_response_id", "seed"),
        ]
        server = serve(saying(SAID))
        given = await respond(server, **dict.fromkeys(names))
        assert without_ids(given) == without_ids(await respond(server))
        assert (given["temperature"], given["top_p"], given["tool_choice"]) == (1.0, 1.0, "auto")
        assert (given["text"]["format"], given["tools"]) == ({"type": "text"}, [])
        assert server.engine.requests[0].sampling.max_tokens is None

    async def test_s8_accepted_and_without_effect(self) -> None:
        server = serve(saying(SAID))
        accepted: dict[str, Any] = {
            "store": True,
            "truncation": "auto",
            "include": ["reasoning.encrypted_content"],
            "service_tier": "auto",
            "background": False,
            "max_tool_calls": 3,
            "tools": [],
            "tool_choice": "auto",
            "stream_options": {"include_obfuscation": False},
            "something_new": {"a": 1},
        }
        answer = await respond(server, **accepted)
        assert answer["output"][0]["content"][0]["text"] == SAID
        assert answer["store"] is False, "nothing is stored"

    async def test_s8_cut_it_is_incomplete(self) -> None:
        answer = await respond(serve(saying("x" * 50)), max_output_tokens=3)
        assert answer["status"] == "incomplete"
        assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
        assert answer["completed_at"] is None
        (item,) = answer["output"]
        assert item["status"] == "incomplete"
        assert item["content"][0]["text"] == "xxx"
        assert answer["usage"]["output_tokens"] == 3

    async def test_s8_an_answer_of_nothing_is_an_empty_text(self) -> None:
        (item,) = (await respond(serve(saying(""))))["output"]
        assert item["content"][0]["text"] == ""
        events = await events_of(serve(saying("")))
        assert "output_text.done" in kinds(events)

    async def test_s8_log_probabilities_where_they_are_included(self) -> None:
        include = ["message.output_text.logprobs"]
        server = serve(saying(SAID))
        answer = await respond(server, include=include, top_logprobs=2)
        (part,) = answer["output"][0]["content"]
        raw = bytes(byte for entry in part["logprobs"] for byte in entry["bytes"])
        assert raw.decode() == SAID
        assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
        events = await events_of(server, include=include, top_logprobs=2)
        deltas = [e for e in events if e["type"] == "response.output_text.delta"]
        assert [entry for e in deltas for entry in e["logprobs"]] == part["logprobs"]
        assert all(entry["token"] for e in deltas for entry in e["logprobs"])
        bare = (await respond(server, top_logprobs=2))["output"][0]["content"][0]
        assert bare["logprobs"] == []

    async def test_s8_parameters_beyond_openai_are_those_of_chats(self) -> None:
        server = serve(saying(SAID))
        answer = await respond(server, seed=5, top_k=3, stop="fox", request_id="mine")
        assert answer["id"] == "resp_mine"
        assert answer["output"][0]["content"][0]["text"] == "there was a naïve "
        params = server.engine.requests[0].sampling
        assert (params.top_k, server.engine.requests[0].seed) == (3, 5)


class TestInput:
    async def test_s8_a_text_is_a_users_message(self) -> None:
        server = serve()
        await respond(server, instructions="be kind")
        assert prompt_of(server) == (
            "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    async def test_s8_it_is_the_same_prompt_as_a_chats(self) -> None:
        server = trusting("hm")
        await respond(
            server,
            instructions="be kind",
            input=[
                {"role": "user", "content": "hello"},
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "hi, ", "annotations": []}],
                },
                {
                    "type": "function_call",
                    "call_id": "c1",
                    "name": "f",
                    "arguments": '{"city":"A"}',
                },
                {
                    "type": "function_call",
                    "call_id": "c2",
                    "name": "f",
                    "arguments": '{"city":"B"}',
                },
                {"type": "function_call_output", "call_id": "c1", "output": "1"},
                {
                    "type": "function_call_output",
                    "call_id": "c2",
                    "output": [{"type": "input_text", "text": "2"}],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "go"},
                        {"type": "input_text", "text": " on"},
                    ],
                },
            ],
            tools=[WEATHER],
        )
        calls = [
            {
                "id": f"c{i}",
                "type": "function",
                "function": {"name": "f", "arguments": json.dumps({"city": city})},
            }
            for i, city in ((1, "A"), (2, "B"))
        ]
        function = {name: value for name, value in WEATHER.items() if name != "type"}
        await server.chat(
            messages=[
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "hi, ", "tool_calls": calls},
                {"role": "tool", "tool_call_id": "c1", "content": "1"},
                {"role": "tool", "tool_call_id": "c2", "content": "2"},
                {"role": "user", "content": "go on"},
            ],
            tools=[{"type": "function", "function": function}],
        )
        ours, chats = server.engine.requests
        assert ours.prompt_token_ids == chats.prompt_token_ids
        assert ours.sampling.grammar == chats.sampling.grammar is not None
        assert "[f A][f B]" in prompt_of(server)

    async def test_s8_control_tokens_of_a_user_stay_text(self) -> None:
        server = serve()
        await respond(server, input="<|im_end|></s>")
        ids = list(server.engine.requests[0].prompt_token_ids)
        assert ids.count(model().tokenizer.token_id("<|im_end|>") or -1) == 1

    async def test_s8_thinking_goes_back_to_where_it_was(self) -> None:
        template = "{% for m in messages %}({{ m.role }}|{{ m.reasoning_content }}|{{ m.content }}"
        template += "|{{ m.tool_calls | length }}){% endfor %}"
        thought = {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        }
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        foreign = {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "xx"}
        said = {"role": "assistant", "content": "yes"}
        server = serve(served=model(template=template))
        await respond(server, input=[thought, said, foreign, said, thought, call, said, thought])
        assert prompt_of(server) == (
            "(assistant|hm|yes|0)(assistant||yes|0)(assistant|hm|None|1)(assistant||yes|0)"
            "(assistant|hm||0)"
        )

    @pytest.mark.parametrize(
        ("given", "param"),
        [
            (None, "input"),
            ([], "input"),
            (5, "input"),
            ([5], "input[0]"),
            ([{}], "input[0].role"),
            ([{"role": "user"}], "input[0].content"),
            ([{"role": "tool", "content": "a"}], "input[0].role"),
            ([{"role": "user", "content": 5}], "input[0].content"),
            ([{"role": "user", "content": [{}]}], "input[0].content[0].type"),
            ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
            (
                [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
                "input[0].content[0]",
            ),
            ([{"type": "item_reference", "id": "msg_1"}], "input[0].type"),
            ([{"type": "web_search_call", "id": "ws_1"}], "input[0].type"),
            ([{"type": "function_call", "name": "f", "arguments": "{}"}], "input[0].call_id"),
            ([{"type": "function_call", "call_id": "c", "arguments": "{}"}], "input[0].name"),
            ([{"type": "function_call", "call_id": "c", "name": "f"}], "input[0].arguments"),
            ([{"type": "function_call_output", "call_id": "c", "output": "1"}], "input[0].call_id"),
        ],
    )
    async def test_s8_a_wrong_item_is_400_and_its_place_is_named(
        self, given: Any, param: str
    ) -> None:
        error = await refused(serve(), {"input": given})
        assert error["param"] == param
        assert error["message"].startswith(param)

    async def test_s8_a_call_without_output_may_not_have_one_that_says_nothing(self) -> None:
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        output = {"type": "function_call_output", "call_id": "c"}
        assert (await refused(serve(), {"input": [call, output]}))["param"] == "input[1].output"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("previous_response_id", "resp_1"),
            ("conversation", {"id": "conv_1"}),
            ("background", True),
            ("prompt", {"id": "pmpt_1"}),
        ],
    )
    async def test_s8_what_needs_a_memory_is_refused_in_a_sentence(
        self, field: str, value: Any
    ) -> None:
        error = await refused(serve(), {field: value})
        assert error["param"] == field
        assert "keeps no" in error["message"]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"temperature": 3}, "temperature"),
            ({"top_p": -1}, "top_p"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"top_logprobs": 21}, "top_logprobs"),
            ({"truncation": "some"}, "truncation"),
            ({"metadata": {"a": 1}}, "metadata"),
            ({"metadata": {"a": "x" * 513}}, "metadata"),
            ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
            ({"stream": "yes"}, "stream"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tools": [{"type": "web_search"}]}, "tools[0]"),
            ({"tools": [{"type": "function"}]}, "tools[0].name"),
            ({"tools": [{**WEATHER, "name": "a b"}]}, "tools[0].name"),
            ({"tools": [{**WEATHER, "parameters": []}]}, "tools[0].parameters"),
            (
                {"tools": [NOW], "tool_choice": {"type": "function", "name": "x"}},
                "tool_choice.name",
            ),
            ({"text": {"format": {"type": "poem"}}}, "text.format.type"),
            ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
            ({"min_tokens": 9, "max_output_tokens": 5}, "min_tokens"),
        ],
    )
    async def test_s8_a_wrong_parameter_is_400_in_the_words_of_this_endpoint(
        self, body: dict[str, Any], param: str
    ) -> None:
        error = await refused(serve(), body)
        assert (error["param"] or "").startswith(param), error
        for foreign in ("messages", "response_format", "json_schema.schema", ".function."):
            assert foreign not in error["message"]

    async def test_s8_unknown_models_and_too_long_inputs(self) -> None:
        error = await serve().refusal(PATH, {"input": "a", "model": "no"}, 404)
        assert error["code"] == "model_not_found"
        error = await refused(serve(), {"input": "hello " * 600})
        assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
        assert "context" in error["message"]
        error = await refused(serve(served=model(template=None)), {})
        assert error["param"] == "input"


class TestStream:
    async def test_s8_events_in_their_order(self) -> None:
        events = await events_of(serve(saying(SAID)))
        assert kinds(events) == [
            *("created", "in_progress", "output_item.added", "content_part.added"),
            *("output_text.delta", "output_text.done", "content_part.done", "output_item.done"),
            "completed",
        ]
        first, second, *_, last = events
        assert first["response"]["status"] == second["response"]["status"] == "in_progress"
        assert first["response"]["output"] == [] and first["response"]["usage"] is None
        assert {e["response"]["id"] for e in (first, second, last)} == {last["response"]["id"]}
        added = next(e for e in events if e["type"] == "response.output_item.added")
        assert added["item"]["content"] == [] and added["item"]["status"] == "in_progress"
        assert len({e["item_id"] for e in events if "item_id" in e}) == 1

    async def test_s8_a_delta_a_token(self) -> None:
        events = await events_of(serve(saying("abcdefgh")))
        deltas = [e for e in events if e["type"] == "response.output_text.delta"]
        assert len(deltas) == len(encoded("abcdefgh"))

    @pytest.mark.parametrize("at_once", [1, 2, 1000])
    async def test_s8_joined_deltas_are_the_plain_text(self, at_once: int) -> None:
        plain = await respond(serve(saying(SAID)))
        events = await events_of(serve(saying(SAID, at_once=at_once)))
        joined = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        (done,) = [e for e in events if e["type"] == "response.output_text.done"]
        (item,) = [e["item"] for e in events if e["type"] == "response.output_item.done"]
        final = events[-1]["response"]
        assert joined == done["text"] == item["content"][0]["text"] == SAID
        assert final["output"] == [item]
        assert without_ids(final) == without_ids(plain)

    async def test_s8_lines_that_are_none(self) -> None:
        nasty = "a\nb\r\n\x0b\x0c\x1c\x85\u2028\u2029 “q” \\ / \t狐\x00\x7f"
        events = await events_of(serve(saying(nasty)))  # `parsed` looks at the lines
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == nasty

    async def test_s8_a_stream_that_was_cut_ends_incomplete(self) -> None:
        events = await events_of(serve(saying("x" * 50)), max_output_tokens=3)
        assert kinds(events)[-2:] == ["output_item.done", "incomplete"]
        response = events[-1]["response"]
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert events[-2]["item"]["status"] == response["output"][0]["status"] == "incomplete"

    async def test_s8_errors_before_the_first_byte_are_plain(self) -> None:
        body = {"input": [], "stream": True}
        assert (await serve().refusal(PATH, body))["param"] == "input"

        def dead(request: Any) -> list[Delta]:
            raise EngineDead("It is gone.")

        response = await serve(dead).post(PATH, {"input": "a", "stream": True})
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert response.json()["error"]["code"] == "engine_unavailable"

    async def test_s8_errors_later_are_response_failed(self) -> None:
        def breaks(request: Any) -> list[Delta]:
            return [
                Delta(request_id="", token_ids=(encoded("x")[0],)),
                Delta(request_id="", error="it broke"),
            ]

        events = await events_of(serve(breaks))
        assert kinds(events)[-2:] == ["output_text.delta", "failed"]
        response = events[-1]["response"]
        assert response["status"] == "failed"
        assert response["error"] == {"code": "server_error", "message": "it broke"}
        (item,) = response["output"]
        assert (item["status"], item["content"][0]["text"]) == ("incomplete", "x")
        error = await serve(breaks).refusal(PATH, {"input": "a"}, 500)
        assert error["message"] == "it broke"

    async def test_s8_a_failure_after_silence_has_its_beginning_all_the_same(self) -> None:
        def breaks(request: Any) -> list[Delta]:
            return [Delta(request_id="", error="it broke")]

        server = serve(breaks, ping_interval=0.05)
        gate = server.engine.hold = asyncio.Event()
        async with listening(server) as url, httpx.AsyncClient(timeout=20) as client:
            body = {"input": "a", "stream": True}
            async with client.stream("POST", url + PATH, json=body) as response:
                text = ""
                async for line in response.aiter_text():
                    text += line
                    gate.set()  # only once the first ping is here
        events = parsed("".join(p + "\n\n" for p in text.split("\n\n") if p.startswith("event")))
        assert kinds(events) == ["created", "in_progress", "failed"]
        assert events[-1]["response"]["output"] == []

    async def test_s8_a_client_that_leaves_ends_it(self) -> None:
        def endless(request: Any) -> list[Delta | None]:
            return [Delta(request_id="", token_ids=(encoded("x")[0],)), None]

        server = serve(endless)
        async with listening(server) as url, httpx.AsyncClient(timeout=20) as client:
            body = {"input": "a", "stream": True}
            async with client.stream("POST", url + PATH, json=body) as response:
                async for line in response.aiter_lines():
                    if "output_text.delta" in line:
                        break
            await server.app.state.admission.idle()
        assert len(server.engine.aborted) == 1


class TestTools:
    async def test_s8_calls_are_items(self) -> None:
        server = trusting("Let me see. " + CALL + SECOND)
        answer = await respond(server, tools=[WEATHER, NOW])
        message, first, second = answer["output"]
        assert message["content"][0]["text"].strip() == "Let me see."
        assert [call["type"] for call in (first, second)] == ["function_call"] * 2
        assert [call["name"] for call in (first, second)] == ["get_weather", "now"]
        assert json.loads(first["arguments"]) == {"city": 'Kön, "x"'}
        assert first["call_id"] != second["call_id"]
        assert all(item["status"] == "completed" for item in answer["output"])
        assert answer["status"] == "completed"

    @pytest.mark.parametrize("at_once", [1, 3, 1000])
    async def test_s8_streamed_they_are_the_same(self, at_once: int) -> None:
        said = "Let me see. " + CALL + SECOND
        tools = [WEATHER, NOW]
        plain = await respond(trusting(said), tools=tools)
        events = await events_of(trusting(said, at_once=at_once), tools=tools)
        assert without_ids(events[-1]["response"]) == without_ids(plain)
        for index, item in enumerate(events[-1]["response"]["output"][1:], 1):
            own = [e for e in events if e.get("output_index") == index]
            assert kinds(own) == [
                *("output_item.added", "function_call_arguments.delta"),
                *("function_call_arguments.done", "output_item.done"),
            ]
            assert own[0]["item"]["name"] == item["name"]
            assert own[0]["item"]["arguments"] == ""
            joined = "".join(e["delta"] for e in own if "delta" in e)
            assert joined == own[-2]["arguments"] == item["arguments"]
            assert own[-1]["item"] == item
        if at_once == 1:
            deltas = [e for e in events if e["type"].endswith("arguments.delta")]
            assert len(deltas) > 4, "in pieces"

    async def test_s8_they_may_be_handed_back(self) -> None:
        server = trusting(CALL)
        first = await respond(server, tools=[WEATHER])
        (call,) = first["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
        history = [{"role": "user", "content": "hello"}, call, result]
        await respond(server, tools=[WEATHER], input=history)
        assert '[get_weather Kön, "x"]' in prompt_of(server)
        assert "<|im_start|>tool\nrain" in prompt_of(server)

    async def test_s8_a_call_cut_short_is_incomplete(self) -> None:
        said = CALL[: CALL.index("Kön")]
        server = trusting(said, reason=FinishReason.LENGTH)
        answer = await respond(server, tools=[WEATHER])
        (call,) = answer["output"]
        assert (answer["status"], call["status"]) == ("incomplete", "incomplete")
        assert call["arguments"] == '{"city": "'

    async def test_s8_a_choice_in_the_flat_form(self) -> None:
        server = trusting(CALL)
        choices: list[Any] = [
            {"type": "function", "name": "now"},
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "now"}],
            },
        ]
        for choice in choices:
            answer = await respond(
                server, tools=[WEATHER, NOW], tool_choice=choice, parallel_tool_calls=True
            )
            assert answer["tool_choice"] == choice
            assert answer["parallel_tool_calls"] is True
            grammar = server.engine.requests[-1].sampling.grammar
            assert grammar is not None
            assert "now" in grammar.text and "get_weather" not in grammar.text

    async def test_s8_what_cannot_be_enforced_names_its_place_here(self) -> None:
        server = serve(served=model(template=HERMES))
        wrong = {**WEATHER, "parameters": {"properties": {"a": {"pattern": "(?=x)"}}}}
        error = await refused(server, {"tools": [NOW, wrong], "tool_choice": "required"})
        assert error["param"].startswith("tools[1].parameters.properties.a")
        assert error["message"].startswith("tools[1].parameters")
        await server.close()


class TestForm:
    @pytest.fixture
    async def server(self) -> AsyncIterator[Served]:
        server = serve(saying('{"a": 1}'))
        yield server
        await server.close()

    async def test_s8_text_format_is_what_the_engine_is_held_to(self) -> None:
        server = serve(saying("{}"), grammar_check=Trusting)  # type: ignore[arg-type]
        schema = {"type": "json_schema", "name": "it", "schema": SCHEMA, "strict": True}
        for form, text in (
            ({"type": "text"}, None),
            ({"type": "json_object"}, '{"type":"object"}'),
            (schema, '"a"'),
        ):
            answer = await respond(server, text={"format": form, "verbosity": "low"})
            assert answer["text"] == {"format": form, "verbosity": "low"}
            grammar = server.engine.requests[-1].sampling.grammar
            assert (grammar is None) == (text is None)
            assert grammar is None or text is None or text in grammar.text

    async def test_s8_a_schema_that_cannot_be_enforced_is_400(self, server: Served) -> None:
        schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}}
        form = {"type": "json_schema", "name": "it", "schema": schema}
        error = await refused(server, {"text": {"format": form}, "stream": True})
        assert error["param"] == "text.format.schema.properties.a.pattern"
        assert error["message"].startswith(error["param"])


class TestReasoning:
    SAID = "<think>\nHm, so.\n</think>\n\nYes."

    async def test_s8_thinking_is_an_item_of_its_own(self) -> None:
        answer = await respond(trusting(self.SAID, template=THINKING))
        thought, message = answer["output"]
        assert thought["type"] == "reasoning" and thought["summary"] == []
        assert thought["content"][0]["type"] == "reasoning_text"
        assert thought["content"][0]["text"].strip() == "Hm, so."
        assert message["content"][0]["text"] == "Yes."
        usage = answer["usage"]
        assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]

    @pytest.mark.parametrize("at_once", [1, 3, 1000])
    async def test_s8_streamed_it_is_the_same(self, at_once: int) -> None:
        plain = await respond(trusting(self.SAID, template=THINKING))
        events = await events_of(trusting(self.SAID, template=THINKING, at_once=at_once))
        assert without_ids(events[-1]["response"]) == without_ids(plain)
        assert kinds([e for e in events if e.get("output_index") == 0]) == [
            *("output_item.added", "content_part.added", "reasoning_text.delta"),
            *("reasoning_text.done", "content_part.done", "output_item.done"),
        ]
        thinking = [e["delta"] for e in events if e["type"] == "response.reasoning_text.delta"]
        assert "".join(thinking) == plain["output"][0]["content"][0]["text"]

    async def test_s8_cut_while_thinking_there_is_no_message(self) -> None:
        server = trusting("<think>Hm and so", template=THINKING, reason=FinishReason.LENGTH)
        answer = await respond(server)
        (thought,) = answer["output"]
        assert (thought["type"], thought["status"]) == ("reasoning", "incomplete")

    async def test_s8_only_the_texts_tokens_have_log_probabilities(self) -> None:
        include = ["message.output_text.logprobs"]
        said = "<think>\nHm, so.\n</think>狐狸, “yes”. " + CALL + "狐" + SECOND
        template = HERMES + "{# </think> #}"
        for at_once in (1, 3, 1000):
            server = trusting(said, template=template, at_once=at_once)
            answer = await respond(server, include=include, tools=[WEATHER, NOW])
            texts = [item for item in answer["output"] if item["type"] == "message"]
            for item, said_here in zip(texts, ("狐狸, “yes”. ", "狐"), strict=True):
                (part,) = item["content"]
                raw = [byte for entry in part["logprobs"] for byte in entry["bytes"]]
                assert bytes(raw).decode().strip() == part["text"].strip() == said_here.strip()

    async def test_s8_effort_reaches_the_template(self) -> None:
        server = serve(served=model(template="{{ reasoning_effort }}"))
        answer = await respond(server, reasoning={"effort": "low"})
        assert prompt_of(server) == "low"
        assert answer["reasoning"] == {"effort": "low", "summary": None}


class Answer(BaseModel):
    a: int


FRAGMENTS = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        CALL,
        SECOND,
        "Yes.",
        " ",
        "\n",
        "é狐",
        "<",
    ]
)


@settings(max_examples=40, deadline=None)
@given(
    said=st.lists(FRAGMENTS, max_size=6).map("".join),
    at_once=st.integers(1, 5),
    limit=st.integers(1, 80),
)
async def test_s8_whatever_is_said_events_add_up_to_the_plain_answer(
    said: str, at_once: int, limit: int
) -> None:
    body = {"tools": [WEATHER, NOW], "max_output_tokens": limit}
    template = HERMES + "{# </think> #}"
    plain = await respond(trusting(said, template=template), **body)
    events = await events_of(trusting(said, template=template, at_once=at_once), **body)
    final = events[-1]["response"]
    assert without_ids(final) == without_ids(plain)
    done = [e for e in events if e["type"] == "response.output_item.done"]
    assert [e["item"] for e in done] == final["output"]
    assert [e["output_index"] for e in done] == list(range(len(done)))
    for index, item in enumerate(final["output"]):
        own = [e for e in events if e.get("output_index") == index]
        joined = "".join(e["delta"] for e in own if "delta" in e)
        assert {e["item_id"] for e in own if "item_id" in e} == {item["id"]}
        assert joined == (
            item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        )


class TestOfficialClient:
    """openai-python, unchanged, against a real port."""

    def client_of(self, url: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)

    async def test_s8_create_and_stream(self) -> None:
        async with listening(serve(saying(SAID))) as url, self.client_of(url) as client:
            plain = await client.responses.create(model="tiny", input="hello")
            assert plain.output_text == SAID
            stream = await client.responses.create(model="tiny", input="hello", stream=True)
            text = "".join(
                [e.delta async for e in stream if e.type == "response.output_text.delta"]
            )
            assert text == SAID

    async def test_s8_the_stream_helper_accumulates(self) -> None:
        said = "Let me see. " + CALL + SECOND
        async with listening(trusting(said)) as url, self.client_of(url) as client:
            tools: Any = [WEATHER, NOW]
            async with client.responses.stream(model="tiny", input="hi", tools=tools) as stream:
                snapshots = [
                    event.snapshot
                    async for event in stream
                    if event.type == "response.function_call_arguments.delta"
                ]
                final = await stream.get_final_response()
        assert final.output_text.strip() == "Let me see."
        calls = [item for item in final.output if item.type == "function_call"]
        assert [call.name for call in calls] == ["get_weather", "now"]
        assert calls[0].arguments in snapshots
        assert calls[0].parsed_arguments == {"city": 'Kön, "x"'}

    async def test_s8_parse(self) -> None:
        server = serve(saying('{"a": 1}'), grammar_check=Trusting)  # type: ignore[arg-type]
        async with listening(server) as url, self.client_of(url) as client:
            answer = await client.responses.parse(model="tiny", input="hi", text_format=Answer)
            assert answer.output_parsed == Answer(a=1)
            async with client.responses.stream(
                model="tiny", input="hi", text_format=Answer
            ) as stream:
                final = await stream.get_final_response()
            assert final.output_parsed == Answer(a=1)

    async def test_s8_errors_are_its_own(self) -> None:
        async with listening(serve()) as url, self.client_of(url) as client:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(
                    model="tiny", input="a", previous_response_id="resp_1"
                )
            assert refused.value.param == "previous_response_id"
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve("resp_1")
