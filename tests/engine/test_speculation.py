"""Drafts are verified by real kernels, and nobody notices but for the time: the same tokens, the
same log-probabilities, bitwise, whoever guesses and whatever is guessed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.assembly import build_engine
from octavo.engine.config import EngineConfig
from octavo.engine.params import Request, SamplingParams
from octavo.engine.sampling.sampler import Sampled
from octavo.engine.speculative.ngram import continuation
from octavo.engine.step import StepStats, TokenLogprobs
from octavo.engine.worker.computer import Chosen, _accept

from .loop import guess_always, request
from .tiny import BLOCK_BYTES, VOCAB_SIZE, tiny_config

Said = dict[tuple[str, int], tuple[list[int], list[TokenLogprobs]]]

FREE: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "logprobs": 2},
    {"temperature": 0.7, "top_p": 0.9, "logit_bias": {9: 2.0}},
    {"temperature": 1.0, "n": 2, "top_k": 20, "logprobs": 0},
    {"temperature": 0.8, "min_p": 0.05, "allowed_token_ids": tuple(range(5, 60))},
    {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 1},
]
BOUND: list[dict[str, Any]] = [
    {"temperature": 1.0, "presence_penalty": 0.8, "repetition_penalty": 1.3},
    {"temperature": 1.0, "bad_words_ids": ((5, 6), (7,))},
    {"temperature": 0.0, "min_tokens": 9, "ignore_eos": False},
    {"temperature": 0.0, "frequency_penalty": 0.5},
]


def crowd(kinds: Sequence[dict[str, Any]], count: int = 12) -> list[Request]:
    return [
        request(
            f"r{i}",
            [(7 * i + j * j) % (VOCAB_SIZE - 2) + 2 for j in range(3 + 5 * (i % 7))],
            seed=i,
            sampling=SamplingParams(
                **{"max_tokens": 8 + 3 * i, "ignore_eos": True, **kinds[i % len(kinds)]}
            ),
        )
        for i in range(count)
    ]


def run(config: EngineConfig, requests: Sequence[Request]) -> tuple[Said, StepStats]:
    """What each choice was told."""
    engine, _ = build_engine(config, lambda *_: None)
    for item in requests:
        engine.add(item)
    said: Said = {}
    while not engine.idle:
        for delta in engine.step().deltas:
            assert delta.error is None
            token_ids, logprobs = said.setdefault((delta.request_id, delta.index), ([], []))
            token_ids += delta.token_ids
            logprobs += delta.logprobs
        engine.scheduler.check()
    stats = engine.stats()
    engine.stop()
    return said, stats


class Oracle:
    """A proposer that knows what will be said, but errs now and then."""

    def __init__(self, requests: Sequence[Request], said: Said) -> None:
        prompts = {item.id: list(item.prompt_token_ids) for item in requests}
        self._texts = [[*prompts[name], *tokens] for (name, _), (tokens, _) in said.items()]
        self._luck = random.Random(3)

    def propose(self, known: npt.NDArray[np.int32], most: int) -> tuple[int, ...]:
        begin = known.tolist()
        if not begin[0]:  # no prompt begins so: what computing costs is measured
            return ()
        (text, *_) = [text for text in self._texts if text[: len(begin)] == begin]
        right = text[len(begin) : len(begin) + self._luck.randrange(8)]
        return tuple((token + (self._luck.random() < 0.2)) % VOCAB_SIZE for token in (*right, 5, 5))


DEVICES = ["in step", "a thread", "streams", "streams, and inputs made there"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tight", [False, True], ids=["room", "a tight cache"])
@pytest.mark.parametrize("kinds", [FREE, FREE + BOUND], ids=["free", "all"])
def test_answers_are_the_same_bits_whatever_is_guessed(
    tmp_path: Path,
    kinds: list[dict[str, Any]],
    tight: bool,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = crowd(kinds)
    expected, _ = run(tiny_config(tmp_path, speculative="none"), requests)
    guess_always(monkeypatch)
    if device.startswith("streams"):
        monkeypatch.setattr("octavo.engine.executor.inline.has_streams", lambda device: True)
    if device.endswith("made there"):
        monkeypatch.setattr("octavo.engine.worker.launch.has_streams", lambda device: True)
    oracle = Oracle(requests, expected)
    monkeypatch.setattr("octavo.engine.worker.launch.proposer_for", lambda config: oracle)
    config = tiny_config(
        tmp_path,
        overlap="off" if device == "in step" else "on",
        max_num_batched_tokens=48,
        itl_target=0.0,
        speculative="ngram",
        **({"kv_memory": 9 * BLOCK_BYTES, "max_model_len": 96} if tight else {}),
        **({"swap_space": 4 * BLOCK_BYTES} if tight else {}),
    )
    said, stats = run(config, requests)
    assert said == expected
    assert stats.drafts > 20
    assert 0 < sum(stats.drafts_accepted) < stats.draft_tokens
    assert (stats.blocks_used, stats.audit_failures) == (0, 0)
    if tight:
        assert stats.preemptions_recompute + stats.preemptions_swap > 0


def test_who_is_bound_by_what_was_said_gets_no_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = crowd(BOUND)
    expected, _ = run(tiny_config(tmp_path, speculative="none"), requests)
    guess_always(monkeypatch)
    oracle = Oracle(requests, expected)
    monkeypatch.setattr("octavo.engine.worker.launch.proposer_for", lambda config: oracle)
    said, stats = run(tiny_config(tmp_path, speculative="ngram"), requests)
    assert said == expected
    assert stats.drafts == 0


@pytest.mark.parametrize("eager", [False, True])
def test_a_text_that_repeats_takes_fewer_steps(
    tmp_path: Path, eager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy answers of a random model run in circles; recorded steps or not."""
    requests = crowd([{"temperature": 0.0, "max_tokens": 120}], count=4)
    plain = tiny_config(tmp_path, enforce_eager=eager, speculative="none")
    expected, before = run(plain, requests)
    guess_always(monkeypatch)
    config = tiny_config(tmp_path, enforce_eager=eager, speculative="ngram")
    said, stats = run(config, requests)
    assert said == expected
    assert stats.step < before.step
    assert sum(stats.drafts_accepted) > 100


