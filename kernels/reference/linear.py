"""Multiplication with a weight matrix as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

# With fewer rows to a thread torch's product of float32 matrices goes another way, and rounds
# differently.
_FEWEST_ROWS = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `ops.Linear`."""
    missing = -len(x) % (_FEWEST_ROWS * torch.get_num_threads())
    if not missing or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    return F.linear(F.pad(x, (0, 0, 0, missing)), weight, bias)[: len(x)]


def pack_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """See `ops.PackLinear`."""
    return partial(linear, weight=weight, bias=bias)
