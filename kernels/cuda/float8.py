"""Numbers of 8 bits, e4m3 (Micikevicius et al. 2022), by integers: every GPU we know of can, and so
can Triton's interpreter, whose own conversion is wrong near powers of two."""

from __future__ import annotations

import triton
import triton.language as tl

DECODED = 256.0  # what `decoded` leaves out
LARGEST = 448.0


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
