"""Stand-ins for attention libraries: they check what they are given against what the libraries
document, and compute what these promise, slowly."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def as_module(name: str, **contents: Any) -> ModuleType:
    """An importable module."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(contents)
    return module


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    left: int,
    softcap: float,
) -> Tensor:
    """query [q, heads, dim] are the last of keys and values [k, kv_heads, dim]; they see `left`
    positions before their own, -1 for all."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, 1).double() for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(len(query))[:, None] + len(keys) - len(query)
    cell = torch.arange(len(keys))[None]
    seen = cell <= position
    if left >= 0:
        seen &= cell >= position - left
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype)


class BatchPrefillWithPagedKVCacheWrapper:
    """FlashInfer's, as documented: lengths and offsets are planned with on the host."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        assert float_workspace_buffer.dtype == torch.uint8
        assert len(float_workspace_buffer) >= 128 << 20
        assert kv_layout == "NHD"
        self.plans = 0

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        arrays = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(array.dtype == torch.int32 for array in arrays)
        assert len(qo_indptr) == len(paged_kv_indptr) == len(paged_kv_last_page_len) + 1
        assert int(paged_kv_indptr[-1]) == len(paged_kv_indices)
        assert ((paged_kv_last_page_len >= 1) & (paged_kv_last_page_len <= page_size)).all()
        assert causal and num_qo_heads % num_kv_heads == 0
        self.plans += 1
        self._arrays = arrays
        self._shape = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self._dtypes = (q_data_type, kv_data_type)
        self._options = {
            "scale": sm_scale or head_dim_qk**-0.5,
            "left": window_left,
            "softcap": logits_soft_cap or 0.0,
        }

    def run(self, q: Tensor, paged_kv_cache: Tensor) -> Tensor:
        heads, kv_heads, head_dim, page_size = self._shape
        assert q.is_contiguous() and q.shape[1:] == (heads, head_dim)
        assert paged_kv_cache.shape[1:] == (2, page_size, kv_heads, head_dim)
        assert (q.dtype, paged_kv_cache.dtype) == self._dtypes
        queries, starts, pages, last = (array.tolist() for array in self._arrays)
        out = torch.empty_like(q)
        for i, tail in enumerate(last):
            own = paged_kv_cache[pages[starts[i] : starts[i + 1]]]
            length = (len(own) - 1) * page_size + tail
            keys, values = own.transpose(0, 1).flatten(1, 2)[:, :length]
            part = slice(queries[i], queries[i + 1])
            out[part] = attend(q[part], keys, values, **self._options)
        return out


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cache_seqlens: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    softmax_scale: float,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    """FlashAttention-3's: q [total, heads, dim], caches [pages, page_size, kv_heads, dim]."""
    assert causal and q.is_contiguous()
    assert k_cache.stride(-1) == v_cache.stride(-1) == 1
    for whole in (cache_seqlens, page_table, cu_seqlens_q):
        assert whole.dtype == torch.int32 and whole.stride(-1) == 1
    assert window_size[1] in (-1, 0)
    out = torch.empty_like(q)
    offsets = cu_seqlens_q.tolist()
    for i, length in enumerate(cache_seqlens.tolist()):
        part = slice(offsets[i], offsets[i + 1])
        assert part.stop - part.start <= max_seqlen_q
        own = page_table[i, : -(-length // k_cache.shape[1])].long()
        keys, values = (c[own].flatten(0, 1)[:length] for c in (k_cache, v_cache))
        out[part] = attend(
            q[part], keys, values, scale=softmax_scale, left=window_size[0], softcap=softcap
        )
    return out
