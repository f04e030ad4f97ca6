"""The seam `AttentionBackend`: prepare once per step, attend once per layer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from octavo.kernels.ops import AttentionPlan

from ..batch import Batch


class AttentionBackend(Protocol):
    """Stores a step's keys and values and attends to all that its sequences have stored."""

    def prepare(self, batch: Batch, block_size: int) -> AttentionPlan:
        """Work out what all layers of this step share."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cache: Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """query [tokens, heads, head_dim] -> like query.

        key and value [tokens, kv_heads, head_dim]; `cache` is this layer's,
        [blocks, 2, block_size, kv_heads, head_dim].
        """
