"""The GPU's paged attention against attention by its definition, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from octavo.kernels.cuda.attention import plan_attention

from ..paging import PagedStep, paged_step

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
    for name in ("query_offsets", "context_lengths"):
        setattr(plan, name, getattr(plan, name).to(device))
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
