"""`AsyncEngine`: the front end's handle on an engine that runs elsewhere. No torch.

It submits requests, hands each one its deltas (one wake-up per step), and aborts what nobody
listens to any more. When the engine process dies it starts another and re-submits every live
request with what it already emitted: the sampler is stateless, so each stream goes on with the
very next token and no client notices. About once a second, while there is work, it looks at the
engine's heartbeat and calls the roll of its requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from .channel import Abort, Message, Missing, Shutdown, StepReport, Submit
from .errors import (
    ConfigError,
    DeadlineExceeded,
    Draining,
    EngineDead,
    ReaderTooSlow,
    RequestError,
)
from .executor.base import Capacity
from .executor.base import Progress as OnProgress
from .heartbeat import Beat
from .incarnation import Incarnation
from .live_request import LiveRequest
from .params import Request
from .request_table import RequestTable
from .step import Delta, StepStats, failure_of
from .supervisor import STOP_GRACE_SECONDS, EngineHost, Launch, RestartPolicy
from .watch import HANG_SECONDS, LOOK_SECONDS, Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Whether requests can be served, and in words what is going on if not."""

    stage: str  # starting | ready | stalled | restarting | stopping | dead
    detail: str = ""

    @property
    def ready(self) -> bool:
        return self.stage == "ready"

    @property
    def up(self) -> bool:
        """Whether an engine is there, be it one that makes no progress just now."""
        return self.stage in ("ready", "stalled")

    @property
    def accepting(self) -> bool:
        """Whether a request may be handed over: now, or to wait for a restart."""
        return self.up or self.stage == "restarting"


