"""oneDNN's own weight layout, for CPUs: what torch's compiler uses when it freezes a model.

Measured against F.linear on a Zen 5 core, one thread, matrices of 384 x 640 to 2048: bfloat16 1.7
times as fast for one token and 1.2 times for 32; float32 2.2 times for 32 and more tokens, where
F.linear leaves half of an AMD core's width idle, and 0.6 to 0.95 times for one token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

_TOKENS = 32  # a step's size to lay the matrix out for; measured to be as good for 1 and for 512


def pack_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """See `ops.PackLinear`."""
    multiply = torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _TOKENS)

    def apply(x: Tensor) -> Tensor:
        product: Tensor = multiply(x, packed, bias, "none", [], "")
        return product

    return apply


def _available() -> bool:
    """Whether this build of torch has it, and this CPU the instructions for bfloat16."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


OPS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"pack_linear": pack_linear} if _available() else {}
)
