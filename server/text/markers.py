"""Finding a marker in text that arrives piece by piece."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .tokenizer import Tokenizer

NO_TOKEN = -1
"""In place of a token's id where text comes without a token of its own."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A mark in a model's output: a token of its own, or a piece of text. "" marks nothing.

    A `hidden` one is a control token, whose text is not shown: it is seen by its id. Other tokens
    of their own (Qwen's `<tool_call>`) are seen as text, but a grammar knows them by their ids.
    """

    text: str
    token_id: int | None = None
    hidden: bool = False

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer) -> Marker:
        token_id = tokenizer.token_id(text) if text else None
        return cls(text, token_id, token_id in tokenizer.special_ids)

    def is_token(self, token_id: int) -> bool:
        """Whether a token is this marker, hidden."""
        return self.hidden and token_id == self.token_id

    def split(self, text: str) -> tuple[str, bool, str]:
        """Text in front, whether the marker was found, and the rest: what follows it, or what
        may still become it."""
        if self.hidden or not self.text:
            return text, False, ""
        place = text.find(self.text)
        if place >= 0:
            return text[:place], True, text[place + len(self.text) :]
        keep = unfinished(text, self.text)
        return text[: len(text) - keep], False, text[len(text) - keep :]

    @property
    def rule(self) -> str:
        """As it is written in a grammar of kind LARK."""
        if self.token_id is not None:
            return f"<[{self.token_id}]>"
        return json.dumps(self.text) if self.text else ""


def unfinished(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`, but not all of it."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
