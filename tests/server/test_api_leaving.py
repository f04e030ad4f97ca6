"""Clients that leave, at every stage of a request: nothing is left of what they asked for."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.engine.params import GrammarSpec
from octavo.server.protocol import Protocol
from octavo.server.threads import LARGE_BYTES

from ..fakes.executor import FakeExecutor
from .leaving import WAYS_TO_LEAVE, Client, asking
from .paged import Paged, paged, until
from .serving import listening

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
STREAM = pytest.mark.parametrize("stream", [False, True])


class Trusting:
    """A grammar check that takes any grammar as it is."""

    def __init__(self, folder: Path) -> None: ...

    async def check(self, spec: GrammarSpec, path: str) -> GrammarSpec:
        return spec

    async def close(self) -> None: ...


class Pondering(Trusting):
    """One that never comes to an end."""

    async def check(self, spec: GrammarSpec, path: str) -> GrammarSpec:
        await asyncio.Event().wait()
        return spec


LEAVING = pytest.mark.parametrize("leave", WAYS_TO_LEAVE)


def slow() -> FakeExecutor:
    return FakeExecutor(seconds_per_step=0.005)


@STREAM
@LEAVING
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_while_its_choices_run(
    path: str, stream: bool, leave: Callable[[Client], None]
) -> None:
    """Within the step in which the engine hears of it: one more may be in flight."""
    async with paged(slow()) as server, listening(server) as url:
        body: dict[str, Any] = {"n": 3, "max_tokens": 400, "ignore_eos": True, "stream": stream}
        if path == CHAT:
            body["messages"] = [{"role": "user", "content": "a"}]
        else:
            body["prompt"] = ["one", "two"]
        async with asking(url, body, path) as client:
            await until(lambda: server.engine.stats.running >= 3)
            leave(client)
            await server.until_empty()
        assert server.metric("octavo:num_requests_running") == 0
        assert server.metric("octavo:kv_cache_usage_perc") == 0
        await until(lambda: server.metric("octavo:request_success_total") > 0)


@STREAM
async def test_with_more_requests_behind_it_on_its_connection(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that is being answered hears of it, and those behind it are never begun."""
    async with paged(slow()) as server, listening(server) as url:
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": stream}
        async with asking(url, body, times=3) as client:
            await until(lambda: server.engine.stats.running == 1)
            client.crash()
            await server.until_empty()
            await until(lambda: server.metric("octavo:request_success_total") > 0)
        assert server.metric("octavo:request_success_total") == 1
        assert server.metric("octavo:generation_tokens_total") < 400
    faults = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert faults == []  # that somebody leaves is no bug of the server


