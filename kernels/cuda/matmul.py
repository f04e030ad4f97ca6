"""A product of matrices no row of which depends on the others, nor on how many there are.

cuBLAS chooses its tiles, and whether it splits the sums, by the number of rows. Here the order of
a sum is fixed: inputs one after the other in steps of `_INPUTS`, never split. Tiles have 64 or 128
rows; the tensor cores of both take 64 (Hopper) or 16 (Ampere) rows at an instruction and 16 inputs,
so that a row's sum is made of the same instructions in the same order (cf. Horace He and Thinking
Machines Lab, "Defeating nondeterminism in LLM inference", 2025).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..ops import Activation, LinearInput
from .launching import interpreted

_OUTPUTS = 128  # of a tile
_INPUTS = 64  # added up at a time
WARPS = 8
_BAND = 8  # rows of tiles whose programs run together, so that they share what they read


@triton.jit
def matmul_kernel(
    x, weight, bias, out, rows, outputs, inputs, x_stride, weight_stride,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, BAND: tl.constexpr,
    BIASED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of out = x @ weight.T + bias; the sums and the bias in float32."""
    program = tl.program_id(0)
    across, down = tl.cdiv(outputs, OUTPUTS), tl.cdiv(rows, ROWS)
    first = program // (BAND * across) * BAND
    band = tl.minimum(down - first, BAND)
    tile_row = first + program % (BAND * across) % band
    tile_column = program % (BAND * across) // band
    row, output = tl.arange(0, ROWS), tl.arange(0, OUTPUTS)
    lane = tl.arange(0, INPUTS)
    first_row, first_output = (tile_row * ROWS).to(tl.int64), (tile_column * OUTPUTS).to(tl.int64)
    left = x + first_row * x_stride + row[:, None] * x_stride + lane[None, :]
    right = weight + first_output * weight_stride + output[None, :] * weight_stride + lane[:, None]
    out += first_row * outputs + first_output
    rows_left, outputs_left = rows - tile_row * ROWS, outputs - tile_column * OUTPUTS
    sums = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in range(0, inputs, INPUTS):
        known = start + lane < inputs
        a = tl.load(left + start, mask=(row[:, None] < rows_left) & known[None, :], other=0.0)
        b = tl.load(
            right + start, mask=(output[None, :] < outputs_left) & known[:, None], other=0.0
        )
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    if BIASED:
        added = tl.load(bias + first_output + output, mask=output < outputs_left, other=0.0)
        sums += added.to(tl.float32)[None, :]
    to = out + row[:, None] * outputs + output[None, :]
    inside = (row[:, None] < rows_left) & (output[None, :] < outputs_left)
    tl.store(to, sums.to(out.dtype.element_ty), mask=inside)


def tile_rows(rows: int) -> int:
    """Of a step of so many."""
    return 64 if rows <= 64 else 128


def matmul_fixed(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x [rows, inputs] @ weight [outputs, inputs].T + bias -> [rows, outputs] of `dtype`."""
    rows, inputs = x.shape
    outputs = len(weight)
    out = torch.empty((rows, outputs), dtype=dtype, device=x.device)
    if not rows:
        return out
    x = x if x.stride(1) == 1 else x.contiguous()
    tile = tile_rows(rows)
    wide = x.dtype == torch.float32  # twice the memory
    matmul_kernel[(triton.cdiv(rows, tile) * triton.cdiv(outputs, _OUTPUTS),)](
        x, weight, bias, out, rows, outputs, inputs, x.stride(0), weight.stride(0),
        ROWS=tile, OUTPUTS=_OUTPUTS, INPUTS=_INPUTS // 2 if wide else _INPUTS, BAND=_BAND,
        BIASED=bias is not None, UPCAST=interpreted(x), num_warps=WARPS, num_stages=3,
    )  # fmt: skip
    return out


class FixedLinear:
    """See `ops.PackedLinear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return matmul_fixed(x, self._weight, self._bias, x.dtype)

    def wide(self, x: Tensor) -> Tensor:
        return matmul_fixed(x, self._weight, self._bias, torch.float32)

    def addend(self, x: Tensor) -> Tensor:
        return self.wide(x)

    def gated(self, x: Tensor, silu_mul: Activation) -> LinearInput:
        return silu_mul(self(x))

    def rows(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._weight)


def pack_linear(weight: Tensor, bias: Tensor | None) -> FixedLinear:
    """See `ops.PackLinear`."""
    return FixedLinear(weight, bias)
