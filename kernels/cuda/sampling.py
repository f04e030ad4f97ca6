"""Drawing tokens without sorting and without a tensor of noise.

The noise is that of `reference/sampling.py`, bit by bit up to the rounding of two logarithms: it is
made inside the one pass over the logits (cf. the block-local Gumbel-max of vLLM's runner, 2026).
That pass leaves out what top-k, top-p and min-p leave out, and finds the largest logit, too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import Narrowing
from .selection import Ends, narrowed

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
def draw_kernel(
    logits, temperature, seeds, positions, token_ids, limits, last_places, best, place, largest,
    row_stride, columns,
    NAMED: tl.constexpr, NARROWED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one block of one row: the largest logit + temperature * noise of what is left, its column,
    and the largest logit of all, NaN where there is one."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    column = part * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(logits + row * row_stride + column, mask=inside, other=float("-inf"))
    to = row * tl.num_programs(1) + part
    unsound = tl.max((value != value).to(tl.int32), axis=0) > 0
    value = tl.where(value == value, value, float("-inf"))
    tl.store(largest + to, tl.where(unsound, float("nan"), tl.max(value, axis=0)))
    if NARROWED:
        limit, last = tl.load(limits + row), tl.load(last_places + row)
        left = (value > limit) | ((value == limit) & (column <= last))
        value = tl.where(left, value, float("-inf"))
    heat = tl.load(temperature + row)
    if heat > 0:
        token = column
        if NAMED:
            named = token_ids + row * columns + column
            token = tl.load(named, mask=inside, other=0).to(tl.int32)
        seed, position = tl.load(seeds + row), tl.load(positions + row)
        value = value + heat * gumbel_noise(seed, position, token)
    at = tl.argmax(value, axis=0, tie_break_left=True)
    tl.store(best + to, tl.max(value, axis=0))
    tl.store(place + to, part.to(tl.int64) * BLOCK + at)


@triton.jit
def choose_kernel(best, place, largest, chosen, highest, parts, PARTS: tl.constexpr):
    """Of one row: the best of its blocks' columns, and the largest logit of all."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    inside = part < parts
    value = tl.load(best + row * parts + part, mask=inside, other=float("-inf"))
    at = tl.argmax(value, axis=0, tie_break_left=True)
    tl.store(chosen + row, tl.load(place + row * parts + at))
    peak = tl.load(largest + row * parts + part, mask=inside, other=float("-inf"))
    unsound = tl.max((peak != peak).to(tl.int32), axis=0) > 0
    peak = tl.max(tl.where(peak == peak, peak, float("-inf")), axis=0)
    tl.store(highest + row, tl.where(unsound, float("nan"), peak))


def gumbel_argmax(
    logits: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    positions: Tensor,
    token_ids: Tensor | None = None,
) -> Tensor:
    """See `ops.GumbelArgmax`."""
    return _draw(logits, temperature, seeds, positions, token_ids, None)[0]


def draw(
    logits: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    positions: Tensor,
    narrowing: Narrowing | None = None,
) -> tuple[Tensor, Tensor]:
    """See `ops.Draw`."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    ends = None if narrowing is None else narrowed(logits, temperature, narrowing)
    chosen, highest = _draw(logits, temperature, seeds, positions, None, ends)
    return chosen, torch.where(highest.isfinite(), chosen, -1)


def _draw(
    logits: Tensor,
    temperature: Tensor,
    seeds: Tensor,
    positions: Tensor,
    token_ids: Tensor | None,
    ends: Ends | None,
) -> tuple[Tensor, Tensor]:
    rows, columns = logits.shape
    parts = triton.cdiv(columns, _BLOCK)
    best, largest = torch.empty((2, rows, parts), dtype=torch.float32, device=logits.device)
    place = torch.empty((rows, parts), dtype=torch.int64, device=logits.device)
    chosen = torch.empty(rows, dtype=torch.int64, device=logits.device)
    highest = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        draw_kernel[(rows, parts)](
            logits, temperature, seeds, positions, token_ids,
            None if ends is None else ends.limits, None if ends is None else ends.places,
            best, place, largest, logits.stride(0), columns,
            NAMED=token_ids is not None, NARROWED=ends is not None, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
        choose_kernel[(rows,)](
            best, place, largest, chosen, highest, parts,
            PARTS=triton.next_power_of_2(parts), num_warps=1,
        )  # fmt: skip
    return chosen, highest
