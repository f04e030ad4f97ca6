"""kill -9 of the engine, again and again in one daemon's life, under mixed streams; and SIGSTOP."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

from .daemon import Broken, Daemon, serving
from .effort import Effort
from .load import MixedLoad
from .verdict import Check, Outcome, at_least, at_most, none

AT_LEAST_IN_FLIGHT = 8
_LIMIT_SECONDS = 180.0
_RESUMED = "octavo:requests_resumed_total"
_ARGUMENTS = ("--dtype", "float32", "--kv-memory", "256MiB", "--max-num-seqs", "32")
FREEZE_DETECTION_SECONDS = 10.0


async def crash(effort: Effort) -> Outcome:
    """SIGKILL: no client may notice more than a pause."""
    async with serving(*_ARGUMENTS) as daemon:
        blows, checks, load = await _under_blows(daemon, effort.kills, signal.SIGKILL, effort.seed)
        limit = daemon.start_seconds + 2.0
        checks += (at_most("longest silence of all streams, s", max(blows), limit),)
        return _outcome(daemon, blows, checks, load)


async def freeze(effort: Effort) -> Outcome:
    """SIGSTOP stands for a device that hangs: it is noticed, and then it is as after a kill."""
    async with serving(*_ARGUMENTS) as daemon:
        blows, checks, load = await _under_blows(
            daemon, effort.freezes, signal.SIGSTOP, effort.seed
        )
        # Found out at the second look after its time, at most.
        limit = daemon.start_seconds + 2.0 + FREEZE_DETECTION_SECONDS + 2.0
        checks += (at_most("longest silence of all streams, s", max(blows), limit),)
        return _outcome(daemon, blows, checks, load)


def _outcome(
    daemon: Daemon, blows: list[float], checks: tuple[Check, ...], load: MixedLoad
) -> Outcome:
    return Outcome(
        checks=checks,
        figures={
            "answers": load.answers,
            "start, s": round(daemon.start_seconds, 2),
            "median silence, s": round(sorted(blows)[len(blows) // 2], 2),
            "what went wrong": load.examples(),
        },
    )


async def _under_blows(
    daemon: Daemon, count: int, blow: signal.Signals, seed: int
) -> tuple[list[float], tuple[Check, ...], MixedLoad]:
    """Silences after each blow in seconds, what was found, and the load.

    Between two blows the streams have some time, as long as a start takes at most.
    """
    draw = random.Random(seed)
    load = MixedLoad(daemon.url)
    await load.learn()
    silences: list[float] = []
    fewest = len(load.kinds)
    async with load.flowing():
        for _ in range(count):
            async with asyncio.timeout(_LIMIT_SECONDS):
                engine = await _moment(daemon, load, draw.uniform(0.0, daemon.start_seconds))
                fewest = min(fewest, load.in_flight)
                os.kill(engine, blow)
                silences.append(await _silence(daemon, load, engine))
    idle = await daemon.idle_after(5.0)
    metrics, audits = await daemon.metrics(), await daemon.audit_failures()
    checks = (
        at_least("blows", len(silences), count),
        at_least("fewest streams in flight", fewest, AT_LEAST_IN_FLIGHT),
        *load.checks(),
        at_least("requests resumed", metrics.get(_RESUMED, 0.0), 1),
        none("errors in block accounting", audits),
        at_most("idle after the last answer, s", idle, 5.0),
    )
    return silences, checks, load


async def _moment(daemon: Daemon, load: MixedLoad, wait: float) -> int:
    """The engine to hit, at a moment when enough streams are in flight."""
    while load.in_flight < AT_LEAST_IN_FLIGHT:
        await asyncio.sleep(0.01)
    await asyncio.sleep(wait)
    while load.in_flight < AT_LEAST_IN_FLIGHT or (engine := daemon.engine()) is None:
        await asyncio.sleep(0.002)
    return engine


async def _silence(daemon: Daemon, load: MixedLoad, old_engine: int) -> float:
    """Seconds from now to the first event that another engine brought."""
    began = time.perf_counter()
    while (engine := daemon.engine()) is None or engine == old_engine:
        if daemon.process.returncode is not None:
            raise Broken(f"the daemon has ended: {daemon.last_words()}")
        await asyncio.sleep(0.005)
    appeared = time.perf_counter()
    while load.latest_event < appeared:
        await asyncio.sleep(0.005)
    return load.latest_event - began
