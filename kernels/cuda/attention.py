"""Ragged paged attention: one call for decodes, chunks, whole prompts and verified drafts.

A program works on one tile: some queries of one sequence, with all query heads that share one KV
head packed into the rows of a matrix (the packing of vLLM's unified Triton kernel, arXiv
2511.11581). Contexts are cut every `SPLIT` cells, counted from their beginning, and the parts are
merged one after the other: a split by size, not by count, so that a query's sums do not depend on
what else is in the step (flash-decoding, Dao et al. 2023, made batch-invariant).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import interpreted

SPLIT = 512  # cells
_DECODE_ROWS, _PROMPT_ROWS = 16, 64  # of a tile: queries x heads of a group


def tile_shape(columns: int, *, few: bool) -> tuple[int, int, int]:
    """Rows of a tile, cells it works on at a time, and warps, for heads padded to `columns`.

    Found by compiling: with larger ones registers spill on sm_80.
    """
    cells = 64 if columns <= 128 else 32
    return (_DECODE_ROWS, cells, 4) if few else (_PROMPT_ROWS, cells, 8)


@triton.jit
def attend_kernel(
    query, cache, out, part_sum, part_max, part_total,
    block_tables, context_lengths, query_offsets, tiles,
    scale, softcap, window,
    query_stride, block_stride, half_stride, cell_stride, head_stride, table_stride,
    heads, splits,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, CELLS: tl.constexpr, BLOCK_SIZE: tl.constexpr, SPLIT: tl.constexpr,
    CAPPED: tl.constexpr, PARTS: tl.constexpr, TILED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile, one KV head, one split; with PARTS unnormalised, to be merged."""
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, first_query = tile, 0
    if TILED:
        sequence = tl.load(tiles + 2 * tile)
        if sequence < 0:  # an idle tile: graphs have a fixed number of them
            return
        first_query = tl.load(tiles + 2 * tile + 1)
    first_row = tl.load(query_offsets + sequence)
    queries = tl.load(query_offsets + sequence + 1) - first_row
    context = tl.load(context_lengths + sequence)

    row = tl.arange(0, ROWS)
    index = first_query + row // GROUP  # which query of the sequence
    head = kv_head * GROUP + row % GROUP
    live = (index < queries) & (row < ROWS // GROUP * GROUP)
    position = context - queries + index
    token = (first_row + index).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    in_head = column < HEAD_DIM
    at = token[:, None] * query_stride + head[:, None] * HEAD_DIM + column[None, :]
    q = tl.load(query + at, mask=live[:, None] & in_head[None, :], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)

    # Cells that any query of the tile sees, within this split.
    last = context - queries + tl.minimum(first_query + ROWS // GROUP, queries)  # exclusive
    first = tl.maximum(context - queries + first_query - window + 1, 0)
    begin = first // CELLS * CELLS
    end = last
    if PARTS:
        begin = tl.maximum(begin, split * SPLIT)
        end = tl.minimum(end, (split + 1) * SPLIT)

    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for start in range(begin, end, CELLS):
        cell = start + tl.arange(0, CELLS)
        known = cell < end
        block = tl.load(
            block_tables + sequence * table_stride + cell // BLOCK_SIZE, mask=known, other=0
        ).to(tl.int64)
        base = block * block_stride + (cell % BLOCK_SIZE) * cell_stride + kv_head * head_stride
        mask = known[:, None] & in_head[None, :]
        key = tl.load(cache + base[:, None] + column[None, :], mask=mask, other=0.0)
        value = tl.load(cache + half_stride + base[:, None] + column[None, :], mask=mask, other=0.0)
        if UPCAST:
            key, value = key.to(tl.float32), value.to(tl.float32)
        scores = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
        if CAPPED:  # softcap * tanh(scores / softcap)
            scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * scores / softcap)))
        seen = (cell[None, :] <= position[:, None]) & (cell[None, :] > position[:, None] - window)
        scores = tl.where(seen & known[None, :], scores * 1.4426950408889634, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen so far
        weight = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(peak - shift)
        total = total * fade + tl.sum(weight, 1)
        mixed = mixed * fade[:, None]
        mixed += tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        peak = higher

    if PARTS:
        part = (token * heads + head) * splits + split
        tl.store(part_max + part, peak, mask=live)
        tl.store(part_total + part, total, mask=live)
        tl.store(
            part_sum + part[:, None] * HEAD_DIM + column[None, :],
            mixed, mask=live[:, None] & in_head[None, :],
        )  # fmt: skip
    else:
        mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
        at = (token[:, None] * heads + head[:, None]) * HEAD_DIM + column[None, :]
        mixed = mixed.to(out.dtype.element_ty)
        tl.store(out + at, mixed, mask=live[:, None] & in_head[None, :])


@triton.jit
def merge_kernel(
    part_sum, part_max, part_total, out, splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The splits of one query's head, in their order; those without a seen cell change nothing."""
    at = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    in_head = column < HEAD_DIM
    peak = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    mixed = tl.zeros([BLOCK_D], tl.float32)
    for split in range(splits):
        part = at * splits + split
        here = tl.load(part_max + part)
        if here != float("-inf"):
            higher = tl.maximum(peak, here)
            fade, share = tl.exp2(peak - higher), tl.exp2(here - higher)
            total = total * fade + tl.load(part_total + part) * share
            value = tl.load(part_sum + part * HEAD_DIM + column, mask=in_head, other=0.0)
            mixed = mixed * fade + value * share
            peak = higher
    mixed = mixed / tl.where(total == 0.0, 1.0, total)
    tl.store(out + at * HEAD_DIM + column, mixed.to(out.dtype.element_ty), mask=in_head)


@triton.jit
def tiles_kernel(query_offsets, tiles, sequences, count, step, BLOCK: tl.constexpr):
    """Sequence and first query of every tile; one program per sequence, and one more for those of
    the `count` tiles that stay idle: graphs have a fixed number of them."""
    sequence = tl.program_id(0)
    index = tl.arange(0, BLOCK)
    begin = tl.load(query_offsets + index, mask=index < sequences, other=0)
    end = tl.load(query_offsets + index + 1, mask=index < sequences, other=0)
    needed = (end - begin + step - 1) // step
    first = tl.sum(tl.where(index < sequence, needed, 0), axis=0)
    own = tl.sum(tl.where(index == sequence, needed, 0), axis=0)
    idle = sequence == sequences
    if idle:
        own = count - first
    for start in range(0, own, BLOCK):
        tile = start + index
        to = tiles + 2 * (first + tile)
        tl.store(to, tl.where(idle, -1, sequence + tile * 0), mask=tile < own)
        tl.store(to + 1, tile * step, mask=tile < own)


@triton.jit
def store_kernel(
    key, value, cache, slots,
    key_stride, value_stride, block_stride, half_stride, cell_stride, size,
    BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Key and value of one token into its cell; a slot of -1 is padding."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    column = tl.arange(0, BLOCK)
    inside = column < size
    to = cache + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * cell_stride + column
    tl.store(to, tl.load(key + token * key_stride + column, mask=inside), mask=inside)
    held = tl.load(value + token * value_stride + column, mask=inside)
    tl.store(to + half_stride, held, mask=inside)


def plan_attention(
    *,
    query_offsets: Tensor,
    context_lengths: Tensor,
    block_tables: Tensor,
    slot_mapping: Tensor,
    query_lengths: tuple[int, ...],
    context_lengths_host: tuple[int, ...],
    block_size: int,
) -> Plan:
    """See `ops.PlanAttention`.

    What the host's lengths say are upper bounds: the kernels read the device's. So a plan may be
    captured in a graph; a sequence of context 0 whose slots are -1 is padding.
    """
    return Plan(
        query_offsets=query_offsets,
        context_lengths=context_lengths,
        block_tables=block_tables,
        slot_mapping=slot_mapping,
        query_lengths=query_lengths,
        longest=max(context_lengths_host, default=0),
        block_size=block_size,
    )


@dataclass(slots=True)
class Plan:
    """See `ops.AttentionPlan`."""

    query_offsets: Tensor  # int32 [sequences + 1]
    context_lengths: Tensor  # int32 [sequences]
    block_tables: Tensor  # int32 [sequences, max_blocks]
    slot_mapping: Tensor  # int64 [tokens]
    query_lengths: tuple[int, ...]
    longest: int  # context, in cells
    block_size: int
    _tiles: dict[int, Tensor] = field(default_factory=dict)  # int32 [tiles, 2], by their queries

    def store(self, cache: Tensor, key: Tensor, value: Tensor) -> None:
        tokens, kv_heads, head_dim = key.shape
        size = kv_heads * head_dim
        if tokens:
            key, value = _cells(key), _cells(value)
            store_kernel[(tokens,)](
                key, value, cache, self.slot_mapping,
                key.stride(0), value.stride(0), cache.stride(0), cache.stride(1), cache.stride(2),
                size, BLOCK_SIZE=self.block_size, BLOCK=triton.next_power_of_2(size),
            )  # fmt: skip

    def attend(
        self,
        cache: Tensor,
        query: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        tokens, heads, head_dim = query.shape
        kv_heads = cache.shape[3]
        out = torch.empty((tokens, heads, head_dim), dtype=query.dtype, device=query.device)
        if tokens == 0:
            return out
        group = heads // kv_heads
        # One size of tiles for the whole step: small ones, each a whole sequence, whose contexts
        # are split, where no sequence has many queries.
        few = max(self.query_lengths) * group <= max(_DECODE_ROWS, group)
        columns = max(16, triton.next_power_of_2(head_dim))
        rows, cells, warps = tile_shape(columns, few=few)
        rows = max(rows, triton.next_power_of_2(group))
        tiles = None if few else self._tile(rows // group)
        splits = max(1, triton.cdiv(self.longest, SPLIT)) if few else 1
        parts = splits > 1
        sums = maxima = totals = None
        if parts:
            shape = (tokens, heads, splits)
            sums = torch.empty((*shape, head_dim), dtype=torch.float32, device=query.device)
            maxima = torch.empty(shape, dtype=torch.float32, device=query.device)
            totals = torch.empty(shape, dtype=torch.float32, device=query.device)
        query = _cells(query)
        attend_kernel[(len(self.query_lengths) if tiles is None else len(tiles), kv_heads, splits)](
            query, cache, out, sums, maxima, totals,
            self.block_tables, self.context_lengths, self.query_offsets, tiles,
            scale, softcap or 1.0, self.longest if window is None else window,
            query.stride(0), cache.stride(0), cache.stride(1), cache.stride(2), cache.stride(3),
            self.block_tables.stride(0), heads, splits,
            GROUP=group, HEAD_DIM=head_dim, BLOCK_D=columns,
            ROWS=rows, CELLS=cells, BLOCK_SIZE=self.block_size,
            SPLIT=SPLIT, CAPPED=softcap is not None, PARTS=parts, TILED=tiles is not None,
            UPCAST=interpreted(query), num_warps=warps,
        )  # fmt: skip
        if parts:
            merge_kernel[(tokens * heads,)](
                sums, maxima, totals, out, splits, HEAD_DIM=head_dim, BLOCK_D=columns, num_warps=1
            )
        return out

    def _tile(self, queries: int) -> Tensor:
        """Tiles of so many queries, as many as the host's lengths allow for."""
        if queries not in self._tiles:
            count = sum(triton.cdiv(length, queries) for length in self.query_lengths)
            sequences = len(self.query_lengths)
            device = self.query_offsets.device
            tiles = torch.empty((count, 2), dtype=torch.int32, device=device)
            tiles_kernel[(sequences + 1,)](
                self.query_offsets, tiles, sequences, count, queries,
                BLOCK=triton.next_power_of_2(sequences), num_warps=1,
            )  # fmt: skip
            self._tiles[queries] = tiles
        return self._tiles[queries]


def _cells(x: Tensor) -> Tensor:
    """x [tokens, heads, head_dim] with the heads of a token one after the other."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
