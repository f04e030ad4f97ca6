"""What each kernel takes, beside what the machine can do and what other libraries take."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels import registry
from octavo.kernels.cuda.nvrtc import find_compiler
from octavo.kernels.ops import AttentionLayer, Narrowing, Ops, PagedSlices

from .ceilings import Ceilings, seconds
from .report import Missing, Report

Work = Callable[[], Any]
LAYER = AttentionLayer(scale=0.1)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is timed."""

    hidden: int
    gated: int  # outputs of a gate
    heads: tuple[int, int, int]  # of queries, of keys, and numbers of each
    tokens: tuple[int, ...]  # of norms and gates
    decodes: tuple[tuple[int, int], ...]  # sequences, and their context
    prompt: int
    beside: tuple[tuple[int, int, int], ...]  # sequences, queries of each, context: for libraries
    logits: tuple[int, int]  # rows and columns
    product_rows: tuple[int, ...]
    narrow_rows: tuple[int, ...]


REAL = Sizes(  # Llama-3.1-8B's layers, Qwen3's vocabulary
    hidden=4096,
    gated=14336,
    heads=(32, 8, 128),
    tokens=(256, 4096),
    decodes=((1, 1024), (32, 1024), (64, 1024), (256, 1024), (1, 32768)),
    prompt=8192,
    beside=((32, 1, 1024), (256, 1, 1024), (1, 8192, 8192)),
    logits=(256, 151_936),
    product_rows=(1, 32, 256, 2048),
    narrow_rows=(1, 32, 512),
)
SMALL = Sizes(  # what an interpreter can bear
    hidden=64,
    gated=48,
    heads=(4, 2, 16),
    tokens=(4,),
    decodes=((2, 40),),
    prompt=24,
    beside=((2, 1, 40), (1, 24, 24)),
    logits=(2, 300),
    product_rows=(1, 8),
    narrow_rows=(1, 8),
)


