"""`KVCache`: keys and values of every layer in blocks, and the host's pool for swapped-out ones."""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

from octavo.kernels.ops import Ops

from .checkpoint import ModelConfig
from .step import Moves


def block_bytes(config: ModelConfig, *, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block in all layers together."""
    cells = 2 * block_size * config.kv_heads * config.head_dim
    return config.layers * cells * dtype.itemsize


class KVCache:
    """One tensor per layer, [blocks, 2, block_size, kv_heads, head_dim]: keys, then values.

    A block of one layer is contiguous, so that moving it is one copy. Allocated as zeros: memory
    is taken by the operating system when a block is first written, and no cell is ever NaN.
    """

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        num_host_blocks: int = 0,
    ) -> None:
        shape = (2, block_size, config.kv_heads, config.head_dim)
        self.block_size = block_size
        self.layers: list[Tensor] = [
            _zeros((num_blocks, *shape), dtype, device) for _ in range(config.layers)
        ]
        self.host_layers: list[Tensor] = [
            _zeros((num_host_blocks, *shape), dtype, torch.device("cpu"))
            for _ in range(config.layers)
        ]
        self._copy_blocks = ops.copy_blocks

    def apply(self, moves: Moves) -> None:
        """Carry the moves of one step out: swaps out, swaps in, copies, in this order."""
        for pairs, source, target in (
            (moves.swap_out, self.layers, self.host_layers),
            (moves.swap_in, self.host_layers, self.layers),
            (moves.copies, self.layers, self.layers),
        ):
            if pairs:
                indexes = torch.tensor(pairs, dtype=torch.int64)
                for here, there in zip(source, target, strict=True):
                    self._copy_blocks(here, there, indexes)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On a CPU they are pages that the operating system fills when they are first touched:
    `torch.zeros` writes them all, which takes seconds for a large cache. Large pages, where it has
    them, were measured to make attention to a long context a tenth faster."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
