"""What the scheduler promises, case by case, over the fake executor."""

from __future__ import annotations

import pytest

from octavo.engine.config import EngineConfig
from octavo.engine.errors import ConfigError
from octavo.engine.params import Emitted, FinishReason, Request, SamplingParams, choice_seed
from octavo.engine.scheduler.scheduler import Scheduler
from octavo.engine.step import SliceResult, StepOutput, Wants

from ..fakes.executor import FakeExecutor
from .loop import Loop, request

LONG = SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.0)


def sampling(**fields: object) -> SamplingParams:
    return SamplingParams(**{"ignore_eos": True, **fields})  # type: ignore[arg-type]


def script(*output: int) -> FakeExecutor:
    return FakeExecutor(eos_token_ids=(0, 1), script=lambda prompt: output)


class TestPlans:
    def test_running_sequences_first_then_waiting_ones_within_the_budget(self) -> None:
        loop = Loop(budget=8)
        loop.add(request("a", range(1, 6), sampling=LONG))
        loop.step()
        loop.add(request("b", range(20, 40), arrival=1.0, sampling=LONG))
        loop.step()
        pieces = loop.executor.plans[1].slices
        assert [(p.start, p.count) for p in pieces] == [(5, 1), (0, 7)]
        loop.step()
        pieces = loop.executor.plans[2].slices
        assert [(p.start, p.count) for p in pieces] == [(6, 1), (7, 7)]
        assert not pieces[1].wants and pieces[0].wants == Wants.TOKEN

    def test_a_decoding_slice_names_only_what_is_new(self) -> None:
        loop = Loop()
        loop.run(request("a", range(1, 31), sampling=LONG))
        first, *rest = (plan.slices[0] for plan in loop.executor.plans)
        assert first.history is not None and len(first.blocks) == 2
        for piece in rest:
            assert piece.history is None and piece.count == 1 and not piece.token_ids
            assert (len(piece.blocks) == 1) == (piece.start % 16 == 0)

    def test_what_has_ended_is_retired_with_the_next_plan(self) -> None:
        loop = Loop()
        loop.add(
            request("a", [5], sampling=sampling(max_tokens=1)), request("b", [6], sampling=LONG)
        )
        loop.step()
        ended = loop.executor.plans[0].slices[0].sequence
        loop.step()
        assert loop.executor.plans[1].retired == (ended,)

    def test_plans_must_be_committed_in_order(self) -> None:
        loop = Loop(depth=1)
        loop.add(request("a", [5], sampling=LONG))
        first, second = loop.plan(), loop.plan()
        assert first is not None and second is not None
        with pytest.raises(AssertionError):
            loop.scheduler.commit(second, StepOutput(number=1, results=()), 0.0)

    def test_a_capacity_that_cannot_hold_one_sequence_is_refused(self) -> None:
        capacity = FakeExecutor(num_blocks=3, max_model_len=64).capacity
        with pytest.raises(ValueError, match="max_model_len 64"):
            Scheduler(EngineConfig(model="fake"), capacity)

    @pytest.mark.parametrize("field", ["scheduling_policy", "preemption"])
    def test_an_unknown_policy_is_refused(self, field: str) -> None:
        capacity = FakeExecutor().capacity
        with pytest.raises(ConfigError, match=field):
            Scheduler(EngineConfig(model="fake", **{field: "lottery"}), capacity)  # type: ignore[arg-type]

    def test_two_live_requests_of_one_id_are_refused(self) -> None:
        loop = Loop()
        loop.add(request("a", [5]))
        with pytest.raises(ValueError, match="live"):
            loop.add(request("a", [5]))


