"""Attention by FlashAttention-3 (Shah et al. 2024), where its package is installed.

Written from its interface, `flash_attn_with_kvcache`, and tested against a stand-in that checks and
computes what that documents; it has not run on a GPU.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from octavo.kernels.ops import AttentionPlan, Ops

from ..batch import Batch
from .library import LayerKind, LibraryAttention, LibraryPlan

PACKAGE = "flash_attn_interface"
CAPABILITY = 9  # Hopper's
LARGEST_HEAD_DIM = 256


class Flash3Attention(LibraryAttention):
    """One call for ragged slices of any mixture of lengths."""

    def __init__(self, ops: Ops) -> None:
        super().__init__(ops)
        self._attend_paged = importlib.import_module(PACKAGE).flash_attn_with_kvcache

    def plan(self, batch: Batch, block_size: int, ours: AttentionPlan) -> LibraryPlan:
        return _Plan(batch, block_size, ours, self._attend_paged)


class _Plan(LibraryPlan):
    def __init__(
        self, batch: Batch, block_size: int, ours: AttentionPlan, attend_paged: Any
    ) -> None:
        super().__init__(batch, block_size, ours)
        self._attend_paged = attend_paged
        self._longest = max(batch.query_lengths, default=0)

    def mix(self, cache: Tensor, query: Tensor, kind: LayerKind) -> Tensor:
        mixed: Tensor = self._attend_paged(
            query,
            cache[:, 0],
            cache[:, 1],
            cache_seqlens=self._batch.context_lengths,
            page_table=self._batch.block_tables,
            cu_seqlens_q=self._batch.query_offsets,
            max_seqlen_q=self._longest,
            softmax_scale=kind.scale,
            causal=True,
            window_size=(-1, -1) if kind.window is None else (kind.window - 1, 0),
            softcap=kind.softcap or 0.0,
        )
        return mixed
