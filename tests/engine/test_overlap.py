"""One step ahead: the same answers, the host's work hidden, and no block freed too early.

Order is asserted by events, never by time: the device here completes a step when the test lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from octavo.engine.assembly import build_engine
from octavo.engine.cache.manager import BlockManager
from octavo.engine.config import EngineConfig
from octavo.engine.core import Engine
from octavo.engine.params import SamplingParams
from octavo.engine.scheduler.scheduler import Scheduler
from octavo.engine.step import Moves, StepOutput, StepPlan
from octavo.engine.transfer import Array, Shared
from octavo.engine.worker.launch import launch
from octavo.engine.worker.runner import Runner
from octavo.engine.worker.stream import AtOnce

from ..fakes.executor import FakeExecutor, PagingFault
from .loop import Loop, request
from .test_independence import alone, crowd, seen, tiny
from .test_worker import decode, one, start
from .tiny import tiny_config

UNENDING = SamplingParams(max_tokens=12, ignore_eos=True)

# --- the planner's side: a device that completes a step when it is let -------------------------


class Patient(FakeExecutor):
    """A device that completes step n only when step n + 1 has been handed over, or when `last`
    says that nothing more can be. A loop that waits for n before it plans n + 1 would wait for
    ever: here it fails."""

    def __init__(self, events: list[tuple[str, int]], **knobs: Any) -> None:
        super().__init__(**knobs)
        self._events = events
        self._collected = 0
        self.last: Callable[[], bool] = lambda: False

    def submit(self, plan: StepPlan) -> None:
        self._events.append(("submit", plan.number))
        super().submit(plan)

    def collect(self) -> StepOutput:
        assert len(self.plans) > self._collected + 1 or self.last(), "the device would stand still"
        self._collected += 1
        output = super().collect()
        self._events.append(("complete", output.number))
        return output


def logged(scheduler: Scheduler, events: list[tuple[str, int]], patch: pytest.MonkeyPatch) -> None:
    schedule, commit = scheduler.schedule, scheduler.commit

    def scheduled(now: float) -> StepPlan | None:
        plan = schedule(now)
        if plan is not None:
            events.append(("schedule", plan.number))
        return plan

    def committed(plan: StepPlan, output: StepOutput, now: float) -> Any:
        events.append(("commit", plan.number))
        return commit(plan, output, now)

    patch.setattr(scheduler, "schedule", scheduled)
    patch.setattr(scheduler, "commit", committed)


def test_the_next_step_is_there_before_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, int]] = []
    executor = Patient(events)
    scheduler = Scheduler(EngineConfig(model="fake"), executor.capacity)
    engine = Engine(scheduler, executor, overlap=1)
    logged(scheduler, events, monkeypatch)
    for name in "abc":
        engine.add(request(name, [5, 6, ord(name)], sampling=UNENDING))
    # All are as long, so that what max_tokens ends is known beforehand: no step is for nothing.
    executor.last = lambda: len(executor.plans) == 12
    while not engine.idle:
        engine.step()
    assert len(executor.plans) == 12
    at = {event: place for place, event in enumerate(events)}
    for n in range(11):
        assert at["schedule", n + 1] < at["submit", n + 1] < at["complete", n] < at["commit", n]
        if n:
            assert at["commit", n - 1] < at["complete", n], "what n - 1 brought is dealt with"


def test_an_end_that_comes_as_a_surprise_costs_one_token_and_gives_it_to_nobody() -> None:
    loop = Loop(FakeExecutor(script=lambda prompt: (7, 8, 9)), depth=1)
    choice = loop.run(request("a", [5]))["a", 0]
    assert choice.token_ids == [7, 8, 9, 0]
    steps = [piece for plan in loop.executor.plans for piece in plan.slices]
    assert len(steps) == 5, "prompt, three tokens, and what was computed behind the end"


def test_a_length_that_is_known_costs_nothing() -> None:
    for depth in (0, 1):
        loop = Loop(depth=depth)
        loop.run(request("a", [5, 6], sampling=UNENDING))
        assert len(loop.executor.plans) == 12


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_no_block_is_given_away_before_its_last_reader_is_done(preemption: str) -> None:
    """`Readers` looks at every plan; in a cache for one, with forks, ends and preemptions."""
    requests = crowd(24, n=2, seed=5)
    loop = Loop(tiny(8, host_tokens=400), depth=1, budget=48, preemption=preemption)
    assert seen(loop.run(*requests)) == alone(requests)
    stats = loop.scheduler.stats()
    assert stats.preemptions_recompute + stats.preemptions_swap > 0
    assert loop.executor.readers.overlapped > 20


def test_without_the_fence_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockManager, "_fence", property(lambda self: None))
    with pytest.raises(PagingFault, match=r"in flight|still read|under a reader's eyes"):
        Loop(tiny(8, host_tokens=400), depth=1, budget=48, checked=False).run(
            *crowd(24, n=2, seed=5)
        )


@pytest.mark.parametrize("cut", range(1, 9))
def test_who_leaves_while_a_step_of_his_is_in_flight_disturbs_nobody(cut: int) -> None:
    requests = crowd(6, n=2, seed=cut)
    expected = alone(requests)
    loop = Loop(FakeExecutor(max_model_len=192, eos_rate=0.02, num_blocks=600), depth=1)
    loop.add(*requests)
    for _ in range(cut):
        loop.step()
    loop.plan()
    loop.scheduler.abort(requests[0].id)
    loop.scheduler.abort(requests[1].id, 1)
    got = seen(loop.run())
    gone = {(requests[0].id, 0), (requests[0].id, 1), (requests[1].id, 1)}
    assert {key: value for key, value in got.items() if key not in gone} == {
        key: value for key, value in expected.items() if key not in gone
    }
    for key in gone & got.keys():
        assert got[key][0] == expected[key][0][: len(got[key][0])]


# --- the worker's side: tokens that the host does not know when it launches --------------------


class Late(Shared):
    """Sampled tokens reach the host as late as they can: only when the next step has been given to
    the device. `early` counts what was asked for before."""

    def __init__(self) -> None:
        self.sends = 0
        self.early = 0
        self.late = 0

    def send(self, *arrays: Array) -> list[Tensor]:
        self.sends += 1
        return super().send(*arrays)

    def receive(self, *tensors: Tensor) -> Callable[[], list[Array]]:
        kept = [tensor.numpy(force=True).copy() for tensor in tensors]
        mark = self.sends

        def arrived() -> list[Array]:
            if self.sends > mark:
                self.late += 1
            else:
                self.early += 1
            return kept

        return arrived


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[Late]:
    transfer = Late()
    monkeypatch.setattr("octavo.engine.worker.launch.transfer_to", lambda device: transfer)
    yield transfer


KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "logprobs": 2},
    {"temperature": 1.0, "presence_penalty": 0.8, "repetition_penalty": 1.3},
    {"temperature": 1.0, "bad_words_ids": ((5, 6), (7,)), "min_tokens": 4, "n": 2},
    {"temperature": 0.7, "top_p": 0.9, "logit_bias": {9: 2.0}},
]


@pytest.mark.parametrize("device", ["a thread", "streams", "streams, and inputs made there"])
@pytest.mark.parametrize("kinds", [KINDS[:2], KINDS], ids=["plain", "all"])
def test_the_next_step_is_launched_before_its_tokens_are_known(
    tmp_path: Path, late: Late, kinds: list[dict[str, Any]], device: str, monkeypatch: Any
) -> None:
    threaded = device == "a thread"
    if not threaded:  # as for a device with streams of its own
        monkeypatch.setattr("octavo.engine.executor.inline.has_streams", lambda device: True)
    if device.endswith("made there"):
        monkeypatch.setattr("octavo.engine.worker.launch.has_streams", lambda device: True)
    requests = [
        request(
            f"r{i}",
            [(7 * i + j) % 90 + 2 for j in range(20)],
            seed=i,
            sampling=SamplingParams(max_tokens=20, ignore_eos=True, **kinds[i % len(kinds)]),
        )
        for i in range(10)
    ]
    seen: list[dict[tuple[str, int], list[Any]]] = []
    for overlap in ("off", "on"):
        engine, _ = build_engine(tiny_config(tmp_path, overlap=overlap), lambda *_: None)
        late.early = late.late = 0
        for item in requests:
            engine.add(item)
        got: dict[tuple[str, int], list[Any]] = {}
        while not engine.idle:
            for delta in engine.step().deltas:
                assert delta.error is None
                heard = got.setdefault((delta.request_id, delta.index), [])
                heard += [*delta.token_ids, *delta.logprobs]
            engine.scheduler.check()
        engine.stop()
        seen.append(got)
    assert seen[0] == seen[1]
    if not threaded:  # a thread may be behind with what it was given before
        assert late.early == 1, "nothing is behind the last step"
        assert late.late >= 19


def runner_of(tmp_path: Path, **settings: object) -> Runner:
    """Its steps may be launched ahead."""
    return launch(tiny_config(tmp_path, overlap="on", **settings), lambda *_: None)[0]


def plan(number: int, *slices: Any, **more: Any) -> StepPlan:
    return StepPlan(number=number, slices=slices, **more)


def test_an_unknown_token_is_read_on_the_device_alone(tmp_path: Path) -> None:
    """What stands in the host's table where the token will be is poison."""
    runner = runner_of(tmp_path)
    expected = [
        one(runner, 0, start(0, [5, 6, 7])),
        *(one(runner, 1, decode(0, 3 + i)) for i in range(4)),
    ]
    one(runner, 0, retired=(0,))
    table = runner.computer._table  # type: ignore[attr-defined]
    table.token_ids[:] = -(1 << 30)
    runner.launch(plan(0, start(0, [5, 6, 7])))
    got = []
    for i in range(4):
        runner.launch(plan(1 + i, decode(0, 3 + i)))
        got.append(list(runner.land().results))
        table.check()
    got.append(list(runner.land().results))
    assert got == expected


