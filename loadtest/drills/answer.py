"""One HTTP/1.1 request a connection, on asyncio streams; its answer is read to the end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Body = Mapping[str, object]


@dataclass(slots=True)
class Choice:
    """One choice of an answer, its deltas joined."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    finish_reason: str | None = None

    def take(self, entry: Mapping[str, Any]) -> None:
        """A choice of an answer or of a chunk, of either endpoint."""
        message = entry.get("delta") or entry.get("message") or {}
        self.text += entry.get("text") or message.get("content") or ""
        self.token_ids += entry.get("token_ids") or []
        scores = entry.get("logprobs") or {}
        self.logprobs += scores.get("token_logprobs") or ()
        self.logprobs += [token["logprob"] for token in scores.get("content") or ()]
        self.finish_reason = entry.get("finish_reason") or self.finish_reason


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came of one request. Times in seconds of time.perf_counter()."""

    sent: float
    status: int = 0  # 0: no answer came
    headers: dict[str, str] = field(default_factory=dict)
    choices: dict[int, Choice] = field(default_factory=dict)
    completion_tokens: int = 0
    content: bytes = b""  # of an answer that is no stream
    events: int = 0
    first: float = 0.0  # event, or the whole answer
    ended: float = 0.0
    streamed: bool = False
    done: bool = False  # a stream's [DONE] was seen, or the whole answer has come
    error: str | None = None

    @property
    def good(self) -> bool:
        return self.status == 200 and self.done and self.error is None

    @property
    def seconds(self) -> float:
        return self.ended - self.sent

    def why(self) -> str:
        """What is wrong with it, in a few words."""
        return self.error or f"status {self.status}, done: {self.done}, {self.content[:200]!r}"

    def take(self, part: Mapping[str, Any]) -> None:
        """A whole answer or a chunk."""
        if "error" in part:
            self.error = json.dumps(part["error"])
        for entry in part.get("choices") or ():
            self.choices.setdefault(entry["index"], Choice()).take(entry)
        usage = part.get("usage")
        if usage:
            self.completion_tokens = usage["completion_tokens"]


async def ask(
    url: str,
    path: str,
    body: Body,
    *,
    on_event: Callable[[], None] = lambda: None,
    limit_seconds: float = 600.0,
) -> Answer:
    """The answer to a POST. What goes wrong is told in its `error`; nothing is raised."""
    answer = Answer(sent=time.perf_counter())
    try:
        async with asyncio.timeout(limit_seconds):
            await _exchange(url, path, json.dumps(body).encode(), answer, on_event)
    except TimeoutError:
        answer.error = f"nothing more came in {limit_seconds:g} s"
    except (OSError, EOFError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.ended = time.perf_counter()
    return answer


async def get(url: str, path: str, *, limit_seconds: float = 10.0) -> tuple[int, bytes]:
    """Status and content. Raises OSError, EOFError or TimeoutError where none comes."""
    answer = Answer(sent=time.perf_counter())
    async with asyncio.timeout(limit_seconds):
        reader, writer = await connect(url)
        try:
            writer.write(head_of("GET", path, 0))
            await _read(reader, answer, lambda: None)
        finally:
            writer.close()
    return answer.status, answer.content


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=1 << 24)


def head_of(verb: str, path: str, length: int) -> bytes:
    return (
        f"{verb} {path} HTTP/1.1\r\nHost: drill\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def _exchange(
    url: str, path: str, payload: bytes, answer: Answer, on_event: Callable[[], None]
) -> None:
    reader, writer = await connect(url)
    try:
        writer.write(head_of("POST", path, len(payload)) + payload)
        await _read(reader, answer, on_event)
    finally:
        writer.close()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = raw.split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def _read(reader: asyncio.StreamReader, answer: Answer, on_event: Callable[[], None]) -> None:
    answer.status, answer.headers = await read_head(reader)
    chunked = answer.headers.get("transfer-encoding") == "chunked"
    answer.streamed = answer.headers.get("content-type", "").startswith("text/event-stream")
    if answer.streamed:
        async for data in _events(_chunks(reader)):
            answer.events += 1
            answer.first = answer.first or time.perf_counter()
            if data == b"[DONE]":
                answer.done = True
            else:
                answer.take(json.loads(data))
            on_event()
        return
    if chunked:
        answer.content = b"".join([chunk async for chunk in _chunks(reader)])
    else:
        answer.content = await reader.readexactly(int(answer.headers.get("content-length", "0")))
    answer.first = time.perf_counter()
    answer.done = True
    if answer.headers.get("content-type") == "application/json":
        answer.take(json.loads(answer.content))


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event; comments are left out."""
    rest = b""
    async for chunk in chunks:
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                yield event[6:]
