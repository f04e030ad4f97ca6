"""Overload and deadlines on the wire: who is sent away, when, and what is left of a request."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import httpx
import pytest

from octavo.engine.params import Request
from octavo.engine.step import Delta
from octavo.server.protocol import Protocol
from octavo.server.text.tokenizer import Tokenizer

from ..fakes.engine import ScriptedEngine
from ..fakes.executor import FakeExecutor
from .paged import paged, until
from .serving import chunks, error_of, listening, saying, serve

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "a"},
    CHAT: {"messages": [{"role": "user", "content": "a"}]},
    RESPONSES: {"input": "a"},
    EMBEDDINGS: {"input": "a"},
}
EVERYWHERE = pytest.mark.parametrize("path", BODIES)
STREAMS = pytest.mark.parametrize("path", [COMPLETIONS, CHAT, RESPONSES])


def slow(seconds: float = 0.01) -> FakeExecutor:
    return FakeExecutor(seconds_per_step=seconds)


async def test_who_was_sent_away_leaves_nothing_to_the_garbage_collector() -> None:
    """A flood of them kept it busy for two fifths of the event loop's time."""

    def connections() -> int:
        return sum(type(thing) is Protocol for thing in gc.get_objects())

    engine = ScriptedEngine(saying("a"))
    engine.hold = asyncio.Event()
    server = serve(engine=engine, max_queue_requests=1)
    waiting = asyncio.create_task(server.post(COMPLETIONS, BODIES[COMPLETIONS]))
    while not engine.requests:
        await asyncio.sleep(0)
    gc.collect()
    gc.disable()
    try:
        async with listening(server) as url:
            for _ in range(10):
                async with httpx.AsyncClient(base_url=url) as client:
                    answer = await client.post(COMPLETIONS, json=BODIES[COMPLETIONS])
                    assert answer.status_code == 429
            async with asyncio.timeout(30):
                while connections():
                    await asyncio.sleep(0.01)  # between two looks at what is awaited
    finally:
        gc.enable()
    engine.hold.set()
    assert (await waiting).status_code == 200


@EVERYWHERE
async def test_a_full_queue_sends_away_before_the_body_is_read(path: str) -> None:
    engine = ScriptedEngine(saying("a"))
    engine.hold = asyncio.Event()
    server = serve(engine=engine, max_queue_requests=1)
    waiting = asyncio.create_task(server.post(path, BODIES[path]))
    while not engine.requests:
        await asyncio.sleep(0)
    read = 0

    async def body() -> Any:
        nonlocal read
        for _ in range(10):
            read += 1
            yield b"x" * 1000

    headers = {"content-type": "application/json", "content-length": "10000"}
    response = await server.http.post(path, content=body(), headers=headers)
    assert response.status_code == 429
    assert error_of(response)["code"] == "rate_limit_exceeded"
    assert int(response.headers["retry-after"]) >= 1
    exact = int(response.headers["retry-after-ms"]) / 1000
    assert exact <= int(response.headers["retry-after"]) < exact + 1
    assert read == 0
    line = f'http_requests_total{{handler="{path}",method="POST",status="4xx"}} 1.0'
    assert line in server.metrics.render().decode()
    engine.hold.set()
    await waiting


async def test_a_refusal_leaves_the_connection_of_use() -> None:
    engine = ScriptedEngine(saying("a"))
    engine.hold = asyncio.Event()
    server = serve(engine=engine, max_queue_requests=1)
    async with listening(server) as url, httpx.AsyncClient() as client:
        waiting = asyncio.create_task(client.post(url + COMPLETIONS, json={"prompt": "a"}))
        await until(lambda: bool(engine.requests))
        reader, writer = await asyncio.open_connection(*httpx.URL(url).netloc.decode().split(":"))
        for prompt in ("a", "b" * 100_000):
            body = json.dumps({"prompt": prompt}).encode()
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"}}")
            assert answer.startswith(b"HTTP/1.1 429")
        writer.close()
        engine.hold.set()
        await waiting


async def test_tokens_that_wait_are_limited_too() -> None:
    engine = ScriptedEngine(saying("a"))
    engine.hold = asyncio.Event()
    server = serve(engine=engine, max_queue_tokens=50)
    waiting = asyncio.create_task(server.post(COMPLETIONS, {"prompt": [5] * 40}))
    while not engine.requests:
        await asyncio.sleep(0)
    assert (await server.refusal(COMPLETIONS, {"prompt": [5] * 11}, 429))["type"] == (
        "rate_limit_error"
    )
    fits = asyncio.create_task(server.post(COMPLETIONS, {"prompt": [5] * 10}))
    while len(engine.requests) < 2:
        await asyncio.sleep(0)
    text = server.metrics.render().decode()
    labels = '{engine="0",model_name="tiny"}'
    assert f"octavo:queue_tokens{labels} 50.0" in text
    assert f"octavo:queue_requests{labels} 2.0" in text
    engine.hold.set()
    assert [(await task).status_code for task in (waiting, fits)] == [200, 200]
    assert f"octavo:queue_tokens{labels} 0.0" in server.metrics.render().decode()


