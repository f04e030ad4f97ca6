"""Which JSON schemas can be enforced: `enforceable` reads a schema and refuses what cannot be.

The engine's grammar compiler ignores keywords that it does not know. A client that writes one
counts on it, so everything that is neither enforced nor a mere annotation is refused here, with
the path of the place at fault: `response_format.json_schema.schema.properties.a.pattern`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from octavo.engine.errors import InvalidParameter

MAX_TEXT = 1 << 20  # characters of the schema as JSON
MAX_DEPTH = 48  # schemas inside schemas
MAX_NODES = 20_000  # schemas and enum values together
_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_FORMATS = frozenset(
    "date-time time date duration email hostname ipv4 ipv6 uuid uri".split(),
)
_NO_EFFECT = frozenset(
    """title description default examples example deprecated readOnly writeOnly $schema $comment
    contentMediaType contentEncoding discriminator""".split()
)
_ONLY_AT_ROOT = frozenset({"$id", "id"})
_NEAR_ZERO = 1e-6
_PLAIN_KEY = re.compile(r"[A-Za-z_$][\w$-]*")


def enforceable(schema: object, path: str) -> str:
    """The schema as the text of a `GrammarSpec`, its keys in the client's order.

    Args:
        path: where the schema stands in the request.

    Raises:
        InvalidParameter: it is no schema, too big, or says something that cannot be enforced.
    """
    reading = _Reading(schema, path)
    prepared = reading.schema(schema, path, 0)
    text = json.dumps(prepared, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_TEXT:
        raise _refused(path, f"has {len(text)} characters, and at most {MAX_TEXT} can be enforced")
    return text


def step(path: str, key: str | int) -> str:
    """The path of a member of what is at `path`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if _PLAIN_KEY.fullmatch(key) else f"{path}[{json.dumps(key)}]"


def _refused(path: str, why: str) -> InvalidParameter:
    return InvalidParameter(f"{path} {why}.", param=path)


