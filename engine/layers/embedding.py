"""From token ids to vectors, and from vectors to logits."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from octavo.kernels.ops import PackedLinear

from .blueprint import Blueprint, Parameter


class Embedding:
    """One row per token id. `tied`: the head multiplies with the same matrix, so that it is kept
    once, in the form that multiplies fastest."""

    def __init__(self, blueprint: Blueprint, name: str, *, tied: bool) -> None:
        self._name = name
        self._pack = blueprint.quantization.head
        self._take_rows = blueprint.ops.take_rows
        self._tied = tied
        shape = (blueprint.config.vocab_size, blueprint.config.hidden_size)
        self._weight: Tensor | None = blueprint.empty(*shape)
        self.packed: PackedLinear | None = None  # after finish(), where tied

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids int64 [tokens] -> [tokens, hidden]."""
        if self._weight is not None:
            return self._take_rows(self._weight, token_ids)
        assert self.packed is not None
        return self.packed.rows(token_ids)

    def parameters(self) -> Iterator[Parameter]:
        if self._weight is not None:
            yield Parameter(f"{self._name}.weight", self._weight)

    def finish(self) -> None:
        """All parameters are loaded."""
        if self._tied and self._weight is not None:
            self.packed = self._pack(self._weight)
            self._weight = None


class Head:
    """Logits over the vocabulary."""

    def __init__(self, blueprint: Blueprint, name: str, *, tied_to: Embedding | None) -> None:
        config = blueprint.config
        self._name = name
        self._pack = blueprint.quantization.head
        self._tied_to = tied_to
        self._own: Tensor | None = None
        if tied_to is None:
            self._own = blueprint.empty(config.vocab_size, config.hidden_size)
        self._packed: PackedLinear | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] -> float32 [rows, vocab]."""
        assert self._packed is not None, "used before finish()"
        return self._packed.wide(hidden)

    def parameters(self) -> Iterator[Parameter]:
        if self._own is not None:
            yield Parameter(f"{self._name}.weight", self._own)

    def finish(self) -> None:
        """All parameters are loaded, and the embedding is finished."""
        if self._tied_to is not None:
            self._packed = self._tied_to.packed
        elif self._own is not None:
            self._packed = self._pack(self._own)
            self._own = None
