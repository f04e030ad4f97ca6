"""A step that raises is computed in halves until the culprits stand alone."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.device import is_out_of_memory
from octavo.engine.errors import DeviceLost
from octavo.engine.kv_cache import KVCache
from octavo.engine.params import SamplingParams
from octavo.engine.sampling.rules import standard_rules
from octavo.engine.sampling.sampler import Sampler
from octavo.engine.step import History, Moves, Slice, SliceResult, StepPlan, TokenLogprobs, Wants
from octavo.engine.worker.computer import Launched
from octavo.engine.worker.halves import Attempt
from octavo.engine.worker.launch import launch
from octavo.engine.worker.runner import Runner
from octavo.engine.worker.sequences import SequenceTable
from octavo.kernels import registry

from .histories import histories, sample_now
from .tiny import tiny_config

GREEDY = SamplingParams(temperature=0.0, max_tokens=None)


def decode(sequence: int, wants: Wants = Wants.TOKEN) -> Slice:
    return Slice(sequence=sequence, start=9, count=1, wants=wants)


class Fragile:
    """Computes, unless `fails` says that these slices cannot be computed together."""

    def __init__(self, fails: Callable[[set[int]], bool], error: Exception | None = None) -> None:
        self._fails = fails
        self._error = error or RuntimeError("secret words from /some/path")
        self.calls: list[list[int]] = []

    def __call__(self, slices: Sequence[Slice]) -> list[SliceResult]:
        sequences = [part.sequence for part in slices]
        self.calls.append(sequences)
        if self._fails(set(sequences)):
            raise self._error
        return [SliceResult(sequence=i, token_ids=(100 + i,)) for i in sequences]


def attempt(fragile: Fragile, count: int) -> tuple[Attempt, list[SliceResult]]:
    made = Attempt(fragile)
    results = made.results([decode(i) for i in range(count)])
    assert [result.sequence for result in results] == list(range(count))
    assert made.count == len(fragile.calls)
    return made, results


def errors(results: Sequence[SliceResult]) -> set[int]:
    assert all(bool(r.token_ids) != bool(r.error) for r in results)
    return {result.sequence for result in results if result.error}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_culprits_fail_and_nobody_else_in_few_attempts(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 80))
    culprits = data.draw(st.sets(st.integers(0, count - 1), max_size=6))
    fragile = Fragile(lambda together: bool(together & culprits))
    made, results = attempt(fragile, count)
    assert errors(results) == culprits == made.culprits.keys()
    depth = math.ceil(math.log2(count)) if count > 1 else 0
    assert made.count <= 1 + 2 * len(culprits) * max(1, depth)
    for sequence in set(range(count)) - culprits:
        good = [call for call in fragile.calls if sequence in call and not culprits & {*call}]
        assert len(good) == 1, "nobody may be computed twice once it has gone well"


def test_one_culprit_among_64_takes_13_attempts() -> None:
    made, results = attempt(Fragile(lambda together: 41 in together), 64)
    assert errors(results) == {41}
    assert made.count == 13


def test_culprits_that_fail_only_together_do_not_fail() -> None:
    made, results = attempt(Fragile(lambda together: {3, 60} <= together), 64)
    assert errors(results) == set()
    assert (made.count, len(made.failures), made.culprits) == (3, 1, {})


def test_all_can_be_culprits() -> None:
    made, results = attempt(Fragile(bool), 8)
    assert errors(results) == set(range(8))
    assert made.count == 15


def test_what_passes_does_not_end_the_only_sequence_of_a_step() -> None:
    once = iter([True, False])
    assert errors(attempt(Fragile(lambda _: next(once)), 1)[1]) == set()
    made, results = attempt(Fragile(bool), 1)
    assert errors(results) == {0}
    assert made.count == 2


def test_a_client_reads_a_sentence_and_nothing_of_the_exception() -> None:
    _, (result,) = attempt(Fragile(bool), 1)
    assert result.error == (
        "This request could not be computed: the engine failed with RuntimeError at tokens 9 to "
        "9, also when it computed them alone; the server's log says more."
    )


class Scarce:
    """Runs out of memory where more than `most` tokens are computed at a time."""

    def __init__(self, most: int, error: Exception) -> None:
        self._most = most
        self._error = error
        self.counts: list[int] = []

    def __call__(self, slices: Sequence[Slice]) -> list[SliceResult]:
        self.counts.append(sum(part.count for part in slices))
        if self.counts[-1] > self._most:
            raise self._error
        return [self._result(part) for part in slices]

    def _result(self, part: Slice) -> SliceResult:
        positions = range(part.start, part.start + part.count)
        scored = positions if part.wants & Wants.PROMPT_LOGPROBS else ()
        return SliceResult(
            sequence=part.sequence,
            token_ids=(positions[-1] + 1,) if part.wants & Wants.TOKEN else (),
            prompt_logprobs=tuple(TokenLogprobs(token_id=i, logprob=0.0, rank=1) for i in scored),
            embedding=(float(sum(positions)),) if part.wants & Wants.EMBEDDING_SUM else (),
        )


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_out_of_memory_is_answered_with_less_at_a_time(error: Exception) -> None:
    wants = Wants.TOKEN | Wants.PROMPT_LOGPROBS | Wants.EMBEDDING_SUM
    long = Slice(sequence=1, start=16, count=200, wants=wants)
    scarce = Scarce(60, error)
    made = Attempt(scarce)
    small, large = made.results([decode(0), long])
    assert small.token_ids == (10,)
    assert large.error is None
    assert large.token_ids == (216,)
    assert [named.token_id for named in large.prompt_logprobs] == list(range(16, 216))
    assert large.embedding == (float(sum(range(16, 216))),)
    assert scarce.counts == [201, 1, 200, 100, 50, 50, 100, 50, 50]
    assert not made.culprits


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_the_largest_offender_fails_alone_and_is_told_a_way_out(error: Exception) -> None:
    scarce = Scarce(10, error)
    made = Attempt(scarce)
    long = Slice(
        sequence=1, start=5, count=200, wants=Wants.PROMPT_LOGPROBS, token_ids=(7,), blocks=(1, 2)
    )
    small, large = made.results([decode(0), long])
    assert small.token_ids == (10,)
    assert made.culprits.keys() == {1}
    assert large.error == (
        "The server's memory is not enough to compute this request, even alone and 12 of its "
        "tokens at a time (from token 5 on); it takes fewer prompt_logprobs, a shorter prompt or a "
        "smaller --max-num-batched-tokens of the server."
    )
    assert scarce.counts == [201, 1, 200, 100, 50, 25, 12]


def test_a_real_allocation_that_fails_is_known_as_one() -> None:
    for allocate in (lambda: torch.empty(1 << 50), lambda: bytearray(1 << 62)):
        with pytest.raises((RuntimeError, MemoryError)) as failed:
            allocate()
        assert is_out_of_memory(failed.value)
    assert not is_out_of_memory(RuntimeError("size mismatch"))
    assert not is_out_of_memory(OSError(2, "No such file"))


def test_tensors_of_a_failed_attempt_are_gone_before_the_next() -> None:
    """The exception of an attempt holds its frames, and these the tensors of a whole step."""
    held: list[weakref.ref[torch.Tensor]] = []

    def compute(slices: Sequence[Slice]) -> list[SliceResult]:
        assert all(tensor() is None for tensor in held)
        activations = torch.zeros(4)
        held.append(weakref.ref(activations))
        if len(slices) > 1:
            raise MemoryError
        return [SliceResult(sequence=part.sequence) for part in slices]

    Attempt(compute).results([decode(i) for i in range(4)])
    assert len(held) == 7


# --- the runner, with a model ------------------------------------------------------------------


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    torch.set_num_threads(1)
    return launch(tiny_config(tmp_path, swap_space=1 << 20), lambda *_: None)[0]


def begin(sequence: int, *tokens: int) -> Slice:
    history = History(
        params=GREEDY,
        seed=5,
        prompt_length=len(tokens),
        token_ids=tokens,
        request_id=f"request-{sequence}",
    )
    return Slice(
        sequence=sequence,
        start=0,
        count=len(tokens),
        wants=Wants.TOKEN,
        blocks=(2 * sequence, 2 * sequence + 1),
        history=history,
    )


def next_token(sequence: int, position: int) -> Slice:
    return Slice(sequence=sequence, start=position, count=1, wants=Wants.TOKEN)


class Poisoned:
    """Around a computer: raises whenever one of some sequences is computed."""

    def __init__(self, runner: Runner, *sequences: int) -> None:
        self._inner = runner.computer
        self.sequences = set(sequences)
        self.calls: list[list[int]] = []
        runner.computer = self

    def ready(self, params: SamplingParams) -> bool:
        return self._inner.ready(params)

    def begin(self, plan: StepPlan) -> None:
        self._inner.begin(plan)

    def forget(self, sequences: Iterable[int]) -> None:
        self._inner.forget(sequences)

    def launch(self, slices: Sequence[Slice]) -> Launched:
        self.calls.append([part.sequence for part in slices])
        if self.sequences & set(self.calls[-1]):
            raise RuntimeError("poison")
        return self._inner.launch(slices)

    def sample(self, launched: Launched) -> None:
        self._inner.sample(launched)

    def land(self, launched: Launched) -> list[SliceResult]:
        return self._inner.land(launched)

    def rewind(self) -> None:
        self._inner.rewind()


def test_moves_are_done_once_and_slices_again(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Moves] = []
    monkeypatch.setattr(KVCache, "apply", lambda self, moves: moved.append(moves))
    computer = Poisoned(runner, 2)
    moves = Moves(swap_out=((1, 1),))
    slices = (begin(1, 5, 6), begin(2, 5, 7), begin(3, 5, 8))
    output = runner.execute(StepPlan(number=4, slices=slices, moves=moves))
    assert moved == [moves]
    assert errors(output.results) == {2}
    assert output.attempts == len(computer.calls) == 5
    assert output.number == 4


def test_a_culprit_that_is_named_once_more_is_not_computed_once_more(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    computer = Poisoned(runner, 2)
    first = runner.execute(StepPlan(number=0, slices=(begin(1, 5, 6), begin(2, 5, 7))))
    computer.calls.clear()
    again = runner.execute(StepPlan(number=1, slices=(next_token(1, 2), next_token(2, 2))))
    assert computer.calls == [[1]]
    assert again.results[1] == first.results[1]
    assert errors(again.results) == {2}
    only = runner.execute(StepPlan(number=2, slices=(next_token(2, 2),)))
    assert errors(only.results) == {2}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "request request-2 cannot be computed" in caplog.text
    assert "RuntimeError: poison" in caplog.text
    computer.sequences.clear()  # another sequence of that number, some day
    runner.execute(StepPlan(number=3, slices=(), retired=(2,)))
    fresh = runner.execute(StepPlan(number=4, slices=(begin(2, 5, 7),)))
    assert errors(fresh.results) == set()


def test_the_log_names_all_culprits_of_a_step_in_one_line(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    Poisoned(runner, 0, 2)
    slices = tuple(begin(i, 5, 6 + i) for i in range(4))
    runner.execute(StepPlan(number=7, slices=slices))
    (record,) = caplog.records
    assert "step 7: request request-0, request-2 cannot be computed" in record.getMessage()


def test_a_failure_that_passes_is_remarked_on(
    runner: Runner, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = iter([True, False, False])
    forward = runner.computer._model.forward  # type: ignore[attr-defined]

    def once(*args: object) -> torch.Tensor:
        hidden: torch.Tensor = forward(*args)
        if next(fails):
            raise RuntimeError("cosmic ray")
        return hidden

    monkeypatch.setattr(runner.computer._model, "forward", once)  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING):
        output = runner.execute(StepPlan(number=0, slices=(begin(0, 5), begin(1, 6))))
    assert errors(output.results) == set()
    assert output.attempts == 3
    assert len(caplog.records) == 1
    assert "step 0 failed with RuntimeError; its 2 sequences could be computed" in caplog.text


def test_nothing_to_compute_cannot_fail(runner: Runner) -> None:
    Poisoned(runner, 2)
    runner.execute(StepPlan(number=0, slices=(begin(2, 5, 7),)))
    computer = runner.computer
    assert isinstance(computer, Poisoned)
    computer.calls.clear()
    output = runner.execute(StepPlan(number=1, slices=(next_token(2, 2),)))
    assert errors(output.results) == {2}
    assert computer.calls == []


def test_who_cannot_be_admitted_fails_alone(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = runner.computer._sampler  # type: ignore[attr-defined]
    admit = sampler.admit

    def picky(row: int, params: SamplingParams, seed: int) -> None:
        if params.top_k == 13:
            raise ValueError("bad luck")
        admit(row, params, seed)

    alone = runner.execute(StepPlan(number=0, slices=tuple(begin(i, 5, 6 + i) for i in range(4))))
    runner.execute(StepPlan(number=1, slices=(), retired=(0, 1, 2, 3)))
    monkeypatch.setattr(sampler, "admit", picky)
    slices = [begin(i, 5, 6 + i) for i in range(4)]
    assert slices[2].history is not None
    params = replace(GREEDY, temperature=1.0, top_k=13)
    slices[2] = slices[2]._replace(history=replace(slices[2].history, params=params))
    output = runner.execute(StepPlan(number=2, slices=tuple(slices)))
    assert errors(output.results) == {2}
    assert [r for i, r in enumerate(output.results) if i != 2] == [
        r for i, r in enumerate(alone.results) if i != 2
    ]


# --- memory that is missing half way -----------------------------------------------------------


def failing_at(call: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, but the call of that number (from 0) finds no memory."""
    calls = count()

    def sometimes(*arguments: Any, **more: Any) -> Any:
        if next(calls) == call:
            raise MemoryError
        return real(*arguments, **more)

    return sometimes


