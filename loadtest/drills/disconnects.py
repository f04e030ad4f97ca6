"""Clients that leave in every way and at every moment: nothing of theirs may stay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter

from .answer import ask, connect, head_of
from .daemon import serving
from .effort import Effort
from .verdict import Outcome, at_least, at_most, none

_WORKERS = 32
_LONGEST_STAY = 0.5  # seconds
_IDLE_SECONDS = 2.0
WAYS = ("close", "half-close", "reset")
_SHAPES: tuple[dict[str, object], ...] = (
    {"stream": True},
    {"stream": False},
    {"stream": True, "n": 3},
    {"stream": False, "n": 4},
    {"stream": True, "prompt": ["The king", "The queen", "The fox"]},
    {"stream": False, "prompt": [list(range(300, 900)), list(range(900, 1500))]},
    {"stream": True, "prompt": list(range(300, 2000))},
)


async def disconnects(effort: Effort) -> Outcome:
    draw = random.Random(effort.seed)
    cases = iter(
        [
            (draw.choice(_SHAPES), draw.choice(WAYS), draw.uniform(0.0, _LONGEST_STAY))
            for _ in range(effort.disconnects)
        ]
    )
    ways: Counter[str] = Counter()
    kept: list[asyncio.StreamWriter] = []
    async with serving("--max-num-seqs", "16", "--kv-memory", "128MiB") as daemon:
        before = daemon.descriptors()

        async def work() -> None:
            for shape, way, stay in cases:  # shared by all workers
                await leave(daemon.url, shape, way, stay, kept)
                ways[way] += 1

        await asyncio.gather(*(work() for _ in range(_WORKERS)))
        idle = await daemon.idle_after(30.0)
        for writer in kept:
            writer.close()
        whole = await ask(daemon.url, "/v1/completions", {"prompt": "The king", "max_tokens": 5})
        audits = await daemon.audit_failures()
        await asyncio.sleep(1.0)  # for the kernel and the server to close what was closed
        more = daemon.descriptors() - before
    return Outcome(
        checks=(
            at_least("disconnects", ways.total(), effort.disconnects),
            at_most("running, waiting and used blocks 0 after, s", idle, _IDLE_SECONDS),
            none("requests that fail afterwards", int(not whole.good)),
            none("errors in block accounting", audits),
            at_most("descriptors more than before", more, 4),
        ),
        figures=dict(ways),
    )


async def leave(
    url: str,
    shape: dict[str, object],
    way: str,
    stay: float,
    kept: list[asyncio.StreamWriter],
) -> None:
    """Ask for something long and leave after `stay` seconds. A half-closed connection is kept
    open for reading, in `kept`, and nothing is read from it."""
    body = {"prompt": "Once upon a time", "max_tokens": 300, "ignore_eos": True, **shape}
    payload = json.dumps(body).encode()
    with contextlib.suppress(OSError):
        _, writer = await connect(url)
        writer.write(head_of("POST", "/v1/completions", len(payload)) + payload)
        await asyncio.sleep(stay)
        if way == "half-close":
            writer.write_eof()
            kept.append(writer)
        elif way == "reset":
            writer.transport.abort()
        else:
            writer.close()
