"""The norm before every attention, every MLP and the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch import Tensor

from .blueprint import Blueprint, Parameter

Out = TypeVar("Out")


class RmsNorm(Generic[Out]):
    """Scales vectors to unit root mean square, then by a learned weight.

    `add_rms_norm`: the op, in whatever form its reader wants the result.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        name: str,
        size: int,
        add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Out],
    ) -> None:
        self._name = name
        self._weight = blueprint.empty(size)
        self._epsilon = blueprint.config.norm_epsilon
        self._add_rms_norm = add_rms_norm

    def after_adding(self, x: Tensor, residual: Tensor) -> Out:
        """residual += x, in place; returns the norm of residual. All [tokens, size], and residual
        float32."""
        return self._add_rms_norm(x, residual, self._weight, self._epsilon)

    def parameters(self) -> Iterator[Parameter]:
        yield Parameter(f"{self._name}.weight", self._weight)
