"""API contract, section 3b: tools. The engine is scripted; what it is held to is looked at.

That a real engine keeps to it is shown in `tests/e2e/test_structured.py`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.bundled import TARGET
from octavo.engine.errors import SequenceFailed
from octavo.engine.params import FinishReason, GrammarKind, GrammarSpec
from octavo.engine.sampling.grammar import GrammarCompiler
from octavo.server.text.tokenizer import Tokenizer

from ..fakes.engine import told
from .serving import TEMPLATE, Served, model, saying, serve

PATH = "/v1/chat/completions"
HERMES = (
    "{% if tools %}<tool_call>{% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}"
    + TEMPLATE.replace(
        "{{ m.content }}",
        "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "[{{ c.function.name }} {{ c.function.arguments.city }}]{% endfor %}",
    )
)
THINKING = TEMPLATE + "{# </think> #}"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "How it is outside.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Kön, \\"x\\""}}\n</tool_call>'
ARGUMENTS = {"city": 'Kön, "x"'}
SECOND = '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


class Trusting:
    """A `GrammarCheck` that lets everything through, at once."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[GrammarSpec, str]] = []

    async def check(self, spec: GrammarSpec, path: str) -> GrammarSpec:
        self.asked.append((spec, path))
        return spec

    async def close(self) -> None: ...


def trusting(*said: str, template: str = HERMES, **options: Any) -> Served:
    return serve(
        saying(*said, **options),
        served=model(template=template),
        grammar_check=Trusting,  # type: ignore[arg-type]
    )


@pytest.fixture
async def checking() -> AsyncIterator[Served]:
    """With real checks of grammars."""
    server = serve(saying("hm"), served=model(template=HERMES))
    yield server
    await server.close()


def tool(**function: Any) -> list[Any]:
    return [{"type": "function", "function": function}]


async def test_s3b_a_malformed_entry_is_400_and_its_place_is_named() -> None:
    server = trusting()
    here = "tools[0].function"
    for tools, param in [
        ([], "tools"),
        ({}, "tools"),
        ("f", "tools"),
        ([1], "tools[0]"),
        ([{}], "tools[0]"),
        ([{"type": "retrieval"}], "tools[0]"),
        ([{"type": "function"}], here),
        (tool(), f"{here}.name"),
        (tool(name=5), f"{here}.name"),
        (tool(name=""), f"{here}.name"),
        (tool(name="a b"), f"{here}.name"),
        (tool(name="x" * 65), f"{here}.name"),
        (tool(name="f", description=1), f"{here}.description"),
        (tool(name="f", strict="yes"), f"{here}.strict"),
        (tool(name="f", parameters=[]), f"{here}.parameters"),
        (tool(name="f", parameters={"type": "array"}), f"{here}.parameters.type"),
        ([TIME, TIME], "tools"),
        ([TIME] * 129, "tools"),
    ]:
        body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools}
        error = await server.refusal(PATH, body)
        assert str(error["param"]).removesuffix("[0]").startswith(param.removesuffix("[0]")), error
        assert error["type"] == "invalid_request_error"
    assert not server.engine.requests


