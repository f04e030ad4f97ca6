"""The front end's handle on the engine: deliveries, aborts, deaths and resumed streams."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from octavo.engine.assembly import run_engine
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.channel import Channel, Message, Ready, Shutdown, StepReport
from octavo.engine.config import EngineConfig
from octavo.engine.errors import (
    ConfigError,
    DeadlineExceeded,
    DoesNotFit,
    Draining,
    EngineDead,
    ReaderTooSlow,
    SequenceFailed,
)
from octavo.engine.executor.base import Capacity, Progress
from octavo.engine.heartbeat import SIZE, Heartbeat, Pulse
from octavo.engine.incarnation import Incarnation
from octavo.engine.params import FinishReason, PoolingKind, PoolingParams, Request, SamplingParams
from octavo.engine.request_table import MOST_UNREAD
from octavo.engine.step import Delta, StepStats
from octavo.engine.supervisor import STOP_GRACE_SECONDS, EngineThread, RestartPolicy
from octavo.engine.watch import Watch

from ..fakes.executor import FakeExecutor, pooled

CONFIG = EngineConfig(model="fake", max_num_batched_tokens=64)


class Fleet:
    """Launches one engine thread after the other; the newest one's executor can be broken."""

    def __init__(self, make: Callable[[], FakeExecutor], config: EngineConfig = CONFIG) -> None:
        self._make = make
        self._config = config
        self.executors: list[FakeExecutor] = []

    def __call__(self, epoch: int) -> EngineThread:
        executor = self._make()
        self.executors.append(executor)

        def run(channel: Channel, pulse: Pulse) -> None:
            run_engine(self._config, channel, executor, pulse)

        return EngineThread(run, epoch)


@asynccontextmanager
async def running(
    make: Callable[[], FakeExecutor] = FakeExecutor,
    config: EngineConfig = CONFIG,
    **options: object,
) -> AsyncIterator[tuple[AsyncEngine, Fleet]]:
    fleet = Fleet(make, config)
    engine = AsyncEngine(fleet, **options)  # type: ignore[arg-type]
    await engine.start(lambda stage, done, total: None)
    try:
        yield engine, fleet
    finally:
        await engine.stop()


def request(name: str, *, prompt: tuple[int, ...] = (1, 2, 3), **params: object) -> Request:
    return Request(
        id=name,
        prompt_token_ids=prompt,
        sampling=SamplingParams(**{"max_tokens": 20, **params}),  # type: ignore[arg-type]
        seed=7,
        arrival=time.monotonic(),
    )


async def collect(engine: AsyncEngine, asked: Request) -> dict[int, list[int]]:
    """The token ids of each choice."""
    choices: dict[int, list[int]] = defaultdict(list)
    async for delta in engine.generate(asked):
        choices[delta.index] += delta.token_ids
    return dict(choices)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come; the test's own time limit is the deadline."""
    while not condition():
        await asyncio.sleep(0.001)


async def test_a_request_yields_its_tokens_and_then_ends() -> None:
    async with running() as (engine, _):
        deltas = [delta async for delta in engine.generate(request("a"))]
        assert sum(len(delta.token_ids) for delta in deltas) == 20
        assert [delta.last for delta in deltas] == [False] * 19 + [True]
        assert deltas[-1].finish_reason is FinishReason.LENGTH
        assert engine.live_requests == 0


async def test_requests_side_by_side_get_what_they_get_alone() -> None:
    async with running() as (engine, _):
        asked = [request(f"r{i}", prompt=(5, i, 9), n=1 + i % 3) for i in range(12)]
        alone = [await collect(engine, one) for one in asked]
        together = await asyncio.gather(*(collect(engine, one) for one in asked))
        assert together == alone


async def test_leaving_early_frees_the_blocks() -> None:
    async with running(lambda: FakeExecutor(seconds_per_step=0.002)) as (engine, _):
        stream = engine.generate(request("a", max_tokens=500, n=3))
        await anext(stream)
        assert engine.stats.running > 0
        await stream.aclose()  # type: ignore[attr-defined]
        await until(lambda: engine.stats.running == 0 and engine.stats.blocks_used == 0)


