"""What a request says about the form of its answer, as one `GrammarSpec`.

Several dialects say the same: OpenAI's `response_format`, vLLM's `structured_outputs` and its older
`guided_*` fields, TGI's regex format, llama.cpp's `grammar` and `json_schema`. A request may speak
one of them. Whether the grammar compiles is found out later, by `server.text.grammar_check`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.engine.errors import InvalidParameter
from octavo.engine.params import GrammarKind, GrammarSpec

from ..text.json_schema import enforceable, step
from ..text.structural_tag import Tag, tagged_text

MAX_CHOICES = 10_000

TokenIdOf = Callable[[str], int | None]
"""The id of a control token by its text; None for any other text."""


@dataclass(frozen=True, slots=True)
class Structure:
    """The form of an answer, and the field that asked for it."""

    spec: GrammarSpec
    path: str


def read_structure(body: Mapping[str, Any], token_id_of: TokenIdOf) -> Structure | None:
    """From the decoded JSON of a request; None where the answer is free.

    Raises:
        InvalidParameter: what is asked for is unknown, incomplete, or asked for twice.
    """
    asked = [
        structure
        for structure in (
            _response_format(body.get("response_format"), token_id_of),
            _structured_outputs(body.get("structured_outputs"), token_id_of),
            *(_single(kind, body.get(field), field) for field, kind in _FIELDS),
        )
        if structure is not None
    ]
    if len(asked) > 1:
        fields = " and ".join(structure.path.partition(".")[0] for structure in asked)
        raise _wrong(asked[1].path, f"asks for a form, but only one may be: {fields}")
    return asked[0] if asked else None


# Fields that hold one kind of constraint each.
_FIELDS = (
    ("guided_json", "json"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
    ("grammar", "grammar"),
    ("json_schema", "json"),
)


def _response_format(value: object, token_id_of: TokenIdOf) -> Structure | None:
    if value is None:
        return None
    path = "response_format"
    if not isinstance(value, dict):
        raise _wrong(path, "must be an object")
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return _json_object(path)
        case "json_schema":
            return _named_schema(value, path)
        case "regex":
            return _single("regex", _present(value, "value", path), f"{path}.value")
        case "structural_tag":
            return _structural_tag(value, path, token_id_of)
    known = "text, json_object, json_schema, regex, structural_tag"
    raise _wrong(f"{path}.type", f"must be one of {known}, but it is {value.get('type')!r}")


def _named_schema(value: Mapping[str, Any], path: str) -> Structure | None:
    holder, here = value.get("json_schema"), f"{path}.json_schema"
    if not isinstance(holder, dict):
        raise _wrong(here, "must be an object with a schema")
    name = holder.get("name")
    if name is not None and not isinstance(name, str):
        raise _wrong(f"{here}.name", "must be a string")
    strict = holder.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise _wrong(f"{here}.strict", "must be true or false")
    return _single("json", _present(holder, "schema", here), f"{here}.schema")


def _structured_outputs(value: object, token_id_of: TokenIdOf) -> Structure | None:
    if value is None:
        return None
    path = "structured_outputs"
    if not isinstance(value, dict):
        raise _wrong(path, "must be an object")
    kinds = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
    given = [kind for kind in kinds if value.get(kind) not in (None, False)]
    if value.get("json") is False:  # the schema that nothing satisfies
        given.append("json")
    if len(given) != 1:
        raise _wrong(path, f"must have exactly one of {', '.join(kinds)}, but has {len(given)}")
    (kind,) = given
    here = f"{path}.{kind}"
    if kind == "json_object":
        if value[kind] is not True:
            raise _wrong(here, "must be true")
        return _json_object(here)
    if kind == "structural_tag":
        return _structural_tag(_decoded(value[kind], here), here, token_id_of)
    return _single(kind, value[kind], here)


def _single(kind: str, value: object, path: str) -> Structure | None:
    """One constraint of a kind that says itself; None where there is none."""
    if value is None:
        return None
    match kind:
        case "json":
            text = enforceable(_decoded(value, path), path)
            return Structure(GrammarSpec(GrammarKind.JSON_SCHEMA, text), path)
        case "choice":
            return Structure(GrammarSpec(GrammarKind.CHOICE, _choices(value, path)), path)
    if not isinstance(value, str) or not value:
        raise _wrong(path, "must be a string that is not empty")
    if kind == "regex":
        return Structure(GrammarSpec(GrammarKind.REGEX, value), path)
    dialect = GrammarKind.GBNF if "::=" in value else GrammarKind.LARK
    return Structure(GrammarSpec(dialect, value), path)


def _json_object(path: str) -> Structure:
    return Structure(GrammarSpec(GrammarKind.JSON_SCHEMA, '{"type":"object"}'), path)


def _choices(value: object, path: str) -> str:
    if not isinstance(value, list) or not value:
        raise _wrong(path, "must be a list of at least one string")
    if len(value) > MAX_CHOICES:
        raise _wrong(path, f"must have at most {MAX_CHOICES} strings, but has {len(value)}")
    for i, choice in enumerate(value):
        if not isinstance(choice, str):
            raise _wrong(step(path, i), "must be a string")
    return json.dumps(value)


def _structural_tag(value: object, path: str, token_id_of: TokenIdOf) -> Structure:
    """Free text in which certain beginnings oblige to go on in a certain way."""
    if not isinstance(value, dict):
        raise _wrong(path, "must be an object")
    triggers = value.get("triggers")
    if not isinstance(triggers, list) or not triggers or not all(map(_is_text, triggers)):
        raise _wrong(f"{path}.triggers", "must be a list of at least one string, none of it empty")
    structures, here = value.get("structures"), f"{path}.structures"
    if not isinstance(structures, list) or not structures:
        raise _wrong(here, "must be a list of at least one tag")
    tags = [_tag(entry, step(here, i), triggers) for i, entry in enumerate(structures)]
    return Structure(GrammarSpec(GrammarKind.LARK, tagged_text(tags, token_id_of)), path)


def _tag(entry: object, path: str, triggers: Sequence[str]) -> Tag:
    if not isinstance(entry, dict):
        raise _wrong(path, "must be an object with begin, schema and end")
    begin, end = entry.get("begin"), entry.get("end", "")
    if not isinstance(begin, str) or not begin:
        raise _wrong(f"{path}.begin", "must be a string that is not empty")
    if not isinstance(end, str):
        raise _wrong(f"{path}.end", "must be a string")
    trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
    if trigger is None:
        raise _wrong(f"{path}.begin", "must begin with one of the triggers")
    schema = enforceable(_present(entry, "schema", path), f"{path}.schema")
    return Tag(trigger=trigger, begin=begin, schema=schema, end=end)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _decoded(value: object, path: str) -> object:
    """Some clients send a schema as a string of JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise _wrong(path, "is a string, but not one of valid JSON") from None


def _present(holder: Mapping[str, Any], key: str, path: str) -> object:
    if holder.get(key) is None:
        raise _wrong(f"{path}.{key}", "is missing")
    return holder[key]


def _wrong(path: str, why: str) -> InvalidParameter:
    return InvalidParameter(f"{path} {why}.", param=path)
