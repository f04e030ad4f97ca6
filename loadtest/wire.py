"""HTTP/1.1 over one kept connection, every piece of an answer with the time it arrived.

Costs as little as Python allows: bytes are parsed by httptools and only kept; events are read
(`events.py`) when the measurement is over. A load test must be cheaper than what it measures.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import httptools


@dataclass(slots=True, kw_only=True)
class Transcript:
    """What came back for one request, not yet understood. Times of time.perf_counter()."""

    sent: float
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)  # by names in lower case
    pieces: list[tuple[float, bytes]] = field(default_factory=list)  # of the body, as they came
    ended: float = 0.0
    error: str | None = None  # of the connection

    @property
    def begun(self) -> bool:
        """Whether an answer has begun to come."""
        return self.status != 0 or bool(self.pieces)

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream of server-sent events."""
        return self.headers.get(b"content-type", b"").startswith(b"text/event-stream")

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class Wire(asyncio.Protocol):
    """One connection that carries one exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._transcript: Transcript | None = None
        self._ended: asyncio.Future[None] | None = None
        self._now = 0.0
        self._parser = httptools.HttpResponseParser(self)

    @property
    def usable(self) -> bool:
        """Whether the next exchange may go over this connection."""
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, request: bytes, transcript: Transcript) -> None:
        """Send a request and keep the answer in `transcript`; raises OSError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._transcript = transcript
        self._ended = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        transcript.sent = time.perf_counter()
        self._transport.write(request)
        try:
            await self._ended
        except asyncio.CancelledError:  # an answer half read leaves nothing to go on with
            self.close()
            raise
        finally:
            self._ended = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ConnectionError(f"not an HTTP answer: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._now = time.perf_counter()
        if (
            exc is None
            and self._transcript is not None
            and _ends_with_its_connection(self._transcript)
        ):
            self._end(None)  # an answer that ends where its connection does
        else:
            self._end(ConnectionResetError("the connection was closed before the answer's end"))
        self._transport = None

    # httptools calls these

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._transcript is not None
        self._transcript.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._transcript is not None
        self._transcript.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        assert self._transcript is not None
        self._transcript.pieces.append((self._now, body))

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
        self._end(None)

    def _end(self, error: OSError | None) -> None:
        if self._ended is None or self._ended.done():
            return
        assert self._transcript is not None
        self._transcript.ended = self._now
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)


def _ends_with_its_connection(answer: Transcript) -> bool:
    """It has begun, and does not say how long it is (RFC 9112, section 6.3)."""
    lengths = (b"content-length", b"transfer-encoding")
    return answer.status != 0 and not any(name in answer.headers for name in lengths)
