"""Attention kernels of other libraries, between our own norms, rotation and store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.kernels.ops import AttentionLayer, AttentionPlan, Ops

from ..batch import Batch
from .paged import PagedAttention


class LayerKind(NamedTuple):
    """How a layer attends: layers that agree in this may share what a library plans."""

    scale: float  # that of keys included
    window: int | None
    softcap: float | None


class LibraryPlan(ABC):
    """The `AttentionPlan` of one step: cells are stored by our plan, a library attends."""

    def __init__(self, batch: Batch, block_size: int, ours: AttentionPlan) -> None:
        self._batch = batch
        self._block_size = block_size
        self._ours = ours

    def store(self, cache: Tensor, key: Tensor, value: Tensor, layer: AttentionLayer) -> None:
        self._ours.store(cache, key, value, layer)

    def attend(self, cache: Tensor, query: Tensor, layer: AttentionLayer) -> Tensor:
        kind = LayerKind(layer.scale * layer.key_scale, layer.window, layer.softcap)
        mixed = self.mix(cache, query, kind)
        return mixed if layer.value_scale == 1.0 else mixed * layer.value_scale

    @abstractmethod
    def mix(self, cache: Tensor, query: Tensor, kind: LayerKind) -> Tensor:
        """See `ops.AttentionPlan.attend`; cells are as they stand in the cache."""


class LibraryAttention(ABC):
    """The `AttentionBackend` of a library. Its steps are not replayed: what it decides on the host
    from lengths, or keeps in workspaces, is its own."""

    replayable = False
    wide = False

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
        kv_heads, head_dim = cache.shape[3:]
        rows = projected.view(len(projected), -1, head_dim)  # [tokens, q, k, v heads, head_dim]
        query_key, value = rows[:, :-kv_heads], rows[:, -kv_heads:]
        heads = query_key.shape[1] - kv_heads
        if layer.query_norm is not None and layer.key_norm is not None:
            norm = self._ops.rms_norm
            query = norm(query_key[:, :heads], layer.query_norm, layer.epsilon)
            key = norm(query_key[:, heads:], layer.key_norm, layer.epsilon)
            query_key = torch.cat((query, key), dim=1)
        query_key = self._ops.rotate(query_key, cosine, sine)
        plan.store(cache, query_key[:, heads:], value, layer)
        return plan.attend(cache, query_key[:, :heads].contiguous(), layer).flatten(1)
