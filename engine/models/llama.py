"""Llama 1 to 3 (Touvron et al. 2023, Dubey et al. 2024) and everything of its shape."""

from __future__ import annotations

from typing import ClassVar

from ..layers.attention import Attention
from ..layers.blueprint import Blueprint
from ..layers.mlp import GatedMlp
from ..layers.norm import RmsNorm
from .base import Block, Model


class Llama(Model):
    """Pre-norm blocks, grouped queries, rotary positions, a gated MLP."""

    qk_norm: ClassVar[bool] = False  # a norm on each head of query and key

    @classmethod
    def block(cls, blueprint: Blueprint, index: int) -> Block:
        prefix = f"model.layers.{index}"
        config = blueprint.config
        size, into_linear = config.hidden_size, blueprint.quantization.inputs.add_rms_norm
        return Block(
            attention_norm=RmsNorm(blueprint, f"{prefix}.input_layernorm", size, into_linear),
            attention=Attention(
                blueprint,
                f"{prefix}.self_attn",
                window=config.windows[index],
                qk_norm=cls.qk_norm,
            ),
            mlp_norm=RmsNorm(blueprint, f"{prefix}.post_attention_layernorm", size, into_linear),
            mlp=GatedMlp(blueprint, f"{prefix}.mlp"),
        )
