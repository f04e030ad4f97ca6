"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """See `ops.Rotate`."""
    rotary = cosine.shape[-1]
    if rotary == x.shape[-1]:
        return (x * cosine).addcmul_(x.roll(rotary // 2, -1), sine)
    rotated = rotate(x[..., :rotary], cosine, sine)
    return torch.cat((rotated, x[..., rotary:]), dim=-1)
