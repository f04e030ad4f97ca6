"""API contract, what answers and streams say beside their text: sections 1 to 6.

What the other files of this folder say of one endpoint is asked of both here, and of several
prompts and choices at once.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from octavo.engine.bundled import TARGET
from octavo.engine.params import FinishReason, Request
from octavo.engine.step import Delta, TokenLogprobs
from octavo.server.openai import schema
from octavo.server.settings import Settings
from octavo.server.text.tokenizer import Tokenizer

from ..fakes.engine import ScriptedEngine, told
from .serving import Served, encoded, error_of, model, saying, serve
from .test_api_tools import ARGUMENTS, CALL, PATH, WEATHER, trusting

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BOTH = pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
USER = {"role": "user", "content": "hello"}


def start(path: str) -> dict[str, Any]:
    return {"prompt": "once"} if path == COMPLETIONS else {"messages": [USER]}


async def plain(server: Served, path: str, **fields: Any) -> Any:
    response = await server.post(path, {**start(path), **fields})
    assert response.status_code == 200, response.text
    return response.json()


# --- section 1 -----------------------------------------------------------------------------------


async def test_s1_a_models_entry_says_whose_name_an_alias_is() -> None:
    server = serve()
    for name in ("tiny", "org/alias"):
        entry = (await server.http.get(f"/v1/models/{name}")).json()
        assert entry["id"] == name
        assert (entry["root"], entry["parent"]) == ("tiny", None)
        (permission,) = entry["permission"]
        assert permission["created"] == entry["created"] == 1700000000
        listed = (await server.http.get("/v1/models")).json()["data"]
        assert entry in listed


@pytest.mark.parametrize(
    ("path", "takes", "gives", "streams"),
    [
        (COMPLETIONS, "CompletionRequest", "Completion", True),
        (CHAT, "ChatRequest", "ChatCompletion", True),
        ("/v1/responses", "ResponsesRequest", "ModelResponse", True),
        ("/v1/embeddings", "EmbeddingRequest", "EmbeddingList", False),
        ("/tokenize", "TokenizeRequest", "Tokenized", False),
        ("/detokenize", "DetokenizeRequest", "Detokenized", False),
    ],
)
async def test_s1_openapi_says_what_is_taken_and_given(
    path: str, takes: str, gives: str, streams: bool
) -> None:
    document = (await serve().http.get("/openapi.json")).json()
    operation = document["paths"][path]["post"]
    taken = operation["requestBody"]["content"]["application/json"]["schema"]
    assert taken == {"$ref": f"#/components/schemas/{takes}"}
    content = operation["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {"$ref": f"#/components/schemas/{gives}"}
    assert ("text/event-stream" in content) == streams


async def test_s1_openapi_has_every_field_of_a_completion() -> None:
    document = (await serve().http.get("/openapi.json")).json()
    properties = document["components"]["schemas"]["CompletionRequest"]["properties"]
    assert set(properties) == set(schema.CompletionRequest.__struct_fields__)
    for name, least, most in (
        *(("n", 1, 128), ("best_of", 1, 20), ("logprobs", 0, 20)),
        *(("temperature", 0, 2), ("top_p", 0, 1), ("min_p", 0, 1)),
        *(("presence_penalty", -2, 2), ("frequency_penalty", -2, 2)),
        ("seed", -(2**63), 2**63 - 1),
    ):
        number = next(k for k in properties[name]["anyOf"] if k["type"] in ("integer", "number"))
        assert (number.get("minimum"), number.get("maximum")) == (least, most), name


async def test_s1_tokenize_takes_tools_and_what_templates_want() -> None:
    template = "{{ tools[0].function.name }}/{{ enable_thinking }}/{{ messages[0].content }}"
    server = serve(served=model(template=template))
    body = {
        "messages": [USER],
        "tools": [{"type": "function", "function": {"name": "now"}}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    answer = (await server.post("/tokenize", body)).json()
    assert model().tokenizer.decode(answer["tokens"]) == "now/False/hello"


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_s1_tokenizing_for_an_unknown_model_is_404(path: str) -> None:
    body = {"prompt": "a", "tokens": [20], "model": "gpt-9"}
    assert (await serve().refusal(path, body, 404))["code"] == "model_not_found"


async def test_s1_tokenizer_info_is_the_tokenizers_configuration() -> None:
    tokenizer = Tokenizer.from_folder(TARGET)
    info = (await serve(served=model(tokenizer)).http.get("/tokenizer_info")).json()
    assert info["eos_token"] == tokenizer.special_tokens["eos_token"]
    assert "tokenizer_class" in info
    assert info == {**tokenizer.config, **tokenizer.special_tokens}


# --- sections 2 to 5 -----------------------------------------------------------------------------


@BOTH
async def test_s2_s10_the_fingerprint_is_that_of_the_configuration(path: str) -> None:
    server = serve()
    first = (await plain(server, path))["system_fingerprint"]
    assert first
    assert {e["system_fingerprint"] for e in await server.events(path)} == {first}
    assert (await plain(serve(), path, seed=7, n=2))["system_fingerprint"] == first
    other = serve(max_num_seqs=3)
    assert (await plain(other, path))["system_fingerprint"] != first


async def test_s3b_a_named_call_ends_with_tool_calls() -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    answer = await trusting(CALL).chat(tools=[WEATHER], tool_choice=named)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS
    events = await trusting(CALL).events(PATH, tools=[WEATHER], tool_choice=named)
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_s4_8_a_connection_is_never_silent_for_15_seconds() -> None:
    assert Settings().ping_interval <= 15


@BOTH
async def test_s4_9_a_bug_in_the_middle_of_a_stream_is_one_event_that_shows_nothing(
    path: str,
) -> None:
    class Broken(list[Delta]):
        """The second delta cannot be had."""

        def __iter__(self) -> Any:
            yield Delta(request_id="", token_ids=(encoded("x")[0],))
            raise KeyError("/secret/path")

    response = await serve(lambda request: Broken()).post(path, {**start(path), "stream": True})
    assert response.status_code == 200
    *_, last = response.text.removesuffix("\n\n").split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert set(error) == {"message", "type", "param", "code"}
    assert "secret" not in response.text
    assert "[DONE]" not in response.text


async def test_s4_10_prompts_come_interleaved() -> None:
    events = await serve(saying("aaaa", "bbbb")).events(COMPLETIONS, prompt=["one", "two"], n=2)
    order = [event["choices"][0]["index"] for event in events]
    assert set(order) == {0, 1, 2, 3}
    assert order.index(2) < len(order) - order[::-1].index(0) - 1


@BOTH
async def test_s4_6_continuous_usage_alone_brings_no_chunk_without_choices(path: str) -> None:
    options = {"continuous_usage_stats": True}
    events = await serve(saying("abc")).events(path, stream_options=options)
    assert all(event["choices"] for event in events)
    assert events[-1]["usage"]["completion_tokens"] == len(encoded("abc")) + 1


@BOTH
async def test_s5_the_reason_length_where_the_limit_was_reached(path: str) -> None:
    server = serve(saying("abcdef", "x"))
    answer = await plain(server, path, n=2, max_tokens=3)
    assert [c["finish_reason"] for c in answer["choices"]] == ["length", "stop"]
    assert [c["stop_reason"] for c in answer["choices"]] == [None, None]
    ended = {
        reason: value
        for reason in ("stop", "length", "abort", "error")
        if (value := ended_with(server, reason))
    }
    assert ended == {"stop": 1, "length": 1}


def ended_with(server: Served, reason: str) -> float:
    """Choices that the metrics have seen ending so."""
    start = f'octavo:request_success_total{{engine="0",finished_reason="{reason}"'
    (line,) = [x for x in server.metrics.render().decode().splitlines() if x.startswith(start)]
    return float(line.rsplit(" ", 1)[1])


@BOTH
async def test_s5_a_failed_request_has_no_finish_reason_but_an_error(path: str) -> None:
    server = serve(lambda request: [Delta(request_id="", error="it broke")])
    await server.refusal(path, start(path), 500)
    assert ended_with(server, "error") == 1
    assert ended_with(server, "stop") == ended_with(server, "length") == 0


# --- section 6 -----------------------------------------------------------------------------------


@BOTH
async def test_s6_the_context_is_named_where_it_is_exceeded(path: str) -> None:
    wide: dict[str, Any] = (
        {"prompt": [20] * 600}
        if path == COMPLETIONS
        else {"messages": [{"role": "user", "content": "x" * 600}]}
    )
    for fields in (wide, {**start(path), "max_tokens": 600}):
        for stream in (False, True):
            error = await serve().refusal(path, {**fields, "stream": stream})
            assert error["code"] == "context_length_exceeded"
            assert error["type"] == "invalid_request_error"
            assert "maximum context length is 512 tokens" in error["message"]
            assert error["param"] == ("prompt" if path == COMPLETIONS else "messages")


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_s6_429_and_503_say_when_to_come_back_on_both_endpoints(
    path: str, stream: bool
) -> None:
    engine = ScriptedEngine(saying("a"))
    engine.hold = asyncio.Event()
    server = serve(engine=engine, max_queue_requests=1)
    waiting = asyncio.create_task(server.complete())
    while not engine.requests:
        await asyncio.sleep(0)
    full = await server.post(path, {**start(path), "stream": stream})
    server.app.state.admission.draining = True
    closing = await server.post(path, {**start(path), "stream": stream})
    for response, status, kind in (
        (full, 429, "rate_limit_error"),
        (closing, 503, "unavailable"),
    ):
        assert response.status_code == status
        assert error_of(response)["type"] == kind
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["x-request-id"]
    engine.hold.set()
    await waiting


@BOTH
async def test_s6_a_clients_request_id_is_on_its_stream(path: str) -> None:
    server = serve()
    for fields in ({"stream": True}, {}, {"n": 0}):
        response = await server.post(
            path, {**start(path), **fields}, headers={"x-request-id": "bench-1"}
        )
        assert response.headers["x-request-id"] == "bench-1"


# --- section 6b ----------------------------------------------------------------------------------


async def test_s6b_minus_infinity_is_written_minus_9999_everywhere() -> None:
    server = serve(saying("a", reason=FinishReason.LENGTH))
    body = {"logprobs": True, "top_logprobs": 6, "prompt_logprobs": 6, "max_tokens": 1}
    answer = await server.chat(**body)
    (entry,) = answer["choices"][0]["logprobs"]["content"]
    assert entry["top_logprobs"][-1]["logprob"] == -9999.0
    assert min(e["logprob"] for e in answer["prompt_logprobs"][1].values()) == -9999.0

    def impossible(request: Request) -> list[Delta]:
        def scored(place: int, token: int) -> TokenLogprobs:
            return TokenLogprobs(
                token_id=token, logprob=float("-inf"), rank=9, top_ids=(), top_logprobs=()
            )

        return told(encoded("b"), logprobs=scored)

    found = (await serve(impossible).complete(logprobs=0))["choices"][0]["logprobs"]
    assert found["token_logprobs"] == [-9999.0]
    assert found["top_logprobs"] == [{"b": -9999.0}]
    (entry,) = (await serve(impossible).chat(logprobs=True))["choices"][0]["logprobs"]["content"]
    assert entry["logprob"] == -9999.0


async def test_s6b_in_chat_each_choice_has_its_own_plain_and_streamed() -> None:
    said = ["a狸c", "d", "🦊"]
    server = serve(saying(*said))
    body = {"n": 3, "logprobs": True, "top_logprobs": 1}
    choices = (await server.chat(**body))["choices"]
    for choice, text in zip(choices, said, strict=True):
        entries = choice["logprobs"]["content"]
        assert bytes(b for entry in entries for b in entry["bytes"]).decode() == text
    events = await server.events(CHAT, **body)
    for index, choice in enumerate(choices):
        own = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        streamed = [x for c in own for x in (c["logprobs"] or {"content": []})["content"]]
        assert streamed == choice["logprobs"]["content"]


async def test_s6b_in_chat_streams_the_bytes_of_a_character_come_when_it_is_shown() -> None:
    assert len(encoded("狸")) > 1
    events = await serve(saying("a狸")).events(CHAT, logprobs=True)
    shown = raw = b""
    for event in events:
        (choice,) = event["choices"]
        shown += choice["delta"].get("content", "").encode()
        entries = (choice["logprobs"] or {"content": []})["content"]
        raw += bytes(b for entry in entries for b in entry["bytes"])
        assert raw == shown
    assert shown.decode() == "a狸"


async def test_s6b_in_chat_tokens_may_be_told_as_ids() -> None:
    body = {"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True}
    (choice,) = (await serve(saying("ab")).chat(**body))["choices"]
    entries = choice["logprobs"]["content"]
    assert [e["token"] for e in entries] == [f"token_id:{i}" for i in [*encoded("ab"), 1]]
    assert all(top["token"].startswith("token_id:") for e in entries for top in e["top_logprobs"])


async def test_s6b_the_chosen_ones_number_is_that_of_its_place_in_the_map() -> None:
    """lm-eval compares with ==: the same float, in both forms, to the last digit."""

    def script(request: Request) -> list[Delta]:
        return told(encoded("a"), logprobs=lambda place, token: likeliest(token))

    def likeliest(token: int) -> TokenLogprobs:
        third = -1 / 3
        return TokenLogprobs(
            token_id=token, logprob=third, rank=1, top_ids=(token, 30), top_logprobs=(third, -2.5)
        )

    found = (await serve(script).complete(logprobs=2))["choices"][0]["logprobs"]
    assert found["token_logprobs"][0] == max(found["top_logprobs"][0].values()) == -1 / 3
    (choice,) = (await serve(script).chat(logprobs=True, top_logprobs=2))["choices"]
    (entry,) = choice["logprobs"]["content"]
    assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] == -1 / 3
