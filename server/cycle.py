"""What of uvicorn's `RequestResponseCycle`, one request and its answer, is done in another way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import Transport

    from starlette.types import Message
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_GO_ON = b"HTTP/1.1 100 "  # "send the body", to who has asked


def speak(cycle: RequestResponseCycle, *, close: Callable[[], None], chunks: bool) -> None:
    """To be called before anything is answered.

    Args:
        close: is called after the connection's last answer, in place of closing it.
        chunks: whether the client understands them.
    """
    words = _Words(cycle.transport, close)
    cycle.transport = words  # type: ignore[assignment]
    ended = cycle.on_response

    def end() -> None:
        """Whatever the connection does next comes behind an answer that had no body."""
        words.release()
        ended()

    cycle.on_response = end
    if not chunks:
        _end_with_the_connection(cycle)


def _end_with_the_connection(cycle: RequestResponseCycle) -> None:
    """HTTP/1.0 has no chunks: an answer without a length ends where the connection does, which
    uvicorn closes behind it in any case (RFC 9112, sections 6.1 and 6.3)."""
    cycle.chunked_encoding = False
    send = cycle.send

    async def send_as_it_is(message: Message) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)  # type: ignore[arg-type]

    cycle.send = send_as_it_is  # type: ignore[method-assign, assignment]


class _Words:
    """The transport as the maker of an answer sees it. The head goes out with the body's beginning,
    or alone where there is none in this turn of the loop; it closes after the last answer only."""

    def __init__(self, transport: Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._close = close
        self._held: bytes | None = None  # what was written first
        self._begun = False

    def write(self, data: bytes) -> None:
        if data.startswith(_GO_ON):
            self._transport.write(data)  # no part of the answer, which may be a refusal
        elif not self._begun:
            self._begun, self._held = True, data
            asyncio.get_running_loop().call_soon(self.release)
        elif self._held is None:
            self._transport.write(data)
        else:
            data, self._held = self._held + data, None
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self.release()
        self._close()

    def release(self) -> None:
        """What is held waits no longer."""
        if self._held is not None:
            data, self._held = self._held, None
            self._transport.write(data)
