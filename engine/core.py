"""`Engine`: the loop that ties planning to compute, and `serve`, which ties it to a channel.

A step: while fewer than the allowed plans are in flight and the scheduler has one, submit it;
then collect the oldest and commit it. With an overlap of 0 that is plan, compute, commit. With 1
the host plans and launches step k + 1 while the device computes step k; the message about k - 1,
and what came of it, are dealt with in that time, too. The loop is the same.

What a step ahead means, and where it is seen to:

- The token that step k samples is *promised* to step k + 1, which reads it where the device has it
  (worker/computer). Noise is keyed by seed and position, so nothing is drawn differently.
- Rules that look at what has been said (bad words, grammars) keep the sampler of k + 1 waiting, not
  its model: k lands first, and masks are made while the model runs. Penalties do not: what is drawn
  is counted where the logits are.
- A run of tokens that a grammar forces comes with step k; what k + 1 was to draw is known then, and
  not drawn (`Sequence.overtaken`). Log-probabilities travel with their step's tokens. Those of
  prompts, hidden states and beams are read when they are computed: such a step overlaps less.
- An end by length is known beforehand and costs nothing. One that is a surprise (end of sequence, a
  stop string, a client that leaves) costs one token that nobody sees.
- Drafts are made of known tokens, and nothing is planned ahead of a draft's verdict. Where one is
  proposed and the next step is on its way already, that step's own proposal is taken.
- Blocks are found as prefixes when the step that wrote them has been committed, and free when the
  last one that names them has; so are the worker's rows. Whoever is preempted in flight keeps what
  that step samples. Swaps and copies begin when the step before cannot fail any more: when it has
  landed, if a thread computes, else when the device has been given all of it (worker/runner).
- A step that fails is computed apart when it lands. What was launched behind it is given up, and
  launched again after it: it wrote cells that are written again, and kept nothing (worker/runner).
- Both steps in flight are accused when the engine dies or hangs. What had been sent is what the
  front end resumes from: a step that had not been reported has said nothing.
- A step's time counts from when the one before had landed, so that prices, and what prompts may
  add, are those of the device.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Protocol

from .channel import Abort, Message, Missing, RollCall, Shutdown, StepReport, Submit
from .executor.base import Executor
from .heartbeat import Pulse
from .params import Request, SamplingParams
from .scheduler.scheduler import Scheduler
from .step import StepOutput, StepPlan, StepStats

log = logging.getLogger(__name__)

_MOMENT = 0.002  # seconds
_STEP_FAILED = (
    "The engine failed with {} in the step that computed this request; the server's log says more."
)


class Engine:
    """Continuous batching over one executor. Not thread-safe: one owner calls it.

    Args:
        overlap: steps planned ahead while one computes.
        pulse: told what happens before it does.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        *,
        overlap: int,
        pulse: Pulse | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._executor = executor
        self._overlap = overlap
        self._pulse = pulse or Pulse()
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
        while len(self._in_flight) <= self._overlap and self._submit_next():
            pass  # step k is given to the device ...
        if not self._in_flight:
            if self._preparing:
                time.sleep(_MOMENT)
            return StepReport((), self.stats())
        plan = self._in_flight.popleft()  # ... before step k - overlap has come back from it
        asked = time.perf_counter()
        try:
            output = self._executor.collect()
        except Exception as error:  # whatever an executor may raise, the engine outlives it
            # Its moves failed, and with them the whole step: its sequences end, the others go on.
            self._pulse.land(completed=False)
            log.exception("step %d failed", plan.number)
            waited = time.perf_counter() - asked
            text = _STEP_FAILED.format(type(error).__name__)
            deltas = self.scheduler.fail_step(plan, text, time.monotonic())
            output = StepOutput(number=plan.number, results=())
        else:
            self._pulse.land()
            waited = time.perf_counter() - asked
            deltas = self.scheduler.commit(plan, output, time.monotonic())
        host_seconds = time.perf_counter() - began - waited
        self._executor.improve(idle=False)
        return StepReport(tuple(deltas), self._measured(plan, output, host_seconds))

    def beat(self) -> None:
        """Show that the engine is alive."""
        self._pulse.beat(pending=len(self.scheduler.requests))

    @contextmanager
    def stumbling(self) -> Iterator[None]:
        """Note an exception that ends the engine: it is told apart from a death in a step."""
        try:
            yield
        except Exception:  # whatever it is: it goes on its way
            self._pulse.stumble()
            raise

    def stats(self) -> StepStats:
        """The scheduler's gauges and counters, as of now."""
        return self.scheduler.stats()

    def improve(self) -> bool:
        """Nothing is to be computed: do one thing that makes later steps faster. Returns whether
        more is left."""
        return self._executor.improve(idle=True)

    def stop(self) -> None:
        self._executor.stop()

    def _submit_next(self) -> bool:
        """Plan one more step and hand it over, if anything can be planned yet."""
        plan = self.scheduler.schedule(time.monotonic())
        if plan is None:
            return False
        self._pulse.launch(
            plan.number, self.scheduler.requests_of(plan), self.scheduler.step_time.predict(plan)
        )
        self._executor.submit(plan)
        self._in_flight.append(plan)
        return True

    def _release_prepared(self) -> None:
        for request_id, params in list(self._preparing.items()):
            if self._executor.ready(params):
                del self._preparing[request_id]
                self.scheduler.release(request_id)

    def _measured(self, plan: StepPlan, output: StepOutput, host_seconds: float) -> StepStats:
        return self.scheduler.stats()._replace(
            step=plan.number,
            tokens_computed=plan.token_count,
            sequences_computed=len(plan.slices),
            step_seconds=output.seconds,
            host_seconds=host_seconds,
            graphs_recorded=output.graphs_recorded,
            graphs_planned=output.graphs_planned,
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
    for number in count():
        messages = channel.receive(wait=engine.idle and not engine.improve())
        engine.beat()
        with engine.stumbling():
            if not _handle(engine, messages, channel):
                return
            # Aborts may have emptied it: the gauges must say so.
            report = StepReport((), engine.stats()) if engine.idle else engine.step()
        channel.send(StepReport(report.deltas, report.stats, number))


def _handle(engine: Engine, messages: list[Message], channel: Line) -> bool:
    """Apply messages in order; False when one of them says to leave."""
    for message in messages:
        match message:
            case Submit(requests):
                for request in requests:
                    engine.add(request)
            case Abort(request_id, index):
                engine.abort(request_id, index)
            case RollCall():
                missing = _answer(engine, message)
                if missing:
                    channel.send(Missing(message.number, missing))
            case Shutdown():
                return False
            case _:
                raise TypeError(f"the engine takes no {type(message).__name__}")
    return True


def _answer(engine: Engine, call: RollCall) -> tuple[str, ...]:
    """Free what nobody listens to; returns what the front end waits for and is not here."""
    for request_id in engine.scheduler.requests - set(call.request_ids):
        engine.abort(request_id)
    for request_id, index in call.ended_choices:
        engine.abort(request_id, index)
    return tuple(name for name in call.request_ids if name not in engine.scheduler.requests)
