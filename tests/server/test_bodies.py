"""Bodies of requests, all together: how much of them is held, and who is sent away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from octavo.engine.errors import Overloaded
from octavo.server.bodies import UNCOUNTED_BYTES, Bodies

from ..fakes.engine import ScriptedEngine
from .paged import until
from .serving import Served, error_of, listening, saying, serve

COMPLETIONS = "/v1/completions"
JSON = {"content-type": "application/json"}


def test_no_more_is_held_than_may_be() -> None:
    bodies = Bodies(1000)
    first, second = bodies.share(), bodies.share()
    first.take(UNCOUNTED_BYTES + 600)
    second.take(UNCOUNTED_BYTES + 400)
    with pytest.raises(Overloaded, match=r"600 bytes .* 1000 .*--max-body-memory") as refused:
        second.take(1)
    assert refused.value.reason == "bodies"
    assert bodies.held == 1000
    first.release()
    first.release()
    second.take(600)
    second.release()
    assert bodies.held == 0


def test_a_small_body_always_finds_room_and_one_alone_too() -> None:
    bodies = Bodies(1000)
    large, small = bodies.share(), bodies.share()
    for _ in range(10):
        large.take(UNCOUNTED_BYTES)
    small.take(UNCOUNTED_BYTES)
    assert bodies.held == 9 * UNCOUNTED_BYTES
    with pytest.raises(Overloaded):
        small.take(1)


def padded(size: int) -> bytes:
    return json.dumps({"prompt": "a", "user": "x" * size}).encode()


def held(server: Served) -> int:
    size: int = server.app.state.bodies.held
    return size


@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize"])
async def test_who_brings_too_much_is_429_and_served_when_there_is_room_again(path: str) -> None:
    engine = ScriptedEngine(saying("a"))
    engine.hold = asyncio.Event()
    server = serve(engine=engine, max_body_memory=300_000)
    waiting = asyncio.create_task(
        server.http.post(COMPLETIONS, content=padded(300_000), headers=JSON)
    )
    await until(lambda: bool(engine.requests))
    refused = await server.http.post(path, content=padded(200_000), headers=JSON)
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "2"
    text = server.metrics.render().decode()
    assert 'requests_rejected_total{engine="0",model_name="tiny",reason="bodies"} 1.0' in text
    engine.hold.set()
    assert (await waiting).status_code == 200
    assert held(server) == 0
    again = await server.http.post(path, content=padded(200_000), headers=JSON)
    assert again.status_code == 200
    assert held(server) == 0


@pytest.mark.parametrize("end", ["it breaks off", "it is too long", "it is no JSON", "its time"])
async def test_a_body_that_comes_to_nothing_leaves_nothing(end: str) -> None:
    server = serve(max_body_memory=1 << 20, max_body_size=400_000, body_timeout=0.2)

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 200_000
        await until(lambda: held(server) > 0)
        if end == "it breaks off":
            raise ConnectionResetError
        if end == "it is too long":
            yield b"x" * 300_000
        if end == "its time":
            await asyncio.sleep(0.4)

    async with listening(server) as url, httpx.AsyncClient() as client:
        try:
            answer = await client.post(url + COMPLETIONS, content=body(), headers=JSON)
        except ConnectionResetError:
            assert end == "it breaks off"
        else:
            statuses = {"it is too long": 413, "it is no JSON": 400, "its time": 408}
            assert answer.status_code == statuses[end]
        await until(lambda: not held(server))


async def test_an_answer_that_nobody_reads_counts_until_it_has_been_taken() -> None:
    server = serve(max_body_size=32 << 20)
    body = json.dumps({"prompt": "a b " * 500_000}).encode()
    head = (
        f"POST /tokenize HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    async with listening(server) as url:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", httpx.URL(url).port, limit=1 << 16
        )
        writer.write(head.encode() + body)
        begun = await reader.readuntil(b"\r\n\r\n")
        assert begun.startswith(b"HTTP/1.1 200")
        for _ in range(100):  # whatever the server can do without its client, it has done
            await asyncio.sleep(0)
        assert held(server) == len(body) - UNCOUNTED_BYTES
        await reader.read()
        writer.close()
        await until(lambda: not held(server))
