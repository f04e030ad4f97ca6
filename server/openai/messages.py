"""The parts of an answer as chat messages on the wire, whole and in deltas."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from ..text.message import Part, Thought
from ..text.tool_parser import ArgumentsPiece, CallStarted, Content
from .answers import (
    AssistantMessage,
    ChatDelta,
    FunctionCall,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)


def delta_of(part: Part) -> ChatDelta:
    """One part as the delta of a chunk."""
    match part:
        case Thought(text):
            return ChatDelta(reasoning_content=text)
        case Content(text):
            return ChatDelta(content=text)
        case CallStarted(index, call_id, name):
            function = FunctionDelta(name=name, arguments="")
            call = ToolCallDelta(index=index, id=call_id, type="function", function=function)
            return ChatDelta(tool_calls=[call])
        case ArgumentsPiece(index, text):
            piece = ToolCallDelta(index=index, function=FunctionDelta(arguments=text))
            return ChatDelta(tool_calls=[piece])
    return ChatDelta()


def message_of(parts: Sequence[Part], *, front: str = "") -> AssistantMessage:
    """All parts of a choice as one message.

    Args:
        front: content that comes before them.
    """
    content = front
    thoughts = ""
    calls: list[ToolCall] = []
    for part in parts:
        match part:
            case Thought(text):
                thoughts += text
            case Content(text):
                content += text
            case CallStarted(_, call_id, name):
                calls.append(ToolCall(id=call_id, function=FunctionCall(name=name, arguments="")))
            case ArgumentsPiece(index, text):
                calls[index].function.arguments += text
    return AssistantMessage(
        content=None if not content and (calls or thoughts) else content,
        reasoning_content=thoughts or UNSET,
        tool_calls=calls or UNSET,
    )
