"""`Protocol`: HTTP/1.1 from strangers, with an end to everything they may begin.

uvicorn parses and answers; what is added here is what it lacks alone. A head that does not come in
time, or is too large, or could be read by a proxy before us in another way than by us, is refused,
and the connection closed (RFC 9112, sections 3.2, 6 and 11.2). Refusals have the form of all other
errors. They are written only where no other answer is under way on the connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo.engine.errors import OctavoError

from .cycle import speak
from .openai.errors import (
    HeadTimeout,
    HeadTooLarge,
    MalformedRequest,
    TargetTooLong,
    TooManyConnections,
    row_of,
)
from .refusal import ambiguity, answer_of, malformed

if TYPE_CHECKING:
    from asyncio.events import TimerHandle

    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

    from .settings import Settings

log = logging.getLogger(__name__)
MAX_HEADERS = 128
MAX_TARGET_BYTES = 8 << 10
_MAX_PIPELINED = 32  # requests that wait for the answer to one before them
_BODY_GRACE_SECONDS = 5.0  # after the time that the application itself gives a body
_LINGER_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times in seconds, sizes in bytes."""

    header_seconds: float  # from a request's first byte, or a connection's beginning, to its head
    body_seconds: float  # from there to the end of its body
    keep_alive_seconds: float  # of silence between two requests
    header_bytes: int
    connections: int

    @classmethod
    def of(cls, settings: Settings, *, connections: int) -> Limits:
        """Those that `settings` name."""
        return cls(
            header_seconds=settings.header_timeout,
            body_seconds=settings.body_timeout + _BODY_GRACE_SECONDS,
            keep_alive_seconds=settings.keep_alive_timeout,
            header_bytes=settings.max_header_size,
            connections=connections,
        )


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
        on_refused: Callable[[int], None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._on_refused = on_refused
        self._deadline: TimerHandle | None = None  # for what is coming in: a head or a body
        self._in_head = self._in_body = False
        self._head_bytes = self._headers_seen = 0
        self._method = self._version = b""  # of a request that asks for another protocol
        self._fault: OctavoError | None = None  # why a callback of the parser gave up
        self._deaf = False  # nothing more is read
        self._answered: RequestResponseCycle | None = None  # others may wait behind it

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self._limits.connections:
            self._deaf = True
            error = TooManyConnections(
                f"{self._limits.connections} connections are open already; try again in a moment."
            )
            self._on_refused(row_of(error).status)
            self.transport.write(answer_of(error))
            self.transport.close()
            return
        self._expect(self._limits.header_seconds)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        if self._deadline is None:
            self._expect(self._limits.header_seconds)
        begun = self._in_head
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(self._fault or malformed(error))
            return
        if begun and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.header_bytes:
                self._refuse(self._head_too_large())
        elif self._idle and not self._in_head and self.timeout_keep_alive_task is None:
            # The last bytes of a body that nobody waited for.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _feed(self, data: bytes) -> None:
        """To the parser, which stops at the end of a head that asks for another protocol.

        None is offered, so such a request is one in HTTP/1.1 like all others (RFC 9110, 7.8), with
        a body perhaps: Java's client asks for HTTP/2 with each POST. It is parsed again without.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                self.parser = httptools.HttpRequestParser(self)
                data = self._head_again() + data[upgrade.args[0] :]

    def _head_again(self) -> bytes:
        """The head just read, without the wish for another protocol."""
        lines = [b"%s %s HTTP/%s\r\n" % (self._method, self.url, self._version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(
                    token for token in value.split(b",") if token.strip().lower() != b"upgrade"
                )
            if name != b"upgrade":
                lines.append(b"%s: %s\r\n" % (name, value))
        return b"".join((*lines, b"\r\n"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)  # tells the request that came last
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
        self.pipeline.clear()
        # They know each other: the garbage collector is not to be needed for each connection.
        self._answered = None
        self.cycle = None  # type: ignore[assignment]

    # What the parser calls.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:
            self._expect(self._limits.header_seconds)
        self._in_head = True
        self._head_bytes = self._headers_seen = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._give_up(
                TargetTooLong(f"The request's target is longer than {MAX_TARGET_BYTES} bytes.")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)
        else:
            self._head_bytes += len(name) + len(value) + 4  # a trailer, which nobody reads
        self._headers_seen += 1
        if self._headers_seen > MAX_HEADERS:
            self._give_up(HeadTooLarge(f"The request has more than {MAX_HEADERS} headers."))
        if not self._in_head and self._head_bytes > self._limits.header_bytes:
            self._give_up(self._head_too_large())

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if sum(len(name) + len(value) + 4 for name, value in self.headers) > (
            self._limits.header_bytes
        ):
            self._give_up(self._head_too_large())
        fault = ambiguity(self.parser.get_http_version(), self.headers)
        if self.parser.get_method() == b"CONNECT":
            fault = "this server is no proxy"
        if len(self.pipeline) >= _MAX_PIPELINED:
            fault = f"more than {_MAX_PIPELINED} requests came before their answers could be given"
        if fault is not None:
            self._give_up(MalformedRequest(f"The request is refused: {fault}."))
        if self.parser.should_upgrade():
            self._method = self.parser.get_method()
            self._version = self.parser.get_http_version().encode()
            return
        super().on_headers_complete()
        if 0 < len(self.pipeline) < _MAX_PIPELINED:
            self.flow.resume_reading()  # who is not read is not heard leaving
        speak(self.cycle, close=self.linger, chunks=self.parser.get_http_version() != "1.0")
        self._in_body = True
        self._expect(self._limits.body_seconds)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # it is only now parsed as what it is
            return
        self._in_body = False
        self._expect(None)
        super().on_message_complete()

    # What is done about it.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _idle(self) -> bool:
        """No request is being answered or read."""
        return not self._in_body and self.cycle is not None and self.cycle.response_complete

    def _expect(self, seconds: float | None) -> None:
        """What is coming in has so much time from now on; None: nothing is."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        self._deadline = None
        if self.flow.read_paused:  # by us, until answers have been given
            self._expect(self._limits.header_seconds)
        elif self._in_head:
            seconds = self._limits.header_seconds
            self._refuse(
                HeadTimeout(f"The request's headers did not arrive within {seconds:g} seconds.")
            )
        else:
            self._leave()

    def _give_up(self, fault: OctavoError) -> None:
        self._fault = fault
        raise fault

    def _head_too_large(self) -> HeadTooLarge:
        return HeadTooLarge(
            f"The request's headers are longer than {self._limits.header_bytes} bytes."
        )

    def _refuse(self, error: OctavoError) -> None:
        """Say why, where that is possible, and be done with this client."""
        log.info("a connection was refused: %s", error)
        at_fault = self.cycle if self._in_body else None  # else no request has been made of it
        if at_fault is None:
            self._on_refused(row_of(error).status)
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.pipeline or (answering and (at_fault is None or at_fault.response_started)):
            self._leave()
            return
        if at_fault is not None and not at_fault.response_complete:
            at_fault.disconnected = True
            at_fault.waiting_for_100_continue = False  # no more is asked of the client
            at_fault.message_event.set()
        elif at_fault is not None:  # its answer has been given before its body broke
            self._leave()
            return
        self.transport.write(answer_of(error))
        self.linger()

    def linger(self) -> None:
        """Close after the last answer, when the client has had a chance to read it.

        Were it done at once, with bytes of the client unread in the socket, TCP would reset the
        connection, and the answer might be lost.
        """
        self._deaf = True
        self._expect(None)
        self.pipeline.clear()
        self.flow.resume_reading()
        if self.transport.is_closing():
            return
        self.transport.write_eof()
        # Not longer than the client stays: those of a flood, held until then, were seen to cost the
        # garbage collector two fifths of the event loop's time.
        self._deadline = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _leave(self) -> None:
        """Read no more; what is being answered is answered to its end."""
        self._deaf = True
        self._expect(None)
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False
