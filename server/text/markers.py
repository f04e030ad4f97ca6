"""Finding a marker in text that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Marker:
    """A mark in a model's output: one control token, or else a piece of plain text.

    A control token is seen by its id, because its text is not shown; `token_id` is None for text.
    An empty text marks nothing and is never found.
    """

    text: str
    token_id: int | None = None

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer) -> Marker:
        token_id = tokenizer.token_id(text) if text else None
        return cls(text, token_id if token_id in tokenizer.special_ids else None)

    def is_token(self, token_id: int) -> bool:
        return self.token_id is not None and token_id == self.token_id

    def split(self, text: str) -> tuple[str, bool, str]:
        """Text in front, whether the marker was found, and the rest: what follows it, or what
        may still become it."""
        if self.token_id is not None or not self.text:
            return text, False, ""
        place = text.find(self.text)
        if place >= 0:
            return text[:place], True, text[place + len(self.text) :]
        keep = unfinished(text, self.text)
        return text[: len(text) - keep], False, text[len(text) - keep :]

    def spelled(self, quote: Callable[[str], str]) -> str:
        """As it stands in a grammar of kind LARK."""
        if self.token_id is not None:
            return f"<[{self.token_id}]>"
        return quote(self.text) if self.text else ""


def unfinished(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`, but not all of it."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
