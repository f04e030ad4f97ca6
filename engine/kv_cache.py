"""`KVCache`: keys and values of every layer in blocks, and the host's pool for swapped-out ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.memory import populate, zeros
from octavo.kernels.ops import Ops

from .checkpoint import ModelConfig
from .device import available_memory, marker_of, side_stream_of
from .step import Moves
from .swap import Pairs, SwapSpace
from .transfer import transfer_to

_AHEAD_BYTES = 1 << 30  # of blocks that have never been used, whose memory is there already
_SPARED = 4  # that many times as much must be free: others may need memory more than we soon will
_AT_ONCE = 2 << 20  # bytes: a large page, which takes a virtual machine up to 5 ms


def block_bytes(config: ModelConfig, *, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block in all layers together."""
    cells = 2 * block_size * config.kv_heads * config.head_dim
    return config.layers * cells * dtype.itemsize


class KVCache:
    """One tensor per layer, [blocks, 2, block_size, kv_heads, head_dim]: keys and values, which
    stand in a block as the kernels want them.

    A block of one layer is contiguous, so that moving it is one copy. Allocated as zeros: no cell
    is ever NaN, and the operating system gives the memory when a block is first written. On a CPU
    a step that comes to new blocks waits for that, so that idle moments are used to be ahead of it.
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
        ahead: int = _AHEAD_BYTES,
    ) -> None:
        """`ahead`: bytes of blocks not used yet that `populate` takes the memory for."""
        shape = (2, block_size, config.kv_heads, config.head_dim)
        self.block_size = block_size
        self.layers: list[Tensor] = [
            zeros((num_blocks, *shape), dtype, device) for _ in range(config.layers)
        ]
        one = block_bytes(config, block_size=block_size, dtype=dtype)
        self._ahead = ahead if device.type == "cpu" else 0
        self._ahead_blocks = self._ahead // one
        self._blocks_at_once = max(1, _AT_ONCE * config.layers // one)
        self._used = 0  # blocks before this one have been used, as planning begins with the first
        self._populated = 0  # blocks before this one have memory
        self._populated_layers = 0  # that have some for the next `_blocks_at_once`, too
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

    def use(self, blocks: Iterable[int]) -> None:
        """These are about to be written."""
        self._used = max(self._used, max(blocks) + 1)

    def populate(self) -> bool:
        """Nothing is being computed: take the memory of some of the blocks that will be used next,
        a few milliseconds' worth. Returns whether more is to be done."""
        if self._populated < self._used:  # they were written before we came to it
            self._populated, self._populated_layers = self._used, 0
        end = min(len(self.layers[0]), self._used + self._ahead_blocks)
        if self._populated >= end or available_memory() < _SPARED * self._ahead:
            return False
        layer = self.layers[self._populated_layers]
        if not populate(layer[self._populated : min(end, self._populated + self._blocks_at_once)]):
            self._ahead_blocks = 0
            return False
        self._populated_layers += 1
        if self._populated_layers == len(self.layers):
            self._populated, self._populated_layers = self._populated + self._blocks_at_once, 0
        return self._populated < end

    def synchronize(self) -> None:
        """Wait until the blocks of all moves are where they belong."""
        if self._swap is not None:
            self._swap.synchronize()

    def _copy(self, pairs: Pairs, source: list[Tensor], target: list[Tensor]) -> None:
        (indexes,) = self._transfer.send(np.array(pairs, dtype=np.int64))
        for here, there in zip(source, target, strict=True):
            self._copy_blocks(here, there, indexes)
