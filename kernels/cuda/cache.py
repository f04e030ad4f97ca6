"""Moving whole KV blocks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # bytes of a program


@triton.jit
def move_blocks_kernel(
    source, target, from_index, to_index, size,
    GATHER: tl.constexpr, SCATTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """target[to_index[i]] = source[from_index[i]], bytes; without an index, of block i itself."""
    pair = tl.program_id(0)
    here = tl.load(from_index + pair) if GATHER else pair.to(tl.int64)
    there = tl.load(to_index + pair) if SCATTER else pair.to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    tl.store(target + there * size + at, tl.load(source + here * size + at, mask=inside), inside)


def gather_blocks(cache: Tensor, blocks: Tensor) -> Tensor:
    """Copies of `blocks` (int64 [count]) of a cache [blocks, ...], one after the other."""
    staging = torch.empty((len(blocks), *cache.shape[1:]), dtype=cache.dtype, device=cache.device)
    _move(cache, staging, blocks, None)
    return staging


def scatter_blocks(staging: Tensor, cache: Tensor, blocks: Tensor) -> None:
    """cache[blocks[i]] = staging[i]."""
    _move(staging, cache, None, blocks)


def copy_blocks(source: Tensor, target: Tensor, pairs: Tensor) -> None:
    """See `ops.CopyBlocks`. A side in host memory is read and written by torch."""
    if source.dtype.itemsize == 1:  # torch copies by index no floats of 8 bits
        source, target = source.view(torch.uint8), target.view(torch.uint8)
    here, there = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
    on_device = source if source.device.type != "cpu" else target
    if source.device == on_device.device:
        staging = gather_blocks(source, here.to(source.device))
    else:
        staging = source.index_select(0, here)
    if target.device == on_device.device:
        scatter_blocks(staging.to(target.device), target, there.to(target.device))
    else:
        target.index_copy_(0, there, staging.to(target.device))


def _move(
    source: Tensor, target: Tensor, from_index: Tensor | None, to_index: Tensor | None
) -> None:
    pairs = len(source) if from_index is None else len(from_index)
    size = source[0].numel() * source.element_size()
    if pairs:
        move_blocks_kernel[(pairs, triton.cdiv(size, _BLOCK))](
            source.view(torch.uint8), target.view(torch.uint8), from_index, to_index, size,
            GATHER=from_index is not None, SCATTER=to_index is not None, BLOCK=_BLOCK,
            num_warps=4,
        )  # fmt: skip
