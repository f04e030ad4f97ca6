"""`KVCache`: keys and values of every layer in blocks, and the host's pool for swapped-out ones."""

from __future__ import annotations

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
            torch.zeros(num_blocks, *shape, dtype=dtype, device=device)
            for _ in range(config.layers)
        ]
        self.host_layers: list[Tensor] = [
            torch.zeros(num_host_blocks, *shape, dtype=dtype) for _ in range(config.layers)
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
