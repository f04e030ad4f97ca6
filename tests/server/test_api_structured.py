"""API contract, section 3c: the form of an answer. The engine is scripted; what it is held to is
looked at, and what is refused is refused for real, in the helper process.

That a real engine keeps to it is shown in `tests/e2e/test_structured.py`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from octavo.engine.bundled import TARGET
from octavo.engine.params import GrammarKind, GrammarSpec, SamplingParams
from octavo.engine.sampling.grammar import GrammarCompiler

from .serving import Served, error_of, model, saying, serve
from .test_api_tools import Trusting

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "null"}}}
MESSAGES = [{"role": "user", "content": "hi"}]


def json_schema(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **more}}


@pytest.fixture
def trusting() -> Served:
    return serve(saying("{}"), grammar_check=Trusting)  # type: ignore[arg-type]


@pytest.fixture
async def checking() -> AsyncIterator[Served]:
    server = serve(saying("{}"))
    yield server
    await server.close()


def asked(server: Served) -> GrammarSpec | None:
    params: SamplingParams = server.engine.requests[-1].sampling
    return params.grammar


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}'),
        ({"response_format": {"type": "regex", "value": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]'),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "lark", 'start: "a"'),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type":"object"}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", "b"]}, "choice", '["a", "b"]'),
        ({"guided_grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ({"grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ({"grammar": 'root ::= "a"'}, "gbnf", 'root ::= "a"'),
    ],
)
async def test_s3c_each_dialect_is_understood_on_both_endpoints(
    trusting: Served, fields: dict[str, Any], kind: str, text: str
) -> None:
    await trusting.chat(**fields)
    assert asked(trusting) == GrammarSpec(GrammarKind(kind), text)
    await trusting.complete(**fields)
    assert asked(trusting) == GrammarSpec(GrammarKind(kind), text)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": json_schema()},
        {"response_format": json_schema(strict=True)},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"guided_json": SCHEMA},
        {"json_schema": SCHEMA},
    ],
)
async def test_s3c_a_schema_keeps_the_order_of_its_keys(
    trusting: Served, fields: dict[str, Any]
) -> None:
    await trusting.chat(**fields)
    grammar = asked(trusting)
    assert grammar is not None and grammar.kind is GrammarKind.JSON_SCHEMA
    assert list(json.loads(grammar.text)["properties"]) == ["z", "a"]
    await trusting.complete(**fields)
    assert asked(trusting) == grammar


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None, "structured_outputs": None, "guided_json": None, "grammar": None},
        {},
    ],
)
async def test_s3c_text_is_free(trusting: Served, fields: dict[str, Any]) -> None:
    await trusting.chat(**fields)
    assert asked(trusting) is None
    await trusting.complete(**fields)
    assert asked(trusting) is None


WRONG = [
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": 1}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    ({"response_format": json_schema(strict="yes")}, "response_format.json_schema.strict"),
    ({"response_format": {"type": "regex"}}, "response_format.value"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_regex": "a", "grammar": 'start: "a"'}, "grammar"),
    ({"response_format": json_schema(7)}, "response_format.json_schema.schema"),
    ({"response_format": json_schema({"type": "thing"})}, "schema.type"),
    ({"response_format": json_schema({"minimum": "a"})}, "schema.minimum"),
]
UNENFORCEABLE = [
    ({"guided_regex": "(?=a)b"}, "guided_regex"),
    ({"guided_regex": "(a"}, "guided_regex"),
    ({"grammar": "start: nowhere"}, "grammar"),
    ({"grammar": "root ::= nowhere"}, "grammar"),
    (
        {"guided_json": {"properties": {"a b": {"type": "string", "pattern": "("}}}},
        'guided_json.properties["a b"].pattern',
    ),
    ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json.uniqueItems"),
    ({"guided_json": {"type": "object", "if": {}, "then": {}}}, "guided_json.if"),
    ({"guided_json": {"not": {"type": "null"}}}, "guided_json.not"),
    ({"guided_json": {"type": "string", "format": "color"}}, "guided_json.format"),
    ({"guided_json": {"$ref": "#/$defs/x"}}, "guided_json.$ref"),
    ({"guided_json": {"$ref": "#"}}, "guided_json"),
    ({"guided_json": {"enum": []}}, "guided_json.enum"),
    ({"guided_json": {"allOf": [{"type": "null"}, {"type": "string"}]}}, "guided_json"),
]  # fmt: skip


async def test_s3c_what_is_wrong_or_cannot_be_enforced_is_400_and_names_the_place(
    checking: Served,
) -> None:
    """Also where a stream was wanted: before it starts. A keyword is never ignored."""
    for path, body in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "a"})):
        for fields, param in WRONG + UNENFORCEABLE:
            for stream in (False, True):
                response = await checking.post(path, {**body, **fields, "stream": stream})
                assert response.status_code == 400, (fields, response.text)
                error = error_of(response)
                assert param in str(error["param"]), error
                assert error["type"] == "invalid_request_error"
    assert not checking.engine.requests


async def test_s3c_300_levels_are_served_or_400(checking: Served) -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    error = await checking.refusal(CHAT, {"messages": MESSAGES, "guided_json": schema})
    assert "nested" in error["message"]
    await checking.chat(guided_json=SCHEMA)


async def test_s3c_what_passes_the_check_compiles_in_the_engine(checking: Served) -> None:
    compiler = GrammarCompiler.from_folder(TARGET, vocab_size=4096, stop_ids=(1,))
    tag = {"begin": "<f>", "schema": SCHEMA, "end": "</f>"}
    for fields in (
        {"response_format": json_schema()},
        {"response_format": {"type": "structural_tag", "triggers": ["<"], "structures": [tag]}},
        {"guided_regex": "[a-z]+/\\d"},
        {"guided_choice": ["Ä\n", '"', ""]},
        {"grammar": 'root ::= "a" [0-9]+ | root2\nroot2 ::= "x"'},
        {"grammar": 'start: "a"+'},
    ):
        await checking.chat(**fields)
        grammar = asked(checking)
        assert grammar is not None
        assert compiler.start(grammar).error is None
    compiler.close()


async def test_a_model_without_an_end_of_sequence_token_cannot_be_constrained() -> None:
    endless = model()
    endless = replace(endless, config=replace(endless.config, eos_token_ids=()))
    server = serve(served=endless, grammar_check=Trusting)  # type: ignore[arg-type]
    body = {"messages": MESSAGES, "response_format": {"type": "json_object"}}
    assert (await server.refusal(CHAT, body))["param"] == "response_format"


async def test_beam_search_is_not_for_constrained_answers(trusting: Served) -> None:
    body = {"prompt": "a", "guided_regex": "a", "use_beam_search": True}
    assert (await trusting.refusal(COMPLETIONS, body))["param"] == "use_beam_search"
