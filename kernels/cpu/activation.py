"""The gated activation of an MLP."""

from __future__ import annotations

from torch import Tensor

from ..ops import SiluMul
from .library import COUNT, POINTER, Library, dense


def silu_mul(library: Library) -> SiluMul:
    functions = library.functions("silu_mul", POINTER, POINTER, COUNT, COUNT)

    def run(gate_up: Tensor) -> Tensor:
        gate_up = dense(gate_up)
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = library.empty((rows, size), gate_up.dtype)
        functions[gate_up.dtype](gate_up.data_ptr(), out.data_ptr(), rows, size)
        return out

    return run
