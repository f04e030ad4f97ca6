"""The load test itself: what it asks, what it reads, what it reports."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from octavo.loadtest.client import Client
from octavo.loadtest.lengths import fixed, lengths
from octavo.loadtest.report import Report
from octavo.loadtest.run import Target, measure
from octavo.loadtest.workload import Asking, Form, Workload

WORKLOAD = Workload(
    requests=6,
    concurrency=3,
    prompt_tokens=fixed(20),
    output_tokens=fixed(4),
    shared_prefix=12,
    seed=5,
)
ASKING = Asking(model="m")
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
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


async def one_answer(writer: asyncio.StreamWriter) -> None:
    """Not streamed, and the connection ends with it."""
    usage = {"completion_tokens": 4, "prompt_tokens": 20}
    body = json.dumps({"choices": [{"text": "abcd"}], "usage": usage}).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + body)
    writer.close()


async def four_tokens(writer: asyncio.StreamWriter) -> None:
    """Events that do not end where chunks end, a keep-alive comment, usage, [DONE]."""
    usage = {"completion_tokens": 4, "prompt_tokens": 20}
    whole = b": ping\n\n" + event(choices=[{"text": "a"}]) * 4 + event(choices=[], usage=usage)
    whole += b"data: [DONE]\n\n"
    pieces = [whole[i : i + 25] for i in range(0, len(whole), 25)]
    head = STREAM
    writer.write(head + b"".join(map(chunk, pieces)) + b"0\r\n\r\n")


async def broken_off(writer: asyncio.StreamWriter) -> None:
    head = STREAM
    writer.write(head + chunk(event(choices=[{"text": "a"}])) + b"0\r\n\r\n")


async def refused(writer: asyncio.StreamWriter) -> None:
    body = b'{"error": {"message": "full"}}'
    head = f"HTTP/1.1 429 Too Many\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def report_of(workload: Workload, url: str) -> Report:
    measured = await measure([workload], Target(base_url=url, asking=ASKING))
    return Report.of(measured.all, seconds=measured.seconds, client_cpu=measured.client_cpu)


def test_the_same_seed_asks_the_same_with_exact_lengths_and_a_shared_prefix() -> None:
    bodies = list(WORKLOAD.bodies(ASKING))
    assert bodies == list(WORKLOAD.bodies(ASKING))
    prompts = [body["prompt"] for body in bodies]
    assert all(isinstance(prompt, list) and len(prompt) == 20 for prompt in prompts)
    assert len({tuple(prompt[:12]) for prompt in prompts}) == 1  # type: ignore[index]
    assert len({tuple(prompt[12:]) for prompt in prompts}) == 6  # type: ignore[index]


def test_several_prefixes_are_shared_by_groups() -> None:
    many = replace(WORKLOAD, requests=60, prefixes=3)
    prompts = [body["prompt"] for body in many.bodies(ASKING)]
    assert len({tuple(prompt[:12]) for prompt in prompts}) == 3  # type: ignore[index]


@pytest.mark.parametrize("form", ["text", "chat"])
def test_a_server_without_ids_is_asked_with_as_many_words_as_make_the_tokens(form: Form) -> None:
    asking = replace(ASKING, form=form, tokens_per_word=2.0, frame_tokens=6.0)
    for body in replace(WORKLOAD, prompt_tokens=fixed(46)).bodies(asking):
        text = body["prompt"] if form == "text" else body["messages"][0]["content"]  # type: ignore[index]
        assert len(str(text).split()) * 2 + 6 == 46


def test_an_open_loop_comes_at_its_rate_whatever_the_server_does() -> None:
    many = replace(WORKLOAD, requests=4000, rate=50.0)
    due = many.arrivals()
    gaps = [b - a for a, b in itertools.pairwise(due)]
    assert due == many.arrivals()
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 50, rel=0.1)
    # Exponential gaps spread as wide as their mean.
    assert statistics.pstdev(gaps) == pytest.approx(1 / 50, rel=0.1)


def test_lengths_are_drawn_from_what_was_written() -> None:
    source = random.Random(1)

    def drawn(text: str, count: int = 4000) -> list[int]:
        return [lengths(text).draw(source) for _ in range(count)]

    assert set(drawn("7", 10)) == {7}
    assert set(drawn("3..5")) == {3, 4, 5}
    wide = drawn("500~0.8<1000")
    assert statistics.median(wide) == pytest.approx(500, rel=0.1)
    assert max(wide) == 1000
    assert drawn("1*3,2*1").count(1) == pytest.approx(3000, rel=0.1)
    for text in ("7", "3..5", "500~0.8<1000", "1*3,2..9*1"):
        assert str(lengths(text)) == text


@pytest.mark.parametrize("text", ["", "x", "0", "5..3", "~1", "9~-1", "3,,4"])
def test_a_length_that_is_none_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no length: write 128, 64\.\.256"):
        lengths(text)


async def test_a_streamed_answer_is_read_whatever_its_chunks() -> None:
    async with server(four_tokens) as url:
        report = await report_of(WORKLOAD, url)
    assert (report.requests, report.errors) == (6, 0)
    assert (report.output_tokens, report.prompt_tokens) == (24, 120)
    assert report.ttft.p50 > 0


async def test_a_kept_connection_that_was_closed_meanwhile_is_no_failure() -> None:
    async def answer_and_leave(writer: asyncio.StreamWriter) -> None:
        await four_tokens(writer)
        writer.close()  # without having said so

    async with server(answer_and_leave) as url:
        report = await report_of(WORKLOAD, url)
    assert (report.requests, report.errors, report.output_tokens) == (6, 0, 24)


async def test_a_server_that_always_hangs_up_is_tried_no_more_than_twice() -> None:
    met = 0

    async def hang_up(writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        writer.close()

    async with server(hang_up) as url:
        report = await report_of(WORKLOAD, url)
    assert report.errors == 6
    assert met <= 12


async def test_an_answer_may_end_with_its_connection() -> None:
    async with server(one_answer) as url:
        report = await report_of(replace(WORKLOAD, stream=False), url)
    assert (report.requests, report.errors, report.output_tokens) == (6, 0, 24)


async def test_an_open_loop_sends_everything() -> None:
    async with server(four_tokens) as url:
        report = await report_of(replace(WORKLOAD, rate=2000.0), url)
    assert (report.requests, report.errors, report.output_tokens) == (6, 0, 24)


async def test_a_workload_waits_until_the_others_are_on_their_way() -> None:
    late = replace(WORKLOAD, name="late", requests=1, after_pieces=8)
    async with server(four_tokens) as url:
        measured = await measure([late, WORKLOAD], Target(base_url=url, asking=ASKING))
    first = min(exchange.sent for exchange in measured.exchanges["requests"])
    (told,) = measured.exchanges["late"]
    assert told.error is None
    assert told.sent > first


@pytest.mark.parametrize(("answer", "why"), [(broken_off, "without [DONE]"), (refused, "full")])
async def test_failures_are_counted_and_told(answer: Answer, why: str) -> None:
    async with server(answer) as url:
        report = await report_of(WORKLOAD, url)
    assert report.errors == 6
    assert why in str(report.first_error)


async def test_what_is_no_http_is_an_error_not_an_exception() -> None:
    async def noise(writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x01 hello\r\n\r\n")

    async with server(noise) as url:
        report = await report_of(WORKLOAD, url)
    assert report.errors == 6


async def test_a_server_that_is_not_there_is_an_error_not_an_exception() -> None:
    async with server(refused) as url:
        pass
    report = await report_of(WORKLOAD, url)
    assert report.errors == 6


def test_only_http_is_spoken() -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        Client("ftp://example.org")
