"""The GPU's paged attention against attention by its definition, in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from octavo.kernels.cuda.attention import plan_attention
from octavo.kernels.cuda.projected import attend_projected
from octavo.kernels.ops import AttentionLayer, PagedSlices
from octavo.kernels.reference.attention import plan_attention as reference_plan_attention

from ..paging import PLAIN, PagedStep, paged_step, rounded_to_8_bits, tree_marks
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


def attended(
    step: PagedStep, device: torch.device, *, fixed: bool = False, **options: float | None
) -> Tensor:
    there = on(step, device)
    plan = there.plan(partial(plan_attention, fixed=fixed))
    plan.store(there.cache, step.new_keys.to(device), step.new_values.to(device), PLAIN)
    scale = step.query.shape[2] ** -0.5
    got = plan.attend(there.cache, there.query, AttentionLayer(scale=scale, **options))  # type: ignore[arg-type]
    return got.cpu()


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        pytest.param(torch.bfloat16, marks=pytest.mark.slow),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fixed", [False, True], ids=["free", "fixed"])
def test_a_tree_of_drafts_sees_its_ancestors(
    dtype: torch.dtype, fixed: bool, device: torch.device
) -> None:
    tree = tree_marks((-1, 0, 0, 1, 1, 2, 5, 6))
    chain = tree_marks((-1, 0, 1, 2))
    for slices, marks in (
        (((4, 17), (1, 9), (4, 600)), (*chain, -1, *tree_marks((-1, 0, 0, 2)))),
        (((8, 40), (9, 17)), (*tree, *(-1,) * 9)),
    ):
        step = paged_step(slices, heads=8, kv_heads=2, head_dim=16, dtype=dtype)
        step = replace(step, marks=marks)
        for window, softcap in ((None, None), (12, 3.0)):
            got = attended(step, device, fixed=fixed, window=window, softcap=softcap)
            expected = step.attended(scale=0.25, window=window, softcap=softcap)
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("slices", [((1, 40), (1, 530)), ((21, 21), (3, 40))], ids=str)
def test_keys_and_values_of_8_bits(
    slices: tuple[tuple[int, int], ...], device: torch.device
) -> None:
    step = paged_step(slices, heads=6, kv_heads=2)
    scales = {"key_scale": 0.5, "value_scale": 0.25}
    rounded = on(rounded_to_8_bits(step, **scales), device)
    plan = rounded.plan(plan_attention)
    plan.store(
        rounded.cache,
        step.new_keys.to(device),
        step.new_values.to(device),
        AttentionLayer(scale=1.0, **scales),
    )
    theirs = on(rounded_to_8_bits(step, **scales), device)
    reference = theirs.plan(reference_plan_attention)
    reference.store(
        theirs.cache,
        step.new_keys.to(device),
        step.new_values.to(device),
        AttentionLayer(scale=1.0, **scales),
    )
    ours, cells = (cache.view(torch.uint8) for cache in (rounded.cache, theirs.cache))
    assert torch.equal(ours, cells)
    got = plan.attend(
        rounded.cache, rounded.query, AttentionLayer(scale=0.25, window=100, **scales)
    )
    expected = rounded.attended(scale=0.25, window=100, softcap=None)
    torch.testing.assert_close(got.cpu().double(), expected, atol=4e-6, rtol=2e-5)


def test_every_number_of_8_bits_is_read_and_every_number_rounded_to_nearest(
    device: torch.device,
) -> None:
    """Against torch's conversion: ties, subnormals, the largest, and what is beyond it."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    exact = every[every.isfinite()].unique()
    middle = (exact[1:] + exact[:-1]) / 2
    around = torch.cat((middle.nextafter(middle - 1), middle, middle.nextafter(middle + 1)))
    numbers = torch.cat((exact, around, torch.tensor([449.0, 1e9, -1e9, 1e-9, 2.0**-10, -0.0])))
    numbers = torch.nn.functional.pad(numbers, (0, -len(numbers) % 16)).view(-1, 1, 16)
    tokens = len(numbers)
    cache = torch.zeros(tokens, 2, 1, 1, 16, dtype=torch.float8_e4m3fn, device=device)
    one = torch.ones(tokens, dtype=torch.int32, device=device)
    plan = plan_attention(
        PagedSlices(
            query_offsets=torch.arange(tokens + 1, dtype=torch.int32, device=device),
            context_lengths=one,
            block_tables=torch.arange(tokens, dtype=torch.int32, device=device)[:, None],
            slot_mapping=torch.arange(tokens, device=device),
            query_lengths=(1,) * tokens,
            context_lengths_host=(1,) * tokens,
            block_size=1,
        )
    )
    plan.store(cache, numbers.to(device), numbers.to(device), PLAIN)
    expected = numbers.clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(cache[:, 0, 0].cpu().float(), expected.float())
    # A query that sees one cell gets its value.
    got = plan.attend(cache, torch.zeros(tokens, 1, 16, device=device), AttentionLayer(scale=1.0))
    assert torch.equal(got.cpu(), expected.float())


