"""`MessageReader`: one choice's tokens as the parts of a chat message: thinking, content, calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .choice import Piece
from .markers import NO_TOKEN
from .reasoning import ReasoningSplit, ReasoningTags
from .tool_families import ToolFamily
from .tool_parser import ArgumentsPiece, CallEnded, Content, Event, ToolCallParser


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the model's thinking."""

    text: str


Part = Thought | Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How the answers to one request are to be read. Of the default one all text is content."""

    tags: ReasoningTags | None = None
    opened: bool = False  # the prompt opens the thinking
    family: ToolFamily | None = None  # None: nothing is taken for a call
    names: frozenset[str] = frozenset()  # of functions that may be called

    @property
    def plain(self) -> bool:
        return self.tags is None and self.family is None


class MessageReader:
    """Fed with the tokens of one choice; the same parts come out however they are cut."""

    def __init__(self, manner: Manner) -> None:
        tags, family = manner.tags, manner.family
        self._split = ReasoningSplit(tags, opened=manner.opened) if tags is not None else None
        self._parser = ToolCallParser(family, manner.names) if family is not None else None

    @property
    def calls(self) -> int:
        return self._parser.calls if self._parser is not None else 0

    @property
    def reasoning_tokens(self) -> int:
        return self._split.reasoning_tokens if self._split is not None else 0

    def read(self, pieces: Sequence[Piece], *, last: bool) -> list[Part]:
        """The parts that are certain now, neighbours of one kind joined.

        Args:
            last: nothing follows.
        """
        parts: list[Part] = []
        for token_id, text in pieces:
            parts += self._feed(token_id, text)
        if last:
            parts += self._finish()
        return _joined(parts)

    def _feed(self, token_id: int, text: str) -> list[Part]:
        parts: list[Part] = []
        if self._split is not None:
            passages = self._split.feed(token_id, text)
            parts += [Thought(passage.text) for passage in passages if passage.reasoning]
            text = "".join(passage.text for passage in passages if not passage.reasoning)
            if self._split.thinking:
                return parts
        return parts + self._answer(token_id, text)

    def _finish(self) -> list[Part]:
        parts: list[Part] = []
        if self._split is not None:
            for passage in self._split.finish():
                if passage.reasoning:
                    parts.append(Thought(passage.text))
                else:
                    parts += self._answer(NO_TOKEN, passage.text)
        if self._parser is not None:
            parts += self._parser.finish()
        return parts

    def _answer(self, token_id: int, text: str) -> list[Part]:
        if self._parser is not None:
            return list(self._parser.feed(token_id, text))
        return [Content(text)] if text else []


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbours of one kind as one part."""
    joined: list[Part] = []
    for part in parts:
        match joined[-1] if joined else None, part:
            case Thought(before), Thought(text):
                joined[-1] = Thought(before + text)
            case Content(before), Content(text):
                joined[-1] = Content(before + text)
            case ArgumentsPiece(index, before), ArgumentsPiece(other, text) if index == other:
                joined[-1] = ArgumentsPiece(index, before + text)
            case _, CallEnded():
                pass  # nothing of it is shown
            case _:
                joined.append(part)
    return joined
