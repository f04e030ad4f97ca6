"""Faults on purpose: how they are written, and when they strike."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import pytest

from octavo.engine.assembly import build_engine, launch_process
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.channel import Channel, Progress, StepReport, Submit
from octavo.engine.config import EngineConfig
from octavo.engine.faults.computer import FaultyComputer
from octavo.engine.faults.fault import parse_fault
from octavo.engine.faults.line import LossyLine
from octavo.engine.params import Request, SamplingParams
from octavo.engine.step import Delta, History, Slice, SliceResult, StepPlan, StepStats
from octavo.engine.worker.computer import Launched

from ..fakes.executor import FakeExecutor
from .tiny import tiny_config


@pytest.mark.parametrize(
    "text",
    [
        "raise@step=7",
        "raise@token=0",
        "delay:2.5@step=3",
        "oom@token=19",
        "exit@token=17@epoch=0",
        "kill@step=5",
        "freeze@step=9",
        "lose-message@step=9",
    ],
)
def test_a_fault_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_fault(f" {text} ")) == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must begin with one of raise, delay"),
        ("explode@step=1", "not 'explode'"),
        ("raise", "must say when"),
        ("raise@epoch=0", "must say when"),
        ("raise@step", "not 'step'"),
        ("raise@step=-1", "not 'step=-1'"),
        ("raise@step=1.5", "not 'step=1.5'"),
        ("raise@step=1@step=2", "each once"),
        ("raise@moon=1", "not 'moon=1'"),
        ("raise:2@step=1", "nothing else has any"),
        ("delay@step=1", "how many seconds"),
        ("delay:@step=1", "above 0"),
        ("delay:0@step=1", "above 0"),
        ("delay:nan@step=1", "above 0"),
        ("delay:soon@step=1", "not 'soon'"),
    ],
)
def test_what_is_no_fault_is_refused_in_words(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"^must ") as refusal:
        parse_fault(text)
    assert complaint in str(refusal.value)


class Recorder:
    """Computes nothing, and remembers which sequences it was given."""

    def __init__(self) -> None:
        self.computed: list[list[int]] = []

    def ready(self, params: SamplingParams) -> bool:
        return True

    def begin(self, plan: StepPlan) -> None:
        pass

    def forget(self, sequences: Iterable[int]) -> None:
        pass

    def launch(self, slices: Sequence[Slice]) -> Launched:
        self.computed.append([part.sequence for part in slices])
        return cast(Launched, None)

    def sample(self, launched: Launched) -> None:
        pass

    def land(self, launched: Launched) -> list[SliceResult]:
        return []

    def rewind(self) -> None:
        pass


def first(sequence: int, prompt: tuple[int, ...], output: tuple[int, ...] = ()) -> Slice:
    history = History(
        params=SamplingParams(), seed=1, prompt_length=len(prompt), token_ids=prompt + output
    )
    return Slice(sequence=sequence, start=0, count=len(prompt + output), history=history)


def later(sequence: int) -> Slice:
    return Slice(sequence=sequence, start=9, count=1)


def faulty(*faults: str, epoch: int = 0) -> tuple[FaultyComputer, Recorder]:
    recorder = Recorder()
    return FaultyComputer(recorder, [parse_fault(f) for f in faults], epoch=epoch), recorder


def strikes(computer: FaultyComputer, *slices: Slice) -> bool:
    try:
        computer.launch(slices)
    except (RuntimeError, MemoryError) as error:
        assert "on purpose" in str(error)
        return True
    return False


def test_a_fault_of_a_token_strikes_whenever_such_a_prompt_is_computed() -> None:
    computer, recorder = faulty("raise@token=17")
    computer.begin(StepPlan(number=0, slices=()))
    assert strikes(computer, first(1, (5, 17)), first(2, (5, 6), output=(17,)))
    assert strikes(computer, first(1, (5, 17)))
    assert not strikes(computer, first(2, (5, 6), output=(17,)))
    computer.begin(StepPlan(number=1, slices=()))
    assert strikes(computer, later(2), later(1))
    assert not strikes(computer, later(2))
    computer.begin(StepPlan(number=2, slices=()))
    computer.forget((1,))
    assert not strikes(computer, first(1, (5, 6)))
    assert recorder.computed == [[2], [2], [1]]


def test_a_fault_of_a_step_strikes_once() -> None:
    computer, recorder = faulty("oom@step=1")
    for number, expected in ((0, False), (1, True), (2, False)):
        computer.begin(StepPlan(number=number, slices=()))
        assert strikes(computer, later(1)) is expected
        assert not strikes(computer, later(1)), "the second attempt"
    assert len(recorder.computed) == 5


def test_conditions_hold_together() -> None:
    computer, _ = faulty("raise@token=17@step=1")
    for number, expected in ((0, False), (1, True), (2, False)):
        computer.begin(StepPlan(number=number, slices=()))
        assert strikes(computer, first(1, (17,))) is expected
    for epoch, expected in ((0, False), (1, True)):
        computer, _ = faulty("raise@step=0@epoch=1", epoch=epoch)
        computer.begin(StepPlan(number=0, slices=()))
        assert strikes(computer, later(1)) is expected


def test_what_befalls_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(os, "_exit", done.append)
    monkeypatch.setattr(os, "kill", lambda pid, number: done.append((pid, number)))
    monkeypatch.setattr(time, "sleep", done.append)
    computer, recorder = faulty("exit@step=0", "kill@step=0", "freeze@step=0", "delay:2.5@step=0")
    computer.begin(StepPlan(number=0, slices=()))
    computer.launch([later(1)])
    me = os.getpid()
    assert done == [70, (me, signal.SIGKILL), (me, signal.SIGSTOP), 2.5]
    assert recorder.computed == [[1]]


def request(name: str, *prompt: int, **params: object) -> Request:
    return Request(
        id=name,
        prompt_token_ids=prompt,
        sampling=SamplingParams(**params),  # type: ignore[arg-type]
        seed=7,
        arrival=time.monotonic(),
    )


def report(step: int, *requests: str, computed: int = 1) -> StepReport:
    deltas = tuple(Delta(request_id=name, token_ids=(1,)) for name in requests)
    return StepReport(deltas, StepStats(step=step, sequences_computed=computed))


def test_a_line_loses_the_reports_it_was_told_to_lose() -> None:
    near, far = socket.socketpair()
    front, engine = Channel(near, epoch=1), Channel(far, epoch=1)
    faults = ["lose-message@step=3", "lose-message@token=17", "lose-message@step=5@epoch=0"]
    line = LossyLine(engine, [parse_fault(fault) for fault in faults])
    front.send(Submit((request("good", 1, 2), request("bad", 1, 17))))
    assert len(line.receive(wait=True)) == 1
    sent = [
        report(2, "good"),
        report(3, "good"),
        report(3, computed=0),  # nothing was computed: no report of step 3
        report(4, "good", "bad"),
        report(5, "good"),
        Progress("loading", 0, 0),
    ]
    for message in sent:
        line.send(message)
    assert front.receive(wait=True) == [sent[0], sent[2], sent[4], sent[5]]
    front.close()
    engine.close()


async def tokens(config: EngineConfig) -> tuple[list[int], int]:
    """What one request yields, and how often the engine was restarted for it."""
    engine = AsyncEngine(lambda epoch: launch_process(config, epoch))
    await engine.start(lambda stage, done, total: None)
    try:
        asked = request("one", 5, 6, 7, max_tokens=12, ignore_eos=True)
        return [t async for delta in engine.generate(asked) for t in delta.token_ids], (
            engine.restarts
        )
    finally:
        await engine.stop()


@pytest.mark.slow
async def test_an_engine_that_leaves_in_a_step_is_restarted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = await tokens(tiny_config(tmp_path))
    assert "FAULTS" not in caplog.text
    with caplog.at_level(logging.WARNING):
        left = await tokens(tiny_config(tmp_path, test_fault=("exit@step=4@epoch=0",)))
    assert left == (expected, 1)
    assert "FAULTS ON PURPOSE" in caplog.text
    assert "exited with code 70" in caplog.text


def test_of_a_step_that_failed_as_a_whole_the_client_reads_a_sentence() -> None:
    executor = FakeExecutor()
    config = EngineConfig(model="fake", overlap="off")
    engine, _ = build_engine(config, lambda *_: None, executor)
    engine.add(request("one", 5, 6, 7))
    engine.add(request("two", 5, 6, 8))
    executor.failing_steps = 1
    failed = engine.step().deltas
    assert {delta.request_id for delta in failed} == {"one", "two"}
    assert {delta.error for delta in failed} == {
        "The engine failed with RuntimeError in the step that computed this request; the "
        "server's log says more."
    }
    engine.add(request("three", 5, 6, 7, max_tokens=1))
    assert [delta.error for delta in engine.step().deltas] == [None]
    engine.scheduler.check()