class TestEnds:
    @pytest.mark.parametrize("depth", [0, 1])
    def test_end_of_sequence(self, depth: int) -> None:
        loop = Loop(script(7, 8, 1, 9), depth=depth)
        choice = loop.run(request("a", [5, 6]))["a", 0]
        assert choice.token_ids == [7, 8, 1]
        assert choice.finish_reason is FinishReason.STOP
        assert choice.last is not None and choice.last.stop_token_id is None

    def test_a_late_end_of_sequence_drops_what_was_computed_ahead(self) -> None:
        loop = Loop(script(7, 0), depth=1)
        loop.run(request("a", [5, 6]))
        assert loop.tokens("a") == [7, 0]
        assert sum(plan.token_count for plan in loop.executor.plans) == 2 + 1 + 1

    def test_the_length_limit_is_known_ahead(self) -> None:
        loop = Loop(script(7, 8, 9), depth=1)
        choice = loop.run(request("a", [5, 6], sampling=sampling(max_tokens=3)))["a", 0]
        assert choice.token_ids == [7, 8, 9] and choice.finish_reason is FinishReason.LENGTH
        assert sum(plan.token_count for plan in loop.executor.plans) == 2 + 2

    def test_stop_token_ids_are_named(self) -> None:
        loop = Loop(script(7, 8, 9))
        choice = loop.run(request("a", [5, 6], sampling=SamplingParams(stop_token_ids=(8,))))[
            "a", 0
        ]
        assert choice.token_ids == [7, 8]
        assert choice.last is not None and choice.last.stop_token_id == 8

    def test_ignored_end_of_sequence_still_stops_as_a_stop_token(self) -> None:
        asked = SamplingParams(ignore_eos=True, max_tokens=4, stop_token_ids=(9,))
        loop = Loop(script(7, 0, 9))
        assert loop.run(request("a", [5], sampling=asked))["a", 0].token_ids == [7, 0, 9]

    def test_an_end_before_min_tokens_does_not_end(self) -> None:
        asked = SamplingParams(min_tokens=2, max_tokens=9)
        loop = Loop(script(0, 0, 0, 5))
        assert loop.run(request("a", [5], sampling=asked))["a", 0].token_ids == [0, 0, 0]

    def test_without_max_tokens_the_context_is_the_limit(self) -> None:
        loop = Loop(FakeExecutor(max_model_len=64), depth=1)
        loop.run(request("a", range(1, 11), sampling=sampling(max_tokens=None)))
        assert len(loop.tokens("a")) == 54

    @pytest.mark.parametrize("length", [1, 2, 40])
    @pytest.mark.parametrize("n", [1, 3])
    def test_no_output_wanted_computes_the_prompt_and_samples_nothing(
        self, length: int, n: int
    ) -> None:
        loop = Loop(budget=16)
        asked = sampling(max_tokens=0, prompt_logprobs=1, n=n)
        choices = loop.run(request("a", range(1, length + 1), sampling=asked))
        assert [choices["a", i].finish_reason for i in range(n)] == [FinishReason.LENGTH] * n
        assert all(not choice.token_ids for choice in choices.values())
        assert len(choices["a", 0].prompt_logprobs) == length - 1
        assert not any(p.wants & Wants.TOKEN for plan in loop.executor.plans for p in plan.slices)

    def test_timing(self) -> None:
        loop = Loop(script(7, 8, 9))
        loop.now = 10.0
        asked = sampling(max_tokens=3)
        choice = loop.run(request("a", [5], arrival=9.0, sampling=asked))["a", 0]
        assert choice.last is not None and choice.last.timing is not None
        timing = choice.last.timing
        assert (timing.arrival, timing.first_scheduled, timing.first_token) == (9.0, 11.0, 11.0)
        assert timing.finished == 13.0


