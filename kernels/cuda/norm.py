"""Root-mean-square norms: one row a program, so that no row's sum depends on the others."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import Float8Rows
from .float8 import empty_rows, over, scale_of
from .launching import interpreted, warps_for


@triton.jit
def rms_norm_kernel(
    x, residual, weight, out, scales, x_stride, size, epsilon,
    ADD: tl.constexpr, FLOAT8: tl.constexpr, BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out[row] = rms_norm(x[row]); with ADD of residual[row] += x[row], which is stored; with
    FLOAT8 over the row's scale."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0)
    if ADD:
        sums = residual + row * size + column
        held = tl.load(sums, mask=inside, other=0.0)
        if UPCAST:
            value, held = value.to(tl.float32), held.to(tl.float32)
        value = (value.to(tl.float32) + held.to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(sums, value, mask=inside)
    value = value.to(tl.float32)
    mean = tl.sum(value * value, axis=0) / size
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    value = value * (1.0 / tl.sqrt(mean + epsilon)) * factor
    if FLOAT8:
        scale = scale_of(tl.max(tl.abs(value), axis=0))
        tl.store(scales + row, scale)
        number = over(value, scale)
    else:
        number = value.to(out.dtype.element_ty)
    tl.store(out + row * size + column, number, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """See `ops.RmsNorm`."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(rows, None, weight, epsilon, out)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """See `ops.AddRmsNorm`."""
    out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    _launch(x, residual, weight, epsilon, out)
    return out


def add_rms_norm_float8(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Float8Rows:
    """See `ops.AddRmsNormFloat8`."""
    out, scales = empty_rows(x.shape[0], x.shape[1], x.device)
    _launch(x, residual, weight, epsilon, out, scales)
    return Float8Rows(out.view(torch.float8_e4m3fn), scales)


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    epsilon: float,
    out: Tensor,
    scales: Tensor | None = None,
) -> None:
    rows, size = x.shape
    if rows == 0:
        return
    block = triton.next_power_of_2(size)
    rms_norm_kernel[(rows,)](
        x, residual, weight, out, scales, x.stride(0), size, epsilon,
        ADD=residual is not None, FLOAT8=scales is not None, BLOCK=block,
        UPCAST=interpreted(x), num_warps=warps_for(block),
    )  # fmt: skip
