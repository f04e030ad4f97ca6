"""Paged attention against its definition, over every mixture of slices."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from octavo.kernels.ops import AttentionLayer, AttentionPlan, PagedSlices, PlanAttention
from octavo.kernels.reference import attention
from octavo.kernels.reference.attention import plan_attention as reference

from .paging import PLAIN, PagedStep, paged_step, rounded_to_8_bits, tree_marks
from .projecting import projected_case
from .providers import PROVIDERS, find, with_threads

NEAR = {
    torch.float32: {"atol": 4e-6, "rtol": 2e-5},
    torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2},
}


@pytest.fixture(params=PROVIDERS)
def plan_attention(request: pytest.FixtureRequest) -> PlanAttention:
    found: PlanAttention = find(request.param, "plan_attention")
    return found


def stored(step: PagedStep, plan_attention: PlanAttention) -> tuple[PagedStep, AttentionPlan]:
    """The step with all its cells in place, and its plan."""
    step = step.filled_by(plan_attention)
    plan = step.plan(plan_attention)
    plan.store(step.cache, step.new_keys, step.new_values, PLAIN)
    return step, plan


MIXTURES = {
    "one decode of a first token": ((1, 1),),
    "one decode": ((1, 77),),
    "decodes ending before, at and after a block's end": (
        (1, 7),
        (1, 15),
        (1, 16),
        (1, 17),
        (1, 32),
    ),
    "decodes of very different lengths": ((1, 300), (1, 2), (1, 290), (1, 41), (1, 3)),
    "nothing to compute, between others": ((1, 9), (0, 12), (3, 7), (0, 0)),
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
    plan_attention: PlanAttention,
    slices: tuple[tuple[int, int], ...],
    window: int | None,
    heads: int,
    kv_heads: int,
) -> None:
    step = paged_step(slices, heads=heads, kv_heads=kv_heads, block_size=16)
    step, plan = stored(step, plan_attention)
    scale = 1 / math.sqrt(16)
    for softcap in (None, 3.0):
        got = plan.attend(
            step.cache, step.query, AttentionLayer(scale=scale, window=window, softcap=softcap)
        )
        expected = step.attended(scale=scale, window=window, softcap=softcap)
        torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [1, 4, 7, 8, 16, 32, 48, 256])
def test_any_block_size(plan_attention: PlanAttention, block_size: int, dtype: torch.dtype) -> None:
    slices = ((1, 33), (40, 65), (1, 32), (2, 64), (1, 300))
    step = paged_step(slices, heads=4, kv_heads=2, block_size=block_size, dtype=dtype)
    step, plan = stored(step, plan_attention)
    got = plan.attend(step.cache, step.query, AttentionLayer(scale=0.25))
    expected = step.attended(scale=0.25, window=None, softcap=None)
    torch.testing.assert_close(got.double(), expected, **NEAR[dtype])


@pytest.mark.parametrize("head_dim", [2, 32, 40, 58, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_head(plan_attention: PlanAttention, dtype: torch.dtype, head_dim: int) -> None:
    step = paged_step(
        ((1, 140), (7, 7), (18, 23), (1, 1)),
        heads=6,
        kv_heads=2,
        head_dim=head_dim,
        block_size=16,
        dtype=dtype,
    )
    step, plan = stored(step, plan_attention)
    for softcap in (None, 30.0):
        got = plan.attend(
            step.cache, step.query, AttentionLayer(scale=head_dim**-0.5, softcap=softcap)
        )
        expected = step.attended(scale=head_dim**-0.5, window=None, softcap=softcap)
        torch.testing.assert_close(got.double(), expected, **NEAR[dtype])


def test_bfloat16_is_as_good_as_its_inputs(plan_attention: PlanAttention) -> None:
    slices = ((1, 200), (40, 65), (3, 64))
    step = paged_step(slices, heads=4, kv_heads=2, head_dim=64, dtype=torch.bfloat16)
    step, plan = stored(step, plan_attention)
    got = plan.attend(step.cache, step.query, AttentionLayer(scale=0.125))
    assert got.dtype == torch.bfloat16
    expected = step.attended(scale=0.125, window=None, softcap=None)
    torch.testing.assert_close(got.double(), expected, atol=1e-2, rtol=2e-2)


def test_several_windows_share_a_plan(plan_attention: PlanAttention) -> None:
    step = paged_step(((1, 50), (30, 44)), heads=4, kv_heads=2)
    step, plan = stored(step, plan_attention)
    for window in (5, None, 5, 20):
        got = plan.attend(step.cache, step.query, AttentionLayer(scale=0.25, window=window))
        expected = step.attended(scale=0.25, window=window, softcap=None)
        torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-5)


def test_small_workspaces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many crowds and many tiles, where a small step would need one of each."""
    monkeypatch.setattr(attention, "_CROWD_CELLS", 32)
    monkeypatch.setattr(attention, "_TILE_QUERIES", 7)
    step = paged_step(((1, 20), (1, 20), (1, 21), (40, 50), (1, 90)), heads=4, kv_heads=2)
    plan = step.plan(reference)
    plan.store(step.cache, step.new_keys, step.new_values, PLAIN)
    got = plan.attend(step.cache, step.query, AttentionLayer(scale=0.25))
    expected = step.attended(scale=0.25, window=None, softcap=None)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [7, 8, 16, 48])
