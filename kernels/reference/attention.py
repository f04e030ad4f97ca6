"""Paged attention in pure torch: gather the cells a query sees, then scaled dot product attention.

Slices with few queries each (decodes, verified drafts) are attended together: those of about the
same length form a crowd, padded to its longest, in one call. A slice with many queries (a chunk of
a prompt) is attended alone, in tiles, so that no mask grows with queries x context.

A query's sums are taken in an order that depends neither on what else is in the step nor on how
its prompt was cut. Measured, torch's kernel needs two things for that. The cells, of which it sums
up `_SPLIT` at a time, are counted from a multiple of that and end where `_ENDS` allow; hidden cells
add exact zeros. And the rows of queries, which it takes `_ROW_BLOCK` at a time, leave no rest of
fewer than `_FEWEST_ROWS`: those go another way through a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import AttentionLayer, PagedSlices
from .visibility import bias_of, tree_bias

_CROWD_QUERIES = 16  # a slice with more queries than this is attended alone
_CROWD_CELLS = 1 << 12  # cells gathered at once for a crowd, unless one slice alone has more
_SPLIT = 512  # cells
_ENDS = (128, 512)  # cells of the last split; with other numbers sums were seen to differ
_ROW_BLOCK = 32
_FEWEST_ROWS = 4
_LARGEST_FLOAT8 = 448.0  # of e4m3
_TILE_QUERIES = 256  # of a slice attended alone: keys that none of them sees are left out
_TILE_SCORES = 1 << 22  # in one tile, of one head (the kernel works on parts of a head itself)


def plan_attention(slices: PagedSlices) -> _Plan:
    """See `ops.PlanAttention`."""
    return _Plan(slices)


@dataclass(frozen=True, slots=True)
class _Slice:
    """One sequence's part of the step, in host integers. Blocks are counted in its block table."""

    index: int
    first_row: int
    queries: int
    context: int
    first_block: int  # the first one of the splits that its queries see
    blocks: int  # from there to the end of the last split

    @property
    def first_position(self) -> int:
        """Of its queries."""
        return self.context - self.queries


