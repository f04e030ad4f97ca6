"""Beam search against a brute-force reading of its definition."""

from __future__ import annotations

import pytest

from octavo.engine.params import FinishReason, Request, SamplingParams

from ..fakes.executor import FakeExecutor
from .loop import Loop, request

PROMPT = tuple(range(1, 20))


def candidates(context: tuple[int, ...], count: int) -> list[tuple[int, float]]:
    """What the model says after `context`, asked of an engine of its own."""
    loop = Loop(FakeExecutor(eos_rate=0.3, eos_token_ids=(0,)))
    loop.add(request("ask", context, sampling=SamplingParams(beam_width=count // 2, max_tokens=2)))
    plan = loop.plan()
    assert plan is not None
    return list(loop.executor.collect().results[0].candidates)


def reference(asked: Request) -> list[tuple[float, tuple[int, ...]]]:
    """Early-stopping beam search, written down plainly: (score, output ids), best first."""
    params = asked.sampling
    width, penalty, limit = params.beam_width, params.length_penalty, params.max_tokens
    assert limit is not None
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    while True:
        options = []
        for total, output in beams:
            for token, logprob in candidates(PROMPT + output, 2 * width):
                options.append((total + logprob, (*output, token)))
        options.sort(key=lambda option: -option[0])
        length = len(options[0][1])
        ended = [o for o in options[:width] if o[1][-1] == 0 or length == limit]
        finished += [(total / length**penalty, output) for total, output in ended]
        beams = [o for o in options if o[1][-1] != 0][:width]
        if length == limit or len(finished) >= width:
            finished.sort(key=lambda one: -one[0])
            return finished[: params.n]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(
    ("width", "n", "penalty", "limit"),
    [(1, 1, 1.0, 6), (2, 2, 1.0, 8), (3, 2, 0.0, 12), (4, 4, 2.0, 12), (4, 1, -1.0, 3)],
)
def test_beam_search(depth: int, width: int, n: int, penalty: float, limit: int) -> None:
    asked = request(
        "a",
        PROMPT,
        sampling=SamplingParams(n=n, beam_width=width, length_penalty=penalty, max_tokens=limit),
    )
    executor = FakeExecutor(eos_rate=0.3, eos_token_ids=(0,))
    loop = Loop(executor, depth=depth)
    loop.run(asked)
    expected = reference(asked)
    assert len(expected) == n
    for index, (score, output) in enumerate(expected):
        choice = loop.choices["a", index]
        assert tuple(choice.token_ids) == output
        assert choice.last is not None
        assert choice.last.score == pytest.approx(score)
        stopped = output[-1] == 0
        assert choice.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)


def test_beams_share_blocks_and_emit_nothing_before_the_end() -> None:
    loop = Loop(FakeExecutor(eos_token_ids=()))
    asked = SamplingParams(n=4, beam_width=4, max_tokens=20, prompt_logprobs=1)
    loop.add(request("a", range(1, 101), sampling=asked))
    for _ in range(19):
        assert loop.step() == []
        assert loop.scheduler.stats().blocks_used < 7 + 4 * 2
    assert {delta.index for delta in loop.step()} == {0, 1, 2, 3}
    loop.check_idle()
    stats = loop.scheduler.stats()
    assert stats.blocks_copied > 0
    scores = [choice.last.score for choice in loop.choices.values() if choice.last]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert len(loop.choices["a", 0].prompt_logprobs) == 99
    assert not loop.choices["a", 1].prompt_logprobs


def test_a_beam_continues_with_the_token_the_planner_chose() -> None:
    """The compute wing samples nothing for a beam: it is told each token."""
    loop = Loop(FakeExecutor(eos_token_ids=()))
    loop.run(request("a", [5, 6], sampling=SamplingParams(beam_width=2, max_tokens=6)))
    told = [p for plan in loop.executor.plans[1:] for p in plan.slices]
    assert all(len(p.token_ids) == 1 or p.history is not None for p in told)


def test_a_vocabulary_smaller_than_the_beam_still_answers_every_choice() -> None:
    loop = Loop(FakeExecutor(vocab_size=3, eos_token_ids=()))
    asked = SamplingParams(n=8, beam_width=8, max_tokens=1)
    loop.run(request("a", [1, 2], sampling=asked))
    assert len(loop.choices) == 8


@pytest.mark.parametrize("length", [1, 2, 30])
def test_no_output_wanted(length: int) -> None:
    loop = Loop()
    asked = SamplingParams(n=2, beam_width=2, max_tokens=0)
    loop.run(request("a", range(1, length + 1), sampling=asked))
    assert [choice.token_ids for choice in loop.choices.values()] == [[], []]
