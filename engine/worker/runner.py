"""`Runner`: moves, then the slices; a slice that cannot be computed fails alone."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ..device import check_alive
from ..kv_cache import KVCache
from ..params import SamplingParams
from ..step import Slice, SliceResult, StepOutput, StepPlan
from .computer import Launched
from .graphs import Forwards
from .halves import Attempt
from .stream import AtOnce, Stream

log = logging.getLogger(__name__)


class Computes(Protocol):
    """What a runner asks of a `Computer`."""

    def ready(self, params: SamplingParams) -> bool:
        """Whether a sequence with these parameters would not keep a step waiting; begins to
        prepare what is missing. From any thread."""

    def begin(self, plan: StepPlan) -> None:
        """A step is about to be launched, perhaps once more."""

    def forget(self, sequences: Iterable[int]) -> None:
        """These have ended, and no step under way names them; unknown ones are no error."""

    def launch(self, slices: Sequence[Slice]) -> Launched:
        """Give the device a step, behind the one that may be under way. After an exception nothing
        came of it."""

    def sample(self, launched: Launched) -> None:
        """The step before has landed: give the device what has waited for that."""

    def land(self, launched: Launched) -> list[SliceResult]:
        """Wait for a step: what each of its slices yielded, in their order. After an exception
        nothing came of them, until it is asked for once more."""

    def rewind(self) -> None:
        """Give up every step under way. Its slices, or some of them, may be launched once more."""


@dataclass(slots=True, eq=False)
class _Flight:
    """A step from its plan to its output."""

    plan: StepPlan
    began: float
    started: bool = False  # else it waits for the one before
    moved: bool = False  # its moves have been done
    slices: tuple[Slice, ...] = ()  # without those of known culprits
    launched: Launched | None = None
    error: Exception | None = None  # of the launch
    fatal: Exception | None = None  # of the moves: all of the step has failed
    given_up: bool = False  # once, because of a step before


class Runner:
    """Carries out plans on one device, in their order. Not thread-safe.

    A plan may be launched while the one before is under way, where the device allows. Its moves
    wait until that one cannot fail any more, for it would write once more to blocks that have gone:
    until it has landed or, where the device raises at once what it will not do, until all of it has
    been given. Should what it has done fail to be read nevertheless, it is read again; if that
    fails, too, so has all of it.

    Moves are done once, because what is swapped in overwrites what was swapped out. Slices may be
    computed several times, until it is known which of them cannot be (`halves.Attempt`); a step
    that was launched behind one that failed is given up, and launched again when that one is done.
    """

    def __init__(
        self,
        kv: KVCache,
        computer: Computes,
        stream: Stream | None = None,
        forwards: Forwards | None = None,
    ) -> None:
        """`forwards`: what the computer computes with, where it may get faster."""
        self._kv = kv
        self.computer = computer
        self._stream = stream or AtOnce()
        self._forwards = forwards
        self._flights: deque[_Flight] = deque()
        self._requests: dict[int, str] = {}  # by sequence: whose it is
        self._failed: dict[int, SliceResult] = {}  # culprits that have not been retired yet
        self._retired: set[int] = set()  # to be forgotten when no flight names them
        self._landed = 0.0  # when the last step was

    def ready(self, params: SamplingParams) -> bool:
        """As `Computes.ready`."""
        return self.computer.ready(params)

    def improve(self, *, idle: bool) -> bool:
        """As `Forwards.improve`; when that has come to its end, memory for more of the KV cache."""
        if self._forwards is None or self._forwards.recorded == self._forwards.planned:
            return idle and self._stream.run(self._kv.populate)()
        left = self._stream.run(partial(self._forwards.improve, idle=idle))()
        self._landed = time.perf_counter()  # what it took is not the next step's
        return left

    def execute(self, plan: StepPlan) -> StepOutput:
        """One step that nothing overlaps."""
        self.launch(plan)
        return self.land()

    def launch(self, plan: StepPlan) -> None:
        """Give the device a step, or as soon as the one before has landed."""
        before = self._flights[-1] if self._flights else None
        flight = _Flight(plan, time.perf_counter())
        self._flights.append(flight)
        if before is None or self._may_follow(before, plan):
            self._start(flight)

    def _may_follow(self, before: _Flight, plan: StepPlan) -> bool:
        """Whether a plan may be launched behind a flight that has not landed."""
        if before.launched is None:
            return False
        alone = before is self._flights[0]
        sure = alone and before.launched.complete and self._stream.raises_at_once
        return sure or not plan.moves

    def land(self) -> StepOutput:
        """Wait for the oldest step. An exception means that all of it failed: its moves did."""
        flight = self._flights.popleft()
        try:
            return self._output(flight)
        finally:
            self._follow()

    def _start(self, flight: _Flight) -> None:
        plan = flight.plan
        flight.started = True
        self._retired.update(plan.retired)
        for part in plan.slices:
            if part.blocks:
                self._kv.use(part.blocks)
            if part.history is not None:
                self._retired.discard(part.sequence)
                self._requests[part.sequence] = part.history.request_id
                self._failed.pop(part.sequence, None)
        if flight is self._flights[0]:
            self._forget()
        try:
            if plan.moves and not flight.moved:
                self._stream.run(partial(self._kv.apply, plan.moves))()
                flight.moved = True
        except Exception as error:  # whatever it is: told when the step lands, in its turn
            flight.fatal = error
            return
        flight.slices = plan.slices
        if self._failed:  # a plan that was made before a culprit was known names it once more
            flight.slices = tuple([s for s in plan.slices if s.sequence not in self._failed])
        try:
            self.computer.begin(plan)
            if flight.slices:
                flight.launched = self.computer.launch(flight.slices)
        except Exception as error:  # as above; it is answered by `Attempt`
            flight.error = error

    def _output(self, flight: _Flight) -> StepOutput:
        if flight.fatal is not None:
            check_alive(flight.fatal)
            raise flight.fatal
        plan = flight.plan
        attempt = Attempt(partial(self._results, flight))
        if any(later.moved for later in self._flights):
            results, count = self._landed_only(flight)
        else:
            results, count = attempt.results(flight.slices), attempt.count
        if attempt.failures or len(results) < len(plan.slices):
            results = self._with_culprits(plan, attempt, results)
        began, self._landed = max(flight.began, self._landed), time.perf_counter()
        return StepOutput(
            number=plan.number,
            results=tuple(results),
            seconds=self._landed - began,
            attempts=count + flight.given_up,
            usual=self._forwards is None or not self._forwards.learning,
            graphs_recorded=0 if self._forwards is None else self._forwards.recorded,
            graphs_planned=0 if self._forwards is None else self._forwards.planned,
        )

    def _landed_only(self, flight: _Flight) -> tuple[list[SliceResult], int]:
        """What came of a step that cannot be computed again, because moves have been done behind
        it; it can be read again. And how many times that was tried."""
        assert flight.launched is not None, "moves follow only what the device has been given"
        try:
            return self.computer.land(flight.launched), 1
        except Exception as error:  # of the host's, or the device is lost
            check_alive(error)
            log.warning("step %d is read again", flight.plan.number, exc_info=True)
        return self._results(flight, flight.slices), 2

    def _with_culprits(
        self, plan: StepPlan, attempt: Attempt, results: list[SliceResult]
    ) -> list[SliceResult]:
        """The results of all slices of a plan, in their order, those of culprits included."""
        by_sequence = {result.sequence: result for result in results}
        if attempt.failures:
            self._report(plan, attempt)
        self._failed |= {sequence: by_sequence[sequence] for sequence in attempt.culprits}
        return [by_sequence.get(s.sequence) or self._failed[s.sequence] for s in plan.slices]

    def _results(self, flight: _Flight, slices: Sequence[Slice]) -> list[SliceResult]:
        """At first what came of the launch; from then on these slices alone."""
        launched, flight.launched = flight.launched, None
        error, flight.error = flight.error, None
        try:
            if error is not None:
                raise error
            return self.computer.land(launched or self.computer.launch(slices))
        except Exception as error:  # whatever it was goes on its way
            check_alive(error)
            self._give_up()
            self.computer.begin(flight.plan)
            raise

    def _give_up(self) -> None:
        """What was launched behind a step that failed."""
        for later in self._flights:
            later.started, later.launched, later.error = False, None, None
            later.given_up = True
        self.computer.rewind()

    def _follow(self) -> None:
        """A step has landed: go on with the next."""
        self._forget()
        if not self._flights:
            return
        flight = self._flights[0]
        if not flight.started:
            self._start(flight)
        elif flight.launched is not None:
            try:
                self.computer.sample(flight.launched)
            except Exception as error:  # as of the launch
                flight.launched, flight.error = None, error

    def _forget(self) -> None:
        """Those who have gone."""
        if not self._retired:
            return
        self.computer.forget(self._retired)
        for sequence in self._retired:
            self._requests.pop(sequence, None)
            self._failed.pop(sequence, None)
        self._retired.clear()

    def _report(self, plan: StepPlan, attempt: Attempt) -> None:
        """One line in the log for each way in which the step went wrong."""
        if not attempt.culprits:
            log.warning(
                "step %d failed with %s; its %d sequences could be computed in smaller parts\n%s",
                plan.number,
                attempt.failures[0].kind,
                len(plan.slices),
                attempt.failures[0].trace,
            )
        together: defaultdict[str, set[str]] = defaultdict(set)
        for sequence, failure in attempt.culprits.items():
            together[failure.trace].add(self._requests.get(sequence, f"of sequence {sequence}"))
        for trace, requests in together.items():
            log.error(
                "step %d: request %s cannot be computed, and fails; the others go on\n%s",
                plan.number,
                ", ".join(sorted(requests)),
                trace,
            )
