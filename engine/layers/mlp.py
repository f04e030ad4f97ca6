"""The feed-forward half of a block."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from octavo.kernels.ops import LinearInput

from ..errors import UnsupportedArchitecture
from .blueprint import Blueprint, Parameter
from .linear import Linear


class GatedMlp:
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, blueprint: Blueprint, prefix: str) -> None:
        config = blueprint.config
        if config.activation not in ("silu", "swish"):
            raise UnsupportedArchitecture(
                f"The activation {config.activation!r} of {config.architecture} is not supported; "
                f"only silu is."
            )
        size = config.intermediate_size
        self._gate_up = Linear(
            blueprint,
            (f"{prefix}.gate_proj", f"{prefix}.up_proj"),
            inputs=config.hidden_size,
            outputs=(size, size),
            bias=config.mlp_bias,
        )
        self._down = Linear(
            blueprint,
            (f"{prefix}.down_proj",),
            inputs=size,
            outputs=(config.hidden_size,),
            bias=config.mlp_bias,
        )
        self._silu_mul = blueprint.quantization.inputs.silu_mul

    def __call__(self, x: LinearInput) -> Tensor:
        """x [tokens, hidden] -> [tokens, hidden], for the residual stream."""
        return self._down.addend(self._gate_up.gated(x, self._silu_mul))

    def parameters(self) -> Iterator[Parameter]:
        yield from self._gate_up.parameters()
        yield from self._down.parameters()

    def finish(self) -> None:
        self._gate_up.finish()
        self._down.finish()
