"""`Blueprint`: what a layer is built from; `Parameter`: where a checkpoint's tensor goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.memory import zeros
from octavo.kernels.ops import AttentionPlan, Ops

from ..attention.base import AttentionBackend
from ..checkpoint import ModelConfig
from ..quantization.base import QuantMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """Numbers, number format, device, and the makers of everything that may be chosen."""

    config: ModelConfig
    positions: int  # that a token may stand at
    dtype: torch.dtype
    device: torch.device
    ops: Ops
    attention: AttentionBackend
    quantization: QuantMethod
    float8_cache: bool = False  # keys and values are stored as floats of 8 bits

    def empty(self, *shape: int) -> Tensor:
        """A tensor of the model's dtype, on its device, to be filled."""
        return zeros(shape, self.dtype, self.device)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a checkpoint: its name there, and the memory it is copied to.

    The memory may be a part of a merged tensor. `optional`: where a checkpoint lacks it, what is in
    the memory is meant.
    """

    name: str
    tensor: Tensor
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStep:
    """What all layers share in one step."""

    plan: AttentionPlan
    cosine: Tensor  # [tokens, 1, rotary_dim]
    sine: Tensor  # [tokens, 1, rotary_dim], the first half negated