def test_only_this_steps_cells_are_written(
    plan_attention: PlanAttention, block_size: int, dtype: torch.dtype
) -> None:
    step = paged_step(
        ((1, 9), (5, 12), (70, 80)), heads=4, kv_heads=2, block_size=block_size, dtype=dtype
    )
    cache = step.cache.fill_(100)
    step.plan(plan_attention).store(cache, step.new_keys, step.new_values, PLAIN)
    changed = cache != 100
    new = torch.cat((step.new_keys.flatten(), step.new_values.flatten()))
    # Where in a block is the implementation's business.
    assert torch.equal(cache[changed].sort().values, new.sort().values)
    blocks = changed.flatten(1).any(1).nonzero().flatten()
    assert torch.equal(blocks, (step.slot_mapping // block_size).unique())


@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_sequence_that_went_wrong_does_not_spread_through_its_blocks(
    plan_attention: PlanAttention, poison: float, block_size: int
) -> None:
    """Its blocks are handed on as they are; the next owner's padding covers its cells."""
    step = paged_step(((1, 3),), heads=4, kv_heads=2, block_size=block_size)
    table = step.block_tables[0, 0]
    bad = torch.full((block_size, 2, 16), poison)
    slices = PagedSlices(
        query_offsets=torch.tensor([0, block_size], dtype=torch.int32),
        context_lengths=torch.tensor([block_size], dtype=torch.int32),
        block_tables=table.view(1, 1),
        slot_mapping=table.long() * block_size + torch.arange(block_size),
        query_lengths=(block_size,),
        context_lengths_host=(block_size,),
        block_size=block_size,
    )
    plan_attention(slices).store(step.cache, bad, bad, PLAIN)
    # The three cells of the new owner; the others keep what the bad sequence left.
    step, plan = stored(step, plan_attention)
    got = plan.attend(step.cache, step.query, AttentionLayer(scale=0.25))
    expected = step.attended(scale=0.25, window=None, softcap=None)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=2e-5)


def test_a_query_that_is_not_finite_does_not_pass_for_an_answer(
    plan_attention: PlanAttention,
) -> None:
    step = paged_step(((1, 20), (3, 9)), heads=4, kv_heads=2)
    step, plan = stored(step, plan_attention)
    sound = plan.attend(step.cache, step.query, AttentionLayer(scale=0.25))
    query = step.query.clone()
    query[1, 2, 5] = math.nan
    got = plan.attend(step.cache, query, AttentionLayer(scale=0.25))
    assert bool(got[1, 2].isnan().all())
    got[1, 2] = sound[1, 2]
    assert torch.equal(got, sound)


LARGE_TREE = tree_marks((-1, *(child // 6 for child in range(62))))
TREE = tree_marks((-1, 0, 0, 1, 1, 2, 5, 6, 3))
CHAIN = tree_marks((-1, 0, 1, 2, 3))


@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tree_of_drafts_sees_its_ancestors(
    plan_attention: PlanAttention, dtype: torch.dtype, block_size: int
) -> None:
    slices = ((9, 40), (1, 17), (5, 5), (9, 200), (63, 150), (9, 130))
    marks = (*TREE, -1, *CHAIN, *TREE, *LARGE_TREE, *TREE)
    step = paged_step(slices, heads=6, kv_heads=2, dtype=dtype, block_size=block_size)
    step = replace(step, marks=marks)
    step, plan = stored(step, plan_attention)
    near = NEAR[dtype]
    for window, softcap in ((None, None), (12, 3.0)):
        got = plan.attend(
            step.cache, step.query, AttentionLayer(scale=0.25, window=window, softcap=softcap)
        )
        expected = step.attended(scale=0.25, window=window, softcap=softcap)
        torch.testing.assert_close(got.double(), expected, **near)
    # A chain is no tree but in its masks.
    plain = (
        replace(step, marks=())
        .plan(plan_attention)
        .attend(step.cache, step.query, AttentionLayer(scale=0.25))
    )
    got = plan.attend(step.cache, step.query, AttentionLayer(scale=0.25))
    torch.testing.assert_close(got[9:15], plain[9:15], **near)


def test_keys_and_values_of_8_bits(plan_attention: PlanAttention) -> None:
    slices = ((1, 40), (21, 21), (3, 170))
    step = paged_step(slices, heads=6, kv_heads=2)
    scales = {"key_scale": 0.5, "value_scale": 0.25}
    rounded = rounded_to_8_bits(step, **scales)
    layer = AttentionLayer(scale=0.25, window=100, **scales)
    plan = rounded.plan(plan_attention)
    plan.store(rounded.cache, step.new_keys, step.new_values, layer)
    got = plan.attend(rounded.cache, step.query, layer)
    expected = rounded.attended(scale=0.25, window=100, softcap=None)
    torch.testing.assert_close(got.double(), expected, atol=4e-6, rtol=2e-5)


def _parts(step: PagedStep, cut: tuple[int, ...]) -> list[PagedStep]:
    """Steps of one sequence each: the last slice of `step`, its queries cut as told."""
    first = sum(queries for queries, _ in step.slices[:-1])
    queries, context = step.slices[-1]
    parts = []
    for count in cut:
        end = context - queries + count
        parts.append(
            PagedStep(
                slices=((count, end),),
                query=step.query[first : first + count],
                keys=[step.keys[-1][:end]],
                values=[step.values[-1][:end]],
                cache=step.cache,
                block_tables=step.block_tables[-1:],
                slot_mapping=step.slot_mapping[first : first + count],
            )
        )
        first, queries = first + count, queries - count
    return parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("level", [p for p in PROVIDERS if p != "reference"])
def test_the_same_bits_alone_in_chunks_in_a_crowd_and_with_any_number_of_threads(
    level: str, dtype: torch.dtype
) -> None:
    plan_attention: PlanAttention = find(level, "plan_attention")
    crowd = ((1, 700), (1, 1), (5, 1300), (33, 33), (210, 1210))
    step = paged_step(crowd, heads=6, kv_heads=2, head_dim=64, block_size=16, dtype=dtype)
    step, whole = stored(step, plan_attention)
    for window in (None, 150):
        layer = AttentionLayer(scale=0.125, window=window)
        expected = whole.attend(step.cache, step.query, layer)
        for threads in (1, 2, 5):
            with with_threads(level, threads):
                assert torch.equal(whole.attend(step.cache, step.query, layer), expected)
                for cut in ((210,), (1,) * 210, (7, 90, 1, 112)):
                    parts = [
                        part.plan(plan_attention).attend(step.cache, part.query, layer)
                        for part in _parts(step, cut)
                    ]
                    assert torch.equal(torch.cat(parts), expected[-210:])


@pytest.mark.parametrize(
    ("crowd", "cuts"),
    [
        (((33, 33), (1, 140), (210, 700)), ((210,), (1,) * 210, (7, 90, 1, 112))),
        (((33, 33), (1, 140), (5, 2300)), ((5,), (1,) * 5, (2, 3))),
    ],
    ids=["a chunk", "a long context"],
)
@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("level", [p for p in PROVIDERS if p != "reference"])
def test_from_projections_the_same_bits_whoever_stores_what_he_attends_to(
    level: str,
    dtype: torch.dtype,
    block_size: int,
    crowd: tuple[tuple[int, int], ...],
    cuts: tuple[tuple[int, ...], ...],
) -> None:
    plan_attention, attend_projected = (
        find(level, "plan_attention"),
        find(level, "attend_projected"),
    )
    step = paged_step(
        crowd, heads=6, kv_heads=2, head_dim=64, block_size=block_size, dtype=dtype
    ).filled_by(plan_attention)
    generator = torch.Generator().manual_seed(3)
    tokens = len(step.query)
    projected = torch.randn(tokens, 10 * 64, generator=generator).to(dtype)
    cosine, sine = (torch.randn(tokens, 1, 64, generator=generator).to(dtype) for _ in range(2))
    layer = AttentionLayer(scale=0.125)

    def run(part: PagedStep, first: int, end: int) -> torch.Tensor:
        plan, rows = part.plan(plan_attention), slice(first, end)
        changed = projected[rows].clone()
        mixed: torch.Tensor = attend_projected(
            plan, part.cache, changed, cosine[rows], sine[rows], layer
        )
        return mixed

    whole = replace(step, cache=step.cache.clone())
    expected = run(whole, 0, tokens)
    own = step.block_tables[-1][: -(-crowd[-1][1] // block_size)].long()
    for threads in (1, 2, 5):
        with with_threads(level, threads):
            for cut in cuts:
                again = replace(step, cache=step.cache.clone())
                first, rows = tokens - sum(cut), []
                for part in _parts(again, cut):
                    rows.append(run(part, first, first + len(part.query)))
                    first += len(part.query)
                assert torch.equal(torch.cat(rows), expected[-sum(cut) :])
                assert torch.equal(again.cache[own], whole.cache[own])


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(
    ("head_dim", "rotary", "block_size"),
    [(64, 64, 16), (64, 32, 8), (80, 40, 16), (32, 0, 32), (128, 128, 16), (48, 10, 16)],
)
def test_attention_from_projections(
    provider: str, head_dim: int, rotary: int, normed: bool, dtype: torch.dtype, block_size: int
) -> None:
    case = projected_case(
        head_dim=head_dim, rotary=rotary, normed=normed, dtype=dtype, block_size=block_size
    )
    case.check(find(provider, "plan_attention"), find(provider, "attend_projected"))


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(
    ("head_dim", "rotary", "block_size"), [(64, 64, 16), (80, 40, 8), (48, 10, 16), (32, 0, 32)]
)
def test_attention_from_projections_that_were_not_rounded(
    provider: str, head_dim: int, rotary: int, normed: bool, block_size: int
) -> None:
    case = projected_case(
        head_dim=head_dim,
        rotary=rotary,
        normed=normed,
        dtype=torch.bfloat16,
        projected_dtype=torch.float32,
        block_size=block_size,
    )
    case.check(find(provider, "plan_attention"), find(provider, "attend_projected"))


@pytest.mark.parametrize("level", [p for p in PROVIDERS if p != "reference"])
def test_what_rounding_would_make_infinite_is_not_stored(level: str) -> None:
    case = projected_case(
        head_dim=64, rotary=0, normed=False, dtype=torch.bfloat16, projected_dtype=torch.float32
    )
    plan_attention = find(level, "plan_attention")
    step = case.step.filled_by(plan_attention)
    case.projected[::2] = 3.4e38
    case.projected[1::4] = -torch.inf
    find(level, "attend_projected")(
        step.plan(plan_attention), step.cache, case.projected, case.cosine, case.sine, case.layer
    )
    assert step.cache.isfinite().all()
