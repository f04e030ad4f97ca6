"""API contract, section 4: the stream's wire format."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.params import Request
from octavo.engine.step import Delta

from ..fakes.engine import ScriptedEngine, told
from .serving import chunks, encoded, error_of, listening, saying, serve

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BOTH = pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
SAID = "once upon a time there was a naïve fox, 狐狸, who said: “hello”."


def body(path: str, **fields: Any) -> dict[str, Any]:
    start: dict[str, Any] = (
        {"prompt": "a"}
        if path == COMPLETIONS
        else {"messages": [{"role": "user", "content": "hello"}]}
    )
    return {"max_tokens": 200, **start, **fields}


def text_of(chunk: Any) -> str:
    choice = chunk["choices"][0]
    return choice["text"] if "text" in choice else choice["delta"].get("content") or ""


def joined(events: list[Any]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in events:
        if chunk["choices"]:
            index = chunk["choices"][0]["index"]
            texts[index] = texts.get(index, "") + text_of(chunk)
    return texts


@BOTH
async def test_s4_1_status_and_headers(path: str) -> None:
    response = await serve().post(path, body(path, stream=True))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


async def test_s4_1_chunked_over_http_1_1() -> None:
    async with listening(serve()) as url, httpx.AsyncClient() as client:
        response = await client.post(url + CHAT, json=body(CHAT, stream=True))
        assert response.headers["transfer-encoding"] == "chunked"


@BOTH
async def test_s4_2_one_line_an_event_whatever_the_text_has(path: str) -> None:
    nasty = "a\nb\r\n\x0b\x0c\x1c\x85\u2028\u2029 “q” \\ / \t狐\x00\x7f"
    server = serve(saying(nasty))
    response = await server.post(path, body(path, stream=True))
    assert joined(chunks(response.text))[0] == nasty
    assert "event:" not in response.text
    assert "狐" in response.text


@BOTH
async def test_s4_3_id_created_model_and_object_are_the_same_in_all_chunks(path: str) -> None:
    events = await serve().events(path, model="org/alias", n=3)
    kept = {tuple(chunk[k] for k in ("id", "created", "model", "object")) for chunk in events}
    assert len(kept) == 1
    (_, _, name, kind) = kept.pop()
    assert name == "org/alias"
    assert kind == ("text_completion" if path == COMPLETIONS else "chat.completion.chunk")


async def test_s4_4_the_first_chat_chunk_has_the_role_and_the_last_the_reason() -> None:
    events = await serve(saying("ab cd", "x")).events(CHAT, n=2, max_tokens=50)
    for index in (0, 1):
        own = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in choice["delta"] for choice in own[1:])
        assert all("finish_reason" in choice for choice in own)
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["stop"]
        assert own[-1]["delta"] == {}


async def test_s4_4_completion_chunks_have_exactly_one_reason_an_index() -> None:
    events = await serve(saying("ab cd", "x")).events(COMPLETIONS, n=2, max_tokens=50)
    for index in (0, 1):
        own = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["stop"]
        assert all("logprobs" in choice for choice in own)


@BOTH
async def test_s4_5_a_chunk_a_step_and_the_first_leaves_with_the_first_token(path: str) -> None:
    def first_then_silence(request: Request) -> list[Delta | None]:
        return [Delta(request_id="", token_ids=(encoded("x")[0],)), None]

    server = serve(first_then_silence)
    async with listening(server) as url, httpx.AsyncClient(timeout=20) as client:
        async with client.stream("POST", url + path, json=body(path, stream=True)) as response:
            async for line in response.aiter_lines():
                if '"x"' in line:
                    break  # it came although the second token never does
            else:
                raise AssertionError("the first token was held back")

    text = "abcdefgh"
    events = await serve(saying(text)).events(path, max_tokens=50)
    assert len([e for e in events if text_of(e)]) == len(encoded(text))


@BOTH
async def test_s4_6_no_usage_unless_it_is_asked_for(path: str) -> None:
    events = await serve().events(path)
    assert all(chunk.get("usage") is None for chunk in events)
    assert all(chunk["choices"] for chunk in events)
    events = await serve().events(path, stream_options={"include_usage": False})
    assert all(chunk["choices"] for chunk in events)


@BOTH
async def test_s4_6_usage_is_the_last_chunk_and_null_before(path: str) -> None:
    events = await serve().events(path, n=2, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] > 0
    assert all(chunk["choices"] and chunk["usage"] is None for chunk in events[:-1])


@BOTH
async def test_s4_6_continuous_usage_grows_in_every_chunk(path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await serve(saying("abcdef")).events(path, stream_options=options, max_tokens=50)
    counted = [chunk["usage"]["completion_tokens"] for chunk in events]
    assert counted == sorted(counted)
    assert counted[-1] == counted[-2] == len(encoded("abcdef")) + 1
    assert 1 in counted


@BOTH
async def test_s4_7_done_ends_the_stream(path: str) -> None:
    response = await serve().post(path, body(path, stream=True))
    assert response.text.endswith("\n\ndata: [DONE]\n\n")
    assert response.text.count("[DONE]") == 1


@BOTH
async def test_s4_8_silence_is_filled_with_comments_even_before_the_first_token(path: str) -> None:
    engine = ScriptedEngine(saying("abc"))
    engine.hold = asyncio.Event()
    server = serve(engine=engine, ping_interval=0.05)
    async with listening(server) as url, httpx.AsyncClient(timeout=20) as client:
        async with client.stream("POST", url + path, json=body(path, stream=True)) as response:
            lines = response.aiter_lines()
            async for line in lines:
                if line == ": ping":
                    break
            engine.hold.set()
            rest = [line async for line in lines]
    assert rest[-2:] == ["data: [DONE]", ""]


@BOTH
async def test_s4_9_errors_before_the_first_token_are_plain(path: str) -> None:
    server = serve(lambda request: [Delta(request_id="", error="it broke")])
    response = await server.post(path, body(path, stream=True))
    assert response.status_code == 500
    error_of(response)
    wrong = await server.post(path, body(path, stream=True, temperature=9))
    assert wrong.status_code == 400
    error_of(wrong)


@BOTH
async def test_s4_9_errors_later_are_one_event_and_the_end(path: str) -> None:
    def breaks(request: Request) -> list[Delta]:
        return [Delta(request_id="", token_ids=(300,)), Delta(request_id="", error="it broke")]

    response = await serve(breaks).post(path, body(path, stream=True))
    assert response.status_code == 200
    last = response.text.removesuffix("\n\n").split("\n\n")[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "server_error"
    assert "[DONE]" not in response.text
    assert response.text.count('"error"') == 1


@BOTH
async def test_s4_10_choices_come_interleaved(path: str) -> None:
    events = await serve(saying("aaa", "bbb")).events(path, n=2)
    order = [chunk["choices"][0]["index"] for chunk in events]
    assert order != sorted(order)


@BOTH
async def test_s4_12_a_character_waits_for_its_last_byte(path: str) -> None:
    # Each of the three bytes of 狸 is a token of its own in this vocabulary.
    assert len(encoded("狸")) > 1
    events = await serve(saying("狸🦊é")).events(path, max_tokens=50)
    assert not any("\ufffd" in text_of(chunk) for chunk in events)
    assert joined(events)[0] == "狸🦊é"


@BOTH
async def test_s4_12_incomplete_bytes_at_the_end_are_the_same_as_plain(path: str) -> None:
    cut = encoded("a🦊")[:-1]

    def script(request: Request) -> list[Delta]:
        return told(cut)

    server = serve(script)
    events = await server.events(path)
    plain = (await server.post(path, body(path))).json()["choices"][0]
    text = plain["text"] if path == COMPLETIONS else plain["message"]["content"]
    assert joined(events)[0] == text == "a\ufffd"


texts = st.text(
    st.sampled_from("ab 狐狸🦊é\n\u2028“<|>") | st.characters(exclude_categories=["Cs"]),
    max_size=20,
)


@given(
    said=st.lists(texts, min_size=1, max_size=3),
    stops=st.lists(texts.filter(bool), max_size=3),
    n=st.integers(1, 3),
    at_once=st.integers(1, 4),
    limit=st.integers(0, 60),
    include=st.booleans(),
    min_tokens=st.integers(0, 3),
    logprobs=st.sampled_from([None, 0, 2]),
    path=st.sampled_from([COMPLETIONS, CHAT]),
)
@settings(max_examples=150, deadline=None)
async def test_s4_11_joined_deltas_are_the_plain_text(
    said: list[str],
    stops: list[str],
    n: int,
    at_once: int,
    limit: int,
    include: bool,
    min_tokens: int,
    logprobs: int | None,
    path: str,
) -> None:
    server = serve(saying(*said, at_once=at_once))
    fields: dict[str, Any] = {
        "n": n,
        "max_tokens": limit,
        "min_tokens": min(min_tokens, limit),
        "stop": stops,
        "include_stop_str_in_output": include,
    }
    if logprobs is not None and path == COMPLETIONS:
        fields["logprobs"] = logprobs
    plain = (await server.post(path, body(path, **fields))).json()["choices"]
    events = await server.events(path, **fields)
    streamed = joined(events)
    for index, choice in enumerate(plain):
        text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
        assert streamed[index] == text
        if not stops and limit > len(encoded(said[index % len(said)])):
            assert text == said[index % len(said)]
        own = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"]:
            lists = [c["logprobs"] for c in own if c["logprobs"]]
            for name, values in choice["logprobs"].items():
                assert [v for one in lists for v in one[name]] == values
            assert "".join(choice["logprobs"]["tokens"]) == text
