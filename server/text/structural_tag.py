"""`tagged_text`: free text in which certain beginnings oblige to go on in a certain way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo.engine.params import JSON_STYLE

FREE_TEXT = r"TEXT: /(.|\n)*/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """`begin` starts with `trigger`; behind it comes JSON of the schema, and then `end`."""

    trigger: str
    begin: str
    schema: str  # JSON text
    end: str


def tagged_text(tags: Sequence[Tag], token_id_of: Callable[[str], int | None]) -> str:
    """A grammar of kind LARK: any text, but once a trigger is said, one of its tags follows."""
    triggers = list(dict.fromkeys(tag.trigger for tag in tags))
    lines = [f"start: ({' | '.join(f'tag_{i}' for i in range(len(triggers)))})* TEXT", FREE_TEXT]
    for i, trigger in enumerate(triggers):
        bodies = " | ".join(f"({_body(tag)})" for tag in tags if tag.trigger == trigger)
        token_id = token_id_of(trigger)
        if token_id is not None:
            lines.append(f"tag_{i}: TEXT <[{token_id}]> ({bodies})")
        else:
            lines.append(f"trigger_{i}[lazy]: TEXT {json.dumps(trigger)}")
            lines.append(f"tag_{i}: trigger_{i} ({bodies})")
    return "\n".join([*lines, ""])


def json_rule(schema: str) -> str:
    """A schema inside a grammar of kind LARK, with the house's bounded white space."""
    parsed = json.loads(schema)
    if isinstance(parsed, bool):
        parsed = {} if parsed else {"enum": []}
    return "%json " + json.dumps({**parsed, "x-guidance": dict(JSON_STYLE)}, ensure_ascii=False)


def _body(tag: Tag) -> str:
    rest = tag.begin[len(tag.trigger) :]
    return " ".join(
        part
        for part in (
            json.dumps(rest) if rest else "",
            json_rule(tag.schema),
            json.dumps(tag.end) if tag.end else "",
        )
        if part
    )
