"""Attention over the paged cache with the device's own kernel."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.ops import AttentionLayer, AttentionPlan, Ops, PagedSlices

from ..batch import Batch


class PagedAttention:
    """The `AttentionBackend` that needs nothing but `Ops`."""

    def __init__(self, ops: Ops, *, replayable: bool = False, wide: bool = False) -> None:
        self._plan = ops.plan_attention
        self._attend = ops.attend_projected
        self.replayable = replayable
        self.wide = wide

    def prepare(self, batch: Batch, block_size: int) -> AttentionPlan:
        slices = PagedSlices(
            query_offsets=batch.query_offsets,
            context_lengths=batch.context_lengths,
            block_tables=batch.block_tables,
            slot_mapping=batch.slot_mapping,
            query_lengths=batch.query_lengths,
            context_lengths_host=batch.context_lengths_host,
            block_size=block_size,
        )
        return self._plan(slices)

    def attend(
        self,
        projected: Tensor,
        cache: Tensor,
        plan: AttentionPlan,
        cosine: Tensor,
        sine: Tensor,
        layer: AttentionLayer,
    ) -> Tensor:
        return self._attend(plan, cache, projected, cosine, sine, layer)
