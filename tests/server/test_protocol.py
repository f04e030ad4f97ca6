"""HTTP from strangers, over real sockets: what is slow, too large or ambiguous is refused."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from octavo.engine.errors import ConfigError
from octavo.server import listener
from octavo.server.cycle import speak
from octavo.server.protocol import MAX_HEADERS, MAX_TARGET_BYTES

from ..fakes.engine import ScriptedEngine
from .serving import chunks, listening, saying, serve

POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
GOOD = POST + b'Content-Length: 14\r\n\r\n{"prompt":"a"}'
PATIENCE_SECONDS = 30.0  # for what must happen by itself; nothing is measured with it


@dataclass(slots=True)
class Connection:
    """A client that writes bytes as it likes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer that has a Content-Length."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, headers = head_of(head)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return status, headers, body


def head_of(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    return int(first.split(" ")[1]), dict(line.lower().split(": ", 1) for line in lines)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


def refused(received: bytes, status: int, code: str) -> dict[str, Any]:
    """`received` is one whole answer in the form of all errors, and the last of its connection."""
    head, _, body = received.partition(b"\r\n\r\n")
    found, headers = head_of(head)
    assert found == status, received
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert int(headers["content-length"]) == len(body)
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


async def exchange(data: bytes, **settings: Any) -> bytes:
    """All that a server says to a client that sends `data` and waits."""
    async with listening(serve(**settings)) as url, connected(url) as client:
        client.send(data)
        return await client.rest()


# --- time ----------------------------------------------------------------------------------------


async def test_a_head_that_never_ends_is_408_though_bytes_keep_coming() -> None:
    server = serve(header_timeout=0.2)
    async with listening(server) as url, connected(url) as client:
        client.send(POST)
        dripping = asyncio.create_task(drip(client, b"X-A: b\r\n"))
        error = refused(await client.rest(), 408, "request_timeout")
        dripping.cancel()
    assert "0.2 seconds" in error["message"]


async def drip(client: Connection, data: bytes) -> None:
    while True:
        client.send(data)
        await asyncio.sleep(0.02)


async def test_a_connection_that_says_nothing_is_closed() -> None:
    assert await exchange(b"", header_timeout=0.1) == b""


async def test_line_breaks_before_a_request_do_not_hold_a_connection() -> None:
    async with listening(serve(header_timeout=0.2)) as url, connected(url) as client:
        dripping = asyncio.create_task(drip(client, b"\r\n"))
        assert await client.rest() == b""
        dripping.cancel()


@pytest.mark.parametrize("after", [b"", b"\r\n", b"POST /v1/comp"])
async def test_after_an_answer_silence_ends_the_connection(after: bytes) -> None:
    async with listening(serve(keep_alive_timeout=0.1, header_timeout=0.2)) as url:
        async with connected(url) as client:
            client.send(GOOD)
            assert (await client.answer())[0] == 200
            client.send(after)
            rest = await client.rest()
            assert rest == b"" or refused(rest, 408, "request_timeout")


async def test_a_connection_that_is_used_is_kept_beyond_every_limit_of_silence() -> None:
    began = time.monotonic()
    async with listening(serve(keep_alive_timeout=1.0, header_timeout=1.0)) as url:
        async with connected(url) as client:
            while time.monotonic() - began < 1.5:
                client.send(GOOD)
                assert (await client.answer())[0] == 200


async def test_a_long_answer_is_not_cut_by_the_limits_of_requests() -> None:
    engine = ScriptedEngine(saying("abc"))
    engine.hold = asyncio.Event()
    server = serve(engine=engine, header_timeout=0.1, keep_alive_timeout=0.1, body_timeout=0.1)
    async with listening(server) as url, connected(url) as client:
        client.send(GOOD)
        await asyncio.sleep(0.5)  # longer than each of them
        engine.hold.set()
        assert (await client.answer())[0] == 200


async def test_a_body_that_drips_behind_an_early_answer_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("octavo.server.protocol._BODY_GRACE_SECONDS", 0.1)
    server = serve(api_key=("secret",), body_timeout=0.1)
    async with listening(server) as url, connected(url) as client:
        client.send(POST + b"Content-Length: 1000000\r\n\r\n")
        assert (await client.answer())[0] == 401  # without waiting for the body
        dripping = asyncio.create_task(drip(client, b"x"))
        assert await client.rest() == b""
        dripping.cancel()


async def test_a_connection_whose_body_came_late_still_ends_by_silence() -> None:
    server = serve(api_key=("secret",), keep_alive_timeout=0.2)
    async with listening(server) as url, connected(url) as client:
        client.send(POST + b"Content-Length: 5\r\n\r\n")
        assert (await client.answer())[0] == 401
        client.send(b"hello")
        assert await client.rest() == b""


async def test_a_half_sent_second_request_does_not_hurt_the_answer_to_the_first() -> None:
    engine = ScriptedEngine(saying("abc"))
    engine.hold = asyncio.Event()
    async with listening(serve(engine=engine, header_timeout=0.1)) as url:
        async with connected(url) as client:
            client.send(GOOD + b"GET /v1/mod")
            await asyncio.sleep(0.3)  # the second head is late by now
            engine.hold.set()
            assert (await client.answer())[0] == 200
            assert await client.rest() == b""


# --- size ----------------------------------------------------------------------------------------


async def test_headers_up_to_the_limit_are_taken_and_beyond_it_are_431() -> None:
    ok = POST + b"X-A: " + b"a" * 900 + b'\r\nContent-Length: 14\r\n\r\n{"prompt":"a"}'
    async with listening(serve(max_header_size=1024)) as url:
        async with connected(url) as client:
            client.send(ok)
            assert (await client.answer())[0] == 200
        async with connected(url) as client:
            client.send(POST + b"X-A: " + b"a" * 1100 + b"\r\n\r\n")
            error = refused(await client.rest(), 431, "headers_too_large")
    assert "1024 bytes" in error["message"]


async def test_one_header_that_never_ends_is_cut_at_the_limit() -> None:
    async with listening(serve(max_header_size=1024)) as url, connected(url) as client:
        client.send(POST + b"X-A: ")
        await client.writer.drain()
        dripping = asyncio.create_task(drip(client, b"a" * 500))
        refused(await client.rest(), 431, "headers_too_large")
        dripping.cancel()


async def test_too_many_headers_are_431() -> None:
    few = b"".join(b"X-%d: 1\r\n" % i for i in range(MAX_HEADERS - 1))
    many = few + b"X-A: 1\r\n"
    answer = await exchange(POST + few + b"Connection: close\r\n\r\n")
    refused(answer, 431, "headers_too_large")
    refused(await exchange(POST + many + b"\r\n"), 431, "headers_too_large")


async def test_a_target_too_long_is_414() -> None:
    target = b"/v1/models/" + b"a" * MAX_TARGET_BYTES
    for piece in (target, b"/?" + target):
        answer = await exchange(b"GET " + piece + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        refused(answer, 414, "target_too_long")


async def test_trailers_are_limited_and_never_become_headers() -> None:
    chunked = b'Transfer-Encoding: chunked\r\n\r\ne\r\n{"prompt":"a"}\r\n0\r\n'
    async with listening(serve(api_key=("secret",))) as url, connected(url) as client:
        client.send(POST + chunked + b"Authorization: Bearer secret\r\n\r\n")
        assert (await client.answer())[0] == 401
    long = b"X-A: " + b"a" * 2000 + b"\r\n\r\n"
    answer = await exchange(POST + chunked + long, max_header_size=1024)
    refused(answer, 431, "headers_too_large")


# --- ambiguity -----------------------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n"
HEAD = b"POST /v1/completions HTTP/1.1\r\n"
SMUGGLED = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
AMBIGUOUS = {
    "Content-Length and Transfer-Encoding": POST + b"Content-Length: 5\r\n" + CHUNKED,
    "Transfer-Encoding and Content-Length": POST + CHUNKED + b"Content-Length: 5\r\n",
    "Content-Length twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "two Content-Lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n",
    "a signed length": POST + b"Content-Length: +5\r\n",
    "a negative length": POST + b"Content-Length: -5\r\n",
    "a hexadecimal length": POST + b"Content-Length: 0x5\r\n",
    "an empty length": POST + b"Content-Length: \r\n",
    "a length with a space": POST + b"Content-Length: 5 5\r\n",
    "a huge length": POST + b"Content-Length: 99999999999999999999999\r\n",
    "space before the colon": POST + b"Content-Length : 5\r\n",
    "a folded line": POST + b"X-A: b\r\n c\r\n",
    "a folded Transfer-Encoding": POST + b"Transfer-Encoding:\r\n chunked\r\n",
    "a bare LF": POST + b"X-A: b\nX-B: c\r\n",
    "only bare LFs": b"POST /v1/completions HTTP/1.1\nHost: x\n",
    "a bare CR": POST + b"X-A: b\rX-B: c\r\n",
    "NUL in a value": POST + b"X-A: b\x00c\r\n",
    "NUL in a name": POST + b"X\x00A: b\r\n",
    "a line without a colon": POST + b"abc\r\n",
    "an empty name": POST + b": x\r\n",
    "a space before the first header": HEAD + b" Host: x\r\n",
    "Transfer-Encoding identity": POST + b"Transfer-Encoding: identity\r\n",
    "identity, chunked": POST + b"Transfer-Encoding: identity, chunked\r\n",
    "chunked, identity": POST + b"Transfer-Encoding: chunked, identity\r\n",
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n",
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n",
    "quoted chunked": POST + b'Transfer-Encoding: "chunked"\r\n',
    "chunked twice": POST + CHUNKED + CHUNKED,
    "vertical tab chunked": POST + b"Transfer-Encoding: \x0bchunked\r\n",
    "chunked in HTTP/1.0": b"POST /v1/completions HTTP/1.0\r\nHost: x\r\n" + CHUNKED,
    "no Host": HEAD + b"Content-Length: 5\r\n",
    "two Hosts": POST + b"Host: y\r\nContent-Length: 5\r\n",
    "HTTP/0.9": b"GET /version HTTP/0.9\r\nHost: x\r\n",
    "HTTP/2.0": b"GET /version HTTP/2.0\r\nHost: x\r\n",
    "no version": b"GET /version\r\nHost: x\r\n",
    "HTTP/1.2": b"GET /version HTTP/1.2\r\nHost: x\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n",
    "a method of nobody": b"FROB /version HTTP/1.1\r\nHost: x\r\n",
    "a method in small letters": b"get /version HTTP/1.1\r\nHost: x\r\n",
    "raw UTF-8 in the target": "GET /vérsion HTTP/1.1\r\nHost: x\r\n".encode(),
    "NUL in the target": b"GET /version\x00 HTTP/1.1\r\nHost: x\r\n",
    "a target without a path": b"GET http://x HTTP/1.1\r\nHost: x\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "noise": bytes(range(256)),
}


async def test_what_two_programs_may_read_differently_is_refused_and_the_connection_closed() -> (
    None
):
    server = serve()
    async with listening(server) as url:
        for name, head in AMBIGUOUS.items():
            async with connected(url) as client:
                # Whatever follows is read by nobody as a second request.
                client.send(head + b"\r\n0\r\n\r\n" + SMUGGLED)
                received = await client.rest()
            refused(received, 400, "malformed_request")
            assert received.count(b"HTTP/1.1 ") == 1, name
    assert server.engine.requests == []


BAD_CHUNKS = {
    "a negative size": b"-1\r\n",
    "0x": b"0x5\r\nhello\r\n",
    "a huge size": b"fffffffffffffffff\r\n",
    "no size": b"\r\n",
    "a size that is none": b"xyz\r\nhello\r\n",
    "a bare LF after the size": b"5\nhello\r\n",
    "a bare LF after the data": b"5\r\nhello\n",
    "more data than its size": b"5\r\nhello!\r\n",
    "a space after the size": b"5 \r\nhello\r\n",
    "a bare LF in an extension": b"5;a\nb\r\nhello\r\n",
    "a folded trailer": b"0\r\nX-A: b\r\n c\r\n\r\n",
}


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_chunked_body_that_is_malformed_is_refused_and_the_connection_closed(
    at_once: bool,
) -> None:
    server = serve()
    async with listening(server) as url:
        for name, chunks in BAD_CHUNKS.items():
            async with connected(url) as client:
                client.send(POST + CHUNKED + b"\r\n")
                if not at_once:  # the application has begun to read the body
                    await client.writer.drain()
                    await asyncio.sleep(0.02)
                client.send(chunks + b"0\r\n\r\n" + SMUGGLED)
                received = await client.rest()
            refused(received, 400, "malformed_request")
            assert received.count(b"HTTP/1.1 ") == 1, name
    assert server.engine.requests == []


async def test_who_was_refused_is_not_asked_for_a_body(caplog: pytest.LogCaptureFixture) -> None:
    """A bug of the server, says the log otherwise: nothing can be written behind a last word."""
    head = POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    refused(await exchange(head + b"zzz\r\n"), 400, "malformed_request")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_garbage_behind_a_request_does_not_write_into_its_answer() -> None:
    engine = ScriptedEngine(saying("abc"))
    engine.hold = asyncio.Event()
    async with listening(serve(engine=engine)) as url, connected(url) as client:
        client.send(GOOD + b"\x00garbage\r\n\r\n" + SMUGGLED)
        while not engine.requests:
            await asyncio.sleep(0.01)
        engine.hold.set()
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async with listening(serve()) as url, connected(url) as client:
        client.send(GOOD + SMUGGLED + GOOD.replace(b"/v1/completions", b"/v1/nothing"))
        assert [(await client.answer())[0] for _ in range(3)] == [200, 200, 404]


class Paper(asyncio.Transport):
    """Keeps what is written, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return False


def answering(
    paper: Paper, *, method: str = "GET", waits: bool = False, on_end: Callable[[], None]
) -> RequestResponseCycle:
    """`waits`: the client sends its body when it is asked to."""
    event = asyncio.Event()
    event.set()
    cycle = RequestResponseCycle(
        scope={"type": "http", "method": method},  # type: ignore[typeddict-item]
        transport=paper,
        flow=FlowControl(paper),
        logger=logging.getLogger(),
        access_logger=logging.getLogger(),
        access_log=False,
        default_headers=[],
        message_event=event,
        expect_100_continue=waits,
        keep_alive=True,
        on_response=on_end,
    )
    speak(cycle, close=paper.close, chunks=True)
    return cycle


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


async def answer_ab(cycle: RequestResponseCycle) -> None:
    headers = [(b"content-length", b"2")]
    await cycle.send({"type": "http.response.start", "status": 200, "headers": headers})
    await cycle.send({"type": "http.response.body", "body": b"ab", "more_body": False})


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_answer_is_written_when_it_has_ended(method: str) -> None:
    """A connection that is closed, or refused what it says next, in the same turn of the loop had
    the head of an answer without a body behind that."""
    paper = Paper()
    when_it_ended: list[list[bytes]] = []
    cycle = answering(paper, method=method, on_end=lambda: when_it_ended.append([*paper.written]))
    await answer_ab(cycle)
    assert when_it_ended == [[HEAD + b"ab" if method == "GET" else HEAD]]
    await asyncio.sleep(0)
    assert [paper.written] == when_it_ended


async def test_who_is_to_send_a_body_is_told_at_once() -> None:
    """Told later, it was told behind a refusal of what it sent without waiting."""
    paper = Paper()
    cycle = answering(paper, waits=True, on_end=lambda: None)
    await cycle.receive()
    assert paper.written == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    await answer_ab(cycle)
    assert paper.written[1:] == [HEAD + b"ab"], "in one piece"


async def test_a_flood_of_pipelined_requests_is_ended() -> None:
    engine = ScriptedEngine(saying("abc"))
    engine.hold = asyncio.Event()
    async with listening(serve(engine=engine)) as url, connected(url) as client:
        client.send(GOOD + SMUGGLED * 1000)
        while not engine.requests:
            await asyncio.sleep(0.01)
        engine.hold.set()
        received = await client.rest()
    assert 0 < received.count(b"HTTP/1.1 200") < 1000


async def test_an_upgrade_that_is_not_offered_is_answered_in_http_1_1() -> None:
    """As Java's client asks for HTTP/2 with each request."""
    upgrade = b"Upgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    wish = GOOD.replace(b"Content-Length", upgrade + b"Content-Length")
    wish = wish.replace(b"Upgrade:", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade:")
    websocket = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    async with listening(serve()) as url, connected(url) as client:
        client.send(wish + wish + SMUGGLED)
        assert [(await client.answer())[0] for _ in range(3)] == [200, 200, 200]
        client.send(wish[:-3])
        await client.writer.drain()
        await asyncio.sleep(0.05)
        client.send(wish[-3:])
        assert (await client.answer())[0] == 200
        client.send(websocket + b"\r\n")
        assert (await client.answer())[0] == 200
        client.send(b"\x81\x05hello")
        refused(await client.rest(), 400, "malformed_request")


async def test_an_upgrade_hides_nothing_from_the_rules() -> None:
    wish = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
    for head in (POST + wish + CHUNKED + b"Content-Length: 3\r\n", HEAD + wish):
        refused(await exchange(head + b"\r\n" + SMUGGLED), 400, "malformed_request")


async def test_refusals_are_one_line_each_that_clients_cannot_write_into(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "octavo.server.protocol"):
        await exchange(b"GET /\r\n2026-01-01 ERROR forged\r\n\r\n")
    (record,) = [r for r in caplog.records if r.name == "octavo.server.protocol"]
    assert "forged" not in record.getMessage()


async def test_a_refusal_arrives_though_the_client_is_still_sending() -> None:
    """Closed with unread bytes in the socket, the connection would be reset and the answer lost."""
    async with listening(serve(api_key=("secret",))) as url, connected(url) as client:
        head = POST + b"Connection: close\r\nContent-Length: 8000000\r\n\r\n"
        client.send(head + b"x" * 8_000_000)
        refused(await client.rest(), 401, "invalid_api_key")


# --- connections ---------------------------------------------------------------------------------


async def test_more_connections_than_the_limit_are_told_so_and_places_become_free() -> None:
    async with listening(serve(), connections=2) as url:
        async with connected(url) as one, connected(url) as two:
            for client in (one, two):
                client.send(GOOD)
                assert (await client.answer())[0] == 200
            async with connected(url) as third:
                error = refused(await third.rest(), 503, "too_many_connections")
                assert error["message"].startswith("2 connections")
            one.send(GOOD)
            assert (await one.answer())[0] == 200
        async with httpx.AsyncClient() as client:
            while (await client.get(f"{url}/health")).status_code == 503:
                await asyncio.sleep(0.01)


LIMITED = """
import resource, sys
from octavo.server.listener import connection_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (16, int(sys.argv[1])))
limit = connection_limit(int(sys.argv[2]) or None)
print(limit, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limited(*words: str) -> Sequence[int]:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, *words], check=True, capture_output=True, text=True
    )
    return [int(word) for word in run.stdout.split()]


def test_the_limit_of_connections_follows_from_open_files_whose_soft_limit_is_raised() -> None:
    connections, soft, hard = limited("200", "0")
    assert soft == hard == 200
    assert 100 < connections < 200 - 64
    assert limited("200", "7")[0] == 7


@pytest.mark.parametrize(("most", "wanted"), [(70, None), (200, 190)])
def test_too_few_open_files_are_said(
    monkeypatch: pytest.MonkeyPatch, most: int, wanted: int | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(ConfigError, match=f"{most} open files .*ulimit -n"):
        listener.connection_limit(wanted)


# --- HTTP/1.0 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
async def test_a_stream_in_http_1_0_has_no_chunks_and_ends_with_its_connection(
    connection: str,
) -> None:
    """RFC 9112, section 6.1: no Transfer-Encoding to whom does not say HTTP/1.1."""
    body = json.dumps({"prompt": "a", "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.0\r\n"
    head += f"Connection: {connection}\r\nContent-Length: {len(body)}\r\n\r\n"
    received = await exchange(head.encode() + body)
    begun, _, events = received.partition(b"\r\n\r\n")
    status, headers = head_of(begun)
    assert status == 200
    assert headers["connection"] == "close"
    assert "transfer-encoding" not in headers
    assert chunks(events.decode())


async def test_a_plain_answer_in_http_1_0_has_its_length() -> None:
    received = await exchange(b"GET /v1/models HTTP/1.0\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    status, headers = head_of(head)
    assert status == 200
    assert "transfer-encoding" not in headers
    assert int(headers["content-length"]) == len(body)
    assert json.loads(body)["object"] == "list"


# --- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"nonsense\r\n\r\n", "4xx", "invalid"),
        (POST + b"X: " + b"a" * 40_000, "4xx", "invalid"),
        (POST + b"Host: y\r\n\r\n", "4xx", "invalid"),
        (b"", "5xx", "unavailable"),
    ],
    ids=["no HTTP", "a long head", "two hosts", "one connection too many"],
)
async def test_what_is_refused_before_it_is_a_request_is_counted(
    sent: bytes, status: str, reason: str
) -> None:
    server = serve()
    async with (
        listening(server, connections=0 if not sent else 10) as url,
        connected(url) as client,
    ):
        client.send(sent)
        assert await client.rest()
    text = server.metrics.render().decode()
    assert f'http_requests_total{{handler="none",method="other",status="{status}"}} 1.0' in text
    rejected = f'requests_rejected_total{{engine="0",model_name="tiny",reason="{reason}"}} 1.0'
    assert rejected in text


async def test_a_request_whose_body_breaks_is_counted_once() -> None:
    server = serve()
    async with listening(server) as url, connected(url) as client:
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        refused(await client.rest(), 400, "malformed_request")
    text = server.metrics.render().decode()
    counted = [line for line in text.splitlines() if line.startswith("http_requests_total{")]
    assert [line.rpartition(" ")[2] for line in counted] == ["1.0"], counted
