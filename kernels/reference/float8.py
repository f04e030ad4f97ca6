"""Products of 8-bit floats, e4m3 (Micikevicius et al. 2022): weights with a scale per output,
inputs with one per token, found when they are multiplied."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import Activation, Float8Rows, LinearInput
from .activation import silu_mul
from .norm import add_rms_norm

LARGEST = 448.0
_LEAST = 1e-12  # largest magnitude of a row that is not taken to be zeros
MULTIPLE = 16  # of inputs and outputs, which `torch._scaled_mm` wants

RoundRows = Callable[[Tensor], Float8Rows]


def round_rows(x: Tensor) -> Float8Rows:
    """x [rows, size]."""
    x = x.float()
    scales = x.abs().amax(1, keepdim=True).clamp(min=_LEAST) / LARGEST
    return Float8Rows((x / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales)


def add_rms_norm_float8(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Float8Rows:
    """See `ops.AddRmsNormFloat8`."""
    return round_rows(add_rms_norm(x, residual, weight.float(), epsilon))


def silu_mul_float8(gate_up: Tensor) -> Float8Rows:
    """See `ops.SiluMulFloat8`."""
    return round_rows(silu_mul(gate_up.float()))


class Float8Linear:
    """See `ops.PackedFloat8`; the product is `torch._scaled_mm`, on any device that has it."""

    def __init__(
        self,
        weight: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        round_inputs: RoundRows = round_rows,
    ) -> None:
        self._weight = weight  # float8 [outputs, inputs]
        self._scales = scales  # float32 [outputs, 1]
        self._bias = bias
        self._dtype = dtype
        self._round_inputs = round_inputs

    def __call__(self, x: LinearInput) -> Tensor:
        return self._product(x).to(x.dtype if isinstance(x, Tensor) else self._dtype)

    def wide(self, x: LinearInput) -> Tensor:
        return self._product(x).float()

    def addend(self, x: LinearInput) -> Tensor:
        out = self._product(x)
        return out if out.dtype == self._dtype else out.float()

    def gated(self, x: LinearInput, silu_mul: Activation) -> LinearInput:
        return silu_mul(self(x))

    def _product(self, x: LinearInput) -> Tensor:
        """As the device gives it: no pass over it for a dtype that nobody wants."""
        numbers, scales = self._round_inputs(x) if isinstance(x, Tensor) else x
        if not len(numbers):
            return scales.new_zeros((0, len(self._weight)))
        out = self._multiply(numbers, scales)
        return out if self._bias is None else out.float().add_(self._bias)

    def _multiply(self, x: Tensor, scales: Tensor) -> Tensor:
        weight, by = self._weight.T, self._scales.T
        if x.is_cuda:  # which with scales of rows gives bfloat16 only
            return torch._scaled_mm(x, weight, scale_a=scales, scale_b=by, out_dtype=torch.bfloat16)
        # A CPU takes scales of rows from torch 2.12 on only.
        one = scales.new_ones(())
        out = torch._scaled_mm(x, weight, scale_a=one, scale_b=one, out_dtype=torch.float32)
        return out.mul_(scales).mul_(by)

    def rows(self, ids: Tensor) -> Tensor:
        chosen = self._weight.view(torch.uint8)[ids].view(self._weight.dtype)
        return (chosen.float() * self._scales[ids]).to(self._dtype)


class WideLinear(Float8Linear):
    """The same for shapes that `torch._scaled_mm` does not take; it rounds no inputs itself."""

    def _product(self, x: LinearInput) -> Tensor:
        if not isinstance(x, Tensor):
            x = x.numbers.float() * x.scales
        weight = self._weight.float() * self._scales
        bias = None if self._bias is None else self._bias.float()
        return F.linear(x.float(), weight, bias)


def pack_float8(
    weight: Tensor, bias: Tensor | None, scales: Tensor | None, dtype: torch.dtype
) -> Float8Linear:
    """See `ops.PackFloat8`."""
    return packed(weight, bias, scales, dtype, round_rows)


def packed(
    weight: Tensor,
    bias: Tensor | None,
    scales: Tensor | None,
    dtype: torch.dtype,
    round_inputs: RoundRows,
) -> Float8Linear:
    """As `pack_float8`, with a device's own way to round."""
    if scales is None:
        weight, scales = round_rows(weight)
    fits = all(size % MULTIPLE == 0 for size in weight.shape)
    form = Float8Linear if fits else WideLinear
    return form(weight.contiguous(), scales.contiguous(), bias, dtype, round_inputs)
