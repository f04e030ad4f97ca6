"""Qwen 3 (Yang et al. 2025): a Llama with a norm on each head of query and key."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from ..checkpoint import ModelConfig
from .llama import Llama
from .qwen2 import late_windows


class Qwen3(Llama):
    """Windows as in Qwen 2; the MLP has no bias."""

    qk_norm: ClassVar[bool] = True

    @classmethod
    def config_from(cls, config: ModelConfig) -> ModelConfig:
        return replace(config, windows=late_windows(config), mlp_bias=False)