@pytest.mark.parametrize("path", [COMPLETIONS, EMBEDDINGS])
async def test_one_request_of_many_prompts_is_served_by_an_idle_server_a_few_at_a_time(
    path: str,
) -> None:
    async with paged(max_num_seqs=8, max_queue_requests=1, max_queue_tokens=100) as server:
        most = 0

        def look(_: object) -> None:
            nonlocal most
            most = max(most, server.engine.live_requests)

        server.engine.on_step(look)
        prompts = [[7, 8, place % 200 + 9] for place in range(300)]
        async with listening(server) as url, httpx.AsyncClient(timeout=60) as client:
            field = "prompt" if path == COMPLETIONS else "input"
            response = await client.post(url + path, json={field: prompts})
            assert response.status_code == 200, response.text
            answers = response.json()["choices" if path == COMPLETIONS else "data"]
            assert [answer["index"] for answer in answers] == list(range(300))
        assert 1 < most <= 8


async def test_who_comes_during_a_large_job_does_not_wait_for_its_end() -> None:
    async with paged(slow(0.002), max_num_seqs=2) as server:
        async with listening(server) as url, httpx.AsyncClient(timeout=60) as client:
            job = {"prompt": [[7, 8, 9]] * 60, "max_tokens": 8, "ignore_eos": True}
            large = asyncio.create_task(client.post(url + COMPLETIONS, json=job))
            await until(lambda: server.engine.stats.running > 0)
            small = await client.post(url + COMPLETIONS, json={"prompt": "a", "max_tokens": 2})
            assert small.status_code == 200
            assert not large.done()
            assert (await large).status_code == 200


@EVERYWHERE
@pytest.mark.parametrize("seconds", [0, -1, 1e6, "inf", 1e400, None])
async def test_a_timeout_is_a_positive_number_of_seconds_up_to_a_day(
    path: str, seconds: Any
) -> None:
    server = serve()
    body = json.dumps({**BODIES[path], "timeout": seconds}).replace("Infinity", "1e400")
    response = await server.http.post(
        path, content=body, headers={"content-type": "application/json"}
    )
    if seconds is None:
        assert response.status_code == 200
    else:
        assert response.status_code == 400
        assert error_of(response)["param"] == "timeout"


@EVERYWHERE
@pytest.mark.parametrize("limit", ["request", "server", "both"])
async def test_a_request_that_waits_ends_at_its_deadline(path: str, limit: str) -> None:
    settings = {"request": {}, "server": {"request_timeout": 0.05}, "both": {"request_timeout": 60}}
    server = serve(lambda request: [None], **settings[limit])
    body = {**BODIES[path], **({} if limit == "server" else {"timeout": 0.05})}
    response = await server.post(path, body)
    assert response.status_code == 408
    assert error_of(response)["code"] == "deadline_exceeded"
    assert response.headers["x-should-retry"] == "false"
    assert len(server.engine.aborted) == 1
    assert server.app.state.admission.live == 0
    assert b"octavo:requests_expired_total{" in server.metrics.render()
    assert b'requests_expired_total{engine="0",model_name="tiny"} 1.0' in server.metrics.render()


@STREAMS
async def test_a_stream_that_has_begun_ends_with_an_error_event_at_its_deadline(path: str) -> None:
    async with paged(slow()) as server:
        body = {**BODIES[path], "stream": True, "timeout": 1.5, "ignore_eos": True}
        if path == COMPLETIONS:
            body["max_tokens"] = 400
        async with listening(server) as url, httpx.AsyncClient(timeout=60) as client:
            await client.post(url + "/tokenize", json=BODIES[CHAT])  # what renders it is awake
            response = await client.post(url + path, json=body)
        assert response.status_code == 200
        events = [e for e in response.text.split("\n\n") if e]
        assert len(events) > 3
        if path == RESPONSES:
            assert events[-1].startswith("event: response.failed")
        else:
            assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == (
                "deadline_exceeded"
            )
        await server.until_empty()
        assert server.metric("octavo:requests_expired_total") == 1


async def test_a_request_in_time_is_not_touched_by_its_deadline() -> None:
    async with paged() as server:
        async with listening(server) as url, httpx.AsyncClient(timeout=60) as client:
            body = {"prompt": "a", "stream": True, "timeout": 60}
            assert chunks((await client.post(url + COMPLETIONS, json=body)).text)
        assert server.metric("octavo:requests_expired_total") == 0


async def test_a_request_whose_turn_would_come_too_late_is_sent_away_at_once() -> None:
    def script(request: Request) -> list[Delta | None]:
        return [None]

    server = serve(script)
    admission = server.app.state.admission
    begun = [admission.permit() for _ in range(20)]
    for permit in begun:
        permit.enter()
        permit.weigh([[1] * 10])
    begun[0].begin(10)  # one in at least a second: the others take at least 19
    response = await server.post(COMPLETIONS, {"prompt": "a", "timeout": 5})
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 10
    assert not server.engine.requests


@pytest.mark.parametrize("path", [COMPLETIONS, EMBEDDINGS, CHAT])
async def test_a_text_that_must_be_too_long_is_refused_without_being_tokenized(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: Any, **__: Any) -> list[int]:
        raise AssertionError("this would take long")

    server = serve()
    monkeypatch.setattr(Tokenizer, "encode", encode)
    field = next(iter(BODIES[path]))
    text: Any = "word " * 100_000
    body = {field: [{"role": "user", "content": text}] if path == CHAT else text}
    error = await server.refusal(path, body)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == field
    assert "maximum context length is 512 tokens" in error["message"]
