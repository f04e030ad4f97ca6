"""Paged attention: the tensors of a step as the C functions want them.

Trees of drafts, and caches of 8 bits, are left to the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import AttendProjected, AttentionLayer, AttentionPlan, PlanAttention
from ..reference import attention as reference
from ..reference.projected import attend_projected as plain_attend_projected
from .library import COUNT, FLOAT, POINTER, Function, Library, dense

_STORE = (POINTER, POINTER, COUNT, POINTER, COUNT, POINTER, COUNT, COUNT, COUNT, COUNT)
_ATTEND = (
    *(POINTER, POINTER, COUNT, POINTER, POINTER, POINTER, POINTER, COUNT),
    *(COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, FLOAT, FLOAT),
)
_ATTEND_PROJECTED = (
    *(POINTER, POINTER, POINTER, POINTER, POINTER, COUNT, POINTER, POINTER, FLOAT),
    *(POINTER, COUNT, POINTER, POINTER, POINTER, COUNT, COUNT),
    *(COUNT, COUNT, COUNT, COUNT, COUNT, FLOAT, FLOAT),
)


def plan_attention(library: Library) -> PlanAttention:
    store = library.functions("store_cells", *_STORE)
    attend = library.functions("attend", *_ATTEND)

    def plan(
        *,
        query_offsets: Tensor,
        context_lengths: Tensor,
        block_tables: Tensor,
        slot_mapping: Tensor,
        query_lengths: tuple[int, ...],
        context_lengths_host: tuple[int, ...],
        block_size: int,
        tree_masks: Tensor | None = None,
    ) -> AttentionPlan:
        def plain() -> AttentionPlan:
            return reference.plan_attention(
                query_offsets=query_offsets,
                context_lengths=context_lengths,
                block_tables=block_tables,
                slot_mapping=slot_mapping,
                query_lengths=query_lengths,
                context_lengths_host=context_lengths_host,
                block_size=block_size,
                tree_masks=tree_masks,
            )

        if tree_masks is not None:
            return plain()
        return _Plan(
            plain=plain,
            store=store,
            attend=attend,
            offsets=dense(query_offsets),
            contexts=dense(context_lengths),
            tables=dense(block_tables),
            slots=dense(slot_mapping),
            block_size=block_size,
        )

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
        if not isinstance(plan, _Plan):  # a tree's
            return plain_attend_projected(plan, cache, projected, cosine, sine, layer)
        if cache.dtype not in functions:
            return plain_attend_projected(plan.plain, cache, projected, cosine, sine, layer)
        out = projected.new_empty(projected.shape[0], layer.heads * layer.head_dim)
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
            layer.heads,
            layer.kv_heads,
            layer.head_dim,
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
        *,
        plain: Callable[[], AttentionPlan],
        store: dict[torch.dtype, Function],
        attend: dict[torch.dtype, Function],
        offsets: Tensor,
        contexts: Tensor,
        tables: Tensor,
        slots: Tensor,
        block_size: int,
    ) -> None:
        self._make_plain = plain
        self._plain: AttentionPlan | None = None
        self._store = store
        self._attend = attend
        self._kept = (offsets, contexts, tables, slots)  # whose memory the addresses are of
        self.tokens = (slots.data_ptr(), slots.shape[0])
        self.lengths = (offsets.data_ptr(), contexts.data_ptr())
        self.tables = (tables.data_ptr(), tables.stride(0), contexts.shape[0])
        self.block_size = block_size

    @property
    def plain(self) -> AttentionPlan:
        """The reference's, for caches of 8 bits."""
        if self._plain is None:
            self._plain = self._make_plain()
        return self._plain

    def store(
        self,
        cache: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> None:
        if cache.dtype not in self._store:
            scales = {"key_scale": key_scale, "value_scale": value_scale}
            self.plain.store(cache, key, value, **scales)
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
        if cache.dtype not in self._attend:
            return self.plain.attend(
                cache,
                query,
                scale=scale,
                window=window,
                softcap=softcap,
                key_scale=key_scale,
                value_scale=value_scale,
            )
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
            window or 0,
            scale,
            softcap or 0.0,
        )
        return out


def _tokens_apart(x: Tensor) -> Tensor:
    """`x` [tokens, heads, head_dim] with the heads of a token one after the other in memory."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
