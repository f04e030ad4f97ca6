"""The sampler against a naive one in doubles, and what must hold whatever the numbers are."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.params import SamplingParams
from octavo.engine.sampling.rules import standard_rules
from octavo.engine.sampling.sampler import Sampled, Sampler
from octavo.kernels.reference import REFERENCE
from octavo.kernels.reference.sampling import gumbel

from .histories import FakeHistories, histories, sample_now

EOS = (1, 3)
INFINITY = math.inf


def sampler(vocab_size: int, *, unseen: bool = False) -> Sampler:
    rules = standard_rules(vocab_size, EOS, REFERENCE)
    return Sampler(vocab_size, rules, REFERENCE, unseen=unseen)


def draw(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    known: FakeHistories,
    seeds: Sequence[int] | None = None,
    *,
    unseen: bool = False,
) -> Sampled:
    """Sample row i with params[i]; the logits are left alone."""
    chooser = sampler(logits.shape[1], unseen=unseen)
    for row, (one, seed) in enumerate(zip(params, seeds or range(len(params)), strict=True)):
        chooser.admit(row, one, seed)
    return sample_now(chooser, logits.clone(), np.arange(len(params)), known)


class Naive:
    """One row, in doubles, one parameter after the other, straight from the documentation."""

    def __init__(self, logits: Sequence[float], params: SamplingParams) -> None:
        self.own = list(logits)
        self.logits = list(logits)
        self.params = params

    def shape(self, known: Sequence[int], prompt_length: int) -> None:
        p, output = self.params, Counter(known[prompt_length:])
        for token in range(len(self.logits)):
            if p.allowed_token_ids is not None and token not in p.allowed_token_ids:
                self.logits[token] = -INFINITY
            for word in p.bad_words_ids:
                if word[-1] == token and tuple(known[len(known) - len(word) + 1 :]) == word[:-1]:
                    self.logits[token] = -INFINITY
            if sum(output.values()) < p.min_tokens and token in (*EOS, *p.stop_token_ids):
                self.logits[token] = -INFINITY
            self.logits[token] += p.logit_bias.get(token, 0.0)
            if token in known:
                value = self.logits[token]
                r = p.repetition_penalty
                self.logits[token] = value / r if value > 0 else value * r
            self.logits[token] -= p.frequency_penalty * output[token]
            self.logits[token] -= p.presence_penalty * (output[token] > 0)

    def support(self, slack: float = 0.0) -> set[int]:
        """Tokens that may be drawn; `slack` moves top-p and min-p to the generous side."""
        p = self.params
        top = max(self.logits)
        if p.greedy:
            return {t for t, x in enumerate(self.logits) if x >= top - slack}
        weights = {t: math.exp((x - top) / p.temperature) for t, x in enumerate(self.logits)}
        ranked = sorted(weights, key=lambda t: (-self.logits[t], t))
        least = min(1.0, p.min_p * (1 - slack))
        kept = [t for t in ranked if weights[t] >= least and weights[t] > 0]
        if p.top_k > 0:
            kept = kept[: p.top_k]
        total = sum(weights[t] for t in kept)
        left, mass = [], 0.0
        for token in kept:
            if left and p.top_p < 1 and mass >= (p.top_p + slack) * total:
                break
            left.append(token)
            mass += weights[token]
        return set(left)

    def logprob(self, token: int) -> float:
        top = max(self.own)
        return self.own[token] - top - math.log(sum(math.exp(x - top) for x in self.own))


VOCAB = 23


@st.composite
def parameters(pick: st.DrawFn) -> SamplingParams:
    token = st.integers(0, VOCAB - 1)
    maybe: dict[str, st.SearchStrategy[Any]] = {
        "temperature": st.sampled_from([0.0, 1e-6, 0.005, 0.3, 1.0, 2.0]),
        "top_k": st.integers(-1, VOCAB + 3),
        "top_p": st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.01, 0.3, 1.0]),
        "presence_penalty": st.floats(-2, 2, width=32),
        "frequency_penalty": st.floats(-2, 2, width=32),
        "repetition_penalty": st.floats(0.5, 2, width=32),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB + 2), st.floats(-100, 100), max_size=4),
        "allowed_token_ids": st.lists(token, min_size=1, max_size=9).map(tuple),
        "bad_words_ids": st.lists(
            st.lists(token, min_size=1, max_size=3).map(tuple), max_size=3
        ).map(tuple),
        "min_tokens": st.integers(0, 8),
        "stop_token_ids": st.lists(token, max_size=3).map(tuple),
        "logprobs": st.integers(0, VOCAB + 2),
    }
    chosen = pick(st.sets(st.sampled_from(sorted(maybe))))
    return SamplingParams(max_tokens=None, **{name: pick(maybe[name]) for name in sorted(chosen)})


@settings(max_examples=150, deadline=None)
@given(st.lists(parameters(), min_size=1, max_size=7), st.integers(0, 1 << 30))
def test_every_row_agrees_with_the_naive_sampler(rows: list[SamplingParams], seed: int) -> None:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), VOCAB, generator=generator) * 3
    tokens = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))] for _ in rows]
    prompts = [rng.randint(1, len(known)) for known in tokens]
    known = histories(tokens, prompts)
    sampled = draw(logits, rows, known)
    for row, params in enumerate(rows):
        naive = Naive(logits[row].tolist(), params)
        naive.shape(tokens[row], prompts[row])
        token = sampled.token_ids[row]
        if max(naive.logits) == -INFINITY:
            assert "no token" in sampled.errors[row]
            continue
        assert row not in sampled.errors
        support = naive.support(slack=1e-4)
        assert token in support, (params, token, support)
        if not params.greedy and params.temperature >= 0.1:
            noise = gumbel(
                torch.tensor([row]), torch.tensor([len(tokens[row])]), torch.arange(VOCAB)
            )[0].tolist()
            score = {t: naive.logits[t] + params.temperature * noise[t] for t in range(VOCAB)}
            # The winner among all that is surely left, noise included.
            sure = naive.support(slack=-1e-4)
            assert score[token] >= max(score[t] for t in sure) - 1e-3
        check_logprobs(sampled, row, params, naive, token)


def check_logprobs(
    sampled: Sampled, row: int, params: SamplingParams, naive: Naive, token: int
) -> None:
    """Of the model's own distribution: before penalties, bias and temperature."""
    if params.logprobs is None:
        assert row not in sampled.logprobs
        return
    named = sampled.logprobs[row]
    ranked = sorted(range(VOCAB), key=lambda t: (-naive.own[t], t))
    count = min(params.logprobs, VOCAB)
    assert named.token_id == token
    assert named.logprob == pytest.approx(naive.logprob(token), abs=1e-5)
    assert named.rank == ranked.index(token) + 1
    assert list(named.top_ids) == ranked[:count]
    assert named.top_logprobs == pytest.approx([naive.logprob(t) for t in ranked[:count]], abs=1e-5)
    assert token not in named.top_ids or (
        named.top_logprobs[named.top_ids.index(token)] == named.logprob
    )


