"""Tools as a request offers them, and the grammar that keeps a model's calls well-formed.

`read_tools` turns the decoded JSON of `tools`, `tool_choice` and `parallel_tool_calls` into a
frozen `ToolUse`; `tool_grammar` says what the answer must look like in one family's format. The
calls in an answer are read by `tool_parser.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from octavo.engine.errors import InvalidParameter
from octavo.engine.params import GrammarKind, GrammarSpec

from .json_schema import enforceable, step
from .structural_tag import FREE_TEXT, json_rule
from .tool_families import ToolFamily

MAX_TOOLS = 128
MAX_CALLS = 16  # in one answer
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_ARGUMENTS: Mapping[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}
# Keywords that can widen or shape an object beyond its `properties`.
_SHAPING = frozenset("$ref anyOf allOf oneOf enum const patternProperties minProperties".split())


class ToolMode(StrEnum):
    """Whether the answer is to be a call."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One function the model may call."""

    name: str
    schema: str  # of its arguments, as JSON text that the grammar compiler takes
    path: str  # where its parameters stand in the request


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The tools of a request and what may be done with them."""

    entries: tuple[Mapping[str, Any], ...]  # all, as the client wrote them, for the chat template
    mode: ToolMode
    callable: tuple[Tool, ...]  # those that may be called
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.callable)


def read_tools(body: Mapping[str, Any]) -> ToolUse | None:
    """From the decoded JSON of a request; None where it has no tools.

    Raises:
        InvalidParameter: `tools`, `tool_choice` or `parallel_tool_calls` is wrong, or the
            arguments of a function that may be called cannot be enforced; names the place.
    """
    entries, choice = body.get("tools"), body.get("tool_choice")
    parallel = body.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise _wrong("parallel_tool_calls", "must be true or false")
    if entries is None:
        if choice not in (None, "none"):
            raise _wrong("tool_choice", "needs tools to choose from, but there are none")
        return None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_TOOLS:
        raise _wrong("tools", f"must be a list of 1 to {MAX_TOOLS} tools")
    functions = [_function(entry, step("tools", i)) for i, entry in enumerate(entries)]
    names = [function["name"] for function in functions]
    if len(set(names)) < len(names):
        raise _wrong("tools", "must have different names")
    mode, chosen = _choice(choice, names)
    return ToolUse(
        entries=tuple(entries),
        mode=mode,
        callable=tuple(
            _tool(function, step("tools", i))
            for i, function in enumerate(functions)
            if function["name"] in chosen
        ),
        parallel=parallel is not False,
    )


def _function(entry: object, path: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict) or entry.get("type") != "function":
        raise _wrong(path, 'must be an object of "type": "function"')
    function, here = entry.get("function"), step(path, "function")
    if not isinstance(function, dict):
        raise _wrong(here, "must be an object with a name")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _wrong(step(here, "name"), "must be 1 to 64 letters, digits, _ or -")
    for key, kind in (("description", str), ("strict", bool), ("parameters", dict)):
        value = function.get(key)
        if value is not None and not isinstance(value, kind):
            raise _wrong(step(here, key), f"must be of type {_JSON_NAMES[kind]}")
    if (function.get("parameters") or {}).get("type", "object") != "object":
        raise _wrong(f"{here}.parameters.type", 'must be "object"')
    return function


_JSON_NAMES: Mapping[type, str] = {str: "string", bool: "boolean", dict: "object"}


def _tool(function: Mapping[str, Any], path: str) -> Tool:
    here = f"{path}.function.parameters"
    schema = enforceable(_arguments(function.get("parameters") or {}), here)
    return Tool(name=function["name"], schema=schema, path=here)


def _arguments(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of an object of arguments: without parameters it is empty, and where the client
    did not say more than `properties` there are no others."""
    if parameters.get("properties") is None and not _shaped(parameters):
        return _NO_ARGUMENTS
    if _shaped(parameters):
        return {"type": "object", **parameters}
    return {"type": "object", **parameters, "additionalProperties": False}


def _shaped(parameters: Mapping[str, Any]) -> bool:
    return "additionalProperties" in parameters or not _SHAPING.isdisjoint(parameters)


