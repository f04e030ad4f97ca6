"""Clients that ask for something on a connection of their own, and do not stay for the answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx


@contextlib.asynccontextmanager
async def asking(
    url: str, body: dict[str, Any], path: str = "/v1/completions", *, times: int = 1
) -> AsyncIterator[Client]:
    """A client on a connection of its own, which asks so many times and waits for no answer."""
    reader, writer = await asyncio.open_connection(*httpx.URL(url).netloc.decode().split(":"))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    asked = head.encode() + content
    writer.write(asked * times)
    try:
        yield Client(reader, writer, asked)
    finally:
        writer.close()


class Client:
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bytes
    ) -> None:
        self.reader, self._writer, self._asked = reader, writer, asked

    def ask_again(self) -> None:
        """The same once more, behind what has not been answered."""
        self._writer.write(self._asked)

    def leave(self) -> None:
        self._writer.close()

    def crash(self) -> None:
        """Gone without a word: the connection is reset."""
        self._writer.transport.abort()

    def say_no_more(self) -> None:
        """A FIN after the request; the answer could still be read."""
        self._writer.write_eof()


WAYS_TO_LEAVE = (Client.leave, Client.crash, Client.say_no_more)