async def test_s3b_a_wrong_tool_choice_is_400() -> None:
    server = trusting("hm")
    unknown = {"type": "function", "function": {"name": "other"}}
    for choice in ("maybe", 5, {}, {"type": "function"}, unknown, {"type": "allowed_tools"}):
        body = {"messages": [{"role": "user", "content": "hi"}], "tool_choice": choice}
        error = await server.refusal(PATH, {**body, "tools": [WEATHER]})
        assert str(error["param"]).startswith("tool_choice")
    for choice in ("auto", "required", unknown):  # without tools
        body = {"messages": [{"role": "user", "content": "hi"}], "tool_choice": choice}
        assert (await server.refusal(PATH, body))["param"] == "tool_choice"
    body = {"messages": [{"role": "user", "content": "hi"}], "parallel_tool_calls": "no"}
    assert (await server.refusal(PATH, body))["param"] == "parallel_tool_calls"
    await server.chat(tool_choice="none")
    await server.chat(tools=None, tool_choice=None, parallel_tool_calls=None)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "string", "pattern": "(?=x)"}, "a.pattern"),  # only the compiler finds it
        ({"type": "array", "uniqueItems": True}, "a.uniqueItems"),
        ({"type": "string", "format": "iri"}, "a.format"),
        ({"not": {"type": "null"}}, "a.not"),
    ],
)
async def test_s3c_arguments_that_cannot_be_enforced_are_400_whether_or_not_a_call_is_forced(
    checking: Served, schema: Any, place: str
) -> None:
    parameters = {"type": "object", "properties": {"a": schema}}
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    for choice, strict in itertools.product((None, "auto", "required"), (None, False, True)):
        body["tools"] = [WEATHER, *tool(name="f", parameters=parameters, strict=strict)]
        error = await checking.refusal(PATH, {**body, "tool_choice": choice})
        assert error["param"] == f"tools[1].function.parameters.properties.{place}"
        assert error["param"] in error["message"]
    assert not checking.engine.requests
    await checking.chat(tools=body["tools"], tool_choice="none")


async def test_s3b_with_a_form_an_answer_is_a_call_or_of_that_form(checking: Served) -> None:
    form = {"response_format": {"type": "json_object"}}
    await checking.chat(tools=[TIME], tool_choice="none", **form)
    grammar = checking.engine.requests[-1].sampling.grammar
    assert grammar == GrammarSpec(GrammarKind.JSON_SCHEMA, '{"type":"object"}')
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    compiler = GrammarCompiler.from_folder(TARGET, vocab_size=4096, stop_ids=(1,))
    for choice, good, bad in [
        ("auto", [call, "{}", '{"a": 1}'], ["hm", call + "{}", "[]"]),
        ("required", [call], ["{}", "hm"]),
    ]:
        await checking.chat(tools=[TIME], tool_choice=choice, **form)
        bound = checking.engine.requests[-1].sampling.grammar
        assert bound is not None
        for text in good:
            assert _is_answer(compiler, bound, text), text
        for text in bad:
            assert not _is_answer(compiler, bound, text), text
    compiler.close()


async def test_s3b_a_form_that_no_grammar_can_tell_from_a_call_is_400(checking: Served) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [TIME]}
    assert (await checking.refusal(PATH, {**body, "guided_regex": "a"}))["param"] == "tools"
    bare = trusting("hm", template=TEMPLATE)
    assert (await bare.refusal(PATH, {**body, "guided_json": {}}))["param"] == "tools"


def _is_answer(compiler: GrammarCompiler, spec: GrammarSpec, text: str) -> bool:
    walk = compiler.start(spec)
    try:
        walk.accept(Tokenizer.from_folder(TARGET).encode(text, add_special_tokens=False))
    except SequenceFailed:
        return False
    return bool(walk.mask(4096)[0, 0] & 1 << 1)  # the end of the sequence is allowed


@pytest.mark.parametrize(
    ("choice", "forced", "names"),
    [
        (None, False, ["get_weather", "now"]),
        ("auto", False, ["get_weather", "now"]),
        ("required", True, ["get_weather", "now"]),
        ({"type": "function", "function": {"name": "now"}}, True, ["now"]),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "now"}}],
                },
            },
            True,
            ["now"],
        ),
    ],
)
async def test_s3b_the_engine_is_held_to_what_the_choice_says(
    choice: Any, forced: bool, names: list[str]
) -> None:
    server = trusting("hm")
    await server.chat(tools=[WEATHER, TIME], tool_choice=choice)
    (request,) = server.engine.requests
    grammar = request.sampling.grammar
    assert grammar is not None and grammar.kind is GrammarKind.LARK
    start = next(line for line in grammar.text.splitlines() if line.startswith("start"))
    assert ("any_call" in start) == forced
    for name in ("get_weather", "now"):
        assert (f'\\"name\\": \\"{name}\\"' in grammar.text) == (name in names)


