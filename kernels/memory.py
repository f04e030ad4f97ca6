"""Memory for what is read from end to end in every step: weights and the KV cache."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

_LARGE_PAGE = 2 << 20


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """A tensor of zeros that the system fills when they are first touched: `torch.zeros` writes
    them all, which takes seconds for a large cache.

    On a CPU in large pages, where the system has them: one core reads weights a tenth to a quarter
    faster through them. Small tensors have no use for one.
    """
    size = math.prod(shape) * dtype.itemsize
    if (device is not None and device.type != "cpu") or size < _LARGE_PAGE // 4:
        return torch.zeros(shape, dtype=dtype, device=device)
    # Mappings of one kind lie next to each other, and what crosses from one to the next may be one
    # page. A mapping is given back with the last tensor that views it.
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
