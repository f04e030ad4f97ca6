"""Weights as they are: one matrix, and perhaps a bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import QuantTensor


class Unquantized:
    """The `QuantMethod` of float checkpoints."""

    def parameters(
        self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> dict[str, QuantTensor]:
        weight = torch.empty(outputs, inputs, dtype=dtype, device=device)
        tensors = {"weight": QuantTensor(tensor=weight, output_axis=0, input_axis=1)}
        if bias:
            vector = torch.empty(outputs, dtype=dtype, device=device)
            tensors["bias"] = QuantTensor(tensor=vector, output_axis=0, input_axis=None)
        return tensors

    def finish(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors

    def apply(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.linear(x, tensors["weight"], tensors.get("bias"))
