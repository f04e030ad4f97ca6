"""The drills themselves: what they read, what they judge, what they write down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from octavo.loadtest.drills.answer import Answer, ask, get
from octavo.loadtest.drills.disconnects import leave
from octavo.loadtest.drills.load import MixedLoad
from octavo.loadtest.drills.malformed import broken_bodies
from octavo.loadtest.drills.mix import MIX, Output
from octavo.loadtest.drills.overload import rate_of, share
from octavo.loadtest.drills.processes import alive, held_by, tree
from octavo.loadtest.drills.record import remember
from octavo.loadtest.drills.soak import slope_of
from octavo.loadtest.drills.verdict import (
    Check,
    Outcome,
    at_least,
    at_most,
    broken_off,
    none,
)
from octavo.loadtest.events import Exchange

# Judging


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (none("x", 0), True),
        (none("x", 1), False),
        (at_most("x", 2.0, 2.0), True),
        (at_most("x", 2.1, 2.0), False),
        (at_least("x", 2.0, 2.0), True),
        (at_least("x", 1.9, 2.0), False),
        (at_most("x", float("nan"), 2.0), False),
        (at_least("x", float("nan"), 2.0), False),
        (at_most("x", float("inf"), 2.0), False),
    ],
)
def test_a_check_holds_up_to_its_limit_and_never_for_what_is_no_number(
    check: Check, holds: bool
) -> None:
    assert check.holds is holds
    assert ("FALLS SHORT" in str(check)) is not holds


def test_an_outcome_passes_when_all_of_it_holds_and_never_without_a_check() -> None:
    good, bad = none("a", 0), none("b", 3)
    assert Outcome(checks=(good,)).passed
    assert not Outcome(checks=(good, bad)).passed
    assert not Outcome(checks=()).passed
    assert not broken_off(OSError("it is gone")).passed
    line = Outcome(checks=(good, bad)).line("crash")
    assert line.startswith("crash        FALL SHORT")
    assert "b: 3 (<= 0)  <- FALLS SHORT" in line


def test_the_record_is_json_and_keeps_the_other_drills(tmp_path: Path) -> None:
    file = tmp_path / "results" / "x.json"
    slow = Outcome(checks=(at_most("idle after, s", float("inf"), 2.0),))
    remember(file, "drain", slow, seconds=1.0, effort="full")
    remember(file, "crash", Outcome(checks=(none("a", 0),)), seconds=2.0, effort="quick")
    remember(file, "drain", Outcome(checks=(none("a", 0),)), seconds=3.0, effort="full")
    kept = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert {name: record["passed"] for name, record in kept.items()} == {
        "drain": True,
        "crash": True,
    }
    assert kept["crash"]["effort"] == "quick"
    assert kept["crash"]["machine"]["cores"] >= 1
    assert len(kept["crash"]["load_average"]) == 3
    remember(file, "drain", slow, seconds=1.0, effort="full")
    checks = json.loads(file.read_text(), parse_constant=pytest.fail)["drain"]["checks"]
    assert checks == {"idle after, s": {"value": "inf", "at most": 2.0, "holds": False}}


def test_a_slope_is_found_under_noise_and_outliers() -> None:
    moments = [float(i) for i in range(200)]
    noise = [(i * 7919 % 13) / 13 for i in range(200)]
    level = [100.0 + wobble for wobble in noise]
    assert abs(slope_of(moments, level)) < 0.005
    growing = [value + 0.1 * moment for value, moment in zip(level, moments, strict=True)]
    growing[50] = growing[120] = 5000.0
    assert slope_of(moments, growing) == pytest.approx(0.1, abs=0.005)
    assert slope_of([], []) != slope_of([], [])  # nan: no limit holds for it


def test_shares() -> None:
    values = [float(i) for i in range(100)]
    assert share(values, 0.95) == 95.0
    assert share(values, 1.0) == 99.0
    assert share([], 0.95) != share([], 0.95)


def test_a_rate_counts_the_tokens_within_the_measured_time() -> None:
    def ended(first: float, last: float) -> Exchange:
        return Exchange(sent=0.0, arrivals=[first, last], ended=last)

    # 100 s from 1000 on, the first 25 not counted; 128 tokens an answer.
    assert rate_of([ended(1030.0, 1040.0)], 1000.0, 100.0) == pytest.approx(128 / 75)
    assert rate_of([ended(1070.0, 1130.0)], 1000.0, 100.0) == pytest.approx(64 / 75)
    assert rate_of([ended(1010.0, 1024.0), ended(1101.0, 1102.0)], 1000.0, 100.0) == 0.0
    # One that was read whole, at once.
    assert rate_of([ended(1030.0, 1030.0)], 1000.0, 100.0) == pytest.approx(128 / 75)
    assert rate_of([ended(1024.0, 1024.0), ended(1101.0, 1101.0)], 1000.0, 100.0) == 0.0


# Reading


def answered(text: str, *, ids: list[int], logprob: float = -1.0) -> Answer:
    answer = Answer(sent=0.0, status=200, done=True)
    choice = {"index": 0, "token_ids": ids, "finish_reason": "length"}
    logprobs = {"token_logprobs": [logprob] * len(ids)}
    answer.take({"choices": [{**choice, "text": text, "logprobs": logprobs}]})
    return answer


def test_a_load_tells_failures_other_tokens_and_other_logprobs_apart() -> None:
    kind = MIX[0]
    load = MixedLoad("http://127.0.0.1:1", (kind,))
    load.expected[kind.name] = Output.of(answered("abc", ids=[1, 2, 3]))
    load.judge(kind, answered("abc", ids=[1, 2, 3]))
    assert all(check.holds for check in load.checks())
    load.judge(kind, answered("abc", ids=[1, 2, 4]))
    load.judge(kind, answered("abd", ids=[1, 2, 3]))
    load.judge(kind, answered("ab", ids=[1, 2]))
    assert len(load.differing) == 3
    assert "from token 2 of 3" in load.differing[0]
    load.judge(kind, answered("abc", ids=[1, 2, 3], logprob=-1.0000001))
    (told,) = load.differing_logprobs
    assert told == f"{kind.name}: at token 0 of 3, -1.0 / -1.0000001"
    cut = answered("abc", ids=[1, 2, 3])
    cut.done = False
    load.judge(kind, cut)
    load.judge(kind, Answer(sent=0.0, status=503, done=True))
    assert len(load.failures) == 2
    assert [check.holds for check in load.checks()] == [False, False, False]


def test_the_mix_is_of_sixteen_kinds_that_differ_and_repeat() -> None:
    assert len({kind.name for kind in MIX}) == len(MIX) == 16
    assert sum(bool(kind.body["stream"]) for kind in MIX) >= 8
    for kind in MIX:
        assert "seed" in kind.body or kind.body.get("temperature") == 0


@asynccontextmanager
async def server(*pieces: bytes, close: bool = True) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers every request with `pieces`, one after the other; tells what came."""
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        came.append(await reader.readexactly(length))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        came.append(await reader.read() if not close else b"")
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", came
    finally:
        listening.close()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = (
    event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    + event({"choices": [{"index": 0, "delta": {"content": "ab"}, "token_ids": [5]}]})
    + b": ping\n\n"
    + event({"choices": [{"index": 1, "text": "x", "logprobs": {"token_logprobs": [-1.5]}}]})
    + event({"choices": [{"index": 0, "delta": {"content": "c"}, "finish_reason": "stop"}]})
    + event({"choices": [], "usage": {"completion_tokens": 3}})
)


