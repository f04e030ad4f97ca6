"""Rotary positions: the frequencies of each kind of scaling, and a step's cosines and sines.

Everything is float32, as the checkpoints were trained. The kinds and their numbers are those of
config.json, so that each file means here what it means to its author.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import ModelConfig, Rope
from ..errors import BrokenCheckpoint
from .blueprint import Blueprint

_POSITIONS = 4096  # whose cosines and sines are computed at a time


class RotaryEmbedding:
    """Cosines and sines of positions, for `ops.Rotate`: a table, a row for each position."""

    def __init__(self, blueprint: Blueprint) -> None:
        frequencies, factor = rope_frequencies(blueprint.config)
        frequencies = frequencies.to(blueprint.device)  # [rotary_dim / 2]
        half = len(frequencies)
        self._take_rows = blueprint.ops.take_rows
        self._cosine = blueprint.empty(blueprint.positions, 2 * half)
        self._sine = blueprint.empty(blueprint.positions, 2 * half)
        for begin in range(0, blueprint.positions, _POSITIONS):
            rows = slice(begin, min(begin + _POSITIONS, blueprint.positions))
            positions = torch.arange(rows.start, rows.stop, device=blueprint.device)
            angles = positions[:, None] * frequencies
            cosine, sine = angles.cos(), angles.sin()
            if factor != 1.0:
                cosine, sine = cosine * factor, sine * factor
            for place, values in ((self._cosine, (cosine, cosine)), (self._sine, (-sine, sine))):
                place[rows, :half], place[rows, half:] = values

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions int64 [tokens] -> cosine and sine [tokens, 1, rotary_dim].

        The first half of the sine is negated; see `ops.Rotate`.
        """
        cosine = self._take_rows(self._cosine, positions)
        sine = self._take_rows(self._sine, positions)
        return cosine[:, None], sine[:, None]


def rope_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Radians per position of each rotated pair, float32 [rotary_dim / 2], and a factor on both
    cosine and sine.

    Raises:
        BrokenCheckpoint: config.json names an unknown kind, or lacks one of its numbers.
    """
    rope = config.rope
    scale = _KINDS.get(rope.kind)
    if scale is None:
        raise BrokenCheckpoint(
            f"config.json has the rope type {rope.kind!r}; known are {', '.join(_KINDS)}."
        )
    rotary_dim = int(config.head_dim * rope.numbers.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    try:
        return scale(rope.theta**exponents, rope, config)
    except KeyError as missing:
        raise BrokenCheckpoint(
            f"config.json has the rope type {rope.kind!r} without its number {missing}."
        ) from None


def _default(wavelengths: Tensor, rope: Rope, config: ModelConfig) -> tuple[Tensor, float]:
    """`wavelengths`: positions per radian of each pair, theta ** (2i / rotary_dim).

    Dynamic scaling comes here too: it changes nothing up to max_position_embeddings, and beyond
    it the keys already in the cache would have to change with the length of the sequence.
    """
    return 1.0 / wavelengths, 1.0


def _linear(wavelengths: Tensor, rope: Rope, config: ModelConfig) -> tuple[Tensor, float]:
    """Position interpolation (Chen et al. 2023)."""
    return 1.0 / wavelengths / rope.numbers["factor"], 1.0


def _llama3(wavelengths: Tensor, rope: Rope, config: ModelConfig) -> tuple[Tensor, float]:
    """Llama 3.1: slow pairs are interpolated, fast ones kept, with a ramp between."""
    numbers = rope.numbers
    frequencies = 1.0 / wavelengths
    turns = _original_length(rope, config) * frequencies / (2 * math.pi)
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / numbers["factor"]), 1.0


def _yarn(wavelengths: Tensor, rope: Rope, config: ModelConfig) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023): a ramp over pairs by how often each turns in the original context,
    and a temperature on the scores, which is the factor."""
    numbers = rope.numbers
    original = _original_length(rope, config)
    factor = numbers.get("factor") or config.max_position_embeddings / original
    pairs = wavelengths.shape[0]

    def pair_that_turns(times: float) -> float:
        return pairs * math.log(original / (times * 2 * math.pi)) / math.log(rope.theta)

    low = pair_that_turns(numbers.get("beta_fast") or 32)
    high = pair_that_turns(numbers.get("beta_slow") or 1)
    if numbers.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    if low == high:
        high += 0.001
    interpolate = ((torch.arange(pairs, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    frequencies = 1.0 / wavelengths
    frequencies = frequencies / factor * interpolate + frequencies * (1 - interpolate)
    return frequencies, _yarn_factor(numbers, factor)


def _yarn_factor(numbers: Mapping[str, Any], factor: float) -> float:
    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if numbers.get("attention_factor") is not None:
        return float(numbers["attention_factor"])
    scale, scale_all = numbers.get("mscale"), numbers.get("mscale_all_dim")
    if scale and scale_all:
        return temperature(scale) / temperature(scale_all)
    return temperature(1.0)


def _longrope(wavelengths: Tensor, rope: Rope, config: ModelConfig) -> tuple[Tensor, float]:
    """LongRoPE (Ding et al. 2024): searched factors per pair.

    A checkpoint has two sets of them. Which one holds must not change while a sequence grows, as
    its keys are already stored: the long one, when the context is longer than the original one.
    """
    numbers = rope.numbers
    original = _original_length(rope, config)
    stretch = config.max_position_embeddings / original
    kind = "long_factor" if stretch > 1 else "short_factor"
    factors = torch.tensor(numbers[kind], dtype=torch.float32)
    attention_factor = numbers.get("attention_factor")
    if attention_factor is None:
        factor = numbers.get("factor") or stretch
        attention_factor = (
            1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        )
    return 1.0 / (factors * wavelengths), float(attention_factor)


def _original_length(rope: Rope, config: ModelConfig) -> int:
    """Positions of the context before it was stretched."""
    stated = rope.numbers.get("original_max_position_embeddings")
    return int(stated or config.max_position_embeddings)


_Scaling = Callable[[Tensor, Rope, ModelConfig], tuple[Tensor, float]]
_KINDS: Mapping[str, _Scaling] = MappingProxyType(
    {
        "default": _default,
        "linear": _linear,
        "dynamic": _default,
        "llama3": _llama3,
        "yarn": _yarn,
        "longrope": _longrope,
    }
)
