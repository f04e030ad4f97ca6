"""`AsyncEngine`: the front end's handle on an engine that runs elsewhere. No torch.

It submits requests, hands each one its deltas (one wake-up per step), and aborts what nobody
listens to any more. When the engine process dies it starts another and re-submits every live
request with what it already emitted: the sampler is stateless, so each stream goes on with the
very next token and no client notices.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

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
from .errors import (
    ConfigError,
    DeadlineExceeded,
    Draining,
    EngineDead,
    EngineError,
    RequestError,
)
from .executor.base import Capacity
from .executor.base import Progress as OnProgress
from .live_request import LiveRequest
from .params import Request
from .step import Delta, StepStats, failure_of
from .supervisor import STOP_GRACE_SECONDS, EngineHost, Launch, RestartPolicy

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Whether requests can be served, and in words what is going on if not."""

    stage: str  # starting | ready | restarting | stopping | dead
    detail: str = ""

    @property
    def ready(self) -> bool:
        return self.stage == "ready"

    @property
    def accepting(self) -> bool:
        """Whether a request may be handed over: now, or to wait for a restart."""
        return self.stage in ("ready", "restarting")


class AsyncEngine:
    """Use it from one event loop. `start` before anything else, `stop` at the end."""

    def __init__(
        self,
        launch: Launch,
        *,
        host: EngineHost | None = None,
        restarts: RestartPolicy | None = None,
    ) -> None:
        """`host` is a first incarnation that was launched early, while others still imported."""
        self._launch = launch
        self._first = host
        self._restarts = restarts or RestartPolicy()
        self._channel: AsyncChannel | None = None
        self._host: EngineHost | None = None
        self._supervising: asyncio.Task[None] | None = None
        self._listeners: dict[str, LiveRequest] = {}
        self._observers: list[Callable[[StepStats], None]] = []
        self._capacity: Capacity | None = None
        self._completed_steps = False  # by this incarnation
        self.restarts = 0
        self.resumed_requests = 0
        self.status = EngineStatus("starting", "launched" if host else "not launched yet")
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
        try:
            await self._bring_up(self._first or self._launch(0), progress)
        except (ConfigError, EngineDead) as error:
            self.status = EngineStatus("dead", str(error))
            raise
        self._supervising = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Deltas of all choices, in the order they are made, until each choice has ended.

        Leaving the iterator early (break, close, cancellation) aborts what still runs.

        Raises:
            EngineDead: the engine is not there, or went away for good.
            Draining: `stop` was called.
            DeadlineExceeded: the request's deadline came first.
            SequenceFailed: a choice of this request could not be computed.
            Unsatisfiable: the request's own rules leave no token to choose, or its grammar is
                too costly to follow.
        """
        if not self.status.accepting:
            raise EngineDead(f"The engine is {self.status.stage}: {self.status.detail}.")
        listener = LiveRequest(request)
        self._listeners[request.id] = listener
        if self.status.ready:
            self._send(Submit((request,)))
        expiry = self._expire(listener)
        try:
            while deltas := await listener.take():
                for delta in deltas:
                    if delta.error is not None:
                        raise failure_of(delta.error)
                    yield delta
        finally:
            if expiry is not None:
                expiry.cancel()
            del self._listeners[request.id]
            if not (listener.ended or listener.failed):
                self._send(Abort(request.id))

    def finish_choice(self, request_id: str, index: int) -> None:
        """Stop one choice of a live request (its stop string was found); no delta follows."""
        listener = self._listeners.get(request_id)
        if listener is not None and not listener.choices[index].finished:
            listener.finish(index)
            self._send(Abort(request_id, index))

    async def gone(self) -> None:
        """Returns when the engine has ended for good: stopped, or not to be restarted."""
        if self._supervising is not None:
            await asyncio.wait((self._supervising,))

    async def stop(self) -> None:
        """End the engine; what is still live fails with Draining. Idempotent."""
        was_ready = self.status.ready
        self.status = EngineStatus("stopping", "the daemon is shutting down")
        self._send(Shutdown())
        if self._supervising is not None and not was_ready:
            self._supervising.cancel()  # it may be starting the next incarnation
        if self._host is not None:
            # An engine that loads a model reads nothing: there is nothing to wait for.
            await asyncio.to_thread(self._host.stop, STOP_GRACE_SECONDS if was_ready else 0.0)
        await self.gone()
        self._fail_all(Draining("The daemon is being shut down."))
        if self._channel is not None:
            await self._channel.close()

    def _expire(self, listener: LiveRequest) -> asyncio.TimerHandle | None:
        """End a request at its deadline, whether or not somebody is reading its deltas."""
        deadline = listener.request.deadline
        if deadline is None:
            return None
        loop = asyncio.get_running_loop()
        seconds = max(0.0, deadline - time.monotonic())
        return loop.call_later(seconds, self._give_up, listener, DeadlineExceeded())

    def _give_up(self, listener: LiveRequest, failure: RequestError) -> None:
        if not (listener.ended or listener.failed):
            listener.fail(failure)
            self._send(Abort(listener.request.id))

    def _send(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(message)

    async def _bring_up(self, host: EngineHost, progress: OnProgress) -> None:
        """Wait until an incarnation is ready, then give it every live request."""
        self._host = host
        self._completed_steps = False
        channel = self._channel = await AsyncChannel.open(host.socket, epoch=host.epoch)
        ready = False
        while not ready:
            try:
                message = await channel.receive()
            except EOFError:
                await asyncio.to_thread(host.stop)
                raise EngineDead(f"The engine did not start: it {host.ending()}.") from None
            match message:
                case Progress(stage, done, total):
                    self.status = EngineStatus(self.status.stage, stage)
                    progress(stage, done, total)
                case Notice(level, text):
                    log.log(level, "%s", text)
                case Ready(capacity):
                    self._capacity = capacity
                    ready = True
                case Fatal(name, text):
                    await asyncio.to_thread(host.stop)
                    raise _fatal(name, text)
                case _:
                    await asyncio.to_thread(host.stop)
                    raise EngineDead(f"A starting engine sends no {type(message).__name__}.")
        self.status = EngineStatus("ready")
        requests = tuple(live.resumed() for live in self._listeners.values() if not live.failed)
        self.resumed_requests += len(requests)
        if requests:
            channel.send(Submit(requests))

    async def _supervise(self) -> None:
        """Read from one incarnation after the other until stopped, or until it makes no sense."""
        while True:
            why = await self._read()
            if self.status.stage == "stopping":
                return
            log.error("the engine %s", why)
            while (
                delay := self._restarts.delay(
                    completed_steps=self._completed_steps, now=time.monotonic()
                )
            ) is not None:
                self.status = EngineStatus("restarting", f"the engine {why}")
                await asyncio.sleep(delay)
                self.restarts += 1
                try:
                    await self._bring_up(self._launch(self.restarts), lambda *_: None)
                    break
                except (ConfigError, EngineDead) as error:
                    why = f"could not be restarted: {str(error).rstrip('.')}"
                    log.error("the engine %s", why)
            else:
                log.error("the engine is given up: it died again and again without a step")
                self.status = EngineStatus("dead", why)
                self._fail_all(EngineDead(f"The engine is gone: it {why}."))
                return

    async def _read(self) -> str:
        """Deliver what an incarnation sends until it is gone; returns why it is."""
        assert self._channel is not None
        assert self._host is not None
        told = None
        try:
            while True:
                match await self._channel.receive():
                    case StepReport(deltas, stats):
                        self._deliver(deltas, stats)
                    case Notice(level, text):
                        log.log(level, "%s", text)
                    case Fatal(_, text):
                        told = f"ended: {text}"
                    case message:
                        raise TypeError(f"a running engine sends no {type(message).__name__}")
        except EOFError:
            await self._channel.close()
            await asyncio.to_thread(self._host.stop)
            return told or self._host.ending() or "closed its channel"
        except Exception as error:  # it cannot be understood: another incarnation may do better
            log.exception("the engine talks nonsense")
            await self._channel.close()
            await asyncio.to_thread(self._host.stop)
            return f"talked nonsense ({error})"

    def _deliver(self, deltas: tuple[Delta, ...], stats: StepStats) -> None:
        self._completed_steps = True
        self.stats = stats
        for observer in self._observers:
            try:
                observer(stats)
            except Exception:  # wrong statistics cost no stream
                log.exception("an observer of the engine's steps failed")
        woken: dict[str, LiveRequest] = {}
        for delta in deltas:
            listener = self._listeners.get(delta.request_id)
            if listener is not None:
                listener.arrive(delta)
                woken[delta.request_id] = listener
        for listener in woken.values():
            listener.wake()

    def _fail_all(self, failure: EngineError) -> None:
        for listener in self._listeners.values():
            listener.fail(failure)


def _fatal(name: str, text: str) -> ConfigError | EngineDead:
    """The error a dying engine named, as one of ours."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ConfigError):
        return kind(text)
    return EngineDead(text)
