"""Multiplication with a weight matrix as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor


def pack_linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """See `ops.PackLinear`."""
    return partial(F.linear, weight=weight, bias=bias)