MIXED = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.8, top_k=40),
    SamplingParams(temperature=1.2, top_p=0.95),
    SamplingParams(temperature=1.0, top_p=0.999, logprobs=3),
    SamplingParams(temperature=0.7, min_p=0.02, top_p=0.9, top_k=300),
    SamplingParams(temperature=1.0, presence_penalty=1.0, frequency_penalty=0.5, logprobs=0),
    SamplingParams(temperature=0.0, repetition_penalty=1.3, logit_bias={5: 3.0}),
    SamplingParams(temperature=1.5, allowed_token_ids=tuple(range(0, 900, 7))),
    SamplingParams(temperature=1.0, min_tokens=9, bad_words_ids=((7,), (8, 9))),
)


@pytest.mark.parametrize("vocab_size", [1000, 4099])
def test_a_row_is_bitwise_the_same_alone_and_in_any_batch(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    params = [MIXED[i % len(MIXED)] for i in range(30)]
    logits = torch.randn(30, vocab_size, generator=generator) * 2
    tokens = [[(7 * i + j) % vocab_size for j in range(3 + i)] for i in range(30)]
    prompts = [1 + i // 2 for i in range(30)]
    together = draw(logits, params, histories(tokens, prompts))
    order = random.Random(0).sample(range(30), 30)
    for size in (1, 3, 7):
        for start in range(0, 30, size):
            members = order[start : start + size]
            part = draw(
                logits[members],
                [params[i] for i in members],
                histories([tokens[i] for i in members], [prompts[i] for i in members]),
                seeds=members,
            )
            for place, i in enumerate(members):
                assert part.token_ids[place] == together.token_ids[i]
                assert part.logprobs.get(place) == together.logprobs.get(i)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0, top_k=5),
        SamplingParams(temperature=1.0, top_p=0.7),
        SamplingParams(temperature=1.3, min_p=0.1),
        SamplingParams(temperature=1.0, top_k=9, top_p=0.8, min_p=0.01),
    ],
)
def test_frequencies_follow_the_narrowed_probabilities(params: SamplingParams) -> None:
    """Over positions of one sequence, as a long generation would draw them."""
    draws, vocab_size = 8000, 200
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(2)) * 2
    naive = Naive(logits.tolist(), params)
    support = naive.support()
    lengths = np.arange(1, draws + 1)
    known = FakeHistories(np.zeros((draws, 1), np.int32), lengths, lengths)
    sampled = draw(logits.expand(draws, -1), [params] * draws, known, seeds=[99] * draws)
    counts = Counter(sampled.token_ids)
    assert set(counts) <= support
    top = max(logits.tolist())
    weights = {t: math.exp((logits[t].item() - top) / params.temperature) for t in support}
    total = sum(weights.values())
    common = {t: w * draws / total for t, w in weights.items() if w * draws / total >= 8}
    rare = draws - sum(common.values())
    statistic = sum((counts[t] - e) ** 2 / e for t, e in common.items())
    seen_rare = draws - sum(counts[t] for t in common)
    if rare >= 8:
        statistic += (seen_rare - rare) ** 2 / rare
    degrees = len(common) - (rare < 8)
    assert statistic < degrees + 4.5 * math.sqrt(2 * degrees) + 8


