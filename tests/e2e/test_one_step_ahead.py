"""All kinds of requests, a step ahead and in step: the same bits, also when steps fail on the way.
The bundled model; a device with streams of its own is one whose results come late, and that makes
the inputs of steps itself."""

from __future__ import annotations

from typing import Any

import pytest

from ..engine.test_overlap import Late
from .test_bad_neighbour import PLACES, Answers, Mischief, assert_same, everything, served

TIGHT = {"max_num_batched_tokens": 96, "kv_memory": 45 * 16 * 6144, "swap_space": 32 << 20}


@pytest.fixture(scope="module")
def in_step() -> Answers:
    return served(everything(), overlap="off")[0]


@pytest.fixture(params=["inputs by the host", "inputs by the device"])
def late(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Late:
    transfer = Late()
    monkeypatch.setattr("octavo.engine.executor.inline.has_streams", lambda device: True)
    if request.param == "inputs by the device":
        monkeypatch.setattr("octavo.engine.worker.launch.has_streams", lambda device: True)
    monkeypatch.setattr("octavo.engine.worker.launch.transfer_to", lambda device: transfer)
    return transfer


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"max_num_batched_tokens": 96}, TIGHT], ids=["room", "a tight cache"]
)
@pytest.mark.parametrize("failing", [False, True])
def test_a_step_ahead_gives_the_same_bits(
    in_step: Answers,
    late: Late,
    settings: dict[str, Any],
    failing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mischief = Mischief(monkeypatch) if failing else None
    # Without a pace to keep, what a step computes does not depend on the clock.
    answers, stats = served(everything(), overlap="on", itl_target=0.0, **settings)
    assert_same(answers, in_step)
    assert late.late > 0
    assert (stats.blocks_used, stats.audit_failures) == (0, 0)
    if mischief is not None:
        assert mischief.raised.keys() == set(PLACES), "not everything was tried"
    if "kv_memory" in settings:
        assert stats.preemptions_recompute + stats.preemptions_swap > 0