class TestFairness:
    @pytest.mark.parametrize("depth", [0, 1])
    @pytest.mark.parametrize("host", [0, 12])
    def test_first_come_first_served_starves_nobody(self, depth: int, host: int) -> None:
        """New requests never stop coming, blocks are short: the old ones end all the same, and
        in about the order of their arrival."""
        loop = Loop(
            FakeExecutor(num_blocks=7, num_host_blocks=host, max_model_len=96),
            depth=depth,
            budget=32,
        )
        for number in range(400):
            prompt = range(1, 10 + number * 7 % 50)
            asked = sampling(max_tokens=4 + number * 11 % 30)
            loop.add(request(f"r{number}", prompt, arrival=float(number), sampling=asked))
            loop.step()
        ended = [int(name[1:]) for (name, _), choice in loop.choices.items() if choice.last]
        assert len(ended) > 30
        assert set(range(max(ended) - 6)) <= set(ended)


class TestPrefixes:
    def test_the_second_request_attaches_and_computes_the_rest(self) -> None:
        loop = Loop()
        loop.run(request("a", range(1, 41), sampling=LONG))
        assert loop.choices["a", 0].cached_tokens == 0
        loop.run(request("b", range(1, 41), sampling=LONG))
        assert loop.choices["b", 0].cached_tokens == 32
        assert loop.tokens("a") == loop.tokens("b")
        assert loop.scheduler.stats().prefix_hits == 32

    def test_the_last_prompt_token_is_computed_even_on_a_full_hit(self) -> None:
        loop = Loop()
        loop.run(request("a", range(1, 33), sampling=LONG))
        loop.run(request("b", range(1, 33), sampling=LONG))
        assert loop.choices["b", 0].cached_tokens == 16
        assert loop.tokens("a") == loop.tokens("b")

    def test_salt_and_adapter_separate(self) -> None:
        loop = Loop()
        loop.run(request("a", range(1, 41)))
        loop.run(
            request("b", range(1, 41), cache_salt="x"), request("c", range(1, 41), adapter="y")
        )
        assert loop.choices["b", 0].cached_tokens == loop.choices["c", 0].cached_tokens == 0

    def test_prompt_logprobs_attach_nothing_and_are_given_once(self) -> None:
        loop = Loop(budget=16)
        loop.run(request("a", range(1, 41)))
        asked = sampling(prompt_logprobs=2, max_tokens=4)
        choice = loop.run(request("b", range(1, 41), sampling=asked))["b", 0]
        assert choice.cached_tokens == 0
        assert [score.token_id for score in choice.prompt_logprobs] == list(range(2, 41))

    @pytest.mark.parametrize("depth", [0, 1])
    def test_a_request_is_held_back_while_its_prefix_is_being_computed(self, depth: int) -> None:
        loop = Loop(depth=depth, budget=64)
        shared = range(1, 101)
        loop.run(
            request("a", [*shared, 200], sampling=LONG),
            request("b", [*shared, 201], arrival=1.0, sampling=LONG),
            request("other", range(300, 310), arrival=2.0, sampling=LONG),
        )
        assert loop.choices["b", 0].cached_tokens == 96
        computed = sum(p.count for plan in loop.executor.plans for p in plan.slices if p.count > 1)
        assert computed == 101 + (101 - 96) + 10
        other = next(c.last for (name, _), c in loop.choices.items() if name == "other")
        assert other is not None and other.timing is not None
        assert other.timing.first_scheduled <= 2.0, "who waits for nobody is not held back"

    def test_usage_counts_the_first_attempt_only(self) -> None:
        executor = FakeExecutor(num_blocks=6, max_model_len=96)
        loop = Loop(executor)
        loop.run(
            request("a", range(1, 33), sampling=LONG),
            request("b", range(100, 132), arrival=1.0, sampling=LONG),
        )
        assert loop.scheduler.stats().preemptions_recompute > 0
        assert loop.choices["b", 0].cached_tokens == 0
        assert loop.scheduler.stats().prefix_queries == 64


