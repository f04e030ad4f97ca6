"""A GPU's memory: the arithmetic for any numbers, and a start on an allocator that is faked."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.config import EngineConfig
from octavo.engine.errors import DoesNotFit
from octavo.engine.worker import launch as launching
from octavo.engine.worker.launch import launch
from octavo.engine.worker.ledger import Ledger, allocated, graph_bytes
from octavo.engine.worker.measuring import largest_step
from octavo.engine.worker.memory import plan_device

from .test_memory import BLOCK, GIB, MODEL
from .tiny import BLOCK_BYTES, tiny_config

SIZES = st.integers(0, 200 * GIB)
LEDGERS = st.builds(
    Ledger,
    total=SIZES,
    free_at_start=SIZES,
    utilization=st.floats(0.05, 1.0),
    weights=st.integers(0, 150 * GIB),
    activations=st.integers(0, 20 * GIB),
    outside=st.integers(0, 4 * GIB),
    graphs=st.integers(0, 4 * GIB),
)
H200 = Ledger(
    total=140 * GIB,
    free_at_start=139 * GIB,
    utilization=0.9,
    weights=15 * GIB,
    activations=2 * GIB,
    outside=GIB,
    graphs=GIB,
)


@given(LEDGERS)
def test_nothing_is_promised_twice(ledger: Ledger) -> None:
    assert ledger.kv >= 0
    if ledger.kv:
        assert ledger.fixed + ledger.kv <= ledger.total * ledger.utilization
        assert ledger.fixed + ledger.kv <= ledger.free_at_start
        assert ledger.fixed + ledger.kv == ledger.granted
    entries = ledger.entries(ledger.kv)
    assert sum(entries.values()) == ledger.total


@given(LEDGERS, st.integers(1, GIB), st.sampled_from(["weights", "activations", "graphs"]))
def test_what_takes_more_leaves_less(ledger: Ledger, more: int, part: str) -> None:
    heavier = replace(ledger, **{part: getattr(ledger, part) + more})
    assert heavier.kv == max(0, ledger.granted - ledger.fixed - more)
    assert heavier.kv <= ledger.kv


def test_a_share_of_the_whole_card_less_all_the_rest() -> None:
    assert H200.kv == 126 * GIB - 19 * GIB - (256 << 20)
    crowded = replace(H200, free_at_start=50 * GIB)
    assert crowded.kv == 31 * GIB - (256 << 20)


def config(**settings: object) -> EngineConfig:
    limits = {"max_num_seqs": 100_000, "max_num_batched_tokens": 2048}
    return EngineConfig(model="m", **{**limits, **settings})  # type: ignore[arg-type]


@given(
    LEDGERS,
    st.none() | st.integers(0, 100 * GIB),
    st.none() | st.integers(1, 2048),
    st.integers(0, 64 * GIB),
    st.integers(0, 64 * GIB),
)
def test_a_plan_never_takes_more_than_there_is(
    ledger: Ledger, kv_memory: int | None, length: int | None, swap: int, host: int
) -> None:
    settings = config(kv_memory=kv_memory, max_model_len=length, swap_space=swap)
    try:
        plan = plan_device(settings, MODEL, ledger, host_available=host, block=BLOCK)
    except DoesNotFit as refused:
        assert "--" in str(refused) or "more memory" in str(refused)
        return
    assert plan.num_blocks * BLOCK + ledger.fixed <= ledger.free_at_start
    if kv_memory is None:
        assert plan.num_blocks * BLOCK <= ledger.kv
    assert plan.num_blocks * settings.block_size >= plan.max_model_len >= 1
    assert plan.num_host_blocks * BLOCK <= min(swap, host)


def test_swap_space_beyond_the_host_is_refused() -> None:
    with pytest.raises(DoesNotFit, match=r"--swap-space 8192MiB .*--swap-space 4096MiB would fit"):
        plan_device(config(swap_space=8 * GIB), MODEL, H200, host_available=4 * GIB, block=BLOCK)


def test_graphs_share_a_pool_and_have_nodes_each() -> None:
    def estimate(graphs: int, vocab_size: int = 1000) -> int:
        return graph_bytes(
            layers=36,
            graphs=graphs,
            largest_tokens=512,
            step_tokens=8192,
            peak=GIB,
            vocab_size=vocab_size,
        )

    assert estimate(0) == 0
    assert GIB // 16 < estimate(4) < estimate(40) < GIB
    assert estimate(4, 151_000) - estimate(4) == 512 * 150_000 * 10


class Card:
    """An allocator with so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked: list[int] = []

    def make(self, blocks: int) -> str:
        self.asked.append(blocks)
        if blocks * BLOCK > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return f"{blocks} blocks"

    def free(self) -> int:
        return self.size


