"""Random JSON schemas of growing nastiness, all of which can be enforced and satisfied."""

from __future__ import annotations

import json
import random
from typing import Any

_KEYS = ("name", "b", "größe", 'a"b\\c', "a b", "", "Ωmega", "$x", "x" * 40, "\n", "0")

JUNK = (None, -1, 1e308, [], {}, "x", True, {"$ref": "#/x"}, [[]], {"type": 5}, "(", "\ud800")
"""What has no business in most places of a schema."""


def random_schema(rng: random.Random, *, nastiness: float) -> dict[str, Any]:
    """`nastiness` 0 .. 1: how deep and how odd it may be."""
    depth = 1 + int(3 * nastiness)
    schema = _schema(rng, depth, nastiness)
    if rng.random() < nastiness / 2:
        schema = {
            "$defs": {"tree": _tree(rng, nastiness)},
            "type": "object",
            "properties": {"tree": {"$ref": "#/$defs/tree"}, "more": schema},
            "required": ["more"],
            "additionalProperties": False,
        }
    return schema


def _tree(rng: random.Random, nastiness: float) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "value": _leaf(rng, nastiness),
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
        },
        "required": ["value"],
        "additionalProperties": False,
    }


def _schema(rng: random.Random, depth: int, nastiness: float) -> dict[str, Any]:
    if depth == 0 or rng.random() < 0.2:
        return _leaf(rng, nastiness)
    kind = rng.choice(("object", "object", "array", "anyOf", "tuple", "map", "allOf"))
    inner = [_schema(rng, depth - 1, nastiness) for _ in range(rng.randint(1, 3))]
    match kind:
        case "object":
            names = rng.sample(_KEYS if nastiness > 0.3 else _KEYS[:2], k=min(2, len(inner)))
            return {
                "type": "object",
                "properties": dict(zip(names, inner, strict=False)),
                "required": [name for name in names if rng.random() < 0.7],
                "additionalProperties": False,
            }
        case "array":
            low = rng.randint(0, 2)
            return {
                "type": "array",
                "items": inner[0],
                "minItems": low,
                "maxItems": low + rng.randint(0, 2),
            }
        case "tuple":
            return {
                "type": "array",
                "prefixItems": inner,
                "items": False,
                "minItems": len(inner),
            }
        case "map":
            return {"type": "object", "additionalProperties": inner[0]}
        case "allOf":
            return {
                "allOf": [
                    {"type": "object", "properties": {"a": inner[0]}, "required": ["a"]},
                    {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
                ]
            }
    return {"anyOf": inner}


def _leaf(rng: random.Random, nastiness: float) -> dict[str, Any]:
    plain: list[dict[str, Any]] = [
        {"type": "string", "maxLength": 8},
        {"type": "integer", "minimum": -5, "maximum": 120},
        {"type": "boolean"},
        {"enum": ["red", "green", 3, None, True, 1.5, ["x"], {"k": 1}]},
    ]
    odd: list[dict[str, Any]] = [
        {"type": ["integer", "null"], "exclusiveMinimum": -3, "maximum": 99999},
        {"type": "number", "minimum": -1.5, "maximum": 2.25},
        {"type": "string", "pattern": "^[A-Z]{2,3}-\\d{1,4}$"},
        {"type": "string", "format": "date"},
        {"type": "string", "format": "uuid"},
        {"type": "string", "format": "ipv4"},
        {"type": "string", "minLength": 3, "maxLength": 5},
        {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
        {"const": 'quote " and \\ and \n and 😀'},
        {"type": "string", "pattern": "(ab|c)+", "maxLength": 12},
        {"enum": [f"value {i}" for i in range(300)]},
        {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
        {"const": {"a": [1, {"b": None}]}},
    ]
    return rng.choice(odd if rng.random() < nastiness else plain)


def damaged(rng: random.Random, schema: dict[str, Any], junk: object) -> dict[str, Any]:
    """A copy with some member, deep inside, replaced by `junk`."""
    copy: dict[str, Any] = json.loads(json.dumps(schema))
    value: Any = copy
    while isinstance(value, dict | list) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        if rng.random() < 0.4 or not isinstance(value[key], dict | list) or not value[key]:
            value[key] = junk
            break
        value = value[key]
    return copy
