"""Ragged steps over a shuffled paged cache, and attention in float64 by its definition."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.kernels.ops import AttentionLayer, AttentionPlan, PagedSlices, PlanAttention

PLAIN = AttentionLayer(scale=1.0)
"""For a store that keeps cells as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedStep:
    """Slices (queries, context) of a step, with the keys and values of every position."""

    slices: tuple[tuple[int, int], ...]
    query: Tensor  # [tokens, heads, head_dim]
    keys: list[Tensor]  # per sequence, [context, kv_heads, head_dim]
    values: list[Tensor]
    # [blocks, 2, block_size, kv_heads, head_dim]: all but this step's cells filled, as the
    # reference would; see `filled_by`.
    cache: Tensor
    block_tables: Tensor
    slot_mapping: Tensor  # of this step's tokens
    marks: tuple[int, ...] = ()  # tree masks of this step's tokens, where there are any

    def plan(self, plan_attention: PlanAttention) -> AttentionPlan:
        queries = tuple(q for q, _ in self.slices)
        contexts = tuple(c for _, c in self.slices)
        device = self.cache.device
        slices = PagedSlices(
            query_offsets=torch.tensor([0, *queries], device=device).cumsum(0).int(),
            context_lengths=torch.tensor(contexts, dtype=torch.int32, device=device),
            block_tables=self.block_tables,
            slot_mapping=self.slot_mapping,
            query_lengths=queries,
            context_lengths_host=contexts,
            block_size=self.cache.shape[2],
            tree_masks=torch.tensor(self.marks, device=device) if self.marks else None,
        )
        return plan_attention(slices)

    def filled_by(self, plan_attention: PlanAttention) -> PagedStep:
        """The same with a cache whose cells stand where an implementation wants them."""
        size, device = self.cache.shape[2], self.cache.device
        before = tuple(context - queries for queries, context in self.slices)
        slots = [
            self.block_tables[index].long()[position // size] * size + position % size
            for index, count in enumerate(before)
            for position in [torch.arange(count, device=device)]
        ]
        # What is not stored stays as it is: leftovers of other sequences.
        earlier = replace(
            self,
            slices=tuple((count, count) for count in before),
            cache=self.cache.clone(),
            slot_mapping=torch.cat(slots),
            marks=(),
        )
        keys, values = (
            torch.cat([cells[:count] for cells, count in zip(every, before, strict=True)])
            for every in (self.keys, self.values)
        )
        plan, cache = earlier.plan(plan_attention), earlier.cache
        plan.store(cache, keys.to(cache), values.to(cache), PLAIN)
        return replace(self, cache=earlier.cache)

    @property
    def new_keys(self) -> Tensor:
        return self._last(self.keys)

    @property
    def new_values(self) -> Tensor:
        return self._last(self.values)

    def _last(self, cells: list[Tensor]) -> Tensor:
        return torch.cat([c[len(c) - q :] for c, (q, _) in zip(cells, self.slices, strict=True)])

    def attended(self, *, scale: float, window: int | None, softcap: float | None) -> Tensor:
        """What attention is by its definition, in float64."""
        rows, first = [], 0
        for (queries, context), keys, values in zip(
            self.slices, self.keys, self.values, strict=True
        ):
            for i in range(queries):
                mark = self.marks[first + i] if self.marks else -1
                start = context - queries
                position = start + (i if mark < 0 else mark.bit_count() - 1)
                low = 0 if window is None else max(0, position - window + 1)
                seen = list(range(low, position + 1))
                if mark >= 0:
                    seen = [*range(low, start), *(start + j for j in range(63) if mark >> j & 1)]
                rows.append(
                    self._one(self.query[first + i], keys[seen], values[seen], scale, softcap)
                )
            first += queries
        return torch.stack(rows)

    @staticmethod
    def _one(
        query: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        group = query.shape[0] // keys.shape[1]
        heads = []
        for head in range(query.shape[0]):
            key, value = keys[:, head // group].double(), values[:, head // group].double()
            scores = scale * (key @ query[head].double())
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            heads.append(scores.softmax(0) @ value)
        return torch.stack(heads)


def tree_marks(parents: tuple[int, ...]) -> tuple[int, ...]:
    """The masks of a tree: each node's parent by its index, -1 for the root."""
    marks: list[int] = []
    for index, parent in enumerate(parents):
        marks.append((marks[parent] if parent >= 0 else 0) | 1 << index)
    return tuple(marks)


def paged_step(
    slices: tuple[tuple[int, int], ...],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int = 16,
    block_size: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PagedStep:
    """Random numbers; blocks in random order; unused table entries point far out of the cache."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    needed = [-(-context // block_size) for _, context in slices]
    blocks = sum(needed) + 2
    order = torch.randperm(blocks, generator=generator)
    tables = torch.full((len(slices), max(needed) + 1), 1 << 20, dtype=torch.int32)
    cache = normal(blocks, 2, block_size, kv_heads, head_dim)  # leftovers of other sequences
    keys, values, slots, taken = [], [], [], 0
    for index, ((queries, context), count) in enumerate(zip(slices, needed, strict=True)):
        tables[index, :count] = order[taken : taken + count].int()
        taken += count
        keys.append(normal(context, kv_heads, head_dim))
        values.append(normal(context, kv_heads, head_dim))
        position = torch.arange(context)
        block, offset = tables[index][position // block_size].long(), position % block_size
        before = position < context - queries
        cache[block[before], 0, offset[before]] = keys[-1][before]
        cache[block[before], 1, offset[before]] = values[-1][before]
        slots.append((block * block_size + offset)[~before])
    return PagedStep(
        slices=slices,
        query=normal(sum(q for q, _ in slices), heads, head_dim),
        keys=keys,
        values=values,
        cache=cache,
        block_tables=tables,
        slot_mapping=torch.cat(slots),
    )


def rounded_to_8_bits(step: PagedStep, *, key_scale: float, value_scale: float) -> PagedStep:
    """The step with a cache of float8; its keys and values are what that cache can hold.

    What this step stores is left as it is, but for `keys` and `values`.
    """

    def to_8(x: Tensor, scale: float) -> Tensor:
        return (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)

    scales = torch.tensor([key_scale, value_scale]).view(1, 2, 1, 1, 1)
    return replace(
        step,
        cache=(step.cache.float() / scales).clamp(-448, 448).to(torch.float8_e4m3fn),
        keys=[to_8(x, key_scale).double() * key_scale for x in step.keys],
        values=[to_8(x, value_scale).double() * value_scale for x in step.values],
    )
