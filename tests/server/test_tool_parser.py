"""Tool calls in answers: every family, cut at every place, streamed and not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence

import pytest

from octavo.engine.bundled import TARGET
from octavo.server.text.json_pieces import CallReader, NotACall
from octavo.server.text.tokenizer import Tokenizer
from octavo.server.text.tool_families import ToolFamily
from octavo.server.text.tool_parser import (
    ArgumentsPiece,
    CallEnded,
    CallStarted,
    Content,
    Event,
    ToolCallParser,
)

TOKENIZER = Tokenizer.from_folder(TARGET)
OPEN, CLOSE = 5, 6  # <|tool_call|> and <|/tool_call|>
BUNDLED = ToolFamily.of("<|tool_call|>", TOKENIZER)
HERMES = ToolFamily.of("<tool_call>", TOKENIZER)
MISTRAL = ToolFamily.of("[TOOL_CALLS]", TOKENIZER)
LLAMA = ToolFamily.of('{"name": function name, "parameters": dictionary}', TOKENIZER)
UNKNOWN = ToolFamily.of("", TOKENIZER)
NAMES = frozenset({"f", "get_weather"})
Piece = tuple[int, str]  # token id, text that it releases
NO_MARK = -1


def parse(family: ToolFamily, pieces: Iterable[Piece]) -> tuple[str, list[tuple[str, str, bool]]]:
    """(content, [(name, arguments, whether it ended)]); checks the order of events as well."""
    ids = (f"id{i}" for i in itertools.count())
    parser = ToolCallParser(family, NAMES, new_id=lambda: next(ids))
    events: list[Event] = []
    for token_id, text in pieces:
        events += parser.feed(token_id, text)
    events += parser.finish()
    content, calls = "", []
    for event in events:
        match event:
            case Content(text):
                assert text
                content += text
            case CallStarted(index, call_id, name):
                assert (index, call_id) == (len(calls), f"id{index}")
                calls.append((name, "", False))
            case ArgumentsPiece(index, text):
                name, said, ended = calls[index]
                assert index == len(calls) - 1
                assert text
                assert not ended
                calls[index] = (name, said + text, False)
            case CallEnded(index):
                name, said, ended = calls[index]
                assert not ended
                calls[index] = (name, said, True)
    return content, calls


def cuts(pieces: Sequence[Piece]) -> Iterable[list[Piece]]:
    """The same text: whole, character by character, and cut in two at every place."""
    yield list(pieces)
    yield [(t, c) for t, text in pieces for c in (text or [""])]
    for at, (token_id, text) in enumerate(pieces):
        for place in range(1, len(text)):
            parts = [(token_id, text[:place]), (token_id, text[place:])]
            yield [*pieces[:at], *parts, *pieces[at + 1 :]]


def text(value: str) -> list[Piece]:
    return [(NO_MARK, value)]


def marked(*values: str | int) -> list[Piece]:
    return [(NO_MARK, v) if isinstance(v, str) else (v, "") for v in values]


ARGS = '{"city": "Zürich \\"a\\" {[<tool_call>", "n": [1, {"x": null}]}'
CALL = '{"name": "get_weather", "arguments": ' + ARGS + "}"
PLAIN = '{"name": "f", "arguments": {}}'

CASES = {
    "bundled": (BUNDLED, marked(OPEN, CALL, CLOSE), "", [("get_weather", ARGS, True)]),
    "bundled, two, between text": (
        BUNDLED,
        marked("Well. ", OPEN, CALL, CLOSE, "\n", OPEN, PLAIN, CLOSE, "\nDone "),
        "Well. \nDone ",
        [("get_weather", ARGS, True), ("f", "{}", True)],
    ),
    "bundled, cut in the arguments": (
        BUNDLED,
        marked(OPEN, CALL[:60]),
        "",
        [("get_weather", CALL[:60].partition('"arguments": ')[2], False)],
    ),
    "bundled, cut in the name": (BUNDLED, marked("a", OPEN, '{"name": "ge'), 'a{"name": "ge', []),
    "bundled, no JSON": (BUNDLED, marked(OPEN, "hm ", CLOSE, " x"), "hm  x", []),
    "bundled, not closed": (BUNDLED, marked(OPEN, PLAIN, " more"), " more", [("f", "{}", True)]),
    "hermes": (
        HERMES,
        text(f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{PLAIN}\n</tool_call>"),
        "Let me see.\n",
        [("get_weather", ARGS, True), ("f", "{}", True)],
    ),
    "hermes, nothing but white space around": (
        HERMES,
        text(f"\n\n<tool_call>{PLAIN}</tool_call>\n"),
        "",
        [("f", "{}", True)],
    ),
    "hermes, no such function": (
        HERMES,
        text('<tool_call>{"name": "g", "arguments": {}}</tool_call>'),
        '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
        [],
    ),
    "hermes, a false start": (
        HERMES,
        text(f"<tool_call>oops <tool_call>{PLAIN}</tool_call>"),
        "<tool_call>oops ",
        [("f", "{}", True)],
    ),
    "hermes, half a marker": (HERMES, text("a < b <tool_cal"), "a < b <tool_cal", []),
    "hermes, only white space": (HERMES, text(" \n"), " \n", []),
    "mistral": (
        MISTRAL,
        text(f"[TOOL_CALLS][{CALL}, {PLAIN}]"),
        "",
        [("get_weather", ARGS, True), ("f", "{}", True)],
    ),
    "mistral, no list": (MISTRAL, text("[TOOL_CALLS] x [1]"), "[TOOL_CALLS] x [1]", []),
    "llama": (
        LLAMA,
        text('{"name": "f", "parameters": {"a": 1}}; {"name": "f", "parameters": {}}'),
        "",
        [("f", '{"a": 1}', True), ("f", "{}", True)],
    ),
    "llama, text": (LLAMA, text(" I think {1}"), " I think {1}", []),
    "llama, other JSON": (LLAMA, text('{"a": 1} x'), '{"a": 1} x', []),
    "unknown": (UNKNOWN, text(PLAIN), "", [("f", "{}", True)]),
    "arguments first": (
        HERMES,
        text('<tool_call>{"arguments": {"a": 1}, "id": "7", "name": "f"}</tool_call>'),
        "",
        [("f", '{"a": 1}', True)],
    ),
    "arguments as a string": (
        HERMES,
        text('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'),
        "",
        [("f", '{"a": 1}', True)],
    ),
    "no arguments": (
        HERMES,
        text('<tool_call>{"name": "f"}</tool_call>'),
        "",
        [("f", "{}", True)],
    ),
    "null arguments": (
        HERMES,
        text('<tool_call>{"name":"f","arguments":null}</tool_call>'),
        "",
        [("f", "{}", True)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_calls_and_content_do_not_depend_on_how_the_text_is_cut(case: str) -> None:
    family, pieces, content, calls = CASES[case]
    for cut in cuts(pieces):
        assert parse(family, cut) == (content, calls), cut


@pytest.mark.parametrize("family", [BUNDLED, HERMES, MISTRAL, LLAMA, UNKNOWN])
@pytest.mark.parametrize(
    "said",
    ["", "Hello.", " x ", "[1, 2]", "a } b", "<tool", "über\n\n", '"name": "f"', "; {", "{", "{}"],
)
def test_text_that_is_no_call_stays_content_exactly(family: ToolFamily, said: str) -> None:
    for cut in cuts(text(said)):
        assert parse(family, cut) == (said, [])


def test_arguments_come_in_pieces_and_before_the_call_is_complete() -> None:
    parser = ToolCallParser(BUNDLED, NAMES)
    parser.feed(OPEN, "")
    events = [parser.feed(NO_MARK, c) for c in CALL]
    pieces = [e.text for part in events for e in part if isinstance(e, ArgumentsPiece)]
    assert len(pieces) > 10
    assert json.loads("".join(pieces)) == json.loads(ARGS)
    started = [e for part in events for e in part if isinstance(e, CallStarted)]
    assert len(started) == 1
    assert started[0].id.startswith("call_")


def test_content_is_let_through_at_once() -> None:
    parser = ToolCallParser(HERMES, NAMES)
    assert parser.feed(NO_MARK, "Hello") == [Content("Hello")]
    assert parser.feed(NO_MARK, " <") == [Content(" ")]
    assert parser.feed(NO_MARK, "b") == [Content("<b")]


@pytest.mark.parametrize("wrong", ["[", "x", '{"a" 1}', "{1: 2}", '{"a": }', '{"a": 1 "b"', "{,}"])
def test_a_reader_says_where_a_text_is_no_call(wrong: str) -> None:
    with pytest.raises(NotACall) as whole:
        CallReader().feed(wrong)
    reader, read = CallReader(), 0
    with pytest.raises(NotACall):
        for character in wrong:
            read += reader.feed(character)
    assert whole.value.used == read
