"""The end of the daemon: killed, nothing of it stays; told to stop, it finishes what it began."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

from .answer import Answer, ask, get
from .daemon import Daemon, serving
from .effort import Effort
from .processes import alive
from .verdict import Outcome, at_least, at_most, none

_STREAMS = 16
_TOKENS = 200
_GONE_SECONDS = 5.0
_BODY: dict[str, object] = {
    "prompt": "Once upon a time",
    "max_tokens": _TOKENS,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}


class _Streams:
    """Under way. `begun` is set when each has brought its first event."""

    def __init__(self, url: str, count: int) -> None:
        self.begun = asyncio.Event()
        self._missing = count
        self.asking = [asyncio.create_task(self._ask(url, seed)) for seed in range(count)]

    async def _ask(self, url: str, seed: int) -> Answer:
        first = True

        def event() -> None:
            nonlocal first
            self._missing -= first
            first = False
            if not self._missing:
                self.begun.set()

        return await ask(url, "/v1/completions", {**_BODY, "seed": seed}, on_event=event)


async def orphans(effort: Effort) -> Outcome:
    """kill -9 of the front end, with streams under way and a grammar helper running."""
    del effort
    async with serving() as daemon:
        form = {"type": "regex", "value": "[a-z]+"}
        await ask(daemon.url, "/v1/completions", {"prompt": "a", "response_format": form})
        streams = _Streams(daemon.url, 4)
        await asyncio.wait_for(streams.begun.wait(), 60)
        pids = daemon.processes()
        daemon.signal(signal.SIGKILL)
        seconds = await _gone(pids, limit=2 * _GONE_SECONDS)
        await asyncio.gather(*streams.asking)
    return Outcome(
        checks=(at_most("last process gone after, s", seconds, _GONE_SECONDS),),
        figures={"processes": len(pids)},
    )


async def drain(effort: Effort) -> Outcome:
    """SIGTERM under load."""
    del effort
    async with serving() as daemon:
        streams = _Streams(daemon.url, _STREAMS)
        await asyncio.wait_for(streams.begun.wait(), 60)
        pids = daemon.processes()
        daemon.signal(signal.SIGTERM)
        told = time.perf_counter()
        not_ready, refused = await _refusals(daemon)
        answers = await asyncio.gather(*streams.asking)
        status = await asyncio.wait_for(daemon.process.wait(), 90)
        left = await _gone(pids, limit=_GONE_SECONDS)
    whole = sum(answer.good and answer.completion_tokens == _TOKENS for answer in answers)
    return Outcome(
        checks=(
            none("truncated streams", _STREAMS - whole),
            at_most("not ready after, s", not_ready - told, 1.0),
            at_least("newcomers refused with 503", refused, 1),
            none("exit status", abs(status)),
            at_most("last process gone after, s", left, _GONE_SECONDS),
        ),
        figures={
            "drained in, s": round(max(answer.ended for answer in answers) - told, 2),
            "what went wrong": "; ".join(a.why() for a in answers if not a.good)[:500],
        },
    )


async def _refusals(daemon: Daemon) -> tuple[float, int]:
    """When /readyz said that it drains (inf: never), and whether a newcomer then got its 503."""
    deadline = time.perf_counter() + 10
    with contextlib.suppress(OSError, EOFError, TimeoutError):
        while time.perf_counter() < deadline:
            status, _ = await get(daemon.url, "/readyz")
            if status == 503:
                seen = time.perf_counter()
                newcomer = await ask(daemon.url, "/v1/completions", {"prompt": "a"})
                return seen, int(newcomer.status == 503)
    return float("inf"), 0


async def _gone(pids: list[int], *, limit: float) -> float:
    """Seconds until none of them is alive; inf where `limit` was not enough."""
    began = time.perf_counter()
    while any(map(alive, pids)):
        if time.perf_counter() - began > limit:
            return float("inf")
        await asyncio.sleep(0.01)
    return time.perf_counter() - began
