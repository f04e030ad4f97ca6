"""Attention from a layer's projections: one pass over them, then attention."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import AttentionLayer, AttentionPlan
from .attention import Plan, as_stored
from .float8 import encoded
from .launching import warps_for

_BLOCK = 2048  # elements a program works on


@triton.jit
def prepare_kernel(
    projected, query_norm, key_norm, cosine, sine, query, cache, slots,
    epsilon, key_inverse, value_inverse, token_stride, block_stride, half_stride, cell_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROTARY: tl.constexpr,
    NORMED: tl.constexpr, FLOAT8: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_H heads of one token: norms and rotation of queries, which go to `query`, and of keys,
    which go with the values to their cell of the cache; a slot of -1 is padding.

    Nothing is written where another thread may still read: `projected` is left alone.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]  # [heads, 1]
    column = tl.arange(0, BLOCK_D)[None, :]  # [1, head_dim]
    within = column < HEAD_DIM
    inside = (head < HEADS + 2 * KV_HEADS) & within
    is_query = head < HEADS
    is_value = head >= HEADS + KV_HEADS
    from_head = projected + token * token_stride + head * HEAD_DIM
    value = tl.load(from_head + column, mask=inside, other=0.0).to(tl.float32)
    turned = column < ROTARY
    swapped = tl.where(column < ROTARY // 2, column + ROTARY // 2, column - ROTARY // 2)
    other = tl.load(from_head + swapped, mask=inside & turned, other=0.0).to(tl.float32)
    plain = value
    if NORMED:
        scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=1)[:, None] / HEAD_DIM + epsilon)
        of_query = tl.load(query_norm + column, mask=within, other=0.0).to(tl.float32)
        of_key = tl.load(key_norm + column, mask=within, other=0.0).to(tl.float32)
        value = value * scale * tl.where(is_query, of_query, of_key)
        of_query = tl.load(query_norm + swapped, mask=turned, other=0.0).to(tl.float32)
        of_key = tl.load(key_norm + swapped, mask=turned, other=0.0).to(tl.float32)
        other = other * scale * tl.where(is_query, of_query, of_key)
    angle = token * ROTARY + column
    cos = tl.load(cosine + angle, mask=turned, other=1.0).to(tl.float32)
    sin = tl.load(sine + angle, mask=turned, other=0.0).to(tl.float32)
    value = tl.where(is_value, plain, value * cos + other * sin)
    to = query + (token * HEADS + head) * HEAD_DIM + column
    tl.store(to, value.to(query.dtype.element_ty), mask=inside & is_query)
    slot = tl.load(slots + token)
    kv_head = head - tl.where(is_value, HEADS + KV_HEADS, HEADS)
    cell = cache + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * cell_stride
    to = cell + tl.where(is_value, half_stride, 0) + kv_head * HEAD_DIM + column
    kept = inside & (head >= HEADS) & (slot + 0 * head >= 0)  # the interpreter wants no scalar
    if FLOAT8:
        held = encoded(value * tl.where(is_value, value_inverse, key_inverse))
    else:
        held = value.to(cache.dtype.element_ty)
    tl.store(to, held, mask=kept)


def attend_projected(
    plan: AttentionPlan,
    cache: Tensor,
    projected: Tensor,
    cosine: Tensor,
    sine: Tensor,
    layer: AttentionLayer,
) -> Tensor:
    """See `ops.AttendProjected`."""
    assert isinstance(plan, Plan), "a plan belongs to who made it"
    tokens = len(projected)
    kv_heads, head_dim = cache.shape[3:]
    heads = projected.shape[1] // head_dim - 2 * kv_heads
    size = (tokens, heads, head_dim)
    query = torch.empty(size, dtype=projected.dtype, device=projected.device)
    if tokens == 0:
        return query.flatten(1)
    columns = triton.next_power_of_2(head_dim)
    rows = heads + 2 * kv_heads
    block = min(triton.next_power_of_2(rows), max(1, _BLOCK // columns))
    cells = as_stored(cache)
    prepare_kernel[(tokens, triton.cdiv(rows, block))](
        projected, layer.query_norm, layer.key_norm,
        cosine.contiguous(), sine.contiguous(), query, cells, plan.slices.slot_mapping,
        layer.epsilon, 1.0 / layer.key_scale, 1.0 / layer.value_scale,
        projected.stride(0), cells.stride(0), cells.stride(1), cells.stride(2),
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim,
        ROTARY=cosine.shape[-1], NORMED=layer.query_norm is not None,
        FLOAT8=cells.dtype == torch.uint8,
        BLOCK_SIZE=plan.slices.block_size, BLOCK_H=block, BLOCK_D=columns,
        num_warps=warps_for(block * columns),
    )  # fmt: skip
    return plan.attend(cache, query, layer).flatten(1)
