"""Block `kernels`: every kernel against float64 or its definition, and the time each takes."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tests.kernels.paging import PLAIN, PagedStep, paged_step
from torch import Tensor

from octavo.kernels import registry
from octavo.kernels.cuda.nvrtc import find_compiler
from octavo.kernels.ops import AttentionLayer, Narrowing, Ops, PagedSlices

from .ceilings import Ceilings, measure, seconds
from .report import Missing, Options, Report

ROOT = Path(__file__).resolve().parents[2]
Work = Callable[[], Any]
LAYER = AttentionLayer(scale=0.1)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def run(options: Options, report: Report) -> None:
    device = torch.device(options.device)
    ops = registry.resolve(device, {device.type: ("cuda", "reference")})
    ceilings = measure(device, small=options.small)
    report.figure("copy bandwidth", ceilings.bandwidth / 1e12, "TB/s")
    report.figure("bfloat16 product", ceilings.flops / 1e12, "TFLOP/s")
    dtypes = (torch.float32,) if options.small else (torch.float16, torch.bfloat16)
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        report.attempt(
            f"right: small kernels, {name}",
            partial(_small, ops, device, dtype, report, name),
        )
        report.attempt(
            f"right: attention, {name}",
            partial(_attention, ops, device, dtype, report, name),
        )
    report.attempt("right: tests of all kernels", lambda: _tests(options, report))
    bench = _Bench(ops, device, ceilings, options.small, report)
    for work in (
        bench.rows,
        bench.decode,
        bench.prompt,
        bench.sampling,
        bench.products,
        bench.narrow_products,
        bench.native,
        bench.flash3,
        bench.flashinfer,
    ):
        report.attempt(f"times: {work.__name__}", work)


def _small(ops: Ops, device: torch.device, dtype: torch.dtype, report: Report, name: str) -> None:
    """Norms, rotation and activation against their formulas in float64."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def check(what: str, got: Tensor, expected: Tensor) -> None:
        error = float((got.double() - expected).abs().max() / expected.abs().max())
        report.check(f"{what}, {name}", error < TOLERANCE[dtype], f"relative error {error:.1e}")

    def normed(wide: Tensor, factor: Tensor) -> Tensor:
        return wide / (wide.pow(2).mean(-1, True) + 1e-5).sqrt() * factor.double()

    x, residual, weight = draw(5, 96), draw(5, 96), draw(96)
    total = x.double() + residual.double()
    held = residual.float()
    got = ops.add_rms_norm(x, held, weight, 1e-5)
    check("add_rms_norm's sum", held, total)
    check("add_rms_norm", got, normed(held.double(), weight))
    check("rms_norm", ops.rms_norm(x, weight, 1e-5), normed(x.double(), weight))
    gate_up = draw(3, 200)
    gate, up = gate_up.double().chunk(2, -1)
    check("silu_mul", ops.silu_mul(gate_up), F.silu(gate) * up)
    heads, cosine, sine = draw(4, 6, 64), draw(4, 1, 64), draw(4, 1, 64)
    turned = heads.double().roll(32, -1)
    check(
        "rotate",
        ops.rotate(heads, cosine, sine),
        heads.double() * cosine.double() + turned * sine.double(),
    )


def _attention(
    ops: Ops, device: torch.device, dtype: torch.dtype, report: Report, name: str
) -> None:
    """Mixtures of decodes, chunks and drafts against attention by its definition in float64."""
    for kind, slices in {
        "decodes": ((1, 7), (1, 530), (1, 1025)),
        "drafts": ((5, 40), (5, 600)),
        "mixed": ((37, 37), (1, 70), (20, 57)),
    }.items():
        step = paged_step(slices, heads=6, kv_heads=2, head_dim=64, block_size=16, dtype=dtype)
        got = _attended(ops, step, device)
        expected = step.attended(scale=0.125, window=None, softcap=None)
        error = float((got.double() - expected).abs().max())
        report.check(f"attention, {kind}, {name}", error < TOLERANCE[dtype], f"error {error:.1e}")


def _attended(ops: Ops, step: PagedStep, device: torch.device) -> Tensor:
    queries, contexts = zip(*step.slices, strict=True)
    plan = ops.plan_attention(
        PagedSlices(
            query_offsets=torch.tensor([0, *queries]).cumsum(0).int().to(device),
            context_lengths=torch.tensor(contexts, dtype=torch.int32).to(device),
            block_tables=step.block_tables.to(device),
            slot_mapping=step.slot_mapping.to(device),
            query_lengths=queries,
            context_lengths_host=contexts,
            block_size=step.cache.shape[2],
        )
    )
    cache = step.cache.to(device)
    plan.store(cache, step.new_keys.to(device), step.new_values.to(device), PLAIN)
    return plan.attend(cache, step.query.to(device), AttentionLayer(scale=0.125)).cpu()


