"""From a request's fields to a grammar, and every way to get it wrong (API contract, 3c)."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from octavo.engine.errors import InvalidParameter
from octavo.engine.params import GrammarKind, GrammarSpec
from octavo.server.openai.structured import Structure, read_structure
from octavo.server.text.json_schema import enforceable
from octavo.server.text.schema_end import can_end

from ..schemas import random_schema

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["é"]}}}
TEXT = json.dumps(SCHEMA, ensure_ascii=False, separators=(",", ":"))
JSON = GrammarSpec(GrammarKind.JSON_SCHEMA, TEXT)


def read(body: dict[str, Any]) -> Structure | None:
    return read_structure(body, lambda text: 5 if text == "<|tool_call|>" else None)


@pytest.mark.parametrize(
    "body", [{}, {"response_format": None}, {"response_format": {"type": "text"}}]
)
def test_a_free_answer(body: dict[str, Any]) -> None:
    assert read(body) is None


@pytest.mark.parametrize(
    ("body", "spec", "path"),
    [
        (
            {"response_format": {"type": "json_object"}},
            GrammarSpec(GrammarKind.JSON_SCHEMA, '{"type":"object"}'),
            "response_format",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            JSON,
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "regex", "value": "a+"}},
            GrammarSpec(GrammarKind.REGEX, "a+"),
            "response_format.value",
        ),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, JSON, "structured_outputs.json"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, JSON, "structured_outputs.json"),
        (
            {"structured_outputs": {"choice": ["a", "é"]}},
            GrammarSpec(GrammarKind.CHOICE, json.dumps(["a", "é"])),
            "structured_outputs.choice",
        ),
        (
            {"structured_outputs": {"json_object": True}, "response_format": {"type": "text"}},
            GrammarSpec(GrammarKind.JSON_SCHEMA, '{"type":"object"}'),
            "structured_outputs.json_object",
        ),
        (
            {"structured_outputs": {"grammar": 'start: "x"'}},
            GrammarSpec(GrammarKind.LARK, 'start: "x"'),
            "structured_outputs.grammar",
        ),
        ({"guided_json": SCHEMA}, JSON, "guided_json"),
        ({"guided_regex": "x"}, GrammarSpec(GrammarKind.REGEX, "x"), "guided_regex"),
        ({"guided_choice": ["x"]}, GrammarSpec(GrammarKind.CHOICE, '["x"]'), "guided_choice"),
        (
            {"guided_grammar": "start: /x/"},
            GrammarSpec(GrammarKind.LARK, "start: /x/"),
            "guided_grammar",
        ),
        ({"grammar": 'root ::= "x"'}, GrammarSpec(GrammarKind.GBNF, 'root ::= "x"'), "grammar"),
        ({"json_schema": SCHEMA}, JSON, "json_schema"),
    ],
)
def test_every_dialect_becomes_the_same_value(
    body: dict[str, Any], spec: GrammarSpec, path: str
) -> None:
    assert read(body) == Structure(spec, path)


def test_a_structural_tag_obliges_after_its_trigger() -> None:
    tag = {
        "type": "structural_tag",
        "structures": [
            {"begin": "<function=f>", "schema": {"type": "object"}, "end": "</function>"},
            {"begin": "<|tool_call|>", "schema": True, "end": ""},
        ],
        "triggers": ["<function=", "<|tool_call|>"],
    }
    structure = read({"response_format": tag})
    assert structure is not None
    assert structure.spec.kind is GrammarKind.LARK
    assert "<[5]>" in structure.spec.text
    assert '[lazy]: TEXT "<function="' in structure.spec.text


def wrong(path: str, **body: Any) -> tuple[str, dict[str, Any]]:
    return path, body


def formatted(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", **fields}}


TAG = {"type": "structural_tag", "triggers": ["<f"], "structures": [{"begin": "<f", "schema": {}}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        wrong("response_format", response_format="json_object"),
        wrong("response_format.type", response_format={"type": "yaml"}),
        wrong("response_format.type", response_format={}),
        wrong("response_format.json_schema", response_format={"type": "json_schema"}),
        wrong("response_format.json_schema.schema", response_format=formatted()),
        wrong("response_format.json_schema.schema", response_format=formatted(schema=[])),
        wrong("response_format.json_schema.schema", response_format=formatted(schema="{")),
        wrong("response_format.json_schema.strict", response_format=formatted(schema={}, strict=1)),
        wrong(
            "response_format.json_schema.name",
            response_format={"type": "json_schema", "json_schema": {"name": 1, "schema": {}}},
        ),
        wrong("response_format.value", response_format={"type": "regex"}),
        wrong("response_format.value", response_format={"type": "regex", "value": 3}),
        wrong("structured_outputs", structured_outputs={}),
        wrong("structured_outputs", structured_outputs=[]),
        wrong("structured_outputs", structured_outputs={"regex": "a", "choice": ["b"]}),
        wrong("structured_outputs.choice", structured_outputs={"choice": []}),
        wrong("structured_outputs.choice[1]", structured_outputs={"choice": ["a", 1]}),
        wrong("structured_outputs.choice", structured_outputs={"choice": "ab"}),
        wrong("structured_outputs.choice", structured_outputs={"choice": ["a"] * 10_001}),
        wrong("structured_outputs.regex", structured_outputs={"regex": ""}),
        wrong("structured_outputs.json_object", structured_outputs={"json_object": 1}),
        wrong("guided_regex", guided_regex=["a"]),
        wrong("grammar", grammar=7),
        wrong("guided_json", guided_json={}, response_format={"type": "json_object"}),
        wrong("response_format.triggers", response_format=TAG | {"triggers": []}),
        wrong("response_format.structures", response_format=TAG | {"structures": None}),
        wrong("response_format.structures[0].begin", response_format=TAG | {"triggers": ["x"]}),
        wrong(
            "response_format.structures[0].schema",
            response_format=TAG | {"structures": [{"begin": "<f"}]},
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(path: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as refused:
        read(body)
    assert refused.value.param == path
    assert str(refused.value).startswith(path)


def nested(levels: int, value: object = None) -> object:
    schema: object = {"type": "integer"} if value is None else value
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("s", 1),
        ("s", "x"),
        ("s.foo", {"foo": 1}),
        ("s.not", {"not": {}}),
        ("s.if", {"if": {}}),
        ("s.x-guidance", {"x-guidance": {"lenient": True}}),
        ("s.properties.a.uniqueItems", {"properties": {"a": {"uniqueItems": True}}}),
        ('s.properties["a b"].contains', {"properties": {"a b": {"contains": {}}}}),
        ("s.anyOf[1].propertyNames", {"anyOf": [{}, {"propertyNames": {}}]}),
        ("s.$defs.x.dependentRequired", {"$defs": {"x": {"dependentRequired": {}}}}),
        ("s.items.nullable", {"items": {"nullable": True}}),
        ("s.items", {"items": [{}]}),
        ("s.prefixItems", {"prefixItems": {}}),
        ("s.type", {"type": "text"}),
        ("s.type", {"type": []}),
        ("s.enum", {"enum": []}),
        ("s.enum[1].k", {"enum": [1, {"k": float("inf")}]}),
        ("s.format", {"format": "phone"}),
        ("s.pattern", {"pattern": 1}),
        ("s.required", {"required": "a"}),
        ("s.minLength", {"minLength": -1}),
        ("s.minLength", {"minLength": 5, "maxLength": 4}),
        ("s.maxItems", {"maxItems": 1 << 40}),
        ("s.maxItems", {"maxItems": True}),
        ("s.exclusiveMinimum", {"exclusiveMinimum": True}),
        ("s.minimum", {"minimum": 10**400}),
        ("s.multipleOf", {"multipleOf": 0}),
        ("s.$ref", {"$ref": "https://example.com/schema"}),
        ("s.$ref", {"$ref": "#/$defs/none"}),
        ("s.$ref", {"$ref": "#"}),
        ("s.$defs.a.$ref", {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        ("s.items.$id", {"items": {"$id": "x"}}),
        ("s.properties", {"properties": []}),
        ("s", {"enum": list(range(30_000))}),
        ("s", {"const": "x" * (1 << 20)}),
        ("s" + ".items" * 49, nested(300)),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_at_the_place(
    path: str, schema: object
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        enforceable(schema, "s")
    assert refused.value.param == path


def test_annotations_pass_and_vanish_and_keys_keep_their_order() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "a",
        "title": "T",
        "type": "object",
        "properties": {"z": {"description": "d", "default": 1}, "a": {"x-order": 2}},
        "uniqueItems": False,
    }
    text = enforceable(schema, "s")
    assert text == '{"type":"object","properties":{"z":{},"a":{}},"uniqueItems":false}'


def test_members_of_one_of_are_put_in_place_of_references() -> None:
    """The compiler sees that they exclude each other only where they stand (pydantic's unions)."""
    kinds = {
        name: {"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]}
        for name in ("cat", "dog")
    }
    schema = {
        "$defs": kinds,
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in kinds],
        "discriminator": {"propertyName": "kind"},
    }
    assert json.loads(enforceable(schema, "s"))["oneOf"] == list(kinds.values())


LIST = {"type": "object", "properties": {"next": {"$ref": "#/$defs/list"}}}


@pytest.mark.parametrize(
    ("ends", "schema"),
    [
        (False, LIST | {"required": ["next"]}),
        (True, LIST),
        (False, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}),
        (True, {"type": "array", "items": {"$ref": "#"}}),
        (True, {"type": "array", "prefixItems": [{}], "items": {"$ref": "#"}, "minItems": 1}),
        (False, {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}),
        (
            True,
            {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]},
        ),
        (False, {"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["a"]}),
        (True, {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        (False, {"allOf": [LIST | {"required": ["next"]}]}),
        (True, {"const": {"$ref": "#/nowhere"}}),
    ],
)
def test_a_schema_that_never_ends_is_seen(ends: bool, schema: dict[str, Any]) -> None:
    root = schema | {"$defs": {"list": schema}}
    enforceable(root, "s")
    assert can_end(root) is ends


def test_zero_is_kept_out_by_a_number_near_it() -> None:
    text = enforceable({"exclusiveMinimum": 0, "maximum": 0.5}, "s")
    assert json.loads(text) == {"maximum": 0.5, "minimum": 1e-6}
    text = enforceable({"exclusiveMaximum": 0, "maximum": -3}, "s")
    assert json.loads(text) == {"maximum": -3}


def test_random_enforceable_schemas_pass_unchanged() -> None:
    rng = random.Random(7)
    for size in range(200):
        schema = random_schema(rng, nastiness=size / 200)
        assert json.loads(enforceable(schema, "s")) == schema