class _Plan:
    """See `ops.AttentionPlan`."""

    def __init__(self, slices: PagedSlices) -> None:
        masks = slices.tree_masks
        self._tree_masks = None if masks is None else tuple(masks.tolist())
        self._lengths = tuple(zip(slices.query_lengths, slices.context_lengths_host, strict=True))
        self._block_tables = slices.block_tables
        self._block_size = block_size = slices.block_size
        slot_mapping = slices.slot_mapping
        # Cells in the cache seen as [blocks * 2 * block_size, kv_heads, head_dim].
        self._key_cells = slot_mapping + slot_mapping // block_size * block_size
        self._value_cells = self._key_cells + block_size
        self._parts: dict[int | None, list[_Crowd | _Alone]] = {}  # by window

    def store(self, cache: Tensor, key: Tensor, value: Tensor, layer: AttentionLayer) -> None:
        if cache.dtype == torch.float8_e4m3fn:
            cells = cache.view(torch.uint8).view(-1, *cache.shape[3:])
        else:
            cells = cache.view(-1, *cache.shape[3:])
        cells.index_copy_(0, self._key_cells, _cells_of(key, layer.key_scale, cache.dtype))
        cells.index_copy_(0, self._value_cells, _cells_of(value, layer.value_scale, cache.dtype))

    def attend(self, cache: Tensor, query: Tensor, layer: AttentionLayer) -> Tensor:
        if cache.dtype == torch.float8_e4m3fn:
            mixed = self._attend(cache, query, layer, layer.scale * layer.key_scale)
            return mixed.mul_(layer.value_scale)
        return self._attend(cache, query, layer, layer.scale)

    def _attend(self, cache: Tensor, query: Tensor, layer: AttentionLayer, scale: float) -> Tensor:
        window, softcap = layer.window, layer.softcap
        parts = self._parts.get(window)
        if parts is None:
            group = query.shape[1] // cache.shape[3]
            parts = self._parts[window] = self._divide(window, group, query.dtype)
        if len(parts) == 1:  # its rows are all rows, in order
            return parts[0].attend(cache, query, scale, softcap)
        out = torch.empty_like(query)
        for part in parts:
            rows = part.rows
            if isinstance(rows, slice):
                out[rows] = part.attend(cache, query[rows], scale, softcap)
            else:
                attended = part.attend(cache, query.index_select(0, rows), scale, softcap)
                out.index_copy_(0, rows, attended)
        return out

    def _divide(self, window: int | None, group: int, dtype: torch.dtype) -> list[_Crowd | _Alone]:
        few: list[_Slice] = []
        parts: list[_Crowd | _Alone] = []
        table, size = self._block_tables, self._block_size
        for slice_ in self._slices(window):
            if marks := self._marks(slice_):
                tree = _Crowd([slice_], window, table, size, group=group, dtype=dtype, marks=marks)
                parts.append(tree)
            elif slice_.queries <= _CROWD_QUERIES:
                few.append(slice_)
            else:
                parts.append(_Alone(slice_, window, table, size))
        for members in _crowds(few, _CROWD_CELLS // size):
            parts.append(_Crowd(members, window, table, size, group=group, dtype=dtype))
        return parts

    def _marks(self, slice_: _Slice) -> tuple[int, ...]:
        """The tree masks of a slice that is a tree."""
        if self._tree_masks is None:
            return ()
        marks = self._tree_masks[slice_.first_row : slice_.first_row + slice_.queries]
        return marks if max(marks) >= 0 else ()

    def _slices(self, window: int | None) -> list[_Slice]:
        found: list[_Slice] = []
        first_row = 0
        for index, (queries, context) in enumerate(self._lengths):
            if not queries:
                continue
            seen_from = 0 if window is None else max(0, context - queries - window + 1)
            cells = _whole_splits(seen_from, context, self._block_size)
            first_block = cells.start // self._block_size
            blocks = len(cells) // self._block_size
            found.append(_Slice(index, first_row, queries, context, first_block, blocks))
            first_row += queries
        return found


def _whole_splits(first: int, end: int, block_size: int) -> range:
    """The cells first .. end - 1 and those around them that make the order of sums a fixed one."""
    start = first // lcm(_SPLIT, block_size) * lcm(_SPLIT, block_size)
    full, rest = divmod(end - start, _SPLIT)
    length = full * _SPLIT + (next(e for e in _ENDS if e >= rest) if rest else 0)
    return range(start, start + -(-length // block_size) * block_size)


def _crowds(slices: list[_Slice], most_blocks: int) -> list[list[_Slice]]:
    """Slices that go together: equally many queries, alike in length, not too many cells."""
    crowds: list[list[_Slice]] = []
    for slice_ in sorted(slices, key=lambda s: (s.queries, s.blocks)):
        crowd = crowds[-1] if crowds else []
        if (
            crowd
            and slice_.queries == crowd[0].queries
            and slice_.blocks * (len(crowd) + 1) <= most_blocks
            and 2 * slice_.blocks <= 3 * crowd[0].blocks + 8
        ):
            crowd.append(slice_)
        else:
            crowds.append([slice_])
    return [sorted(crowd, key=lambda s: s.index) for crowd in crowds]


class _Crowd:
    """Slices of equally many queries, attended in one call."""

    def __init__(
        self,
        members: list[_Slice],
        window: int | None,
        block_tables: Tensor,
        block_size: int,
        *,
        group: int,
        dtype: torch.dtype,
        marks: tuple[int, ...] = (),
    ) -> None:
        """`marks`: those of the queries of the only member, which is a tree."""
        device = block_tables.device
        self._queries = queries = members[0].queries
        self._sequences = len(members)
        self.rows = _rows(members, device)

        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, device=device).unsqueeze(1)  # [sequences, 1]

        blocks = max(s.blocks for s in members)
        first = column([s.first_block for s in members])
        last = column([-(-s.context // block_size) - 1 for s in members])
        tables = block_tables[
            column([s.index for s in members]),
            torch.minimum(first + torch.arange(blocks, device=device), last),
        ]  # [sequences, blocks]
        self._halves = _halves(tables)

        cells = first * block_size + torch.arange(blocks * block_size, device=device)
        positions = column([s.first_position for s in members]) + torch.arange(
            queries, device=device
        )
        if marks:
            bias = tree_bias(marks, members[0].first_position, cells, window, dtype)
        else:
            bias = bias_of(positions, cells, window, dtype)
        bias = bias.unsqueeze(1)  # [sequences, 1, queries, cells]
        # With one query the heads of a group share its row by broadcasting.
        self._bias = bias if queries == 1 else bias.repeat_interleave(group, dim=2)

    def attend(self, cache: Tensor, query: Tensor, scale: float, softcap: float | None) -> Tensor:
        """query [sequences * queries, heads, head_dim] -> like query."""
        kv_heads, head_dim = cache.shape[3:]
        gathered = _gathered(cache, self._halves, query.dtype)
        split = (self._sequences, self._queries, kv_heads, -1, head_dim)
        # The heads of a group are further queries to the same keys: nothing is repeated.
        q = query.reshape(split).transpose(1, 2).flatten(2, 3)
        k, v = gathered.view(2, self._sequences, -1, kv_heads, head_dim).transpose(2, 3)
        out = _softmax_attention(q, k, v, self._bias, scale, softcap)
        out = out.reshape(self._sequences, kv_heads, self._queries, -1, head_dim).transpose(1, 2)
        return out.reshape(query.shape)


class _Alone:
    """One slice with many queries, attended in tiles."""

    def __init__(
        self, slice_: _Slice, window: int | None, block_tables: Tensor, block_size: int
    ) -> None:
        self._slice = slice_
        self._window = window
        self._block_size = block_size
        self._first_cell = slice_.first_block * block_size  # position of the first gathered cell
        self.rows = slice(slice_.first_row, slice_.first_row + slice_.queries)
        places = torch.arange(slice_.blocks, device=block_tables.device) + slice_.first_block
        last = -(-slice_.context // block_size) - 1
        self._halves = _halves(block_tables[slice_.index, places.clamp_(max=last)])

    def attend(self, cache: Tensor, query: Tensor, scale: float, softcap: float | None) -> Tensor:
        """query [queries, heads, head_dim] -> like query."""
        kv_heads, head_dim = cache.shape[3:]
        queries, heads, _ = query.shape
        gathered = _gathered(cache, self._halves, query.dtype)
        split = (kv_heads, heads // kv_heads, -1, head_dim)
        k, v = (
            half.view(-1, kv_heads, head_dim).transpose(0, 1).unsqueeze(1).expand(split)
            for half in gathered.chunk(2)
        )  # [kv_heads, group, cells, head_dim], the group sharing memory
        q = query.view(queries, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
        out = torch.empty_like(query)
        scores = self._slice.context * (1 if softcap is None else heads)  # of one query, at once
        tile = max(1, min(_TILE_QUERIES, _TILE_SCORES // scores))
        for first in range(0, queries, tile):
            last = min(first + tile, queries)
            positions, seen = self._seen(first, last)
            low, high = seen.start - self._first_cell, seen.stop - self._first_cell
            cells = torch.arange(seen.start, seen.stop, device=query.device)
            attended = _softmax_attention(
                q[:, :, first:last],
                k[:, :, low:high],
                v[:, :, low:high],
                bias_of(positions.to(query.device), cells, self._window, query.dtype),
                scale,
                softcap,
            )
            out[first:last] = attended.permute(2, 0, 1, 3).reshape(-1, heads, head_dim)
        return out

    def _seen(self, first: int, last: int) -> tuple[Tensor, range]:
        """Positions of the queries first .. last - 1, and the cells to gather for them."""
        start = self._slice.first_position
        from_cell = 0 if self._window is None else max(0, start + first - self._window + 1)
        seen = _whole_splits(from_cell, start + last, self._block_size)
        return torch.arange(start + first, start + last), seen


def _rows(members: list[_Slice], device: torch.device) -> slice | Tensor:
    """The step's rows that belong to `members`."""
    queries = members[0].queries
    firsts = [s.first_row for s in members]
    if firsts == list(range(firsts[0], firsts[0] + queries * len(members), queries)):
        return slice(firsts[0], firsts[0] + queries * len(members))
    rows = torch.tensor(firsts, device=device).unsqueeze(1) + torch.arange(queries, device=device)
    return rows.flatten()


def _halves(tables: Tensor) -> Tensor:
    """Indexes of all key halves, then of all value halves, in a cache seen as [blocks * 2, ...]."""
    keys = tables.flatten().long() * 2
    return torch.cat((keys, keys + 1))


def _gathered(cache: Tensor, halves: Tensor, dtype: torch.dtype) -> Tensor:
    """Halves of blocks, [halves, block_size, kv_heads, head_dim]; of 8 bits without their scale."""
    return cache.view(-1, *cache.shape[2:]).index_select(0, halves).to(dtype)


def _cells_of(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """What of keys or values becomes cells of a cache of `dtype`."""
    # A crowd's padding is cells of whoever had the block before: a NaN in it would spread.
    x = x.nan_to_num(0.0, 0.0, 0.0)
    if dtype != torch.float8_e4m3fn:
        return x
    x = (x.float() * (1.0 / scale)).clamp_(-_LARGEST_FLOAT8, _LARGEST_FLOAT8)
    return x.to(dtype).view(torch.uint8)  # copied as bytes: torch knows no index of float8


def _softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """q [a, b, queries, head_dim], k and v [a, b, cells, head_dim], bias broadcast to scores."""
    rows = q.shape[2]
    if 0 < rows % _ROW_BLOCK < _FEWEST_ROWS:
        more = (0, 0, 0, _FEWEST_ROWS - rows % _ROW_BLOCK)
        bias = bias if bias.shape[-2] == 1 else F.pad(bias, more)
        return _softmax_attention(F.pad(q, more), k, v, bias, scale, softcap)[:, :, :rows]
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    scores = torch.matmul(q.float(), k.float().transpose(-1, -2)).mul_(scale / softcap)
    weights = scores.tanh_().mul_(softcap).add_(bias).softmax(-1)
    return torch.matmul(weights, v.float()).to(q.dtype)
