"""Weights of 8 or 4 bits: how they are rounded, and multiplication with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import Activation, LinearInput

GROUPS = {8: 512, 4: 32}  # inputs that share a scale
ZEROS = {8: 128, 4: 8}  # what stands for 0
_ROWS = 4096  # rounded at once
_NOTHING = 1e-30  # inputs of a group without larger ones are zero: 127 times more would overflow


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """weight [outputs, inputs] -> uint8 of that shape, and bfloat16 scales [outputs, groups].

    A number stands for (number - ZEROS[bits]) * scale. The largest magnitude of a group becomes 127
    of 8 bits; of 4 bits it becomes -8, whatever its sign, because there is no +8.
    """
    outputs, inputs = weight.shape
    values = weight.new_empty(outputs, inputs, dtype=torch.uint8)
    scales = weight.new_empty(outputs, -(-inputs // GROUPS[bits]), dtype=torch.bfloat16)
    for first in range(0, outputs, _ROWS):
        some = slice(first, first + _ROWS)
        values[some], scales[some] = _quantize(weight[some].float(), bits)
    return values, scales


def _quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    inputs = weight.shape[1]
    groups = _grouped(weight, bits)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))  # with its sign
    scales = (largest.abs() / 127 if bits == 8 else largest / -8).bfloat16()
    divisors = torch.where(scales == 0, 1, scales).float()
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    values = (groups / divisors).round_().clamp_(low, high).add_(ZEROS[bits])
    return values.flatten(1)[:, :inputs].to(torch.uint8), scales.squeeze(2)


def _grouped(x: Tensor, bits: int) -> Tensor:
    """x [rows, inputs] -> [rows, groups, group], zeros after the last input."""
    size = GROUPS[bits]
    return F.pad(x, (0, -x.shape[1] % size)).view(len(x), -(-x.shape[1] // size), size)


def dequantize(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """What `quantize` made of a weight, as float32."""
    wide = scales.float().repeat_interleave(GROUPS[bits], 1)[:, : values.shape[1]]
    return (values.float() - ZEROS[bits]) * wide


def round_inputs(x: Tensor, bits: int) -> Tensor:
    """x [tokens, inputs] as it is multiplied, float32: 8 bits in the groups of the weight."""
    inputs = x.shape[1]
    groups = _grouped(x.float(), bits)
    largest = groups.abs().amax(2, keepdim=True)
    # A quotient of tensors: torch takes 127 / largest to be 127 times a reciprocal, rounded twice.
    inverse = torch.where(largest > _NOTHING, torch.full_like(largest, 127) / largest, 0)
    return ((groups * inverse).round_() * (largest / 127)).flatten(1)[:, :inputs]


class Quantized:
    """See `ops.PackedLinear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int) -> None:
        self._values, self._scales = quantize(weight, bits)
        self._bias = bias
        self._bits = bits
        self._dtype = weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return self.wide(x).to(x.dtype)

    def wide(self, x: Tensor) -> Tensor:
        weight = dequantize(self._values, self._scales, self._bits)
        bias = None if self._bias is None else self._bias.float()
        return self._multiply(round_inputs(x, self._bits), weight, bias)

    def addend(self, x: Tensor) -> Tensor:
        return self.wide(x)

    def gated(self, x: Tensor, silu_mul: Activation) -> LinearInput:
        return silu_mul(self(x))

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def rows(self, ids: Tensor) -> Tensor:
        return dequantize(self._values[ids], self._scales[ids], self._bits).to(self._dtype)


def pack_quantized(weight: Tensor, bias: Tensor | None, bits: int) -> Quantized:
    """See `ops.PackQuantized`."""
    return Quantized(weight, bias, bits)