async def test_s3b_none_shows_the_tools_and_binds_nothing() -> None:
    server = trusting(CALL)
    answer = await server.chat(tools=[WEATHER], tool_choice="none")
    (request,) = server.engine.requests
    assert request.sampling.grammar is None
    assert "get_weather" in model().tokenizer.decode(request.prompt_token_ids)
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == CALL
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_s3b_the_result_of_a_call(choice: str) -> None:
    answer = await trusting(CALL).chat(tools=[WEATHER, TIME], tool_choice=choice)
    (one,) = answer["choices"]
    assert one["finish_reason"] == "tool_calls"
    message = one["message"]
    assert message["content"] is None and message["role"] == "assistant"
    (call,) = message["tool_calls"]
    assert call["id"] and call["type"] == "function"
    assert call["function"]["name"] == "get_weather"
    assert isinstance(call["function"]["arguments"], str)
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS
    assert set(call) == {"id", "type", "function"}


async def test_s3b_several_calls_have_ids_of_their_own_and_text_before_them_is_content() -> None:
    answer = await trusting("Let me see. " + CALL + SECOND).chat(tools=[WEATHER, TIME], n=2)
    ids = []
    for choice in answer["choices"]:
        message = choice["message"]
        assert message["content"].strip() == "Let me see."
        assert [call["function"]["name"] for call in message["tool_calls"]] == [
            "get_weather",
            "now",
        ]
        assert message["tool_calls"][1]["function"]["arguments"] == "{}"
        ids += [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 4


async def test_s3_tool_calls_is_absent_without_calls() -> None:
    answer = await trusting("No need.").chat(tools=[WEATHER])
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "No need.", "refusal": None}
    assert choice["finish_reason"] == "stop"


async def test_s5_a_call_that_is_cut_says_length() -> None:
    server = trusting(CALL, reason=FinishReason.LENGTH)
    answer = await server.chat(tools=[WEATHER], max_tokens=56)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["arguments"].startswith('{"ci')
    with pytest.raises(ValueError):
        json.loads(call["function"]["arguments"])


@pytest.mark.parametrize("at_once", [1, 2, 5, 1000])
@pytest.mark.parametrize("said", [CALL, CALL + SECOND, "Well. " + CALL, "No need.", "a <tool_c"])
async def test_s3b_a_stream_and_s4_11_it_equals_the_answer(said: str, at_once: int) -> None:
    plain = await trusting(said).chat(tools=[WEATHER, TIME])
    message = plain["choices"][0]["message"]
    server = trusting(said, at_once=at_once)
    events = await server.events(PATH, tools=[WEATHER, TIME])
    choices = [event["choices"][0] for event in events]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in choice["delta"] for choice in choices[1:])
    reasons = [choice["finish_reason"] for choice in choices]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert reasons[-1] == plain["choices"][0]["finish_reason"]
    content, calls = "", []
    for choice in choices:
        content += choice["delta"].get("content", "")
        for piece in choice["delta"].get("tool_calls", []):
            if "id" in piece:
                assert piece["index"] == len(calls), "id and name exactly once, in order"
                assert piece["type"] == "function"
                assert piece["function"]["arguments"] == ""
                assert piece["id"] not in [call["id"] for call in calls]
                calls.append({"id": piece["id"], "function": dict(piece["function"])})
            else:
                assert set(piece) == {"index", "function"}
                assert set(piece["function"]) == {"arguments"}
                calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    assert content == (message["content"] or "")
    assert [call["function"] for call in calls] == [
        call["function"] for call in message.get("tool_calls", [])
    ]
    if at_once == 1 and said == CALL:
        pieces = [c for c in choices if c["delta"].get("tool_calls")]
        assert len(pieces) > 4, "several pieces, not one"


