"""Rotary position embedding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import warps_for


@triton.jit
def rotate_kernel(
    x, cosine, sine, out, x_token, x_head, heads,
    HEAD_DIM: tl.constexpr, ROTARY: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out = x * cosine + swap_halves(x) * sine for BLOCK_H heads of one token."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]  # [heads, 1]
    column = tl.arange(0, BLOCK_D)[None, :]  # [1, head_dim]
    inside = (head < heads) & (column < HEAD_DIM)
    turned = inside & (column < ROTARY)
    swapped = tl.where(column < ROTARY // 2, column + ROTARY // 2, column - ROTARY // 2)
    from_head = x + token * x_token + head * x_head
    value = tl.load(from_head + column, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(from_head + swapped, mask=turned, other=0.0).to(tl.float32)
    angle = token * ROTARY + column
    cos = tl.load(cosine + angle, mask=column < ROTARY, other=1.0).to(tl.float32)
    sin = tl.load(sine + angle, mask=column < ROTARY, other=0.0).to(tl.float32)
    value = value * cos + other * sin
    to = out + (token * heads + head) * HEAD_DIM + column
    tl.store(to, value.to(out.dtype.element_ty), mask=inside)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """See `ops.Rotate`."""
    tokens, heads, head_dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if tokens == 0:
        return out
    columns = triton.next_power_of_2(head_dim)
    block = min(triton.next_power_of_2(heads), max(1, 2048 // columns))
    rotate_kernel[(tokens, triton.cdiv(heads, block))](
        x if x.stride(2) == 1 else x.contiguous(),
        cosine.contiguous(), sine.contiguous(), out, x.stride(0), x.stride(1), heads,
        HEAD_DIM=head_dim, ROTARY=cosine.shape[-1], BLOCK_H=block, BLOCK_D=columns,
        num_warps=warps_for(block * columns),
    )  # fmt: skip
    return out
