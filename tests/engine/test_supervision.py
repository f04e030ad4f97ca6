"""An engine that hangs, that loses messages, and that dies of one request again and again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from octavo.engine.channel import Abort, Message, Missing, Submit
from octavo.engine.errors import RequestGivenUp
from octavo.engine.incarnation import Incarnation
from octavo.engine.params import SamplingParams
from octavo.engine.request_table import RequestTable
from octavo.engine.step import StepOutput, StepPlan
from octavo.engine.supervisor import RestartPolicy

from ..fakes.executor import FakeExecutor
from .test_async_engine import CONFIG, collect, request, running, until

LETHAL = 13
HASTY = {"look_seconds": 0.01, "hang_timeout": 0.05}


class Lethal(FakeExecutor):
    """Ends the engine whenever it computes a prompt with the token LETHAL.

    Args:
        slices: how many slices of it are computed before.
        waiting: the engine dies while it waits for the step, not while it plans.
    """

    def __init__(self, *, slices: int = 0, waiting: bool = True) -> None:
        super().__init__(seconds_per_step=0.001)
        self._spared = slices
        self._waiting = waiting
        self._cursed: dict[int, int] = {}  # slices so far

    def submit(self, plan: StepPlan) -> None:
        if not self._waiting and self._strikes(plan):
            raise RuntimeError("it dies of this plan")
        super().submit(plan)

    def collect(self) -> StepOutput:
        if self._waiting and self._strikes(self._queue[0]):
            raise SystemExit  # unlike an exception it ends more than the step
        return super().collect()

    def _strikes(self, plan: StepPlan) -> bool:
        for piece in plan.slices:
            if piece.history is not None and LETHAL in piece.history.token_ids[:4]:
                self._cursed[piece.sequence] = 0
            if piece.sequence in self._cursed:
                self._cursed[piece.sequence] += 1
                if self._cursed[piece.sequence] > self._spared:
                    return True
        return False


@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.parametrize("slices", [0, 1])
async def test_a_request_that_always_ends_the_engine_fails_alone(
    slices: int, waiting: bool
) -> None:
    """Also one of which it dies only after a part of its prompt was computed."""
    asked = [request(f"r{i}", prompt=(5, i + 100, 9), n=1 + i % 2) for i in range(15)]
    # Two chunks long, as the budget of a step is 64 tokens.
    lethal = request("lethal", prompt=(5, LETHAL, *range(200, 300)))
    async with running() as (engine, _):
        undisturbed = [await collect(engine, one) for one in asked]
    async with running(lambda: Lethal(slices=slices, waiting=waiting)) as (engine, _):
        *others, failed = await asyncio.gather(
            *(collect(engine, one) for one in (*asked, lethal)), return_exceptions=True
        )
        assert others == undisturbed
        assert isinstance(failed, RequestGivenUp)
        assert "ended the engine" in str(failed)
        assert engine.restarts <= 4 + 4
        assert await collect(engine, request("later"))


async def test_a_request_that_always_hangs_the_engine_fails_alone() -> None:
    released = threading.Event()

    class Sticky(Lethal):
        def collect(self) -> StepOutput:
            if self._strikes(self._queue[0]):
                released.wait()
                raise SystemExit
            return FakeExecutor.collect(self)

    asked = [request(f"r{i}", prompt=(5, i, 9)) for i in range(3)]
    async with running() as (engine, _):
        undisturbed = [await collect(engine, one) for one in asked]
    try:
        async with running(Sticky, **HASTY) as (engine, _):
            *others, failed = await asyncio.gather(
                *(collect(engine, one) for one in (*asked, request("stuck", prompt=(LETHAL,)))),
                return_exceptions=True,
            )
            assert others == undisturbed
            assert isinstance(failed, RequestGivenUp)
    finally:
        released.set()


class Unplannable(FakeExecutor):
    """Dies of being given a request with min_tokens of LETHAL, which so is never in flight."""

    def ready(self, params: SamplingParams) -> bool:
        if params.min_tokens == LETHAL:
            raise RuntimeError("it cannot plan this")
        return super().ready(params)


async def test_a_request_of_which_planning_fails_fails_alone() -> None:
    asked = [request(f"r{i}", prompt=(5, i + 100, 9)) for i in range(15)]
    lethal = request("lethal", min_tokens=LETHAL)
    async with running(Unplannable) as (engine, _):
        undisturbed = [await collect(engine, one) for one in asked]
        *others, failed = await asyncio.gather(
            *(collect(engine, one) for one in (*asked, lethal)), return_exceptions=True
        )
        assert others == undisturbed
        assert isinstance(failed, RequestGivenUp)


async def test_an_engine_that_dies_of_every_request_is_given_up_all_the_same() -> None:
    async with running(Lethal, restarts=RestartPolicy(limit=2)) as (engine, _):
        asked = [request(f"r{i}", prompt=(LETHAL, i)) for i in range(4)]
        failed = await asyncio.gather(*(collect(engine, r) for r in asked), return_exceptions=True)
        assert all(isinstance(failure, Exception) for failure in failed)
        assert engine.status.stage == "dead"


class Hanging(FakeExecutor):
    """Its third step never ends, until the test does."""

    released = threading.Event()

    def collect(self) -> StepOutput:
        if len(self.plans) > 3 and not self.stopped:
            self.released.wait()
        return super().collect()


@pytest.fixture
def hanging() -> Iterator[type[Hanging]]:
    class Fresh(Hanging):
        released = threading.Event()

    yield Fresh
    Fresh.released.set()


async def test_streams_survive_an_engine_that_hangs(
    hanging: type[Hanging], caplog: pytest.LogCaptureFixture
) -> None:
    asked = [request(f"r{i}", prompt=(5, i, 9), n=1 + i % 3) for i in range(8)]
    async with running() as (engine, _):
        undisturbed = [await collect(engine, one) for one in asked]
    first = iter([hanging])
    async with running(lambda: next(first, FakeExecutor)(), **HASTY) as (engine, _):
        assert await asyncio.gather(*(collect(engine, one) for one in asked)) == undisturbed
        assert engine.restarts >= 1
        assert engine.resumed_requests >= 8
    assert "made no progress for" in caplog.text


async def test_an_idle_engine_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool] = []
    monkeypatch.setattr(Incarnation, "look", lambda self, awaited: looks.append(awaited))
    async with running(look_seconds=0.0) as (engine, _):  # at every turn of the loop
        await collect(engine, request("a"))
        assert looks
        await until(lambda: not engine._busy.is_set())
        looks.clear()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not looks


async def test_a_lost_report_costs_no_token() -> None:
    config = replace(CONFIG, test_fault=("lose-message@step=5@epoch=0",))
    asked = [request("a"), request("n", n=3), request("scores", logprobs=2, prompt_logprobs=1)]
    async with running() as (engine, _):
        undisturbed = [await collect(engine, one) for one in asked]
    async with running(config=config) as (engine, _):
        assert await asyncio.gather(*(collect(engine, one) for one in asked)) == undisturbed
        assert engine.restarts == 1


class Lossy:
    """Loses the first message of a kind that the front end sends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type[Message]) -> None:
        self.lost: list[Message] = []
        send = Incarnation.send

        def lossy(incarnation: Incarnation, message: Message) -> None:
            if isinstance(message, kind) and not self.lost:
                self.lost.append(message)
            else:
                send(incarnation, message)

        monkeypatch.setattr(Incarnation, "send", lossy)


