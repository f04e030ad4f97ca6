"""From token ids to vectors, and from vectors to logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

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
    """Logits over the vocabulary.

    A tied head multiplies with the embedding's own matrix, as it is: a second copy in the form
    that multiplies fastest would be as large as a tenth to a fifth of the whole model.
    """

    def __init__(self, blueprint: Blueprint, name: str, *, tied_to: Embedding | None) -> None:
        config = blueprint.config
        self._name = name
        self._pack_linear = blueprint.ops.pack_linear
        self._own: Tensor | None = None
        if tied_to is not None:
            weight = tied_to.weight
        else:
            weight = self._own = blueprint.empty(config.vocab_size, config.hidden_size)
        self._multiply: Callable[[Tensor], Tensor] = partial(blueprint.ops.linear, weight=weight)

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] -> float32 [rows, vocab]."""
        return self._multiply(hidden).float()

    def parameters(self) -> Iterator[Parameter]:
        if self._own is not None:
            yield Parameter(f"{self._name}.weight", self._own)

    def finish(self) -> None:
        """All parameters are loaded."""
        if self._own is not None:
            self._multiply = self._pack_linear(self._own, None)
            self._own = None
