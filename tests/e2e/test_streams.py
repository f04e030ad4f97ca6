"""Many streams at once through the real HTTP server, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path

import httpx
import pytest

from octavo.loadtest.lengths import fixed
from octavo.loadtest.report import Report
from octavo.loadtest.run import Target, measure
from octavo.loadtest.workload import Asking, Workload

from .daemon import Daemon, serving

STREAMS = 64
SECONDS = 60.0


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_64_streams_for_a_minute(tmp_path: Path) -> None:
    with serving(tmp_path, "--max-num-seqs", "64") as daemon:
        target = Target(base_url=daemon.url, asking=Asking(model="octavo", temperature=1.0))
        rounds, tokens, began = 0, 0, time.monotonic()
        while time.monotonic() - began < SECONDS:
            workload = Workload(
                requests=2 * STREAMS,
                concurrency=STREAMS,
                prompt_tokens=fixed(48),
                output_tokens=fixed(48),
                shared_prefix=16,
                seed=rounds,
            )
            measured = await measure([workload], target)
            report = Report.of(measured.all, seconds=measured.seconds)
            assert report.errors == 0, report.first_error
            assert report.output_tokens == 2 * STREAMS * 48
            rounds, tokens = rounds + 1, tokens + report.output_tokens
        daemon.wait_until_idle()
        assert daemon.metric("octavo:generation_tokens_total") == tokens
        assert daemon.metric("octavo:kv_block_audit_failures_total") == 0


@pytest.mark.slow
async def test_clients_that_leave_cost_nothing_afterwards(tmp_path: Path) -> None:
    draw = random.Random(0)
    with serving(tmp_path) as daemon:

        async def leave_early(client: httpx.AsyncClient) -> None:
            body = {
                "prompt": "Once upon a time",
                "max_tokens": 1500,
                "ignore_eos": True,
                "n": draw.choice([1, 3]),
                "stream": draw.random() < 0.5,
            }
            asking = asyncio.create_task(client.post(f"{daemon.url}/v1/completions", json=body))
            await asyncio.sleep(draw.random() * 0.5)  # the moment of leaving is the case
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            await asyncio.gather(*(leave_early(client) for _ in range(50)))
            daemon.wait_until_idle(2.5)
            whole = await client.post(
                f"{daemon.url}/v1/completions", json={"prompt": "The king", "max_tokens": 5}
            )
        assert whole.status_code == 200


def stream(daemon: Daemon, body: dict[str, object], kill_after: int | None = None) -> list[str]:
    """The text of each choice; after `kill_after` events the engine process is killed."""
    texts: dict[int, str] = {}
    with httpx.stream("POST", f"{daemon.url}/v1/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200
        events = 0
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            events += 1
            if events == kill_after:
                os.kill(daemon.engine, signal.SIGKILL)
            event = json.loads(line[6:])
            assert "error" not in event, event
            for choice in event["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return [texts[index] for index in sorted(texts)]


@pytest.mark.slow
def test_a_stream_goes_on_when_the_engine_is_killed(tmp_path: Path) -> None:
    variety: list[dict[str, object]] = [
        {"temperature": 0},
        {"seed": 3, "n": 3},
        {"seed": 4, "frequency_penalty": 1.0, "repetition_penalty": 1.2, "stop": ["zzz"]},
    ]
    with serving(tmp_path, "--dtype", "float32") as daemon:
        for case in variety:
            body = {
                "prompt": "Once upon a time",
                "max_tokens": 200,
                "ignore_eos": True,
                "stream": True,
                **case,
            }
            undisturbed = stream(daemon, body)
            assert stream(daemon, body, kill_after=40) == undisturbed
        daemon.wait_until_idle()
