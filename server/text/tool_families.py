"""How model families write tool calls: one table row per format."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .markers import Marker
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class _Row:
    signature: str  # in the chat template
    opening: str  # begins a call, or a list of them; "": a call is a JSON object from the start on
    closing: str  # ends it; "": nothing does
    gap: str = ""  # between the markers and the JSON inside
    between: str = ""  # between two calls
    listed: bool = False  # the markers enclose a JSON list of calls
    arguments: str = "arguments"  # key of the arguments


# The first row whose signature stands in the template is the model's.
_ROWS = (
    _Row("<|tool_call|>", "<|tool_call|>", "<|/tool_call|>"),
    _Row("<tool_call>", "<tool_call>", "</tool_call>", gap="\n", between="\n"),  # Hermes, Qwen
    _Row("[TOOL_CALLS]", "[TOOL_CALLS]", "", between=", ", listed=True),  # Mistral
    _Row('"parameters"', "", "", between="; ", arguments="parameters"),  # Llama 3
)
_BARE = _Row("", "", "", between="; ")


@dataclass(frozen=True, slots=True)
class ToolFamily:
    """One family's way of writing calls, for one tokenizer."""

    opening: Marker
    closing: Marker
    gap: str
    between: str
    listed: bool
    arguments: str

    @classmethod
    def of(cls, template: str, tokenizer: Tokenizer) -> ToolFamily:
        """The family that a chat template is written for; JSON without markers for unknown ones."""
        row = next((row for row in _ROWS if row.signature in template), _BARE)
        return cls(
            Marker.of(row.opening, tokenizer),
            Marker.of(row.closing, tokenizer),
            row.gap,
            row.between,
            row.listed,
            row.arguments,
        )

    @property
    def bare(self) -> bool:
        """Whether nothing but its JSON tells a call from content."""
        return not self.opening.text

    def call(self, name: str, arguments: str) -> str:
        """A call of one function in a grammar of kind LARK; `arguments` is the rule of its own."""
        head = f'{{"name": {json.dumps(name)}, "{self.arguments}": '
        return f'{json.dumps(head)} {arguments} "}}"'

    def calls(self, call: str, most: int, opening: str | None = None) -> str:
        """1 to `most` calls, each as the rule `call` says, with the family's markers.

        `opening`: the rule of the first opening marker, where it is more than that.
        """
        first = self.opening.rule if opening is None else opening
        next_one = call if self.listed else f"{self.opening.rule} {self._inside(call)}"
        between = json.dumps(self.between) if self.between else ""
        more = f"({between} {next_one}){{0,{most - 1}}}" if most > 1 else ""
        if self.listed:
            return f'{first} "[" {call} {more} "]" {self.closing.rule}'
        return f"{first} {self._inside(call)} {more}"

    def _inside(self, call: str) -> str:
        gap = json.dumps(self.gap) if self.gap else ""
        return f"{gap} {call} {gap} {self.closing.rule}"
