"""`Engine`: the loop that ties planning to compute, and `serve`, which ties it to a channel.

A step: while fewer than the allowed plans are in flight and the scheduler has one, submit it;
then collect the oldest and commit it. With an overlap of 0 that is plan, compute, commit; with 1
the host plans step k + 1 while the device computes step k.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace
from typing import Protocol

from .channel import Abort, Message, Shutdown, StepReport, Submit
from .executor.base import Executor
from .params import Request, SamplingParams
from .scheduler.scheduler import Scheduler
from .step import StepOutput, StepPlan, StepStats

log = logging.getLogger(__name__)

_MOMENT = 0.002  # seconds
_STEP_FAILED = (
    "The engine failed with {} in the step that computed this request; the server's log says more."
)


class Engine:
    """Continuous batching over one executor. Not thread-safe: one owner calls it."""

    def __init__(self, scheduler: Scheduler, executor: Executor, *, overlap: int) -> None:
        self.scheduler = scheduler
        self._executor = executor
        self._overlap = overlap
        self._in_flight: deque[StepPlan] = deque()
        self._preparing: dict[str, SamplingParams] = {}  # by id of a held request

    def add(self, request: Request) -> None:
        """Take a request in; it waits until the executor has what it needs (its grammar)."""
        held = not self._executor.ready(request.sampling)
        self.scheduler.add(request, time.monotonic(), held=held)
        if held:
            self._preparing[request.id] = request.sampling

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Free a request, or one choice of it; an unknown or ended one is no error."""
        self.scheduler.abort(request_id, index)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute and nothing in flight."""
        return not self._in_flight and not self.scheduler.has_work

    def step(self) -> StepReport:
        """Advance by one committed step, or by none when there is nothing to do.

        While there is nothing to do but to wait for a grammar, it waits for a moment.
        """
        began = time.perf_counter()
        self._release_prepared()
        while len(self._in_flight) <= self._overlap:
            plan = self.scheduler.schedule(time.monotonic())
            if plan is None:
                break
            self._executor.submit(plan)
            self._in_flight.append(plan)
        planned = time.perf_counter()
        if not self._in_flight:
            if self._preparing:
                time.sleep(_MOMENT)
            return StepReport((), self.stats())
        plan = self._in_flight.popleft()
        try:
            output = self._executor.collect()
        except Exception as error:
            # Its moves failed, and with them the whole step: its sequences end, the others go on.
            log.exception("step %d failed", plan.number)
            collected = time.perf_counter()
            text = _STEP_FAILED.format(type(error).__name__)
            deltas = self.scheduler.fail_step(plan, text, time.monotonic())
            output = StepOutput(number=plan.number, results=())
        else:
            collected = time.perf_counter()
            deltas = self.scheduler.commit(plan, output, time.monotonic())
        host_seconds = (planned - began) + (time.perf_counter() - collected)
        return StepReport(tuple(deltas), self._measured(plan, output, host_seconds))

    def stats(self) -> StepStats:
        """The scheduler's gauges and counters, as of now."""
        return self.scheduler.stats()

    def stop(self) -> None:
        self._executor.stop()

    def _release_prepared(self) -> None:
        for request_id, params in list(self._preparing.items()):
            if self._executor.ready(params):
                del self._preparing[request_id]
                self.scheduler.release(request_id)

    def _measured(self, plan: StepPlan, output: StepOutput, host_seconds: float) -> StepStats:
        return replace(
            self.scheduler.stats(),
            step=plan.number,
            tokens_computed=plan.token_count,
            sequences_computed=len(plan.slices),
            step_seconds=output.seconds,
            host_seconds=host_seconds,
        )


class Line(Protocol):
    """The engine's end of a `Channel`."""

    def send(self, message: Message) -> None: ...

    def receive(self, *, wait: bool) -> list[Message]: ...


def serve(engine: Engine, channel: Line) -> None:
    """Run until told to shut down. Waits without spinning while there is nothing to do.

    Raises:
        EOFError: the front end is gone.
    """
    while True:
        messages = channel.receive(wait=engine.idle)
        if not _handle(engine, messages):
            return
        if engine.idle:  # aborts may have emptied it: the gauges must say so
            channel.send(StepReport((), engine.stats()))
        else:
            channel.send(engine.step())


def _handle(engine: Engine, messages: list[Message]) -> bool:
    """Apply messages in order; False when one of them says to leave."""
    for message in messages:
        match message:
            case Submit(requests):
                for request in requests:
                    engine.add(request)
            case Abort(request_id, index):
                engine.abort(request_id, index)
            case Shutdown():
                return False
            case _:
                raise TypeError(f"the engine takes no {type(message).__name__}")
    return True
