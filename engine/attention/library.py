"""Attention kernels of other libraries, between our own norms, rotation and store."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from octavo.kernels.ops import AttentionLayer, AttentionPlan, Ops

from ..batch import Batch
from .paged import PagedAttention


class LibraryPlan(ABC):
    """The `AttentionPlan` of one step: cells are stored by our plan, a library attends."""

    def __init__(self, batch: Batch, block_size: int, ours: AttentionPlan) -> None:
        self._batch = batch
        self._block_size = block_size
        self._ours = ours

    def store(
        self,
        cache: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> None:
        self._ours.store(cache, key, value, key_scale=key_scale, value_scale=value_scale)

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
        scale *= key_scale
        mixed = self.mix(cache, query, scale=scale, window=window, softcap=softcap)
        return mixed if value_scale == 1.0 else mixed * value_scale

    @abstractmethod
    def mix(
        self,
        cache: Tensor,
        query: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See `ops.AttentionPlan.attend`; cells are as they stand in the cache."""


class LibraryAttention(ABC):
    """The `AttentionBackend` of a library. Its steps are not replayed: what it decides on the host
    from lengths, or keeps in workspaces, is its own."""

    replayable = False

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._own = PagedAttention(ops)

    @abstractmethod
    def plan(self, batch: Batch, block_size: int, ours: AttentionPlan) -> LibraryPlan:
        """The step's plan; `ours` stores its cells."""

    def prepare(self, batch: Batch, block_size: int) -> AttentionPlan:
        return self.plan(batch, block_size, self._own.prepare(batch, block_size))

    def attend(
        self,
        projected: Tensor,
        cache: Tensor,
        plan: AttentionPlan,
        cosine: Tensor,
        sine: Tensor,
        layer: AttentionLayer,
    ) -> Tensor:
        heads = projected.view(len(projected), -1, layer.head_dim)  # [tokens, q, k, v heads, dim]
        query_key, value = heads[:, : -layer.kv_heads], heads[:, -layer.kv_heads :]
        if layer.query_norm is not None and layer.key_norm is not None:
            norm = self._ops.rms_norm
            query = norm(query_key[:, : layer.heads], layer.query_norm, layer.epsilon)
            key = norm(query_key[:, layer.heads :], layer.key_norm, layer.epsilon)
            query_key = torch.cat((query, key), dim=1)
        query_key = self._ops.rotate(query_key, cosine, sine)
        scales = {"key_scale": layer.key_scale, "value_scale": layer.value_scale}
        plan.store(cache, query_key[:, layer.heads :], value, **scales)
        mixed = plan.attend(
            cache,
            query_key[:, : layer.heads].contiguous(),
            scale=layer.scale,
            window=layer.window,
            softcap=layer.softcap,
            **scales,
        )
        return mixed.flatten(1)
