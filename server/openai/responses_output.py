"""`Output`: the parts of an answer become items, and every change of them an event."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from ..text.message import Part, Thought
from ..text.tool_parser import ArgumentsPiece, CallStarted, Content
from .answers import ChatTokenLogprob
from .responses_schema import (
    FunctionCallItem,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
)
from .sse import one_line

_encode = msgspec.json.Encoder().encode


class Events(Protocol):
    """Who hears of changes."""

    def tell(self, kind: str, **fields: Any) -> None:
        """`fields` have changed by the time of the next one."""


class NobodyListens:
    """For answers that are sent whole."""

    def tell(self, kind: str, **fields: Any) -> None:
        pass


class EventWriter:
    """Events on the wire: their `event:` line is their type, and they are numbered from 0."""

    def __init__(self) -> None:
        self._number = 0
        self._unsent: list[bytes] = []

    def tell(self, kind: str, **fields: Any) -> None:
        body = _encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        self._unsent.append(b"event: " + kind.encode() + b"\ndata: " + one_line(body) + b"\n\n")

    def taken(self) -> bytes:
        """What was told since the last time."""
        taken = b"".join(self._unsent)
        self._unsent.clear()
        return taken


class Output:
    """The items of one answer. One is open at a time: the last one.

    A part that does not belong to the open item closes it and opens another one.
    """

    def __init__(self, events: Events) -> None:
        self.items: list[OutputItem] = []
        self._events = events
        self._open: OutputItem | None = None
        self._pieces: list[str] = []  # of the open item's text
        self._logprobs: list[ChatTokenLogprob] = []

    def add(self, part: Part, logprobs: Sequence[ChatTokenLogprob] = ()) -> None:
        """Args:
        logprobs: of the tokens of a text.
        """
        match part:
            case Thought(text):
                if not isinstance(self._open, ReasoningItem):
                    self._begin(ReasoningItem(id=_new_id("rs")), ReasoningText())
                self._grow("response.reasoning_text.delta", text, content_index=0)
            case Content(text):
                if not isinstance(self._open, MessageItem):
                    self._begin(MessageItem(id=_new_id("msg")), OutputText())
                self._logprobs += logprobs
                self._grow(
                    "response.output_text.delta", text, content_index=0, logprobs=list(logprobs)
                )
            case CallStarted(_, call_id, name):
                self._begin(FunctionCallItem(id=_new_id("fc"), call_id=call_id, name=name))
            case ArgumentsPiece(_, text):
                self._grow("response.function_call_arguments.delta", text)

    def finish(self, status: Status) -> None:
        """No parts follow. An answer of nothing at all is an empty text."""
        if not self.items:
            self._begin(MessageItem(id=_new_id("msg")), OutputText())
        self._close(status)

    def abandon(self) -> None:
        """It broke off: what there is of the open item stays, and nobody is told."""
        if self._open is not None:
            self._complete(self._open, "incomplete")

    def _begin(self, item: OutputItem, part: OutputText | ReasoningText | None = None) -> None:
        self._close("completed")
        self._open = item
        self.items.append(item)
        self._events.tell("response.output_item.added", output_index=self._index, item=item)
        if part is not None:
            self._tell("response.content_part.added", content_index=0, part=part)

    def _grow(self, kind: str, text: str, **fields: Any) -> None:
        self._pieces.append(text)
        self._tell(kind, delta=text, **fields)

    def _close(self, status: Status) -> None:
        item = self._open
        if item is None:
            return
        self._complete(item, status)
        match item:
            case MessageItem(content=[part]):
                self._tell(
                    "response.output_text.done",
                    content_index=0,
                    text=part.text,
                    logprobs=part.logprobs,
                )
                self._tell("response.content_part.done", content_index=0, part=part)
            case ReasoningItem(content=[thought]):
                self._tell("response.reasoning_text.done", content_index=0, text=thought.text)
                self._tell("response.content_part.done", content_index=0, part=thought)
            case FunctionCallItem(name=name, arguments=arguments):
                self._tell("response.function_call_arguments.done", name=name, arguments=arguments)
        self._events.tell("response.output_item.done", output_index=self._index, item=item)
        self._open = None

    def _complete(self, item: OutputItem, status: Status) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        item.status = status
        match item:
            case MessageItem():
                item.content = [OutputText(text=text, logprobs=self._logprobs)]
                self._logprobs = []
            case ReasoningItem():
                item.content = [ReasoningText(text=text)]
            case FunctionCallItem():
                item.arguments = text

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _tell(self, kind: str, **fields: Any) -> None:
        """Of the open item."""
        assert self._open is not None, "an item was begun"
        self._events.tell(kind, item_id=self._open.id, output_index=self._index, **fields)


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