class KernelTimes:
    """Times, as shares of what was measured to be possible."""

    def __init__(
        self, ops: Ops, device: torch.device, ceilings: Ceilings, small: bool, report: Report
    ) -> None:
        self._ops, self._device, self._ceilings = ops, device, ceilings
        self._sizes, self._report = SMALL if small else REAL, report
        self._dtype = torch.float32 if small else torch.bfloat16
        self.all: tuple[Callable[[], None], ...] = (
            self.rows, self.decode, self.prompt, self.sampling, self.products,
            self.narrow_products, self.native, self.flash3, self.flashinfer,
        )  # fmt: skip

    def rows(self) -> None:
        ops, hidden = self._ops, self._sizes.hidden
        for tokens in self._sizes.tokens:
            x, weight, wide = (
                self._draw(tokens, hidden), self._draw(hidden),
                self._draw(tokens, 2 * self._sizes.gated),
            )  # fmt: skip
            residual = self._draw(tokens, hidden).float()
            ways: dict[str, tuple[Work, int]] = {  # and the bytes that each moves at least
                "rms_norm": (partial(ops.rms_norm, x, weight, 1e-6), 2 * x.nbytes),
                "add_rms_norm": (
                    partial(ops.add_rms_norm, x, residual, weight, 1e-6),
                    2 * x.nbytes + 2 * residual.nbytes,
                ),
                "silu_mul": (partial(ops.silu_mul, wide), wide.nbytes * 3 // 2),
            }
            for name, (work, moved) in ways.items():
                self._memory(f"{name}, {tokens} tokens", work, moved)

    def decode(self) -> None:
        for batch, context in self._sizes.decodes:
            plan, cache, query = self._paged(batch, 1, context)
            moved = 2 * batch * context * cache.shape[3] * cache.shape[4] * cache.element_size()
            name = f"attention, {batch} decodes at {context}"
            self._memory(name, partial(plan.attend, cache, query, LAYER), moved)

    def prompt(self) -> None:
        tokens = self._sizes.prompt
        plan, cache, query = self._paged(1, tokens, tokens)
        took = seconds(lambda: plan.attend(cache, query, LAYER), self._device)
        flops = 2 * tokens * tokens * query.shape[1] * query.shape[2]  # causal: half of 4
        self._operations(f"attention, a prompt of {tokens}", took, flops)

    def sampling(self) -> None:
        """Shares of one pass over the logits: of n passes at best 1 / n."""
        rows, columns = self._sizes.logits
        flat = torch.randn(rows, columns, device=self._device)
        numbers = torch.arange(rows, device=self._device)
        for kind, logits in {"flat": flat, "like a model's": 4 * flat}.items():
            for heat, top_k, top_p in ((0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 0, 0.9), (1.0, 50, 0.9)):
                narrowing = Narrowing(
                    top_k=torch.full_like(numbers, top_k or columns),
                    top_p=torch.full((rows,), top_p, device=self._device),
                    min_p=torch.zeros(rows, device=self._device),
                )
                heats = torch.full((rows,), heat, device=self._device)
                narrows = narrowing if top_k or top_p < 1 else None
                self._memory(
                    f"draw, {rows} rows {kind}, temperature {heat:g}, top-k {top_k}, top-p {top_p}",
                    partial(self._ops.draw, logits, heats, numbers, numbers, narrows),
                    logits.nbytes,
                )
        self._memory(f"largest 20, {rows} rows", partial(self._ops.largest, flat, 20), flat.nbytes)

    def products(self) -> None:
        """torch's products in the shapes of a gate and up."""
        weight = self._weight()
        for rows in self._sizes.product_rows:
            work, name = partial(F.linear, self._draw(rows, weight.shape[1]), weight), "product of"
            if rows < 256:
                self._memory(f"{name} {rows} rows", work, weight.nbytes)
            else:
                took = seconds(work, self._device)
                self._operations(f"{name} {rows} rows", took, 2 * rows * weight.numel())

    def narrow_products(self) -> None:
        """Weights of 8 and 4 bits, and the fixed product, beside torch's: times as fast."""
        weight = self._weight()
        fixed = registry.resolve(
            self._device, {self._device.type: ("cuda.deterministic", "cuda", "reference")}
        )
        ways: dict[str, Work] = {
            "fp8": lambda: self._ops.pack_float8(weight, None, None, weight.dtype),
            "int8": lambda: self._ops.pack_quantized(weight, None, 8),
            "int4": lambda: self._ops.pack_quantized(weight, None, 4),
            "fixed": lambda: fixed.pack_linear(weight, None),
        }
        for name, pack in ways.items():
            packed = pack()
            for rows in self._sizes.narrow_rows:
                x = self._draw(rows, weight.shape[1])
                plain = seconds(partial(F.linear, x, weight), self._device)
                took = seconds(partial(packed, x), self._device)
                self._report.figure(f"{name} product of {rows} rows", plain / took, "x")

    def native(self) -> None:
        """Attention of decodes in CUDA C++ beside Triton's: times as fast."""
        ops = registry.resolve(
            self._device, {self._device.type: ("cuda.native", "cuda", "reference")}
        )
        if self._device.type == "cuda" and find_compiler() is None:
            raise Missing("there is no NVRTC library to compile it with")
        for batch, context in self._sizes.decodes:
            plan, cache, query = self._paged(batch, 1, context)
            other, *_ = self._paged(batch, 1, context, ops)
            self._raced(
                f"native attention against Triton's, {batch} decodes at {context}",
                partial(other.attend, cache, query, LAYER),
                partial(plan.attend, cache, query, LAYER),
            )

    def flash3(self) -> None:
        """FlashAttention-3 on the same cells."""
        if importlib.util.find_spec("flash_attn_interface") is None:
            raise Missing("FlashAttention-3 (flash_attn_interface) is not installed")
        library: Any = importlib.import_module("flash_attn_interface")
        for batch, queries, context in self._sizes.beside:
            plan, cache, query = self._paged(batch, queries, context)
            slices = plan.slices
            theirs = partial(
                library.flash_attn_with_kvcache, query, cache[:, 0], cache[:, 1],
                cache_seqlens=slices.context_lengths, page_table=slices.block_tables,
                cu_seqlens_q=slices.query_offsets, max_seqlen_q=queries,
                softmax_scale=LAYER.scale, causal=True,
            )  # fmt: skip
            kind = f"{batch} decodes" if queries == 1 else f"a prompt of {queries}"
            ours = partial(plan.attend, cache, query, LAYER)
            self._raced(f"attention against FlashAttention-3, {kind}", ours, theirs)

    def flashinfer(self) -> None:
        """FlashInfer on the same cells."""
        if importlib.util.find_spec("flashinfer") is None:
            raise Missing("FlashInfer (flashinfer) is not installed")
        library: Any = importlib.import_module("flashinfer")
        workspace = torch.zeros(256 << 20, dtype=torch.uint8, device=self._device)
        for batch, queries, context in self._sizes.beside:
            plan, cache, query = self._paged(batch, queries, context)
            tables = plan.slices.block_tables
            wrapper = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
            wrapper.plan(
                (torch.arange(batch + 1) * queries).int(),
                (torch.arange(batch + 1) * tables.shape[1]).int(),
                tables.flatten(),
                torch.full((batch,), (context - 1) % cache.shape[2] + 1, dtype=torch.int32),
                num_qo_heads=query.shape[1], num_kv_heads=cache.shape[3],
                head_dim_qk=query.shape[2], page_size=cache.shape[2], causal=True,
                sm_scale=LAYER.scale, q_data_type=query.dtype, kv_data_type=cache.dtype,
            )  # fmt: skip
            kind = f"{batch} decodes" if queries == 1 else f"a prompt of {queries}"
            ours = partial(plan.attend, cache, query, LAYER)
            theirs = partial(wrapper.run, query, cache)
            self._raced(f"attention against FlashInfer, {kind}", ours, theirs)

    def _raced(self, name: str, ours: Work, theirs: Work) -> None:
        """Whether both give the same, and how many times as fast ours is."""
        other = theirs()
        if isinstance(other, tuple):  # some versions give the sums' logarithms, too
            other = other[0]
        error = float((ours() - other).abs().max())
        self._report.check(f"right: {name}", error < TOLERANCE[self._dtype], f"error {error:.1e}")
        took = seconds(ours, self._device)
        self._report.figure(name, seconds(theirs, self._device) / took, "x")

    def _paged(
        self, batch: int, queries: int, context: int, ops: Ops | None = None
    ) -> tuple[Any, Tensor, Tensor]:
        """A plan, a layer's cache and queries; the same tables each time."""
        heads, kv_heads, head_dim = self._sizes.heads
        block = 16
        width = -(-context // block)
        cache = self._draw(batch * width, 2, block, kv_heads, head_dim)
        tables = (
            torch.randperm(batch * width, generator=torch.Generator().manual_seed(0))
            .view(batch, width)
            .int()
            .to(self._device)
        )
        plan = (ops or self._ops).plan_attention(
            PagedSlices(
                query_offsets=(torch.arange(batch + 1) * queries).int().to(self._device),
                context_lengths=torch.full(
                    (batch,), context, dtype=torch.int32, device=self._device
                ),
                block_tables=tables,
                slot_mapping=torch.zeros(batch * queries, dtype=torch.int64, device=self._device),
                query_lengths=(queries,) * batch,
                context_lengths_host=(context,) * batch,
                block_size=block,
            )
        )
        return plan, cache, self._draw(batch * queries, heads, head_dim)

    def _weight(self) -> Tensor:
        return self._draw(2 * self._sizes.gated, self._sizes.hidden)

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._device).to(self._dtype)

    def _memory(self, name: str, work: Work, moved: int) -> None:
        took = seconds(work, self._device)
        share = moved / took / self._ceilings.bandwidth
        self._report.figure(name, took * 1e6, "us", share=share, of="the measured copy")

    def _operations(self, name: str, took: float, flops: int) -> None:
        rate = flops / took
        share = rate / self._ceilings.flops
        self._report.figure(name, rate / 1e12, "TFLOP/s", share=share, of="the measured product")