async def test_a_stream_is_read_wherever_its_chunks_are_cut() -> None:
    content = WHOLE + b"data: [DONE]\n\n"
    for size in (1, 7, 50, 10_000):
        pieces = [chunk(content[i : i + size]) for i in range(0, len(content), size)]
        seen: list[None] = []
        async with server(SSE, *pieces, b"0\r\n\r\n") as (url, _):
            answer = await ask(url, "/v1/x", {"a": 1}, on_event=partial(seen.append, None))
        assert answer.good, answer.why()
        assert Output.of(answer).choices == ((0, "abc", (5,), "stop"), (1, "x", (), None))
        assert answer.choices[1].logprobs == [-1.5]
        assert answer.completion_tokens == 3
        assert len(seen) == answer.events == 6


async def test_a_stream_that_is_cut_or_broken_off_is_not_good() -> None:
    async with server(SSE, chunk(WHOLE)) as (url, _):
        answer = await ask(url, "/v1/x", {})
        assert not answer.good
        assert "IncompleteRead" in answer.why()
    async with server(SSE, chunk(WHOLE), b"0\r\n\r\n") as (url, _):
        assert not (await ask(url, "/v1/x", {})).good  # it has no [DONE]
    told = event({"error": {"message": "it broke"}})
    async with server(SSE, chunk(WHOLE + told), b"0\r\n\r\n") as (url, _):
        answer = await ask(url, "/v1/x", {})
        assert not answer.good
        assert "it broke" in answer.why()
    async with server(SSE, close=False) as (url, _):
        answer = await ask(url, "/v1/x", {}, limit_seconds=0.05)
        assert "nothing more came" in answer.why()
    nobody = await ask("http://127.0.0.1:1", "/v1/x", {})
    assert (nobody.status, nobody.good) == (0, False)


