"""Qwen 3 (Yang et al. 2025): a Llama with a norm on each head of query and key."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from ..checkpoint import ModelConfig
from .llama import Llama
from .qwen2 import late_windows


class Qwen3(Llama):
    """Heads of 128 unless stated, whatever the hidden size; windows as in Qwen 2; no MLP bias."""

    qk_norm: ClassVar[bool] = True

    @classmethod
    def config_from(cls, config: ModelConfig) -> ModelConfig:
        return replace(
            config,
            head_dim=config.raw.get("head_dim") or 128,
            windows=late_windows(config),
            mlp_bias=False,
        )
