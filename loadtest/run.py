"""Send workloads to a server and keep what comes back; figures are made when all is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

from .client import Client
from .events import Exchange, read
from .wire import Transcript
from .workload import Asking, Workload

_Result = TypeVar("_Result")
_WATCH_SECONDS = 0.005  # how often one workload looks how far the others have come


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server and how to ask it. `base_url` is its root, as in http://127.0.0.1:8000."""

    base_url: str
    asking: Asking
    api_key: str | None = None

    def client(self) -> Client:
        return Client(self.base_url, self.api_key)


@dataclass(slots=True, kw_only=True)
class Measurement:
    """What one run saw: the exchanges of each workload by its name. Seconds of one clock."""

    began: float = 0.0
    seconds: float = 0.0
    client_cpu: float = 0.0  # seconds of processor time that this process used
    exchanges: dict[str, list[Exchange]] = field(default_factory=dict)

    @property
    def all(self) -> list[Exchange]:
        return [exchange for some in self.exchanges.values() for exchange in some]


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a measurement on the faster event loop."""
    return uvloop.run(main)


async def measure(
    workloads: Sequence[Workload],
    target: Target,
    *,
    on_done: Callable[[], None] | None = None,
) -> Measurement:
    """Send every request of every workload, side by side, and read the answers.

    `on_done` is called as each exchange ends, for a progress bar. The client's processor time is
    that of the whole process between the first request and the last answer.
    """
    running = [_Running(workload, target, on_done) for workload in workloads]
    for one in running:
        one.others = [other for other in running if other is not one]
    began, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for one in running:
            tasks.create_task(one.send_all())
    result = Measurement(
        began=began,
        seconds=time.perf_counter() - began,
        client_cpu=time.process_time() - cpu,
    )
    for one in running:
        result.exchanges[one.workload.name] = [read(each) for each in one.transcripts]
    return result


class _Running:
    """One workload on its way. Requests are made into bytes before the clock starts."""

    def __init__(
        self, workload: Workload, target: Target, on_done: Callable[[], None] | None
    ) -> None:
        self.workload = workload
        self.transcripts: list[Transcript] = []
        self.others: list[_Running] = []
        self._target = target
        self._on_done = on_done
        maker, path = target.client(), target.asking.path
        self._requests = [maker.request(path, body) for body in workload.bodies(target.asking)]
        self._idle: list[Client] = []

    async def send_all(self) -> None:
        while self.workload.after_pieces > sum(other.pieces for other in self.others):
            if all(other.done for other in self.others):
                break
            await asyncio.sleep(_WATCH_SECONDS)
        try:
            if self.workload.rate is None:
                await self._closed_loop()
            else:
                await self._open_loop()
        finally:
            for client in self._idle:
                client.close()

    @property
    def pieces(self) -> int:
        return sum(len(transcript.pieces) for transcript in self.transcripts)

    @property
    def done(self) -> bool:
        ended = sum(transcript.ended > 0 for transcript in self.transcripts)
        return ended == len(self._requests)

    async def _closed_loop(self) -> None:
        left = iter(self._requests)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self.workload.concurrency, len(self._requests))):
                tasks.create_task(self._client_loop(left))

    async def _client_loop(self, left: Iterator[bytes]) -> None:
        client = self._target.client()
        self._idle.append(client)
        for request in left:  # shared: each request goes to the client that is free first
            await self._send(client, request)

    async def _open_loop(self) -> None:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for due, request in zip(self.workload.arrivals(), self._requests, strict=True):
                await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
                tasks.create_task(self._send_due(request, began + due))

    async def _send_due(self, request: bytes, due: float) -> None:
        client = self._idle.pop() if self._idle else self._target.client()
        transcript = await self._send(client, request)
        transcript.sent = due  # a late client must not make the server look faster
        self._idle.append(client)

    async def _send(self, client: Client, request: bytes) -> Transcript:
        transcript = Transcript(sent=time.perf_counter())
        self.transcripts.append(transcript)
        await client.send_bytes(request, transcript)
        if self._on_done is not None:
            self._on_done()
        return transcript