def test_wide_choices_look_beyond_the_first_candidates() -> None:
    """Flat logits: top-p 0.9 of 4000 equals is 3600 tokens, and all of them can be drawn."""
    rows, vocab_size = 400, 4000
    params = [SamplingParams(temperature=1.0, top_p=0.9)] * rows
    sampled = draw(torch.zeros(rows, vocab_size), params, histories([[5]] * rows))
    drawn = sampled.token_ids
    assert max(drawn) < 3600
    assert max(drawn) > 3000
    assert len(set(drawn)) > 350


def test_narrowing_that_leaves_everything_changes_nothing() -> None:
    logits = torch.randn(40, 3000, generator=torch.Generator().manual_seed(3))
    known = histories([[1, 2, 3]] * 40)
    free = draw(logits, [SamplingParams(temperature=1.0)] * 40, known)
    wide = draw(logits, [SamplingParams(temperature=1.0, min_p=1e-30)] * 40, known)
    assert free.token_ids == wide.token_ids


def test_equal_logits_go_to_the_lower_id() -> None:
    logits = torch.tensor([[0.0, 2.0, -0.0, 2.0, 0.0, 2.0]])
    sampled = draw(logits, [SamplingParams(temperature=0.0, logprobs=6)], histories([[0]]))
    assert sampled.token_ids == [1]
    assert sampled.logprobs[0].top_ids == (1, 3, 5, 0, 2, 4)
    assert sampled.logprobs[0].rank == 1
    second = draw(
        logits, [SamplingParams(temperature=0.0, logprobs=0, logit_bias={5: 1.0})], histories([[0]])
    )
    assert second.token_ids == [5]
    assert second.logprobs[0].rank == 3


def test_greedy_logprob_is_the_same_float_as_the_largest() -> None:
    logits = torch.randn(64, 4096, generator=torch.Generator().manual_seed(4)).bfloat16().float()
    params = [SamplingParams(temperature=0.0, logprobs=2)] * 64
    sampled = draw(logits, params, histories([[1]] * 64))
    for named in sampled.logprobs.values():
        assert named.logprob == max(named.top_logprobs) == named.top_logprobs[0]
        assert named.rank == 1


@pytest.mark.parametrize("temperature", [1e-2, 1e-5, 1e-30, 1e-44, 5e-324])
def test_tiny_temperatures_are_greedy_and_do_not_overflow(temperature: float) -> None:
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(5)) * 30
    for more in ({}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.2}):
        params = [SamplingParams(temperature=temperature, **more)] * 5  # type: ignore[arg-type]
        sampled = draw(logits, params, histories([[1]] * 5))
        assert not sampled.errors
        assert sampled.token_ids == logits.argmax(-1).tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("params", MIXED)
