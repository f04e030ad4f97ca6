"""Tools in requests, and the grammars that keep calls well-formed (API contract, 3b)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLTokenizer

from octavo.engine.bundled import TARGET
from octavo.engine.errors import InvalidParameter, SequenceFailed
from octavo.engine.params import GrammarSpec
from octavo.engine.sampling.grammar import Grammar, GrammarCompiler
from octavo.server.text.detokenizer import Detokenizer
from octavo.server.text.grammar_check import GrammarCheck
from octavo.server.text.tokenizer import Tokenizer
from octavo.server.text.tool_families import ToolFamily
from octavo.server.text.tool_parser import ArgumentsPiece, CallEnded, CallStarted, ToolCallParser
from octavo.server.text.tools import ToolMode, ToolUse, read_tools, tool_grammar

TOKENIZER = Tokenizer.from_folder(TARGET)
VOCAB, EOS = 4096, (1, 3)
FAMILIES = {
    name: ToolFamily.of(name, TOKENIZER)
    for name in ("<|tool_call|>", "<tool_call>", "[TOOL_CALLS]", '"parameters"', "")
}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days"],
}


def function(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [function("weather", parameters=WEATHER), function("now", description="the time")]
SCHEMAS = {"weather": WEATHER, "now": {"type": "object", "maxProperties": 0}}


def use(choice: Any = "required", **more: Any) -> ToolUse:
    read = read_tools({"tools": TOOLS, "tool_choice": choice, **more})
    assert read is not None
    return read


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler.from_folder(TARGET, vocab_size=VOCAB, stop_ids=EOS)
    yield compiler
    compiler.close()


def grammar(family: ToolFamily, tools: ToolUse) -> GrammarSpec:
    spec = tool_grammar(tools, family)
    assert spec is not None
    return spec


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False, parse_special=True)


def allowed(walk: Grammar) -> list[int]:
    bits = np.unpackbits(walk.mask(VOCAB).view(np.uint8), bitorder="little")
    return [int(i) for i in np.flatnonzero(bits)]


def accepts(compiler: GrammarCompiler, spec: GrammarSpec, text: str) -> bool:
    walk = compiler.start(spec)
    try:
        walk.accept(ids(text))
    except SequenceFailed:
        return False
    return not set(EOS).isdisjoint(allowed(walk))


# The request


def test_no_tools() -> None:
    assert read_tools({}) is None
    assert read_tools({"tools": None, "tool_choice": "none", "parallel_tool_calls": True}) is None


def test_tools_are_read() -> None:
    read = use(None, parallel_tool_calls=False)
    assert read.mode is ToolMode.AUTO
    assert not read.parallel
    assert read.names == {"weather", "now"}
    assert list(read.entries) == TOOLS
    assert json.loads(read.callable[1].schema)["additionalProperties"] is False


@pytest.mark.parametrize(
    ("choice", "mode", "names"),
    [
        ("none", ToolMode.NONE, set()),
        ("auto", ToolMode.AUTO, {"weather", "now"}),
        ("required", ToolMode.REQUIRED, {"weather", "now"}),
        (function("now"), ToolMode.REQUIRED, {"now"}),
        ({"type": "function", "name": "now"}, ToolMode.REQUIRED, {"now"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [function("now")]},
            },
            ToolMode.AUTO,
            {"now"},
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"name": "weather"}]},
            ToolMode.REQUIRED,
            {"weather"},
        ),
    ],
)
def test_choices(choice: Any, mode: ToolMode, names: set[str]) -> None:
    read = use(choice)
    assert (read.mode, read.names) == (mode, names)


LOOKING = {"type": "object", "properties": {"a": {"pattern": "x", "not": {}}}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("tools", {"tools": []}),
        ("tools", {"tools": {}}),
        ("tools", {"tools": [function()] * 129}),
        ("tools", {"tools": [function(), function()]}),
        ("tools[0]", {"tools": ["x"]}),
        ("tools[0]", {"tools": [{"type": "web_search"}]}),
        ("tools[1].function", {"tools": [function(), {"type": "function"}]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {}}]}),
        ("tools[0].function.name", {"tools": [function("")]}),
        ("tools[0].function.name", {"tools": [function("a b")]}),
        ("tools[0].function.name", {"tools": [function("a" * 65)]}),
        ("tools[0].function.name", {"tools": [function("a\n")]}),
        ("tools[0].function.description", {"tools": [function(description=1)]}),
        ("tools[0].function.strict", {"tools": [function(strict="yes")]}),
        ("tools[0].function.parameters", {"tools": [function(parameters=[])]}),
        (
            "tools[0].function.parameters.type",
            {"tools": [function(parameters={"type": "array"})]},
        ),
        (
            "tools[0].function.parameters.properties.a.not",
            {"tools": [function(parameters=LOOKING)]},
        ),
        (
            "tools[1].function.parameters.properties.a.not",
            {"tools": [function("a"), function(parameters=LOOKING, strict=False)]},
        ),
        ("tool_choice", {"tool_choice": "auto"}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": "any"}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": 1}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": {"type": "tool"}}),
        ("tool_choice.function.name", {"tools": TOOLS, "tool_choice": {"type": "function"}}),
        ("tool_choice.function.name", {"tools": TOOLS, "tool_choice": function("other")}),
        (
            "tool_choice.allowed_tools.mode",
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": 1}},
        ),
        (
            "tool_choice.allowed_tools.tools",
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}},
        ),
        (
            "tool_choice.allowed_tools.tools[0]",
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [function("x")]}},
        ),
        ("parallel_tool_calls", {"tools": TOOLS, "parallel_tool_calls": "no"}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_path(path: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as refused:
        read_tools(body)
    assert refused.value.param == path


@pytest.mark.parametrize("choice", ["none", function("now")])
def test_what_cannot_be_called_need_not_be_enforced(choice: Any) -> None:
    tools = [function(parameters=LOOKING), function("now")]
    read = read_tools({"tools": tools, "tool_choice": choice})
    assert read is not None
    assert list(read.entries) == tools
    assert "weather" not in read.names


# The grammar


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forced_call_is_well_formed_whatever_the_model_says(
    family: str, compiler: GrammarCompiler
) -> None:
    """Random tokens under the mask: every ended answer is calls that satisfy their schemas."""
    rng = random.Random(4)
    spec = grammar(FAMILIES[family], use())
    ended = 0
    for _ in range(60):
        walk = compiler.start(spec)
        parser = ToolCallParser(FAMILIES[family], frozenset(SCHEMAS))
        detokenizer = Detokenizer(TOKENIZER)
        events = []
        for _ in range(400):
            token = rng.choice(allowed(walk))
            walk.accept([token])
            if token in EOS:
                ended += 1
                break
            events += parser.feed(token, detokenizer.feed(token))
        else:
            continue
        events += parser.finish()
        started = [event for event in events if isinstance(event, CallStarted)]
        assert started
        assert {type(e) for e in events} == {CallStarted, ArgumentsPiece, CallEnded}
        for call in started:
            pieces = [
                e.text for e in events if isinstance(e, ArgumentsPiece) and e.index == call.index
            ]
            jsonschema.validate(json.loads("".join(pieces)), SCHEMAS[call.name])
    assert ended > 30


def test_a_function_without_parameters_gets_an_empty_object(compiler: GrammarCompiler) -> None:
    walk = compiler.start(grammar(FAMILIES["<|tool_call|>"], use(function("now"))))
    run = walk.forced()
    assert TOKENIZER.decode(run).startswith('{"name": "now", "arguments": {')
    assert run[0] == 5
    call = '<|tool_call|>{"name": "now", "arguments": {}}<|/tool_call|>'
    spec = grammar(FAMILIES["<|tool_call|>"], use(function("now"), parallel_tool_calls=False))
    assert accepts(compiler, spec, call)
    assert not accepts(compiler, spec, call.replace("{}", '{"a": 1}'))
    assert not accepts(compiler, spec, call + call)


NOW = {
    "<|tool_call|>": '<|tool_call|>{"name": "now", "arguments": {}}<|/tool_call|>',
    "<tool_call>": '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "[TOOL_CALLS]": '[TOOL_CALLS][{"name": "now", "arguments": {}}]',
    '"parameters"': '{"name": "now", "parameters": {}}',
    "": '{"name": "now", "arguments": {}}',
}
TWICE = {
    "<|tool_call|>": NOW["<|tool_call|>"] * 2,
    "<tool_call>": f"{NOW['<tool_call>']}\n{NOW['<tool_call>']}",
    "[TOOL_CALLS]": f"[TOOL_CALLS][{NOW['']}, {NOW['']}]",
    '"parameters"': '{"name": "now", "parameters": {}}; {"name": "now", "parameters": {}}',
    "": '{"name": "now", "arguments": {}}; {"name": "now", "arguments": {}}',
}  # fmt: skip


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_writes_calls_in_its_own_way(
    family: str, choice: str, compiler: GrammarCompiler
) -> None:
    several = grammar(FAMILIES[family], use(choice))
    single = grammar(FAMILIES[family], use(choice, parallel_tool_calls=False))
    assert accepts(compiler, several, NOW[family])
    assert accepts(compiler, several, TWICE[family])
    assert accepts(compiler, single, NOW[family])
    assert accepts(compiler, several, "Just text.") == (choice == "auto")
    assert accepts(compiler, several, "") == (choice == "auto")
    assert not accepts(compiler, several, NOW[family].replace('"now"', '"never"'))
    if choice == "required":
        assert not accepts(compiler, single, TWICE[family])
        assert not accepts(compiler, single, "Hm. " + NOW[family])


@pytest.mark.parametrize("family", ["<|tool_call|>", "<tool_call>", "[TOOL_CALLS]"])
def test_in_auto_text_may_come_first_but_a_begun_call_is_bound(
    family: str, compiler: GrammarCompiler
) -> None:
    spec = grammar(FAMILIES[family], use("auto"))
    assert accepts(compiler, spec, "Let me see. " + NOW[family])
    walk = compiler.start(spec)
    marker = FAMILIES[family].opening.text
    walk.accept(ids("Well " + marker))
    assert TOKENIZER.decode(walk.forced()).strip("\n[").startswith('{"name": "')
    assert not accepts(compiler, spec, f"{marker} is a marker")


def test_a_tag_that_is_an_ordinary_token_of_the_vocabulary_works_too() -> None:
    """Qwen has `<tool_call>` as an added token which is not special."""
    description = json.loads((TARGET / "tokenizer.json").read_text("utf-8"))
    for token in description["added_tokens"]:
        if token["id"] in (5, 6):
            token["content"] = {5: "<tool_call>", 6: "</tool_call>"}[token["id"]]
            token["special"] = False
    vocabulary = description["model"]["vocab"]
    vocabulary["<tool_call>"] = vocabulary.pop("<|tool_call|>")
    vocabulary["</tool_call>"] = vocabulary.pop("<|/tool_call|>")
    tokenizer = Tokenizer(json.dumps(description))
    family = ToolFamily.of("<tool_call>", tokenizer)
    assert not family.opening.hidden
    library = LLTokenizer(json.dumps(description), n_vocab=VOCAB, eos_token=[1, 3])
    qwen = GrammarCompiler(lambda: library)
    for choice in ("auto", "required"):
        walk = qwen.start(grammar(family, use(choice)))
        answer = tokenizer.encode(NOW["<tool_call>"], add_special_tokens=False, parse_special=True)
        assert answer[0] == 5
        walk.accept(answer)
        assert not set(EOS).isdisjoint(allowed(walk))
        with pytest.raises(SequenceFailed):  # it is not taken for text
            qwen.start(grammar(family, use(choice))).accept([5, *tokenizer.encode("nonsense")[1:]])
    qwen.close()


async def test_the_grammars_of_tools_pass_the_check() -> None:
    check = GrammarCheck(TARGET)
    for family in FAMILIES.values():
        for choice in ("auto", "required"):
            spec = grammar(family, use(choice))
            assert await check.check(spec, "tools") == spec
    await check.close()


def test_none_is_free() -> None:
    assert tool_grammar(use("none"), FAMILIES[""]) is None
