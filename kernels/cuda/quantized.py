"""Products with weights of 8 or 4 bits, rounded as `reference/quantized.py` says.

Whole numbers are multiplied and added exactly, by tensor cores in float16, which holds them; each
group of inputs is then scaled and added in order. So a row depends on nothing else in the step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..ops import Activation, LinearInput
from ..reference.quantized import GROUPS, ZEROS, quantize

_OUTPUTS = 64  # of a tile
PART = 128  # inputs of a group that a tile takes at once


@triton.jit
def round_groups_kernel(
    x, out, scales, x_stride, out_stride, inputs, groups, GROUP: tl.constexpr
):  # fmt: skip
    """One group of one row: whole numbers up to 127, and what they are to be multiplied by."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = group * GROUP + tl.arange(0, GROUP)
    value = tl.load(x + row * x_stride + lane, mask=lane < inputs, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(value), axis=0)
    some = largest > 1e-30
    inverse = tl.where(some, tl.div_rn(127.0, tl.where(some, largest, 1.0)), 0.0)
    # Added to this, what lies behind the point is rounded away, halves to even.
    whole = (value * inverse + 12582912.0) - 12582912.0
    tl.store(out + row * out_stride + lane, whole.to(tl.float16), mask=lane < out_stride)
    tl.store(scales + row * groups + group, tl.div_rn(largest, 127.0))


@triton.jit
def product_kernel(
    x, x_scales, values, scales, bias, out, rows, inputs, outputs, groups,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, GROUP: tl.constexpr, PART: tl.constexpr,
    FOUR: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """One tile of the product. `inputs` are whole parts of groups. With FOUR a byte holds an input
    of the group's first half below, and one of its second half above."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    has_row, has_output = row < rows, output < outputs
    row_at, output_at = row.to(tl.int64), output.to(tl.int64)
    sums = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for group in range(groups):
        if FOUR:
            lane = tl.arange(0, GROUP // 2)
            of_byte = values + output_at[None, :] * (inputs // 2) + lane[:, None]
            byte = tl.load(of_byte + group * (GROUP // 2), mask=has_output[None, :], other=0)
            from_x = x + row_at[:, None] * inputs + group * GROUP + lane[None, :]
            a = tl.load(from_x, mask=has_row[:, None], other=0.0)
            part = tl.dot(a, ((byte & 15).to(tl.int16) - 8).to(tl.float16))
            a = tl.load(from_x + GROUP // 2, mask=has_row[:, None], other=0.0)
            part = tl.dot(a, ((byte >> 4).to(tl.int16) - 8).to(tl.float16), part)
        else:
            lane = tl.arange(0, PART)
            part = tl.zeros([ROWS, OUTPUTS], tl.float32)
            for first in range(group * GROUP, tl.minimum((group + 1) * GROUP, inputs), PART):
                of_byte = values + output_at[None, :] * inputs + first + lane[:, None]
                byte = tl.load(of_byte, mask=has_output[None, :], other=0)
                from_x = x + row_at[:, None] * inputs + first + lane[None, :]
                a = tl.load(from_x, mask=has_row[:, None], other=0.0)
                part = tl.dot(a, (byte.to(tl.int16) - 128).to(tl.float16), part)
        of_row = tl.load(x_scales + row_at * groups + group, mask=has_row, other=0.0)
        of_output = tl.load(scales + output_at * groups + group, mask=has_output, other=0.0)
        sums += part * (of_row[:, None] * of_output.to(tl.float32)[None, :])
    if BIASED:
        added = tl.load(bias + output, mask=has_output, other=0.0)
        sums += added.to(tl.float32)[None, :]
    to = out + row_at[:, None] * outputs + output[None, :]
    mask = has_row[:, None] & has_output[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=mask)


def tile_rows(rows: int) -> tuple[int, int]:
    """Rows of a tile, and warps."""
    return (16, 4) if rows <= 16 else (64, 8)


class QuantizedLinear:
    """See `ops.PackedLinear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int) -> None:
        values, self._scales = quantize(weight, bits)
        inputs = weight.shape[1]
        self._part = min(GROUPS[bits], PART)
        values = F.pad(values, (0, -inputs % self._part), value=ZEROS[bits])
        if bits == 4:
            low, high = values.view(len(values), -1, 2, self._part // 2).unbind(2)
            values = (low | high << 4).flatten(1).contiguous()
        self._values = values
        self._bias = bias
        self._bits = bits
        self._inputs = inputs
        self._dtype = weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x, x.dtype)

    def wide(self, x: Tensor) -> Tensor:
        return self._product(x, torch.float32)

    def addend(self, x: Tensor) -> Tensor:
        return self.wide(x)

    def gated(self, x: Tensor, silu_mul: Activation) -> LinearInput:
        return silu_mul(self(x))

    def _product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        rows, outputs = len(x), len(self._values)
        out = torch.empty((rows, outputs), dtype=dtype, device=x.device)
        if not rows:
            return out
        x = x if x.stride(1) == 1 else x.contiguous()
        group, groups = GROUPS[self._bits], self._scales.shape[1]
        inputs = triton.cdiv(self._inputs, self._part) * self._part
        whole = torch.empty((rows, inputs), dtype=torch.float16, device=x.device)
        scales = torch.empty((rows, groups), dtype=torch.float32, device=x.device)
        round_groups_kernel[(rows, groups)](
            x, whole, scales, x.stride(0), inputs, self._inputs, groups, GROUP=group,
            num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
        tile, warps = tile_rows(rows)
        product_kernel[(triton.cdiv(outputs, _OUTPUTS), triton.cdiv(rows, tile))](
            whole, scales, self._values, self._scales, self._bias, out, rows, inputs, outputs,
            groups, ROWS=tile, OUTPUTS=_OUTPUTS, GROUP=group, PART=self._part,
            FOUR=self._bits == 4, BIASED=self._bias is not None, num_warps=warps,
            enable_fp_fusion=False,
        )  # fmt: skip
        return out

    def rows(self, ids: Tensor) -> Tensor:
        group, values = GROUPS[self._bits], self._values[ids]
        if self._bits == 4:
            halves = values.view(len(ids), -1, 1, group // 2)
            values = torch.cat((halves & 15, halves >> 4), 2).flatten(1)
        scales = self._scales[ids].float().repeat_interleave(group, 1)[:, : values.shape[1]]
        wide = (values.float() - ZEROS[self._bits]) * scales
        return wide[:, : self._inputs].to(self._dtype)


def pack_quantized(weight: Tensor, bias: Tensor | None, bits: int) -> QuantizedLinear:
    """See `ops.PackQuantized`."""
    return QuantizedLinear(weight, bias, bits)
