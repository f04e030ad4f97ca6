"""Paged attention: the tensors of a step as the C functions want them.

Caches of 8 bits are left to the reference, which alone stores in them and reads them. Where keys
and values lie in the others is said in `csrc/cells.h`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import AttendProjected, AttentionLayer, AttentionPlan, PagedSlices, PlanAttention
from ..reference import attention as reference
from ..reference.projected import attend_projected as plain_attend_projected
from .library import COUNT, FLOAT, POINTER, Function, Library, dense

_STORE = (POINTER, POINTER, COUNT, POINTER, COUNT, POINTER, COUNT, COUNT, COUNT, COUNT)
_ATTEND = (
    *(POINTER, POINTER, COUNT, POINTER, POINTER, POINTER, POINTER, POINTER, COUNT),
    *(COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, FLOAT, FLOAT),
)
_ATTEND_PROJECTED = (
    *(POINTER, POINTER, POINTER, POINTER, POINTER, COUNT, POINTER, POINTER, FLOAT),
    *(POINTER, COUNT, POINTER, POINTER, POINTER, POINTER, COUNT, COUNT),
    *(COUNT, COUNT, COUNT, COUNT, COUNT, FLOAT, FLOAT),
)


def plan_attention(library: Library) -> PlanAttention:
    store = library.functions("store_cells", *_STORE)
    attend = library.functions("attend", *_ATTEND)

    def plan(slices: PagedSlices) -> AttentionPlan:
        return _Plan(slices, store, attend)

    return plan


def attend_projected(library: Library) -> AttendProjected:
    functions = library.functions("attend_projected", *_ATTEND_PROJECTED)

    def run(
        plan: AttentionPlan,
        cache: Tensor,
        projected: Tensor,
        cosine: Tensor,
        sine: Tensor,
        layer: AttentionLayer,
    ) -> Tensor:
        assert isinstance(plan, _Plan)
        if cache.dtype not in functions:
            return plain_attend_projected(plan.plain, cache, projected, cosine, sine, layer)
        projected = dense(projected.float())
        kv_heads, head_dim = cache.shape[3:]
        heads = projected.shape[1] // head_dim - 2 * kv_heads
        out = library.empty((projected.shape[0], heads * head_dim), cache.dtype)
        functions[cache.dtype](
            out.data_ptr(),
            projected.data_ptr(),
            cache.data_ptr(),
            cosine.data_ptr(),
            sine.data_ptr(),
            cosine.shape[-1],
            None if layer.query_norm is None else layer.query_norm.data_ptr(),
            None if layer.key_norm is None else layer.key_norm.data_ptr(),
            layer.epsilon,
            *plan.tokens,
            *plan.lengths,
            *plan.tables,
            heads,
            kv_heads,
            head_dim,
            plan.block_size,
            layer.window or 0,
            layer.scale,
            layer.softcap or 0.0,
        )
        return out

    return run


class _Plan:
    """See `ops.AttentionPlan`."""

    def __init__(
        self,
        slices: PagedSlices,
        store: dict[torch.dtype, Function],
        attend: dict[torch.dtype, Function],
    ) -> None:
        self._slices = slices
        self._plain: AttentionPlan | None = None
        self._store = store
        self._attend = attend
        offsets, contexts = dense(slices.query_offsets), dense(slices.context_lengths)
        tables, slots = dense(slices.block_tables), dense(slices.slot_mapping)
        marks = None if slices.tree_masks is None else dense(slices.tree_masks)
        self._kept = (offsets, contexts, marks, tables, slots)  # whose memory the addresses are of
        self.tokens = (slots.data_ptr(), slots.shape[0])
        self.lengths = (
            offsets.data_ptr(),
            contexts.data_ptr(),
            None if marks is None else marks.data_ptr(),
        )
        self.tables = (tables.data_ptr(), tables.stride(0), contexts.shape[0])
        self.block_size = slices.block_size

    @property
    def plain(self) -> AttentionPlan:
        """The reference's, for caches of 8 bits."""
        if self._plain is None:
            self._plain = reference.plan_attention(self._slices)
        return self._plain

    def store(self, cache: Tensor, key: Tensor, value: Tensor, layer: AttentionLayer) -> None:
        if cache.dtype not in self._store:
            self.plain.store(cache, key, value, layer)
            return
        key, value = _tokens_apart(key), _tokens_apart(value)
        self._store[cache.dtype](
            cache.data_ptr(),
            key.data_ptr(),
            key.stride(0),
            value.data_ptr(),
            value.stride(0),
            *self.tokens,
            cache.shape[3],
            cache.shape[4],
            self.block_size,
        )

    def attend(self, cache: Tensor, query: Tensor, layer: AttentionLayer) -> Tensor:
        if cache.dtype not in self._attend:
            return self.plain.attend(cache, query, layer)
        query = _tokens_apart(query)
        out = query.new_empty(query.shape)
        self._attend[cache.dtype](
            out.data_ptr(),
            query.data_ptr(),
            query.stride(0),
            cache.data_ptr(),
            *self.lengths,
            *self.tables,
            query.shape[1],
            cache.shape[3],
            query.shape[2],
            self.block_size,
            layer.window or 0,
            layer.scale,
            layer.softcap or 0.0,
        )
        return out


def _tokens_apart(x: Tensor) -> Tensor:
    """`x` [tokens, heads, head_dim] with the heads of a token one after the other in memory."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
