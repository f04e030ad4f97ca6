"""From token ids to vectors, and from vectors to logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from .blueprint import Blueprint, Parameter


class Embedding:
    """One row per token id."""

    def __init__(self, blueprint: Blueprint, name: str) -> None:
        self._name = name
        self.weight = blueprint.empty(blueprint.config.vocab_size, blueprint.config.hidden_size)

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids int64 [tokens] -> [tokens, hidden]."""
        return F.embedding(token_ids, self.weight)

    def parameters(self) -> Iterator[Parameter]:
        yield Parameter(f"{self._name}.weight", self.weight)


class Head:
    """Logits over the vocabulary. A tied head uses the embedding's matrix and has none itself."""

    def __init__(self, blueprint: Blueprint, name: str, *, tied_to: Embedding | None) -> None:
        self._name = name
        self._tied = tied_to is not None
        self._weight = (
            tied_to.weight
            if tied_to is not None
            else blueprint.empty(blueprint.config.vocab_size, blueprint.config.hidden_size)
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] -> float32 [rows, vocab]."""
        return F.linear(hidden, self._weight).float()

    def parameters(self) -> Iterator[Parameter]:
        if not self._tied:
            yield Parameter(f"{self._name}.weight", self._weight)
