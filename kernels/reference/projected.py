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
    heads = projected.view(len(projected), -1, layer.head_dim)  # [tokens, q, k, v heads, dim]
    query_key, value = heads[:, : -layer.kv_heads], heads[:, -layer.kv_heads :]
    if layer.query_norm is not None and layer.key_norm is not None:
        query = rms_norm(query_key[:, : layer.heads], layer.query_norm, layer.epsilon)
        key = rms_norm(query_key[:, layer.heads :], layer.key_norm, layer.epsilon)
        query_key = torch.cat((query, key), dim=1)
    query_key = rotate(query_key, cosine, sine)
    scales = {"key_scale": layer.key_scale, "value_scale": layer.value_scale}
    plan.store(cache, query_key[:, layer.heads :], value, **scales)
    mixed = plan.attend(
        cache,
        query_key[:, : layer.heads],
        scale=layer.scale,
        window=layer.window,
        softcap=layer.softcap,
        **scales,
    )
    return mixed.flatten(1)
