"""Streams on the wire: one line `data: {json}` and an empty line for each event.

The constant parts of a chunk are prepared once per stream; what changes is serialised once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from octavo.engine.errors import OctavoError

from .answers import Usage
from .errors import error_body, row_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..observe.tally import Tally

log = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"
Result = TypeVar("Result")

_encode = msgspec.json.Encoder().encode
# Clients that split lines as Python's str.splitlines does would break an event at these.
_LINE_BREAKS = tuple((c.encode(), f"\\u{ord(c):04x}".encode()) for c in "\x85\u2028\u2029")


class ChunkWriter:
    """Events of one stream: the same id, object, creation time and model in each."""

    def __init__(self, constant: dict[str, Any], *, with_usage: bool) -> None:
        """`with_usage`: every chunk has the key `usage`, null where nothing is given."""
        self._head = b"data: " + _encode(constant)[:-1] + b',"choices":['
        self._no_usage = b',"usage":null' if with_usage else b""

    def chunk(
        self, choice: msgspec.Struct | None, usage: Usage | None = None, **more: Any
    ) -> bytes:
        """One event. `more`: further fields of the chunk itself."""
        tail = self._no_usage if usage is None else b',"usage":' + _encode(usage)
        if more:
            tail += b"," + _encode(more)[1:-1]
        body = b"" if choice is None else _encode(choice)
        return one_line(b"".join((self._head, body, b"]", tail, b"}"))) + b"\n\n"


def one_line(body: bytes) -> bytes:
    """JSON that no client takes for several lines."""
    for character, escape in _LINE_BREAKS:
        if character in body:
            body = body.replace(character, escape)
    return body


def error_event(error: Exception) -> bytes:
    """How completions and chats say that they broke off."""
    return b"data: " + error_body(error) + b"\n\n"


async def stream_answer(
    events: AsyncGenerator[bytes, None],
    tally: Tally,
    *,
    ping_seconds: float,
    failure: Callable[[Exception], bytes] = error_event,
) -> EventSourceResponse:
    """The HTTP answer that sends `events`.

    The answer begins with the first event, or after `ping_seconds` of silence: what fails before
    that is raised here, and becomes a plain error with its status; what fails later becomes the
    `failure`, the last of all events. `events` is closed when the client leaves.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait((first,), timeout=ping_seconds)
        if first.done():
            first.result()
    except BaseException:  # this task being cancelled, too: nobody else knows of `first`
        await _abandon(first, events)
        raise
    answer = EventSourceResponse(
        _with_errors_as_event(first, events, tally, failure),
        headers={"Cache-Control": "no-cache"},
        ping=ping_seconds,
        sep="\n",
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        # For a client that left before the first event could be sent.
        background=BackgroundTask(_abandon, first, events),
    )
    del answer.headers["connection"]  # the HTTP server's to say
    return answer


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        ClientDisconnect: it did.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when="FIRST_COMPLETED")
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        await _cancel(gone)
        await _cancel(task)


async def _with_errors_as_event(
    first: asyncio.Future[bytes],
    events: AsyncGenerator[bytes, None],
    tally: Tally,
    failure: Callable[[Exception], bytes],
) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        try:
            yield await first
            async for event in events:
                yield event
        except OctavoError as error:
            tally.fail(error, row_of(error).status)
            yield failure(error)
        except Exception as error:  # a bug; the status has been sent, only an event can tell
            log.exception("a stream broke off")
            tally.fail(error, row_of(error).status)
            yield failure(error)


async def _abandon(first: asyncio.Future[bytes], events: AsyncGenerator[bytes, None]) -> None:
    await _cancel(first)
    await events.aclose()


async def _disconnected(request: Request) -> None:
    """Returns when the client has left. Only after the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[Any]) -> None:
    """End `task` and wait until it has; whatever it ends with has been seen, or is of no use."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
