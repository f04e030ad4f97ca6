"""Streams on the wire: one line `data: {json}` and an empty line for each event.

The constant parts of a chunk are prepared once per stream; what changes is serialised once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from octavo.engine.errors import OctavoError

from .answers import Usage
from .errors import error_body, row_of

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from ..observe.tally import Tally

log = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
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
) -> StreamingResponse:
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
    return _EventStream(
        first,
        events,
        tally,
        ping_seconds=ping_seconds,
        failure=failure,
    )


class _EventStream(StreamingResponse):
    """Sends events as they come, and a comment now and then, until the client leaves.

    Of our own because it runs for each token of each stream.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: asyncio.Future[bytes],
        events: AsyncGenerator[bytes, None],
        tally: Tally,
        *,
        ping_seconds: float,
        failure: Callable[[Exception], bytes],
    ) -> None:
        super().__init__(events, headers=_HEADERS)
        self._first = first
        self._events = events
        self._tally = tally
        self._ping_seconds = ping_seconds
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send_part: Send = scope["state"]["send_part"]
        start = {"status": self.status_code, "headers": self.raw_headers}
        pings = asyncio.create_task(self._ping(send_part))
        try:
            await send({"type": "http.response.start", **start})
            await unless_gone(receive, self._send_all(send_part))
        except ClientDisconnect:
            return  # who has left is told nothing more
        finally:
            await _cancel(pings)
            await _abandon(self._first, self._events)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        try:
            await send(_part(await self._first))
            async for event in self._events:
                await send(_part(event))
        except OctavoError as error:
            await send(_part(self._broken_off(error)))
        except Exception as error:  # a bug; the status has been sent, only an event can tell
            log.exception("a stream broke off")
            await send(_part(self._broken_off(error)))

    def _broken_off(self, error: Exception) -> bytes:
        self._tally.fail(error, row_of(error).status)
        return self._failure(error)

    async def _ping(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._ping_seconds)
            await send(_part(_PING))


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves.

    `work` is done by the task that asks, as under `asyncio.timeout`: a task of its own would cost
    more than most requests are worth.

    Raises:
        ClientDisconnect: it did.
    """
    asking = asyncio.current_task()
    assert asking is not None
    left = False

    async def watch() -> None:
        nonlocal left
        # Only after the body has been read does this say that the client has left.
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        asking.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if left and not asking.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()


async def _abandon(first: asyncio.Future[bytes], events: AsyncGenerator[bytes, None]) -> None:
    await _cancel(first)
    await events.aclose()


async def _cancel(task: asyncio.Future[Any]) -> None:
    """End `task` and wait until it has; whatever it ends with has been seen, or is of no use."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
