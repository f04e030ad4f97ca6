"""Planning for sequences with a grammar: a step may yield several tokens, also those of the step
that is in flight behind it; they wait until their grammar is compiled; nothing changes what they
say.

To the fake executor a grammar only makes some tokens forced: the answers must be those of the same
requests without one.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from octavo.engine.config import EngineConfig
from octavo.engine.core import Engine
from octavo.engine.errors import SequenceFailed, Unsatisfiable
from octavo.engine.params import Emitted, FinishReason, GrammarKind, GrammarSpec, SamplingParams
from octavo.engine.scheduler.scheduler import Scheduler
from octavo.engine.step import GRAMMAR_FAULT, NOTHING_LEFT, Delta, failure_of

from ..fakes.executor import FakeExecutor
from .loop import Loop, request
from .test_independence import alone, crowd, seen, tiny

GRAMMAR = GrammarSpec(GrammarKind.REGEX, "whatever")
BOUND = SamplingParams(grammar=GRAMMAR, max_tokens=40, temperature=1.0)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_forced_runs_change_no_answer(depth: int, preemption: str) -> None:
    """In a crowd that is short of blocks, half of it bound, with forks and log-probabilities."""
    requests = crowd(24, n=2, seed=depth)
    bound = [
        replace(item, sampling=replace(item.sampling, grammar=GRAMMAR)) if i % 2 else item
        for i, item in enumerate(requests)
    ]
    loop = Loop(tiny(8, host_tokens=400), depth=depth, budget=48, preemption=preemption)
    assert seen(loop.run(*bound)) == alone(requests)
    stats = loop.scheduler.stats()
    assert stats.preemptions_recompute + stats.preemptions_swap > 0


def test_what_was_forced_is_computed_with_the_next_token_in_one_slice() -> None:
    loop = Loop()
    loop.run(request("a", [5, 6, 7], sampling=BOUND))
    pieces = [plan.slices[0] for plan in loop.executor.plans]
    assert max(piece.count for piece in pieces[1:]) == 4
    assert sum(piece.count for piece in pieces) == 3 + 40 - 1
    assert not any(piece.token_ids for piece in pieces), "the compute wing has them already"
    assert len(pieces) < 40


def test_who_samples_one_token_a_step_is_scheduled_ahead() -> None:
    """The first step, and one behind a step with a run, may bring a run: then nothing is drawn
    ahead of it."""
    loop = Loop(depth=1)
    loop.add(request("a", [5, 6, 7], sampling=replace(BOUND, max_tokens=200)))
    (sequence,) = loop.scheduler._roster.live.values()
    seen: Counter[tuple[bool, int]] = Counter()
    while loop.scheduler.has_work:
        while len(loop.in_flight) <= loop.depth and loop.plan() is not None:
            pass
        seen[sequence.stepwise, sequence.promised] += 1
        loop.land()
    loop.check_idle()
    assert seen[False, 2] > 3, "nothing was gained"
    assert seen[True, 1] > 3
    assert seen[True, 2] == 0


def test_a_step_behind_a_run_computes_and_draws_nothing_twice() -> None:
    loop = Loop(depth=1)
    loop.run(request("a", [5, 6, 7], sampling=BOUND))
    pieces = [piece for plan in loop.executor.plans for piece in plan.slices]
    assert [piece.start for piece in pieces] == [
        *itertools.accumulate([piece.count for piece in pieces[:-1]], initial=0)
    ]
    assert max(piece.count for piece in pieces[1:]) > 1


def test_a_long_prompt_is_chunked_ahead() -> None:
    """No token is awaited of a chunk."""
    loop = Loop(depth=1, budget=8)
    loop.add(request("a", range(1, 30), sampling=BOUND))
    first, second = loop.plan(), loop.plan()
    assert first is not None and second is not None
    assert second.slices[0].start == 8


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 11])
def test_a_run_is_cut_at_the_length_limit(limit: int) -> None:
    params = replace(BOUND, max_tokens=limit)
    choice = Loop().run(request("a", [5, 6], sampling=params))["a", 0]
    assert len(choice.token_ids) == limit
    assert choice.finish_reason is FinishReason.LENGTH


def test_a_run_is_cut_at_the_end_of_the_context() -> None:
    executor = FakeExecutor(max_model_len=32)
    params = replace(BOUND, max_tokens=None)
    choice = Loop(executor).run(request("a", [5, 6], sampling=params))["a", 0]
    assert len(choice.token_ids) == 30
    assert choice.finish_reason is FinishReason.LENGTH


def test_a_stop_token_in_a_run_ends_it() -> None:
    whole = Loop().run(request("a", [5, 6], sampling=BOUND))["a", 0].token_ids
    for place, token in enumerate(whole[:12]):
        params = replace(BOUND, stop_token_ids=(token,))
        choice = Loop().run(request("a", [5, 6], sampling=params))["a", 0]
        assert choice.token_ids == whole[: whole.index(token) + 1], place
        assert choice.last is not None and choice.last.stop_token_id == token


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 30}])
def test_the_end_of_a_whole_answer_is_its_end(fields: dict[str, object]) -> None:
    executor = FakeExecutor(script=lambda prompt: (7, 8, 9))
    params = replace(BOUND, **fields)  # type: ignore[arg-type]
    choice = Loop(executor).run(request("a", [5], sampling=params))["a", 0]
    assert choice.token_ids == [7, 8, 9, 0]
    assert choice.finish_reason is FinishReason.STOP


def test_a_resumed_request_goes_on_wherever_it_was_cut() -> None:
    asked = request("a", [5, 6, 7], sampling=replace(BOUND, n=2), seed=9)
    whole = seen(Loop().run(asked))
    for cut in range(40):
        emitted = tuple(Emitted(token_ids=tuple(whole["a", i][0][:cut])) for i in range(2))
        rest = seen(Loop().run(replace(asked, emitted=emitted)))
        for key, (token_ids, ending) in rest.items():
            assert (whole[key][0][:cut] + token_ids, ending) == whole[key]


def test_only_what_the_request_itself_causes_is_its_fault() -> None:
    for error in (NOTHING_LEFT, f"{GRAMMAR_FAULT} could not be followed: too big"):
        assert isinstance(failure_of(error), Unsatisfiable)
    assert isinstance(failure_of("the model's logits are not finite"), SequenceFailed)


class TestHeld:
    """The engine, while a grammar is being compiled."""

    def engine(self, executor: FakeExecutor) -> Engine:
        scheduler = Scheduler(EngineConfig(model="fake"), executor.capacity)
        return Engine(scheduler, executor, overlap=1)

    def drain(self, engine: Engine) -> list[Delta]:
        deltas: list[Delta] = []
        while not engine.idle:
            deltas += engine.step().deltas
        return deltas

    def test_it_waits_while_others_run(self) -> None:
        executor = FakeExecutor()
        executor.preparing = True
        engine = self.engine(executor)
        engine.add(request("bound", [5], sampling=replace(BOUND, n=2)))
        engine.add(request("free", [6], sampling=replace(BOUND, grammar=None), arrival=1.0))
        deltas = []
        for _ in range(60):
            deltas += engine.step().deltas
        assert {delta.request_id for delta in deltas} == {"free"}
        assert engine.stats().waiting >= 1
        assert not engine.idle
        executor.preparing = False
        assert {delta.request_id for delta in self.drain(engine)} == {"bound"}
        engine.scheduler.check()

    def test_waiting_for_it_costs_no_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A step that has nothing to do sleeps; one beside others that run does not."""
        naps: list[float] = []
        monkeypatch.setattr("octavo.engine.core.time.sleep", naps.append)
        executor = FakeExecutor()
        executor.preparing = True
        engine = self.engine(executor)
        engine.add(request("bound", [5], sampling=BOUND))
        for _ in range(7):
            engine.step()
        assert len(naps) == 7 and all(nap > 0 for nap in naps)
        engine.add(request("free", [6], sampling=replace(BOUND, grammar=None)))
        for _ in range(7):
            engine.step()
        assert len(naps) == 7

    def test_it_can_be_aborted_meanwhile(self) -> None:
        executor = FakeExecutor()
        executor.preparing = True
        engine = self.engine(executor)
        engine.add(request("bound", [5], sampling=replace(BOUND, n=2)))
        engine.step()
        engine.abort("bound", 1)
        engine.step()
        engine.abort("bound")
        assert engine.idle
        executor.preparing = False
        engine.add(request("next", [5], sampling=BOUND))
        assert {delta.request_id for delta in self.drain(engine)} == {"next"}
