"""A client of one server: builds requests, keeps a connection, reconnects after an error."""

from __future__ import annotations

import asyncio
import json
import time
from urllib.parse import urlsplit

from .events import Exchange, read
from .wire import Transcript, Wire

__all__ = ["Client", "Exchange"]


class Client:
    """One connection to one server. Reconnects when it was closed."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"base URL must be http://host:port[/path], not {base_url!r}")
        self._tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._key = api_key
        self._wire: Wire | None = None

    async def post(self, path: str, body: dict[str, object]) -> Exchange:
        """Send one request and read its answer to the end; failures are told in `error`."""
        return read(await self.send(path, body))

    async def send(self, path: str, body: dict[str, object]) -> Transcript:
        """Send one request and keep its answer as it came; failures are told in `error`."""
        transcript = Transcript(sent=time.perf_counter())
        await self.send_bytes(self.request(path, body), transcript)
        return transcript

    async def send_bytes(self, request: bytes, transcript: Transcript) -> None:
        """Send what `request` made; its answer grows in `transcript` as it arrives.

        A kept connection that the server has closed meanwhile, without a byte of an answer, is no
        failure: the request is sent once more over a new one, and the time it took counts.
        """
        began, kept = time.perf_counter(), self._wire is not None and self._wire.usable
        try:
            try:
                await (await self._connection()).exchange(request, transcript)
            except OSError:
                if not kept or transcript.begun:
                    raise
                self.close()
                await (await self._connection()).exchange(request, transcript)
                transcript.sent = began
        except OSError as error:
            transcript.error = f"{type(error).__name__}: {error}"
            transcript.ended = time.perf_counter()
            self.close()

    def request(self, path: str, body: dict[str, object]) -> bytes:
        """The bytes of a POST, to be made before the clock runs."""
        payload = json.dumps(body, separators=(",", ":")).encode()
        return self._head("POST", path, len(payload)) + payload

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET. Raises OSError."""
        transcript = Transcript(sent=time.perf_counter())
        await self.send_bytes(self._head("GET", path, 0), transcript)
        if transcript.error is not None:
            raise ConnectionError(transcript.error)
        return transcript.status, transcript.body

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _connection(self) -> Wire:
        if self._wire is None or not self._wire.usable:
            _, self._wire = await asyncio.get_running_loop().create_connection(
                Wire, self._host, self._port, ssl=self._tls or None
            )
        return self._wire

    def _head(self, verb: str, path: str, length: int) -> bytes:
        key = f"Authorization: Bearer {self._key}\r\n" if self._key else ""
        return (
            f"{verb} {self._path}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ).encode()
