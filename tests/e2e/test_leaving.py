"""Clients that leave a real daemon, at moments chosen by chance."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..server.leaving import WAYS_TO_LEAVE, asking
from .daemon import serving

pytestmark = pytest.mark.slow


def request(draw: random.Random) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "n": draw.choice([1, 2, 4]),
        "stream": draw.random() < 0.5,
        "max_tokens": draw.choice([5, 100, 400]),
        "ignore_eos": True,
    }
    match draw.randrange(4):
        case 0:
            return "/v1/chat/completions", {
                **body,
                "messages": [{"role": "user", "content": "a story, please " * draw.randrange(99)}],
            }
        case 1:
            schema = {"type": "object", "properties": {f"p{draw.randrange(50)}": {"type": "null"}}}
            return "/v1/completions", {**body, "prompt": "a", "guided_json": schema}
        case 2:
            long = {"prompt": "once " * 40_000, "truncate_prompt_tokens": 50}  # takes its time
            return "/v1/completions", {**body, **long}
    return "/v1/completions", {**body, "prompt": [[300, 301, 302]] * draw.choice([1, 20])}


async def everybody(url: str) -> None:
    draw = random.Random(5)
    room = asyncio.Semaphore(25)

    async def one() -> None:
        path, body = request(draw)
        async with room, asking(url, body, path) as client:
            await asyncio.sleep(draw.random())  # the moment that is tried
            draw.choice(WAYS_TO_LEAVE)(client)

    await asyncio.gather(*(one() for _ in range(200)))


def test_nothing_is_left_of_two_hundred_that_left(tmp_path: Path) -> None:
    with serving(tmp_path, "--kv-memory", "64MiB", "--max-num-seqs", "8") as daemon:
        asyncio.run(everybody(daemon.url))
        daemon.wait_until_idle(60)
        assert httpx.get(f"{daemon.url}/load", timeout=30).json() == {"server_load": 0}
        for gauge in ("octavo:queue_requests", "octavo:queue_tokens"):
            assert daemon.metric(gauge) == 0
        body = {"prompt": "a", "max_tokens": 3, "ignore_eos": True}
        answer = httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=60).json()
        assert answer["usage"]["completion_tokens"] == 3
