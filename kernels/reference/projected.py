"""Attention from a layer's projections, by the other ops."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import AttentionLayer, AttentionPlan
from .norm import rms_norm
from .rope import rotate


def attend_projected(
    plan: AttentionPlan,
    cache: Tensor,
    projected: Tensor,
    cosine: Tensor,
    sine: Tensor,
    layer: AttentionLayer,
) -> Tensor:
    """See `ops.AttendProjected`."""
    kv_heads, head_dim = cache.shape[3:]
    dtype = projected.dtype if cache.dtype.itemsize == 1 else cache.dtype
    rows = projected.view(len(projected), -1, head_dim)  # [tokens, q, k, v heads, head_dim]
    query_key, value = rows[:, :-kv_heads], rows[:, -kv_heads:]
    heads = query_key.shape[1] - kv_heads
    if layer.query_norm is not None and layer.key_norm is not None:
        query = rms_norm(query_key[:, :heads], layer.query_norm.to(rows.dtype), layer.epsilon)
        key = rms_norm(query_key[:, heads:], layer.key_norm.to(rows.dtype), layer.epsilon)
        query_key = torch.cat((query, key), dim=1)
    query_key = rotate(query_key, cosine, sine).to(dtype)
    plan.store(cache, query_key[:, heads:], value.to(dtype), layer)
    return plan.attend(cache, query_key[:, :heads], layer).flatten(1)