@pytest.mark.parametrize("call", range(6))
def test_a_sequence_table_that_cannot_grow_is_as_it_was(
    call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = SequenceTable(rows=1, longest=32, block_size=16)
    assert table.row(begin(0, 5, 6)) == 0
    with monkeypatch.context() as short:
        short.setattr(np, "concatenate", failing_at(call, np.concatenate))
        with pytest.raises(MemoryError):
            table.row(begin(1, 5, 7))
    table.check()
    assert table.row(begin(1, 5, 7)) == 1
    assert table.token_ids[:2, :2].tolist() == [[5, 6], [5, 7]]


def test_a_sampler_that_cannot_grow_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=1.0, frequency_penalty=1.0)
    ops = registry.resolve(torch.device("cpu"))
    sampler = Sampler(16, standard_rules(16, (1,), ops), ops)
    places = [(np, "concatenate", i) for i in range(3)] + [(np, "pad", 0)]
    row = 0
    for module, name, call in places:
        with monkeypatch.context() as short:
            short.setattr(module, name, failing_at(call, getattr(module, name)))
            with pytest.raises(MemoryError):
                sampler.admit(row, params, 7)
        sampler.admit(row, params, 7)
        known = histories([[3, 4]] * (row + 1))
        sampled = sample_now(sampler, torch.randn(1, 16), np.array([row]), known)
        assert not sampled.errors
        row = 3 * row + 50  # beyond what has been grown to
    for call in range(3):  # what grows when it is used
        sampler.admit(row, params, 7)
        known = histories([[3, 4]] * (row + 1))
        with monkeypatch.context() as short:
            short.setattr(torch, "zeros", failing_at(call, torch.zeros))
            with pytest.raises(MemoryError):
                sample_now(sampler, torch.randn(1, 16), np.array([row]), known)
        assert not sample_now(sampler, torch.randn(1, 16), np.array([row]), known).errors
        row = 3 * row + 50


LOST = RuntimeError(
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might"
)


def test_a_device_that_is_lost_is_no_slices_fault() -> None:
    """Every later call would fail in the same way, so nobody is looked for."""
    fragile = Fragile(lambda sequences: True, LOST)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        attempt(fragile, 8)
    assert len(fragile.calls) == 1


def test_moves_that_find_the_device_lost_end_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _ = launch(tiny_config(tmp_path), lambda *_: None)

    def lost(*_: object) -> None:
        raise LOST

    monkeypatch.setattr(runner._kv, "apply", lost)
    runner.launch(StepPlan(number=0, slices=(), moves=Moves(copies=((0, 1),))))
    with pytest.raises(DeviceLost):
        runner.land()
