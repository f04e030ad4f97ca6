"""The attention half of a block: project, rotate, store and attend, project back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .blueprint import Blueprint, LayerStep, Parameter
from .linear import Linear
from .norm import RmsNorm


class Attention:
    """Causal attention with grouped queries, rotary positions and the paged cache.

    `window`: how many tokens back it sees, None for all. `qk_norm`: norm each head of query and
    key before the rotation (Henry et al. 2020).
    """

    def __init__(
        self,
        blueprint: Blueprint,
        prefix: str,
        *,
        window: int | None,
        qk_norm: bool = False,
    ) -> None:
        config = blueprint.config
        self._heads, self._kv_heads = config.heads, config.kv_heads
        self._head_dim = config.head_dim
        self._scale = config.head_dim**-0.5
        self._window = window
        self._rotate = blueprint.ops.rotate
        self._backend = blueprint.attention
        query_size, kv_size = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self._qkv = Linear(
            blueprint,
            (f"{prefix}.q_proj", f"{prefix}.k_proj", f"{prefix}.v_proj"),
            inputs=config.hidden_size,
            outputs=(query_size, kv_size, kv_size),
            bias=config.qkv_bias,
        )
        self._output = Linear(
            blueprint,
            (f"{prefix}.o_proj",),
            inputs=query_size,
            outputs=(config.hidden_size,),
            bias=config.output_bias,
        )
        self._qk_norms = (
            tuple(
                RmsNorm(blueprint, f"{prefix}.{name}", config.head_dim)
                for name in ("q_norm", "k_norm")
            )
            if qk_norm
            else ()
        )

    def __call__(self, x: Tensor, step: LayerStep, cache: Tensor) -> Tensor:
        """x [tokens, hidden] -> [tokens, hidden]; `cache` is this layer's."""
        heads = self._qkv(x).view(x.shape[0], -1, self._head_dim)  # [tokens, q, k, v heads, dim]
        query_key, value = heads[:, : -self._kv_heads], heads[:, -self._kv_heads :]
        if self._qk_norms:
            query_norm, key_norm = self._qk_norms
            query, key = query_key[:, : self._heads], query_key[:, self._heads :]
            query_key = torch.cat((query_norm(query), key_norm(key)), dim=1)
        query_key = self._rotate(query_key, step.cosine, step.sine)
        query, key = query_key[:, : self._heads], query_key[:, self._heads :]
        mixed = self._backend.attend(
            query,
            key,
            value,
            cache,
            step.plan,
            scale=self._scale,
            window=self._window,
            softcap=None,
        )
        return self._output(mixed.flatten(1))

    def parameters(self) -> Iterator[Parameter]:
        yield from self._qkv.parameters()
        yield from self._output.parameters()
        for norm in self._qk_norms:
            yield from norm.parameters()

    def finish(self) -> None:
        self._qkv.finish()
        self._output.finish()
