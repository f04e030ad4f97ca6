"""Ops whose sums depend on nothing else in the step, where those of `cuda` do: `--deterministic`.

The others' already are of one row each, taken by one program. Weights of few bits are widened each
time they are multiplied with: that is slow, and what is wanted of them here is their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..reference.float8 import Float8Linear
from ..reference.float8 import round_rows as round_weight
from ..reference.quantized import Quantized
from .attention import plan_attention
from .float8 import round_rows
from .matmul import matmul_fixed, pack_linear


class FixedQuantized(Quantized):
    """See `ops.PackedLinear`."""

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return matmul_fixed(x, weight, bias, torch.float32)


class FixedFloat8(Float8Linear):
    """See `ops.PackedLinear`. bfloat16 holds every float of 8 bits."""

    def _multiply(self, x: Tensor, scales: Tensor) -> Tensor:
        narrow = x.bfloat16(), self._weight.bfloat16()
        return matmul_fixed(*narrow, None, torch.float32).mul_(scales).mul_(self._scales.T)


def pack_quantized(weight: Tensor, bias: Tensor | None, bits: int) -> FixedQuantized:
    """See `ops.PackQuantized`."""
    return FixedQuantized(weight, bias, bits)


def pack_float8(
    weight: Tensor, bias: Tensor | None, scales: Tensor | None, dtype: torch.dtype
) -> FixedFloat8:
    """See `ops.PackFloat8`; any GPU has this one."""
    if scales is None:
        weight, scales = round_weight(weight)
    return FixedFloat8(weight, scales, bias, dtype, round_rows)


OPS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "pack_linear": pack_linear,
        "pack_quantized": pack_quantized,
        "pack_float8": pack_float8,
        "plan_attention": partial(plan_attention, fixed=True),
    }
)
