"""Moving whole KV blocks."""

from __future__ import annotations

from torch import Tensor


def copy_blocks(source: Tensor, target: Tensor, pairs: Tensor) -> None:
    """See `ops.CopyBlocks`."""
    blocks = source.index_select(0, pairs[:, 0].to(source.device))
    target.index_copy_(0, pairs[:, 1].to(target.device), blocks.to(target.device))
