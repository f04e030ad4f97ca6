"""`KVCache`: keys and values of every layer in blocks, and the host's pool for swapped-out ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.memory import zeros
from octavo.kernels.ops import Ops

from .checkpoint import ModelConfig
from .device import marker_of, side_stream_of
from .step import Moves
from .swap import Pairs, SwapSpace
from .transfer import transfer_to


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
            zeros((num_blocks, *shape), dtype, device) for _ in range(config.layers)
        ]
        self._copy_blocks = ops.copy_blocks
        self._transfer = transfer_to(device)
        self.host_layers: list[Tensor]
        stream, make_marker = side_stream_of(device), marker_of(device)
        self._swap: SwapSpace | None = None
        if stream is None or make_marker is None:
            self.host_layers = [
                zeros((num_host_blocks, *shape), dtype, device) for _ in range(config.layers)
            ]
        else:
            self._swap = SwapSpace(
                self.layers, num_host_blocks, stream, make_marker, self._transfer
            )
            self.host_layers = list(self._swap.blocks.unbind(1))

    def apply(self, moves: Moves) -> None:
        """Carry the moves of one step out: swaps out, swaps in, copies, in this order."""
        if moves.swap_out:
            if self._swap is None:
                self._copy(moves.swap_out, self.layers, self.host_layers)
            else:
                self._swap.take_out(moves.swap_out)
        if moves.swap_in:
            if self._swap is None:
                self._copy(moves.swap_in, self.host_layers, self.layers)
            else:
                self._swap.bring_in(moves.swap_in)
        if moves.copies:
            self._copy(moves.copies, self.layers, self.layers)

    def synchronize(self) -> None:
        """Wait until the blocks of all moves are where they belong."""
        if self._swap is not None:
            self._swap.synchronize()

    def _copy(self, pairs: Pairs, source: list[Tensor], target: list[Tensor]) -> None:
        (indexes,) = self._transfer.send(np.array(pairs, dtype=np.int64))
        for here, there in zip(source, target, strict=True):
            self._copy_blocks(here, there, indexes)