class TestPreemption:
    def crowded(self, depth: int = 0, **knobs: object) -> FakeExecutor:
        return FakeExecutor(num_blocks=6, max_model_len=96, **knobs)  # type: ignore[arg-type]

    def pair(self) -> tuple[Request, Request]:
        return (
            request("old", range(1, 33), sampling=LONG),
            request("young", range(100, 132), arrival=1.0, sampling=LONG),
        )

    @pytest.mark.parametrize("depth", [0, 1])
    def test_the_youngest_gives_way_and_comes_back(self, depth: int) -> None:
        loop = Loop(self.crowded(), depth=depth)
        loop.run(*self.pair())
        old, young = loop.choices["old", 0].last, loop.choices["young", 0].last
        assert old is not None and old.timing is not None and old.timing.preemptions == 0
        assert young is not None and young.timing is not None and young.timing.preemptions > 0

    def test_the_cheaper_way_is_taken(self) -> None:
        for swap_seconds, swapped in ((1e-6, True), (1.0, False)):
            loop = Loop(self.crowded(num_host_blocks=8, swap_seconds_per_block=swap_seconds))
            loop.run(*self.pair())
            stats = loop.scheduler.stats()
            assert (stats.preemptions_swap > 0) == swapped
            assert (stats.preemptions_recompute > 0) != swapped

    def test_without_host_memory_swap_falls_back_to_recompute(self) -> None:
        loop = Loop(self.crowded(num_host_blocks=1), preemption="swap")
        loop.run(*self.pair())
        stats = loop.scheduler.stats()
        assert stats.preemptions_recompute > 0 and stats.blocks_swapped_out == 0

    def test_a_preempted_sequence_is_introduced_again(self) -> None:
        loop = Loop(self.crowded(num_host_blocks=8), preemption="swap")
        loop.run(*self.pair())
        told = [p.history for plan in loop.executor.plans for p in plan.slices if p.history]
        assert len(told) > 2
        assert len(told[-1].token_ids) > told[-1].prompt_length

    def test_with_priorities_the_least_important_gives_way(self) -> None:
        loop = Loop(self.crowded(), policy="priority")
        loop.run(
            request("low", range(1, 33), priority=5, sampling=LONG),
            request("high", range(100, 132), priority=1, arrival=1.0, sampling=LONG),
        )
        low, high = loop.choices["low", 0].last, loop.choices["high", 0].last
        assert low is not None and low.timing is not None and low.timing.preemptions > 0
        assert high is not None and high.timing is not None and high.timing.preemptions == 0
        assert high.timing.finished < low.timing.finished

    def test_with_priorities_the_most_important_runs_first(self) -> None:
        loop = Loop(policy="priority", max_num_seqs=1)
        loop.run(
            request("low", [1], priority=5, sampling=LONG),
            request("high", [2], priority=1, arrival=1.0, sampling=LONG),
        )
        assert list(loop.choices) == [("high", 0), ("low", 0)]

    def test_no_second_victim_while_the_fence_holds_enough(self) -> None:
        """Depth 1: the victim's blocks are behind the fence of the plan in flight."""
        executor = FakeExecutor(num_blocks=8, max_model_len=128)
        loop = Loop(executor, depth=1, prefix_caching=False)
        loop.add(
            *(
                request(f"r{i}", range(100 * i + 1, 100 * i + 33), arrival=float(i), sampling=LONG)
                for i in range(4)
            )
        )
        preempted = 0
        while loop.scheduler.stats().preemptions_recompute == 0:
            loop.step()
        for _ in range(3):
            loop.step()
            preempted = loop.scheduler.stats().preemptions_recompute
        # Two blocks came free, one for each of the two oldest; the third waits or gives way later.
        assert preempted <= 2
        loop.run()

    @pytest.mark.parametrize("depth", [1, 3])
    def test_who_has_a_token_in_flight_comes_back_only_after_it(self, depth: int) -> None:
        expected = Loop().run(request("a", range(1, 41), sampling=LONG))["a", 0].token_ids
        loop = Loop(depth=depth)
        loop.add(request("a", range(1, 41), sampling=LONG))
        loop.step()
        while len(loop.in_flight) < depth:
            loop.plan()
        (sequence,) = loop.scheduler._roster.running
        loop.scheduler._roster.preempt(sequence)
        assert sequence.promised and loop.plan() is None
        loop.run()
        assert loop.tokens("a") == expected