class _Reading:
    """One walk over one schema. Each rule returns the value to hand to the compiler."""

    def __init__(self, root: object, path: str) -> None:
        self._root = root
        self._path = path
        self._nodes = 0
        self._rules: Mapping[str, Callable[[object, str, int], object]] = {
            "type": self._type,
            "enum": self._enum,
            "const": self._value,
            "anyOf": self._schemas,
            "allOf": self._schemas,
            "oneOf": self._disjoint,
            "$ref": self._reference,
            "$defs": self._named_schemas,
            "definitions": self._named_schemas,
            "properties": self._named_schemas,
            "patternProperties": self._pattern_schemas,
            "additionalProperties": self.schema,
            "required": self._names,
            "minProperties": self._count,
            "maxProperties": self._count,
            "items": self._items,
            "prefixItems": self._schemas,
            "minItems": self._count,
            "maxItems": self._count,
            "uniqueItems": self._only_false,
            "minLength": self._count,
            "maxLength": self._count,
            "pattern": self._pattern,
            "format": self._format,
            "minimum": self._number,
            "maximum": self._number,
            "exclusiveMinimum": self._number,
            "exclusiveMaximum": self._number,
            "multipleOf": self._positive,
            "nullable": self._only_false,
        }

    def schema(self, value: object, path: str, depth: int) -> object:
        if isinstance(value, bool):
            return value
        if not isinstance(value, dict):
            raise _refused(path, "must be a JSON schema: an object, true or false")
        if depth > MAX_DEPTH:
            raise _refused(path, f"is nested more than {MAX_DEPTH} schemas deep")
        self._visit(path)
        kept = {}
        for key, inner in value.items():
            here = step(path, key)
            rule = self._rules.get(key)
            if rule is not None:
                kept[key] = rule(inner, here, depth + 1)
            elif not self._is_annotation(key, depth):
                raise _refused(here, "is a keyword that cannot be enforced, so it is not accepted")
        self._limits_in_order(value, path)
        _keep_away_from_zero(kept)
        return kept

    def _visit(self, path: str) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _refused(self._path, f"has more than {MAX_NODES} schemas and enum values")

    def _is_annotation(self, key: str, depth: int) -> bool:
        if key in _ONLY_AT_ROOT:
            return depth == 0
        return key in _NO_EFFECT or (key.startswith("x-") and key != "x-guidance")

    def _limits_in_order(self, schema: Mapping[str, object], path: str) -> None:
        for low, high in (
            ("minLength", "maxLength"),
            ("minItems", "maxItems"),
            ("minProperties", "maxProperties"),
            ("minimum", "maximum"),
        ):
            least, most = schema.get(low), schema.get(high)
            if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
                raise _refused(step(path, low), f"is {least}, which is more than {high} ({most})")

    def _type(self, value: object, path: str, depth: int) -> object:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
            raise _refused(path, f"must be one or a list of {', '.join(sorted(_TYPES))}")
        return value

    def _enum(self, value: object, path: str, depth: int) -> object:
        if not isinstance(value, list) or not value:
            raise _refused(path, "must be a list of at least one value")
        return [self._value(item, step(path, i), depth) for i, item in enumerate(value)]

    def _value(self, value: object, path: str, depth: int) -> object:
        """Any JSON value, which counts as many nodes as it has parts."""
        self._visit(path)
        if depth > MAX_DEPTH:
            raise _refused(path, f"is nested more than {MAX_DEPTH} values deep")
        if isinstance(value, dict):
            for key, inner in value.items():
                self._value(inner, step(path, key), depth + 1)
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                self._value(inner, step(path, i), depth + 1)
        elif isinstance(value, float) and not math.isfinite(value):
            raise _refused(path, "must be a finite number")
        return value

    def _schemas(self, value: object, path: str, depth: int) -> list[object]:
        if not isinstance(value, list) or not value:
            raise _refused(path, "must be a list of at least one schema")
        return [self.schema(inner, step(path, i), depth) for i, inner in enumerate(value)]

    def _disjoint(self, value: object, path: str, depth: int) -> list[object]:
        """`oneOf`. The compiler must see that its members exclude each other, and does not look
        through references; so those are put in place, one level of them."""
        members = self._schemas(value, path, depth)
        seen: list[object] = []
        for i, member in enumerate(members):
            if isinstance(member, dict) and member.keys() == {"$ref"}:
                member = self.schema(
                    self._target(str(member["$ref"]), step(path, i)), step(path, i), depth + 1
                )
            seen.append(member)
        return seen

    def _named_schemas(self, value: object, path: str, depth: int) -> dict[str, object]:
        if not isinstance(value, dict):
            raise _refused(path, "must be an object of schemas")
        return {name: self.schema(part, step(path, name), depth) for name, part in value.items()}

    def _pattern_schemas(self, value: object, path: str, depth: int) -> dict[str, object]:
        schemas = self._named_schemas(value, path, depth)
        for pattern in schemas:
            self._pattern(pattern, step(path, pattern), depth)
        return schemas

    def _items(self, value: object, path: str, depth: int) -> object:
        if isinstance(value, list):
            raise _refused(path, "must be one schema; a list of them is spelled prefixItems")
        return self.schema(value, path, depth)

    def _names(self, value: object, path: str, depth: int) -> object:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise _refused(path, "must be a list of property names")
        return value

    def _count(self, value: object, path: str, depth: int) -> object:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or value < 0:  # type: ignore[operator]
            raise _refused(path, "must be a whole number of 0 or more")
        if value > 1 << 31:  # type: ignore[operator]
            raise _refused(path, f"must be at most {1 << 31}")
        return int(value)  # type: ignore[call-overload]

    def _number(self, value: object, path: str, depth: int) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _refused(path, "must be a number")
        if not abs(value) <= 1e300:
            raise _refused(path, "is too large a number to be enforced")
        return value

    def _positive(self, value: object, path: str, depth: int) -> object:
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise _refused(path, "must be a number above 0")
        return self._number(value, path, depth)

    def _only_false(self, value: object, path: str, depth: int) -> object:
        if value is not False:
            raise _refused(path, "cannot be enforced, so only false is accepted")
        return value

    def _pattern(self, value: object, path: str, depth: int) -> object:
        if not isinstance(value, str):
            raise _refused(path, "must be a regular expression")
        return value

    def _format(self, value: object, path: str, depth: int) -> object:
        if not isinstance(value, str) or value not in _FORMATS:
            raise _refused(path, f"must be one of {', '.join(sorted(_FORMATS))}")
        return value

    def _reference(self, value: object, path: str, depth: int) -> object:
        if not isinstance(value, str):
            raise _refused(path, "must be a string")
        self._ends(value, path)
        return value

    def _ends(self, reference: str, path: str) -> None:
        """A chain of references must come to a schema that says something else."""
        passed = set()
        while True:
            if reference in passed:
                raise _refused(path, "refers to itself, so it describes nothing")
            passed.add(reference)
            target = self._target(reference, path)
            inner = target.get("$ref") if isinstance(target, dict) else None
            if not isinstance(inner, str):
                return
            reference = inner

    def _target(self, reference: str, path: str) -> object:
        if reference != "#" and not reference.startswith("#/"):
            raise _refused(path, "must be a reference within the schema, like #/$defs/name")
        try:
            return _follow(self._root, reference)
        except KeyError:
            raise _refused(path, f"refers to {reference}, which is not there") from None


def targets(root: object) -> dict[str, object]:
    """Every reference in a schema that `enforceable` has passed, and what it refers to."""
    found: dict[str, object] = {}
    parts = [root]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            reference = part.get("$ref")
            if isinstance(reference, str) and reference not in found:
                with suppress(KeyError):  # in a constant it is no reference
                    found[reference] = _follow(root, reference)
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)
    return found


def _keep_away_from_zero(schema: dict[str, Any]) -> None:
    """The compiler lets 0 through where numbers above 0 and below 1 are asked for, or the same
    below 0; with the nearest number of few digits instead, it does not."""
    if schema.get("exclusiveMinimum") == 0:
        del schema["exclusiveMinimum"]
        schema["minimum"] = max(_NEAR_ZERO, schema.get("minimum", _NEAR_ZERO))
    if schema.get("exclusiveMaximum") == 0:
        del schema["exclusiveMaximum"]
        schema["maximum"] = min(-_NEAR_ZERO, schema.get("maximum", -_NEAR_ZERO))


def _follow(root: object, reference: str) -> object:
    """What a reference refers to; raises KeyError where it leads nowhere."""
    found = root
    for part in _pointer(reference):
        if isinstance(found, dict):
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            raise KeyError(part)
    return found


def _pointer(reference: str) -> Iterator[str]:
    """The parts of a JSON pointer (RFC 6901) in a URI fragment."""
    for part in reference.split("/")[1:]:
        decoded = re.sub("%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), part)
        yield decoded.replace("~1", "/").replace("~0", "~")