async def test_a_plain_answer_and_an_error() -> None:
    def plain(status: bytes, content: object) -> bytes:
        body = json.dumps(content).encode()
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nRetry-After: 3\r\n" % status
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    message = {"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}
    async with server(plain(b"200 OK", {"choices": [message]})) as (url, came):
        answer = await ask(url, "/v1/x", {"a": 1})
        assert answer.good
        assert answer.choices[0].text == "hi"
        assert json.loads(came[0]) == {"a": 1}
        assert (await get(url, "/x"))[0] == 200
    refusal = {"error": {"message": "full"}}
    async with server(plain(b"429 Too Many Requests", refusal)) as (url, _):
        answer = await ask(url, "/v1/x", {})
        assert (answer.status, answer.good) == (429, False)
        assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize("way", ["close", "half-close", "reset"])
async def test_leaving(way: str) -> None:
    kept: list[asyncio.StreamWriter] = []
    async with server(close=False) as (url, came):
        await leave(url, {"n": 3}, way, 0.01, kept)
        async with asyncio.timeout(5):
            while len(came) < (1 if way == "reset" else 2):
                await asyncio.sleep(0.005)
        assert json.loads(came[0])["n"] == 3
        assert len(kept) == (way == "half-close")
        for writer in kept:
            writer.close()


def test_broken_bodies_repeat_and_hardly_ever_are_json_that_is_right() -> None:
    bodies = list(broken_bodies(3, 2000))
    assert bodies == list(broken_bodies(3, 2000))
    assert bodies != list(broken_bodies(4, 2000))
    assert len({body for _, body in bodies}) > 1500

    def parses(body: bytes) -> bool:
        try:
            json.loads(body)
        except (ValueError, RecursionError):
            return False
        return True

    share_of_json = sum(parses(body) for _, body in bodies) / len(bodies)
    assert 0.5 < share_of_json < 0.95, "some are no JSON, most are the wrong JSON"
    for sign in (b"NaN", b"\xed\xa0\x80", b"\\ud800", b"[[[[[[", b"\xff"):
        assert any(sign in body for _, body in bodies), sign


# Processes


def test_a_tree_of_processes_what_it_holds_and_its_end() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while len(tree(process.pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # between two looks at a condition that is awaited
        pids = tree(process.pid)
        assert all(map(alive, pids))
        held = held_by(pids)
        assert held.bytes > held_by([process.pid]).bytes > 0
        assert held.descriptors >= 6
        process.communicate(b"\n")
    assert not any(map(alive, pids))
    assert held_by(pids) == held_by([])
    assert alive(os.getpid())
