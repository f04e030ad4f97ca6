"""Root-mean-square norms."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """See `ops.RmsNorm`."""
    return F.rms_norm(x, weight.shape, weight, epsilon)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """See `ops.AddRmsNorm`."""
    out = F.rms_norm(residual.add_(x), weight.shape, weight.float(), epsilon)
    return out.to(weight.dtype)
