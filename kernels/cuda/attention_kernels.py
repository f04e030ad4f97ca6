"""The kernels of paged attention; `attention.py` says what they do together."""

from __future__ import annotations

import triton
import triton.language as tl

from .float8 import decoded, encoded

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _merged(peak, total, mixed, next_peak, next_total, next_mixed):
    """A state of the softmax and that of further cells, which is -inf where none was seen."""
    higher = tl.maximum(peak, next_peak)
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    fade, share = tl.exp2(peak - shift), tl.exp2(next_peak - shift)
    total = total * fade + next_total * share
    mixed = mixed * fade[:, None] + next_mixed * share[:, None]
    return higher, total, mixed


@triton.jit
def _bits_set(x):
    """Of each int64 >= 0."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    x = x + (x >> 8)
    x = x + (x >> 16)
    return ((x + (x >> 32)) & 0x7F).to(tl.int32)


@triton.jit
def attend_kernel(
    query, cache, out, part_sum, part_max, part_total,
    block_tables, context_lengths, query_offsets, tiles, tree_masks,
    scale, value_scale, softcap, window,
    query_stride, block_stride, half_stride, cell_stride, head_stride, table_stride,
    heads, splits,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, CELLS: tl.constexpr, BLOCK_SIZE: tl.constexpr, SPLIT: tl.constexpr,
    CAPPED: tl.constexpr, PARTS: tl.constexpr, TILED: tl.constexpr, TREE: tl.constexpr,
    KEEP: tl.constexpr, FLOAT8: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile, one KV head; with PARTS one split of the context, unnormalised, to be merged.

    With KEEP instead, the splits are kept apart here and merged in their order, as they are there.
    """
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, first_query = tile, 0
    if TILED:
        sequence = tl.load(tiles + 2 * tile)
        if sequence < 0:  # an idle tile: graphs have a fixed number of them
            return
        first_query = tl.load(tiles + 2 * tile + 1)
    first_row = tl.load(query_offsets + sequence)
    queries = tl.load(query_offsets + sequence + 1) - first_row
    if queries == 0:
        return
    context = tl.load(context_lengths + sequence)
    before = context - queries

    row = tl.arange(0, ROWS)
    index = first_query + row // GROUP  # which query of the sequence
    head = kv_head * GROUP + row % GROUP
    live = (index < queries) & (row < ROWS // GROUP * GROUP)
    position = before + index
    token = (first_row + index).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    in_head = column < HEAD_DIM
    at = token[:, None] * query_stride + head[:, None] * HEAD_DIM + column[None, :]
    q = tl.load(query + at, mask=live[:, None] & in_head[None, :], other=0.0)
    if UPCAST:
        q = q.to(tl.float32)

    # Cells that any query of the tile sees, within this split.
    last = before + tl.minimum(first_query + ROWS // GROUP, queries)  # exclusive
    first = tl.maximum(before + first_query - window + 1, 0)
    if TREE:
        marks = tl.load(tree_masks + token, mask=live, other=-1)
        in_tree = marks >= 0
        depth = _bits_set(tl.where(in_tree, marks, 0)) - 1
        position = tl.where(in_tree, before + depth, position)
        last = context
        first = tl.maximum(before - window + 1, 0)
    begin = first // CELLS * CELLS
    end = last
    if PARTS:
        begin = tl.maximum(begin, split * SPLIT)
        end = tl.minimum(end, (split + 1) * SPLIT)

    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, BLOCK_D], tl.float32)
    if KEEP:
        done_peak, done_total, done_mixed = peak, total, mixed
    for start in range(begin, end, CELLS):
        cell = start + tl.arange(0, CELLS)
        known = cell < end
        block = tl.load(
            block_tables + sequence * table_stride + cell // BLOCK_SIZE, mask=known, other=0
        ).to(tl.int64)
        base = block * block_stride + (cell % BLOCK_SIZE) * cell_stride + kv_head * head_stride
        mask = known[:, None] & in_head[None, :]
        if FLOAT8:
            key = tl.load(cache + base[:, None] + column[None, :], mask=mask, other=0)
            value = tl.load(
                cache + half_stride + base[:, None] + column[None, :], mask=mask, other=0
            )
            key, value = decoded(key).to(q.dtype), decoded(value).to(q.dtype)
        else:
            key = tl.load(cache + base[:, None] + column[None, :], mask=mask, other=0.0)
            value = tl.load(
                cache + half_stride + base[:, None] + column[None, :], mask=mask, other=0.0
            )
        if UPCAST:
            key, value = key.to(tl.float32), value.to(tl.float32)
        scores = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
        if CAPPED:  # softcap * tanh(scores / softcap)
            scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * scores / softcap)))
        seen = (cell[None, :] <= position[:, None]) & (cell[None, :] > position[:, None] - window)
        if TREE:
            node = cell - before
            shift = tl.minimum(tl.maximum(node, 0), 62).to(tl.int64)
            marked = ((marks[:, None] >> shift[None, :]) & 1) != 0
            of_step = node[None, :] >= 0
            seen = tl.where(in_tree[:, None] & of_step, marked & (node[None, :] < 63), seen)
        scores = tl.where(seen & known[None, :], scores * _LOG2_E, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen so far
        weight = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(peak - shift)
        total = total * fade + tl.sum(weight, 1)
        mixed = mixed * fade[:, None]
        mixed += tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        peak = higher
        if KEEP:
            if (start + CELLS) % SPLIT == 0:
                done_peak, done_total, done_mixed = _merged(
                    done_peak, done_total, done_mixed, peak, total, mixed
                )
                peak = tl.full([ROWS], float("-inf"), tl.float32)
                total = tl.zeros([ROWS], tl.float32)
                mixed = tl.zeros([ROWS, BLOCK_D], tl.float32)
    if KEEP:
        peak, total, mixed = _merged(done_peak, done_total, done_mixed, peak, total, mixed)

    if PARTS:
        part = (token * heads + head) * splits + split
        tl.store(part_max + part, peak, mask=live)
        if begin < end:
            tl.store(part_total + part, total, mask=live)
            tl.store(
                part_sum + part[:, None] * HEAD_DIM + column[None, :],
                mixed, mask=live[:, None] & in_head[None, :],
            )  # fmt: skip
    else:
        mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None] * value_scale
        at = (token[:, None] * heads + head[:, None]) * HEAD_DIM + column[None, :]
        mixed = mixed.to(out.dtype.element_ty)
        tl.store(out + at, mixed, mask=live[:, None] & in_head[None, :])


@triton.jit
def merge_kernel(
    part_sum, part_max, part_total, out, splits, value_scale,
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
    mixed = mixed / tl.where(total == 0.0, 1.0, total) * value_scale
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
    key, value, cache, slots, key_inverse, value_inverse,
    key_stride, value_stride, block_stride, half_stride, cell_stride, size,
    BLOCK_SIZE: tl.constexpr, FLOAT8: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Key and value of one token into its cell; a slot of -1 is padding."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:
        return
    column = tl.arange(0, BLOCK)
    inside = column < size
    to = cache + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * cell_stride + column
    k = tl.load(key + token * key_stride + column, mask=inside)
    v = tl.load(value + token * value_stride + column, mask=inside)
    if FLOAT8:
        k = encoded(k.to(tl.float32) * key_inverse)
        v = encoded(v.to(tl.float32) * value_inverse)
    tl.store(to, k, mask=inside)
    tl.store(to + half_stride, v, mask=inside)