def test_logits_that_are_not_finite_fail_their_row_alone(
    value: float, params: SamplingParams
) -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(6))
    known = histories([[4, 5, 6]] * 3)
    healthy = draw(logits, [params] * 3, known)
    logits[1, 17] = value
    sampled = draw(logits, [params] * 3, known)
    assert sampled.errors == {1: "the model's logits are not finite"}
    assert [sampled.token_ids[i] for i in (0, 2)] == [healthy.token_ids[i] for i in (0, 2)]


def test_a_row_that_changes_hands_forgets_its_last_owner() -> None:
    chooser = sampler(50)
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(7))
    known = histories([[3, 4, 5, 6]], [1])
    rows = np.array([0])
    penal = SamplingParams(
        temperature=0.0, frequency_penalty=2.0, logit_bias={9: 100.0}, logprobs=1
    )
    chooser.admit(0, penal, 1)
    assert sample_now(chooser, logits.clone(), rows, known).token_ids == [9]
    chooser.admit(0, SamplingParams(temperature=0.0), 1)
    plain = sample_now(chooser, logits.clone(), rows, known)
    assert plain.token_ids == logits.argmax(-1).tolist()
    assert not plain.logprobs


def test_penalty_counts_follow_the_history_token_by_token() -> None:
    """Kept counts give what counting from scratch gives, at every length."""
    vocab_size, params = (
        40,
        SamplingParams(
            temperature=0.0, presence_penalty=0.3, frequency_penalty=0.7, repetition_penalty=1.2
        ),
    )
    kept = sampler(vocab_size)
    kept.admit(0, params, 0)
    known = histories([[2, 3, 3, 4]], [4])
    known.token_ids = np.zeros((1, 64), dtype=np.int32)
    known.token_ids[0, :4] = (2, 3, 3, 4)
    generator = torch.Generator().manual_seed(8)
    for _ in range(50):
        logits = torch.randn(1, vocab_size, generator=generator)
        fresh = sampler(vocab_size)
        fresh.admit(0, params, 0)
        (token,) = sample_now(kept, logits.clone(), np.array([0]), known).token_ids
        assert sample_now(fresh, logits.clone(), np.array([0]), known).token_ids == [token]
        naive = Naive(logits[0].tolist(), params)
        naive.shape(known.token_ids[0, : known.lengths[0]].tolist(), 4)
        assert naive.logits[token] == pytest.approx(max(naive.logits), abs=1e-5)
        known.token_ids[0, known.lengths[0]] = token
        known.lengths[0] += 1


def test_what_is_drawn_counts_before_the_host_has_heard_of_it() -> None:
    """The history says how long it is, and not what was drawn last; also when steps are given up,
    and drawn once more."""
    params = SamplingParams(temperature=0.0, frequency_penalty=1.5, repetition_penalty=1.2)
    ahead = sampler(30)
    ahead.admit(0, params, 0)
    known = histories([[2, 3, 3, 4]], [3])
    known.token_ids = np.full((1, 64), -1, dtype=np.int32)  # no token of the model's
    said = [2, 3, 3, 4]
    known.token_ids[0, :4] = said
    generator = torch.Generator().manual_seed(8)
    given_up = iter([9, 20])
    end = next(given_up)
    while len(said) < 40:
        logits = torch.randn(1, 30, generator=generator)
        known.lengths[0] = len(said)
        fresh = sampler(30)
        fresh.admit(0, params, 0)
        expected = sample_now(fresh, logits.clone(), np.array([0]), histories([said], [3]))
        assert sample_now(ahead, logits.clone(), np.array([0]), known).token_ids == (
            expected.token_ids
        )
        said += expected.token_ids
        if len(said) == end:
            del said[-2:]
            known.token_ids[0, : len(said)] = said  # these had landed
            end = next(given_up, 0)