@STREAM
async def test_with_a_request_behind_it_that_came_while_it_was_computed(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes on to read, and so hears that the client has gone."""
    came = []
    complete = Protocol.on_message_complete

    def counted(protocol: Protocol) -> None:
        complete(protocol)
        came.append(protocol)

    monkeypatch.setattr(Protocol, "on_message_complete", counted)
    async with paged(slow()) as server, listening(server) as url:
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": stream}
        async with asking(url, body) as client:
            await until(lambda: server.engine.stats.running == 1)
            client.ask_again()
            await until(lambda: len(came) == 2)
            client.crash()
            await server.until_empty()
        assert server.metric("octavo:generation_tokens_total") < 400


@STREAM
async def test_while_it_waits(stream: bool) -> None:
    async with paged(slow(), max_num_seqs=1) as server, listening(server) as url:
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": stream}
        async with asking(url, body) as running:
            await until(lambda: server.engine.stats.running == 1)
            async with asking(url, {**body, "n": 2}) as client:
                await until(lambda: server.engine.stats.waiting > 0)
                client.leave()
                await until(lambda: server.engine.stats.waiting == 0)
            assert server.admission.live == 1
            assert server.engine.stats.running == 1
            running.leave()


@STREAM
async def test_with_prompts_that_the_engine_has_not_heard_of(stream: bool) -> None:
    async with paged(slow(), max_num_seqs=2) as server, listening(server) as url:
        body = {"prompt": [[9, 8, 7]] * 50, "max_tokens": 50, "ignore_eos": True, "stream": stream}
        async with asking(url, body) as client:
            await until(lambda: server.engine.stats.running == 2)
            client.leave()
            await server.until_empty()


@STREAM
async def test_while_its_text_is_tokenized(stream: bool) -> None:
    async with paged() as server, listening(server) as url:
        go = threading.Event()
        threads = server.app.state.threads
        large = asyncio.create_task(threads.run(go.wait, size=LARGE_BYTES + 1))
        try:
            async with asking(url, {"prompt": "a" * 2 * LARGE_BYTES, "stream": stream}) as client:
                await until(lambda: server.admission.live == 1)
                client.leave()
                await until(lambda: server.admission.live == 0)  # though the thread is still busy
        finally:
            go.set()
        await large


@STREAM
async def test_while_its_grammar_is_looked_at(stream: bool) -> None:
    async with paged(grammar_check=Pondering) as server, listening(server) as url:
        async with asking(url, {"prompt": "a", "guided_regex": "b", "stream": stream}) as client:
            await until(lambda: server.admission.tokens.waiting > 0)
            client.leave()
            await server.until_empty()


@STREAM
async def test_while_the_engine_compiles_its_grammar(stream: bool) -> None:
    executor = slow()
    executor.preparing = True
    async with paged(executor, grammar_check=Trusting) as server, listening(server) as url:
        body = {"prompt": "a", "guided_regex": "b", "stream": stream, "max_tokens": 400}
        async with asking(url, body) as client:
            await until(lambda: server.engine.live_requests == 1)
            client.leave()
            await server.until_empty()
        executor.preparing = False  # that it is ready now concerns nobody
        async with asking(url, {"prompt": "a"}) as other:
            assert await other.reader.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"


async def test_while_its_body_comes_in() -> None:
    async with paged() as server, listening(server) as url:
        reader, writer = await asyncio.open_connection(*httpx.URL(url).netloc.decode().split(":"))
        writer.write(
            f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{{".encode()
        )
        assert await reader_is_quiet(reader)
        assert server.admission.live == 0  # who only promises to send something holds no place
        writer.close()


async def reader_is_quiet(reader: asyncio.StreamReader) -> bool:
    """Whether the server has nothing to say while this client's body is not complete."""
    for _ in range(20):
        await asyncio.sleep(0.005)  # time for an answer that must not come
    return not reader.at_eof()


async def everybody_leaves_at_random(server: Paged, url: str, seed: int) -> None:
    import random

    draw = random.Random(seed)

    async def one() -> None:
        path = draw.choice([COMPLETIONS, CHAT])
        body: dict[str, Any] = {
            "n": draw.choice([1, 2, 4]),
            "stream": draw.random() < 0.5,
            "max_tokens": draw.choice([1, 20, 200]),
            "ignore_eos": True,
        }
        if path == CHAT:
            body["messages"] = [{"role": "user", "content": "a" * draw.choice([1, 90])}]
        else:
            body["prompt"] = draw.choice(["a", ["b", "c"], [[5, 6]] * 9])
        async with asking(url, body, path) as client:
            await asyncio.sleep(draw.random() * 0.2)
            draw.choice(WAYS_TO_LEAVE)(client)

    await asyncio.gather(*(one() for _ in range(100)))
    await server.until_empty()


@pytest.mark.parametrize("seed", range(2))
async def test_at_any_moment(seed: int) -> None:
    executor = FakeExecutor(seconds_per_step=0.001)
    async with paged(executor, max_num_seqs=8) as server, listening(server, connections=200) as url:
        await everybody_leaves_at_random(server, url, seed)
        async with asking(url, {"prompt": "a"}) as client:
            assert await client.reader.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
