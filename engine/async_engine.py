"""`AsyncEngine`: the front end's handle on an engine that runs elsewhere. No torch.

It submits requests, hands each one its deltas (one wake-up per step), and aborts what nobody
listens to any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from . import errors
from .channel import (
    Abort,
    AsyncChannel,
    Fatal,
    Message,
    Notice,
    Progress,
    Ready,
    Shutdown,
    StepReport,
    Submit,
)
from .errors import ConfigError, EngineDead, SequenceFailed
from .executor.base import Capacity
from .executor.base import Progress as OnProgress
from .params import Request
from .step import Delta, StepStats
from .supervisor import EngineHost, Launch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Whether requests can be served, and in words what is going on if not."""

    stage: str  # starting | ready | stopping | dead
    detail: str = ""

    @property
    def ready(self) -> bool:
        return self.stage == "ready"


@dataclass(slots=True, eq=False)
class _Listener:
    """One live request: the deltas that arrived, and who waits for them."""

    request: Request
    open_choices: int
    arrived: list[Delta] = field(default_factory=list)
    failure: EngineDead | None = None
    waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def take(self) -> list[Delta]:
        """Everything that has arrived; waits for the first."""
        while not self.arrived and self.failure is None:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        if not self.arrived and self.failure is not None:
            raise self.failure
        arrived, self.arrived = self.arrived, []
        return arrived


class AsyncEngine:
    """Use it from one event loop. `start` before anything else, `stop` at the end."""

    def __init__(self, launch: Launch, *, host: EngineHost | None = None) -> None:
        """`host` is a first incarnation that was launched early, while others still imported."""
        self._launch = launch
        self._host = host
        self._channel: AsyncChannel | None = None
        self._reader: asyncio.Task[None] | None = None
        self._listeners: dict[str, _Listener] = {}
        self._observers: list[Callable[[StepStats], None]] = []
        self._capacity: Capacity | None = None
        self.status = EngineStatus("starting", "not launched yet")
        self.stats = StepStats()

    @property
    def capacity(self) -> Capacity:
        """Raises EngineDead until the engine has been ready once."""
        if self._capacity is None:
            raise EngineDead(f"The engine is not ready yet: {self.status.detail}.")
        return self._capacity

    @property
    def live_requests(self) -> int:
        """Requests somebody listens to: the front end's own count of pending work."""
        return len(self._listeners)

    def on_step(self, observer: Callable[[StepStats], None]) -> None:
        """Call `observer` with the statistics of every step from now on."""
        self._observers.append(observer)

    async def start(self, progress: OnProgress) -> None:
        """Launch the engine and wait until it is ready.

        Raises:
            ConfigError: the checkpoint or the machine does not allow it to start.
            EngineDead: it ended for another reason.
        """
        host = self._host = self._host or self._launch(0)
        self._channel = await AsyncChannel.open(host.socket, epoch=host.epoch)
        self.status = EngineStatus("starting", "loading")
        try:
            while self._capacity is None:
                self._on_starting(await self._channel.receive(), progress)
        except EOFError:
            await self._died(host)
            raise EngineDead(f"The engine did not start: {self.status.detail}.") from None
        except ConfigError as error:
            self.status = EngineStatus("dead", str(error))
            raise
        self.status = EngineStatus("ready")
        self._reader = asyncio.create_task(self._read(host, self._channel), name="engine reader")

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Deltas of all choices, in the order they are made, until each choice has ended.

        Leaving the iterator early (break, close, cancellation) aborts what still runs.

        Raises:
            EngineDead: the engine is not there, or went away.
            SequenceFailed: a choice of this request could not be computed.
        """
        if not self.status.ready or self._channel is None:
            raise EngineDead(f"The engine is {self.status.stage}: {self.status.detail}.")
        done = sum(choice.finished for choice in request.emitted)
        listener = _Listener(request, open_choices=request.sampling.n - done)
        self._listeners[request.id] = listener
        self._channel.send(Submit((request,)))
        try:
            while listener.open_choices > 0:
                for delta in await listener.take():
                    if delta.error is not None:
                        raise SequenceFailed(delta.error)
                    if delta.last:
                        listener.open_choices -= 1
                    yield delta
        finally:
            del self._listeners[request.id]
            if listener.open_choices > 0:
                self._channel.send(Abort(request.id))

    def finish_choice(self, request_id: str, index: int) -> None:
        """Stop one choice of a live request (its stop string was found); no delta follows."""
        listener = self._listeners.get(request_id)
        if listener is not None and self._channel is not None:
            listener.open_choices -= 1
            listener.arrived = [d for d in listener.arrived if d.index != index]
            listener.wake()
            self._channel.send(Abort(request_id, index))

    async def stop(self) -> None:
        """End the engine; what is still live fails with EngineDead. Idempotent."""
        self.status = EngineStatus("stopping", "the daemon is shutting down")
        if self._channel is not None:
            self._channel.send(Shutdown())
        if self._host is not None:
            await asyncio.to_thread(self._host.stop)
        if self._reader is not None:
            await self._reader
        if self._channel is not None:
            await self._channel.close()

    def _on_starting(self, message: Message, progress: OnProgress) -> None:
        match message:
            case Progress(stage, done, total):
                self.status = EngineStatus("starting", stage)
                progress(stage, done, total)
            case Notice(level, text):
                log.log(level, "%s", text)
            case Ready(capacity):
                self._capacity = capacity
            case Fatal(name, text):
                kind = getattr(errors, name, EngineDead)
                raise kind(text) if issubclass(kind, ConfigError) else EngineDead(text)
            case _:
                raise TypeError(f"a starting engine sends no {type(message).__name__}")

    async def _read(self, host: EngineHost, channel: AsyncChannel) -> None:
        try:
            while True:
                match await channel.receive():
                    case StepReport(deltas, stats):
                        self._deliver(deltas, stats)
                    case Notice(level, text):
                        log.log(level, "%s", text)
                    case Fatal(_, text):
                        self.status = EngineStatus("dead", text)
                    case message:
                        raise TypeError(f"a running engine sends no {type(message).__name__}")
        except EOFError:
            await self._died(host)

    def _deliver(self, deltas: tuple[Delta, ...], stats: StepStats) -> None:
        self.stats = stats
        for observer in self._observers:
            observer(stats)
        woken: dict[str, _Listener] = {}
        for delta in deltas:
            listener = self._listeners.get(delta.request_id)
            if listener is not None:
                listener.arrived.append(delta)
                woken[delta.request_id] = listener
        for listener in woken.values():
            listener.wake()

    async def _died(self, host: EngineHost) -> None:
        await asyncio.to_thread(host.stop)
        why = host.ending() or "its channel closed"
        if self.status.stage != "stopping":
            self.status = EngineStatus("dead", self.status.detail or f"the engine {why}")
            log.error("engine: %s", why)
        for listener in self._listeners.values():
            listener.failure = EngineDead(f"The engine is gone: it {why}.")
            listener.wake()
