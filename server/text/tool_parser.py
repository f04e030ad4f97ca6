"""`ToolCallParser`: one choice's text, token by token, as content and tool calls.

The same parser serves streams and plain answers. It emits a call as soon as its name is known, and
its arguments piece by piece; text that turns out to be no call is content, exactly as it stands.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from .json_pieces import CallReader, NotACall
from .tool_families import ToolFamily


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    index: int  # of the call in its answer
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsPiece:
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is complete: its pieces join to a JSON value."""

    index: int


Event = Content | CallStarted | ArgumentsPiece | CallEnded


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class _Where(Enum):
    CONTENT = auto()
    CALL = auto()
    AFTER_CALL = auto()  # inside the markers, behind a call's JSON


class ToolCallParser:
    """Args:
    family: how the model writes calls.
    names: functions there are; what names another one is content.
    new_id: makes the ids of calls.
    """

    def __init__(
        self,
        family: ToolFamily,
        names: frozenset[str],
        *,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._family = family
        self._names = names
        self._new_id = new_id
        self._where = _Where.CONTENT
        self._buffer = ""  # read, not yet understood
        self._blank = ""  # white space that is content if content follows
        self._raw = ""  # of the call that is being read, until its name is known
        self._call = CallReader(family.arguments)
        self._started = False  # whether that call's name is known
        self._content_open = False  # whether content other than white space runs at the moment
        self._settled = False  # bare families: content has begun, so no call can
        self._expects_list = False
        self.calls = 0

    def feed(self, token_id: int, text: str) -> list[Event]:
        """One token and the text it releases."""
        events: list[Event] = []
        opening, closing = self._family.opening, self._family.closing
        if self._where is _Where.CONTENT and opening.is_token(token_id):
            self._say(self._take() + text.removesuffix(opening.text), events)
            self._begin("")
        elif self._where is not _Where.CONTENT and closing.is_token(token_id):
            self._close(events)
        else:
            self._buffer += text
        self._read(events)
        return events

    def finish(self) -> list[Event]:
        """The text has ended: what was held back. A call that was cut short has no end."""
        events: list[Event] = []
        if self._where is _Where.CALL and not self._started:
            self._give_up(events)
        if self._where is _Where.CONTENT and not (self._between_bare_calls and self.calls):
            self._say(self._take(), events)
            if not self.calls and self._blank:
                events.append(Content(self._blank))
        return events

    @property
    def _between_bare_calls(self) -> bool:
        return self._family.bare and not self._settled

    def _read(self, events: list[Event]) -> None:
        while self._buffer:
            if self._where is _Where.CONTENT:
                going_on = self._read_content(events)
            elif self._where is _Where.CALL:
                going_on = self._read_call(events)
            else:
                going_on = self._read_after_call()
            if not going_on:
                return

    def _read_content(self, events: list[Event]) -> bool:
        if self._family.bare:
            return self._read_bare(events)
        front, found, self._buffer = self._family.opening.split(self._buffer)
        self._say(front, events)
        if found:
            self._begin(self._family.opening.text)
        return found

    def _read_bare(self, events: list[Event]) -> bool:
        start = self._buffer.lstrip()
        if self.calls and self._between_bare_calls:
            start = start.removeprefix(self._family.between.strip()).lstrip()
        if not start:
            return False  # white space, or what stands between two calls
        if self._settled or not start.startswith("{"):
            self._settled = True
            self._say(self._take(), events)
            return False
        self._begin(self._buffer[: len(self._buffer) - len(start)])
        self._buffer = start
        return True

    def _begin(self, raw: str) -> None:
        """What may become a call begins; `raw` is what was read of it."""
        self._where = _Where.CALL
        self._raw = raw
        self._call = CallReader(self._family.arguments)
        self._started = False
        self._expects_list = self._family.listed

    def _read_call(self, events: list[Event]) -> bool:
        if self._expects_list:
            return self._pass_bracket(events)
        text = self._take()
        try:
            used = self._call.feed(text)
        except NotACall as error:
            self._pass(text, error.used, events)
            if self._started:
                self._leave()
            else:
                self._give_up(events)
            return True
        self._pass(text, used, events)
        if self._call.done:
            if self._started:
                events.append(CallEnded(self.calls - 1))
                self._leave()
            else:  # it has no name, or one of no function
                self._give_up(events)
        return bool(self._buffer)

    def _pass(self, text: str, used: int, events: list[Event]) -> None:
        """The first `used` characters of `text` were read as a call: tell what is new."""
        self._buffer = text[used:]
        name = self._call.name
        if not self._started:
            self._raw += text[:used]
            if name is not None and name in self._names:
                self._started, self._raw = True, ""
                self._blank, self._content_open = "", False
                events.append(CallStarted(self.calls, self._new_id(), name))
                self.calls += 1
        if self._started and (piece := self._call.take_arguments()):
            events.append(ArgumentsPiece(self.calls - 1, piece))

    def _pass_bracket(self, events: list[Event]) -> bool:
        """The bracket that opens a list of calls."""
        start = self._buffer.lstrip()
        if not start:
            return False
        if start.startswith("["):
            self._raw += self._buffer[: len(self._buffer) - len(start) + 1]
            self._buffer = start[1:]
            self._expects_list = False
        else:
            self._give_up(events)
        return bool(self._buffer)

    def _leave(self) -> None:
        """A call's JSON has ended."""
        closed = self._family.listed or self._family.closing.text
        self._where = _Where.AFTER_CALL if closed else _Where.CONTENT

    def _read_after_call(self) -> bool:
        start = self._buffer.lstrip()
        if not start:
            return False
        closing = self._family.closing
        if self._family.listed and start[0] == ",":
            self._begin("")
            self._expects_list = False
            self._buffer = start[1:]
        elif self._family.listed and start[0] == "]":
            self._where = _Where.AFTER_CALL if closing.text else _Where.CONTENT
            self._buffer = start[1:]
        elif not closing.hidden and closing.text and start.startswith(closing.text):
            self._where = _Where.CONTENT
            self._buffer = start[len(closing.text) :]
        elif not closing.hidden and closing.text.startswith(start):
            return False
        else:  # the end is missing: what comes is content
            self._where = _Where.CONTENT
        return bool(self._buffer)

    def _close(self, events: list[Event]) -> None:
        """The closing control token was seen."""
        if self._where is _Where.CALL and not self._started:
            self._give_up(events)
        self._where = _Where.CONTENT

    def _give_up(self, events: list[Event]) -> None:
        """It was no call: what was read of it is content, and what follows is read afresh."""
        said, self._raw = self._raw, ""
        self._where = _Where.CONTENT
        self._settled = True
        self._say(said, events)

    def _say(self, text: str, events: list[Event]) -> None:
        """Content. White space at its beginning, and behind a call, waits for more."""
        if not self._content_open:
            text = self._blank + text
            self._content_open = bool(text.strip())
            self._blank = "" if self._content_open else text
        if text and self._content_open:
            events.append(Content(text))

    def _take(self) -> str:
        text, self._buffer = self._buffer, ""
        return text