class AsyncEngine:
    """Use it from one event loop. `start` before anything else, `stop` at the end."""

    def __init__(
        self,
        launch: Launch,
        *,
        host: EngineHost | None = None,
        restarts: RestartPolicy | None = None,
        hang_timeout: float = HANG_SECONDS,
        look_seconds: float | None = None,
    ) -> None:
        """
        Args:
            host: a first incarnation that was launched early, while others still imported.
            hang_timeout: seconds without progress that any step may take.
            look_seconds: between two looks at an engine that has work. None: one, or a tenth of
                the hang timeout where that is less.
        """
        self._launch = launch
        self._first = host
        self._restarts = restarts or RestartPolicy()
        self._hang_timeout = hang_timeout
        if look_seconds is None:
            look_seconds = min(LOOK_SECONDS, hang_timeout / 10)
        self._look_seconds = look_seconds
        self._incarnation: Incarnation | None = None
        self._supervising: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._table = RequestTable()
        self._busy = asyncio.Event()  # somebody listens, or the engine has work
        self._observers: list[Callable[[StepStats], None]] = []
        self._capacity: Capacity | None = None
        self.restarts = 0
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
        return len(self._table)

    @property
    def resumed_requests(self) -> int:
        """How often a request was given to an engine that had been given to an earlier one."""
        return self._table.resumed

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last sign of life; 0 while none is owed."""
        if self._incarnation is None or not (self.status.up and self._table.awaited):
            return 0.0
        return max(0.0, time.monotonic() - self._incarnation.beat.at)

    def on_step(self, observer: Callable[[StepStats], None]) -> None:
        """Call `observer` with the statistics of every step from now on."""
        self._observers.append(observer)

    async def start(self, progress: OnProgress) -> None:
        """Launch the engine and wait until it is ready.

        Raises:
            ConfigError: the checkpoint or the machine does not allow it to start.
            EngineDead: it ended for another reason.
        """
        host, self._first = self._first or self._launch(0), None
        try:
            await self._bring_up(host, progress)
        except (ConfigError, EngineDead) as error:
            self.status = EngineStatus("dead", str(error))
            raise
        self._supervising = asyncio.create_task(self._supervise(), name="engine supervisor")
        self._watching = asyncio.create_task(self._keep_watch(), name="engine watch")

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Deltas of all choices, in the order they are made, until each choice has ended.

        Leaving the iterator early (break, close, cancellation) aborts what still runs.

        Raises:
            EngineDead: the engine is not there, or went away for good.
            Draining: `stop` was called.
            DeadlineExceeded: the request's deadline came first.
            ReaderTooSlow: too many deltas were not taken.
            RequestGivenUp: the engine died of it again and again.
            SequenceFailed: a choice of this request could not be computed.
            Unsatisfiable: the request's own rules leave no token to choose, or its grammar is
                too costly to follow.
        """
        if not self.status.accepting:
            raise EngineDead(f"The engine is {self.status.stage}: {self.status.detail}.")
        listener = self._table.open(request)
        self._busy.set()
        self._submit()
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
            if self._table.close(listener):
                self._send(Abort(request.id))
            self._submit()  # somebody may have waited for the end of a suspect

    def finish_choice(self, request_id: str, index: int) -> None:
        """Stop one choice of a live request (its stop string was found); no delta follows."""
        listener = self._table.find(request_id)
        if listener is not None and not listener.choices[index].finished:
            listener.finish(index)
            self._send(Abort(request_id, index))

    async def gone(self) -> None:
        """Returns when the engine has ended for good: stopped, or not to be restarted."""
        if self._supervising is not None:
            await asyncio.wait((self._supervising,))

    async def stop(self) -> None:
        """End the engine; what is still live fails with Draining. Idempotent."""
        was_up = self.status.up
        self.status = EngineStatus("stopping", "the daemon is shutting down")
        if self._watching is not None:
            self._watching.cancel()
        self._send(Shutdown())
        if self._supervising is not None and not was_up:
            self._supervising.cancel()  # it may be starting the next incarnation
        if self._incarnation is not None:
            # An engine that loads a model reads nothing: there is nothing to wait for.
            await self._incarnation.stop(STOP_GRACE_SECONDS if was_up else 0.0)
        await self.gone()
        self._table.fail_all(Draining("The daemon is being shut down."))
        if self._incarnation is not None:
            await self._incarnation.close()

    def _expire(self, listener: LiveRequest) -> asyncio.TimerHandle | None:
        """End a request at its deadline, whether or not somebody is reading its deltas."""
        deadline = listener.request.deadline
        if deadline is None:
            return None
        loop = asyncio.get_running_loop()
        seconds = max(0.0, deadline - time.monotonic())
        return loop.call_later(seconds, self._give_up, listener, DeadlineExceeded())

    def _give_up(self, listener: LiveRequest, failure: RequestError) -> None:
        if not listener.over:
            listener.fail(failure)
            self._send(Abort(listener.request.id))

    def _send(self, message: Message) -> None:
        if self._incarnation is not None:
            self._incarnation.send(message)

    def _submit(self) -> None:
        """Give the engine what it may have now."""
        if self.status.up and (due := self._table.due()):
            self._send(Submit(due))

    async def _bring_up(self, host: EngineHost, progress: OnProgress) -> None:
        """Wait until an incarnation is ready, then give it what is live."""

        def on_progress(stage: str, done: int, total: int) -> None:
            self.status = EngineStatus(self.status.stage, stage)
            progress(stage, done, total)

        watch = Watch(patience=self._hang_timeout, interval=self._look_seconds)
        self._incarnation = await Incarnation.meet(host, watch)
        self._capacity = await self._incarnation.started(on_progress)
        self.status = EngineStatus("ready")
        self._submit()

    async def _supervise(self) -> None:
        """Read from one incarnation after the other until stopped, or until it makes no sense."""
        while True:
            assert self._incarnation is not None
            await self._read(self._incarnation)
            if self.status.stage != "stopping":
                self.status = EngineStatus("restarting", "the engine has ended")
            why = await self._incarnation.end()
            if self.status.stage == "stopping":
                return
            log.error("the engine %s", why)
            if not await self._restart(why, self._incarnation.beat):
                return

    async def _read(self, incarnation: Incarnation) -> None:
        """Deliver what an incarnation sends until it is gone."""
        async for message in incarnation.messages():
            try:
                self._take(message)
            except Exception as error:  # another one may make more sense
                log.exception("the engine talks nonsense")
                incarnation.condemn(f"talked nonsense ({error})")

    def _take(self, message: StepReport | Missing) -> None:
        match message:
            case StepReport(deltas, stats):
                self._observe(stats)
                for slow in self._table.deliver(deltas):
                    self._give_up(slow, _too_slow(slow))
                if self._table.suspicious:
                    self._submit()  # a suspect may have been cleared
            case Missing():
                if lost := self._table.miss(message):  # others had just ended
                    log.warning("the engine has lost %d requests; it is given them again", lost)
                    self._submit()

    async def _restart(self, why: str, last: Beat) -> bool:
        """Start another incarnation; False when there is no sense in it."""
        verdict = self._table.engine_died(last)
        if verdict.convicted is not None:
            log.error(
                "request %s is given up: the engine died of it %d times",
                verdict.convicted,
                verdict.deaths,
            )
        elif self._table.suspicious:
            log.warning("a request may be what ends the engine: suspects are let in by halves")
        narrowed = verdict.narrowed and verdict.convicted is None
        completed = last.completed > 0
        while (
            delay := self._restarts.delay(
                completed_steps=completed, narrowed=narrowed, now=time.monotonic()
            )
        ) is not None:
            self.status = EngineStatus("restarting", f"the engine {why}")
            await asyncio.sleep(delay)
            self.restarts += 1
            try:
                await self._bring_up(self._launch(self.restarts), lambda *_: None)
                return True
            except (ConfigError, EngineDead, OSError) as error:
                why = f"could not be restarted: {str(error).rstrip('.')}"
                log.error("the engine %s", why)
                completed = narrowed = False
        log.error("the engine is given up: it died again and again without a step")
        self.status = EngineStatus("dead", why)
        self._table.fail_all(EngineDead(f"The engine is gone: it {why}."))
        return False

    def _observe(self, stats: StepStats) -> None:
        self.stats = stats
        if stats.sequences:
            self._busy.set()
        for observer in self._observers:
            try:
                observer(stats)
            except Exception:  # wrong statistics cost no stream
                log.exception("an observer of the engine's steps failed")

    async def _keep_watch(self) -> None:
        """Look after the engine as long as there is work; costs nothing while there is none."""
        while True:
            await self._busy.wait()
            await asyncio.sleep(self._look_seconds)
            if self.status.up and self._incarnation is not None:
                try:
                    self._look(self._incarnation)
                except Exception:  # the next look may be luckier
                    log.exception("the engine could not be looked at")
            if not (len(self._table) or self.stats.sequences):
                self._busy.clear()

    def _look(self, incarnation: Incarnation) -> None:
        strange = incarnation.look(awaited=self._table.awaited)
        self.status = EngineStatus("stalled", f"it {strange}") if strange else EngineStatus("ready")
        if incarnation.age > self._table.patience:
            self._table.relent()
            self._submit()
        self._send(self._table.roll_call())


def _too_slow(live: LiveRequest) -> ReaderTooSlow:
    log.warning(
        "request %s is given up: its client reads too slowly, %d tokens and log-probabilities wait",
        live.request.id,
        live.unread,
    )
    return ReaderTooSlow("The stream was ended because its client did not read what was sent.")