def test_counts_survive_the_arrival_of_more_sequences() -> None:
    """Rows are made room for as they come; those that were there stay as they were."""
    params = SamplingParams(temperature=0.0, frequency_penalty=2.0)
    chooser, logits = sampler(20), torch.zeros(1, 20)
    known = histories([[4, 0, 0, 1]] + [[4]] * 30, [1] * 31)
    chooser.admit(0, params, 0)
    assert sample_now(chooser, logits.clone(), np.array([0]), known).token_ids == [2]
    for row in (30, 7, 29):
        chooser.admit(row, params, 0)
    assert sample_now(chooser, logits.clone(), np.array([0]), known).token_ids == [2]
    later = sample_now(chooser, torch.zeros(4, 20), np.array([29, 0, 7, 30]), known)
    assert later.token_ids == [0, 2, 0, 0]


def test_candidates_are_the_likeliest_under_the_shaped_logits() -> None:
    chooser = sampler(100)
    logits = torch.randn(2, 100, generator=torch.Generator().manual_seed(9))
    chooser.admit(0, SamplingParams(beam_width=3, n=1), 0)
    chooser.admit(1, SamplingParams(beam_width=2, allowed_token_ids=(5, 6)), 0)
    first, second = chooser.candidates(logits.clone(), np.array([0, 1]), histories([[1]] * 2))
    expected = logits[0].log_softmax(-1).topk(6)
    assert [token for token, _ in first] == expected.indices.tolist()
    assert [value for _, value in first] == pytest.approx(expected.values.tolist(), abs=1e-6)
    assert {token for token, _ in second} == {5, 6}
    assert sum(math.exp(value) for _, value in second) == pytest.approx(1.0)


def test_prompt_tokens_are_scored_under_the_own_distribution() -> None:
    chooser = sampler(100)
    chooser.admit(4, SamplingParams(prompt_logprobs=2, temperature=0.0, logit_bias={1: 50}), 0)
    logits = torch.randn(6, 100, generator=torch.Generator().manual_seed(10))
    targets = torch.tensor([1, 2, 3, 4, 5, 6])
    for i, named in enumerate(chooser.score(logits.clone(), targets, 4)):
        own = logits[i].log_softmax(-1)
        assert named.token_id == i + 1
        assert named.logprob == own[i + 1].item()
        assert named.top_ids == tuple(own.topk(2).indices.tolist())
        assert named.rank == int((own > own[i + 1]).sum()) + 1


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_the_same_where_nobody_looks_how_wide_it_is(seed: int) -> None:
    """As it is narrowed on a GPU, which the host runs ahead of."""
    choose = random.Random(seed)
    params = [
        SamplingParams(
            temperature=choose.choice((0.0, 0.5, 1.0, 1.5)),
            top_k=choose.choice((0, 1, 3, 40)),
            top_p=choose.choice((1.0, 0.9, 0.5)),
            min_p=choose.choice((0.0, 0.0, 0.05)),
            logprobs=choose.choice((None, 2)),
        )
        for _ in range(60)
    ]
    logits = 3 * torch.randn(60, 500, generator=torch.Generator().manual_seed(seed))
    known = histories([[1, 2, choose.randrange(500)] for _ in range(60)])
    looked, unseen = (draw(logits, params, known, unseen=way) for way in (False, True))
    assert unseen == looked
    assert not unseen.errors


def test_plain_draws_may_be_somebody_elses() -> None:
    """Only where nothing but tokens is wanted of all rows, and nothing shapes or narrows them."""
    asked: list[list[float]] = []

    def draws(logits: torch.Tensor, temperature: Any, seeds: Any, positions: Any) -> Any:
        asked.append(temperature.tolist())
        return REFERENCE.draw(logits, temperature, seeds, positions)

    plain = (SamplingParams(temperature=0.0), SamplingParams(temperature=1.0))
    known = histories([[1, 2], [3]])
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    logits[0, 3] = float("nan")
    expected = draw(logits, plain, known)
    assert expected.errors
    for other in (None, {"top_k": 5}, {"logprobs": 1}, {"frequency_penalty": 1.0}):
        params = (plain[0], plain[1] if other is None else SamplingParams(**other))
        chooser = Sampler(50, standard_rules(50, EOS, REFERENCE), REFERENCE, draws=draws)
        for row, one in enumerate(params):
            chooser.admit(row, one, row)
        got = sample_now(chooser, logits.clone(), np.arange(2), known)
        assert asked == [[0.0, 1.0]]
        if other is None:
            assert got == expected
