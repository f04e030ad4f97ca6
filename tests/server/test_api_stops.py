"""API contract, section 7 (stop strings and stop ids)."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.engine.params import FinishReason, Request
from octavo.engine.step import Delta

from ..fakes.engine import told
from .serving import encoded, saying, serve

PATH = "/v1/completions"


async def stopped(said: str, stop: Any, **body: Any) -> dict[str, Any]:
    """The choice; a stream must bring the same."""
    server = serve(saying(said))
    body = {"max_tokens": 100, "stop": stop, **body}
    choice: dict[str, Any] = (await server.complete(**body))["choices"][0]
    events = await server.events(PATH, **body)
    assert "".join(chunk["choices"][0]["text"] for chunk in events) == choice["text"]
    assert events[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert events[-1]["choices"][0]["stop_reason"] == choice["stop_reason"]
    return choice


@pytest.mark.parametrize(
    ("said", "stop", "text", "reason"),
    [
        ("once upon a time", "upon", "once ", "upon"),
        ("once upon a time", ["time", "upon"], "once ", "upon"),
        ("once upon", ["up", "upon"], "once ", "up"),
        ("once upon", ["upon", "up"], "once ", "upon"),
        ("aaab", "aab", "a", "aab"),
        ("abababac", "ababac", "ab", "ababac"),
        ("once upon", "e u", "onc", "e u"),
        ("x\n\ny", "\n\n", "x", "\n\n"),
        ("a狐狸b", "狸", "a狐", "狸"),
        ("once", "once", "", "once"),
    ],
)
async def test_s7_the_earliest_match_cuts_the_text(
    said: str, stop: Any, text: str, reason: str
) -> None:
    choice = await stopped(said, stop)
    assert choice["text"] == text
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == reason


async def test_s7_the_string_is_kept_where_asked() -> None:
    choice = await stopped("once upon a", "upon", include_stop_str_in_output=True)
    assert choice["text"] == "once upon"


@pytest.mark.parametrize("stop", [[], None])
async def test_s7_an_empty_list_is_none(stop: Any) -> None:
    assert (await stopped("once", stop))["text"] == "once"


async def test_s7_it_is_not_searched_in_the_prompt_nor_across_the_border() -> None:
    server = serve(saying("pon time"))
    body = {"prompt": "once u", "stop": ["upon", "once"], "max_tokens": 50, "echo": True}
    choice = (await server.complete(**body))["choices"][0]
    assert choice["text"] == "once upon time"
    assert choice["stop_reason"] is None


@pytest.mark.parametrize(("limit", "reason"), [(100, "stop"), (4, "length")])
async def test_s7_what_was_held_back_is_flushed_at_the_end(limit: int, reason: str) -> None:
    choice = await stopped("abcd", "cdx", max_tokens=limit)
    assert choice["text"] == "abcd"
    assert choice["finish_reason"] == reason
    assert choice["stop_reason"] is None


async def test_s7_streams_hold_back_only_what_could_become_a_stop() -> None:
    events = await serve(saying("abcabd!")).events(PATH, stop="abd", max_tokens=50)
    texts = [chunk["choices"][0]["text"] for chunk in events]
    assert "".join(texts) == "abc"
    assert texts[0] == ""  # a, which could be its beginning


async def test_s7_each_choice_stops_for_itself_and_is_freed_at_once() -> None:
    server = serve(saying("one STOP two", "three four"))
    answer = await server.complete(n=2, stop="STOP", max_tokens=100)
    assert [choice["text"] for choice in answer["choices"]] == ["one ", "three four"]
    assert [choice["stop_reason"] for choice in answer["choices"]] == ["STOP", None]
    (request,) = server.engine.requests
    assert server.engine.ended_choices == [(request.id, 0)]
    assert server.engine.aborted == []


@pytest.mark.parametrize("at_once", [1, 3, 50])
async def test_s7_tokens_of_the_stop_count_and_later_ones_do_not(at_once: int) -> None:
    server = serve(saying("once upon a time", at_once=at_once))
    answer = await server.complete(stop="upo", max_tokens=100, return_token_ids=True)
    counted = len(encoded("once upon"))
    assert answer["usage"]["completion_tokens"] == counted
    assert answer["choices"][0]["token_ids"] == encoded("once upon")


async def test_s7_more_than_four_stops_are_taken() -> None:
    stops = [f"word{i}" for i in range(20)]
    assert (await stopped("once word17 x", stops))["text"] == "once "


async def test_s7_until_min_tokens_no_stop_string_counts() -> None:
    choice = await stopped("ababab", "ab", min_tokens=3)
    # The first three tokens pass; the next whole match is the third "ab".
    assert choice["text"] == "abab"


@pytest.mark.parametrize(
    ("fields", "text"),
    [({}, "ab"), ({"include_stop_str_in_output": True}, "abc")],
)
async def test_s7_a_stop_ids_token_is_not_in_the_text_unless_asked_for(
    fields: dict[str, Any], text: str
) -> None:
    ids = encoded("abc")

    def script(request: Request) -> list[Delta]:
        return told(ids, reason=FinishReason.STOP, stop_token_id=ids[-1])

    server = serve(script)
    choice = (await server.complete(stop_token_ids=[ids[-1]], **fields))["choices"][0]
    assert choice["text"] == text
    assert choice["stop_reason"] == ids[-1]
    assert choice["finish_reason"] == "stop"


async def test_s7_special_tokens_are_text_where_they_are_not_skipped() -> None:
    server = serve(saying("ab"))
    choice = (await server.complete(skip_special_tokens=False))["choices"][0]
    assert choice["text"] == "ab</s>"
