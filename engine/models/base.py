"""`Model`: what every decoder-only transformer shares, and what a family must say of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from octavo.kernels.ops import LinearInput

from ..batch import Batch
from ..checkpoint import ModelConfig
from ..kv_cache import KVCache
from ..layers.attention import Attention
from ..layers.blueprint import Blueprint, LayerStep, Parameter
from ..layers.embedding import Embedding, Head
from ..layers.mlp import GatedMlp
from ..layers.norm import RmsNorm
from ..layers.rope import RotaryEmbedding


class Block:
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self,
        *,
        attention_norm: RmsNorm[LinearInput],
        attention: Attention,
        mlp_norm: RmsNorm[LinearInput],
        mlp: GatedMlp,
    ) -> None:
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def __call__(self, x: Tensor, residual: Tensor, step: LayerStep, cache: Tensor) -> Tensor:
        """x [tokens, hidden] is what the block before has yet to add to `residual`, which is
        float32 of that shape.

        Returns what this block has yet to add to it.
        """
        x = self.attention(self.attention_norm.after_adding(x, residual), step, cache)
        return self.mlp(self.mlp_norm.after_adding(x, residual))

    def parameters(self) -> Iterator[Parameter]:
        for part in (self.attention_norm, self.attention, self.mlp_norm, self.mlp):
            yield from part.parameters()

    def finish(self) -> None:
        self.attention.finish()
        self.mlp.finish()


class Model(ABC):
    """Token ids and a KV cache in, hidden states and logits out.

    A family's file gives `block`, and what of `config_from` and `renames` differs from its parent.
    Tensors are allocated but not filled: `engine/weights.py` does that.
    """

    # Prefixes of tensor names in some checkpoints -> ours.
    renames: ClassVar[tuple[tuple[str, str], ...]] = ()

    @classmethod
    def config_from(cls, config: ModelConfig) -> ModelConfig:
        """The numbers as this family reads them: `config` with what is not said the same way by
        all families (`config.raw` has the whole file)."""
        return config

    @classmethod
    @abstractmethod
    def block(cls, blueprint: Blueprint, index: int) -> Block:
        """The block number `index`."""

    def __init__(self, blueprint: Blueprint) -> None:
        self.config = config = blueprint.config
        self.device = blueprint.device
        self._attention = blueprint.attention
        self._rotary = RotaryEmbedding(blueprint)
        tied = config.tied_embeddings
        self._embedding = Embedding(blueprint, "model.embed_tokens", tied=tied)
        self._blocks = [self.block(blueprint, index) for index in range(config.layers)]
        plain = blueprint.ops.add_rms_norm
        self._norm = RmsNorm(blueprint, "model.norm", config.hidden_size, plain)
        self._head = Head(blueprint, "lm_head", tied_to=self._embedding if tied else None)
        self.parameter_count = sum(p.tensor.numel() for p in self.parameters())
        self.weight_bytes = sum(p.tensor.nbytes for p in self.parameters())

    @property
    def replayable(self) -> bool:
        """As `AttentionBackend.replayable`: nothing else is decided by the host."""
        return self._attention.replayable

    def forward(self, batch: Batch, kv: KVCache) -> Tensor:
        """Stores the batch's keys and values; returns its hidden states [tokens, hidden]."""
        cosine, sine = self._rotary(batch.positions)
        plan = self._attention.prepare(batch, kv.block_size)
        step = LayerStep(plan=plan, cosine=cosine, sine=sine)
        x = self._embedding(batch.token_ids)
        # The first block adds x to it, like every other one.
        residual = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for block, cache in zip(self._blocks, kv.layers, strict=True):
            x = block(x, residual, step, cache)
        return self._norm.after_adding(x, residual)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden] -> float32 [rows, vocab]."""
        return self._head(hidden)

    def parameters(self) -> Iterator[Parameter]:
        """Every tensor to be loaded, each once."""
        yield from self._embedding.parameters()
        for block in self._blocks:
            yield from block.parameters()
        yield from self._norm.parameters()
        yield from self._head.parameters()

    def finish(self) -> None:
        """All parameters are loaded."""
        self._embedding.finish()
        for block in self._blocks:
            block.finish()
        self._head.finish()
