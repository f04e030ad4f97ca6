"""Qwen 2 and 2.5 (Yang et al. 2024): a Llama with a bias on query, key and value."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import ModelConfig
from .llama import Llama


class Qwen2(Llama):
    """The layers from `max_window_layers` on have a window, where `use_sliding_window` says so."""

    @classmethod
    def config_from(cls, config: ModelConfig) -> ModelConfig:
        return replace(
            config,
            windows=late_windows(config),
            qkv_bias=True,
            output_bias=False,
            mlp_bias=False,
        )


def late_windows(config: ModelConfig) -> tuple[int | None, ...]:
    """Qwen's windows: `layer_types` where it is stated, else by the layer's number."""
    if not config.raw.get("use_sliding_window"):
        return (None,) * config.layers
    first = config.raw.get("max_window_layers", 28)
    types = config.layer_types or tuple(
        "sliding_attention" if index >= first else "full_attention"
        for index in range(config.layers)
    )
    window = config.sliding_window if "sliding_window" in config.raw else 4096
    return tuple(window if kind == "sliding_attention" else None for kind in types)
