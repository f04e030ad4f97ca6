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

from ..ops import AttentionLayer, PagedSlices
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
    registers: int | None = None  # that a thread may have; None: the assembler's choice


def tile_shape(columns: int, *, few: bool, fixed: bool, float8: bool) -> TileShape:
    """For heads padded to `columns`. Found by compiling: with larger ones registers spill, if not
    on every GPU and with every Triton. With `fixed` there is one shape, so that the hardware adds
    in one order."""
    if fixed:
        return TileShape(64, 32, 8) if columns <= 128 else TileShape(32, 16, 8)
    if few:
        # Left to choose, the assembler spills a word of float8's to fit in a program more.
        return TileShape(16, 32, 4, registers=168 if float8 else None)
    return TileShape(64, 64 if columns <= 128 else 32, 8)


def plan_attention(slices: PagedSlices, *, fixed: bool = False) -> Plan:
    """See `ops.PlanAttention`.

    What the host's lengths say are upper bounds: the kernels read the device's. So a plan may be
    captured in a graph; a sequence of context 0 whose slots are -1 is padding.
    """
    return Plan(slices, fixed)


@dataclass(slots=True)
class Plan:
    """See `ops.AttentionPlan`."""

    slices: PagedSlices
    fixed: bool
    _tiles: dict[int, Tensor] = field(default_factory=dict)  # int32 [tiles, 2], by their queries

    def store(self, cache: Tensor, key: Tensor, value: Tensor, layer: AttentionLayer) -> None:
        tokens, kv_heads, head_dim = key.shape
        size = kv_heads * head_dim
        if tokens:
            key, value, cells = _side_by_side(key), _side_by_side(value), as_stored(cache)
            store_kernel[(tokens,)](
                key, value, cells, self.slices.slot_mapping,
                1.0 / layer.key_scale, 1.0 / layer.value_scale,
                key.stride(0), value.stride(0), cells.stride(0), cells.stride(1), cells.stride(2),
                size, BLOCK_SIZE=self.slices.block_size, FLOAT8=cells.dtype == torch.uint8,
                BLOCK=triton.next_power_of_2(size),
            )  # fmt: skip

    def attend(self, cache: Tensor, query: Tensor, layer: AttentionLayer) -> Tensor:
        slices, window, softcap = self.slices, layer.window, layer.softcap
        tokens, heads, head_dim = query.shape
        kv_heads = cache.shape[3]
        out = torch.empty((tokens, heads, head_dim), dtype=query.dtype, device=query.device)
        if tokens == 0:
            return out
        group = heads // kv_heads
        columns = max(16, triton.next_power_of_2(head_dim))
        query, cells = _side_by_side(query), as_stored(cache)
        float8 = cells.dtype == torch.uint8
        shape = tile_shape(columns, few=True, fixed=self.fixed, float8=float8)
        few = max(slices.query_lengths) * group <= max(shape.rows, group)
        if not few:
            shape = tile_shape(columns, few=False, fixed=self.fixed, float8=float8)
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
        scale, value_scale = layer.scale, layer.value_scale
        if float8:
            scale, value_scale = scale * layer.key_scale * DECODED, value_scale * DECODED
        # A product and a sum must not become one rounding here and two there.
        fused = not self.fixed
        programs = len(slices.query_lengths) if tiles is None else len(tiles)
        attend_kernel[(programs, kv_heads, splits)](
            query, cells, out, sums, maxima, totals, slices.block_tables, slices.context_lengths,
            slices.query_offsets, tiles, slices.tree_masks,
            scale, value_scale, softcap or 1.0, self.longest if window is None else window,
            query.stride(0), cells.stride(0), cells.stride(1), cells.stride(2), cells.stride(3),
            slices.block_tables.stride(0), heads, splits,
            GROUP=group, HEAD_DIM=head_dim, BLOCK_D=columns,
            ROWS=rows, CELLS=shape.cells, BLOCK_SIZE=slices.block_size,
            SPLIT=SPLIT, CAPPED=softcap is not None, PARTS=parts, TILED=tiles is not None,
            TREE=slices.tree_masks is not None, KEEP=self.fixed and not parts, FLOAT8=float8,
            UPCAST=interpreted(query), num_warps=shape.warps, maxnreg=shape.registers,
            enable_fp_fusion=fused,
        )  # fmt: skip
        if parts:
            merge_kernel[(tokens * heads,)](
                sums, maxima, totals, out, splits, value_scale,
                HEAD_DIM=head_dim, BLOCK_D=columns, num_warps=1, enable_fp_fusion=fused,
            )  # fmt: skip
        return out

    @property
    def longest(self) -> int:
        """Context, in cells."""
        return max(self.slices.context_lengths_host, default=0)

    def _tile(self, queries: int) -> Tensor:
        """Tiles of so many queries, as many as the host's lengths allow for."""
        if queries not in self._tiles:
            lengths, offsets = self.slices.query_lengths, self.slices.query_offsets
            count = sum(triton.cdiv(length, queries) for length in lengths)
            sequences, device = len(lengths), offsets.device
            tiles = torch.empty((count, 2), dtype=torch.int32, device=device)
            tiles_kernel[(sequences + 1,)](
                offsets, tiles, sequences, count, queries,
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
