"""Multiplication with a weight matrix as it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import Activation, LinearInput

# With fewer rows to a thread torch's product of float32 matrices goes another way, and rounds
# differently.
_FEWEST_ROWS = 4


class AsItIs:
    """See `ops.PackedLinear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        missing = -len(x) % (_FEWEST_ROWS * torch.get_num_threads())
        if not missing or x.dtype != torch.float32:
            return F.linear(x, self._weight, self._bias)
        return F.linear(F.pad(x, (0, 0, 0, missing)), self._weight, self._bias)[: len(x)]

    def wide(self, x: Tensor) -> Tensor:
        return self(x).float()

    def addend(self, x: Tensor) -> Tensor:
        return self(x)

    def gated(self, x: Tensor, silu_mul: Activation) -> LinearInput:
        return silu_mul(self(x))

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._weight)


def pack_linear(weight: Tensor, bias: Tensor | None) -> AsItIs:
    """See `ops.PackLinear`."""
    return AsItIs(weight, bias)
