"""The seam `QuantMethod`: which tensors a linear layer has, and how it multiplies with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.ops import Activation, LinearInput, PackedLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOps:
    """The ops whose results linear layers of some format multiply, in the form they want."""

    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], LinearInput]
    silu_mul: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantTensor:
    """One tensor of a linear layer, and which of its axes run along the layer's own."""

    tensor: Tensor
    output_axis: int | None  # the axis a merged layer and a sharder cut by outputs
    input_axis: int | None
    outputs_per_cell: int = 1  # packing: outputs that share one element along output_axis


class QuantMethod(Protocol):
    """One weight format."""

    inputs: InputOps

    def parameters(
        self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> dict[str, QuantTensor]:
        """Uninitialised tensors by their suffix in a checkpoint, such as "weight" and "bias"."""

    def finish(self, tensors: dict[str, Tensor]) -> PackedLinear:
        """All tensors are loaded: bring them into their final form, once.

        Returns the multiplication with them, of tensors and of what `inputs` gives.
        """

    def head(self, weight: Tensor) -> PackedLinear:
        """The final form of the vocabulary's matrix [vocab, hidden], which gives logits, and
        embeddings too where it is tied. `weight` is used up."""
