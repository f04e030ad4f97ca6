"""Attention of decodes in CUDA C++ (`csrc/decode_attention.cu`), to measure Triton's against.

A provider of its own, which only a measurement asks for: ("cuda.native", "cuda", "reference").
What it has no kernel for, and everything where there is no compiler, is left to Triton.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import triton
from torch import Tensor

from ..ops import AttentionLayer, PagedSlices
from .attention import SPLIT, Plan
from .attention_kernels import merge_kernel
from .nvrtc import CompilationFailed, Function, compile_cubin, find_compiler

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("csrc") / "decode_attention.cu"
HEAD_DIMS = (64, 128, 256)
LARGEST_GROUP = 8
_THREADS = 128
_TYPES = (
    *(ctypes.c_void_p,) * 8,
    *(ctypes.c_float,) * 2,
    ctypes.c_int,
    *(ctypes.c_longlong,) * 6,
    *(ctypes.c_int,) * 2,
)


def defines(
    *, head_dim: int, group: int, block_size: int, parts: bool, dtype: torch.dtype
) -> dict[str, int]:
    """What the source is compiled with."""
    found = {"HEAD_DIM": head_dim, "GROUP": group, "BLOCK_SIZE": block_size, "SPLIT": SPLIT}
    if parts:
        found["PARTS"] = 1
    if dtype == torch.float16:
        found["FLOAT16"] = 1
    return found


@functools.cache
def _function(device: int, shape: frozenset[tuple[str, int]]) -> Function | None:
    """The kernel for a shape; None, said once, where it cannot be compiled."""
    major, minor = torch.cuda.get_device_capability(device)
    try:
        cubin = compile_cubin(
            SOURCE.read_text("utf-8"), architecture=f"sm_{major}{minor}", defines=dict(shape)
        )
    except CompilationFailed as error:
        log.warning("attention in CUDA C++ is skipped, Triton computes: %s", error)
        return None
    return Function.load(cubin, "attend_decodes", _TYPES)


def plan_attention(slices: PagedSlices) -> NativePlan:
    """See `ops.PlanAttention`."""
    if find_compiler() is None:
        log.warning("attention in CUDA C++ is skipped, Triton computes: there is no NVRTC library")
    return NativePlan(slices, fixed=False)


class NativePlan(Plan):
    """See `ops.AttentionPlan`."""

    __slots__ = ()

    def attend(self, cache: Tensor, query: Tensor, layer: AttentionLayer) -> Tensor:
        function = self._kernel(cache, query)
        if function is None:
            return Plan.attend(self, cache, query, layer)
        tokens, heads, head_dim = query.shape
        query = query.contiguous()
        splits = self._splits
        out = torch.empty_like(query)
        sums = torch.empty((tokens, heads, splits, head_dim), device=query.device)
        maxima, totals = torch.empty((2, tokens, heads, splits), device=query.device)
        function(
            (tokens, cache.shape[3], splits),
            _THREADS,
            torch.cuda.current_stream(query.device).cuda_stream,
            *(x.data_ptr() for x in (query, cache, out, sums, maxima, totals)),
            self.slices.block_tables.data_ptr(),
            self.slices.context_lengths.data_ptr(),
            layer.scale,
            layer.softcap or 0.0,
            self.longest if layer.window is None else layer.window,
            query.stride(0),
            *(cache.stride(axis) for axis in range(4)),
            self.slices.block_tables.stride(0),
            heads,
            splits,
        )
        if splits > 1:
            columns = triton.next_power_of_2(head_dim)
            merge_kernel[(tokens * heads,)](
                sums, maxima, totals, out, splits, layer.value_scale,
                HEAD_DIM=head_dim, BLOCK_D=columns, num_warps=1,
            )  # fmt: skip
        return out

    @property
    def _splits(self) -> int:
        return max(1, -(-self.longest // SPLIT))

    def _kernel(self, cache: Tensor, query: Tensor) -> Function | None:
        """None where Triton has to compute."""
        _, heads, head_dim = query.shape
        group = heads // cache.shape[3]
        decodes = len(query) > 0 and set(self.slices.query_lengths) == {1}
        decodes = decodes and self.slices.tree_masks is None
        known = head_dim in HEAD_DIMS and group <= LARGEST_GROUP
        narrow = query.dtype in (torch.float16, torch.bfloat16) and cache.dtype == query.dtype
        if not (decodes and known and narrow and query.is_cuda):
            return None
        shape = defines(
            head_dim=head_dim,
            group=group,
            block_size=self.slices.block_size,
            parts=self._splits > 1,
            dtype=query.dtype,
        )
        return _function(query.device.index or 0, frozenset(shape.items()))


OPS: Mapping[str, Callable[..., Any]] = MappingProxyType({"plan_attention": plan_attention})