def test_what_went_wrong_behind_a_right_guess_is_drawn_again() -> None:
    """An error is the sequence's only when nothing good stands before it."""
    named = {i: TokenLogprobs(token_id=10 + i, logprob=-1.0, rank=1) for i in range(6)}
    sampled = Sampled(
        token_ids=[10, 11, 12, 13, 14, 15], logprobs=named, errors={3: "bad"}, accepted=[]
    )
    chosen = Chosen()
    _accept(0, range(2), sampled, chosen)
    _accept(1, range(2, 5), sampled, chosen)
    _accept(2, range(3, 5), sampled, chosen)
    _accept(3, range(5, 6), sampled, chosen)
    assert chosen.token_ids == {0: (10, 11), 1: (12,), 2: (), 3: (15,)}
    assert [one.token_id for one in chosen.logprobs[1]] == [12]
    assert chosen.errors == {2: "bad"}


# --- what is guessed -----------------------------------------------------------------------------


def by_definition(known: list[int], shortest: int, longest: int, count: int) -> tuple[int, ...]:
    for size in range(min(longest, len(known) - 1), shortest - 1, -1):
        for behind in range(len(known) - 1, size - 1, -1):
            if known[behind - size : behind] == known[-size:]:
                text = list(known)
                for place in range(count):
                    text.append(text[behind + place])
                return tuple(text[len(known) :])
    return ()


@settings(max_examples=300, deadline=None)
@given(
    known=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    shortest=st.integers(1, 4),
    more=st.integers(0, 4),
    count=st.integers(1, 15),
)
def test_what_followed_the_longest_end_that_stood_there_before_is_guessed(
    known: list[int], shortest: int, more: int, count: int
) -> None:
    expected = by_definition(known, shortest, shortest + more, count)
    array = np.array(known, dtype=np.int32)
    assert continuation(array, shortest, shortest + more, count) == expected


def test_a_text_may_hold_any_bytes() -> None:
    """What is looked for is found at tokens, not between them."""
    text = np.array([1 << 8, 1 << 16, 1, 1 << 24, 1, 256, 65536, 1, 5, 1 << 16, 1], dtype=np.int32)
    known = text.tolist()
    for length in range(1, len(text) + 1):
        for shortest in (1, 2, 3):
            expected = by_definition(known[:length], shortest, 5, 4)
            assert continuation(text[:length], shortest, 5, 4) == expected
