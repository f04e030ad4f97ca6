"""Mistral 7B and its successors (Jiang et al. 2023): a Llama whose every layer has a window."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import ModelConfig
from .llama import Llama


class Mistral(Llama):
    """`sliding_window` holds for all layers, null for none; left out, it is 4096."""

    @classmethod
    def config_from(cls, config: ModelConfig) -> ModelConfig:
        window = config.sliding_window if "sliding_window" in config.raw else 4096
        return replace(
            config,
            windows=(window,) * config.layers,
            qkv_bias=False,
            output_bias=False,
            mlp_bias=False,
        )