async def test_a_request_ends_at_its_deadline_whether_or_not_it_is_read() -> None:
    async with running(lambda: FakeExecutor(seconds_per_step=0.002)) as (engine, _):
        soon = replace(request("a", max_tokens=500, n=3), deadline=time.monotonic() + 0.05)
        stream = engine.generate(soon)
        await anext(stream)
        await until(lambda: engine.stats.running == 0 and engine.stats.blocks_used == 0)
        with pytest.raises(DeadlineExceeded):
            async for _ in stream:  # what had been made before is still given
                pass
        late = replace(request("b"), deadline=time.monotonic() - 1)
        with pytest.raises(DeadlineExceeded):
            await collect(engine, late)
        in_time = replace(request("c"), deadline=time.monotonic() + 60)
        assert len((await collect(engine, in_time))[0]) == 20


async def test_what_nobody_reads_is_given_up_before_it_fills_the_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def long() -> FakeExecutor:
        return FakeExecutor(num_blocks=300, max_model_len=4096)

    async with running(long) as (engine, _):
        unread = engine.generate(request("a", max_tokens=3000, logprobs=20))
        await anext(unread)
        others = [collect(engine, request(f"b{i}", max_tokens=100)) for i in range(4)]
        assert [len(choices[0]) for choices in await asyncio.gather(*others)] == [100] * 4
        await until(lambda: engine.stats.running == 0 and engine.stats.blocks_used == 0)
        (told,) = (r for r in caplog.records if "is given up" in r.message)
        assert isinstance(told.args, tuple)
        assert 0 <= int(str(told.args[1])) - MOST_UNREAD <= 21  # it was found out at once
        with pytest.raises(ReaderTooSlow):
            async for _ in unread:
                pass


async def test_who_reads_in_time_gets_all_of_it() -> None:
    async with running(lambda: FakeExecutor(num_blocks=300, max_model_len=4096)) as (engine, _):
        asked = request("a", max_tokens=2000, logprobs=20)
        assert len((await collect(engine, asked))[0]) == 2000


async def test_a_choice_that_is_finished_here_ends_there_and_the_others_go_on() -> None:
    async with running(lambda: FakeExecutor(seconds_per_step=0.001)) as (engine, _):
        whole = await collect(engine, request("whole", n=2, max_tokens=50))
        lengths = {0: 0, 1: 0}
        async for delta in engine.generate(request("a", n=2, max_tokens=50)):
            lengths[delta.index] += len(delta.token_ids)
            if delta.index == 0 and lengths[0] == 5:
                engine.finish_choice("a", 0)
        assert lengths == {0: 5, 1: len(whole[1])}
        await until(lambda: engine.stats.blocks_used == 0)


async def test_a_failing_sequence_fails_its_own_request_only() -> None:
    def poisoned() -> FakeExecutor:
        executor = FakeExecutor()
        executor.poison = 13
        return executor

    async with running(poisoned) as (engine, _):
        good, bad = await asyncio.gather(
            collect(engine, request("good")),
            collect(engine, request("bad", prompt=(13, 1))),
            return_exceptions=True,
        )
        assert isinstance(good, dict)
        assert len(good[0]) == 20
        assert isinstance(bad, SequenceFailed)


async def test_streams_survive_the_death_of_the_engine() -> None:
    def slow() -> FakeExecutor:
        return FakeExecutor(seconds_per_step=0.002)

    asked = [
        request("plain", max_tokens=60),
        request("n", max_tokens=60, n=3),
        request("scores", max_tokens=60, logprobs=2, prompt_logprobs=1),
    ]
    async with running() as (engine, _):
        undisturbed = [await collect(engine, one) for one in asked]
    async with running(slow) as (engine, fleet):
        streams = [asyncio.create_task(collect(engine, one)) for one in asked]
        for deaths in (1, 2):
            seen = engine.stats.step
            await until(lambda seen=seen: engine.stats.step > seen + 5)  # type: ignore[misc]
            fleet.executors[-1].dead = True
            await until(lambda deaths=deaths: engine.restarts == deaths)  # type: ignore[misc]
            await until(lambda: engine.status.ready)
            engine.stats = type(engine.stats)()
        assert await asyncio.gather(*streams) == undisturbed
        assert engine.resumed_requests > 0


