"""The load test itself: what it asks, what it reads, what it reports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from octavo.loadtest.client import Client, Exchange
from octavo.loadtest.report import Quantiles, Report
from octavo.loadtest.run import measure
from octavo.loadtest.workload import Workload

WORKLOAD = Workload(
    requests=6, concurrency=3, prompt_tokens=20, output_tokens=4, shared_prefix=12, seed=5
)
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Reads one request after the other and lets `answer` write what it likes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                await answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


def chunk(text: bytes) -> bytes:
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


async def four_tokens(writer: asyncio.StreamWriter) -> None:
    """Events that do not end where chunks end, a keep-alive comment, usage, [DONE]."""
    usage = {"completion_tokens": 4, "prompt_tokens": 20}
    whole = b": ping\n\n" + event(choices=[{"text": "a"}]) * 4 + event(choices=[], usage=usage)
    whole += b"data: [DONE]\n\n"
    pieces = [whole[i : i + 25] for i in range(0, len(whole), 25)]
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head + b"".join(map(chunk, pieces)) + b"0\r\n\r\n")


async def broken_off(writer: asyncio.StreamWriter) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head + chunk(event(choices=[{"text": "a"}])) + b"0\r\n\r\n")


async def refused(writer: asyncio.StreamWriter) -> None:
    body = b'{"error": {"message": "full"}}'
    head = f"HTTP/1.1 429 Too Many\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def test_the_same_seed_asks_the_same_with_exact_lengths_and_a_shared_prefix() -> None:
    bodies = list(WORKLOAD.bodies("m"))
    assert bodies == list(WORKLOAD.bodies("m"))
    prompts = [body["prompt"] for body in bodies]
    assert all(isinstance(prompt, list) and len(prompt) == 20 for prompt in prompts)
    assert len({tuple(prompt[:12]) for prompt in prompts}) == 1  # type: ignore[index]
    assert len({tuple(prompt[12:]) for prompt in prompts}) == 6  # type: ignore[index]


async def test_a_streamed_answer_is_read_whatever_its_chunks() -> None:
    async with server(four_tokens) as url:
        report = await measure(WORKLOAD, base_url=url, model="m")
    assert (report.requests, report.errors) == (6, 0)
    assert (report.output_tokens, report.prompt_tokens) == (24, 120)
    assert report.ttft.p50 > 0


@pytest.mark.parametrize(("answer", "why"), [(broken_off, "without [DONE]"), (refused, "full")])
async def test_failures_are_counted_and_told(answer: Answer, why: str) -> None:
    async with server(answer) as url:
        report = await measure(WORKLOAD, base_url=url, model="m")
    assert report.errors == 6
    assert why in str(report.first_error)


async def test_a_server_that_is_not_there_is_an_error_not_an_exception() -> None:
    async with server(refused) as url:
        pass
    report = await measure(WORKLOAD, base_url=url, model="m")
    assert report.errors == 6


def test_only_plain_http_is_spoken() -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        Client("https://example.org")


def test_latencies_come_from_arrivals() -> None:
    exchange = Exchange(sent=10.0, status=200, arrivals=[10.5, 10.75, 11.5], output_tokens=3)
    report = Report.of([exchange], seconds=2.0, client_cpu=0.5)
    assert report.ttft.worst == 0.5
    assert (report.itl.p50, report.itl.worst) == (0.75, 0.75)
    assert report.tpot.p50 == 0.5
    assert report.output_tokens_per_second == 1.5
    assert report.client_cpu_share == 0.25


def test_quantiles() -> None:
    assert Quantiles.of(float(i) for i in range(100)) == Quantiles(
        p50=50.0, p90=90.0, p99=99.0, worst=99.0
    )
    assert Quantiles.of([]) == Quantiles(p50=0.0, p90=0.0, p99=0.0, worst=0.0)
