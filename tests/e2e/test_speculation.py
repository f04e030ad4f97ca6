"""All kinds of requests with and without drafts: the same bits, also a step ahead, in a tight
cache, and when steps fail on the way. The bundled model, which repeats itself now and then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ..engine.loop import guess_always
from .test_bad_neighbour import Answers, Mischief, assert_same, everything, served
from .test_one_step_ahead import TIGHT

PLACES_OF_ALL = {("_forward", "after"), ("_draw", "after"), ("_keep", "before")}
NGRAM = {"speculative": "ngram", "prompt_lookup_min": 1, "num_speculative_tokens": 6}


def longer() -> list[Any]:
    """Answers in which drafts come up, also of those who are bound by what they have said."""
    return [
        replace(item, sampling=replace(item.sampling, max_tokens=40))
        if item.pooling is None and not item.sampling.beam_width
        else item
        for item in everything()
    ]


@pytest.fixture(scope="module")
def plain() -> Answers:
    return served(longer(), speculative="none")[0]


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("tight", [False, True], ids=["room", "a tight cache"])
@pytest.mark.parametrize("failing", [False, True])
def test_drafts_change_no_bit(
    plain: Answers, overlap: str, tight: bool, failing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess_always(monkeypatch)
    mischief = Mischief(monkeypatch) if failing else None
    settings = {"max_num_batched_tokens": 96, **(TIGHT if tight else {})}
    answers, stats = served(longer(), overlap=overlap, itl_target=0.0, **settings, **NGRAM)
    assert_same(answers, plain)
    assert 0 < sum(stats.drafts_accepted) < stats.draft_tokens
    assert (stats.blocks_used, stats.audit_failures) == (0, 0)
    if mischief is not None:
        assert mischief.raised.keys() >= PLACES_OF_ALL
    if tight:
        assert stats.preemptions_recompute + stats.preemptions_swap > 0
