"""Half an hour of mixed traffic, a fifth of it hostile: memory and descriptors must stay level."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from .answer import ask, connect, head_of, read_head
from .daemon import Daemon, serving
from .disconnects import WAYS, leave
from .effort import Effort
from .malformed import broken_bodies
from .mix import MIX
from .verdict import Outcome, at_least, at_most, none

_WORKERS = 10
_HOSTILE = 2  # of the workers
_SETTLING = 1 / 3  # of the time, not looked at
_LOOK_SECONDS = 1.0
_SLOPE = 16.0  # MiB an hour
_ENOUGH_SECONDS = 1800.0  # to see the slope; a shorter soak may grow by 16 MiB
_MIB = 1 << 20
_FILLING_PROMPTS, _LONG = 10, 1900  # tokens: more than the cache of this drill can hold


@dataclass(slots=True)
class _Traffic:
    answers: int = 0
    hostile: int = 0
    failures: list[str] = field(default_factory=list)


async def soak(effort: Effort) -> Outcome:
    traffic = _Traffic()
    moments: list[float] = []
    memory: list[float] = []
    descriptors: list[float] = []
    arguments = ("--max-num-seqs", "16", "--kv-memory", "32MiB")
    async with serving(*arguments) as daemon:
        await _warm_up(daemon, random.Random(effort.seed))
        began = time.perf_counter()
        until = began + effort.soak_seconds
        workers = [
            asyncio.create_task(
                _hostile(daemon, traffic, until, effort.seed + number)
                if number < _HOSTILE
                else _friendly(daemon, traffic, until, effort.seed + number)
            )
            for number in range(_WORKERS)
        ]
        while time.perf_counter() < until:
            await asyncio.sleep(_LOOK_SECONDS)
            moments.append(time.perf_counter() - began)
            memory.append(daemon.memory() / _MIB)
            descriptors.append(daemon.descriptors())
        await asyncio.gather(*workers)
        idle = await daemon.idle_after(10.0)
        metrics, audits = await daemon.metrics(), await daemon.audit_failures()
    warm = int(len(moments) * _SETTLING)
    hours = (moments[-1] - moments[warm]) / 3600
    enough = effort.soak_seconds >= _ENOUGH_SECONDS
    slope = slope_of(moments[warm:], memory[warm:]) * 3600
    more = slope_of(moments[warm:], descriptors[warm:]) * 3600 * hours
    return Outcome(
        checks=(
            at_most("memory, MiB/h", slope, _SLOPE / (1.0 if enough else hours)),
            at_most("descriptors more at the end", more, 4),
            none("failed requests", len(traffic.failures)),
            at_least("answers", traffic.answers, 1),
            at_least("hostile acts", traffic.hostile, 1),
            none("errors in block accounting", audits),
            none("engine restarts", metrics.get("octavo:engine_restarts_total", 0.0)),
            none("daemons not idle afterwards", int(idle == float("inf"))),
        ),
        figures={
            "minutes": round(moments[-1] / 60, 1),
            "memory, MiB, at every tenth": " ".join(
                f"{memory[len(memory) * tenth // 10]:.0f}" for tenth in range(10)
            ),
            "descriptors at the end": descriptors[-1],
            "answers": traffic.answers,
            "hostile acts": traffic.hostile,
            "examples": "; ".join(traffic.failures[:3])[:500],
        },
    )


def slope_of(moments: Sequence[float], values: Sequence[float]) -> float:
    """Per unit of `moments`: the median of the slopes between early and late pairs, which a few
    outliers do not move (Theil 1950, Sen 1968, on pairs half of the time apart)."""
    half = len(moments) // 2
    slopes = sorted(
        (values[i + half] - values[i]) / (moments[i + half] - moments[i])
        for i in range(len(moments) - half)
        if moments[i + half] > moments[i]
    )
    return slopes[len(slopes) // 2] if slopes else float("nan")


async def _warm_up(daemon: Daemon, draw: random.Random) -> None:
    """Touch every KV block, and do all that the traffic will do at once: what that leaves in
    pools and caches stays resident, and is no leak."""
    for _ in range(_FILLING_PROMPTS):
        prompt = [draw.randint(300, 3900) for _ in range(_LONG)]
        await ask(daemon.url, "/v1/completions", {"prompt": prompt, "max_tokens": 1})
    for _ in range(2):
        await asyncio.gather(*(ask(daemon.url, kind.path, kind.body) for kind in MIX))
    for path, body in broken_bodies(draw.randrange(2**31), 100):
        await _malformed(daemon.url, path, body)


async def _friendly(daemon: Daemon, traffic: _Traffic, until: float, seed: int) -> None:
    draw = random.Random(seed)
    while time.perf_counter() < until:
        kind = draw.choice(MIX)
        answer = await ask(daemon.url, kind.path, {**kind.body, "seed": draw.randrange(2**31)})
        traffic.answers += 1
        if not answer.good:
            traffic.failures.append(f"{kind.name}: {answer.why()}")


async def _hostile(daemon: Daemon, traffic: _Traffic, until: float, seed: int) -> None:
    """Broken bodies, and clients that leave."""
    draw = random.Random(seed)
    bodies = broken_bodies(seed, 1 << 40)
    kept: list[asyncio.StreamWriter] = []
    while time.perf_counter() < until:
        traffic.hostile += 1
        if draw.random() < 0.5:
            await leave(
                daemon.url,
                {"stream": draw.random() < 0.5, "n": draw.choice((1, 3))},
                draw.choice(WAYS),
                draw.uniform(0.0, 0.5),
                kept,
            )
        else:
            await _malformed(daemon.url, *next(bodies))
        while len(kept) > 3:
            kept.pop(0).close()
        await asyncio.sleep(draw.uniform(0.0, 0.2))
    for writer in kept:
        writer.close()


async def _malformed(url: str, path: str, body: bytes) -> None:
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await connect(url)
            try:
                writer.write(head_of("POST", path, len(body)) + body)
                await read_head(reader)
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError):
        pass  # what the server makes of it is the drill `malformed`'s to judge
