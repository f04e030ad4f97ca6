"""Attention by FlashInfer (Ye et al. 2025), where the package is installed.

Written from its documentation (0.2 to 0.6) and tested against a stand-in that checks and computes
what that documents; it has not run on a GPU.
"""

from __future__ import annotations

import importlib
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.ops import AttentionPlan, Ops

from ..batch import Batch
from .library import LayerKind, LibraryAttention, LibraryPlan

PACKAGE = "flashinfer"
HEAD_DIMS = (64, 128, 256)
_WORKSPACE = 256 << 20  # bytes, for the partial sums of split contexts


class FlashInferAttention(LibraryAttention):
    """One wrapper for each kind of layer; all of them use one workspace, one after the other."""

    def __init__(self, ops: Ops, device: torch.device) -> None:
        super().__init__(ops)
        self._library = importlib.import_module(PACKAGE)
        self._workspace = torch.zeros(_WORKSPACE, dtype=torch.uint8, device=device)
        self._wrappers: dict[LayerKind, Any] = {}

    def plan(self, batch: Batch, block_size: int, ours: AttentionPlan) -> LibraryPlan:
        return _Plan(batch, block_size, ours, self)

    def wrapper(self, kind: LayerKind) -> Any:
        """The wrapper for one kind of layer. It takes a prompt's chunk and a decode alike."""
        if kind not in self._wrappers:
            make = self._library.BatchPrefillWithPagedKVCacheWrapper
            self._wrappers[kind] = make(self._workspace, "NHD")
        return self._wrappers[kind]


class _Plan(LibraryPlan):
    """Plans each kind of layer when the first of it comes."""

    def __init__(
        self, batch: Batch, block_size: int, ours: AttentionPlan, backend: FlashInferAttention
    ) -> None:
        super().__init__(batch, block_size, ours)
        self._backend = backend
        self._planned: dict[LayerKind, Any] = {}

    def mix(self, cache: Tensor, query: Tensor, kind: LayerKind) -> Tensor:
        if kind not in self._planned:
            self._planned[kind] = self._plan(kind, cache, query)
        mixed: Tensor = self._planned[kind].run(query, cache)
        return mixed

    def _plan(self, kind: LayerKind, cache: Tensor, query: Tensor) -> Any:
        wrapper = self._backend.wrapper(kind)
        lengths = self._batch.context_lengths_host
        blocks = [-(-length // self._block_size) for length in lengths]
        # Lengths stay with the host, where it plans: on the device it would have to wait for them.
        wrapper.plan(
            _offsets(self._batch.query_lengths),
            _offsets(blocks),
            _listed(self._batch.block_tables, blocks),
            torch.tensor([(n - 1) % self._block_size + 1 for n in lengths], dtype=torch.int32),
            num_qo_heads=query.shape[1],
            num_kv_heads=cache.shape[3],
            head_dim_qk=query.shape[2],
            page_size=self._block_size,
            causal=True,
            sm_scale=kind.scale,
            window_left=-1 if kind.window is None else kind.window - 1,
            logits_soft_cap=kind.softcap,
            q_data_type=query.dtype,
            kv_data_type=cache.dtype,
        )
        return wrapper


def _offsets(counts: tuple[int, ...] | list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32)


def _listed(tables: Tensor, counts: list[int]) -> Tensor:
    """The first counts[i] entries of each row i of tables, one after the other; nobody waits."""
    device, total = tables.device, sum(counts)
    starts = _offsets(counts).to(device, torch.int64, non_blocking=True)
    rows = torch.arange(len(counts), device=device)
    row = rows.repeat_interleave(starts.diff(), output_size=total)
    entry = torch.arange(total, device=device) - starts[row]
    return tables[row, entry]
