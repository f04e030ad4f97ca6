"""What min-p, top-k and top-p leave, found by thresholds, and penalties and masks before that."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .selection import Rows, before_part, ordered

_BLOCK = 1024
_LEAST = 1e-30  # mass wanted


@triton.jit
def narrow_kernel(
    logits, keys, peak, temperature, min_p, first_equal, quota, row_stride, columns, parts,
    PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Minus infinity below the row's key, for all but the first `quota` equal to it, and for what
    has less than the share `min_p` of the likeliest. Rows of temperature 0 are left alone."""
    row, part = tl.program_id(0), tl.program_id(1)
    heat = tl.load(temperature + row)
    if heat > 0:
        key = tl.load(keys + row).to(tl.uint32)
        most = tl.load(quota + row)
        highest, share = tl.load(peak + row), tl.load(min_p + row)
        same = tl.load(first_equal + row * parts + part)
        for first in range(0, PART, BLOCK):
            column = part * PART + first + tl.arange(0, BLOCK)
            inside = column < columns
            at = logits + row.to(tl.int64) * row_stride + column
            value = tl.load(at, mask=inside, other=float("-inf"))
            here = ordered(value)
            is_equal = (inside & (here == key)).to(tl.int32)
            equals = same + tl.cumsum(is_equal, axis=0) - is_equal
            left = (here > key) | ((is_equal == 1) & (equals < most))
            left = left & (tl.exp(tl.div_rn(value - highest, heat)) >= share)
            tl.store(at, tl.full([BLOCK], float("-inf"), tl.float32), mask=inside & (left == 0))
            same += tl.sum(is_equal, axis=0)


@triton.jit
def penalise_kernel(
    logits, prompt_seen, output_counts, presence, frequency, repetition, out, columns,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Each product is rounded before it is subtracted, as the reference does it."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    at = row * columns + column
    value = tl.load(logits + at, mask=inside, other=0.0)
    seen = tl.load(prompt_seen + at, mask=inside, other=0) != 0
    count = tl.load(output_counts + at, mask=inside, other=0)
    factor = tl.load(repetition + row)
    lowered = tl.where(value > 0, tl.div_rn(value, factor), value * factor)
    value = tl.where(seen | (count > 0), lowered, value)
    value = value - count.to(tl.float32) * tl.load(frequency + row)
    value = value - tl.where(count > 0, tl.load(presence + row), 0.0)
    tl.store(out + at, value, mask=inside)


@triton.jit
def allow_only_kernel(logits, bitmask, row_stride, mask_stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    word = tl.load(bitmask + row * mask_stride + column // 32, mask=inside, other=0)
    left_out = ((word >> (column % 32)) & 1) == 0
    gone = tl.full([BLOCK], float("-inf"), tl.float32)
    tl.store(logits + row * row_stride + column, gone, mask=inside & left_out)


def narrow(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> None:
    """See `ops.Narrow`."""
    rows, columns = logits.shape
    if not rows:
        return
    heated = temperature > 0
    searched = Rows(
        logits,
        peak=logits.amax(1),
        temperature=torch.where(heated, temperature, 1.0),
        min_p=min_p,
    )
    # Top-k first: 0 is no key of a number, so that where it is off everything is above.
    limit = torch.where(heated & (top_k < columns), top_k, 0)
    keys = searched.search(limit.float(), mass=False)
    above, equal, mass = searched.beside(keys, mass=True)
    # Of the equal ones as many as top-k has room for; top-p is a share of what the two leave.
    room = torch.where(limit > 0, limit - above.sum(1), equal.sum(1))
    tied = _weight(keys, searched)
    total = mass.sum(1) + torch.where(tied >= min_p, tied * room, 0.0)
    wanted = (top_p * total).clamp(min=_LEAST)  # the likeliest is always left
    narrowed = searched.search(torch.where(heated & (top_p < 1.0), wanted, 0.0), mass=True)
    keys = torch.maximum(keys, narrowed)
    above, equal, mass = searched.beside(keys, mass=True)
    room = torch.where(limit > 0, limit - above.sum(1), equal.sum(1))
    # Those before it hold less than what is wanted.
    more = ((wanted - mass.sum(1)) / _weight(keys, searched)).ceil().clamp(1, columns)
    quota = torch.where(top_p < 1.0, torch.minimum(room, more.long()), room)
    searched.launch_parts(
        narrow_kernel, keys, searched.peak, temperature, min_p, before_part(equal),
        quota.to(torch.int32), logits.stride(0), columns, searched.parts,
    )  # fmt: skip


def _weight(keys: Tensor, rows: Rows) -> Tensor:
    """exp((value - peak) / temperature) of the numbers whose keys these are; 0 where it is none."""
    assert rows.peak is not None and rows.temperature is not None
    bits = keys - (1 << 31)  # of a signed number
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    value = bits.to(torch.int32).view(torch.float32)
    weight = ((value - rows.peak) / rows.temperature).exp()
    return torch.where(keys > 0, weight.nan_to_num(0.0), 0.0)


def penalise(
    logits: Tensor,
    prompt_seen: Tensor,
    output_counts: Tensor,
    presence: Tensor,
    frequency: Tensor,
    repetition: Tensor,
) -> Tensor:
    """See `ops.Penalise`."""
    rows, columns = logits.shape
    out = torch.empty((rows, columns), dtype=torch.float32, device=logits.device)
    if rows:
        penalise_kernel[(rows, triton.cdiv(columns, _BLOCK))](
            logits.contiguous(), prompt_seen.contiguous().view(torch.uint8),
            output_counts.contiguous(), presence.contiguous(), frequency.contiguous(),
            repetition.contiguous(), out, columns,
            BLOCK=_BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def allow_only(logits: Tensor, bitmask: Tensor) -> None:
    """See `ops.AllowOnly`."""
    rows, columns = logits.shape
    if rows:
        allow_only_kernel[(rows, triton.cdiv(columns, _BLOCK))](
            logits, bitmask, logits.stride(0), bitmask.stride(0), columns,
            BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