def _tests(options: Options, report: Report) -> None:
    """The repository's own tests of the kernels, which compute on a GPU where there is one."""
    for package in ("pytest", "hypothesis"):
        if importlib.util.find_spec(package) is None:
            raise Missing(f"the package {package} is not installed")
    if options.small:
        raise Missing("`make test` runs them")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", "tests/kernels/cuda",
         "--deselect", "tests/kernels/cuda/test_compiling.py", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=options.seconds * 0.6,
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
    report.check("right: tests of all kernels", done.returncode == 0, last[0])


class _Bench:
    """Times, as shares of what was measured to be possible."""

    def __init__(
        self, ops: Ops, device: torch.device, ceilings: Ceilings, small: bool, report: Report
    ) -> None:
        self._ops, self._device, self._ceilings = ops, device, ceilings
        self._small, self._report = small, report
        self._dtype = torch.float32 if small else torch.bfloat16

    def rows(self) -> None:
        for tokens in (4,) if self._small else (256, 4096):
            size = 64 if self._small else 4096
            x, residual, weight = (
                self._draw(tokens, size),
                self._draw(tokens, size),
                self._draw(size),
            )
            self._memory(
                f"rms_norm, {tokens} tokens",
                partial(self._ops.rms_norm, x, weight, 1e-6),
                2 * x.nbytes,
            )
            self._memory(
                f"add_rms_norm, {tokens} tokens",
                partial(self._ops.add_rms_norm, x, residual.float(), weight, 1e-6),
                2 * x.nbytes + 8 * x.numel(),
            )
            wide = self._draw(tokens, 2 * (96 if self._small else 14336))
            self._memory(
                f"silu_mul, {tokens} tokens",
                partial(self._ops.silu_mul, wide),
                wide.nbytes * 3 // 2,
            )

    def decode(self) -> None:
        """Llama-3.1-8B's heads."""
        for batch, context in (
            ((2, 40),)
            if self._small
            else ((1, 1024), (32, 1024), (64, 1024), (256, 1024), (1, 32768))
        ):
            plan, cache, query = self._paged(batch, 1, context)
            moved = 2 * batch * context * cache.shape[3] * cache.shape[4] * cache.element_size()
            self._memory(
                f"attention, {batch} decodes at {context}",
                partial(plan.attend, cache, query, LAYER),
                moved,
            )

    def prompt(self) -> None:
        tokens = 24 if self._small else 8192
        plan, cache, query = self._paged(1, tokens, tokens)
        took = seconds(lambda: plan.attend(cache, query, LAYER), self._device)
        flops = 2 * tokens * tokens * query.shape[1] * query.shape[2]  # causal: half of 4
        self._report.figure(
            f"attention, a prompt of {tokens}",
            flops / took / 1e12,
            "TFLOP/s",
            share=flops / took / self._ceilings.flops,
            of="the measured product",
        )

    def sampling(self) -> None:
        """Shares of one pass over the logits: of n passes at best 1 / n."""
        rows, columns = (2, 300) if self._small else (256, 151_936)
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
        """torch's products in the shapes of Llama-3.1-8B's gate and up."""
        inputs, outputs = (64, 96) if self._small else (4096, 28672)
        weight = self._draw(outputs, inputs)
        for rows in (1, 8) if self._small else (1, 32, 256, 2048):
            x = self._draw(rows, inputs)
            took = seconds(partial(F.linear, x, weight), self._device)
            if rows < 256:
                share = weight.nbytes / took / self._ceilings.bandwidth
                self._report.figure(
                    f"product of {rows} rows", took * 1e6, "us", share=share, of="the measured copy"
                )
            else:
                flops = 2 * rows * inputs * outputs / took
                self._report.figure(
                    f"product of {rows} rows",
                    flops / 1e12,
                    "TFLOP/s",
                    share=flops / self._ceilings.flops,
                    of="the measured product",
                )

    def narrow_products(self) -> None:
        """Weights of 8 and 4 bits, and the fixed product, beside torch's: times as fast."""
        inputs, outputs = (64, 96) if self._small else (4096, 28672)
        weight = self._draw(outputs, inputs)
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
            for rows in (1, 8) if self._small else (1, 32, 512):
                x = self._draw(rows, inputs)
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
        for batch, context in (
            ((2, 40),) if self._small else ((1, 1024), (32, 1024), (256, 1024), (1, 32768))
        ):
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
        for batch, queries, context in self._beside():
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
        for batch, queries, context in self._beside():
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

    def _beside(self) -> tuple[tuple[int, int, int], ...]:
        """Sequences, queries of each, and their contexts, for which libraries are compared."""
        if self._small:
            return (2, 1, 40), (1, 24, 24)
        return (32, 1, 1024), (256, 1, 1024), (1, 8192, 8192)

    def _paged(
        self, batch: int, queries: int, context: int, ops: Ops | None = None
    ) -> tuple[Any, Tensor, Tensor]:
        """A plan, a layer's cache and queries; the same tables each time."""
        heads, kv_heads, head_dim, block = (4, 2, 16, 16) if self._small else (32, 8, 128, 16)
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

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._device).to(self._dtype)

    def _memory(self, name: str, work: Work, moved: int) -> None:
        took = seconds(work, self._device)
        share = moved / took / self._ceilings.bandwidth
        self._report.figure(name, took * 1e6, "us", share=share, of="the measured copy")