async def test_embeddings_survive_the_death_of_the_engine() -> None:
    asked = [
        Request(
            id=kind,
            prompt_token_ids=tuple(range(1, 500)),
            pooling=PoolingParams(kind=kind, normalize=False),
            seed=0,
            arrival=time.monotonic(),
        )
        for kind in PoolingKind
    ]

    async def embed(engine: AsyncEngine, one: Request) -> tuple[float, ...] | None:
        (delta,) = [delta async for delta in engine.generate(one)]
        return delta.embedding

    async with running(lambda: FakeExecutor(seconds_per_step=0.002)) as (engine, fleet):
        waiting = [asyncio.create_task(embed(engine, one)) for one in asked]
        await until(lambda: engine.stats.step > 3)
        fleet.executors[-1].dead = True
        assert await asyncio.gather(*waiting) == [pooled(one) for one in asked]
        assert (engine.restarts, engine.resumed_requests) == (1, 2)


async def test_a_resumed_request_repeats_nothing_it_has_told() -> None:
    async with running(lambda: FakeExecutor(seconds_per_step=0.002)) as (engine, fleet):
        deltas: list[Delta] = []
        async for delta in engine.generate(request("a", max_tokens=40, prompt_logprobs=1)):
            deltas.append(delta)
            if len(deltas) == 5:
                fleet.executors[-1].dead = True
        assert engine.restarts == 1
        assert sum(len(delta.prompt_logprobs) for delta in deltas) == 2
        assert sum(delta.cached_tokens is not None for delta in deltas) == 1
        assert sum(len(delta.token_ids) for delta in deltas) == 40


async def test_a_request_that_arrives_during_a_restart_waits_for_it() -> None:
    loaded = threading.Event()

    class Loading(FakeExecutor):
        def start(self, progress: Progress) -> Capacity:
            loaded.wait()
            return super().start(progress)

    first = iter([FakeExecutor(seconds_per_step=0.002)])
    async with running(lambda: next(first, None) or Loading()) as (engine, fleet):
        running_on = asyncio.create_task(collect(engine, request("first", max_tokens=50)))
        await until(lambda: engine.stats.step > 3)
        fleet.executors[-1].dead = True
        await until(lambda: engine.restarts == 1)
        assert engine.status.stage == "restarting"
        late = asyncio.create_task(collect(engine, request("late")))
        await until(lambda: engine.live_requests == 2)
        loaded.set()
        assert len((await late)[0]) == 20
        assert len((await running_on)[0]) == 50
        assert engine.resumed_requests == 1


async def test_an_engine_that_dies_fruitlessly_again_and_again_is_given_up() -> None:
    def dead() -> FakeExecutor:
        executor = FakeExecutor()
        executor.dead = True
        return executor

    async with running(dead, restarts=RestartPolicy(limit=1)) as (engine, fleet):
        with pytest.raises(EngineDead):
            await collect(engine, request("a"))
        assert engine.status.stage == "dead"
        assert len(fleet.executors) == 2
        await engine.gone()
        with pytest.raises(EngineDead):
            await collect(engine, request("b"))


class TooSmall(FakeExecutor):
    def start(self, progress: Progress) -> Capacity:
        raise DoesNotFit("The weights need 2 GiB and there is 1 GiB.")


async def test_a_restart_that_the_machine_refuses_is_tried_again() -> None:
    fleet, refusals = Fleet(lambda: FakeExecutor(seconds_per_step=0.002)), iter([OSError(11)])

    def launch(epoch: int) -> EngineThread:
        if epoch and (refusal := next(refusals, None)):
            raise refusal
        return fleet(epoch)

    engine = AsyncEngine(launch)
    await engine.start(lambda *_: None)
    try:
        asked = asyncio.create_task(collect(engine, request("a", max_tokens=50)))
        await until(lambda: engine.stats.step > 3)
        fleet.executors[-1].dead = True
        assert len((await asked)[0]) == 50
        assert engine.restarts == 2
    finally:
        await engine.stop()


async def test_what_keeps_it_from_starting_is_told_as_it_was_said() -> None:
    engine = AsyncEngine(Fleet(TooSmall))
    with pytest.raises(ConfigError, match="need 2 GiB"):
        await engine.start(lambda stage, done, total: None)
    assert engine.status.stage == "dead"
    await engine.stop()


