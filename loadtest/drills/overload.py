"""Ten times what the daemon can do, in an open loop: it must do what it can, and say no quickly."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..client import Client
from ..events import Exchange, read
from ..wire import Transcript
from .answer import get
from .daemon import Daemon, serving
from .effort import Effort
from .verdict import Outcome, at_least, at_most, none

_PROMPT, _OUTPUT = 64, 128  # tokens
_TIMES = 10.0
_CLIENTS = 64  # of the closed loop that finds the peak
_QUEUE = 64
_WARM_UP = 0.25  # of the time, not counted
_LAST_ANSWERS_SECONDS = 300.0  # after the last request
_REFUSED = (429, 503)


async def overload(effort: Effort) -> Outcome:
    draw = random.Random(effort.seed)
    queue = ("--max-queue-requests", str(_QUEUE))
    async with serving("--max-num-seqs", str(_CLIENTS), "--kv-memory", "512MiB", *queue) as daemon:
        peaks = [await _peak(daemon, effort.overload_seconds / 2, draw)]
        health = _Health(daemon)
        watching = asyncio.create_task(health.watch())
        rate = _TIMES * peaks[0] / _OUTPUT
        flood = _Flood.drawn(daemon.url, rate, effort.overload_seconds, draw)
        began, cpu = time.perf_counter(), time.process_time()
        answers = await flood.send(daemon.url)
        client_share = (time.process_time() - cpu) / (time.perf_counter() - began)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        idle = await daemon.idle_after(10.0)
        # On both sides of the overload: other work on the machine is to weigh on both figures.
        peaks.append(await _peak(daemon, effort.overload_seconds / 2, draw))
    peak = sum(peaks) / 2
    good, refused, others = _told_apart(answers)
    goodput = rate_of(good, began, effort.overload_seconds)
    return Outcome(
        checks=(
            at_least("goodput over peak", goodput / peak, 0.9),
            at_most(
                "refusals p95, ms", 1e3 * share([a.ended - a.sent for a in refused], 0.95), 50.0
            ),
            at_least("refusals", len(refused), 1),
            none(
                "refusals without Retry-After",
                sum(b"retry-after" not in a.headers for a in refused),
            ),
            none("other answers, or none", len(others)),
            none("looks at /health that were not 200", health.bad),
            none("daemons not idle afterwards", int(idle == float("inf"))),
        ),
        figures={
            "peak before, output tokens/s": round(peaks[0], 1),
            "peak after, output tokens/s": round(peaks[1], 1),
            "goodput, output tokens/s": round(goodput, 1),
            "offered, requests/s": round(rate, 1),
            "this client's share of a core": round(client_share, 2),
            "sent": len(answers),
            "served": len(good),
            "/health p95, ms": round(1e3 * share(health.seconds, 0.95), 1),
            "/health slowest, ms": round(1e3 * share(health.seconds, 1.0), 1),
            "TTFT p95 of served, s": round(share([a.ttft for a in good], 0.95), 3),
            "examples": "; ".join(map(_why, others[:3]))[:500],
        },
    )


def share(values: Sequence[float], part: float) -> float:
    """The value that `part` of all are not above; nan where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def rate_of(good: Sequence[Exchange], began: float, seconds: float) -> float:
    """Output tokens a second of whole answers, after the warm-up; each answer's tokens come
    evenly between its first and its last event, or at once where it was read whole."""
    first, last = began + _WARM_UP * seconds, began + seconds
    tokens = 0.0
    for answer in good:
        begun, took = answer.arrivals[0], answer.ended - answer.arrivals[0]
        within = min(last, answer.ended) - max(first, begun)
        tokens += _OUTPUT * (max(0.0, within) / took if took > 0 else first <= begun < last)
    return tokens / (last - first)


def _request(url: str, draw: random.Random) -> bytes:
    body: dict[str, object] = {
        "prompt": [draw.randint(300, 3900) for _ in range(_PROMPT)],
        "max_tokens": _OUTPUT,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    return Client(url).request("/v1/completions", body)


def _told_apart(
    answers: Sequence[Transcript],
) -> tuple[list[Exchange], list[Transcript], list[Transcript]]:
    """What was served, what was refused, and all others."""
    good, refused, others = [], [], []
    for answer in answers:
        if answer.status in _REFUSED and answer.error is None:
            refused.append(answer)
        elif (exchange := read(answer)).good:
            good.append(exchange)
        else:
            others.append(answer)
    return good, refused, others


def _why(answer: Transcript) -> str:
    """What is wrong with it, in a few words."""
    return read(answer).error or f"status {answer.status}, {answer.body[:200]!r}"


async def _answer(url: str, request: bytes) -> Transcript:
    """To a request over a connection of its own. It is only kept, and understood when all is over:
    what the client costs, the daemon lacks."""
    client = Client(url)
    answer = Transcript(sent=time.perf_counter())
    began = answer.sent
    await client.send_bytes(request, answer)
    client.close()
    answer.sent = began  # it counts how long connecting takes
    return answer


async def _peak(daemon: Daemon, seconds: float, draw: random.Random) -> float:
    """Output tokens a second with all clients always waiting for an answer."""
    began = time.perf_counter()
    answers: list[Transcript] = []

    async def client() -> None:
        while time.perf_counter() - began < seconds:
            answers.append(await _answer(daemon.url, _request(daemon.url, draw)))

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    good, refused, others = _told_apart(answers)
    if refused or others:
        raise ValueError(f"requests fail without overload: {_why([*others, *refused][0])}")
    return rate_of(good, began, seconds)


@dataclass(frozen=True, slots=True)
class _Flood:
    """Requests and when they are sent, in seconds from its beginning."""

    requests: Sequence[tuple[float, bytes]]

    @classmethod
    def drawn(cls, url: str, rate: float, seconds: float, draw: random.Random) -> _Flood:
        """At random moments, `rate` a second (a Poisson process)."""
        requests = []
        due = 0.0
        while due < seconds:
            requests.append((due, _request(url, draw)))
            due += draw.expovariate(rate)
        return cls(requests)

    async def send(self, url: str) -> list[Transcript]:
        """Whatever becomes of the earlier ones."""
        asking: list[asyncio.Task[Transcript]] = []
        began = time.perf_counter()
        for due, request in self.requests:
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            asking.append(asyncio.create_task(_answer(url, request)))
        async with asyncio.timeout(_LAST_ANSWERS_SECONDS):
            return list(await asyncio.gather(*asking))


class _Health:
    """Looks at /health all the time."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.seconds: list[float] = []
        self.bad = 0

    async def watch(self) -> None:
        while True:
            began = time.perf_counter()
            status = 0
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                status, _ = await get(self._daemon.url, "/health")
            self.bad += status != 200
            self.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(0.1)
