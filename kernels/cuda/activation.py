"""The gated activation of an MLP."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import warps_for

_BLOCK = 1024


@triton.jit
def silu_mul_kernel(gate_up, out, size, BLOCK: tl.constexpr):
    """out[row, column] = silu(gate) * up, float32 inside."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    pair = gate_up + row * 2 * size + column
    gate = tl.load(pair, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(pair + size, mask=inside, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * size + column, product.to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `ops.SiluMul`."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        block = min(_BLOCK, triton.next_power_of_2(size))
        grid = (rows, triton.cdiv(size, block))
        silu_mul_kernel[grid](
            gate_up.contiguous(), out, size, BLOCK=block, num_warps=warps_for(block)
        )
    return out
