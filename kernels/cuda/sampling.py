"""Drawing tokens without sorting and without a tensor of noise.

The noise is that of `reference/sampling.py`, bit by bit up to the rounding of two logarithms: it is
made inside the one pass over the logits (cf. the block-local Gumbel-max of vLLM's runner, 2026).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def _finalise64(x):
    """SplitMix64's finaliser, Stafford's variant 13."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def gumbel_noise(seed, position, token):
    """Noise of int64 `seed` and `position`, scalars, for int32 tokens; float32 like `token`."""
    key = seed.to(tl.uint64, bitcast=True)
    step = position.to(tl.uint64, bitcast=True)
    key = _finalise64(_finalise64(key) + step * 0x9E3779B97F4A7C15)
    low = (key & 0xFFFFFFFF).to(tl.uint32)
    high = (key >> 32).to(tl.uint32)
    x = token.to(tl.uint32, bitcast=True) ^ low
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) ^ high
    x = (x ^ (x >> 15)) * 0xD35A2D97
    x = x ^ (x >> 15)
    w = ((x >> 1).to(tl.float32) + 0.5) * (1.0 / 2147483648.0)
    w = tl.minimum(w, 1.0 - 1.0 / 16777216.0)
    # log1p(-w) by the correction of Kahan: exact where 1 - w rounds.
    rest = 1.0 - w
    log1p = tl.where(rest == 1.0, -w, tl.log(rest) * (w / (1.0 - rest)))
    return -tl.log(-log1p)


@triton.jit
def gumbel_argmax_kernel(
    logits, temperature, seeds, positions, token_ids, best, place, row_stride, columns,
    NAMED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest logit + temperature * noise of one block of one row, and its column."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    column = part * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(logits + row * row_stride + column, mask=inside, other=float("-inf"))
    value = value.to(tl.float32)
    heat = tl.load(temperature + row)
    if heat > 0:
        token = column
        if NAMED:
            named = token_ids + row * columns + column
            token = tl.load(named, mask=inside, other=0).to(tl.int32)
        seed, position = tl.load(seeds + row), tl.load(positions + row)
        value = value + heat * gumbel_noise(seed, position, token)
    at = tl.argmax(value, axis=0, tie_break_left=True)
    to = row * tl.num_programs(1) + part
    tl.store(best + to, tl.max(value, axis=0))
    tl.store(place + to, part.to(tl.int64) * BLOCK + at)


def gumbel_argmax(
    logits: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    positions: Tensor,
    token_ids: Tensor | None = None,
) -> Tensor:
    """See `ops.GumbelArgmax`."""
    rows, columns = logits.shape
    parts = triton.cdiv(columns, _BLOCK)
    best = torch.empty((rows, parts), dtype=torch.float32, device=logits.device)
    place = torch.empty((rows, parts), dtype=torch.int64, device=logits.device)
    if rows:
        gumbel_argmax_kernel[(rows, parts)](
            logits, temperature, seeds, positions, token_ids, best, place,
            logits.stride(0), columns, NAMED=token_ids is not None, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    if parts == 1:
        return place[:, 0]
    return place.gather(1, best.argmax(1, keepdim=True))[:, 0]
