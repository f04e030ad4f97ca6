"""The attention half of a block: project, rotate, store and attend, project back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from octavo.kernels.ops import AttentionLayer, LinearInput

from .blueprint import Blueprint, LayerStep, Parameter
from .linear import Linear


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
        self._attend = blueprint.attention.attend
        self._wide = blueprint.attention.wide
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
        self._norms = (
            tuple(
                Parameter(f"{prefix}.{name}.weight", blueprint.empty(config.head_dim))
                for name in ("q_norm", "k_norm")
            )
            if qk_norm
            else ()
        )
        # One for all keys of the layer, and one for its values: 1 is right for most models.
        self._scales = (
            tuple(
                Parameter(f"{prefix}.{name}", torch.ones((), device="cpu"), optional=True)
                for name in ("k_scale", "v_scale")
            )
            if blueprint.float8_cache
            else ()
        )
        query_norm, key_norm = (norm.tensor for norm in self._norms) if qk_norm else (None, None)
        self._layer = AttentionLayer(
            scale=config.head_dim**-0.5,
            window=window,
            query_norm=query_norm,
            key_norm=key_norm,
            epsilon=config.norm_epsilon,
        )

    def __call__(self, x: LinearInput, step: LayerStep, cache: Tensor) -> Tensor:
        """x [tokens, hidden] -> [tokens, hidden], for the residual stream; `cache` is this
        layer's."""
        projected = self._qkv.wide(x) if self._wide else self._qkv(x)
        mixed = self._attend(projected, cache, step.plan, step.cosine, step.sine, self._layer)
        return self._output.addend(mixed)

    def parameters(self) -> Iterator[Parameter]:
        yield from self._qkv.parameters()
        yield from self._output.parameters()
        yield from self._norms
        yield from self._scales

    def finish(self) -> None:
        if self._scales:
            key_scale, value_scale = (float(scale.tensor) for scale in self._scales)
            self._layer = replace(self._layer, key_scale=key_scale, value_scale=value_scale)
        self._qkv.finish()
        self._output.finish()
