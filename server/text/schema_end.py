"""`can_end`: whether a schema that refers to itself describes any finite value.

`{"properties": {"next": {"$ref": "#"}}, "required": ["next"]}` compiles, but an answer under it
could never be complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .json_schema import targets

_NESTED = frozenset(("object", "array"))


def can_end(root: Any) -> bool:
    """The least fixed point: a reference is known to end once its target ends by what is known.

    Args:
        root: a schema that `enforceable` has passed.
    """
    aims = targets(root)
    known: set[str] = set()
    while True:
        news = {ref for ref, aim in aims.items() if ref not in known and _ends(aim, known)}
        if not news:
            return _ends(root, known)
        known |= news


def _ends(schema: Any, known: set[str]) -> bool:
    """Whether some value of the schema is finite; only looks at what could prevent it."""
    if not isinstance(schema, dict):
        return True
    if "$ref" in schema and schema["$ref"] not in known:
        return False
    if not all(_ends(part, known) for part in schema.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(_ends(part, known) for part in schema[key]):
            return False
    if "enum" in schema or "const" in schema:
        return True
    kinds = schema.get("type", "null")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return any(kind not in _NESTED or _nested_ends(kind, schema, known) for kind in kinds)


def _nested_ends(kind: str, schema: Mapping[str, Any], known: set[str]) -> bool:
    if kind == "object":
        properties = schema.get("properties", {})
        rest = schema.get("additionalProperties", True)
        return all(_ends(properties.get(name, rest), known) for name in schema.get("required", ()))
    least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
    needed = [*first[:least], *([schema.get("items", True)] if least > len(first) else [])]
    return all(_ends(part, known) for part in needed)
