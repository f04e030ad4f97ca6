"""Packed token masks: what a grammar allows, one bit per token."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 8


def allow_only(logits: Tensor, bitmask: Tensor) -> None:
    """Set the logits of tokens whose bit is 0 to minus infinity, in place.

    Args:
        logits: float32 [rows, vocab].
        bitmask: int32 [rows, ceil(vocab / 32)], token t is bit t % 32 of word t // 32.
    """
    shifts = torch.arange(_BITS, dtype=torch.uint8, device=bitmask.device)
    octets = bitmask.view(torch.uint8)  # [rows, 4 * words], lowest first
    bits = (octets[:, :, None] >> shifts) & 1  # [rows, 4 * words, 8]
    logits.masked_fill_(bits.flatten(1)[:, : logits.shape[1]] == 0, float("-inf"))
