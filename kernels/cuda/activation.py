"""The gated activation of an MLP."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import Float8Rows
from .float8 import empty_rows, over, scale_of
from .launching import warps_for

_BLOCK = 1024
ROW_BLOCK, ROW_WARPS = 16384, 16  # where a program has a whole row


@triton.jit
def _gated(gate_up, row, column, size):
    """silu(gate) * up, float32; zero behind the end of the row."""
    inside = column < size
    pair = gate_up + row * 2 * size + column
    gate = tl.load(pair, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(pair + size, mask=inside, other=0.0).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def silu_mul_kernel(gate_up, out, size, BLOCK: tl.constexpr):
    """out[row, column] = silu(gate) * up, float32 inside."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    product = _gated(gate_up, row, column, size)
    tl.store(out + row * size + column, product.to(out.dtype.element_ty), mask=column < size)


@triton.jit
def silu_mul_float8_kernel(gate_up, out, scales, size, BLOCK: tl.constexpr):
    """One row: its scale, and its numbers over that, which are worked out again for it."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, size, BLOCK):
        column = first + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.abs(_gated(gate_up, row, column, size)))
    scale = scale_of(tl.max(largest, axis=0))
    tl.store(scales + row, scale)
    for first in range(0, size, BLOCK):
        column = first + tl.arange(0, BLOCK)
        number = over(_gated(gate_up, row, column, size), scale)
        tl.store(out + row * size + column, number, mask=column < size)


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


def silu_mul_float8(gate_up: Tensor) -> Float8Rows:
    """See `ops.SiluMulFloat8`."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out, scales = empty_rows(rows, size, gate_up.device)
    if rows:
        block = min(ROW_BLOCK, triton.next_power_of_2(size))
        silu_mul_float8_kernel[(rows,)](
            gate_up.contiguous(), out, scales, size, BLOCK=block, num_warps=ROW_WARPS
        )
    return Float8Rows(out.view(torch.float8_e4m3fn), scales)
