"""Attention from a layer's projections, by its definition in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.kernels.ops import AttendProjected, AttentionLayer, PlanAttention

from .paging import PagedStep, paged_step

_HEADS, _KV_HEADS, _SLICES = 6, 2, ((1, 40), (21, 21), (3, 17))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedCase:
    """A step, what its layer gives attention, and what must come of it."""

    step: PagedStep
    projected: Tensor
    cosine: Tensor
    sine: Tensor
    layer: AttentionLayer
    key: Tensor  # float64, normed and rotated
    value: Tensor  # float64
    expected: Tensor  # float64 [tokens, heads * head_dim]

    def to(self, device: torch.device) -> ProjectedCase:
        """The same with the kernel's tensors on a device."""

        def moved(owner: object, *names: str) -> dict[str, Tensor]:
            held = {name: getattr(owner, name) for name in names}
            return {name: x.to(device) for name, x in held.items() if x is not None}

        return replace(
            self,
            step=replace(self.step, **moved(self.step, "cache", "block_tables", "slot_mapping")),
            layer=replace(self.layer, **moved(self.layer, "query_norm", "key_norm")),
            **moved(self, "projected", "cosine", "sine"),
        )

    def check(self, plan_attention: PlanAttention, attend_projected: AttendProjected) -> None:
        step, dtype = self.step.filled_by(plan_attention), self.step.cache.dtype
        plan = step.plan(plan_attention)
        wanted = step.cache.clone()
        key, value = (x.to(step.cache) for x in (self.key, self.value))
        plan.store(wanted, key, value, self.layer)
        got = attend_projected(
            plan,
            step.cache,
            self.projected,
            self.cosine,
            self.sine,
            self.layer,
        )
        assert got.dtype == dtype and got.shape == self.expected.shape
        single = dtype == torch.float32
        tolerance = {"atol": 4e-6, "rtol": 2e-5} if single else {"atol": 4e-2, "rtol": 4e-2}
        torch.testing.assert_close(got.double().cpu(), self.expected, **tolerance)
        torch.testing.assert_close(step.cache.double(), wanted.double(), **tolerance)
        if self.projected.dtype != dtype:  # but for what lies halfway, rounded like the exact keys
            assert (step.cache == wanted).double().mean() > 0.998


def projected_case(
    *,
    head_dim: int,
    rotary: int,
    normed: bool,
    dtype: torch.dtype,
    projected_dtype: torch.dtype | None = None,
    block_size: int = 16,
) -> ProjectedCase:
    """Random projections of a decode, a whole prompt and a verified draft, with a window.

    `projected_dtype`: where it is not `dtype`.
    """
    step = paged_step(
        _SLICES,
        heads=_HEADS,
        kv_heads=_KV_HEADS,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
    )
    tokens = len(step.query)
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    size = (_HEADS + 2 * _KV_HEADS) * head_dim
    projected = torch.randn(tokens, size, generator=generator).to(projected_dtype or dtype)
    angles = torch.rand(tokens, 1, rotary // 2, generator=generator) * 6
    cosine = torch.cat((angles.cos(), angles.cos()), -1).to(dtype)
    sine = torch.cat((-angles.sin(), angles.sin()), -1).to(dtype)
    layer = AttentionLayer(
        scale=head_dim**-0.5,
        window=12,
        query_norm=normal(head_dim) if normed else None,
        key_norm=normal(head_dim) if normed else None,
        epsilon=1e-5,
    )
    heads = projected.double().view(tokens, -1, head_dim)
    query, key, value = heads.split([_HEADS, _KV_HEADS, _KV_HEADS], dim=1)
    query, key = (
        _rotated(_normed(x, weight), cosine.double(), sine.double())
        for x, weight in ((query, layer.query_norm), (key, layer.key_norm))
    )
    expected = _with_new_cells(step, query, key, value).attended(
        scale=layer.scale, window=12, softcap=None
    )
    return ProjectedCase(
        step=step,
        projected=projected,
        cosine=cosine,
        sine=sine,
        layer=layer,
        key=key,
        value=value,
        expected=expected.flatten(1),
    )


def _normed(x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return x
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    rotary = cosine.shape[-1]
    turned = x[..., :rotary] * cosine + x[..., :rotary].roll(rotary // 2, -1) * sine
    return torch.cat((turned, x[..., rotary:]), dim=-1)


def _with_new_cells(step: PagedStep, query: Tensor, key: Tensor, value: Tensor) -> PagedStep:
    """The step, but for what its own tokens bring."""
    keys, values, first = [], [], 0
    for (queries, context), old_key, old_value in zip(
        step.slices, step.keys, step.values, strict=True
    ):
        new = slice(first, first + queries)
        keys.append(torch.cat((old_key[: context - queries].double(), key[new])))
        values.append(torch.cat((old_value[: context - queries].double(), value[new])))
        first += queries
    return replace(step, query=query, keys=keys, values=values)
