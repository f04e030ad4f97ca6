"""Linear layers with packed weights: bfloat16 and float32 as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import PackedLinear, PackLinear
from .library import COUNT, POINTER, Function, Library, dense

_UNIT = 16  # outputs that are packed together; see csrc/linear.cpp


@dataclass(frozen=True, slots=True, kw_only=True)
class _Functions:
    pack: Mapping[torch.dtype, Function]
    multiply: Mapping[torch.dtype, Function]
    multiply_wide: Mapping[torch.dtype, Function]
    unpack_rows: Mapping[torch.dtype, Function]


def pack_linear(library: Library) -> PackLinear:
    arguments = (*[POINTER] * 4, *[COUNT] * 3)
    multiply = library.functions("linear", *arguments)
    functions = _Functions(
        pack=library.functions("pack", POINTER, POINTER, COUNT, COUNT),
        multiply=multiply,
        multiply_wide={
            torch.float32: multiply[torch.float32],
            torch.bfloat16: library.function("linear_wide_bf16", *arguments),
        },
        unpack_rows=library.functions("unpack_rows", *[POINTER] * 3, *[COUNT] * 3),
    )

    def pack(weight: Tensor, bias: Tensor | None) -> PackedLinear:
        return _Packed(functions, weight, bias)

    return pack


class _Packed:
    """See `ops.PackedLinear`."""

    __slots__ = (
        "_bias",
        "_bias_pointer",
        "_functions",
        "_inputs",
        "_outputs",
        "_pointer",
        "_weight",
    )

    def __init__(self, functions: _Functions, weight: Tensor, bias: Tensor | None) -> None:
        self._functions = functions
        self._outputs, self._inputs = weight.shape
        self._bias = None if bias is None else dense(bias)
        self._weight = _packed(functions.pack[weight.dtype], dense(weight))
        self._pointer = self._weight.data_ptr()
        self._bias_pointer = None if self._bias is None else self._bias.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        return self._multiply(x, self._functions.multiply[x.dtype], x.dtype)

    def wide(self, x: Tensor) -> Tensor:
        return self._multiply(x, self._functions.multiply_wide[x.dtype], torch.float32)

    def rows(self, ids: Tensor) -> Tensor:
        ids = dense(ids)
        out = self._weight.new_empty(len(ids), self._inputs)
        self._functions.unpack_rows[out.dtype](
            self._pointer, ids.data_ptr(), out.data_ptr(), len(ids), self._inputs, self._outputs
        )
        return out

    def _multiply(self, x: Tensor, function: Function, dtype: torch.dtype) -> Tensor:
        x = dense(x)
        rows = x.shape[0]
        out = torch.empty((rows, self._outputs), dtype=dtype)
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
    step = 4 // weight.element_size()  # inputs packed together
    padded = (-(-outputs // _UNIT) * _UNIT, -(-inputs // step) * step)
    packed = weight if padded == (outputs, inputs) else weight.new_empty(padded)
    pack(weight.data_ptr(), packed.data_ptr(), outputs, inputs)
    return packed
