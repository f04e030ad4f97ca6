"""`ReasoningSplit`: tells a model's thinking from its answer, by the tags around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from .markers import NO_TOKEN, Marker
from .structural_tag import FREE_TEXT
from .tokenizer import Tokenizer

# Families by their tags. The first whose opening tag stands in the chat template is the model's.
_TAGS = (
    ("<think>", "</think>"),  # DeepSeek R1, Qwen 3, and most after them
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<reasoning>", "</reasoning>"),
)


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """How a model marks its thinking."""

    opening: Marker
    closing: Marker

    @classmethod
    def of(cls, template: str, tokenizer: Tokenizer) -> ReasoningTags | None:
        """The tags that a chat template speaks of; None where it speaks of none."""
        for opening, closing in _TAGS:
            if closing in template:
                return cls(Marker.of(opening, tokenizer), Marker.of(closing, tokenizer))
        return None

    def before_answer(self, *, opened: bool) -> str:
        """The `lead` of a GrammarSpec: thinking comes first, if it is `opened` or the model
        likes, and only the answer behind it is bound by the grammar."""
        start = "thinking GAP @answer" if opened else "(opening thinking GAP)? @answer"
        opening, closing = self.opening, self.closing
        return "\n".join(
            [
                f"start: {start}",
                f"opening: {opening.rule if opening.hidden else 'OPENING'}",
                f"OPENING: /\\s{{0,4}}/ {json.dumps(opening.text)}",
                f"thinking: TEXT {closing.rule}"
                if closing.hidden
                else f"thinking[lazy]: TEXT {json.dumps(closing.text)}",
                r"GAP: /\s{0,4}/",
                FREE_TEXT,
                "",
            ]
        )

    def opened_by(self, prompt: str) -> bool:
        """Whether the rendered prompt itself opens the thinking, so that no tag will follow."""
        return prompt.rstrip().endswith(self.opening.text)


@dataclass(frozen=True, slots=True)
class Passage:
    """Text of one kind. What is of one kind may come in several pieces."""

    text: str
    reasoning: bool


class _Where(Enum):
    BEFORE = auto()  # nothing but white space so far
    THINKING = auto()
    ANSWER = auto()


class ReasoningSplit:
    """One choice's text, token by token, as thinking and answer.

    Thinking comes first, once, or not at all: later tags are text. White space right behind a tag
    belongs to neither. Joined passages of a kind do not depend on how the text is cut into pieces.
    """

    def __init__(self, tags: ReasoningTags, *, opened: bool = False) -> None:
        """`opened`: the prompt opened the thinking (`ReasoningTags.opened_by`)."""
        self._tags = tags
        self._where = _Where.THINKING if opened else _Where.BEFORE
        self._held = ""
        self._after_tag = opened
        self.reasoning_tokens = 0

    @property
    def thinking(self) -> bool:
        return self._where is _Where.THINKING

    def feed(self, token_id: int, text: str) -> list[Passage]:
        """One token and the text it releases; may release none, or text of both kinds."""
        tags = self._tags
        if self._where is not _Where.ANSWER:
            marker = tags.opening if self._where is _Where.BEFORE else tags.closing
            if marker.is_token(token_id):
                held, self._held = self._held, ""
                return [*self._say(held + text.removesuffix(marker.text)), *self._pass()]
        self._held += text
        passages = self._read()
        self.reasoning_tokens += self.thinking and token_id != NO_TOKEN
        return passages

    def finish(self) -> list[Passage]:
        """The text has ended: what was held back."""
        held, self._held = self._held, ""
        return self._say(held)

    def _read(self) -> list[Passage]:
        if self._where is _Where.BEFORE:
            return self._look_for_beginning()
        if self._where is _Where.THINKING:
            front, found, self._held = self._tags.closing.split(self._held)
            said = self._say(front)
            return [*said, *self._pass()] if found else said
        held, self._held = self._held, ""
        return self._say(held)

    def _look_for_beginning(self) -> list[Passage]:
        """Only white space may stand before the opening tag."""
        opening = self._tags.opening
        start = self._held.lstrip()
        if not opening.hidden and start.startswith(opening.text):
            self._held = start[len(opening.text) :]
            return self._pass()
        if not start or (not opening.hidden and opening.text.startswith(start)):
            return []
        self._where = _Where.ANSWER
        return self._read()

    def _pass(self) -> list[Passage]:
        """A tag was seen."""
        begins = self._where is _Where.BEFORE
        self._where = _Where.THINKING if begins else _Where.ANSWER
        self._after_tag = True
        return self._read()

    def _say(self, text: str) -> list[Passage]:
        if self._after_tag:
            text = text.lstrip()
            self._after_tag = not text
        return [Passage(text, self._where is _Where.THINKING)] if text else []


def joined(passages: Sequence[Passage], *, reasoning: bool) -> str:
    """All text of one kind."""
    return "".join(passage.text for passage in passages if passage.reasoning == reasoning)
