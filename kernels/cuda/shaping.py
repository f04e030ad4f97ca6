"""What shapes logits before a token is drawn: penalties, and masks of what may be said."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


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