async def test_s4_4_nothing_follows_the_finish_reason_of_a_choice() -> None:
    events = await trusting(CALL, "No need.").events(PATH, tools=[WEATHER], n=2)
    ended: dict[int, str] = {}
    for event in events:
        (choice,) = event["choices"]
        assert choice["index"] not in ended
        if choice["finish_reason"]:
            ended[choice["index"]] = choice["finish_reason"]
    assert ended == {0: "tool_calls", 1: "stop"}


async def test_s3b_the_returned_message_is_accepted_as_input() -> None:
    server = trusting(CALL)
    answer = await server.chat(tools=[WEATHER])
    returned = answer["choices"][0]["message"]
    messages = [
        {"role": "user", "content": "And?"},
        returned,
        {"role": "tool", "tool_call_id": returned["tool_calls"][0]["id"], "content": "fine"},
    ]
    await server.chat(messages=messages, tools=[WEATHER])
    prompt = model().tokenizer.decode(server.engine.requests[-1].prompt_token_ids)
    assert '[get_weather Kön, "x"]' in prompt


async def test_s6b_logprobs_and_usage_are_those_of_all_tokens() -> None:
    body = {"tools": [WEATHER], "logprobs": True, "top_logprobs": 1}
    plain = await trusting(CALL).chat(**body)
    scored = plain["choices"][0]["logprobs"]["content"]
    assert len(scored) == plain["usage"]["completion_tokens"]
    assert bytes(b for entry in scored for b in entry["bytes"] or ()).decode().startswith(CALL)
    options = {"include_usage": True}
    events = await trusting(CALL).events(PATH, **body, stream_options=options)
    assert events[-1]["usage"] == plain["usage"]
    streamed = [
        entry
        for event in events[:-1]
        for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == scored


async def test_return_token_ids_of_silent_tokens_too() -> None:
    plain = await trusting(CALL).chat(tools=[WEATHER], return_token_ids=True)
    events = await trusting(CALL).events(PATH, tools=[WEATHER], return_token_ids=True)
    streamed = [i for event in events for i in event["choices"][0].get("token_ids", [])]
    assert streamed == plain["choices"][0]["token_ids"]


async def test_each_tool_is_checked_by_itself_before_all_together() -> None:
    server = trusting(CALL)
    await server.chat(tools=[WEATHER, TIME])
    check, *_ = server.app.state.helpers
    assert [path for _, path in check.asked] == [
        "tools[0].function.parameters",
        "tools[1].function.parameters",
        "tools",
    ]


# The bundled model's markers: control tokens, so that they are no part of the text.
BUNDLED = Tokenizer.from_folder(TARGET)
HIDDEN = TEMPLATE + "{# <|tool_call|> #}"
PIECES = ["ab", "c", " ", "\n", '<|tool_call|>{"name": "now", "arguments": {}}<|/tool_call|>']


@given(
    said=st.lists(st.sampled_from(PIECES), max_size=5).map("".join),
    stops=st.lists(st.sampled_from(["abZ", "cZ", " Z", '{"nZ', "}Z", "ab\nZ"]), max_size=3),
    shown=st.booleans(),
    at_once=st.sampled_from([1, 2, 3, 1000]),
)
@settings(max_examples=100, deadline=None)
async def test_s7_a_stop_string_that_is_only_suspected_moves_no_text_past_a_hidden_marker(
    said: str, stops: list[str], shown: bool, at_once: int
) -> None:
    ids = BUNDLED.encode(said, add_special_tokens=False, parse_special=True)

    def serving() -> Served:
        return serve(
            lambda request: told(ids, at_once=at_once),
            served=model(BUNDLED, template=HIDDEN),
            grammar_check=Trusting,  # type: ignore[arg-type]
        )

    body = {"tools": [TIME], "skip_special_tokens": not shown}
    plain = message(await serving().chat(**body))
    stopped = message(await serving().chat(**body, stop=stops))
    assert stopped == plain
    assert streamed(await serving().events(PATH, **body, stop=stops)) == plain


def message(answer: Any) -> tuple[str, list[tuple[str, str]]]:
    said = answer["choices"][0]["message"]
    calls = [call["function"] for call in said.get("tool_calls", [])]
    return said["content"] or "", [(call["name"], call["arguments"]) for call in calls]


def streamed(events: Any) -> tuple[str, list[tuple[str, str]]]:
    content = ""
    calls: dict[int, tuple[str, str]] = {}
    for event in events:
        delta = event["choices"][0]["delta"]
        content += delta.get("content") or ""
        for call in delta.get("tool_calls", []):
            name, arguments = calls.get(call["index"], ("", ""))
            function = call["function"]
            calls[call["index"]] = (
                name + function.get("name", ""),
                arguments + function["arguments"],
            )
    return content, list(calls.values())


class TestReasoning:
    """A model whose template speaks of `<think>`."""

    SAID = "<think>\nHm, so.\n</think>\n\nYes."

    async def test_thinking_is_apart_and_counted(self) -> None:
        server = trusting(self.SAID, template=THINKING)
        answer = await server.chat()
        (choice,) = answer["choices"]
        assert choice["message"]["reasoning_content"].strip() == "Hm, so."
        assert choice["message"]["content"] == "Yes."
        usage = answer["usage"]
        thought = usage["completion_tokens_details"]["reasoning_tokens"]
        assert 0 < thought < usage["completion_tokens"]

    @pytest.mark.parametrize("at_once", [1, 3, 1000])
    async def test_s4_11_streamed_it_is_the_same(self, at_once: int) -> None:
        plain = await trusting(self.SAID, template=THINKING).chat()
        options = {"include_usage": True}
        server = trusting(self.SAID, template=THINKING, at_once=at_once)
        events = await server.events(PATH, stream_options=options)
        deltas = [event["choices"][0]["delta"] for event in events[:-1]]
        message = plain["choices"][0]["message"]
        for field in ("content", "reasoning_content"):
            assert "".join(delta.get(field, "") for delta in deltas) == message[field]
        assert events[-1]["usage"] == plain["usage"]

    async def test_cut_while_thinking_there_is_no_content(self) -> None:
        server = trusting("<think>Hm and so on", template=THINKING, reason=FinishReason.LENGTH)
        (choice,) = (await server.chat())["choices"]
        assert choice["message"]["content"] is None
        assert choice["message"]["reasoning_content"] == "Hm and so on"
        assert choice["finish_reason"] == "length"

    async def test_a_prompt_may_open_the_thinking(self) -> None:
        template = THINKING + "{% if add_generation_prompt %}<think>\n{% endif %}"
        server = trusting("Hm.</think>Yes.", template=template)
        (choice,) = (await server.chat())["choices"]
        assert choice["message"]["reasoning_content"] == "Hm."
        assert choice["message"]["content"] == "Yes."

    @pytest.mark.parametrize("opened", [False, True])
    async def test_a_grammar_leaves_room_for_it(self, opened: bool) -> None:
        opening = "{% if add_generation_prompt %}<think>\n{% endif %}" if opened else ""
        server = trusting("<think>a</think>{}", template=THINKING + opening)
        await server.chat(response_format={"type": "json_object"})
        grammar = server.engine.requests[-1].sampling.grammar
        assert grammar is not None and grammar.text == '{"type":"object"}'
        assert grammar.lead.startswith("start: thinking" if opened else "start: (opening")

    async def test_calls_come_behind_it(self) -> None:
        said = "<think>I could <tool_call> it</think>" + CALL
        (choice,) = (
            await trusting(said, template=HERMES + "{# </think> #}").chat(tools=[WEATHER])
        )["choices"]
        assert choice["message"]["reasoning_content"] == "I could <tool_call> it"
        assert len(choice["message"]["tool_calls"]) == 1
        assert choice["message"]["content"] is None
        assert choice["finish_reason"] == "tool_calls"