class TestChoices:
    @pytest.mark.parametrize("length", [1, 2, 16, 17, 40])
    def test_each_choice_has_its_own_seed_and_shares_the_prompt(self, length: int) -> None:
        asked = sampling(n=4, max_tokens=20)
        prompt = range(1, length + 1)
        loop = Loop()
        loop.run(request("a", prompt, seed=77, sampling=asked))
        for index in range(4):
            alone = Loop()
            one = sampling(max_tokens=20)
            alone.run(request("x", prompt, seed=choice_seed(77, index), sampling=one))
            assert loop.tokens("a", index) == alone.tokens("x")
        computed = sum(plan.token_count for plan in loop.executor.plans)
        assert computed == length - 1 + 4 * 20
        assert loop.scheduler.stats().blocks_copied == (3 if (length - 1) % 16 else 0)

    def test_more_choices_than_places(self) -> None:
        asked = sampling(n=5, max_tokens=20)
        roomy, narrow = Loop(), Loop(max_num_seqs=2)
        roomy.run(request("a", range(1, 31), sampling=asked))
        narrow.run(request("a", range(1, 31), sampling=asked))
        for index in range(5):
            assert narrow.tokens("a", index) == roomy.tokens("a", index)

    @pytest.mark.parametrize("when", [0, 1, 5])
    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_one_choice_is_aborted_and_the_others_go_on(self, index: int, when: int) -> None:
        asked = sampling(n=3, max_tokens=20)
        whole = Loop()
        whole.run(request("a", range(1, 41), sampling=asked))
        loop = Loop(budget=32, depth=1)
        loop.add(request("a", range(1, 41), sampling=asked))
        for _ in range(when):
            loop.step()
        loop.scheduler.abort("a", index)
        loop.run()
        for other in {0, 1, 2} - {index}:
            assert loop.tokens("a", other) == whole.tokens("a", other)
        assert ("a", index) not in loop.choices or loop.choices["a", index].last is None

    def test_all_choices_aborted_one_by_one(self) -> None:
        loop = Loop(budget=16)
        loop.add(request("a", range(1, 41), sampling=sampling(n=3)))
        loop.step()
        for index in (0, 2, 1):
            loop.scheduler.abort("a", index)
            loop.check()
        loop.run()
        assert not loop.choices


class TestResumed:
    def test_a_resumed_request_goes_on_with_the_very_next_token(self) -> None:
        asked = sampling(n=3, max_tokens=20, prompt_logprobs=0)
        whole = Loop()
        whole.run(request("a", range(1, 41), sampling=asked))
        tokens = [whole.tokens("a", index) for index in range(3)]
        emitted = (
            Emitted(token_ids=tuple(tokens[0][:7])),
            Emitted(token_ids=tuple(tokens[1]), finished=True),
            Emitted(token_ids=tuple(tokens[2][:1])),
        )
        loop = Loop()
        loop.run(request("a", range(1, 41), sampling=asked, emitted=emitted))
        assert loop.tokens("a", 0) == tokens[0][7:]
        assert loop.tokens("a", 2) == tokens[2][1:]
        assert ("a", 1) not in loop.choices
        assert not loop.choices["a", 0].prompt_logprobs, "they were sent with the first token"

    def test_the_prompts_scores_are_given_again_if_no_token_was_sent(self) -> None:
        asked = sampling(n=2, max_tokens=4, prompt_logprobs=0)
        emitted = (Emitted(), Emitted(token_ids=(3,)))
        loop = Loop()
        loop.run(request("a", range(1, 41), sampling=asked, emitted=emitted))
        assert len(loop.choices["a", 0].prompt_logprobs) == 39

    def test_one_open_choice_keeps_its_index_and_seed(self) -> None:
        asked = sampling(n=2, max_tokens=20)
        whole = Loop()
        whole.run(request("a", range(1, 41), sampling=asked))
        done = Emitted(token_ids=(1, 2), finished=True)
        loop = Loop()
        loop.run(request("a", range(1, 41), sampling=asked, emitted=(done, Emitted())))
        assert list(loop.choices) == [("a", 1)]
        assert loop.tokens("a", 1) == whole.tokens("a", 1)

    def test_nothing_open_is_nothing_to_do(self) -> None:
        loop = Loop()
        loop.add(request("a", [1], emitted=(Emitted(finished=True),)))
        assert not loop.scheduler.has_work

    def test_all_emitted_but_not_finished_ends_with_its_length(self) -> None:
        loop = Loop()
        asked = sampling(max_tokens=2)
        emitted = (Emitted(token_ids=(3, 4)),)
        choice = loop.run(request("a", [1], sampling=asked, emitted=emitted))["a", 0]
        assert choice.token_ids == [] and choice.finish_reason is FinishReason.LENGTH