def test_what_was_launched_behind_a_failure_is_launched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that lands fails when the next one, which rests on it, is under way."""
    runner = runner_of(tmp_path)
    expected = [one(runner, 0, start(0, [5, 6, 7]), start(1, [8, 9]))]
    expected += [one(runner, 1, decode(0, 3 + i), decode(1, 2 + i)) for i in range(3)]
    one(runner, 0, retired=(0, 1))
    for failing in range(3):
        landed = iter(range(100))
        land = runner.computer.land

        def fails(launched: Any, land: Any = land, landed: Any = landed, at: int = failing) -> Any:
            if next(landed) == at:
                raise RuntimeError("the device failed")
            return land(launched)

        got = []
        with monkeypatch.context() as broken:
            broken.setattr(runner.computer, "land", fails)
            runner.launch(plan(0, start(0, [5, 6, 7]), start(1, [8, 9])))
            for i in range(3):
                runner.launch(plan(1 + i, decode(0, 3 + i), decode(1, 2 + i)))
                output = runner.land()
                assert (output.attempts > 1) == (failing <= i <= failing + 1)
                got.append(list(output.results))
            got.append(list(runner.land().results))
        assert got == expected
        one(runner, 0, retired=(0, 1))


def test_moves_wait_for_a_step_that_may_fail_and_rows_for_the_last_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread computes: what it was given may raise later."""
    monkeypatch.setattr(AtOnce, "raises_at_once", False)
    runner = runner_of(tmp_path)
    events: list[str] = []
    apply, land = runner._kv.apply, runner.computer.land
    monkeypatch.setattr(
        runner._kv, "apply", lambda moves: (events.append("moves"), apply(moves))[1]
    )
    monkeypatch.setattr(
        runner.computer, "land", lambda launched: (events.append("land"), land(launched))[1]
    )
    table = runner.computer._table  # type: ignore[attr-defined]
    runner.launch(plan(0, start(0, [5, 6, 7]), start(1, [8, 9])))
    runner.launch(plan(1, decode(1, 2), retired=(0,), moves=Moves(copies=((3, 60),))))
    assert events == []
    first = runner.land()
    assert events == ["land", "moves"]
    assert all(result.token_ids for result in first.results), "also of who has gone meanwhile"
    assert len(table) == 1
    runner.launch(plan(2, decode(1, 3), retired=()))
    runner.launch(plan(3, start(2, [4]), retired=(1,)))
    assert len(table) == 2, "sequence 1 is still named"
    assert runner.land().results[0].token_ids
    assert runner.land().results[0].token_ids
    assert len(table) == 1
    assert runner.land().results[0].token_ids
    table.check()


