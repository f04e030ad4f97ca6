"""Linear layers, merged where several share their input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from octavo.kernels.ops import Activation, LinearInput

from .blueprint import Blueprint, Parameter


class Linear:
    """One matrix that holds those of `names` one below the other: one multiplication for all.

    `outputs[i]` is how many outputs `names[i]` has; the result is their concatenation.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        names: Sequence[str],
        *,
        inputs: int,
        outputs: Sequence[int],
        bias: bool = False,
    ) -> None:
        self._names = tuple(names)
        self._outputs = tuple(outputs)
        self._method = blueprint.quantization
        self._parameters = self._method.parameters(
            inputs, sum(outputs), bias=bias, dtype=blueprint.dtype, device=blueprint.device
        )
        # Takes what this weight format's `inputs` give: no type says which that is.
        self._packed: Any = None

    def __call__(self, x: LinearInput) -> Tensor:
        """x [tokens, inputs] -> [tokens, sum(outputs)]."""
        out: Tensor = self._packed(x)
        return out

    def addend(self, x: LinearInput) -> Tensor:
        """The same for the residual stream, and perhaps in float32 as that is."""
        out: Tensor = self._packed.addend(x)
        return out

    def wide(self, x: LinearInput) -> Tensor:
        """The same in float32, not rounded to the model's dtype."""
        out: Tensor = self._packed.wide(x)
        return out

    def gated(self, x: LinearInput, silu_mul: Activation) -> LinearInput:
        """`silu_mul` of it, -> [tokens, sum(outputs) / 2]."""
        out: LinearInput = self._packed.gated(x, silu_mul)
        return out

    def parameters(self) -> Iterator[Parameter]:
        """The checkpoint's tensors, each with its part of the merged ones."""
        for suffix, parameter in self._parameters.items():
            first = 0
            for name, outputs in zip(self._names, self._outputs, strict=True):
                part = parameter.tensor
                if parameter.output_axis is not None:
                    cells = outputs // parameter.outputs_per_cell
                    part = part.narrow(parameter.output_axis, first, cells)
                    first += cells
                yield Parameter(f"{name}.{suffix}", part)

    def finish(self) -> None:
        """All parameters are loaded: let the weight format bring them into its final form."""
        tensors = {suffix: parameter.tensor for suffix, parameter in self._parameters.items()}
        self._parameters = {}
        self._packed = self._method.finish(tensors)
