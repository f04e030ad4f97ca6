"""Numbers of 8 bits, e4m3 (Micikevicius et al. 2022), by integers: every GPU we know of can, and so
can Triton's interpreter, whose own conversion is wrong near powers of two."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import Float8Rows
from ..reference import float8 as reference
from .launching import warps_for

DECODED = 256.0  # what `decoded` leaves out
_NEEDED = (8, 9)  # compute capability of what multiplies floats of 8 bits


@triton.jit
def encoded(x):
    """float32 -> uint8: to nearest, ties to even, beyond the largest to the largest, NaN to 0."""
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = tl.where(x == x, tl.minimum(tl.abs(x), 448.0), 0.0)
    bits = size.to(tl.uint32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2**-6 a step is 2**-9, which is the last bit of a number just above 2**14.
    small = (size + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    return (sign | tl.where(size < 0.015625, small, normal)).to(tl.uint8)


@triton.jit
def decoded(byte):
    """uint8 -> float16: the number over 256, exactly. It has no NaN, as `encoded` makes none."""
    bits = byte.to(tl.uint16)
    return (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)


@triton.jit
def scale_of(largest):
    """Of a row of such a largest magnitude."""
    return tl.div_rn(tl.maximum(largest, 1e-12), 448.0)


@triton.jit
def over(value, scale):
    """float32 -> uint8: what `encoded` makes of value / scale, a scalar."""
    return encoded(tl.div_rn(value, tl.zeros_like(value) + scale))


@triton.jit
def round_rows_kernel(x, out, scales, x_stride, size, BLOCK: tl.constexpr):
    """One row: its scale, and its numbers over that."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(tl.abs(value), axis=0))
    tl.store(scales + row, scale)
    tl.store(out + row * size + column, over(value, scale), mask=inside)


def empty_rows(rows: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers, as the bytes that kernels write, and scales."""
    numbers = torch.empty((rows, size), dtype=torch.uint8, device=device)
    return numbers, torch.empty((rows, 1), dtype=torch.float32, device=device)


def round_rows(x: Tensor) -> Float8Rows:
    """As the reference's, bit by bit."""
    rows, size = x.shape
    out, scales = empty_rows(rows, size, x.device)
    x = x if x.stride(1) == 1 else x.contiguous()
    if rows:
        block = triton.next_power_of_2(size)
        round_rows_kernel[(rows,)](
            x, out, scales, x.stride(0), size, BLOCK=block, num_warps=warps_for(block)
        )
    return Float8Rows(out.view(torch.float8_e4m3fn), scales)


def pack_float8(
    weight: Tensor, bias: Tensor | None, scales: Tensor | None, dtype: torch.dtype
) -> reference.Float8Linear:
    """See `ops.PackFloat8`."""
    if weight.is_cuda and torch.cuda.get_device_capability(weight.device) < _NEEDED:
        name = torch.cuda.get_device_name(weight.device)
        raise NotImplementedError(
            f"{name} does not multiply floats of 8 bits; Ada, Hopper and newer GPUs do."
        )
    return reference.packed(weight, bias, scales, dtype, round_rows)
