"""Weights as they are: one matrix, and perhaps a bias."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.memory import zeros
from octavo.kernels.ops import Ops, PackedLinear

from .base import InputOps, QuantTensor


class Unquantized:
    """The `QuantMethod` of float checkpoints."""

    def __init__(self, ops: Ops) -> None:
        self.inputs = InputOps(add_rms_norm=ops.add_rms_norm, silu_mul=ops.silu_mul)
        self._pack_linear = ops.pack_linear

    def parameters(
        self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> dict[str, QuantTensor]:
        weight = zeros((outputs, inputs), dtype, device)
        tensors = {"weight": QuantTensor(tensor=weight, output_axis=0, input_axis=1)}
        if bias:
            vector = torch.empty(outputs, dtype=dtype, device=device)
            tensors["bias"] = QuantTensor(tensor=vector, output_axis=0, input_axis=None)
        return tensors

    def finish(self, tensors: dict[str, Tensor]) -> PackedLinear:
        return self._pack_linear(tensors["weight"], tensors.get("bias"))

    def head(self, weight: Tensor) -> PackedLinear:
        return self._pack_linear(weight, None)