def test_a_decode_is_bitwise_the_same_alone_and_among_decodes(device: torch.device) -> None:
    lengths = (1, 600, 70, 1300)
    crowd = paged_step(tuple((1, n) for n in lengths), heads=4, kv_heads=2, head_dim=32)
    together = attended(crowd, device)
    for row in range(len(lengths)):
        assert torch.equal(attended(only(crowd, row), device)[0], together[row])


@pytest.mark.usefixtures("even_products")
@pytest.mark.parametrize("window", [None, pytest.param(700, marks=pytest.mark.slow)])
def test_fixed_tiles_give_the_same_bits_alone_in_chunks_and_in_any_crowd(
    window: int | None, device: torch.device
) -> None:
    slices = ((1, 600), (70, 1050), (1, 3), (3, 1025))
    crowd = paged_step(slices, heads=2, kv_heads=1, block_size=16)
    together = attended(crowd, device, fixed=True, window=window)
    for row in range(len(slices)):
        first = sum(queries for queries, _ in slices[:row])
        mine = together[first : first + slices[row][0]]
        assert torch.equal(attended(only(crowd, row), device, fixed=True, window=window), mine)
    for cut in ((1, 69), (40, 29, 1)):
        parts = chunks(only(crowd, 1), cut)
        got = [attended(part, device, fixed=True, window=window) for part in parts]
        assert torch.equal(torch.cat(got), together[1:71])


def only(step: PagedStep, row: int) -> PagedStep:
    """One sequence of a step."""
    first = sum(queries for queries, _ in step.slices[:row])
    mine = slice(first, first + step.slices[row][0])
    return replace(
        step,
        slices=(step.slices[row],),
        query=step.query[mine],
        keys=[step.keys[row]],
        values=[step.values[row]],
        block_tables=step.block_tables[row : row + 1],
        slot_mapping=step.slot_mapping[mine],
    )


def chunks(step: PagedStep, cut: tuple[int, ...]) -> list[PagedStep]:
    """The only slice of a step, its queries cut as told."""
    ((queries, context),) = step.slices
    parts, first = [], 0
    for count in cut:
        end = context - queries + first + count
        parts.append(
            replace(
                step,
                slices=((count, end),),
                query=step.query[first : first + count],
                keys=[step.keys[0][:end]],
                values=[step.values[0][:end]],
                slot_mapping=step.slot_mapping[first : first + count],
            )
        )
        first += count
    return parts


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
        PagedSlices(
            query_offsets=offsets.cumsum(0).int(),
            context_lengths=torch.tensor(contexts, dtype=torch.int32, device=device),
            block_tables=table.to(device),
            slot_mapping=slots.to(device),
            query_lengths=bounds,
            context_lengths_host=(2000,) * len(bounds),
            block_size=8,
        )
    )
    cache = before.to(device)
    key, value, query = (
        torch.nn.functional.pad(x, (0, 0, 0, 0, 0, more - tokens), value=float("nan")).to(device)
        for x in (step.new_keys, step.new_values, step.query)
    )
    plan.store(cache, key, value, PLAIN)
    got = plan.attend(cache, query, AttentionLayer(scale=step.query.shape[2] ** -0.5))
    assert torch.equal(got[:tokens].cpu(), expected)
    assert torch.equal(cache, step.cache.to(device))