@given(st.integers(0, 1000 * BLOCK), st.integers(1, 1000), st.integers(1, 100))
def test_an_allocation_that_fails_is_tried_once_more_with_less(
    free: int, blocks: int, least: int
) -> None:
    card = Card(free)
    try:
        made, number = allocated(card.make, blocks, block=BLOCK, least=least, free=card.free)
    except DoesNotFit as refused:
        assert "--max-model-len" in str(refused)
        assert blocks * BLOCK > free
        assert free * 0.95 < (least + 1) * BLOCK or blocks <= least
        assert len(card.asked) <= 2
        return
    assert made == f"{number} blocks"
    assert len(card.asked) <= 2
    assert number == blocks if blocks * BLOCK <= free else least <= number < blocks


def test_other_errors_are_not_taken_for_missing_memory() -> None:
    def broken(blocks: int) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        allocated(broken, 10, block=BLOCK, least=1, free=lambda: GIB)


@given(
    st.integers(1, 300),
    st.integers(1, 5000),
    st.integers(1, 3000),
    st.sampled_from([8, 16, 32]),
    st.integers(0, 15),
)
def test_the_largest_step_is_as_large_as_any(
    seqs: int, tokens: int, longest: int, block_size: int, draft: int
) -> None:
    settings = config(
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        block_size=block_size,
        speculative="ngram" if draft else "none",
        num_speculative_tokens=draft or 1,
    )
    step = largest_step(settings, longest)
    least = min(1 + draft, max(1, longest - 1))
    assert len(step) == max(1, min(seqs, tokens // least))
    assert len({part.sequence for part in step}) == len(step)
    assert sum(part.count for part in step) == min(tokens, len(step) * max(1, longest - 1))
    for part in step:
        assert 1 <= part.count <= max(1, longest - 1)
        assert len(part.draft) == min(draft, part.count - 1)
        assert part.history is not None
        assert len(part.history.token_ids) == part.count - len(part.draft)
        assert set(part.blocks) == {0}
        assert len(part.blocks) == -(-part.count // block_size)


MIB = 1 << 20


class FakeMemory:
    """A GPU of 1 GiB, of which others hold 24 MiB; the weights take 100, a step 200 more, and what
    the allocator does not know of 50."""

    free_at_start = 1000 * MIB

    def __init__(self) -> None:
        self.peaks: list[int] = []
        self._reserved = 100 * MIB

    def free_and_total(self) -> tuple[int, int]:
        return self.free_at_start - self._reserved - 50 * MIB, 1024 * MIB

    def reset_peak(self) -> None:
        self._reserved = 100 * MIB

    def peak(self) -> int:
        self._reserved = 300 * MIB
        self.peaks.append(self._reserved)
        return self._reserved

    def reserved(self) -> int:
        return self._reserved


def test_a_start_measures_and_gives_the_rest_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    memory = FakeMemory()
    monkeypatch.setattr(launching, "memory_of", lambda device: memory)
    settings = tiny_config(
        tmp_path,
        kv_memory=None,
        max_num_seqs=10_000,
        max_num_batched_tokens=64,
        enforce_eager=True,
    )
    _, capacity = launch(settings, lambda *_: None)
    assert memory.peaks == [300 * MIB]
    expected = int(1024 * MIB * 0.9) - (100 + 200 + 50 + 256) * MIB
    assert capacity.num_blocks == expected // BLOCK_BYTES
    assert capacity.kv_bytes == capacity.memory["kv_cache"] == capacity.num_blocks * BLOCK_BYTES
    assert capacity.memory["weights"] == 100 * MIB
    assert capacity.memory["activations"] == 200 * MIB
    assert capacity.memory["outside_allocator"] == 50 * MIB
    assert capacity.memory["others"] == 24 * MIB
    assert sum(capacity.memory.values()) == 1024 * MIB
    assert "activations 200.0 MiB" in caplog.text


def test_a_step_that_does_not_fit_beside_the_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(launching, "memory_of", lambda device: FakeMemory())
    monkeypatch.setattr("octavo.engine.worker.computer.Computer.compute", missing)
    with pytest.raises(DoesNotFit, match=r"step of 64 tokens and 64 sequences; .*--max-num-seqs"):
        launch(tiny_config(tmp_path, max_num_batched_tokens=64), lambda *_: None)
