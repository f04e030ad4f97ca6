"""The norm before every attention, every MLP and the head."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .blueprint import Blueprint, Parameter


class RmsNorm:
    """Scales vectors to unit root mean square, then by a learned weight."""

    def __init__(self, blueprint: Blueprint, name: str, size: int) -> None:
        self._name = name
        self._weight = blueprint.empty(size)
        self._epsilon = blueprint.config.norm_epsilon
        self._rms_norm = blueprint.ops.rms_norm
        self._add_rms_norm = blueprint.ops.add_rms_norm

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., size] -> [..., size]."""
        return self._rms_norm(x, self._weight, self._epsilon)

    def after_adding(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual += x, in place; returns the norm of residual. All [tokens, size], and residual
        float32."""
        return self._add_rms_norm(x, residual, self._weight, self._epsilon)

    def parameters(self) -> Iterator[Parameter]:
        yield Parameter(f"{self._name}.weight", self._weight)