def test_only_fruitless_deaths_count_against_the_restart_limit() -> None:
    policy = RestartPolicy(limit=2, window=100.0)
    assert [policy.delay(completed_steps=True, now=t) for t in range(9)] == [0.0] * 9
    assert policy.delay(completed_steps=False, now=10.0) == 0.0
    assert policy.delay(completed_steps=False, now=11.0) == 0.5
    assert policy.delay(completed_steps=False, now=12.0) is None
    assert policy.delay(completed_steps=False, now=500.0) == 0.0  # the old ones are forgotten


async def test_an_observer_that_fails_costs_no_stream(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as (engine, _):

        def broken(stats: object) -> None:
            raise ZeroDivisionError("metrics are wrong")

        engine.on_step(broken)
        assert len((await collect(engine, request("a")))[0]) == 20
    assert "metrics are wrong" in caplog.text


@pytest.mark.parametrize(
    "nonsense",
    [Shutdown(), StepReport((Delta(request_id="a", index=7, token_ids=(1,)),), StepStats())],
)
async def test_an_engine_that_talks_nonsense_is_replaced(nonsense: Message) -> None:
    """Its stream goes on in the next incarnation, and why is told in the log."""
    launched: list[int] = []

    def launch(epoch: int) -> EngineThread:
        launched.append(epoch)

        def run(channel: Channel, pulse: Pulse) -> None:
            if epoch:
                run_engine(CONFIG, channel, FakeExecutor(), pulse)
                return
            channel.send(Ready(FakeExecutor().start(lambda *_: None)))
            channel.receive(wait=True)
            channel.send(nonsense)
            while True:
                channel.receive(wait=True)

        return EngineThread(run, epoch)

    engine = AsyncEngine(launch)
    await engine.start(lambda *_: None)
    try:
        assert len((await collect(engine, request("a")))[0]) == 20
        assert launched == [0, 1]
    finally:
        await engine.stop()


class NeverReady:
    """An engine process that is still loading, and reads nothing, when it is told to leave."""

    def __init__(self, epoch: int) -> None:
        self.socket, self._far = socket.socketpair()
        self.epoch = epoch
        self.heartbeat = Heartbeat(bytearray(SIZE))
        self.graces: list[float] = []

    def ending(self) -> str | None:
        return None if not self.graces else "ended by signal 9"

    def labour(self) -> float:
        return 0.5

    def stop(self, grace: float = STOP_GRACE_SECONDS) -> None:
        self.graces.append(grace)
        self._far.close()


async def test_an_engine_that_is_still_starting_is_not_waited_for() -> None:
    host = NeverReady(0)
    engine = AsyncEngine(lambda epoch: host)
    starting = asyncio.create_task(engine.start(lambda *_: None))
    await until(lambda: engine._incarnation is not None)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await engine.stop()
    assert host.graces == [0.0]


async def test_an_engine_that_is_frozen_while_it_starts_is_given_up() -> None:
    host = NeverReady(0)
    incarnation = await Incarnation.meet(host, Watch(patience=10.0))
    with pytest.raises(EngineDead, match="did not start: it did nothing at all"):
        await incarnation.started(lambda *_: None, patience=0.01)
    assert host.graces == [0.0]


async def test_stopping_during_a_restart_ends_it() -> None:
    """No further incarnation is started, and who still listens is told why it ends."""
    hosts: list[EngineThread | NeverReady] = []

    def launch(epoch: int) -> EngineThread | NeverReady:
        hosts.append(NeverReady(epoch) if epoch else fleet(epoch))
        return hosts[-1]

    fleet = Fleet(lambda: FakeExecutor(seconds_per_step=0.002))
    engine = AsyncEngine(launch)
    await engine.start(lambda *_: None)
    asked = asyncio.create_task(collect(engine, request("a", max_tokens=500)))
    await until(lambda: engine.stats.step > 3)
    fleet.executors[-1].dead = True
    await until(lambda: len(hosts) == 2)
    await engine.stop()
    with pytest.raises(Draining):
        await asked
    assert len(hosts) == 2
    assert engine.status.stage == "stopping"
    await engine.gone()
