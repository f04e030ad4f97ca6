"""Ragged paged attention: one call for decodes, chunks, whole prompts and verified drafts.

A program works on one tile: some queries of one sequence, with all query heads that share one KV
head packed into the rows of a matrix (the packing of vLLM's unified Triton kernel, arXiv
2511.11581). Contexts are cut every `SPLIT` cells, counted from their beginning, and the parts are
merged one after the other: a split by size, not by count, so that a query's sums do not depend on
what else is in the step (flash-decoding, Dao et al. 2023, made batch-invariant).

Where no sequence has many queries, a tile is a sequence and each split has a program; else tiles
are larger and walk through their context. So sums depend on whether somebody else has many
queries. With `fixed` they do not: tiles are of one size, and large ones keep to the splits, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import triton
from torch import Tensor

from .attention_kernels import attend_kernel, merge_kernel, store_kernel, tiles_kernel
from .float8 import DECODED
from .launching import interpreted

SPLIT = 512  # cells


@dataclass(frozen=True, slots=True)
class TileShape:
    """What a program works on at a time."""

    rows: int  # queries x heads of a group
    cells: int
    warps: int


def tile_shape(columns: int, *, few: bool, fixed: bool) -> TileShape:
    """For heads padded to `columns`. Found by compiling: with larger ones registers spill on
    sm_80. With `fixed` there is one shape, so that the hardware adds in one order."""
    if fixed:
        return TileShape(64, 64, 8) if columns <= 128 else TileShape(32, 16, 8)
    cells = 64 if columns <= 128 else 32
    return TileShape(rows=16, cells=cells, warps=4) if few else TileShape(64, cells, 8)


def plan_attention(
    *,
    query_offsets: Tensor,
    context_lengths: Tensor,
    block_tables: Tensor,
    slot_mapping: Tensor,
    query_lengths: tuple[int, ...],
    context_lengths_host: tuple[int, ...],
    block_size: int,
    tree_masks: Tensor | None = None,
    fixed: bool = False,
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
        tree_masks=tree_masks,
        fixed=fixed,
    )


@dataclass(slots=True, kw_only=True)
class Plan:
    """See `ops.AttentionPlan`."""

    query_offsets: Tensor  # int32 [sequences + 1]
    context_lengths: Tensor  # int32 [sequences]
    block_tables: Tensor  # int32 [sequences, max_blocks]
    slot_mapping: Tensor  # int64 [tokens]
    tree_masks: Tensor | None  # int64 [tokens]
    query_lengths: tuple[int, ...]
    longest: int  # context, in cells
    block_size: int
    fixed: bool
    _tiles: dict[int, Tensor] = field(default_factory=dict)  # int32 [tiles, 2], by their queries

    def store(
        self,
        cache: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> None:
        tokens, kv_heads, head_dim = key.shape
        size = kv_heads * head_dim
        if tokens:
            key, value, cells = _side_by_side(key), _side_by_side(value), as_stored(cache)
            store_kernel[(tokens,)](
                key, value, cells, self.slot_mapping, 1.0 / key_scale, 1.0 / value_scale,
                key.stride(0), value.stride(0), cells.stride(0), cells.stride(1), cells.stride(2),
                size, BLOCK_SIZE=self.block_size, FLOAT8=cells.dtype == torch.uint8,
                BLOCK=triton.next_power_of_2(size),
            )  # fmt: skip

    def attend(
        self,
        cache: Tensor,
        query: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> Tensor:
        tokens, heads, head_dim = query.shape
        kv_heads = cache.shape[3]
        out = torch.empty((tokens, heads, head_dim), dtype=query.dtype, device=query.device)
        if tokens == 0:
            return out
        group = heads // kv_heads
        columns = max(16, triton.next_power_of_2(head_dim))
        shape = tile_shape(columns, few=True, fixed=self.fixed)
        few = max(self.query_lengths) * group <= max(shape.rows, group)
        if not few:
            shape = tile_shape(columns, few=False, fixed=self.fixed)
        rows = max(shape.rows, triton.next_power_of_2(group))
        tiles = None if few else self._tile(rows // group)
        splits = max(1, triton.cdiv(self.longest, SPLIT)) if few else 1
        parts = splits > 1
        sums = maxima = totals = None
        if parts:
            size = (tokens, heads, splits)
            sums = torch.empty((*size, head_dim), dtype=torch.float32, device=query.device)
            maxima = torch.empty(size, dtype=torch.float32, device=query.device)
            totals = torch.empty(size, dtype=torch.float32, device=query.device)
        query, cells = _side_by_side(query), as_stored(cache)
        float8 = cells.dtype == torch.uint8
        if float8:
            scale, value_scale = scale * key_scale * DECODED, value_scale * DECODED
        # A product and a sum must not become one rounding here and two there.
        fused = not self.fixed
        attend_kernel[(len(self.query_lengths) if tiles is None else len(tiles), kv_heads, splits)](
            query, cells, out, sums, maxima, totals, self.block_tables, self.context_lengths,
            self.query_offsets, tiles, self.tree_masks,
            scale, value_scale, softcap or 1.0, self.longest if window is None else window,
            query.stride(0), cells.stride(0), cells.stride(1), cells.stride(2), cells.stride(3),
            self.block_tables.stride(0), heads, splits,
            GROUP=group, HEAD_DIM=head_dim, BLOCK_D=columns,
            ROWS=rows, CELLS=shape.cells, BLOCK_SIZE=self.block_size,
            SPLIT=SPLIT, CAPPED=softcap is not None, PARTS=parts, TILED=tiles is not None,
            TREE=self.tree_masks is not None, KEEP=self.fixed and not parts, FLOAT8=float8,
            UPCAST=interpreted(query), num_warps=shape.warps, enable_fp_fusion=fused,
        )  # fmt: skip
        if parts:
            merge_kernel[(tokens * heads,)](
                sums, maxima, totals, out, splits, value_scale,
                HEAD_DIM=head_dim, BLOCK_D=columns, num_warps=1, enable_fp_fusion=fused,
            )  # fmt: skip
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


def as_stored(cache: Tensor) -> Tensor:
    """A cache of float8 as the bytes that the kernels read and write."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


def _side_by_side(x: Tensor) -> Tensor:
    """x [tokens, heads, head_dim] with the heads of a token one after the other."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
