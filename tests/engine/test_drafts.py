"""Planning with drafts: whatever is guessed, everybody is told the same, and no block, place or
token of the budget is lost over it.

The fake executor's guesses are right now and then, and its tokens depend on the cells that a block
table leads to: the answers must be those of the same requests without drafts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.engine.params import Emitted, FinishReason, SamplingParams

from ..fakes.executor import FakeExecutor
from .loop import Loop, guess_always, request
from .test_independence import MAX_MODEL_LEN, alone, crowd, seen, tiny

LONG = SamplingParams(max_tokens=40, ignore_eos=True, temperature=1.0)


@pytest.fixture(autouse=True, scope="module")
def _always() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        guess_always(patch)
        yield


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 40),
    n=st.sampled_from([1, 1, 3]),
    drafts=st.integers(1, 15),
    depth=st.sampled_from([0, 1, 2]),
    block_size=st.sampled_from([4, 8, 16]),
    budget=st.sampled_from([5, 16, 48, 2048]),
    places=st.sampled_from([2, 64]),
    host_tokens=st.sampled_from([0, 400]),
    preemption=st.sampled_from(["recompute", "swap", "auto"]),
    caching=st.booleans(),
    target=st.sampled_from([0.0, 0.004]),
)
def test_no_answer_depends_on_guesses(
    seed: int,
    n: int,
    drafts: int,
    depth: int,
    block_size: int,
    budget: int,
    places: int,
    host_tokens: int,
    preemption: str,
    caching: bool,
    target: float,
) -> None:
    requests = crowd(8, n=n, seed=seed)
    loop = Loop(
        tiny(block_size, host_tokens, drafts=drafts),
        depth=depth,
        budget=budget,
        max_num_seqs=places,
        preemption=preemption,
        prefix_caching=caching,
        itl_target=target,
    )
    assert seen(loop.run(*requests)) == alone(requests)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_who_gives_way_with_a_draft_in_flight_says_the_same(depth: int, preemption: str) -> None:
    """Short of blocks, in a crowd with forks."""
    requests = crowd(24, n=2, seed=depth)
    executor = tiny(8, host_tokens=400, drafts=6)
    loop = Loop(executor, depth=depth, budget=48, preemption=preemption)
    assert seen(loop.run(*requests)) == alone(requests)
    stats = loop.scheduler.stats()
    assert stats.preemptions_recompute + stats.preemptions_swap > 0
    assert 0 < sum(stats.drafts_accepted) < stats.draft_tokens


def test_right_guesses_save_steps_and_are_counted() -> None:
    loop = Loop(FakeExecutor(drafts=5))
    loop.run(request("a", [5, 6, 7], sampling=LONG))
    pieces = [plan.slices[0] for plan in loop.executor.plans]
    stats = loop.scheduler.stats()
    accepted = stats.drafts_accepted
    assert len(pieces) == 40 - sum(accepted)
    assert stats.drafts == sum(bool(piece.draft) for piece in pieces)
    assert stats.draft_tokens == sum(len(piece.draft) for piece in pieces)
    assert list(accepted) == sorted(accepted, reverse=True) and accepted[0] <= stats.drafts
    assert all(piece.count == 1 + len(piece.draft) for piece in pieces[1:])
    assert not any(piece.token_ids for piece in pieces), "the compute wing has them already"


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 11])
def test_nothing_is_guessed_beyond_the_length(limit: int) -> None:
    params = replace(LONG, max_tokens=limit)
    loop = Loop(FakeExecutor(drafts=15))
    choice = loop.run(request("a", [5, 6], sampling=params))["a", 0]
    assert len(choice.token_ids) == limit
    assert choice.finish_reason is FinishReason.LENGTH
    pieces = [piece for plan in loop.executor.plans for piece in plan.slices]
    assert max(piece.start + piece.count for piece in pieces) <= 2 + limit - 1 or limit == 1


def test_nothing_is_guessed_beyond_the_context() -> None:
    executor = FakeExecutor(max_model_len=32, num_blocks=2, drafts=15)
    choice = Loop(executor).run(request("a", [5], sampling=replace(LONG, max_tokens=None)))["a", 0]
    assert len(choice.token_ids) == 31


def test_a_stop_among_accepted_tokens_ends_it() -> None:
    whole = Loop().run(request("a", [5, 6], sampling=LONG))["a", 0].token_ids
    for place, token in enumerate(whole[:20]):
        params = replace(LONG, stop_token_ids=(token,), logprobs=1)
        loop = Loop(FakeExecutor(drafts=8))
        choice = loop.run(request("a", [5, 6], sampling=params))["a", 0]
        assert choice.token_ids == whole[: whole.index(token) + 1], place
        assert [one.token_id for one in choice.logprobs] == choice.token_ids
        assert choice.last is not None and choice.last.stop_token_id == token


def test_a_resumed_request_goes_on_wherever_it_was_cut() -> None:
    asked = request("a", [5, 6, 7], sampling=replace(LONG, n=2), seed=9)
    whole = seen(Loop().run(asked))
    for cut in range(40):
        emitted = tuple(Emitted(token_ids=tuple(whole["a", i][0][:cut])) for i in range(2))
        loop = Loop(FakeExecutor(drafts=4))
        rest = seen(loop.run(replace(asked, emitted=emitted)))
        for key, (token_ids, ending) in rest.items():
            assert (whole[key][0][:cut] + token_ids, ending) == whole[key]


def test_each_stream_gets_its_token_before_any_gets_guesses() -> None:
    loop = Loop(FakeExecutor(drafts=8), budget=6)
    loop.add(*(request(f"r{i}", [5 + i], sampling=LONG) for i in range(5)))
    for _ in range(12):
        loop.step()
    for plan in list(loop.executor.plans)[2:]:
        assert len(plan.slices) == 5
        assert sum(len(piece.draft) for piece in plan.slices) <= 1


def test_nobody_gives_way_to_a_guess() -> None:
    """Two sequences fill the cache to the last block, guesses would take one more."""
    loop = Loop(FakeExecutor(num_blocks=8, block_size=4, max_model_len=16, drafts=8))
    params = replace(LONG, max_tokens=None)
    loop.run(*(request(f"r{i}", [5 + i, 6], sampling=params) for i in range(2)))
    stats = loop.scheduler.stats()
    assert stats.drafts > 0
    assert stats.preemptions_recompute + stats.preemptions_swap == 0


def test_a_draft_is_not_planned_ahead_of() -> None:
    loop = Loop(FakeExecutor(drafts=4), depth=1)
    loop.add(request("a", [5, 6, 7], sampling=LONG))
    (sequence,) = loop.scheduler._roster.live.values()
    ahead = drafted = 0
    while loop.scheduler.has_work:
        while len(loop.in_flight) <= loop.depth and loop.plan() is not None:
            pass
        ahead += sequence.promised > 1
        drafted += sequence.drafted > 0
        assert not (sequence.drafted and sequence.in_flight > 1)
        loop.land()
    loop.check_idle()
    assert ahead > 0, "without a draft nothing waits"
    assert drafted > 3


def test_a_guess_is_found_as_a_prefix_only_when_it_was_right() -> None:
    """The next request shares all that the first said, and is told the same as without guesses."""
    found = []
    for drafts in (0, 7):
        loop = Loop(FakeExecutor(block_size=4, drafts=drafts))
        first = loop.run(request("a", range(5, 16), sampling=LONG))["a", 0].token_ids
        asked = request("b", [*range(5, 16), *first[:30], 3], sampling=LONG)
        second = loop.run(asked)["b", 0]
        found.append((first, second.token_ids, second.cached_tokens))
    assert found[0] == found[1]
    assert found[0][2] == 40


def test_what_fails_with_a_draft_in_flight_fails_alone() -> None:
    requests = crowd(6, seed=3)
    expected = alone(requests)
    for at in range(2, 12):
        loop = Loop(
            FakeExecutor(max_model_len=MAX_MODEL_LEN, eos_rate=0.02, num_blocks=600, drafts=5)
        )
        loop.add(*requests)
        for _ in range(at):
            loop.step()
        loop.executor.failing_slices = 1
        got = seen(loop.run())
        failed = [key for key, c in loop.choices.items() if c.error is not None]
        assert len(failed) <= 1
        assert {k: v for k, v in got.items() if k not in failed} == {
            k: v for k, v in expected.items() if k not in failed
        }
