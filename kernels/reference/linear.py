"""Multiplication with a weight matrix as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

# Fewer rows go another way through torch's product of float32 matrices, and round differently.
_FEWEST_ROWS = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `ops.Linear`."""
    missing = _FEWEST_ROWS - len(x)
    if missing <= 0:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 0, 0, missing)), weight, bias)[: len(x)]


def pack_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """See `ops.PackLinear`."""
    return partial(linear, weight=weight, bias=bias)
