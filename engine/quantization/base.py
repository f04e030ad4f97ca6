"""The seam `QuantMethod`: which tensors a linear layer has, and how it multiplies with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantTensor:
    """One tensor of a linear layer, and which of its axes run along the layer's own."""

    tensor: Tensor
    output_axis: int | None  # the axis a merged layer and a sharder cut by outputs
    input_axis: int | None
    outputs_per_cell: int = 1  # packing: outputs that share one element along output_axis


class QuantMethod(Protocol):
    """One weight format."""

    def parameters(
        self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> dict[str, QuantTensor]:
        """Uninitialised tensors by their suffix in a checkpoint, such as "weight" and "bias"."""

    def finish(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Called once when all are loaded; may repack them. Returns what `apply` will be given."""

    def apply(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        """x [tokens, inputs] -> [tokens, outputs]."""
