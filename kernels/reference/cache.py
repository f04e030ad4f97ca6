"""Moving whole KV blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def copy_blocks(source: Tensor, target: Tensor, pairs: Tensor) -> None:
    """See `ops.CopyBlocks`."""
    if source.dtype.itemsize == 1:  # torch copies by index no floats of 8 bits
        source, target = source.view(torch.uint8), target.view(torch.uint8)
    blocks = source.index_select(0, pairs[:, 0].to(source.device))
    target.index_copy_(0, pairs[:, 1].to(target.device), blocks.to(target.device))
