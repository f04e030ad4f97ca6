"""`Channel`: plain values between the front end and the engine process.

One frame is an 8-byte head (payload length, kind, epoch) and a msgpack payload that is checked
against the message's schema when it is read: never pickle. Each incarnation of the engine process
has an epoch; what an older one still had in the pipe is dropped.

    front end -> engine: Start, Submit, Abort, RollCall, Shutdown
    engine -> front end: Progress, Notice, Ready, StepReport, Missing, Fatal
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from dataclasses import dataclass

import msgspec

from .config import EngineConfig
from .errors import EngineDead
from .executor.base import Capacity
from .params import Request
from .step import Delta, StepStats


@dataclass(frozen=True, slots=True)
class Start:
    """The first message: what to be."""

    config: EngineConfig


@dataclass(frozen=True, slots=True)
class Submit:
    """Run these requests."""

    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """Nobody listens any more: to the whole request, or to one choice of it."""

    request_id: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class RollCall:
    """All that somebody listens to, and that was submitted before this. What else the engine has
    is to be freed; what it has not got is told with `Missing`."""

    number: int
    request_ids: tuple[str, ...]
    ended_choices: tuple[tuple[str, int], ...] = ()  # of these requests


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Finish the step in hand and leave."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far starting has come; `total` 0 means unknown."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Notice:
    """A line for the front end's log, which knows the format; `level` is logging's."""

    level: int
    logger: str  # its name
    text: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine takes requests now."""

    capacity: Capacity


@dataclass(frozen=True, slots=True)
class StepReport:
    """Everything one step brought, in one message."""

    deltas: tuple[Delta, ...]
    stats: StepStats
    number: int = 0  # 0, 1, 2 ... for each incarnation: a gap means that tokens were lost


@dataclass(frozen=True, slots=True)
class Missing:
    """What the engine has not got of the requests of a roll call."""

    number: int  # of the roll call
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fatal:
    """The engine cannot go on. `error` names a class of `engine.errors` where it was one."""

    error: str
    text: str


Message = (
    Start
    | Submit
    | Abort
    | RollCall
    | Shutdown
    | Progress
    | Notice
    | Ready
    | StepReport
    | Missing
    | Fatal
)

_KINDS: tuple[type[Message], ...] = (
    Start,
    Submit,
    Abort,
    RollCall,
    Shutdown,
    Progress,
    Notice,
    Ready,
    StepReport,
    Missing,
    Fatal,
)
_KIND_OF = {kind: number for number, kind in enumerate(_KINDS)}
_HEAD = struct.Struct("<IHH")  # payload bytes, kind, epoch
_MAX_PAYLOAD = 1 << 30
_READ_BYTES = 1 << 18


class _Codec:
    """Frames of one epoch, both ways."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch & 0xFFFF
        self._encoder = msgspec.msgpack.Encoder()
        self._decoders = [msgspec.msgpack.Decoder(kind) for kind in _KINDS]

    def encode(self, message: Message) -> bytes:
        payload = self._encoder.encode(message)
        return _HEAD.pack(len(payload), _KIND_OF[type(message)], self._epoch) + payload

    def decode(self, kind: int, payload: bytes | bytearray) -> Message:
        return self._decoders[kind].decode(payload)

    def head(self, head: bytes | bytearray) -> tuple[int, int, bool]:
        """Payload bytes, kind, and whether the frame is of this epoch.

        Raises:
            EngineDead: the bytes are no frame; the other side cannot be understood.
        """
        size, kind, epoch = _HEAD.unpack_from(head)
        if size > _MAX_PAYLOAD or kind >= len(_KINDS):
            raise EngineDead(f"The channel carried a broken frame (kind {kind}, {size} bytes).")
        return size, kind, epoch == self._epoch


class Channel:
    """The engine's end: blocking sends, and receives that wait only when told to."""

    def __init__(self, sock: socket.socket, *, epoch: int) -> None:
        self.epoch = epoch
        self._sock = sock
        self._codec = _Codec(epoch)
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(self, message: Message) -> None:
        """Raises OSError when the front end is gone."""
        self._sock.sendall(self._codec.encode(message))

    def receive(self, *, wait: bool) -> list[Message]:
        """All messages that have arrived; with `wait`, at least one.

        Raises:
            EOFError: the front end is gone.
        """
        messages = self._take()
        while True:
            blocking = wait and not messages
            if not self._poll.poll(None if blocking else 0):
                return messages
            chunk = self._sock.recv(_READ_BYTES)
            if not chunk:
                raise EOFError
            self._buffer += chunk
            messages += self._take()

    def _take(self) -> list[Message]:
        messages: list[Message] = []
        while len(self._buffer) >= _HEAD.size:
            size, kind, current = self._codec.head(self._buffer)
            end = _HEAD.size + size
            if len(self._buffer) < end:
                break
            if current:
                messages.append(self._codec.decode(kind, self._buffer[_HEAD.size : end]))
            del self._buffer[:end]
        return messages

    def close(self) -> None:
        self._sock.close()


class AsyncChannel:
    """The front end's end, on an asyncio loop."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, epoch: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._codec = _Codec(epoch)

    @classmethod
    async def open(cls, sock: socket.socket, *, epoch: int) -> AsyncChannel:
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, epoch=epoch)

    def send(self, message: Message) -> None:
        """Never waits; a message to an engine that is gone vanishes (its end is seen by reads)."""
        if not self._writer.is_closing():
            self._writer.write(self._codec.encode(message))

    async def receive(self) -> Message:
        """The next message of this epoch.

        Raises:
            EOFError: the engine process is gone.
        """
        while True:
            try:
                size, kind, current = self._codec.head(await self._reader.readexactly(_HEAD.size))
                payload = await self._reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError) as end:
                raise EOFError from end
            if current:
                return self._codec.decode(kind, payload)

    def abandon(self) -> None:
        """Close it at once, without waiting for an engine that may not read any more."""
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return  # the other side was first
