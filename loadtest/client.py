"""One HTTP/1.1 exchange at a time on a kept connection, measured token by token.

Written on asyncio streams rather than a general client: a load test must cost less than the
server it measures, and needs the arrival time of every event.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(slots=True, kw_only=True)
class Exchange:
    """What happened to one request. Times in seconds of time.perf_counter()."""

    sent: float
    status: int = 0
    arrivals: list[float] = field(default_factory=list)  # one per event that carried text
    ended: float = 0.0
    output_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


class Client:
    """One connection to one server. Reconnects after an error."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"base URL must be http://host:port[/path], not {base_url!r}")
        self._host, self._port = parts.hostname, parts.port or 80
        self._path = parts.path.rstrip("/")
        self._key = api_key
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, object]) -> Exchange:
        """Send one request and read its answer to the end; failures are told in `error`."""
        payload = json.dumps(body).encode()
        exchange = Exchange(sent=time.perf_counter())
        try:
            reader, writer = await self._connection()
            exchange.sent = time.perf_counter()
            writer.write(self._head("POST", path, len(payload)) + payload)
            await self._read_answer(reader, exchange)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            exchange.error = f"{type(error).__name__}: {error}"
            await self.close()
        exchange.ended = time.perf_counter()
        return exchange

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        reader, writer = await self._connection()
        writer.write(self._head("GET", path, 0))
        status, headers = await _read_head(reader)
        if headers.get("transfer-encoding") == "chunked":
            return status, b"".join([chunk async for chunk in _chunks(reader)])
        return status, await reader.readexactly(int(headers.get("content-length", "0")))

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 22)
        return self._streams

    def _head(self, verb: str, path: str, length: int) -> bytes:
        key = f"Authorization: Bearer {self._key}\r\n" if self._key else ""
        return (
            f"{verb} {self._path}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    async def _read_answer(self, reader: asyncio.StreamReader, exchange: Exchange) -> None:
        exchange.status, headers = await _read_head(reader)
        if headers.get("transfer-encoding") == "chunked":
            await _read_events(reader, exchange)
        else:
            content = await reader.readexactly(int(headers["content-length"]))
            exchange.arrivals.append(time.perf_counter())
            _read_usage(json.loads(content), exchange)
        if headers.get("connection") == "close":
            await self.close()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = raw.split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")


async def _read_events(reader: asyncio.StreamReader, exchange: Exchange) -> None:
    rest = b""
    finished = False
    async for chunk in _chunks(reader):
        now = time.perf_counter()
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            if not event.startswith(b"data: "):
                continue
            data = event[6:]
            if data == b"[DONE]":
                finished = True
            else:
                _read_event(json.loads(data), now, exchange)
    if not finished and exchange.error is None:
        exchange.error = "the stream ended without [DONE]"


def _read_event(event: dict[str, object], now: float, exchange: Exchange) -> None:
    choices = event.get("choices")
    if isinstance(choices, list) and choices:
        delta = choices[0].get("delta") or {}
        if choices[0].get("text") or delta.get("content"):
            exchange.arrivals.append(now)
    _read_usage(event, exchange)


def _read_usage(answer: dict[str, object], exchange: Exchange) -> None:
    if "error" in answer:
        exchange.error = json.dumps(answer["error"])
    usage = answer.get("usage")
    if isinstance(usage, dict):
        exchange.output_tokens = usage["completion_tokens"]
        exchange.prompt_tokens = usage["prompt_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        exchange.cached_tokens = details.get("cached_tokens") or 0
