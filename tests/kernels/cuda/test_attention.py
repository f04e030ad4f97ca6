"""The GPU's paged attention against attention by its definition, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from octavo.kernels.cuda.attention import plan_attention
from octavo.kernels.cuda.projected import attend_projected

from ..paging import PagedStep, paged_step
from ..projecting import projected_case

TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 3e-2}
DECODES = ((1, 7), (1, 8), (1, 1), (1, 530), (1, 1025))  # before and after a split's end
DRAFTS = ((5, 40), (5, 600), (5, 5))
MIXED = ((37, 37), (1, 70), (20, 57), (1, 1))


def on(step: PagedStep, device: torch.device) -> PagedStep:
    moved = {
        name: getattr(step, name).to(device)
        for name in ("query", "cache", "block_tables", "slot_mapping")
    }
    return replace(step, **moved)


def attended(step: PagedStep, device: torch.device, **options: float | None) -> Tensor:
    there = on(step, device)
    plan = there.plan(plan_attention)
    plan.store(there.cache, step.new_keys.to(device), step.new_values.to(device))
    scale = step.query.shape[2] ** -0.5
    got = plan.attend(there.cache, there.query, scale=scale, **options)  # type: ignore[arg-type]
    return got.cpu()


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        pytest.param(torch.float16, marks=pytest.mark.slow),
    ],
    ids=("float32", "bfloat16", "float16"),
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"),
    [(4, 4, 16, 8), (6, 2, 64, 16), (7, 1, 80, 16), (8, 1, 128, 32)],
)
@pytest.mark.parametrize("slices", [DECODES, DRAFTS, MIXED], ids=["decodes", "drafts", "mixed"])
def test_it_is_attention(
    slices: tuple[tuple[int, int], ...],
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    step = paged_step(
        slices,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
    )
    for window, softcap in ((None, None), (10, 3.0)):
        got = attended(step, device, window=window, softcap=softcap)
        expected = step.attended(scale=head_dim**-0.5, window=window, softcap=softcap)
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


def test_a_decode_is_bitwise_the_same_alone_and_in_any_crowd(device: torch.device) -> None:
    lengths = (1, 600, 70, 1300)
    crowd = paged_step(tuple((1, n) for n in lengths), heads=4, kv_heads=2, head_dim=32)
    together = attended(crowd, device)
    for row in range(len(lengths)):
        alone = replace(
            crowd,
            slices=(crowd.slices[row],),
            query=crowd.query[row : row + 1],
            keys=[crowd.keys[row]],
            values=[crowd.values[row]],
            block_tables=crowd.block_tables[row : row + 1],
            slot_mapping=crowd.slot_mapping[row : row + 1],
        )
        assert torch.equal(attended(alone, device)[0], together[row])


def test_nan_of_a_former_owner_is_not_felt(device: torch.device) -> None:
    step = paged_step(((1, 21), (3, 9)), heads=4, kv_heads=2)
    clean = attended(step, device)
    owned = torch.zeros(step.cache.shape[0], step.cache.shape[2], dtype=torch.bool)
    for table, (_, context) in zip(step.block_tables, step.slices, strict=True):
        position = torch.arange(context)
        owned[table[position // 8].long(), position % 8] = True
    dirty = step.cache.transpose(1, 2).clone()
    dirty[~owned] = float("nan")
    step = replace(step, cache=dirty.transpose(1, 2).contiguous())
    assert torch.equal(attended(step, device), clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(("head_dim", "rotary"), [(64, 64), (80, 40), (32, 0)])
def test_attention_from_projections(
    head_dim: int, rotary: int, normed: bool, dtype: torch.dtype, device: torch.device
) -> None:
    case = projected_case(head_dim=head_dim, rotary=rotary, normed=normed, dtype=dtype)
    case.to(device).check(plan_attention, attend_projected)


@pytest.mark.parametrize(
    ("slices", "bounds"),
    [(((1, 600), (1, 9)), (1, 1, 1, 1)), (((37, 37), (20, 57)), (80, 1, 1, 1))],
    ids=["decodes", "prompts"],
)
def test_padding_of_a_graph_changes_nothing(
    slices: tuple[tuple[int, int], ...], bounds: tuple[int, ...], device: torch.device
) -> None:
    """Sequences of context 0, whose slots are -1, and more room in the host's lengths than used."""
    step = paged_step(slices, heads=4, kv_heads=2)
    before = step.cache.clone()
    expected = attended(step, device)
    tokens, padding = len(step.query), len(bounds) - len(slices)
    last = 1 if max(bounds) == 1 else 0  # padding of decodes has a query each
    offsets = torch.tensor([0, *(q for q, _ in slices), *(last,) * padding], device=device)
    table = torch.full((len(bounds), step.block_tables.shape[1]), 1 << 20, dtype=torch.int32)
    table[: len(slices)] = step.block_tables
    more = tokens + last * padding + 3
    slots = torch.full((more,), -1)
    slots[:tokens] = step.slot_mapping
    contexts = [context for _, context in slices] + [0] * padding
    plan = plan_attention(
        query_offsets=offsets.cumsum(0).int(),
        context_lengths=torch.tensor(contexts, dtype=torch.int32, device=device),
        block_tables=table.to(device),
        slot_mapping=slots.to(device),
        query_lengths=bounds,
        context_lengths_host=(2000,) * len(bounds),
        block_size=8,
    )
    cache = before.to(device)
    key, value, query = (
        torch.nn.functional.pad(x, (0, 0, 0, 0, 0, more - tokens), value=float("nan")).to(device)
        for x in (step.new_keys, step.new_values, step.query)
    )
    plan.store(cache, key, value)
    got = plan.attend(cache, query, scale=step.query.shape[2] ** -0.5)
    assert torch.equal(got[:tokens].cpu(), expected)
    assert torch.equal(cache, step.cache.to(device))
