"""Swapped-out KV blocks in page-locked host memory, copied beside the main stream.

A swapped block is one piece of host memory with all its layers, so that it crosses the bus as one
copy. On the device blocks pass through a staging area: those that leave are gathered there by the
main stream, which may overwrite them at once; those that come are scattered from there when they
have arrived, and cross the bus while the main stream is still busy with what it was given before.
Each area is waited for by itself. Copies over the bus keep their order: a block of the host may be
given away as soon as it has been read. The host waits for nothing, and no call allocates anything
that grows with the number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, groupby

import numpy as np
import torch
from torch import Tensor

from .device import Marker, SideStream
from .transfer import Transfer

_STAGING_BYTES = 64 << 20

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Staging:
    """Room for some blocks on the device, with all their layers."""

    blocks: Tensor  # uint8 [blocks, layers, ...]
    filled: Marker  # everything is there
    emptied: Marker  # nothing of it is needed any more


class SwapSpace:
    """Host blocks of one cache. Tested with streams that are noted down; not run on a GPU yet."""

    def __init__(
        self,
        layers: Sequence[Tensor],
        num_host_blocks: int,
        stream: SideStream,
        make_marker: Callable[[], Marker],
        transfer: Transfer,
    ) -> None:
        """`layers`: the cache's, each [blocks, 2, block_size, kv_heads, head_dim]."""
        # As bytes: torch indexes floats of 8 bits on some devices only.
        self._layers = [layer.view(torch.uint8) for layer in layers]
        self._stream = stream
        self._transfer = transfer
        like = self._layers[0]
        block = (len(layers), *like.shape[1:])
        block_bytes = len(layers) * like[0].nbytes
        staged = max(1, min(num_host_blocks, _STAGING_BYTES // block_bytes))
        self._blocks = torch.empty(
            (num_host_blocks, *block), dtype=torch.uint8, pin_memory=like.device.type != "cpu"
        )
        self.blocks = self._blocks.view(layers[0].dtype)  # [blocks, layers, ...]
        self._most = staged
        areas = [
            _Staging(like.new_empty((staged, *block)), make_marker(), make_marker())
            for _ in range(2)
        ]
        self._areas = cycle(areas)

    def take_out(self, pairs: Pairs) -> None:
        """Device block -> host block."""
        for some in self._portions(pairs):
            area, index = next(self._areas), self._index([device for device, _ in some])
            area.emptied.wait()
            for number, layer in enumerate(self._layers):
                area.blocks[: len(some), number] = layer[index]
            area.filled.record()
            with self._stream:
                area.filled.wait()
                for begin, host, count in _runs([host for _, host in some]):
                    part = area.blocks[begin : begin + count]
                    self._blocks[host : host + count].copy_(part, non_blocking=True)
                area.emptied.record()

    def bring_in(self, pairs: Pairs) -> None:
        """Host block -> device block."""
        for some in self._portions(pairs):
            area, index = next(self._areas), self._index([device for _, device in some])
            with self._stream:
                area.emptied.wait()
                for begin, host, count in _runs([host for host, _ in some]):
                    part = self._blocks[host : host + count]
                    area.blocks[begin : begin + count].copy_(part, non_blocking=True)
                area.filled.record()
            area.filled.wait()
            for number, layer in enumerate(self._layers):
                layer[index] = area.blocks[: len(some), number]
            area.emptied.record()

    def synchronize(self) -> None:
        """Wait until all blocks are where they belong."""
        self._stream.synchronize()

    def _portions(self, pairs: Pairs) -> list[Pairs]:
        """As many at a time as a staging area holds."""
        return [pairs[at : at + self._most] for at in range(0, len(pairs), self._most)]

    def _index(self, blocks: list[int]) -> Tensor:
        (index,) = self._transfer.send(np.array(blocks, dtype=np.int64))
        return index


def _runs(blocks: list[int]) -> list[tuple[int, int, int]]:
    """Where numbers follow one another: first index, first number, how many."""
    found = []
    for _, members in groupby(enumerate(blocks), lambda pair: pair[1] - pair[0]):
        run = list(members)
        found.append((run[0][0], run[0][1], len(run)))
    return found