async def test_a_lost_abort_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(lambda: FakeExecutor(seconds_per_step=0.002), look_seconds=0.01) as (
        engine,
        _,
    ):
        line = Lossy(monkeypatch, Abort)
        stream = engine.generate(request("a", max_tokens=900, n=3))
        await anext(stream)
        await stream.aclose()
        await until(lambda: engine.stats.sequences == 0 and engine.stats.blocks_used == 0)
        assert line.lost == [Abort("a")]
        assert engine.stats.step < 500  # it would have gone on to 900
        assert engine.restarts == 0


async def test_a_lost_abort_of_a_choice_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(lambda: FakeExecutor(seconds_per_step=0.002), look_seconds=0.01) as (
        engine,
        _,
    ):
        line = Lossy(monkeypatch, Abort)
        stream = engine.generate(request("a", max_tokens=900, n=2))
        await anext(stream)
        engine.finish_choice("a", 1)
        assert line.lost == [Abort("a", 1)]
        await until(lambda: engine.stats.sequences == 1)
        assert engine.live_requests == 1
        await stream.aclose()


async def test_a_lost_submit_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(look_seconds=0.01) as (engine, _):
        expected = await collect(engine, request("a"))
        line = Lossy(monkeypatch, Submit)
        assert await collect(engine, request("a")) == expected
        assert len(line.lost) == 1
        assert engine.restarts == 0


def test_what_was_submitted_after_a_roll_call_is_not_taken_for_lost() -> None:
    table = RequestTable()
    table.open(request("old"))
    assert [r.id for r in table.due()] == ["old"]
    call = table.roll_call()
    assert call.request_ids == ("old",)
    table.open(request("new"))
    assert [r.id for r in table.due()] == ["new"]
    assert table.miss(Missing(call.number, ("old", "new", "unknown"))) == 1
    assert [r.id for r in table.due()] == ["old"]
    # The answer to a call from before it was given again says nothing.
    assert table.miss(Missing(call.number, ("old",))) == 0
    assert table.due() == ()
