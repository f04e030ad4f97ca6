"""Attention over the paged cache with the device's own kernel."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.ops import AttentionPlan, Ops

from ..batch import Batch


class PagedAttention:
    """The `AttentionBackend` that needs nothing but `Ops`."""

    def __init__(self, ops: Ops) -> None:
        self._plan = ops.plan_attention

    def prepare(self, batch: Batch, block_size: int) -> AttentionPlan:
        return self._plan(
            query_offsets=batch.query_offsets,
            context_lengths=batch.context_lengths,
            block_tables=batch.block_tables,
            slot_mapping=batch.slot_mapping,
            query_lengths=batch.query_lengths,
            context_lengths_host=batch.context_lengths_host,
            block_size=block_size,
        )

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
        plan.store(cache, key, value)
        return plan.attend(cache, query, scale=scale, window=window, softcap=softcap)
