"""Linear layers with packed weights: as they are, or rounded to 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..memory import Arena, zeros
from ..ops import Activation, LinearInput, PackedLinear, PackLinear, PackQuantized
from ..reference.quantized import GROUPS, quantize
from .library import COUNT, POINTER, Function, Library, dense

_UNIT = 16  # outputs that are packed together; see csrc/packed.h
_PANEL = 64  # outputs that are multiplied together
_STEP_BITS = 32  # of an output, packed together


@dataclass(frozen=True, slots=True, kw_only=True)
class _Functions:
    """The C functions of one form of weights, by the dtype of what they are multiplied with."""

    multiply: Mapping[torch.dtype, Function]
    multiply_wide: Mapping[torch.dtype, Function]
    multiply_gated: Mapping[torch.dtype, Function]
    unpack_rows: Mapping[torch.dtype, Function]
    empty: Callable[[tuple[int, ...], torch.dtype], Tensor]


def _functions(library: Library, form: str) -> _Functions:
    """`form`: "", or what stands for it in names, such as "_int8"."""
    arguments = (*[POINTER] * 4, *[COUNT] * 3)
    multiply = library.functions(f"linear{form}", *arguments)
    return _Functions(
        multiply=multiply,
        multiply_wide={
            torch.float32: multiply[torch.float32],
            torch.bfloat16: library.function(f"linear_wide{form}_bf16", *arguments),
        },
        multiply_gated=library.functions(f"gated{form}", *arguments),
        unpack_rows=library.functions(f"unpack_rows{form}", *[POINTER] * 3, *[COUNT] * 3),
        empty=library.empty,
    )


def pack_linear(library: Library) -> PackLinear:
    functions = _functions(library, "")
    packers = library.functions("pack", POINTER, POINTER, COUNT, COUNT)

    def pack(weight: Tensor, bias: Tensor | None) -> PackedLinear:
        return _Packed(
            functions,
            _packed(packers[weight.dtype], dense(weight)),
            bias,
            shape=weight.shape,
            dtype=weight.dtype,
        )

    return pack


def pack_quantized(library: Library) -> PackQuantized:
    functions = {bits: _functions(library, f"_int{bits}") for bits in GROUPS}
    packers = {
        bits: library.function(f"pack_int{bits}", *[POINTER] * 3, COUNT, COUNT) for bits in GROUPS
    }
    arena = Arena()

    def pack(weight: Tensor, bias: Tensor | None, bits: int) -> PackedLinear:
        outputs, inputs = weight.shape
        values, scales = quantize(weight, bits)
        units, groups = -(-outputs // _UNIT), scales.shape[1]
        steps = -(-inputs * bits // _STEP_BITS)
        unit_bytes = _UNIT * (scales.element_size() * groups + _STEP_BITS // 8 * steps)
        packed = arena.zeros((units * unit_bytes,), torch.uint8)
        packers[bits](values.data_ptr(), scales.data_ptr(), packed.data_ptr(), outputs, inputs)
        return _Packed(functions[bits], packed, bias, shape=weight.shape, dtype=weight.dtype)

    return pack


class _Packed:
    """See `ops.PackedLinear`."""

    def __init__(
        self,
        functions: _Functions,
        packed: Tensor,
        bias: Tensor | None,
        *,
        shape: torch.Size,
        dtype: torch.dtype,
    ) -> None:
        self._functions = functions
        self._outputs, self._inputs = shape
        self._dtype = dtype
        self._bias = None if bias is None else dense(bias)
        self._packed = packed
        self._pointer = packed.data_ptr()
        self._bias_pointer = None if self._bias is None else self._bias.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x, self._functions.multiply[x.dtype], self._outputs, x.dtype)

    def wide(self, x: Tensor) -> Tensor:
        function = self._functions.multiply_wide[x.dtype]
        return self._multiply(x, function, self._outputs, torch.float32)

    def addend(self, x: Tensor) -> Tensor:
        return self.wide(x)

    def gated(self, x: Tensor, silu_mul: Activation) -> LinearInput:
        if self._outputs % (2 * _PANEL):
            return silu_mul(self(x))  # a panel would have outputs of both halves
        function = self._functions.multiply_gated[x.dtype]
        return self._multiply(x, function, self._outputs // 2, x.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        ids = dense(ids)
        out = self._functions.empty((len(ids), self._inputs), self._dtype)
        self._functions.unpack_rows[out.dtype](
            self._pointer, ids.data_ptr(), out.data_ptr(), len(ids), self._inputs, self._outputs
        )
        return out

    def _multiply(self, x: Tensor, function: Function, size: int, dtype: torch.dtype) -> Tensor:
        x = dense(x)
        rows = x.shape[0]
        out = self._functions.empty((rows, size), dtype)
        function(
            x.data_ptr(),
            self._pointer,
            self._bias_pointer,
            out.data_ptr(),
            rows,
            self._inputs,
            self._outputs,
        )
        return out


def _packed(pack: Function, weight: Tensor) -> Tensor:
    """The packed form: in the weight's own memory where its shape needs no padding."""
    outputs, inputs = weight.shape
    step = _STEP_BITS // 8 // weight.element_size()  # inputs packed together
    padded = (-(-outputs // _UNIT) * _UNIT, -(-inputs // step) * step)
    packed = weight if padded == (outputs, inputs) else zeros(padded, weight.dtype)
    pack(weight.data_ptr(), packed.data_ptr(), outputs, inputs)
    return packed