def test_moves_follow_a_step_that_the_device_has_been_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it raises at once what it will not do; a step whose sampler still waits may."""
    runner = runner_of(tmp_path)
    moved: list[Moves] = []
    apply = runner._kv.apply
    monkeypatch.setattr(runner._kv, "apply", lambda moves: (moved.append(moves), apply(moves))[1])
    waiting = SamplingParams(temperature=0.0, bad_words_ids=((5, 6),), max_tokens=None)
    moves = Moves(copies=((3, 60),))
    runner.launch(plan(0, start(0, [5, 6, 7], waiting)))
    runner.launch(plan(1, decode(0, 3), moves=moves))
    assert moved == [moves], "the first token waits for nothing"
    runner.land()
    runner.launch(plan(2, decode(0, 4), moves=moves))
    assert len(moved) == 2, "the token before has come, and its sampler has been given"
    runner.launch(plan(3, decode(0, 5), moves=moves))
    assert len(moved) == 2, "two are under way"
    runner.land()
    assert len(moved) == 2
    runner.land()
    assert len(moved) == 3
    assert runner.land().results[0].token_ids


@pytest.mark.parametrize("times", [1, 2])
def test_what_fails_to_land_behind_moves_is_read_again_and_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Its blocks may be somebody else's by then: nobody writes to them. Who comes after it goes on,
    and nothing is moved twice."""
    runner = runner_of(tmp_path)
    first = one(runner, 0, start(0, [5, 6, 7]))
    one(runner, 0, retired=(0,))
    one(runner, 0, start(1, [8, 9]))
    expected = one(runner, 1, decode(1, 2))
    one(runner, 2, retired=(1,))
    launched: list[int] = []
    launch_, apply = runner.computer.launch, runner._kv.apply
    moved: list[Moves] = []
    one(runner, 3, start(1, [8, 9]))
    monkeypatch.setattr(runner._kv, "apply", lambda moves: (moved.append(moves), apply(moves))[1])
    runner.launch(plan(4, start(0, [5, 6, 7])))
    runner.launch(plan(5, decode(1, 2), moves=Moves(copies=((0, 60),))))
    assert len(moved) == 1
    monkeypatch.setattr(
        runner.computer, "launch", lambda some: (launched.append(len(some)), launch_(some))[1]
    )

    failing = iter(range(times))
    keep = runner.computer._keep  # type: ignore[attr-defined]

    def fails(*given: Any) -> Any:
        if next(failing, None) is not None:
            raise RuntimeError("the host failed")
        keep(*given)

    with monkeypatch.context() as broken:
        broken.setattr(runner.computer, "_keep", fails)
        if times == 1:
            assert list(runner.land().results) == first
        else:
            with pytest.raises(RuntimeError, match="the host failed"):
                runner.land()
    assert launched == [1] * (times - 1), "the step behind it, once more; it not"
    assert list(runner.land().results) == expected
    assert len(moved) == 1
    runner.computer._table.check()  # type: ignore[attr-defined]


def test_only_what_depends_on_what_was_said_waits(tmp_path: Path) -> None:
    runner = runner_of(tmp_path)
    computer: Any = runner.computer
    kinds: list[tuple[dict[str, Any], bool]] = [
        ({"temperature": 1.0}, False),
        ({"frequency_penalty": 1.0, "repetition_penalty": 1.1}, False),  # counted on the device
        ({"bad_words_ids": ((5,), (7,))}, False),  # whatever has been said
        ({"bad_words_ids": ((5, 6), (7,))}, True),
    ]
    for kind, waits in kinds:
        params = SamplingParams(max_tokens=None, **kind)
        first = computer.launch([start(0, [5, 6, 7], params)])
        second = computer.launch([decode(0, 3)])
        assert second.computed is not None, "the model runs in any case"
        assert (second.drawn is None) == waits
        computer.land(first)
        computer.sample(second)
        assert computer.land(second)[0].token_ids
        computer.forget((0,))
        assert np.array_equal(computer._table.lengths, computer._table._kept)