class TestFailures:
    @pytest.mark.parametrize("depth", [0, 1])
    def test_a_failed_slice_ends_its_sequence_alone(self, depth: int) -> None:
        loop = Loop(depth=depth)
        loop.executor.poison = 499
        loop.run(
            request("good", range(1, 41), sampling=LONG),
            request("bad", [5, 499], sampling=sampling(max_tokens=40)),
        )
        assert len(loop.tokens("good")) == 40
        bad = loop.choices["bad", 0]
        assert bad.finish_reason is FinishReason.ERROR and bad.error
        assert bad.token_ids == []

    def test_a_failed_prompt_ends_all_its_choices(self) -> None:
        loop = Loop()
        loop.executor.poison = 499
        loop.run(request("bad", [5, 499, 7], sampling=sampling(n=3)))
        assert [loop.choices["bad", i].finish_reason for i in range(3)] == [FinishReason.ERROR] * 3

    def test_a_failed_beam_ends_its_request(self) -> None:
        loop = Loop()
        loop.add(request("bad", [5, 6], sampling=sampling(n=2, beam_width=4)))
        for _ in range(3):
            loop.step()
        loop.executor.failing_slices = 1
        loop.run()
        assert [loop.choices["bad", i].finish_reason for i in range(2)] == [FinishReason.ERROR] * 2

    @pytest.mark.parametrize("depth", [0, 1])
    @pytest.mark.parametrize("after", [0, 2, 9])
    def test_a_failed_step_ends_its_sequences_and_the_engine_goes_on(
        self, depth: int, after: int
    ) -> None:
        loop = Loop(depth=depth, budget=32)
        loop.add(
            *(
                request(f"r{i}", range(i * 50 + 1, i * 50 + 41), sampling=sampling(n=1 + i % 2))
                for i in range(4)
            )
        )
        for _ in range(after):
            loop.step()
        loop.executor.failing_steps = 1
        loop.run()
        errors = [c for c in loop.choices.values() if c.finish_reason is FinishReason.ERROR]
        assert errors
        loop.choices.clear()
        assert (
            len(loop.run(request("next", range(1, 41), sampling=LONG))["next", 0].token_ids) == 40
        )

    @pytest.mark.parametrize("depth", [0, 1, 3])
    def test_whichever_step_fails_the_others_are_right(self, depth: int) -> None:
        """Whether the failed step had swapped is unknown: what it swapped is never read again."""
        requests = [
            request(
                f"r{i}",
                range(40 * i + 1, 40 * i + 1 + 5 * i + 8),
                arrival=float(i),
                sampling=sampling(max_tokens=6 + 9 * (5 - i), temperature=0.0),
            )
            for i in range(5)
        ]
        expected = {key: choice.token_ids for key, choice in Loop().run(*requests).items()}
        swaps_failed = survivors = 0
        for at in range(90):
            executor = FakeExecutor(
                num_blocks=11, num_host_blocks=40, max_model_len=80, block_size=8
            )
            loop = Loop(executor, depth=depth, preemption="swap", prefix_caching=False)
            loop.add(*requests)
            for _ in range(at):
                loop.step()
            executor.failing_steps = 1
            swaps_failed += bool(loop.in_flight and loop.in_flight[0].moves.swap_out)
            loop.run()
            for key, choice in loop.choices.items():
                assert choice.last is not None
                if choice.error is None:
                    assert choice.token_ids == expected[key]
                    survivors += 1
        assert survivors and (depth == 0 or swaps_failed)

    @pytest.mark.parametrize("preemption", ["swap", "recompute"])
    def test_a_step_fails_after_its_victim_has_come_back(self, preemption: str) -> None:
        """What was swapped in again may be garbage; what is computed again is right."""
        # Three blocks of 16 each for old and young: old is the first to need a fourth.
        asked = {"steady": range(1, 4), "old": range(50, 94), "young": range(100, 140)}
        requests = [
            request(name, prompt, arrival=float(i), sampling=LONG)
            for i, (name, prompt) in enumerate(asked.items())
        ]
        expected = Loop().run(*requests)["young", 0].token_ids
        executor = FakeExecutor(num_blocks=7, num_host_blocks=8, max_model_len=96)
        loop = Loop(executor, depth=1, preemption=preemption, prefix_caching=False)
        loop.add(*requests)
        (young,) = (s for s in loop.scheduler._roster.live.values() if s.request.id == "young")
        while not young.preemptions:
            loop.step()
        loop.scheduler.abort("old")
        assert young.in_flight == 0 and len(loop.in_flight) == 1
        back = loop.plan()
        assert back is not None and any(p.sequence == young.id for p in back.slices)
        assert bool(back.moves.swap_in) == (preemption == "swap")
        executor.failing_steps = 1
        loop.run()
        assert loop.choices["steady", 0].error
        if preemption == "swap":
            assert loop.choices["young", 0].error
        else:
            assert loop.tokens("young") == expected

    def test_an_executor_that_gives_no_result_or_no_token_does_not_hang_the_request(self) -> None:
        for results in ((), (SliceResult(sequence=0),)):
            loop = Loop()
            loop.add(request("a", [5], sampling=LONG))
            plan = loop.plan()
            assert plan is not None
            loop.in_flight.clear()
            output = StepOutput(number=0, results=results)
            (delta,) = loop.scheduler.commit(plan, output, 1.0)
            assert delta.error and delta.last
            loop.check_idle()


class TestAbort:
    @pytest.mark.parametrize("depth", [0, 1])
    @pytest.mark.parametrize("n", [1, 3])
    def test_at_any_step_nothing_is_left(self, depth: int, n: int) -> None:
        for steps in range(12):
            loop = Loop(depth=depth, budget=16)
            loop.add(request("a", range(1, 50), sampling=sampling(n=n, max_tokens=20)))
            for _ in range(steps):
                loop.step()
            loop.scheduler.abort("a")
            assert not loop.scheduler.has_work
            loop.run()

    def test_unknown_and_ended_requests_are_no_error(self) -> None:
        loop = Loop()
        loop.scheduler.abort("nobody")
        loop.run(request("a", [1]))
        loop.scheduler.abort("a")
        loop.scheduler.abort("a", 0)

    def test_aborted_beams_leave_nothing(self) -> None:
        loop = Loop()
        loop.add(request("a", [1, 2], sampling=sampling(beam_width=4)))
        for _ in range(4):
            loop.step()
        loop.scheduler.abort("a", 0)  # not known before the end
        assert loop.scheduler.has_work
        loop.scheduler.abort("a")
        loop.run()
