"""Paged attention against its definition, over every mixture of slices."""

from __future__ import annotations

import math

import pytest
import torch

from octavo.kernels.reference import attention
from octavo.kernels.reference.attention import plan_attention

from .paging import paged_step

MIXTURES = {
    "one decode of a first token": ((1, 1),),
    "one decode": ((1, 77),),
    "decodes ending before, at and after a block's end": ((1, 7), (1, 8), (1, 9), (1, 16)),
    "decodes of very different lengths": ((1, 300), (1, 2), (1, 290), (1, 41), (1, 3)),
    "a whole prompt": ((37, 37),),
    "a prompt of one tile and a bit": ((300, 300),),
    "a chunk in the middle of a prompt": ((50, 133),),
    "verified drafts": ((5, 40), (5, 44), (5, 5)),
    "everything mixed, in no order": (
        (1, 9),
        (33, 33),
        (4, 20),
        (1, 70),
        (20, 50),
        (4, 21),
        (1, 1),
    ),
}


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("window", [None, 1, 10, 64], ids=lambda w: f"window {w}")
@pytest.mark.parametrize("slices", MIXTURES.values(), ids=MIXTURES.keys())
def test_it_is_attention(
    slices: tuple[tuple[int, int], ...], window: int | None, heads: int, kv_heads: int
) -> None:
    step = paged_step(slices, heads=heads, kv_heads=kv_heads)
    plan = step.plan(plan_attention)
    plan.store(step.cache, step.new_keys, step.new_values)
    scale = 1 / math.sqrt(16)
    for softcap in (None, 3.0):
        got = plan.attend(step.cache, step.query, scale=scale, window=window, softcap=softcap)
        expected = step.attended(scale=scale, window=window, softcap=softcap)
        torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
def test_any_block_size(block_size: int) -> None:
    slices = ((1, 33), (40, 65), (1, 32), (2, 64))
    step = paged_step(slices, heads=4, kv_heads=2, block_size=block_size)
    plan = step.plan(plan_attention)
    plan.store(step.cache, step.new_keys, step.new_values)
    got = plan.attend(step.cache, step.query, scale=0.25)
    expected = step.attended(scale=0.25, window=None, softcap=None)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-5)


def test_bfloat16_is_as_good_as_its_inputs() -> None:
    slices = ((1, 200), (40, 65), (3, 64))
    step = paged_step(slices, heads=4, kv_heads=2, head_dim=64, dtype=torch.bfloat16)
    plan = step.plan(plan_attention)
    plan.store(step.cache, step.new_keys, step.new_values)
    got = plan.attend(step.cache, step.query, scale=0.125)
    assert got.dtype == torch.bfloat16
    expected = step.attended(scale=0.125, window=None, softcap=None)
    torch.testing.assert_close(got.double(), expected, atol=1e-2, rtol=2e-2)


def test_several_windows_share_a_plan() -> None:
    step = paged_step(((1, 50), (30, 44)), heads=4, kv_heads=2)
    plan = step.plan(plan_attention)
    plan.store(step.cache, step.new_keys, step.new_values)
    for window in (5, None, 5, 20):
        got = plan.attend(step.cache, step.query, scale=0.25, window=window)
        expected = step.attended(scale=0.25, window=window, softcap=None)
        torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-5)


def test_small_workspaces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many crowds and many tiles, where a small step would need one of each."""
    monkeypatch.setattr(attention, "_CROWD_CELLS", 32)
    monkeypatch.setattr(attention, "_TILE_QUERIES", 7)
    step = paged_step(((1, 20), (1, 20), (1, 21), (40, 50), (1, 90)), heads=4, kv_heads=2)
    plan = step.plan(plan_attention)
    plan.store(step.cache, step.new_keys, step.new_values)
    got = plan.attend(step.cache, step.query, scale=0.25)
    expected = step.attended(scale=0.25, window=None, softcap=None)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-5)


def test_only_this_steps_cells_are_written() -> None:
    step = paged_step(((1, 9), (5, 12)), heads=4, kv_heads=2)
    before = step.cache.clone()
    step.plan(plan_attention).store(step.cache, step.new_keys, step.new_values)
    changed = (step.cache != before).flatten(3).any(-1)  # [blocks, 2, block_size]
    slots = torch.zeros_like(changed)
    blocks, offsets = step.slot_mapping // 8, step.slot_mapping % 8
    slots[blocks, :, offsets] = True
    assert torch.equal(changed, slots)
    assert torch.equal(step.cache[blocks, 0, offsets], step.new_keys)
    assert torch.equal(step.cache[blocks, 1, offsets], step.new_values)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_sequence_that_went_wrong_does_not_spread_through_its_blocks(poison: float) -> None:
    """Its blocks are handed on as they are; the next owner's padding covers its cells."""
    step = paged_step(((1, 3),), heads=4, kv_heads=2)
    table = step.block_tables[0, 0]
    bad = torch.full((8, 2, 16), poison)
    plan_attention(
        query_offsets=torch.tensor([0, 8], dtype=torch.int32),
        context_lengths=torch.tensor([8], dtype=torch.int32),
        block_tables=table.view(1, 1),
        slot_mapping=table.long() * 8 + torch.arange(8),
        query_lengths=(8,),
        context_lengths_host=(8,),
        block_size=8,
    ).store(step.cache, bad, bad)
    whole = step.plan(plan_attention)
    # The three cells of the new owner; the other five keep what the bad sequence left.
    cells = torch.arange(3)
    step.cache[table.long(), 0, cells] = step.keys[0]
    step.cache[table.long(), 1, cells] = step.values[0]
    got = whole.attend(step.cache, step.query, scale=0.25)
    expected = step.attended(scale=0.25, window=None, softcap=None)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-5)