def _choice(choice: object, names: Sequence[str]) -> tuple[ToolMode, frozenset[str]]:
    """The mode, and the names that may be called."""
    everything = frozenset(names)
    if choice is None:
        return ToolMode.AUTO, everything
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise _wrong("tool_choice", 'must be "none", "auto", "required" or name a function')
        mode = ToolMode(choice)
        return mode, frozenset() if mode is ToolMode.NONE else everything
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and kind == "function":
        path = "tool_choice.function.name"
        return ToolMode.REQUIRED, frozenset({_named(choice, path, names)})
    if isinstance(choice, dict) and kind == "allowed_tools":
        return _allowed_tools(choice.get("allowed_tools", choice), names)
    raise _wrong("tool_choice", 'must be a word or an object of type "function" or "allowed_tools"')


def _allowed_tools(allowed: object, names: Sequence[str]) -> tuple[ToolMode, frozenset[str]]:
    path = "tool_choice.allowed_tools"
    mode = allowed.get("mode", "auto") if isinstance(allowed, dict) else None
    if mode not in ("auto", "required"):
        raise _wrong(f"{path}.mode", 'must be "auto" or "required"')
    assert isinstance(allowed, dict), "its mode was read"
    tools = allowed.get("tools")
    if not isinstance(tools, list) or not tools:
        raise _wrong(f"{path}.tools", "must be a list of at least one tool")
    found = [_named(tool, step(f"{path}.tools", i), names) for i, tool in enumerate(tools)]
    return ToolMode(mode), frozenset(found)


def _named(choice: object, path: str, names: Sequence[str]) -> str:
    function = choice.get("function", choice) if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise _wrong(path, "must name a function")
    if name not in names:
        raise _wrong(path, f"names {name!r}, which is not among the tools")
    return name


def _wrong(path: str, why: str) -> InvalidParameter:
    return InvalidParameter(f"{path} {why}.", param=path)


def tool_grammar(
    use: ToolUse, family: ToolFamily, *, answer: str | None = None
) -> GrammarSpec | None:
    """What an answer must look like; None where it is free.

    Required: one call or more and nothing else. Auto: free text, but what begins a call is a
    well-formed one, of a function that there is; or, instead of free text, JSON of the schema
    `answer`.
    """
    if use.mode is ToolMode.NONE:
        return None
    most = MAX_CALLS if use.parallel else 1
    forced = use.mode is ToolMode.REQUIRED
    if forced:
        rules = [f"start: {family.calls('any_call', most)}"]
    elif answer is not None:
        rules = [f"start: {family.calls('any_call', most)} | answer"]
        rules.append(f"answer: {json_rule(answer)}")
    else:
        rules = _free_rules(family, most)
    calls = [f"call_{i}" for i in range(len(use.callable))]
    lines = [*rules, f"any_call: {' | '.join(calls)}"]
    for rule, tool in zip(calls, use.callable, strict=True):
        lines.append(f"{rule}: {family.call(tool.name, json_rule(tool.schema))}")
    return GrammarSpec(GrammarKind.LARK, "\n".join([*lines, FREE_TEXT, ""]))


def _free_rules(family: ToolFamily, most: int) -> list[str]:
    """Text, then calls if there are any, and with markers around them text again."""
    if family.bare:  # a text that does not begin like a JSON object
        calls = family.calls("any_call", most)
        return ["start: calls | FREE?", f"calls: {calls}", r"FREE: /\s*([^{\s](.|\n)*)?/"]
    tail = "" if family.listed else "TEXT"
    repeated = f"{{0,{most}}}" if tail and most > 1 else "?"
    once = most if family.listed else 1
    if family.opening.token_id is not None:
        return [f"start: TEXT more{repeated}", f"more: {family.calls('any_call', once)} {tail}"]
    start = "start: more | TEXT" if family.listed else f"start: more{repeated} TEXT"
    return [
        start,
        f"more: {family.calls('any_call', once, 'opening')}",
        f"opening[lazy]: TEXT {json.dumps(family.opening.text)}",
    ]
